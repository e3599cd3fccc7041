"""The affine map, and how one vector is multiplied fastest."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm.layers import _products as products
from fnlm.layers._levels import is_traced, levels

__all__ = ["flat", "linear", "one_vector_compiled"]

PARTS = 32  # in which the rows of a matrix are multiplied: enough for as many threads


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight + bias.

    One vector, as in decoding, reads each weight once, at the speed of memory if all threads read.
    `F.linear` takes one thread for it in float32. So where nothing is differentiated or transformed
    it becomes a batch of products, or a sum where `torch.compile` makes the kernel.

    Args:
        x: [..., inputs].
        weight: [inputs, outputs], in either memory order (see `fnlm.params.layout`).
        bias: [outputs]; None adds nothing.

    Returns:
        [..., outputs].

    >>> import torch
    >>> linear(torch.ones(2, 3), torch.ones(3, 4), torch.zeros(4))[0]
    tensor([3., 3., 3., 3.])
    """
    if products.can_multiply(x, weight, bias):
        return products.multiply(x, weight, bias)
    rows = weight.mT  # [outputs, inputs]
    if x.numel() == x.shape[-1] and type(rows) is Tensor and rows.is_cpu:
        if one_vector_compiled(x):
            y = (rows.float() * flat(x)).sum(-1)
            y = y if bias is None else y + bias
            return y.to(x.dtype).view(*x.shape[:-1], -1)
        if _gains_by_parts(x, rows, bias):
            return _in_parts(x, rows, bias)
    return F.linear(x, rows, bias)


def one_vector_compiled(x: Tensor) -> bool:
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


def _gains_by_parts(x: Tensor, rows: Tensor, bias: Tensor | None) -> bool:
    """Return whether a product is one of those that `_in_parts` is for."""
    if rows.ndim != 2 or rows.stride(-1) != 1 or rows.shape[0] < PARTS or not x.numel():
        return False
    tensors = (x, rows) if bias is None else (x, rows, bias)
    if any(t.dtype != torch.float32 or not t.is_cpu for t in tensors) or is_traced():
        return False
    active = levels(*tensors)
    return not active.order and not active.transforms


def _in_parts(x: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """Return F.linear(x, rows, bias) of one vector, some rows at a time: for all threads."""
    outputs, inputs = rows.shape
    even = outputs - outputs % PARTS
    column = x.reshape(1, 1, inputs).expand(PARTS, -1, -1).mT  # [PARTS, inputs, 1]
    y = torch.bmm(rows[:even].unflatten(0, (PARTS, -1)), column).view(even)
    if even < outputs:
        y = torch.cat([y, F.linear(x.reshape(inputs), rows[even:])])
    return (y if bias is None else y.add_(bias)).view(*x.shape[:-1], outputs)
