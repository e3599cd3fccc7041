"""Leaves of which a rank holds its own part, or a copy.

There are three::

    Replicated   each rank has the whole; gradients are summed over ranks
    Sharded      each rank has some of the rows; they are gathered where the leaf is used, and
                 gradients scattered (ZeRO-3, FSDP)
    Split        each rank has some of the rows or columns and computes with them; what it computes
                 is gathered or summed (tensor parallel)

The first two are for ranks that compute different examples, the last for ranks that compute the
same ones: it may stand around one of the others. A part has the path of the leaf itself, so
optimizers and predicates see the paths that they know.

Sizes that don't divide are padded with zeros at the end: every rank's part has one shape.

Sources: Rajbhandari et al. 2019, "ZeRO" (arXiv:1910.02054); Shoeybi et al. 2019, "Megatron-LM"
(arXiv:1909.08053). Deviation from the latter: each matrix communicates by itself, so the number of
heads need not divide and no line of a model changes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm.distributed import collectives
from fnlm.distributed.groups import rank, size
from fnlm.layers._values import extremes
from fnlm.leaves import Leaf
from fnlm.leaves._leaf import dense
from fnlm.tree import register_leaf

__all__ = ["Placed", "Replicated", "Sharded", "Split", "cut", "joined"]


class Total(NamedTuple):
    """Sums squares or products of parts over the ranks that hold the parts."""

    groups: tuple[str, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the sum of x over the ranks of each group in turn."""
        for group in self.groups:
            x = collectives.sum(x, group)
        return x


class Placed(Leaf):
    """The base class of leaves whose parts lie on several ranks."""

    __slots__ = ()
    part: Any  # of this rank
    group: str  # name of the group; "" for all ranks

    @property
    def across(self) -> Total | None:
        """What makes sums over this rank's part those over the whole; None where it has all.

        `fnlm.tree.norm` and `dot` call it, with one collective for all leaves.
        """
        groups = self._groups()
        return Total(groups) if groups else None

    def _groups(self) -> tuple[str, ...]:
        """Return the groups of more than one rank over which this leaf, and its part, is cut."""
        return self.part._groups() if isinstance(self.part, Placed) else ()

    @property
    def spans(self) -> bool:
        """Whether other ranks have a part or a copy of it."""
        return size(self.group) > 1 or (isinstance(self.part, Placed) and self.part.spans)

    def own_row(self, row: int) -> int | None:
        """Return which row of this rank's part a row of the whole is; None for one of another rank.

        A row is along the first axis, from 0.
        """
        return self.part.own_row(row) if isinstance(self.part, Placed) else row

    @property
    def shape(self) -> torch.Size:
        return self.part.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.part.dtype

    @property
    def device(self) -> torch.device:
        return self.part.device

    @property
    def requires_grad(self) -> bool:
        """Whether autograd tracks this rank's part."""
        return self.part.requires_grad


@register_leaf
class Replicated(Placed):
    """A leaf that every rank has whole, and uses for examples of its own."""

    __slots__ = ("part", "group")

    def __init__(self, part: Any, group: str = "") -> None:
        """Make a leaf.

        Args:
            part: [...], the same on every rank.
            group: name of the group over which gradients are summed.
        """
        self.part, self.group = part, group

    def tree_flatten(self) -> tuple[dict[str, Any], str]:
        return {"": self.part}, self.group

    @classmethod
    def tree_unflatten(cls, children: list[Any], frame: str) -> "Replicated":
        return cls(children[0], frame)

    def dense(self) -> Tensor:
        return collectives.replicate(dense(self.part), self.group)


class _Cut(Placed):
    """A leaf that is cut along an axis, counted from the end."""

    __slots__ = ()
    axis: int
    length: int

    def tree_flatten(self) -> tuple[dict[str, Any], tuple[int, int, str]]:
        return {"": self.part}, (self.axis, self.length, self.group)

    @classmethod
    def tree_unflatten(cls, children: list[Any], frame: tuple[int, int, str]) -> Any:
        return cls(children[0], *frame)  # type: ignore[call-arg]

    def _groups(self) -> tuple[str, ...]:
        return ((self.group,) if size(self.group) > 1 else ()) + super()._groups()

    @property
    def shape(self) -> torch.Size:
        lengths = list(self.part.shape)
        lengths[self.axis] = self.length
        return torch.Size(lengths)

    def own_row(self, row: int) -> int | None:
        if self.axis == -self.ndim:
            n = self.part.shape[0]
            if row // n != rank(self.group):
                return None
            row %= n
        return super().own_row(row)

    @property
    def own(self) -> Any:
        """This rank's part without padding."""
        n = self.part.shape[self.axis]
        return self.part.narrow(self.axis, 0, max(0, min(n, self.length - n * rank(self.group))))

    def _kind(self) -> str:
        return f"1/{size(self.group)} of axis {self.axis}, "


