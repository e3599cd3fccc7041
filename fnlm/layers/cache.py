"""The cache of keys and values: a value that grows by sharing.

A `Cache` is a tuple of segments, oldest first. Appending never touches an old value: new tokens go
into a segment of their own, or beyond the end of the last segment if its buffer has spare room that
no other value has claimed. So appending costs time in proportion to the new tokens, and forks share
everything up to where they part.

Spare room is known for the very tensors that were cut from a buffer; a cache that was cloned,
sliced, moved or made under a transform has none, and grows by a segment. A `FixedCache` has one
shape for good, for compiled decoding.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = [
    "Cache",
    "FixedCache",
    "Segment",
    "append",
    "length",
    "past",
    "take_rows",
    "truncate",
    "valid",
]

MOST_SEGMENTS = 8  # more are merged into one
FIRST_ROOM, MOST_ROOM = 32, 512  # tokens of spare room: doubled from segment to segment


class Segment(NamedTuple):
    """Keys and values of consecutive tokens."""

    keys: tuple[Tensor, ...]  # for each layer [..., H, S, Dh]
    values: tuple[Tensor, ...]  # for each layer [..., H, S, Dh]


class Cache(NamedTuple):
    """The tokens seen so far; it grows by whatever is appended."""

    segments: tuple[Segment, ...]  # oldest first
    valid: Tensor  # bool [..., S], False for padding; S is the number of tokens


class FixedCache(NamedTuple):
    """The tokens seen so far, in buffers of a fixed capacity C: every value has the same shapes."""

    keys: tuple[Tensor, ...]  # for each layer [..., H, C, Dh]
    values: tuple[Tensor, ...]  # for each layer [..., H, C, Dh]
    valid: Tensor  # bool [..., C], False for padding and for what is not yet written
    length: Tensor  # int64 [], tokens written


AnyCache = TypeVar("AnyCache", Cache, FixedCache)


@dataclass
class _Room:
    """A buffer [2 layers, ..., H, C, Dh], and how many of its tokens some value has claimed."""

    buffer: Tensor
    used: int


_ROOM = WeakTensorKeyDictionary()  # first key tensor of a segment -> the _Room it was cut from


def length(cache: Cache | FixedCache | None) -> int:
    """Return the number of slots seen by attention: tokens, or the capacity of a `FixedCache`."""
    return 0 if cache is None else cache.valid.shape[-1]


def valid(cache: Cache | FixedCache | None, new: Tensor) -> Tensor:
    """Say which tokens, cached and new, are real: bool [..., S + T]."""
    return new if cache is None else torch.cat([cache.valid, new], -1)


def past(
    cache: Cache | FixedCache | None, layer: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return the pieces of a layer's keys and of its values."""
    if cache is None:
        return (), ()
    if isinstance(cache, FixedCache):
        return (cache.keys[layer],), (cache.values[layer],)
    segments = cache.segments
    return tuple(s.keys[layer] for s in segments), tuple(s.values[layer] for s in segments)


def append(
    cache: AnyCache | None,
    keys: tuple[Tensor, ...],
    values: tuple[Tensor, ...],
    new_valid: Tensor,
) -> AnyCache:
    """Return a cache of the same kind with T more tokens; the old one stays as it is.

    Args:
        cache: what came before; None starts a `Cache`.
        keys: for each layer [..., H, T, Dh].
        values: likewise.
        new_valid: bool [..., T].
    """
    return cast("AnyCache", _grow(cache, Segment(keys, values), new_valid))


def take_rows(cache: Cache, rows: Tensor) -> Cache:
    """Return the cache of chosen rows of the first axis, as beam search reorders its hypotheses.

    Args:
        cache: tensors [B, ...].
        rows: int64 [n], rows may repeat.

    Returns:
        tensors [n, ...], in one segment.
    """
    whole = _merge(cache.segments)
    keys, values = (tuple(x.index_select(0, rows) for x in xs) for xs in whole)
    return Cache((Segment(keys, values),), cache.valid.index_select(0, rows))


