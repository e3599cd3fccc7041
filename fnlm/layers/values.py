"""Reading values inside transforms, for checks and for what errors say."""

import torch
from torch import Tensor

__all__ = ["extremes"]


def extremes(x: Tensor) -> tuple[int, int] | None:
    """Return the smallest and the largest number, or None where they cannot be had at once.

    Under `vmap` and derivatives they are those of all examples together. They cannot be had while
    `torch.compile`, `torch.export`, `make_fx` or `torch.func.linearize` trace, on other devices
    than the CPU, which would have to be waited for, and where there is no number.

    Args:
        x: whole numbers [...].

    >>> extremes(torch.tensor([3, 1, 4])), extremes(torch.tensor(3, device="meta"))
    ((1, 4), None)
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.numel():
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    try:
        return (int(x.min()), int(x.max())) if x.ndim else (int(x),) * 2
    except RuntimeError:  # a traced value
        return None
