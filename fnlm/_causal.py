"""Shared by GPT and GPT-2: attention over a key-value cache, positions, and input validation.

Dimensions: T new tokens, S cached tokens, D width, H heads, Dh = D / H width of a head.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fnlm.layers import kv_cache
from fnlm.layers._inputs import check_ids
from fnlm.layers.attention import attend, merge_heads, split_heads
from fnlm.layers.dropout import dropout
from fnlm.layers.kv_cache import Cache, FixedCache
from fnlm.layers.linear import linear
from fnlm.layers.mask import check_mask

__all__ = ["KV", "KVSegments", "attention", "check", "fixed_cache", "positions"]

FEW = 2**15  # elements: below it, copying a segment is cheaper than one more matrix product
KV = tuple[Tensor, Tensor]  # keys and values of the new tokens [..., H, T, Dh]
KVSegments = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # keys, values: [..., H, Si, Dh] each


class _Sizes(Protocol):
    """The config fields used here, by their published names."""

    @property
    def n_positions(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def attn_pdrop(self) -> float: ...
    @property
    def resid_pdrop(self) -> float: ...


def attention(
    x: Tensor,
    past: KVSegments,
    mask: Tensor,
    params: dict[str, Any],
    config: _Sizes,
    keys: Sequence[Tensor | None] = (None, None),
    *,
    scale: float = 1.0,
) -> tuple[Tensor, KV]:
    """Causal multi-head self-attention over the cached tokens and x.

    Args:
        x: [..., T, D].
        past: keys and values of the S cached tokens, from `cache.past`.
        mask: bool [..., 1, T, S + T], from `causal_mask`.
        params: "qkv", weight [D, 3 D] and bias, and "out", weight [D, D] and bias.
        config: of the family.
        keys: dropout keys, of the attention weights and of the output.
        scale: factor on the scores, besides 1 / sqrt(Dh).

    Returns:
        [..., T, D], and the keys and values of the new tokens.
    """
    qkv = linear(x, **params["qkv"])  # [..., T, 3 D]
    q, k, v = split_heads(qkv, config.n_head, parts=3)  # [..., H, T, Dh] each
    # Views of qkv would keep q alive for as long as the cache lives.
    k, v = (x.clone(memory_format=torch.contiguous_format) for x in (k, v))
    kv_cache.check_dtype(past[0], k)
    keys_values = _append_segment(past, (k, v))  # S + T tokens together
    q = q if scale == 1 else q * scale
    context = attend(q, *keys_values, mask, causal=True, rate=config.attn_pdrop, key=keys[0])
    out = linear(merge_heads(context), **params["out"])  # [..., H, T, Dh] -> [..., T, D]
    return dropout(out, config.resid_pdrop, keys[1]), (k, v)


def _append_segment(past: KVSegments, new: KV) -> KVSegments:
    """Append the new tokens to the cached segments, and concatenate the last ones if small."""
    keys, values = ((*segments, x) for segments, x in zip(past, new, strict=True))
    # The longest tail of at most FEW elements, the new tokens included.
    first, elements = len(past[0]), new[0].numel()
    while first and (elements := elements + keys[first - 1].numel()) <= FEW:
        first -= 1
    if first == len(past[0]):
        return keys, values
    return (*keys[:first], torch.cat(keys[first:], -2)), (
        *values[:first],
        torch.cat(values[first:], -2),
    )


def positions(cache: Cache | FixedCache | None, new_valid: Tensor) -> Tensor:
    """Return position ids that count real tokens only; padding repeats its left neighbour's.

    Args:
        cache: of the earlier tokens.
        new_valid: bool [..., T], False for padding.

    Returns:
        int64 [..., T].

    >>> positions(None, torch.tensor([False, True, True, False]))
    tensor([0, 0, 1, 1])
    """
    position_ids = new_valid.cumsum(-1) - 1  # [..., T]
    if cache is not None:
        position_ids = position_ids + cache.valid.sum(-1, keepdim=True)
    return position_ids.clamp(min=0)  # padding on the left has -1


def check(
    config: _Sizes,
    ids: Tensor,
    cache: Cache | FixedCache | None,
    mask: Tensor | None,
    *,
    layers: int,
) -> None:
    """Validate types and shapes; no value is read, so it works under every transform.

    Args:
        config: of the family.
        ids: [..., T].
        cache: of the earlier tokens.
        mask: [..., T].
        layers: number of blocks in the parameters, which may be fewer than `n_layer`.

    Raises:
        TypeError: ids are no tensor; a mask is floating; the cache is none, or on another device.
        ValueError: no axis; too many tokens; a cache or mask that does not fit.
    """
    check_ids(ids)
    if cache is not None:
        lead, width = tuple(ids.shape[:-1]), config.n_embd // config.n_head
        kv_cache.check(cache, (layers, *lead, config.n_head, width), ids.device)
    total = ids.shape[-1] + (0 if isinstance(cache, FixedCache) else kv_cache.length(cache))
    if total > config.n_positions:
        raise ValueError(
            f"{total} tokens (with the cached ones) exceed n_positions={config.n_positions}: "
            "shorten ids, or drop the oldest tokens and start a new cache"
        )
    check_mask(mask)
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"mask has shape {list(mask.shape)}, ids {list(ids.shape)}: they must agree "
            "(the mask speaks of the new tokens alone, the cache remembers the earlier ones)"
        )


def fixed_cache(
    config: _Sizes, like: Tensor, batch: int | Sequence[int], capacity: int, *, layers: int
) -> FixedCache:
    """Return an empty key-value cache of fixed capacity; the body of each `init_cache`.

    Args:
        config: of the family.
        like: a parameter, whose type and device the cache takes.
        batch: B, or all leading axes.
        capacity: tokens it can hold, at most `n_positions`.
        layers: number of blocks in the parameters.

    Raises:
        ValueError: capacity is more than `n_positions`.
    """
    if not 0 < capacity <= config.n_positions:
        raise ValueError(
            f"capacity must be from 1 to n_positions={config.n_positions}, got {capacity}"
        )
    lead = (batch,) if isinstance(batch, int) else tuple(batch)
    shape = (*lead, config.n_head, capacity, config.n_embd // config.n_head)  # [..., H, C, Dh]
    keys = tuple(like.new_zeros(shape) for _ in range(layers))
    values = tuple(like.new_zeros(shape) for _ in range(layers))
    valid = torch.zeros(*lead, capacity, dtype=torch.bool, device=like.device)
    return FixedCache(keys, values, valid, torch.zeros((), dtype=torch.int64, device=like.device))
