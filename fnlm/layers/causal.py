"""What the causal families share: attention over a cache, positions, and checks of what comes in.

Their blocks differ, and stand in their own files.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from fnlm.layers import cache as kv
from fnlm.layers.attention import attend, merge_heads, split_heads
from fnlm.layers.cache import Cache, FixedCache
from fnlm.layers.dropout import dropout
from fnlm.layers.linear import linear
from fnlm.layers.mask import check_mask

__all__ = ["Pair", "Pieces", "attention", "check", "fixed_cache", "positions"]

Pair = tuple[Tensor, Tensor]  # keys and values of the new tokens [..., H, T, Dh]
Pieces = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # cached keys and values, piece by piece


class _Sizes(Protocol):
    """The fields of a config that are read here, by their published names."""

    @property
    def n_positions(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def attn_pdrop(self) -> float: ...
    @property
    def resid_pdrop(self) -> float: ...


def attention(
    x: Tensor,
    past: Pieces,
    allowed: Tensor,
    params: dict[str, Any],
    config: _Sizes,
    keys: tuple[Tensor | None, ...] = (None, None),
) -> tuple[Tensor, Pair]:
    """Attend to the past and to x itself.

    Args:
        x: [..., T, D].
        past: keys and values of the S tokens before, as `cache.past` gives them.
        allowed: bool [..., 1, T, S + T], as `causal_mask` gives it.
        params: "qkv", weight [D, 3 D] and bias, and "out", weight [D, D] and bias.
        config: of the family.
        keys: of the dropouts on the weights and on the result.

    Returns:
        [..., T, D], and the keys and values of the new tokens.
    """
    q, k, v = split_heads(linear(x, **params["qkv"]), config.n_head, parts=3)
    k, v = k.contiguous(), v.contiguous()  # a cache must not hold on to the memory of q
    cached_keys, cached_values = past
    pieces = (*cached_keys, k), (*cached_values, v)
    mixed = attend(q, *pieces, allowed, causal=True, rate=config.attn_pdrop, key=keys[0])
    out = linear(merge_heads(mixed), **params["out"])
    return dropout(out, config.resid_pdrop, keys[1]), (k, v)


def positions(cache: Cache | FixedCache | None, new_valid: Tensor) -> Tensor:
    """Count real tokens, row by row, padding taking the number of its neighbour.

    Args:
        cache: of the tokens before.
        new_valid: bool [..., T], False for padding.

    Returns:
        int64 [..., T].

    >>> positions(None, torch.tensor([False, True, True, False]))
    tensor([0, 0, 1, 1])
    """
    counted = new_valid.cumsum(-1) - 1
    if cache is not None:
        counted = counted + cache.valid.sum(-1, keepdim=True)
    return counted.clamp(min=0)


def check(
    config: _Sizes, ids: Tensor, cache: Cache | FixedCache | None, mask: Tensor | None
) -> None:
    """Compare shapes; no value is read, so it works under every transform.

    Args:
        config: of the family.
        ids: [..., T].
        cache: of the tokens before.
        mask: [..., T].

    Raises:
        TypeError: ids are no tensor, or a mask is floating.
        ValueError: too many tokens; a cache or mask that does not fit.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"ids must be an int64 tensor [..., T], got {type(ids).__name__}")
    total = ids.shape[-1] + (0 if isinstance(cache, FixedCache) else kv.length(cache))
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
    if cache is not None:
        keys = kv.past(cache, 0)[0][0]
        layers = len(cache.keys if isinstance(cache, FixedCache) else cache.segments[0].keys)
        found = (layers, *keys.shape[:-2], keys.shape[-1])
        wanted = (config.n_layer, *ids.shape[:-1], config.n_head, config.n_embd // config.n_head)
        if found != wanted:
            raise ValueError(
                f"cache is for (layers, *batch, heads, head width) = {found}, "
                f"the model and ids need {wanted}: "
                "use a cache that this model made for this batch"
            )


def fixed_cache(config: _Sizes, like: Tensor, batch_size: int, capacity: int) -> FixedCache:
    """Make an empty cache of fixed capacity; the body of every family's `init_cache`.

    Args:
        config: of the family.
        like: a parameter, whose type and device the cache takes.
        batch_size: B.
        capacity: tokens it can hold, at most `n_positions`.

    Raises:
        ValueError: capacity is more than `n_positions`.
    """
    if not 0 < capacity <= config.n_positions:
        raise ValueError(
            f"capacity must be from 1 to n_positions={config.n_positions}, got {capacity}"
        )
    shape = (batch_size, config.n_head, capacity, config.n_embd // config.n_head)
    keys = tuple(like.new_zeros(shape) for _ in range(config.n_layer))
    values = tuple(like.new_zeros(shape) for _ in range(config.n_layer))
    valid = torch.zeros(batch_size, capacity, dtype=torch.bool, device=like.device)
    return FixedCache(keys, values, valid, torch.zeros((), dtype=torch.int64, device=like.device))
