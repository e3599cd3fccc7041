"""Task heads: hidden states and their own sub-tree of parameters, to logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnlm.layers._inputs import check_ids, readable
from fnlm.layers.dropout import dropout
from fnlm.layers.embedding import check_range
from fnlm.layers.linear import linear
from fnlm.layers.norm import layer_norm
from fnlm.params._check import config_of
from fnlm.params.config import BaseConfig
from fnlm.tree import Tree

__all__ = ["choice_logits", "find", "output_table", "tied_logits", "masked_lm_logits"]

# The leaves of a head.
_LINEAR = ("weight", "bias")
_TRANSFORMED = ("transform.weight", "transform.bias", "norm.scale", "norm.bias", "bias")


def find(params: dict[str, Any], name: str, kind: type[BaseConfig]) -> Tree:
    """Return the parameters of a head.

    Args:
        params: what a function was given for the parameters of its family.
        name: of the head.
        kind: the `Config` of the family.

    Raises:
        TypeError: they are no parameters of that family.
        KeyError: there is no such head; says how to get one.
        ValueError: the head lacks a leaf.
    """
    config_of(params, kind)
    if name not in params.get("heads", {}):
        raise KeyError(
            f"params have no head {name!r}: make it with init(..., heads=({name!r},)) or "
            f"load(..., heads=({name!r},), key=key)"
        )
    head = params["heads"][name]
    for path in _TRANSFORMED if name == "masked_lm" else _LINEAR:
        branch, _, leaf = path.rpartition(".")
        if leaf not in (head.get(branch, ()) if branch else head):
            raise ValueError(f"params have no leaf heads.{name}.{path}: the head is not whole")
    return head


def output_table(params: dict[str, Any]) -> Tensor:
    """Return the table of the output layer: its own, or the embeddings that it is tied to.

    Args:
        params: of a family whose config has `tie_word_embeddings`.

    Returns:
        [V, D].

    Raises:
        KeyError: the model is not tied, and has no such table.
    """
    if params["config"].tie_word_embeddings:
        return params["embed"]["token"]
    if "table" not in params.get("output", {}):
        raise KeyError(
            "params have no leaf output.table, as the file had none, and tie_word_embeddings=False "
            "in their config says that the output layer has a table of its own: use hidden_states, "
            "or tie it in the config"
        )
    return params["output"]["table"]


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
    activation: Callable[[Tensor], Tensor] | None = None,
    rate: float = 0.0,
    key: Tensor | None = None,
) -> Tensor:
    """Score each choice by the hidden state at one of its positions.

    Args:
        hidden: [..., C, T, D].
        positions: int64 [..., C], each 0 <= position < T.
        weight: [D, 1].
        bias: [1].
        activation: of the scores; none by default.
        rate: of a dropout that spares or zeroes a feature in all choices at once.
        key: of that dropout.

    Returns:
        [..., C].

    Raises:
        TypeError: positions are not integers.
        ValueError: positions of another shape.
        IndexError: a position is out of range (where values can be read).
    """
    check_ids(positions, "choice_positions")
    if positions.shape != hidden.shape[:-2]:
        raise ValueError(
            f"choice_positions has shape {list(positions.shape)}, expected "
            f"{list(hidden.shape[:-2])}: one position for each choice of ids [..., C, T]"
        )
    if readable(positions):
        check_range(positions, hidden.shape[-2], "choice_positions")
    index = positions[..., None, None].expand(*positions.shape, 1, hidden.shape[-1])
    chosen = hidden.gather(-2, index.long()).squeeze(-2)
    if key is not None:
        chosen = chosen * dropout(torch.ones_like(chosen[..., :1, :]), rate, key)
    scores = linear(chosen, weight, bias).squeeze(-1)
    return scores if activation is None else activation(scores)


def masked_lm_logits(
    hidden: Tensor,
    table: Tensor,
    transform: dict[str, Tensor],
    norm: dict[str, Tensor],
    bias: Tensor,
    *,
    activation: Callable[[Tensor], Tensor],
    eps: float,
) -> Tensor:
    """Score every word by its embedding, after one more layer: BERT's masked language model.

    Args:
        hidden: [..., D].
        table: [V, D], the input embeddings.
        transform: weight [D, D] and bias [D] of the layer.
        norm: scale [D] and bias [D].
        bias: [V].
        activation: after the layer, before the norm.
        eps: of the norm.

    Returns:
        [..., V].
    """
    hidden = layer_norm(activation(linear(hidden, **transform)), **norm, eps=eps)
    return linear(hidden, table.mT, bias)
