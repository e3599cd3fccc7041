"""Task heads: hidden states and their own sub-tree of parameters, to logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnlm.layers.dropout import dropout
from fnlm.layers.linear import linear
from fnlm.layers.norm import layer_norm
from fnlm.params.tree import Tree

__all__ = ["choice_logits", "find", "tied_logits", "word_logits"]


def find(params: dict[str, Any], name: str) -> Tree:
    """Return the parameters of a head.

    Raises:
        KeyError: there is no such head; says how to get one.

    >>> find({"heads": {"choice": {"bias": 1}}}, "choice")
    {'bias': 1}
    """
    if name not in params.get("heads", {}):
        raise KeyError(
            f"params have no head {name!r}: make it with init(..., heads=({name!r},)) or "
            f"load(..., heads=({name!r},), key=key)"
        )
    return params["heads"][name]


def tied_logits(hidden: Tensor, table: Tensor) -> Tensor:
    """Score every word by its embedding: hidden @ table^T.

    Args:
        hidden: [..., D].
        table: [V, D], the input embeddings: the tie is one tensor used twice.

    Returns:
        [..., V].
    """
    return hidden @ table.mT


def choice_logits(
    hidden: Tensor,
    positions: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    rate: float = 0.0,
    key: Tensor | None = None,
) -> Tensor:
    """Score each choice by the hidden state at one of its positions.

    Args:
        hidden: [..., C, T, D].
        positions: int64 [..., C], each 0 <= position < T.
        weight: [D, 1].
        bias: [1].
        rate: of a dropout that spares or zeroes a feature in all choices at once.
        key: of that dropout.

    Returns:
        [..., C].
    """
    index = positions[..., None, None].expand(*positions.shape, 1, hidden.shape[-1])
    chosen = hidden.gather(-2, index).squeeze(-2)
    if key is not None:
        chosen = chosen * dropout(torch.ones_like(chosen[..., :1, :]), rate, key)
    return linear(chosen, weight, bias).squeeze(-1)


def word_logits(
    hidden: Tensor,
    table: Tensor,
    transform: dict[str, Tensor],
    norm: dict[str, Tensor],
    bias: Tensor,
    *,
    activation: Callable[[Tensor], Tensor],
    epsilon: float,
) -> Tensor:
    """Score every word by its embedding, after one more layer: BERT's masked language model.

    Args:
        hidden: [..., D].
        table: [V, D], the input embeddings.
        transform: weight [D, D] and bias [D] of the layer.
        norm: scale [D] and bias [D].
        bias: [V].
        activation: after the layer, before the norm.
        epsilon: of the norm.

    Returns:
        [..., V].
    """
    hidden = layer_norm(activation(linear(hidden, **transform)), **norm, epsilon=epsilon)
    return linear(hidden, table.mT, bias)
