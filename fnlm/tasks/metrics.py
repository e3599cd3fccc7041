"""Metrics of classification and regression, as GLUE reports them: fractions, not percent.

What is no number is never a class: predictions and labels of classes that are NaN, None or
negative (-1 marks an example without label) are an error. Correlations with NaN are NaN.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.ArrayLike
_Doubles = npt.NDArray[np.float64]


def most_likely(logits: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Return the class with the highest logit; of equal ones the first.

    Args:
        logits: [..., C].

    Returns:
        [...].

    Raises:
        ValueError: a row is no distribution: it holds NaN or infinity, or only -inf.

    >>> most_likely(np.array([[0.1, 0.7], [2.0, -1.0]]))
    array([1, 0])
    """
    invalid = ~np.isfinite(logits.max(axis=-1, initial=-np.inf))  # the maximum with NaN is NaN
    if invalid.any():
        first = np.argwhere(invalid)[0].tolist()
        raise ValueError(
            f"logits of {invalid.sum()} rows, the first at {first}, hold NaN or infinity, or "
            "only -inf; the model that gave them has diverged"
        )
    return logits.argmax(axis=-1)


def accuracy(predictions: Numbers, labels: Numbers) -> float:
    """Return the fraction of predictions that equal their labels.

    Raises:
        ValueError: the lengths differ or are 0, or something is not the number of a class.

    >>> accuracy([1, 0, 1, 1], [1, 0, 0, 1])
    0.75
    """
    predicted, actual = _classes(predictions, labels)
    return float((predicted == actual).mean())


def f1(predictions: Numbers, labels: Numbers) -> float:
    """Return the F1 score of class 1: 2 TP / (2 TP + FP + FN), or 0 without positives.

    >>> f1([1, 0, 1, 1], [1, 0, 0, 1])
    0.8
    """
    tp, _, fp, fn = _confusion(predictions, labels)
    return 2 * tp / max(2 * tp + fp + fn, 1)


def matthews(predictions: Numbers, labels: Numbers) -> float:
    """Return Matthews correlation coefficient of two classes, 0 and 1.

    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)); 0 where a factor is 0, as when
    all predictions are the same.

    >>> matthews([1, 0, 1, 1], [1, 0, 0, 1])
    0.5773502691896258
    """
    tp, tn, fp, fn = _confusion(predictions, labels)
    factors = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)  # Python's integers do not overflow
    return (tp * tn - fp * fn) / factors**0.5 if factors else 0.0


def pearson(predictions: Numbers, labels: Numbers) -> float:
    """Return Pearson's correlation coefficient; NaN where one side is constant, or holds NaN.

    >>> round(pearson([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]), 6)
    0.981981
    """
    pair = _pair(predictions, labels)
    # By comparison, not by norm: the mean of equal numbers may differ from them in the last bit.
    if any((values == values[0]).all() or not np.isfinite(values).all() for values in pair):
        return float("nan")
    x, y = map(_standard, pair)
    return float(np.clip(x @ y, -1, 1))


def _standard(values: _Doubles) -> _Doubles:
    """Return values shifted to mean 0 and scaled to norm 1, without overflow of their squares."""
    values = values / np.abs(values).max()
    values = values - values.mean()
    values = values / np.abs(values).max()
    return values / np.linalg.norm(values)


def spearman(predictions: Numbers, labels: Numbers) -> float:
    """Return Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank.

    NaN where one side is constant, or holds NaN.

    >>> round(spearman([1.0, 2.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]), 6)
    0.948683
    """
    x, y = _pair(predictions, labels)
    if np.isnan(x).any() or np.isnan(y).any():  # sorting would give NaN a rank
        return float("nan")
    return pearson(_ranks(x), _ranks(y))


def _ranks(values: _Doubles) -> _Doubles:
    """Return the rank of each value, from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()  # the last rank of each distinct value
    return (last - (counts - 1) / 2)[inverse]


def _pair(predictions: Numbers, labels: Numbers) -> tuple[_Doubles, _Doubles]:
    x, y = (np.asarray(values, np.float64) for values in (predictions, labels))
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ValueError(
            f"predictions {x.shape} and labels {y.shape} must have one axis of the same "
            "length, at least 1"
        )
    return x, y


def _classes(predictions: Numbers, labels: Numbers) -> tuple[_Doubles, _Doubles]:
    pair = _pair(predictions, labels)
    for name, values in zip(("predictions", "labels"), pair, strict=True):
        invalid = ~((values >= 0) & (values == np.floor(values)) & np.isfinite(values))
        if invalid.any():
            raise ValueError(
                f"{name} must be numbers of classes, from 0: {invalid.sum()} are not, the first is "
                f"{values[invalid][0]} at {int(invalid.argmax())}; leave out what has no label (-1)"
            )
    return pair


def _confusion(predictions: Numbers, labels: Numbers) -> tuple[int, int, int, int]:
    """Return the numbers of true positives, true negatives, false positives, false negatives."""
    predicted, actual = _classes(predictions, labels)
    if max(predicted.max(), actual.max()) > 1:
        raise ValueError("predictions and labels must be 0 or 1: this metric is of two classes")
    predicted, actual = predicted == 1, actual == 1
    tp, tn = (predicted & actual).sum(), (~predicted & ~actual).sum()
    fp, fn = (predicted & ~actual).sum(), (~predicted & actual).sum()
    return int(tp), int(tn), int(fp), int(fn)
