"""Embedding tables."""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["check_range", "hold", "lookup"]


def lookup(table: Tensor, ids: Tensor, name: str = "ids") -> Tensor:
    """Return the rows of a table.

    Args:
        table: [N, D].
        ids: int64 or int32 [...], each 0 <= id < N.
        name: what an error calls `ids`.

    Returns:
        [..., D].

    Raises:
        TypeError: ids are not integers.
        IndexError: an id is out of range (on CPU; elsewhere call `check_range` first, it waits for
            the device).

    >>> lookup(torch.eye(3), torch.tensor([2]))
    tensor([[0., 0., 1.]])
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be integers (torch.int64), got {ids.dtype}")
    if torch.compiler.is_compiling():
        return F.embedding(ids, table)
    try:
        return F.embedding(ids, table)
    except IndexError as error:
        raise IndexError(
            f"{name} must be at least 0 and less than {table.shape[-2]}, the size of the table; "
            f"got values from {ids.min().item()} to {ids.max().item()}"
        ) from error


def hold(rows: Tensor, ids: Tensor, held: int | None) -> Tensor:
    """Make the rows of one id constants, for derivatives of every kind and order.

    Args:
        rows: [..., D], what was looked up.
        ids: [...].
        held: the id; None for none.

    Returns:
        [..., D], the same numbers.

    >>> table, ids = torch.eye(2), torch.tensor([0, 1])
    >>> torch.func.grad(lambda table: hold(lookup(table, ids), ids, 0).sum())(table)
    tensor([[0., 0.],
            [1., 1.]])
    """
    return rows if held is None else torch.where((ids == held).unsqueeze(-1), rows.detach(), rows)


def check_range(ids: Tensor, limit: int, name: str = "ids") -> None:
    """Raise IndexError, naming value and limit, unless 0 <= ids < limit everywhere.

    This reads values: on an accelerator it waits for the device.

    >>> check_range(torch.tensor([1, 5]), 5)
    Traceback (most recent call last):
    IndexError: ids must be at least 0 and less than 5; got values from 1 to 5
    """
    if not ids.numel():
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= limit:
        raise IndexError(
            f"{name} must be at least 0 and less than {limit}; got values from {low} to {high}"
        )
