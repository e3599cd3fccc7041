"""Metrics of classification and regression, as GLUE reports them: fractions, not percent.

A number that is not one is never a class: predictions and labels of classes that are NaN, None or
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
    wrong = ~np.isfinite(logits.max(axis=-1, initial=-np.inf))  # the highest of NaN is NaN
    if wrong.any():
        at = np.argwhere(wrong)[0].tolist()
        raise ValueError(
            f"logits of {wrong.sum()} rows, the first at {at}, hold NaN or infinity, or only -inf; "
            "the model that gave them has diverged"
        )
    return logits.argmax(axis=-1)


def accuracy(predictions: Numbers, labels: Numbers) -> float:
    """Return the share of predictions that equal their labels.

    Raises:
        ValueError: the lengths differ or are 0, or something is not the number of a class.

    >>> accuracy([1, 0, 1, 1], [1, 0, 0, 1])
    0.75
    """
    given, wanted = _classes(predictions, labels)
    return float((given == wanted).mean())


def f1(predictions: Numbers, labels: Numbers) -> float:
    """Return F1 of class 1: 2 TP / (2 TP + FP + FN); 0 where none is given and none is right.

    >>> f1([1, 0, 1, 1], [1, 0, 0, 1])
    0.8
    """
    given, wanted = _two_classes(predictions, labels)
    hits = 2 * (given & wanted).sum()
    return float(hits / max(given.sum() + wanted.sum(), 1))


def matthews(predictions: Numbers, labels: Numbers) -> float:
    """Return Matthews' correlation coefficient of two classes, 0 and 1.

    (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)); 0 where a factor is 0, as when
    all predictions are the same.

    >>> matthews([1, 0, 1, 1], [1, 0, 0, 1])
    0.5773502691896258
    """
    given, wanted = _two_classes(predictions, labels)
    both, neither = int((given & wanted).sum()), int((~given & ~wanted).sum())
    positive, right, n = int(given.sum()), int(wanted.sum()), len(given)
    wrong, missed = positive - both, right - both
    factors = positive * right * (n - positive) * (n - right)
    return (both * neither - wrong * missed) / factors**0.5 if factors else 0.0


def pearson(predictions: Numbers, labels: Numbers) -> float:
    """Return Pearson's correlation coefficient; NaN where one side is constant, or holds NaN.

    >>> round(pearson([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]), 6)
    0.981981
    """
    pair = _pair(predictions, labels)
    # By comparison, not by norm: the mean of equal numbers may differ from them in the last bit.
    if any((values == values[0]).all() or not np.isfinite(values).all() for values in pair):
        return float("nan")
    given, wanted = map(_standard, pair)
    return float(np.clip(given @ wanted, -1, 1))


def _standard(values: _Doubles) -> _Doubles:
    """Return values with mean 0 and norm 1, of whatever size they are: no square overflows."""
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
    given, wanted = _pair(predictions, labels)
    if np.isnan(given).any() or np.isnan(wanted).any():  # which would have a rank
        return float("nan")
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


def _classes(predictions: Numbers, labels: Numbers) -> tuple[_Doubles, _Doubles]:
    pair = _pair(predictions, labels)
    for name, values in zip(("predictions", "labels"), pair, strict=True):
        wrong = ~((values >= 0) & (values == np.floor(values)) & np.isfinite(values))
        if wrong.any():
            raise ValueError(
                f"{name} must be numbers of classes, from 0: {wrong.sum()} are not, the first is "
                f"{values[wrong][0]} at {int(wrong.argmax())}; leave out what has no label (-1)"
            )
    return pair


def _two_classes(
    predictions: Numbers, labels: Numbers
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    given, wanted = _classes(predictions, labels)
    if max(given.max(), wanted.max()) > 1:
        raise ValueError("predictions and labels must be 0 or 1: this metric is of two classes")
    return given == 1, wanted == 1
