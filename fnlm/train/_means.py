"""Means that stay exact when a batch is taken in micro-batches.

The mean over the tokens of a batch is not the mean of its micro-batches' means where these count
different numbers of tokens. So every mean of a loss goes through `mean_of`, and a step that
accumulates listens while the loss of a micro-batch is computed: it learns how many each mean
counted, weights by that, and tells a loss of several means (pretraining has two) the share of each.
Where a batch is spread over processes, each computes its part of the mean over all of them.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C import _functorch

from fnlm.layers.precision import at_least_float32

__all__ = ["Listener", "Ranks", "begin", "listening", "mean", "mean_of", "over_ranks"]


class Listener:
    """What a step hears of the means in one call of a loss."""

    def __init__(self, shares: Tensor | None = None) -> None:
        """Take the factor of each mean, [K] for a loss of K means, or None for 1."""
        self.counts: list[Tensor] = []  # [] each, in the order of the means
        self.shares = shares
        self.level = -1  # of nested transforms at which the loss itself runs


class Ranks:
    """The processes over which a batch is spread."""

    def __init__(self, number: int, sum_up: Callable[[Tensor], Tensor]) -> None:
        """Take their number, and the function that sums a count over them."""
        self.number, self.sum_up = number, sum_up
        self.level = _level()  # of nested transforms at which the loss itself runs


_ACTIVE = threading.local()


@contextmanager
def over_ranks(ranks: Ranks) -> Iterator[None]:
    """Let this thread's means be over a batch of all ranks, each rank times their number.

    The mean over ranks of what each computes is then the mean over the whole batch.
    """
    before = getattr(_ACTIVE, "ranks", None)
    _ACTIVE.ranks = ranks
    try:
        yield
    finally:
        _ACTIVE.ranks = before


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let a listener hear the means that this thread computes in the block."""
    before = getattr(_ACTIVE, "listener", None)
    _ACTIVE.listener = listener
    try:
        yield
    finally:
        _ACTIVE.listener = before


def mean(values: Tensor, where: Tensor | None = None) -> Tensor:
    """Return the mean of the values that count, for losses of your own.

    In a step that accumulates, such a mean is over the whole batch, however many values each
    micro-batch has; `values.mean()` would be the mean of the micro-batches' means.

    Args:
        values: [...] floating point.
        where: [...] True where a value counts; all by default. What does not count may be NaN.

    Returns:
        [] at least float32; 0, with gradient 0, where nothing counts.

    Raises:
        ValueError: the shapes differ.

    >>> mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False]))
    tensor(1.5000)
    """
    wide = at_least_float32(values)
    if where is None:
        return mean_of(wide.sum(), torch.full((), values.numel(), device=values.device))
    if where.shape != values.shape:
        raise ValueError(
            f"where must have the shape of values: {tuple(where.shape)} against "
            f"{tuple(values.shape)}"
        )
    counted = where.bool()
    # `where`, not a product: 0 * NaN would be NaN.
    return mean_of(torch.where(counted, wide, 0.0).sum(), counted.sum())


def mean_of(total: Tensor, count: Tensor) -> Tensor:
    """Return total / max(count, 1), as every loss here does at its end.

    >>> mean_of(torch.tensor(6.0), torch.tensor(4))
    tensor(1.5000)
    """
    ranks: Ranks | None = getattr(_ACTIVE, "ranks", None)
    if ranks is not None and _level() == ranks.level:
        count = ranks.sum_up(count)
        total = total * ranks.number
    result = total / count.clamp_min(1)
    listener = getattr(_ACTIVE, "listener", None)
    # A mean inside a transform of the loss itself, such as a vmap over examples, is one of many.
    if listener is None or (not torch.compiler.is_compiling() and _level() != listener.level):
        return result
    listener.counts.append(count)
    if listener.shares is None:
        return result
    return result * listener.shares[len(listener.counts) - 1].to(result.dtype)


def begin(listener: Listener) -> None:
    """Note that the loss itself begins here, inside the transforms of the step."""
    if not torch.compiler.is_compiling():
        listener.level = _level()


def _level() -> int:
    return len(_functorch.get_interpreter_stack() or ())
