"""Reading values inside transforms, for checks and error messages."""

import torch
from torch import Tensor

__all__ = ["extremes"]

_MODES = torch._C._TorchDispatchModeKey


def extremes(x: Tensor) -> tuple[int, int] | None:
    """Return the minimum and maximum, or None where they cannot be read at once.

    Under `vmap` and derivatives they are those of the whole batch. They cannot be read while
    `torch.compile`, `torch.export`, `make_fx` or `torch.func.linearize` trace, on devices other
    than the CPU (it would synchronize), and of an empty tensor.

    Args:
        x: integers [...].

    >>> extremes(torch.tensor([3, 1, 4])), extremes(torch.tensor(3, device="meta"))
    ((1, 4), None)
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu" or not x.numel():
        return None
    # A graph that is being traced would keep the reading.
    modes = (torch._C._get_dispatch_mode(mode) for mode in (_MODES.PROXY, _MODES.FAKE))
    if any(mode is not None for mode in modes):
        return None
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    try:
        return (int(x.min()), int(x.max())) if x.ndim else (int(x),) * 2
    except RuntimeError:  # a traced value
        return None
