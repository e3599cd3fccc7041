"""The affine map."""

from torch import Tensor
from torch.nn import functional as F

from fnlm.layers import _products as products

__all__ = ["linear", "multiply"]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight + bias.

    Args:
        x: [..., inputs].
        weight: [inputs, outputs], in either memory order (see `fnlm.params.layout`).
        bias: [outputs].

    Returns:
        [..., outputs].

    >>> import torch
    >>> linear(torch.ones(2, 3), torch.ones(3, 4), torch.zeros(4))[0]
    tensor([3., 3., 3., 3.])
    """
    if products.can_multiply(x, weight, bias):
        return products.multiply(x, weight, bias)
    return F.linear(x, weight.mT, bias)


def multiply(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight, a linear layer without bias.

    Args:
        x: [..., inputs].
        weight: [inputs, outputs], in either memory order.

    Returns:
        [..., outputs].

    >>> import torch
    >>> multiply(torch.ones(2, 3), torch.ones(3, 4))[0]
    tensor([3., 3., 3., 3.])
    """
    if products.can_multiply(x, weight):
        return products.multiply(x, weight)
    return x @ weight
