"""Shared by causal families, beside their blocks: a cache around the blocks, positions, validation.

Sizes come as numbers and a block as a function: nothing here knows the config of a family.

Dimensions: T new tokens, S cached tokens, D width, H heads, Dh width of a head.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor

from fnlm.layers import attend, causal_mask, check_mask, kv_cache, lookup
from fnlm.layers._inputs import check_broadcastable, check_ids, check_same_shape
from fnlm.layers._tap import Taps, tap
from fnlm.layers.kv_cache import KV, AnyCache, Cache, FixedCache, KVSegments
from fnlm.transforms import recompute
from fnlm.tree import Tree

__all__ = [
    "Block", "Context", "Sizes", "Tokens", "attend_cached", "begin", "count_positions", "embed",
    "init_cache", "run",
]  # fmt: skip

FEW = 2**15  # elements: below it, copying a segment is cheaper than one more matrix product


class Sizes(NamedTuple):
    """The sizes of a causal model that its tokens and caches must fit."""

    layers: int  # blocks in the parameters, which may be fewer than the config says
    heads: int  # H
    head_width: int  # Dh
    positions: int  # most tokens, cached and new
    limit: str = "n_positions"  # what the config calls that number, for errors


class Tokens(NamedTuple, Generic[AnyCache]):
    """What a model knows of T new tokens before it embeds them."""

    cache: AnyCache | None  # of the S earlier tokens
    valid: Tensor  # bool [..., T], False for padding
    positions: Tensor  # int64, broadcastable to [..., T]


class Context(NamedTuple):
    """What a block attends to besides its input."""

    layer: int  # the number of the block, from 0
    past: KVSegments  # keys, values of the cached tokens
    mask: Tensor  # bool [..., 1, T, S + T], True where a query may attend to a key


# block(x, weights, context, config, key) -> (x, keys and values of the new tokens)
Block = Callable[[Tensor, Tree, Context, Any, Tensor | None], tuple[Tensor, KV]]


def begin(
    ids: Tensor,
    cache: AnyCache | None,
    mask: Tensor | None,
    positions: Tensor | None,
    sizes: Sizes,
) -> Tokens[AnyCache]:
    """Validate new tokens, and find their positions.

    Types and shapes are checked; no value is read, so it works under every transform.

    Args:
        ids: [..., T].
        cache: of the earlier tokens.
        mask: [..., T], nonzero for real tokens; None for no padding.
        positions: broadcastable to [..., T]; None counts real tokens, the cached included.
        sizes: of the model.

    Raises:
        TypeError: ids are no tensor; a mask is floating; the cache is none, or on another device.
        ValueError: no axis; too many tokens; a cache, mask or positions that do not fit.
    """
    check_ids(ids)
    if cache is not None:
        fitting = (sizes.layers, *ids.shape[:-1], sizes.heads, sizes.head_width)
        kv_cache.check(cache, fitting, ids.device)
    total = ids.shape[-1] + (0 if isinstance(cache, FixedCache) else kv_cache.length(cache))
    if total > sizes.positions:
        raise ValueError(
            f"{total} tokens (with the cached ones) exceed {sizes.limit}={sizes.positions}: "
            "shorten ids, or drop the oldest tokens and start a new cache"
        )
    check_mask(mask)
    check_same_shape(ids.shape, mask=mask)
    cache = kv_cache.outside_inference_mode(cache)
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0  # [..., T]
    if positions is None:
        positions = count_positions(cache, valid)
    check_broadcastable(ids.shape, positions=positions)
    return Tokens(cache, valid, positions)


def count_positions(cache: Cache | FixedCache | None, valid: Tensor) -> Tensor:
    """Return position ids that count real tokens only; padding repeats its left neighbour's.

    Args:
        cache: of the earlier tokens.
        valid: bool [..., T], False for padding.

    Returns:
        int64 [..., T].

    >>> count_positions(None, torch.tensor([False, True, True, False]))
    tensor([0, 0, 1, 1])
    """
    position_ids = valid.cumsum(-1) - 1  # [..., T]
    if cache is not None:
        position_ids = position_ids + cache.valid.sum(-1, keepdim=True)
    return position_ids.clamp(min=0)  # padding on the left has -1


def embed(
    tables: Tree, ids: Tensor, positions: Tensor, token_types: Tensor | None = None
) -> Tensor:
    """Return the sum of token and position embeddings, and of the tokens that mark a type.

    Args:
        tables: "token" [V, D] and "position" [N, D]; "taps" of the site "token" [..., T, D], the
            token embeddings alone.
        ids: [..., T].
        positions: broadcastable to [..., T].
        token_types: [..., T], token ids.

    Returns:
        [..., T, D].

    Raises:
        IndexError: ids, positions or token types out of range.
        ValueError: token types of another shape than ids.
    """
    x = tap(lookup(tables["token"], ids), tables.get("taps"), "token")
    x = x + lookup(tables["position"], positions, "positions")
    if token_types is not None:
        check_same_shape(ids.shape, token_types=token_types)
        x = x + lookup(tables["token"], token_types, "token_types")
    return x


def run(
    block: Block,
    x: Tensor,
    weights: Sequence[Tree],
    tokens: Tokens[AnyCache],
    config: Any,
    keys: Sequence[Tensor | None],
    *,
    keep: int | None = None,
    remat: bool = False,
) -> tuple[tuple[Tensor, ...], AnyCache]:
    """Run the blocks in turn, as `jax.lax.scan` would.

    Args:
        block: of the family.
        x: embedded tokens [..., T, D].
        weights: of each block; "taps" of the sites "in" and "out".
        tokens: from `begin`.
        config: handed to the block.
        keys: the dropout key of each block.
        keep: how many hidden states to return, the last ones; the others are let go of at once.
        remat: compute each block again in the backward pass (`fnlm.transforms.remat`).

    Returns:
        x and the hidden states after each block, [..., T, D] each, and the cache with the new
        tokens.
    """
    cache, valid, _ = tokens
    # The queries are the new tokens; the keys are the cached tokens, then the new ones.
    mask = causal_mask(kv_cache.valid(cache, valid), valid.shape[-1])  # [..., 1, T, S + T]
    states, new_keys, new_values = deque([x], maxlen=keep), [], []
    block = recompute.remat(block) if remat else block
    for layer, (layer_weights, key) in enumerate(zip(weights, keys, strict=True)):
        context = Context(layer, kv_cache.past(cache, layer), mask)
        taps = layer_weights.get("taps")
        x, (k, v) = block(tap(x, taps, "in"), layer_weights, context, config, key)
        x = tap(x, taps, "out")
        states.append(x)
        new_keys.append(k)
        new_values.append(v)
    return tuple(states), kv_cache.append(cache, tuple(new_keys), tuple(new_values), valid)


def attend_cached(
    q: Tensor, k: Tensor, v: Tensor, context: Context, *, rate: float = 0.0,
    key: Tensor | None = None, taps: Taps | None = None,
) -> tuple[Tensor, KV]:  # fmt: skip
    """Attention of the new tokens to the cached ones and to themselves.

    Args:
        q: [..., H, T, Dh].
        k: likewise.
        v: likewise.
        context: of the block.
        rate: dropout rate of the attention weights.
        key: dropout key; None is no dropout.
        taps: of the sites "q", "k", "v" of the new tokens, and those of `attend`.

    Returns:
        [..., H, T, Dh], and the keys and values of the new tokens.
    """
    if taps is not None:
        q, k, v = tap(q, taps, "q"), tap(k, taps, "k"), tap(v, taps, "v")
    # Views of a fused projection would keep its queries alive for as long as the cache lives.
    k, v = (x.clone(memory_format=torch.contiguous_format) for x in (k, v))
    kv_cache.check_dtype(context.past[0], k)
    keys, values = _append_segment(context.past, (k, v))  # S + T tokens together
    out = attend(q, keys, values, context.mask, causal=True, rate=rate, key=key, taps=taps)
    return out, (k, v)


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


def init_cache(sizes: Sizes, like: Tensor, batch: int | Sequence[int], capacity: int) -> FixedCache:
    """Return an empty key-value cache of fixed capacity; the body of each family's `init_cache`.

    Args:
        sizes: of the model.
        like: a parameter, whose type and device the cache takes.
        batch: B, or all leading axes.
        capacity: tokens it can hold, at most the positions of the model.

    Raises:
        ValueError: capacity is more than there are positions.
    """
    if not 0 < capacity <= sizes.positions:
        raise ValueError(
            f"capacity must be from 1 to {sizes.limit}={sizes.positions}, got {capacity}: ask for "
            "as many tokens as prompt and continuation have together"
        )
    lead = (batch,) if isinstance(batch, int) else tuple(batch)
    shape = (*lead, sizes.heads, capacity, sizes.head_width)  # [..., H, C, Dh]
    keys = tuple(like.new_zeros(shape) for _ in range(sizes.layers))
    values = tuple(like.new_zeros(shape) for _ in range(sizes.layers))
    valid = torch.zeros(*lead, capacity, dtype=torch.bool, device=like.device)
    return FixedCache(keys, values, valid, torch.zeros((), dtype=torch.int64, device=like.device))
