"""Activations, named by their formula.

Published names that differ for one formula share an entry of `ACTIVATIONS`.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

__all__ = ["ACTIVATIONS", "gelu_erf", "gelu_tanh"]


def gelu_erf(x: Tensor) -> Tensor:
    """Return x Phi(x) = x (1 + erf(x / sqrt 2)) / 2, the GELU of BERT (arXiv:1606.08415)."""
    return F.gelu(x)


def gelu_tanh(x: Tensor) -> Tensor:
    """Return x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, the GELU of GPT and GPT-2."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu_erf,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": F.tanh,
}
