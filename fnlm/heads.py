"""Task heads: hidden states and their own sub-tree of parameters, to logits."""

from torch import Tensor

from fnlm.layers.linear import linear

__all__ = ["choice_logits", "tied_logits"]


def tied_logits(hidden: Tensor, table: Tensor) -> Tensor:
    """Score every word by its embedding: hidden @ table^T.

    Args:
        hidden: [..., D].
        table: [V, D], the input embeddings: the tie is one tensor used twice.

    Returns:
        [..., V].
    """
    return hidden @ table.mT


def choice_logits(hidden: Tensor, positions: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Score each choice by the hidden state at one of its positions.

    Args:
        hidden: [..., C, T, D].
        positions: int64 [..., C], each 0 <= position < T.
        weight: [D, 1].
        bias: [1].

    Returns:
        [..., C].
    """
    index = positions[..., None, None].expand(*positions.shape, 1, hidden.shape[-1])
    return linear(hidden.gather(-2, index), weight, bias)[..., 0, 0]
