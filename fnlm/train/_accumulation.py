"""Gradients of a batch in micro-batches, equal to those of the whole batch."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from fnlm import random, tree
from fnlm.layers.precision import at_least_float32
from fnlm.train import _means
from fnlm.transforms.gradient import grad_and_value
from fnlm.tree import Tree

__all__ = ["accumulated", "is_readable", "times", "unscaled"]

Counts = tuple[Tensor, ...]  # how many values each mean of a loss was taken over


class _Parts(NamedTuple):
    """The micro-batches of a step, and how they are differentiated."""

    differentiate: Callable[..., Any]
    heard: Callable[..., Any]  # -> scaled loss, (loss, counts)
    params: Tree
    scale: Tensor | None  # loss scale
    batches: list[tuple[Any, ...]]
    keys: list[Tensor]

    def at(self, i: int, shares: Tensor | None = None) -> tuple[tuple[Tree, Tensor], Counts]:
        """Return gradient and loss of a micro-batch, and the counts of its K means.

        `shares` [K] multiply the means.
        """
        grads, (_, (value, counts)) = self.differentiate(
            self.params, self.scale, shares, *self.batches[i], key=self.keys[i]
        )
        return (unscaled(grads, self.scale), value.detach()), counts

    def counts(self) -> list[Counts]:
        """Return what the means of each micro-batch count, by a forward pass."""
        with torch.no_grad():
            return [
                self.heard(self.params, None, None, *batch, key=key)[1][1]
                for batch, key in zip(self.batches, self.keys, strict=True)
            ]


def accumulated(loss: Callable[..., Tensor], parts: int) -> Callable[..., tuple[Tree, Tensor]]:
    """Return the function that computes gradient and loss of a batch in micro-batches.

    Args:
        loss: `loss(params, *batch, key=key) -> []`.
        parts: number of micro-batches.

    Returns:
        `fn(params, key, scale, batch) -> (gradient, loss)`; the scale is multiplied with the loss
        and divided out again, if it is not None.
    """
    uneven: list[bool] = []  # holds True once micro-batches were found that count differently

    def heard(
        params: Tree, scale: Tensor | None, shares: Tensor | None, *batch: Any, key: Tensor
    ) -> Any:
        listener = _means.Listener(shares)
        with _means.listening(listener) if parts > 1 else nullcontext():
            _means.begin(listener)
            value = loss(params, *batch, key=key)
        return times(value, scale), (value, tuple(listener.counts))

    differentiate = grad_and_value(heard, has_aux=True)

    def gradient(
        params: Tree, key: Tensor, scale: Tensor | None, batch: tuple[Any, ...]
    ) -> tuple[Tree, Tensor]:
        keys = [random.fold_in(key, i) for i in range(parts)] if parts > 1 else [key]
        batches = _micro_batches(batch, parts) if parts > 1 else [batch]
        return _mean(_Parts(differentiate, heard, params, scale, batches, keys), uneven)

    return gradient


def _mean(parts: _Parts, uneven: list[bool]) -> tuple[Tree, Tensor]:
    """Return gradient and loss of a batch from those of its micro-batches.

    One mean is weighted by what it counts. Several need their shares beforehand where micro-batches
    count differently; after the first time, which `uneven` notes, the counting comes first.
    """
    if uneven and _differ(counts := parts.counts()):
        return _mean_by_shares(parts, counts)
    result, first = parts.at(0)
    total: Any = sum(first[:1])
    for i in range(1, len(parts.batches)):
        part, these = parts.at(i)
        if len(these) != len(first):
            raise ValueError(
                f"the loss took {len(first)} means of the first micro-batch and {len(these)} of "
                f"number {i}: take the same ones of every batch"
            )
        if len(first) > 1 and _differ([first, these]):
            uneven[:] = [True]
            return _mean_by_shares(parts, parts.counts())
        weight: Any = 1 / (i + 1)
        if first:  # nothing may be counted so far: then as if each had counted one
            total = total + these[0]
            weight = torch.where(total > 0, these[0].double() / total, weight)
        result = _mixed(result, part, weight)
    return result


def _mean_by_shares(parts: _Parts, counts: list[Counts]) -> tuple[Tree, Tensor]:
    """Return the mean of micro-batches in each of which every mean has its share of the whole."""
    table = torch.stack([torch.stack(row) for row in counts]).double()  # [parts, K]
    shares = table / table.mean(0).clamp_min(1 / len(counts))
    result, _ = parts.at(0, shares[0])
    for i in range(1, len(counts)):
        result = _mixed(result, parts.at(i, shares[i])[0], 1 / (i + 1))
    return result


def _mixed(mean: Tree, part: Tree, weight: Any) -> Tree:
    """Return the mean that includes one more part."""
    return tree.map(lambda m, x: m + (x - m) * _like(weight, x), mean, part)


def _differ(counts: list[Counts]) -> bool:
    """Return whether micro-batches count differently, or whether that can't be read."""
    table = torch.stack([torch.stack(row) for row in counts])  # [parts, K]
    return not is_readable(table) or bool((table != table[0]).any())


def _micro_batches(batch: tuple[Any, ...], number: int) -> list[tuple[Any, ...]]:
    """Split the first axis of every leaf into equal parts."""
    for path, leaf in tree.named_leaves(batch):
        if leaf.ndim == 0 or leaf.shape[0] % number:
            raise ValueError(
                f"accumulate={number} must divide the first axis of batch.{path}, "
                f"which has shape {tuple(leaf.shape)}"
            )
    # [B, ...] -> [number, B / number, ...]
    stacked = tree.map(lambda leaf: leaf.unflatten(0, (number, -1)), batch)
    return [tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(number)]


def is_readable(x: Tensor) -> bool:
    """Return whether the values of a tensor may decide what is computed next.

    >>> is_readable(torch.ones(1))
    True
    """
    traced = torch.compiler.is_compiling() or get_proxy_mode() is not None
    return not (traced or _functorch.is_functorch_wrapped_tensor(x))


def times(x: Tensor, factor: Tensor | None) -> Tensor:
    """Multiply by a factor, at least in float32; by None for 1.

    >>> times(torch.ones(1), None)
    tensor([1.])
    """
    return x if factor is None else at_least_float32(x) * _like(factor, at_least_float32(x))


def unscaled(grads: Tree, scale: Tensor | None) -> Tree:
    """Divide gradients by the loss scale, at least in float32.

    >>> unscaled({"w": torch.ones(1).half()}, torch.tensor(2.0))
    {'w': tensor([0.5000])}
    """
    if scale is None:
        return grads
    return tree.map(lambda g: at_least_float32(g) / scale, grads)


def _like(factor: Any, x: Tensor) -> Any:
    """Return a number, or a 0-d tensor in the type of `x`."""
    return factor.to(x.dtype) if isinstance(factor, Tensor) else factor
