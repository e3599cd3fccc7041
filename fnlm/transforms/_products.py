"""Inner products of per-example gradients that are known as sums of outer products.

The gradient of a matrix that was used at T positions is sum_t r_t c_t^T, with r_t over its rows and
c_t over its columns. The inner product of two of them is sum_ts (r_t . r'_s) (c_t . c'_s), which
needs T S numbers an example instead of those of the matrix. A lookup of row i has r_t = e_i, so
that products with it are comparisons of ids, or elements of the other factor.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Factor", "OuterProducts", "inner", "inner_cost", "inner_shared"]

ELEMENTS = 2**22  # of the products of one step; bounds the memory


class Factor(NamedTuple):
    """One vector a position, over a span of the rows or of the columns of a matrix."""

    values: Tensor  # [B, T, size], or int64 [B, T], the places of a 1 in zeros
    start: int  # of the span
    size: int

    @property
    def is_index(self) -> bool:
        """Whether the vectors are unit vectors, given by the place of the 1."""
        return self.values.ndim == 2


class OuterProducts(NamedTuple):
    """A gradient sum_t rows_t columns_t^T of each example."""

    rows: Factor
    columns: Factor

    @property
    def positions(self) -> int:
        """T."""
        return self.rows.values.shape[1]


def inner(first: OuterProducts, second: OuterProducts) -> Tensor:
    """Return the inner product of two gradients of one matrix, for each example: [B]."""
    batch, step = first.rows.values.shape[0], first.positions * second.positions
    parts = []
    for span in _spans(batch, step):
        a, b = (OuterProducts(*(_rows(f, span) for f in products)) for products in (first, second))
        rows, columns = _gram(a.rows, b.rows), _gram(a.columns, b.columns)  # [b, T, S] each
        dtype = torch.promote_types(rows.dtype, columns.dtype)  # of comparisons: bool
        parts.append(_dot(rows.to(dtype), columns.to(dtype)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def inner_shared(inputs: Tensor, grads: Sequence[Tensor]) -> Tensor:
    """Return the sum of the squared norms of inputs^T g over all g, for each example.

    Args:
        inputs: [B, T, n].
        grads: [B, T, m] each.

    Returns:
        [B].
    """
    parts = []
    for span in _spans(inputs.shape[0], inputs.shape[1] ** 2):
        x, first = inputs[span], grads[0][span]
        columns = first @ first.mT  # [b, T, T]
        for g in grads[1:]:
            columns = torch.baddbmm(columns, g[span], g[span].mT)
        parts.append(_dot(x @ x.mT, columns))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def inner_cost(first: OuterProducts, second: OuterProducts) -> int:
    """Return the number of multiplications an example that `inner` needs."""
    width = sum(
        1 if a.is_index or b.is_index else min(a.size, b.size)
        for a, b in zip(first, second, strict=True)
    )
    return first.positions * second.positions * width


def _spans(batch: int, step: int) -> Iterator[slice]:
    """Yield spans of the examples, of at most `ELEMENTS` numbers where there are `step` each."""
    size = max(1, ELEMENTS // max(1, step))
    return (slice(start, start + size) for start in range(0, max(1, batch), size))


def _rows(factor: Factor, span: slice) -> Factor:
    return factor._replace(values=factor.values[span])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products [B, ...] . [B, ...] -> [B]."""
    return (a.flatten(1)[:, None, :] @ b.flatten(1)[:, :, None])[:, 0, 0]


def _gram(a: Factor, b: Factor) -> Tensor:
    """Return the inner products of all pairs of vectors: [B, T, S]."""
    if a.is_index and b.is_index:
        return a.values[:, :, None] + a.start == b.values[:, None, :] + b.start
    if b.is_index:
        return _gram(b, a).mT
    if a.is_index:
        place = a.values + (a.start - b.start)  # [B, T], where the vectors of b are read
        inside = (place >= 0) & (place < b.size)
        index = torch.where(inside, place, 0)[:, None, :].expand(-1, b.values.shape[1], -1)
        return torch.where(inside[:, :, None], b.values.gather(2, index).mT, 0)
    low, high = max(a.start, b.start), min(a.start + a.size, b.start + b.size)
    high = max(low, high)
    first, second = (f.values[..., low - f.start : high - f.start] for f in (a, b))
    return first @ second.mT
