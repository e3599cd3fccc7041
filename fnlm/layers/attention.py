"""Attention, by torch's fused kernel or in plain operations: it works under every transform.

The kernel takes many queries without dropout, under at most one level of differentiation; where
levels meet, in forward mode and for few queries, operations are plain.

Keys and values come as segments (cached ones, then the new tokens). In plain operations they are
never concatenated; their scores are, before the softmax.

Dimensions: H heads, T queries, S keys, Si keys of a segment, Dh width of a head.
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from fnlm.layers import _fused_attention as fused
from fnlm.layers._tap import Taps, is_wanted, tap
from fnlm.layers.dropout import apply_mask, keep_mask
from fnlm.layers.mask import check_mask

__all__ = ["attend", "causal_mask", "merge_heads", "padding_bias", "split_heads"]

SLICE = 128  # queries per chunk
HALF = (torch.float16, torch.bfloat16)


def split_heads(x: Tensor, heads: int, parts: int = 1) -> Tensor:
    """Split the last axis into parts and heads: [..., T, parts H Dh] -> [parts, ..., H, T, Dh].

    >>> split_heads(torch.zeros(2, 5, 12), heads=2, parts=3).shape
    torch.Size([3, 2, 2, 5, 2])
    """
    return rearrange(x, "... t (p h d) -> p ... h t d", p=parts, h=heads)


def merge_heads(x: Tensor) -> Tensor:
    """Concatenate the heads: [..., H, T, Dh] -> [..., T, H Dh].

    >>> merge_heads(torch.zeros(2, 3, 5, 4)).shape
    torch.Size([2, 5, 12])
    """
    return rearrange(x, "... h t d -> ... t (h d)")


def causal_mask(valid: Tensor, new: int) -> Tensor:
    """Causal mask: each query attends to the valid keys at or before its position.

    Args:
        valid: bool [..., S + T], False for padding; the last T keys are those of the queries.
        new: T.

    Returns:
        bool [..., 1, T, S + T].

    >>> causal_mask(torch.tensor([True, False, True]), 2).int()
    tensor([[[1, 0, 0],
             [1, 0, 1]]], dtype=torch.int32)
    """
    total = valid.shape[-1]
    index = torch.arange(total, device=valid.device)
    causal = index <= index[total - new :, None]  # [T, S + T]
    return valid[..., None, None, :] & causal  # [..., 1, T, S + T]


def padding_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask: 0 for real tokens, minus infinity for padding.

    A row of padding only is 0 everywhere, so that its softmax is finite.

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
    taps: Taps | None = None,
) -> Tensor:
    """Scaled dot-product attention: softmax(q k^T / sqrt(Dh)) v, masked before the softmax.

    Without dropout, many queries under at most one level of differentiation take torch's fused
    kernel, which gives the same numbers to rounding. In plain operations, more than `SLICE` queries
    are computed in chunks: allocating all scores at once is slower. Where the weights are read or
    written, there are plain operations and one chunk. One query in half precision, as in decoding,
    is computed in float32 on a CPU.

    Args:
        q: [..., H, T, Dh].
        keys: segments [..., H, Si, Dh] of S = sum of Si tokens in all.
        values: segments of the same shapes.
        mask: broadcastable to [..., H, T, S]. Bool: False replaces a score by the lowest finite
            number of its dtype, so that a fully masked query attends uniformly to all keys.
            Floating: it is added to the scores. None masks nothing.
        causal: the last segment holds the queries' own keys, and the mask is causal; so a chunk
            skips the keys after its end. A fully masked query attends uniformly over the keys of
            its chunk.
        rate: dropout rate of the attention weights.
        key: dropout key; None is no dropout.
        taps: of the sites "weights" [..., H, T, S], after the softmax and before dropout, and
            "heads", the result.

    Returns:
        [..., H, T, Dh].

    Raises:
        TypeError: a mask of integers.

    >>> x = torch.randn(2, 3, 4)
    >>> out = attend(x, (x,), (x,), torch.ones(1, 3, 3, dtype=torch.bool))
    >>> parts = (x[:, :1], x[:, 1:])
    >>> torch.allclose(out, attend(x, parts, parts, torch.ones(1, 3, 3, dtype=torch.bool)))
    True
    """
    if mask is not None and not (mask.dtype == torch.bool or mask.is_floating_point()):
        raise TypeError(
            f"mask must be bool, or floating and added to the scores, got {mask.dtype}: give "
            "`mask != 0`"
        )
    queries, total = q.shape[-2], sum(k.shape[-2] for k in keys)
    if queries == 1 and q.dtype in HALF and q.is_cpu and not is_wanted(taps, "weights"):
        # In half types a kernel is made anew for each number of keys, which grows with each token.
        k, v = (tuple(x.float() for x in xs) for xs in (keys, values))
        bias = mask.float() if mask is not None and mask.is_floating_point() else mask
        out = attend(q.float(), k, v, bias, causal=causal, rate=rate, key=key)
        return tap(out.to(q.dtype), taps, "heads")
    keep = keep_mask((*q.shape[:-1], total), rate, key)  # [..., H, T, S]
    whole = is_wanted(taps, "weights")
    if keep is None and not whole and fused.can_attend(q, keys, values, mask):
        chunk = SLICE if causal and queries > SLICE else None
        return tap(fused.attend(q, keys, values, mask, chunk), taps, "heads")
    if queries <= SLICE or whole:
        return tap(_attend(q, keys, values, mask, keep, rate, taps=taps), taps, "heads")
    if mask is not None:
        mask = mask.expand(torch.broadcast_shapes(mask.shape, (queries, total)))
    chunks = []
    for number, q_chunk in enumerate(q.split(SLICE, -2)):
        start = number * SLICE
        end = start + q_chunk.shape[-2]
        future = queries - end if causal else 0  # keys after the chunk: all masked, so skipped
        block = (..., slice(start, end), slice(total - future))  # of the scores
        mask_chunk, keep_chunk = (None if x is None else x[block] for x in (mask, keep))
        k_chunk, v_chunk = _drop_last(keys, future), _drop_last(values, future)
        chunks.append(_attend(q_chunk, k_chunk, v_chunk, mask_chunk, keep_chunk, rate))
    return tap(torch.cat(chunks, -2), taps, "heads")  # [..., H, T, Dh]


def _attend(
    q: Tensor,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    mask: Tensor | None,
    keep: Tensor | None,
    rate: float,
    *,
    taps: Taps | None = None,
) -> Tensor:
    """Attention of one chunk of queries; `keep` is the dropout mask of its weights."""
    scale = 1 / math.sqrt(q.shape[-1])
    if len(keys) == 1 and mask is not None and mask.is_floating_point():
        scores = _biased_scores(q, keys[0], mask, scale)  # [..., H, T, S]
    else:
        q = q * scale  # Dh numbers a query to scale, not S scores
        one = q.shape[-2] == 1  # a product of a matrix and a vector: so ordered, it is faster
        products = [(k @ q.mT).mT if one else q @ k.mT for k in keys]
        scores = _masked(_concat(products), mask)  # [..., H, T, S]
    weights = tap(scores.softmax(-1), taps, "weights")
    if keep is not None:
        weights = apply_mask(weights, keep, rate)
    if len(values) == 1:
        return weights @ values[0]  # [..., H, T, Dh]
    # weights @ concat(values) is the sum over segments of their weights @ their values.
    parts = weights.split([v.shape[-2] for v in values], -1)  # [..., H, T, Si] each
    outs = [w @ v for w, v in zip(parts, values, strict=True)]
    return sum(outs[1:], outs[0])  # [..., H, T, Dh]


def _drop_last(segments: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """Return the segments without the last `count` tokens of the last one."""
    *others, last = segments
    return (*others, last[..., : last.shape[-2] - count, :]) if count else segments


def _concat(scores: list[Tensor]) -> Tensor:
    return scores[0] if len(scores) == 1 else torch.cat(scores, -1)


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    if mask.dtype != torch.bool:
        return scores + mask
    return torch.where(mask, scores, torch.finfo(scores.dtype).min)  # a row of -inf would be NaN


def _biased_scores(q: Tensor, k: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Return scale q k^T + bias, fused into one pass over the scores: [..., H, T, S]."""
    lead = q.shape[:-2]
    bias = bias if bias.ndim > 1 else bias[None]  # of all queries
    bias = bias.expand(*lead, *bias.shape[-2:])
    bias, q, k = (x.flatten(0, -3) for x in (bias, q, k))  # [batch * H, ...]
    return torch.baddbmm(bias, q, k.mT, alpha=scale).unflatten(0, lead)
