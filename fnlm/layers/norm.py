"""Layer normalisation."""

from torch import Tensor
from torch.nn import functional as F

__all__ = ["layer_norm"]


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float) -> Tensor:
    """Normalise the last axis: (x - mean) / sqrt(variance + epsilon) * scale + bias.

    The variance is the biased one; half types are normalised in float32.

    Args:
        x: [..., D].
        scale: [D].
        bias: [D].
        epsilon: the published value of the family, 1e-5 (GPT, GPT-2) or 1e-12 (BERT).

    Returns:
        [..., D].

    >>> import torch
    >>> layer_norm(torch.tensor([1.0, 3.0]), torch.ones(2), torch.zeros(2), epsilon=0.0)
    tensor([-1.,  1.])
    """
    return F.layer_norm(x, (x.shape[-1],), scale, bias, epsilon)
