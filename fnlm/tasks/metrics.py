"""Metrics of classification and regression, as GLUE reports them: fractions, not percent."""

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.ArrayLike
_Doubles = npt.NDArray[np.float64]


def accuracy(predictions: Numbers, labels: Numbers) -> float:
    """Return the share of predictions that equal their labels.

    >>> accuracy([1, 0, 1, 1], [1, 0, 0, 1])
    0.75
    """
    given, wanted = _pair(predictions, labels)
    return float((given == wanted).mean())


def f1(predictions: Numbers, labels: Numbers) -> float:
    """Return F1 of class 1: 2 TP / (2 TP + FP + FN); 0 where none is given and none is right.

    >>> f1([1, 0, 1, 1], [1, 0, 0, 1])
    0.8
    """
    given, wanted = _classes(predictions, labels)
    hits = 2 * (given & wanted).sum()
    return float(hits / max(given.sum() + wanted.sum(), 1))


def matthews(predictions: Numbers, labels: Numbers) -> float:
    """Return Matthews' correlation coefficient of two classes, 0 and 1.

    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)); 0 where a factor is 0, as when
    all predictions are the same.

    >>> matthews([1, 0, 1, 1], [1, 0, 0, 1])
    0.5773502691896258
    """
    given, wanted = _classes(predictions, labels)
    both, neither = int((given & wanted).sum()), int((~given & ~wanted).sum())
    positive, right, n = int(given.sum()), int(wanted.sum()), len(given)
    wrong, missed = positive - both, right - both
    factors = positive * right * (n - positive) * (n - right)
    return (both * neither - wrong * missed) / factors**0.5 if factors else 0.0


def pearson(predictions: Numbers, labels: Numbers) -> float:
    """Return Pearson's correlation coefficient; NaN where one side is constant.

    >>> round(pearson([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]), 6)
    0.981981
    """
    given, wanted = (values - values.mean() for values in _pair(predictions, labels))
    scale = np.linalg.norm(given) * np.linalg.norm(wanted)
    return float(np.clip(given @ wanted / scale, -1, 1)) if scale > 0 else float("nan")


def spearman(predictions: Numbers, labels: Numbers) -> float:
    """Return Spearman's correlation: Pearson's of the ranks, ties sharing their mean rank.

    >>> round(spearman([1.0, 2.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0]), 6)
    0.948683
    """
    given, wanted = _pair(predictions, labels)
    return pearson(_ranks(given), _ranks(wanted))


def _ranks(values: _Doubles) -> _Doubles:
    """Return the rank of each value, from 1; equal values share the mean of their ranks."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[places]


def _pair(predictions: Numbers, labels: Numbers) -> tuple[_Doubles, _Doubles]:
    given, wanted = (np.asarray(values, np.float64) for values in (predictions, labels))
    if given.shape != wanted.shape or given.ndim != 1 or not len(given):
        raise ValueError(
            f"predictions {given.shape} and labels {wanted.shape} must have one axis of the same "
            "length, at least 1"
        )
    return given, wanted


def _classes(predictions: Numbers, labels: Numbers) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    given, wanted = _pair(predictions, labels)
    if not np.isin(given, (0, 1)).all() or not np.isin(wanted, (0, 1)).all():
        raise ValueError("predictions and labels must be 0 or 1: this metric is of two classes")
    return given == 1, wanted == 1
