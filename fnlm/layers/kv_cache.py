"""The key-value cache: an immutable value that shares memory with its predecessors.

A `Cache` is a tuple of segments, oldest first, which are never written in place: appended tokens
become a new segment. A segment followed by more tokens than it holds is merged with all of them, as
in a binary counter; so n tokens lie in at most 1 + log2(n) segments, each token is copied at most
log2(n) times, and forks share the segment of a prompt until they have outgrown it. There is no
state but the tensors, so a cache goes through autograd, threads, inference mode and files.

A `FixedCache` keeps one shape, for compiled decoding.

Dimensions: S cached tokens, T new tokens, C capacity, H heads, Dh width of a head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from fnlm import tree
from fnlm.layers._values import extremes
from fnlm.tree import register_value

__all__ = [
    "KV",
    "AnyCache",
    "Cache",
    "FixedCache",
    "KVSegments",
    "Segment",
    "append",
    "check",
    "check_dtype",
    "length",
    "outside_inference_mode",
    "overwrite",
    "past",
    "take_rows",
    "truncate",
    "valid",
]


@register_value
class Segment(NamedTuple):
    """Keys and values of consecutive tokens."""

    keys: tuple[Tensor, ...]  # for each layer [..., H, S, Dh]
    values: tuple[Tensor, ...]  # for each layer [..., H, S, Dh]


@register_value
class Cache(NamedTuple):
    """Keys and values of the tokens so far, growing with each append."""

    segments: tuple[Segment, ...]  # oldest first; () if the model has no layers
    valid: Tensor  # bool [..., S], False for padding; S is the number of tokens


@register_value
class FixedCache(NamedTuple):
    """Keys and values of the tokens so far, in buffers of fixed capacity C."""

    keys: tuple[Tensor, ...]  # for each layer [..., H, C, Dh]
    values: tuple[Tensor, ...]  # for each layer [..., H, C, Dh]
    valid: Tensor  # bool [..., C], False for padding and for unused slots
    length: Tensor  # int64 [], tokens written


AnyCache = TypeVar("AnyCache", Cache, FixedCache)
KV = tuple[Tensor, Tensor]  # keys and values of a layer: [..., H, T, Dh] each
KVSegments = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # keys, values: [..., H, Si, Dh] each


def length(cache: Cache | FixedCache | None) -> int:
    """Return the number of key slots: cached tokens, or the capacity of a `FixedCache`."""
    return 0 if cache is None else cache.valid.shape[-1]


def valid(cache: Cache | FixedCache | None, new: Tensor) -> Tensor:
    """Return the mask of real tokens, cached and new: bool [..., S + T]."""
    return new if cache is None else torch.cat([cache.valid, new], -1)


def past(cache: Cache | FixedCache | None, layer: int) -> KVSegments:
    """Return the segments of a layer's keys, and of its values: [..., H, Si, Dh] each."""
    if cache is None:
        return (), ()
    if isinstance(cache, FixedCache):
        return (cache.keys[layer],), (cache.values[layer],)
    segments = cache.segments
    return tuple(s.keys[layer] for s in segments), tuple(s.values[layer] for s in segments)


def check(cache: Any, sizes: tuple[int, ...], device: torch.device) -> None:
    """Validate the type, shapes and device of a cache; no value is read.

    Args:
        cache: the argument to check.
        sizes: the expected (layers, *leading axes, heads, Dh).
        device: of the new tokens.

    Raises:
        TypeError: it is no cache.
        ValueError: it is of other sizes or on another device, or its parts do not fit each other.
    """
    layers, *lead, _, _ = sizes
    segments = tuple(s for s in _segments(cache) if s.keys)
    if layers and not segments:
        segments = (Segment((), ()),)  # the loop rejects it
    tokens, dtype = 0 if segments else length(cache), None
    for keys, values in segments:
        first = keys[0] if keys and isinstance(keys[0], Tensor) and keys[0].ndim > 1 else None
        actual = (0,) if first is None else (len(keys), *first.shape[:-2], first.shape[-1])
        if first is None or actual != sizes:
            raise ValueError(
                f"cache is for (layers, *batch, heads, head width) = {actual}, the model and ids "
                f"need {sizes}: use a cache that this model made for this batch"
            )
        if len(values) != len(keys):
            raise ValueError(f"cache has keys of {len(keys)} layers, but values of {len(values)}")
        shape, dtype = first.shape, dtype or first.dtype
        for x in (*keys, *values):
            if type(x) is not Tensor or x.shape != shape or x.dtype is not dtype:
                _check_part("", x, shape, dtype, device)
        _check_part("", first, shape, dtype, device)
        tokens += shape[-2]
    _check_part(".valid", cache.valid, (*lead, tokens), torch.bool, device)
    if isinstance(cache, FixedCache):
        _check_part(".length", cache.length, (), torch.int64, device)