def truncate(cache: Cache, tokens: int) -> Cache:
    """Return the cache of the first `tokens` tokens, sharing their memory.

    Raises:
        ValueError: tokens is negative or more than the cache has.
    """
    if not 0 <= tokens <= length(cache):
        raise ValueError(
            f"tokens must be from 0 to {length(cache)}, the cache's length, got {tokens}"
        )
    segments: list[Segment] = []
    left = tokens
    for segment in cache.segments:
        size = min(left, segment.keys[0].shape[-2])
        if size or not segments:
            segments.append(Segment(*(tuple(x[..., :size, :] for x in xs) for xs in segment)))
        left -= size
    return Cache(tuple(segments), cache.valid[..., :tokens])


def _grow(cache: Cache | FixedCache | None, new: Segment, new_valid: Tensor) -> Cache | FixedCache:
    if cache is None:
        return Cache((new,), new_valid)
    if isinstance(cache, FixedCache):
        return _write(cache, new, new_valid)
    if not new_valid.shape[-1]:
        return cache
    if _may_share(new.keys[0]):
        segments = _extend(cache.segments, new)
    else:
        segments = (*cache.segments, new)
    if len(segments) > MOST_SEGMENTS:
        segments = (_merge(segments),)
    return Cache(segments, valid(cache, new_valid))


def _is_traced(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x)


def _may_share(x: Tensor) -> bool:
    """Say whether memory may be written in place: eagerly, and where no gradient is recorded."""
    return not (_is_traced(x) or x.requires_grad)


def _readable(x: Tensor) -> bool:
    """Say whether a value can be had without waiting for a device."""
    return x.device.type == "cpu" and not _is_traced(x)


def _extend(segments: tuple[Segment, ...], new: Segment) -> tuple[Segment, ...]:
    """Write new tokens into the spare room of the last segment, or into a buffer of their own."""
    last = segments[-1].keys[0]
    size, start = new.keys[0].shape[-2], last.shape[-2]
    room = _ROOM.get(last)
    if room is None or room.used != start or start + size > room.buffer.shape[-2]:
        capacity = FIRST_ROOM if room is None else min(2 * room.buffer.shape[-2], MOST_ROOM)
        shape = list(new.keys[0].shape)
        shape[-2] = max(capacity, size)
        room = _Room(last.new_empty([2 * len(new.keys), *shape]), 0)
        start = 0
    else:
        segments = segments[:-1]
    room.buffer.narrow(-2, start, size).copy_(torch.stack([*new.keys, *new.values]))
    room.used = start + size
    tensors = room.buffer.narrow(-2, 0, room.used).unbind(0)
    half = len(new.keys)
    grown = Segment(tensors[:half], tensors[half:])
    _ROOM[grown.keys[0]] = room
    return (*segments, grown)


def _merge(segments: tuple[Segment, ...]) -> Segment:
    if len(segments) == 1:
        return segments[0]
    keys = zip(*(s.keys for s in segments), strict=True)
    values = zip(*(s.values for s in segments), strict=True)
    return Segment(
        tuple(torch.cat(pieces, -2) for pieces in keys),
        tuple(torch.cat(pieces, -2) for pieces in values),
    )


def _write(cache: FixedCache, new: Segment, new_valid: Tensor) -> FixedCache:
    """Put new tokens after the `length` first ones, in fresh buffers."""
    size, capacity = new_valid.shape[-1], cache.valid.shape[-1]
    written = int(cache.length) if _readable(cache.length) else 0
    if written + size > capacity:
        raise ValueError(
            f"{written} tokens and {size} new ones do not fit a cache of capacity {capacity}"
        )
    slots = cache.length + torch.arange(size, device=cache.valid.device)
    return FixedCache(
        tuple(x.index_copy(-2, slots, y) for x, y in zip(cache.keys, new.keys, strict=True)),
        tuple(x.index_copy(-2, slots, y) for x, y in zip(cache.values, new.values, strict=True)),
        cache.valid.index_copy(-1, slots, new_valid),
        cache.length + size,
    )
