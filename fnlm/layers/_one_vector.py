"""How one vector is multiplied fastest, as in decoding: by all threads, or by a compiled loop."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm.layers._levels import is_traced, levels

__all__ = ["flat", "gains_by_parts", "in_parts", "is_compiled"]

PARTS = 32  # in which the rows of a matrix are multiplied: enough for as many threads


def is_compiled(x: Tensor) -> bool:
    """Return whether `torch.compile` traces a product with x, one vector, without gradients.

    Of a sum over products it makes a loop that reads a matrix of any type at the speed of memory.
    """
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return not torch.is_grad_enabled() and x.numel() == x.shape[-1] and x.itemsize <= 4


def flat(x: Tensor) -> Tensor:
    """Return one vector as float32 [inputs], made before a compiled loop and not inside of it."""
    wide = x.reshape(-1).float()
    return wide.as_strided(wide.shape, (1,))  # a view of memory, so inductor puts it there first


def gains_by_parts(x: Tensor, rows: Tensor, bias: Tensor | None) -> bool:
    """Return whether a product is one of those that `in_parts` is for."""
    if rows.ndim != 2 or rows.stride(-1) != 1 or rows.shape[0] < PARTS or not x.numel():
        return False
    tensors = (x, rows) if bias is None else (x, rows, bias)
    if any(t.dtype != torch.float32 or not t.is_cpu for t in tensors) or is_traced():
        return False
    active = levels(*tensors)
    return not active.order and not active.transforms


def in_parts(x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """Return F.linear(x, rows, bias) of one vector, some rows at a time: for all threads."""
    outputs, inputs = rows.shape
    even = outputs - outputs % PARTS
    column = x.reshape(1, 1, inputs).expand(PARTS, -1, -1).mT  # [PARTS, inputs, 1]
    y = torch.bmm(rows[:even].unflatten(0, (PARTS, -1)), column).view(even)
    if even < outputs:
        y = torch.cat([y, F.linear(x.reshape(inputs), rows[even:])])
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], outputs)
