"""Task heads: functions from hidden states and the parameters of a head to logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fnlm.layers import ACTIVATIONS, check_range, dropout, layer_norm, linear, tap
from fnlm.layers._inputs import check_ids
from fnlm.layers._tap import Taps
from fnlm.params._check import config_of
from fnlm.params.config import BaseConfig
from fnlm.tree import Tree

__all__ = [
    "choice_logits",
    "head_params",
    "linear_logits",
    "masked_lm_logits",
    "masked_lm_states",
    "output_table",
    "pooler_params",
    "tied_logits",
]

# The leaves of a head.
_LINEAR = ("weight", "bias")
_TRANSFORMED = ("transform.weight", "transform.bias", "norm.scale", "norm.bias", "bias")


def head_params(params: dict[str, Any], name: str, kind: type[BaseConfig]) -> Tree:
    """Return the parameters of a head.

    Args:
        params: of the whole model.
        name: of the head.
        kind: the `Config` class of the family.

    Raises:
        TypeError: not parameters of that family.
        KeyError: no such head.
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


def pooler_params(params: dict[str, Any], kind: type[BaseConfig]) -> Tree:
    """Return the parameters of the pooler: arguments of `head_params`.

    Raises:
        TypeError: not parameters of that family.
        KeyError: no pooler.
    """
    config_of(params, kind)
    pooler = params.get("pooler", {})
    if any(leaf not in pooler for leaf in _LINEAR):
        raise KeyError(
            "params have no 'pooler', as the file had none: use `hidden_states`, or name a head "
            "that needs it in load(..., heads=(...), key=key)"
        )
    return pooler


def output_table(params: dict[str, Any]) -> Tensor:
    """Return the weight of the output layer: its own, or the tied token embeddings.

    Args:
        params: of a family whose config has `tie_word_embeddings`.

    Returns:
        [V, D].

    Raises:
        KeyError: the embeddings are not tied, and there is no such table.
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
    """Project onto the token embeddings (tied output): hidden @ table^T.

    Args:
        hidden: [..., D].
        table: [V, D], the token embeddings.

    Returns:
        [..., V].
    """
    return linear(hidden, table.mT, None)


def choice_logits(
    hidden: Tensor,
    positions: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: Callable[[Tensor], Tensor] | None = None,
    rate: float = 0.0,
    key: Tensor | None = None,
    taps: Taps | None = None,
) -> Tensor:
    """Return a score for each choice, from the hidden state at one of its positions.

    Args:
        hidden: [..., C, T, D].
        positions: int64 [..., C], each 0 <= position < T.
        weight: [D, 1].
        bias: [1].
        activation: of the scores; none by default.
        rate: dropout rate; one mask is shared by all choices.
        key: dropout key; None is no dropout.
        taps: of the site "logits", the scores.

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
    check_range(positions, hidden.shape[-2], "choice_positions")
    index = positions[..., None, None].expand(*positions.shape, 1, hidden.shape[-1])
    pooled = hidden.gather(-2, index.long()).squeeze(-2)  # [..., C, T, D] -> [..., C, D]
    if key is not None:  # one mask [..., 1, D] for all choices
        pooled = pooled * dropout(torch.ones_like(pooled[..., :1, :]), rate, key)
    scores = linear(pooled, weight, bias).squeeze(-1)  # [..., C]
    return tap(scores if activation is None else activation(scores), taps, "logits")


def linear_logits(
    hidden: Tensor, weight: Tensor, bias: Tensor, *, taps: Taps | None = None
) -> Tensor:
    """Return x @ weight + bias, the logits of a head that is one linear layer.

    Args:
        hidden: [..., D].
        weight: [D, K].
        bias: [K].
        taps: of the site "logits".

    Returns:
        [..., K].
    """
    return tap(linear(hidden, weight, bias), taps, "logits")


def masked_lm_states(params: dict[str, Any], hidden: Tensor) -> Tensor:
    """Return what the output layer of a masked language model multiplies: dense, activation, norm.

    A loss that needs no logits is `fnlm.train.losses.linear_cross_entropy` of these states, the
    table `params["embed"]["token"]` and the bias `params["heads"]["masked_lm"]["bias"]`.

    Args:
        params: with the head "masked_lm", of a family whose config has BERT's `hidden_act` and
            `layer_norm_eps`.
        hidden: [..., D].

    Returns:
        [..., D].

    Raises:
        KeyError: no such head.
    """
    config = params["config"]
    head = head_params(params, "masked_lm", type(config))
    hidden = ACTIVATIONS[config.hidden_act](linear(hidden, **head["transform"]))
    return layer_norm(hidden, **head["norm"], eps=config.layer_norm_eps)


def masked_lm_logits(params: dict[str, Any], hidden: Tensor) -> Tensor:
    """Return masked-language-model logits: `masked_lm_states` by the token embeddings (tied).

    Args:
        params: as of `masked_lm_states`.
        hidden: [..., D].

    Returns:
        [..., V].

    Raises:
        KeyError: no such head.
    """
    states, head = masked_lm_states(params, hidden), params["heads"]["masked_lm"]
    logits = linear(states, params["embed"]["token"].mT, head["bias"])
    return tap(logits, head.get("taps"), "logits")
