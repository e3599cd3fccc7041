"""Types of numbers."""

from torch import Tensor

__all__ = ["at_least_float32"]


def at_least_float32(x: Tensor) -> Tensor:
    """Return floats of less than 32 bits in float32, anything else as it is.

    >>> import torch
    >>> at_least_float32(torch.ones(2, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return x.float() if x.is_floating_point() and x.dtype.itemsize < 4 else x
