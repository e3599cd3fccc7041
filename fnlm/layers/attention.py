"""Attention arithmetic in plain operations, which every transform of `torch.func` knows.

Keys and values come in pieces (cached segments, then the new tokens) that are never copied
together: the scores are.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from fnlm.layers.dropout import apply_mask, keep_mask
from fnlm.layers.mask import check_mask

__all__ = ["attend", "causal_mask", "merge_heads", "padding_bias", "split_heads"]

SLICE = 128  # so many queries attend at once


def split_heads(x: Tensor, heads: int, parts: int = 1) -> Tensor:
    """Cut the last axis into parts and heads: [..., T, parts H Dh] -> [parts, ..., H, T, Dh].

    >>> split_heads(torch.zeros(2, 5, 12), heads=2, parts=3).shape
    torch.Size([3, 2, 2, 5, 2])
    """
    return rearrange(x, "... t (p h d) -> p ... h t d", p=parts, h=heads)


def merge_heads(x: Tensor) -> Tensor:
    """Put the heads side by side: [..., H, T, Dh] -> [..., T, H Dh].

    >>> merge_heads(torch.zeros(2, 3, 5, 4)).shape
    torch.Size([2, 5, 12])
    """
    return rearrange(x, "... h t d -> ... t (h d)")


def causal_mask(valid: Tensor, new: int) -> Tensor:
    """Say which keys each new token may attend to: the valid ones up to itself.

    Args:
        valid: bool [..., S + T], which keys are real tokens; the last T belong to the new tokens.
        new: T.

    Returns:
        bool [..., 1, T, S + T].

    >>> causal_mask(torch.tensor([True, False, True]), 2).int()
    tensor([[[1, 0, 0],
             [1, 0, 1]]], dtype=torch.int32)
    """
    total = valid.shape[-1]
    keys = torch.arange(total, device=valid.device)
    reach = keys <= keys[total - new :, None]  # [T, S + T]
    return rearrange(valid, "... s -> ... 1 1 s") & reach


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what is added to the scores of each key: 0, or minus infinity for padding.

    A row of nothing but padding gets 0 everywhere: without a key to attend to, all are free.

    Args:
        mask: [..., S], nonzero for real tokens.
        dtype: of the scores.

    Returns:
        [..., 1, 1, S].

    >>> padding_bias(torch.tensor([[1, 0], [0, 0]]), torch.float32).flatten(1)
    tensor([[0., -inf],
            [0., 0.]])
    """
    check_mask(mask)
    real = mask != 0
    padding = ~real & real.any(-1, keepdim=True)
    return rearrange(torch.where(padding, -math.inf, 0.0).to(dtype), "... s -> ... 1 1 s")


def attend(
    q: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    rate: float = 0.0,
    key: Tensor | None = None,
) -> Tensor:
    """Return softmax(q k^T / sqrt(Dh)) v, the scores being masked before the softmax.

    Many queries attend in slices: fresh memory for all scores at once costs more time than they do.

    Args:
        q: [..., H, T, Dh].
        keys: pieces [..., H, Si, Dh]; together they have S = sum of Si tokens.
        values: pieces of the same shapes.
        mask: broadcastable to [..., H, T, S]. Bool: False replaces a score by the lowest
            number of its type, so that a query without any allowed key attends to all alike.
            Floating: it is added to the scores. By default none is changed.
        causal: the last piece belongs to the queries, and the mask forbids each of them what comes
            after it; so a slice leaves out the keys after its end. A query that is allowed no key
            then averages over those of its slice, not over all.
        rate: of the dropout on the attention weights.
        key: of that dropout.

    Returns:
        [..., H, T, Dh].

    Raises:
        TypeError: a mask of integers.

    >>> x = torch.randn(2, 3, 4)
    >>> out = attend(x, (x,), (x,), torch.ones(1, 3, 3, dtype=torch.bool))
    >>> pieces = (x[:, :1], x[:, 1:])
    >>> torch.allclose(out, attend(x, pieces, pieces, torch.ones(1, 3, 3, dtype=torch.bool)))
    True
    """
    if mask is not None and not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(
            f"mask must be bool, or floating and added to the scores, got {mask.dtype}: give "
            "`mask != 0`"
        )
    queries, total = q.shape[-2], sum(k.shape[-2] for k in keys)
    keep = keep_mask((*q.shape[:-1], total), rate, key)
    if queries <= SLICE:
        return _attend(q, keys, values, mask, keep, rate)
    if mask is not None:
        mask = mask.expand(torch.broadcast_shapes(mask.shape, (queries, total)))
    mixed = []
    for number, part in enumerate(q.split(SLICE, -2)):
        start = number * SLICE
        end = start + part.shape[-2]
        later = queries - end if causal else 0
        place = (..., slice(start, end), slice(total - later))
        seen, kept_here = (None if x is None else x[place] for x in (mask, keep))
        seen_keys, seen_values = _without_last(keys, later), _without_last(values, later)
        mixed.append(_attend(part, seen_keys, seen_values, seen, kept_here, rate))
    return torch.cat(mixed, -2)


def _attend(
    q: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    mask: Tensor | None,
    keep: Tensor | None,
    rate: float,
) -> Tensor:
    """Attend at once, dropping the weights that are not to be kept."""
    scale = 1 / math.sqrt(q.shape[-1])
    if len(keys) == 1 and mask is not None and mask.is_floating_point():
        scores = _biased_scores(q, keys[0], mask, scale)
    else:
        q = q * scale
        scores = _masked(_join([q @ k.mT for k in keys]), mask)
    weights = scores.softmax(-1)
    if keep is not None:
        weights = apply_mask(weights, keep, rate)
    if len(values) == 1:
        return weights @ values[0]
    parts = weights.split([v.shape[-2] for v in values], -1)
    products = [w @ v for w, v in zip(parts, values, strict=True)]
    return sum(products[1:], products[0])


def _without_last(pieces: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """Leave out so many of the last tokens of the last piece."""
    *others, last = pieces
    return (*others, last[..., : last.shape[-2] - count, :]) if count else pieces


def _join(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    if mask.dtype != torch.bool:
        return scores + mask
    return torch.where(mask, scores, torch.finfo(scores.dtype).min)  # finite, unlike a row of -inf


def _biased_scores(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return scale q k^T + bias in one operation, which passes over the scores once."""
    lead = q.shape[:-2]
    bias = bias.expand(*lead, *bias.shape[-2:])
    bias, q, k = (x.flatten(0, -3) for x in (bias, q, k))
    return torch.baddbmm(bias, q, k.mT, alpha=scale).unflatten(0, lead)