def check_dtype(cached: tuple[Tensor, ...], new: Tensor) -> None:
    """Raise TypeError, naming both dtypes, unless cached and new keys have the same one.

    Args:
        cached: segments of one dtype.
        new: keys of the new tokens.
    """
    if cached and cached[0].dtype != new.dtype:
        raise TypeError(
            f"cache holds {cached[0].dtype}, these parameters make {new.dtype}: use "
            f"fnlm.tree.cast(cache, {new.dtype}), or the parameters that made it"
        )


def append(
    cache: AnyCache | None,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    new_valid: Tensor,
) -> AnyCache:
    """Return a cache of the same kind with T more tokens; the old one is unchanged.

    Args:
        cache: of the earlier tokens; None starts a `Cache`.
        keys: for each layer [..., H, T, Dh]; a `Cache` may keep these very tensors.
        values: likewise.
        new_valid: bool [..., T].

    Raises:
        ValueError: more tokens than the capacity of a `FixedCache`. Compiled, and on other devices
            than the CPU, the kernel says instead that an index is out of bounds.
    """
    return cast("AnyCache", _grow(cache, Segment(keys, values), new_valid))


def take_rows(cache: AnyCache, rows: Tensor) -> AnyCache:
    """Return the cache of the selected batch rows, as beam search reorders its hypotheses.

    Args:
        cache: tensors [B, ...].
        rows: int64 [n], indices into the first axis; they may repeat.

    Returns:
        tensors [n, ...]; the segments of a `Cache` are merged into one.

    Raises:
        TypeError: it is no cache.
    """
    segments = _segments(cache)
    if isinstance(cache, Cache):
        cache = cache._replace(segments=_merge(segments))
    return tree.map(lambda x: x.index_select(0, rows) if x.ndim else x, cache)


