"""Embedding lookup, with checks of the ids."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm.layers._values import extremes

__all__ = ["check_range", "lookup"]


def lookup(table: Tensor, ids: Tensor, name: str = "ids") -> Tensor:
    """Return the embeddings of ids: rows of a table.

    Args:
        table: [N, D].
        ids: int64 or int32 [...], each 0 <= id < N.
        name: of `ids`, for errors.

    Returns:
        [..., D].

    Raises:
        TypeError: ids are not integers.
        IndexError: an id is out of range (on CPU; elsewhere call `check_range(ids.cpu(), N)`
            first, which synchronizes).
        ValueError: ids and table are on two devices.

    >>> lookup(torch.eye(3), torch.tensor([2]))
    tensor([[0., 0., 1.]])
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"{name} must be integers (torch.int64), got {ids.dtype}: {name}.long() makes them"
        )
    if ids.device != table.device:
        raise ValueError(
            f"{name} are on {ids.device}, the parameters on {table.device}: "
            f"{name}.to({str(table.device)!r}), or fnlm.tree.to(params, {str(ids.device)!r})"
        )
    if torch.compiler.is_compiling():
        return F.embedding(ids, table)
    if not ids.numel():
        return table[ids]  # torch has no second derivative of F.embedding without ids
    try:
        return F.embedding(ids, table)
    except IndexError as error:
        bounds = extremes(ids)
        raise IndexError(
            f"{name} must be at least 0 and less than {table.shape[-2]}, the size of the table"
            + (f"; got values from {bounds[0]} to {bounds[1]}" if bounds else "")
            + f": make {name} by the vocabulary of these parameters"
        ) from error


def check_range(ids: Tensor, limit: int, name: str = "ids") -> None:
    """Raise IndexError, naming value and limit, unless 0 <= ids < limit everywhere.

    Values are read where that costs nothing: not while a graph is traced, and not on an
    accelerator, where `check_range(ids.cpu(), limit)` reads them and synchronizes.

    >>> check_range(torch.tensor([1, 5]), 5)
    Traceback (most recent call last):
    IndexError: ids must be at least 0 and less than 5; got values from 1 to 5: ...
    """
    bounds = extremes(ids)
    if bounds and not 0 <= bounds[0] <= bounds[1] < limit:
        raise IndexError(
            f"{name} must be at least 0 and less than {limit}; got values "
            f"from {bounds[0]} to {bounds[1]}: give {name} within that range"
        )
