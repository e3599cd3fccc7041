"""Casts between floating dtypes."""

from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(x: Tensor) -> Tensor:
    """Cast half-precision tensors to float32; others are returned unchanged.

    >>> import torch
    >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x
