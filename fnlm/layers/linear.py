"""The affine map."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["linear"]


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
    return F.linear(x, weight.mT, bias)
