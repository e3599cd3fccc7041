"""Views of a leaf as data: which of its elements a slice or a transpose names."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm.tree import register_constant

__all__ = ["Box", "View"]


class Box(NamedTuple):
    """A view that is a rectangle of a matrix: rows and columns next to each other."""

    row: int  # the first one
    column: int
    transposed: bool  # the axes of the view are columns and rows


@register_constant
@dataclass(frozen=True)
class View:
    """The elements of a leaf that a view names, each once, by strides in the contiguous leaf.

    `leaf` is the shape of the leaf; `shape`, `strides` and `offset` are those of the view.
    """

    leaf: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    @classmethod
    def whole(cls, shape: torch.Size) -> "View":
        """Return the view of a whole leaf of this shape."""
        return cls(tuple(shape), tuple(shape), _strides(torch.empty(shape, device="meta")), 0)

    def then(self, view: Callable[[Tensor], Tensor]) -> "View":
        """Return the view of this view that a function (a slice, a transpose) makes."""
        base = torch.empty(math.prod(self.leaf), device="meta")
        made = view(base.as_strided(self.shape, self.strides, self.offset))
        return View(self.leaf, tuple(made.shape), _strides(made), int(made.storage_offset()))

    @property
    def is_whole(self) -> bool:
        """Whether the view is the leaf itself."""
        return self.shape == self.leaf and self._is_block

    @property
    def box(self) -> Box | None:
        """The rectangle, if leaf and view are matrices."""
        if len(self.leaf) != 2 or len(self.shape) != 2:
            return None
        width = self.leaf[1]
        row, column = divmod(self.offset, width)
        if width == 1:  # both strides are 1
            return Box(row, column, self.shape[1] != 1)
        if self.strides == (width, 1):
            return Box(row, column, False)
        return Box(row, column, True) if self.strides == (1, width) else None

    @property
    def _is_block(self) -> bool:
        """Whether the elements lie next to each other, in order."""
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True

    def read(self, leaf: Tensor) -> Tensor:
        """Return the elements of a leaf: [*leaf] -> [*shape]."""
        if self.is_whole:
            return leaf
        if (box := self.box) is not None:
            rows, columns = reversed(self.shape) if box.transposed else self.shape
            part = leaf[box.row : box.row + rows, box.column : box.column + columns]
            return part.mT if box.transposed else part
        if self._is_block:
            part = leaf.reshape(-1)[self.offset : self.offset + math.prod(self.shape)]
            return part.reshape(self.shape)
        return leaf.reshape(-1)[self._positions(leaf)].reshape(self.shape)

    def place(self, values: Tensor, *, batched: bool) -> Tensor:
        """Return a leaf of zeros with these values at the elements: the transpose of `read`.

        Args:
            values: [*shape], or [B, *shape].
            batched: values have the axis B.

        Returns:
            [*leaf], or [B, *leaf].
        """
        lead = values.shape[:1] if batched else ()
        if self.is_whole:
            return values
        if self.box is not None and self.box.transposed and self.then(lambda x: x.mT).is_whole:
            return values.mT
        size, flat = math.prod(self.leaf), values.reshape(*lead, math.prod(self.shape))
        if self._is_block:
            flat = F.pad(flat, (self.offset, size - self.offset - flat.shape[-1]))
        else:
            zeros = flat.new_zeros(*lead, size)
            flat = zeros.index_add(-1, self._positions(flat), flat)
        return flat.reshape(*lead, *self.leaf)

    def _positions(self, like: Tensor) -> Tensor:
        """Return where each element lies in the flat leaf: int64 [elements]."""
        every = torch.arange(math.prod(self.leaf), device=like.device)
        return every.as_strided(self.shape, self.strides, self.offset).reshape(-1)


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(int(stride) for stride in x.stride())