def truncate(cache: Cache, tokens: int) -> Cache:
    """Return the cache of the first `tokens` tokens, as views; saving it stores them alone.

    Raises:
        TypeError: it is no `Cache`: a `FixedCache` keeps its capacity.
        ValueError: tokens is negative or more than the cache has.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"truncate takes a Cache, got {_describe(cache)}")
    if not 0 <= tokens <= length(cache):
        raise ValueError(
            f"tokens must be from 0 to {length(cache)}, the cache's length, got {tokens}"
        )
    segments: list[Segment] = []
    remaining = tokens
    for segment in cache.segments:
        size = min(remaining, _size(segment))
        if size or not segments:  # an empty cache has one segment of no tokens
            segments.append(Segment(*(tuple(x[..., :size, :] for x in xs) for xs in segment)))
        remaining -= size
    return Cache(tuple(segments), cache.valid[..., :tokens])


def overwrite(cache: FixedCache, new: FixedCache) -> FixedCache:
    """Return the new cache in the memory of the old one, which is changed in place.

    `torch.compile` makes it a write of the new tokens alone. See `fnlm.generate.advance`.

    Raises:
        TypeError: a cache is no `FixedCache`.
    """
    for x in (cache, new):
        if not isinstance(x, FixedCache):
            raise TypeError(
                f"only a FixedCache, from init_cache, can be donated, got {_describe(x)}: others "
                "share their memory with their predecessors"
            )
    return tree.map(lambda old, x: old.copy_(x), cache, new)


def outside_inference_mode(cache: Cache | FixedCache | None) -> Any:
    """Return a cache that autograd may save: inference-mode tensors are copied.

    Where no gradient is recorded, and while `torch.compile` traces (which cannot ask), the cache is
    returned unchanged.
    """
    if cache is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return cache
    return tree.map(lambda x: x.clone() if x.is_inference() else x, cache)


def _segments(cache: Any) -> tuple[Segment, ...]:
    """Return the segments of a cache of either kind, or raise TypeError."""
    if isinstance(cache, FixedCache):
        return (Segment(cache.keys, cache.values),)
    if isinstance(cache, Cache) and all(type(s) is Segment for s in cache.segments):
        return cache.segments
    raise TypeError(
        "cache must be the Cache that an earlier call returned beside its logits, or a FixedCache "
        f"from init_cache, got {_describe(cache)}; keys and values from elsewhere become a cache "
        "by fnlm.layers.kv_cache.append(None, keys, values, valid)"
    )


def _check_part(
    name: str, x: Any, shape: Sequence[int], dtype: torch.dtype, device: torch.device
) -> None:
    if not isinstance(x, Tensor) or x.shape != shape or x.dtype != dtype or x.device != device:
        raise ValueError(
            f"cache{name} holds {_describe(x)} where {dtype} {list(shape)} on {device} is needed, "
            "the device of ids: fnlm.tree.cast and .to change type and device of a cache"
        )


def _describe(x: Any) -> str:
    """Describe an argument for an error: a tensor by dtype and shape, a tuple by its types."""
    if isinstance(x, Tensor):
        return f"{x.dtype} {list(x.shape)} on {x.device}"
    if type(x) is tuple:
        return f"a tuple of {[type(part).__name__ for part in x]}"
    return type(x).__name__


def _grow(cache: Cache | FixedCache | None, new: Segment, new_valid: Tensor) -> Cache | FixedCache:
    """Append a segment of T tokens to a cache of either kind, or start a `Cache` with it."""
    if isinstance(cache, FixedCache):
        return _write(cache, new, new_valid)
    if cache is not None and not new_valid.shape[-1]:
        return cache  # a segment of no tokens would stay for good
    segments, all_valid = () if cache is None else cache.segments, valid(cache, new_valid)
    if not new.keys:  # a model without layers caches only which tokens were real
        return Cache((), all_valid)
    return Cache(_compact((*segments, new), all_valid.shape[-1]), all_valid)  # [..., S + T]


def _compact(segments: tuple[Segment, ...], tokens: int) -> tuple[Segment, ...]:
    """Merge the tail that starts at the first segment smaller than all that follows it.

    Every segment is then at least as large as the sum of those after it: log2 of them suffice.
    """
    following = tokens
    for index, segment in enumerate(segments):
        following -= _size(segment)  # tokens after this segment
        if _size(segment) < following:
            return (*segments[:index], *_merge(segments[index:]))
    return segments


def _size(segment: Segment) -> int:
    return segment.keys[0].shape[-2]


def _merge(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Concatenate segments into one, layer by layer."""
    if len(segments) < 2:
        return segments
    # From segments of layers to layers of segments.
    keys, values = (zip(*layers, strict=True) for layers in zip(*segments, strict=True))
    return (
        Segment(
            tuple(torch.cat(parts, -2) for parts in keys),  # [..., H, sum of Si, Dh]
            tuple(torch.cat(parts, -2) for parts in values),
        ),
    )


def _write(cache: FixedCache, new: Segment, new_valid: Tensor) -> FixedCache:
    """Write T new tokens at slots length, length + 1, ..., in copies of the buffers."""
    size, capacity = new_valid.shape[-1], cache.valid.shape[-1]
    bounds = extremes(cache.length)  # None while traced, where the value cannot be read
    written = bounds[1] if bounds else 0
    if written + size > capacity:
        raise ValueError(
            f"{written} tokens and {size} new ones do not fit a cache of capacity {capacity}"
        )
    slots = cache.length + torch.arange(size, device=cache.valid.device)  # [T]
    return FixedCache(
        tuple(x.index_copy(-2, slots, y) for x, y in zip(cache.keys, new.keys, strict=True)),
        tuple(x.index_copy(-2, slots, y) for x, y in zip(cache.values, new.values, strict=True)),
        cache.valid.index_copy(-1, slots, new_valid),
        cache.length + size,
    )
