"""Metrics of classification and regression, against scipy and against their definitions."""

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.stats

from fnlm.tasks import glue, metrics

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


def test_what_has_no_correlation() -> None:
    assert np.isnan(metrics.pearson([2.5, 2.5], [1.0, 2.0]))
    assert np.isnan(metrics.spearman([1.0], [1.0]))
    assert metrics.matthews([1, 1, 1], [0, 1, 0]) == 0.0
    assert metrics.f1([0, 0], [0, 0]) == 0.0
    assert metrics.pearson([1e-3, 2e-3, 3e-3], [1e9, 2e9, 3e9]) == pytest.approx(1, abs=1e-15)


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
