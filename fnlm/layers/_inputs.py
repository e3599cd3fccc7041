"""Validation of inputs by type and shape, without reading values: it works under any transform."""

from collections.abc import Mapping, Sequence

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
            f"{name} must be an int64 tensor [..., T], got {type(ids).__name__}: {_made_of(ids)}"
        )
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"{name} must be integers (torch.int64), got {ids.dtype}: {name}.long() makes them"
        )
    if not ids.ndim:
        raise ValueError(
            f"{name} must have an axis of tokens [..., T], got one number: use {name}[None]"
        )


def check_same_shape(shape: Sequence[int], **others: Tensor | None) -> None:
    """Validate that tensors have the shape of ids; None is skipped.

    >>> check_same_shape([2, 3], mask=torch.ones(2, 4))
    Traceback (most recent call last):
    ValueError: mask has shape [2, 4], ids [2, 3]: they must agree: ...
    """
    for name, x in others.items():
        if x is None:
            continue
        _check_tensor(name, x, shape)
        if x.shape != torch.Size(shape):
            raise ValueError(
                f"{name} has shape {list(x.shape)}, ids {list(shape)}: they must agree"
                f"{_remedy(name, list(x.shape), list(shape))}"
            )


def check_broadcastable(shape: Sequence[int], **others: Tensor) -> None:
    """Validate that tensors broadcast to the shape of ids.

    >>> check_broadcastable([2, 3], positions=torch.ones(2))
    Traceback (most recent call last):
    ValueError: positions has shape [2], which can't be broadcast to that of ids, [2, 3]: ...
    """
    for name, x in others.items():
        _check_tensor(name, x, shape)
        sizes = zip(reversed(x.shape), reversed(shape), strict=False)
        if x.ndim > len(shape) or any(size not in (1, expected) for size, expected in sizes):
            raise ValueError(
                f"{name} has shape {list(x.shape)}, which can't be broadcast to that of ids, "
                f"{list(shape)}: give one for each token, or leave {name} out"
            )


def _check_tensor(name: str, x: object, shape: Sequence[int]) -> None:
    """Raise TypeError unless an argument is a tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name} must be a tensor {list(shape)}, got {type(x).__name__}: {_made_of(x)}"
        )


def _made_of(x: object) -> str:
    """Return how a tensor is made of what was given instead of one."""
    if isinstance(x, str | bytes):
        return "torch.tensor(tokenizer.encode(text)) makes one of a text"
    if isinstance(x, Mapping):
        return f"give the tensors that it holds ({', '.join(map(str, x))}), one by one"
    return "torch.as_tensor makes one of a list or an array"


def _remedy(name: str, shape: list[int], of_ids: list[int]) -> str:
    """Return how an argument gets the shape of ids, as the end of an error."""
    if len(shape) == len(of_ids) and shape[:-1] == of_ids[:-1] and shape[-1] > of_ids[-1]:
        return f": {name} is of the new tokens alone, {name}[..., -{of_ids[-1]}:]"
    if shape and shape == of_ids[-len(shape) :]:
        return f": {name}.expand_as(ids) is the same for all rows"
    if of_ids and of_ids == shape[-len(of_ids) :]:
        return f"; vmap maps what is given by position, and not {name}=..."
    return f": give one number of {name} for each token of ids"
