"""Metrics of classification and regression, against scipy and against their definitions."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats

from fnlm.tasks import glue, metrics, squad_metrics
from fnlm.tasks.squad import Answer, Example

SIZES = (1, 2, 3, 17, 1000)


def binary(size: int, seed: int) -> tuple[Any, Any]:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, size)
    return np.where(draw.random(size) < 0.3, 1 - labels, labels), labels


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_counts_of_two_classes(size: int, seed: int) -> None:
    given, wanted = binary(size, seed)
    pairs = list(zip(given.tolist(), wanted.tolist(), strict=True))
    tp, tn = pairs.count((1, 1)), pairs.count((0, 0))
    fp, fn = pairs.count((1, 0)), pairs.count((0, 1))
    assert metrics.accuracy(given, wanted) == pytest.approx((tp + tn) / size, rel=1e-15)
    harmonic = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0
    assert metrics.f1(given, wanted) == pytest.approx(harmonic, rel=1e-15)
    both_vary = 0 < given.sum() < size and 0 < wanted.sum() < size
    # Matthews' coefficient is Pearson's of two classes.
    phi = scipy.stats.pearsonr(given, wanted)[0] if both_vary else 0.0
    assert metrics.matthews(given, wanted) == pytest.approx(phi, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("size", SIZES[1:])
@pytest.mark.parametrize("steps", [3, 20, 10**9])  # the fewer, the more ties
def test_correlations_are_scipys(size: int, steps: int) -> None:
    draw = np.random.default_rng(size)
    given, noise = draw.integers(0, steps, size) / 4, draw.integers(0, steps, size) / 8
    wanted = given + noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns where one side is constant
        pearson = scipy.stats.pearsonr(given, wanted)[0]
        spearman = scipy.stats.spearmanr(given, wanted)[0]
    assert metrics.pearson(given, wanted) == pytest.approx(pearson, rel=1e-12, nan_ok=True)
    assert metrics.spearman(given, wanted) == pytest.approx(spearman, rel=1e-12, nan_ok=True)


def test_undefined_correlations() -> None:
    assert np.isnan(metrics.pearson([2.5, 2.5], [1.0, 2.0]))
    assert np.isnan(metrics.spearman([1.0], [1.0]))
    assert metrics.matthews([1, 1, 1], [0, 1, 0]) == 0.0
    assert metrics.f1([0, 0], [0, 0]) == 0.0
    assert metrics.pearson([1e-3, 2e-3, 3e-3], [1e9, 2e9, 3e9]) == pytest.approx(1, abs=1e-15)


STRANGE: dict[str, Any] = {
    "constant": [2.7] * 1500,
    "another constant": [2.71828] * 1500,
    "one": [0.1] * 3,
    "NaN": [np.nan, *np.linspace(0, 5, 199)],
    "None": [1.0, None, 3.0, 0.5],
    "infinity": [1.0, np.inf, 3.0, 0.5],
    "two infinities": [-np.inf, np.inf, 3.0, 0.5],
    "tiny": [1e-200, 3e-200, 2e-200, 7e-200],
    "huge": [1e200, -3e200, 2e200, 7e200],
    "all but constant": [1.0, 1.0, 1.0, 1.0 + 1e-12],
    "far from 0": [1e9 + 1, 1e9 + 2, 1e9 + 4, 1e9 + 3],
}


@pytest.mark.parametrize("name", STRANGE)
@pytest.mark.parametrize("side", ["predictions", "labels"])
@pytest.mark.filterwarnings("ignore::scipy.stats.ConstantInputWarning")
@pytest.mark.filterwarnings("ignore::scipy.stats.NearConstantInputWarning")
def test_correlations_of_strange_numbers_are_scipys(name: str, side: str) -> None:
    """NaN where there is none; never a number that rounding made."""
    values = np.array(STRANGE[name], np.float64)
    pair = (values, np.random.default_rng(0).random(len(values)) * 5)
    pair = pair if side == "predictions" else pair[::-1]
    for metric, peer in (
        (metrics.pearson, scipy.stats.pearsonr),
        (metrics.spearman, scipy.stats.spearmanr),
    ):
        with np.errstate(all="ignore"):
            expected = peer(*pair)[0]
        with np.errstate(all="raise"):
            found = metric(*pair)
        tolerance = 1e-4 if name == "all but constant" else 1e-7
        assert found == pytest.approx(expected, abs=tolerance, nan_ok=True), metric.__name__
    if name in ("constant", "another constant", "one", "NaN", "None"):
        assert np.isnan(metrics.pearson(*pair)) and np.isnan(metrics.spearman(*pair))


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.f1, metrics.matthews])
@pytest.mark.parametrize("side", ["predictions", "labels"])
@pytest.mark.parametrize("wrong", [np.nan, None, np.inf, -1, 0.5])
def test_invalid_classes_are_named(metric: Any, side: str, wrong: Any) -> None:
    pair: tuple[list[Any], list[Any]] = ([1, 0, 1], [1, 0, 1])
    pair[side == "labels"][1] = wrong
    with pytest.raises(ValueError, match=rf"{side} must be numbers of classes.*at 1"):
        metric(*pair)


@pytest.mark.parametrize("name", glue.TASKS)
def test_a_diverged_model_has_no_result(name: str) -> None:
    """NaN logits are an error where they would be a class, and NaN where they are a score."""
    kind = glue.task(name)
    logits = np.random.default_rng(0).normal(size=(8, max(len(kind.labels), 1)))
    labels = np.arange(8) % max(len(kind.labels), 2)
    assert all(
        np.isfinite(v) for v in glue.evaluate(name, glue.predict(name, logits), labels).values()
    )
    logits[3, 0] = np.nan
    if kind.is_regression:
        found = glue.evaluate(name, glue.predict(name, logits), labels)
        assert all(np.isnan(v) for v in found.values())
    else:
        with pytest.raises(ValueError, match=r"logits of 1 rows, the first at \[3\], hold NaN"):
            glue.predict(name, logits)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, "only -inf"])
def test_the_likeliest_class(wrong: Any) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    logits[1, 2, 0] = -np.inf  # a class that is excluded
    assert np.array_equal(metrics.most_likely(logits), logits.argmax(-1))
    logits[2, 1, slice(None) if wrong == "only -inf" else 4] = (
        -np.inf if wrong == "only -inf" else wrong
    )
    with pytest.raises(ValueError, match=r"the first at \[2, 1\]"):
        metrics.most_likely(logits)


def test_predictions_and_odds_of_unknown_questions_are_named() -> None:
    question = Example("7", "Who?", "It was Ann.", (Answer("Ann", 7),))
    for evaluate in (squad_metrics.evaluate_v1, squad_metrics.evaluate_v2):
        with pytest.raises(TypeError, match=r"prediction of question '7' must be a text.*None"):
            evaluate([question], {"7": None})  # type: ignore[dict-item]
    for wrong in (np.nan, None, np.float32("nan")):
        odds: Any = {"7": wrong}
        with pytest.raises(ValueError, match=r"null_odds of question '7' must be a number"):
            squad_metrics.evaluate_v2([question], {"7": "Ann"}, odds)
        with pytest.raises(ValueError, match=r"null_odds of question '7' must be a number"):
            squad_metrics.best_thresholds([question], {"7": "Ann"}, odds)
    with pytest.raises(ValueError, match="threshold must be a number"):
        squad_metrics.evaluate_v2([question], {"7": "Ann"}, {"7": 0.0}, threshold=np.nan)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match=r"predictions \(2,\) and labels \(3,\)"):
        metrics.accuracy([1, 0], [1, 0, 1])
    with pytest.raises(ValueError, match="at least 1"):
        metrics.accuracy([], [])
    for metric in (metrics.f1, metrics.matthews):
        with pytest.raises(ValueError, match="two classes"):
            metric([2, 1], [0, 1])


def test_each_task_has_its_metrics() -> None:
    """The chief metric of a task is the one that the leaderboard takes."""
    names = {name: [m.__name__ for m in task.metrics] for name, task in glue.TASKS.items()}
    assert names == {
        "CoLA": ["matthews"],
        "SST-2": ["accuracy"],
        "MRPC": ["f1", "accuracy"],
        "STS-B": ["pearson", "spearman"],
        "QQP": ["f1", "accuracy"],
        "MNLI": ["accuracy"],
        "QNLI": ["accuracy"],
        "RTE": ["accuracy"],
        "WNLI": ["accuracy"],
    }
    given, wanted = binary(40, 7)
    assert glue.evaluate("cola", given, wanted) == {"matthews": metrics.matthews(given, wanted)}