@register_leaf
class Sharded(_Cut):
    """A leaf of which each rank has a part, gathered where the leaf is used."""

    __slots__ = ("part", "axis", "length", "group")

    def __init__(self, part: Any, axis: int, length: int, group: str = "") -> None:
        """Make a leaf.

        Args:
            part: [..., n, ...] of this rank, the last ones padded with zeros; a tensor or a leaf.
            axis: along which the leaf is cut, negative.
            length: of that axis of the whole leaf, at most n times the number of ranks.
            group: name of the group over whose ranks it is cut.
        """
        self.part, self.axis, self.length, self.group = part, axis, length, group

    def dense(self) -> Tensor:
        stacked = collectives.gather_own(dense(self.part), self.group)  # [N, ..., n, ...]
        return joined(stacked, self.axis, self.length)


@register_leaf
class Split(_Cut):
    """A leaf of which each rank has a part, with which it computes a part of the result.

    Every rank of the group has the same inputs and gets the same outputs. Other functions than
    products and lookups gather the leaf.
    """

    __slots__ = ("part", "axis", "length", "group")

    def __init__(self, part: Any, axis: int, length: int, group: str = "") -> None:
        """Make a leaf: see `Sharded`."""
        self.part, self.axis, self.length, self.group = part, axis, length, group

    def dense(self) -> Tensor:
        stacked = collectives.gather_same(dense(self.part), self.group)  # [N, ..., n, ...]
        return joined(stacked, self.axis, self.length)

    @property
    def mT(self) -> Any:
        if self.axis < -2:
            return self.dense().mT
        return Split(self.part.mT, -3 - self.axis, self.length, self.group)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weight = dense(self.part)  # [outputs, inputs], one of them of this rank
        if self.axis == -2:
            y = F.linear(collectives.replicate(x, self.group), weight)  # [..., n]
            y = joined(collectives.gather_same(y, self.group), -1, self.length)
        else:
            inputs = cut(x, -1, size(self.group))  # [N, ..., n]
            y = F.linear(collectives.own_part(inputs, self.group), weight)
            y = collectives.sum(y, self.group)
        return y if bias is None else y + bias

    def rows(self, ids: Tensor) -> Tensor:
        if self.axis != -2:
            x = F.embedding(ids, dense(self.part))  # [..., n]
            return joined(collectives.gather_same(x, self.group), -1, self.length)
        table = dense(self.part)  # [n, D]
        local = ids - rank(self.group) * table.shape[0]
        inside = (local >= 0) & (local < table.shape[0])
        _check_ids(ids, self.length)
        x = F.embedding(torch.where(inside, local, 0), table)
        return collectives.sum(torch.where(inside[..., None], x, 0), self.group)

    def __rmatmul__(self, x: Any) -> Any:
        return self.mT.linear(dense(x), None) if self.ndim == 2 else super().__rmatmul__(x)


def _check_ids(ids: Tensor, length: int) -> None:
    """Raise IndexError as a lookup in the whole table would, where that costs nothing."""
    bounds = extremes(ids)
    if bounds and not 0 <= bounds[0] <= bounds[1] < length:
        raise IndexError(f"ids from {bounds[0]} to {bounds[1]} in a table of {length} rows")


def cut(x: Tensor, axis: int, ranks: int) -> Tensor:
    """Return x, padded with zeros, in equal parts along an axis: [..., n, ...] -> [ranks, ...].

    Args:
        x: [..., n, ...].
        axis: of n, negative.
        ranks: number of parts.

    >>> cut(torch.tensor([1, 2, 3]), -1, 2)
    tensor([[1, 2],
            [3, 0]])
    """
    rows = -(-x.shape[axis] // ranks)
    if missing := rows * ranks - x.shape[axis]:
        x = F.pad(x, (*(0, 0) * (-1 - axis), 0, missing))
    return x.unflatten(axis, (ranks, rows)).movedim(axis - 1, 0)


def joined(stacked: Tensor, axis: int, length: int) -> Tensor:
    """Return the whole of equal parts, without padding: the inverse of `cut`.

    Args:
        stacked: [ranks, ..., n, ...].
        axis: of n, negative.
        length: of that axis in the whole.

    >>> joined(torch.tensor([[1, 2], [3, 0]]), -1, 3)
    tensor([1, 2, 3])
    """
    whole = stacked.movedim(0, axis - 1).flatten(axis - 1, axis)
    return whole.narrow(axis, 0, length) if length < whole.shape[axis] else whole
