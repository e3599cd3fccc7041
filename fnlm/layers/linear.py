"""The affine map."""

from torch import Tensor
from torch.nn import functional as F

from fnlm.layers import _products as products
from fnlm.layers._one_vector import flat, gains_by_parts, in_parts, is_compiled

__all__ = ["linear"]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
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
    if products.gains_by_float32(x, weight):
        wide_bias = None if bias is None else bias.float()
        return linear(x.float(), weight.float(), wide_bias).to(x.dtype)
    rows = weight.mT  # [outputs, inputs]
    if x.numel() == x.shape[-1] and type(rows) is Tensor and rows.is_cpu:
        if is_compiled(x):
            y = (rows.float() * flat(x)).sum(-1)
            y = y if bias is None else y + bias
            return y.to(x.dtype).view(*x.shape[:-1], -1)
        if gains_by_parts(x, rows, bias):
            return in_parts(x, rows, bias)
    return F.linear(x, rows, bias)
