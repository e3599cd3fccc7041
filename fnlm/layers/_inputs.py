"""Validation of inputs by type and shape, without reading values: it works under any transform."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["check_broadcastable", "check_ids", "check_same_shape"]


def check_ids(ids: Tensor, name: str = "ids") -> None:
    """Validate token ids.

    Args:
        ids: int64 or int32 [..., T].
        name: of the argument, for errors.

    Raises:
        TypeError: not a tensor, or not of integers.
        ValueError: it has no axis.

    >>> check_ids(torch.tensor(3))
    Traceback (most recent call last):
    ValueError: ids must have an axis of tokens [..., T], got one number: use ids[None]
    """
    if not isinstance(ids, Tensor):
        raise TypeError(
            f"{name} must be an int64 tensor [..., T], got {type(ids).__name__}: "
            "torch.as_tensor makes one of a list or an array"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name} must be integers (torch.int64), got {ids.dtype}")
    if not ids.ndim:
        raise ValueError(
            f"{name} must have an axis of tokens [..., T], got one number: use {name}[None]"
        )


def check_same_shape(shape: Sequence[int], **others: Tensor | None) -> None:
    """Validate that tensors have the shape of ids; None is skipped.

    >>> check_same_shape([2, 3], mask=torch.ones(2, 4))
    Traceback (most recent call last):
    ValueError: mask has shape [2, 4], ids [2, 3]: they must agree
    """
    for name, x in others.items():
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor {list(shape)}, got {type(x).__name__}")
        if x.shape != torch.Size(shape):
            raise ValueError(
                f"{name} has shape {list(x.shape)}, ids {list(shape)}: they must agree"
            )


def check_broadcastable(shape: Sequence[int], **others: Tensor) -> None:
    """Validate that tensors broadcast to the shape of ids.

    >>> check_broadcastable([2, 3], positions=torch.ones(2))
    Traceback (most recent call last):
    ValueError: positions has shape [2], which can't be broadcast to that of ids, [2, 3]
    """
    for name, x in others.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor {list(shape)}, got {type(x).__name__}")
        sizes = zip(reversed(x.shape), reversed(shape), strict=False)
        if x.ndim > len(shape) or any(size not in (1, expected) for size, expected in sizes):
            raise ValueError(
                f"{name} has shape {list(x.shape)}, which can't be broadcast to that of ids, "
                f"{list(shape)}"
            )
