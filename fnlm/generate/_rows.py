"""Rows of a model's state that go on at paces of their own: take back tokens, join, leave.

A row of a key-value cache needs no place of its own: `valid` says which slots are tokens of the
row, and positions count these. So a token is taken back by being no longer valid, and a row of
fewer tokens has slots that are not. A memory (`Mems`) has the same number of positions in each row:
a token is taken back by going back to the memory before it.

Dimensions: B rows, S cached tokens, T new tokens, M remembered tokens.
"""

from typing import Any

import torch
from torch import Tensor

from fnlm import tree
from fnlm.generate._state import check_highest, select_rows
from fnlm.layers import kv_cache
from fnlm.layers.kv_cache import Cache, FixedCache
from fnlm.layers.memory import Mems, zero_mems
from fnlm.tree import Tree

__all__ = ["check_rewinds", "check_rows", "join", "make_room", "rewind", "trim"]


def check_rewinds(params: Tree, name: str, tokens: int) -> None:
    """Raise ValueError unless a model's memory allows to read tokens together and take some back.

    A key-value cache always does.

    Args:
        params: of a model whose state may be a `Mems`; its config is asked.
        name: of the argument.
        tokens: that are read together.

    Raises:
        ValueError: with a memory, a token sees what it sees alone only if `same_length` holds and
            `ext_len` is 0, and what is taken back must fit `mem_len`.

    >>> from fnlm import transfo_xl
    >>> check_rewinds({"config": transfo_xl.Config(same_length=False)}, "params", 5)
    Traceback (most recent call last):
    ValueError: params["config"] has same_length=False, ext_len=0, mem_len=1600: to read 5 ...
    """
    config = params.get("config") if isinstance(params, dict) else None
    if not hasattr(config, "mem_len"):
        return
    same, ext, mem = (getattr(config, field) for field in ("same_length", "ext_len", "mem_len"))
    if not same or ext or mem < tokens:
        raise ValueError(
            f'{name}["config"] has same_length={same}, ext_len={ext}, mem_len={mem}: to read '
            f"{tokens} tokens at once as if one by one, and to take some of them back, "
            "same_length must be True, ext_len 0 and mem_len not less than these; "
            "dataclasses.replace changes a config"
        )


def rewind(before: Any, after: Any, kept: Tensor, new: int) -> Any:
    """Return a model's state without the last of the new tokens.

    Args:
        before: the state before T new tokens, or None; only a memory needs it.
        after: the state after them.
        kept: int64 [B], how many of them stay in each row, at least 0.
        new: T.

    Returns:
        the state; a cache has slots for as many tokens as the row has that keeps the most.

    Raises:
        TypeError: a state of another kind than `Cache`, `Mems` and None.

    >>> from fnlm.layers.kv_cache import Segment
    >>> keys = (torch.arange(6.0).view(2, 1, 3, 1),)
    >>> cache = Cache((Segment(keys, keys),), torch.ones(2, 3, dtype=torch.bool))
    >>> rewind(None, cache, torch.tensor([1, 0]), 2).valid.int()
    tensor([[1, 1],
            [1, 0]], dtype=torch.int32)
    """
    if isinstance(after, Cache):
        return _rewind_cache(after, kept, new)
    if isinstance(after, Mems):
        return _rewind_mems(before, after, kept, new)
    if after is not None:
        raise TypeError(
            "speculative takes tokens back from a Cache or Mems, as gpt.apply, gpt2.apply and "
            f"transfo_xl.apply return beside their logits, got {type(after).__name__}: a model "
            "without a state returns None"
        )
    return after


def _rewind_cache(cache: Cache, kept: Tensor, new: int) -> Cache:
    """Drop the slots that no row keeps, and mark those that some rows do not keep."""
    most, old = int(kept.max()), kv_cache.length(cache) - new
    cache = kv_cache.truncate(cache, old + most)
    stays = torch.arange(most, device=kept.device) < kept.unsqueeze(-1)  # [B, most]
    if bool(stays.all()):
        return cache
    valid = torch.cat([cache.valid[:, :old], cache.valid[:, old:] & stays], -1)
    return cache._replace(valid=valid)


def _rewind_mems(before: Mems | None, after: Mems, kept: Tensor, new: int) -> Mems:
    """Return, in each row, the last M positions of the memory before and the tokens kept."""
    size = after.valid.shape[-1]  # M
    if before is None:  # a text begins with zeros
        before = zero_mems(after.hidden[0], len(after.hidden), after.hidden[0].shape)
    index = kept.unsqueeze(-1) + torch.arange(size, device=kept.device)  # [B, M]

    def row_windows(old: Tensor, last: Tensor) -> Tensor:
        """Gather from [B, M + T, ...] to [B, M, ...]."""
        both = torch.cat([old, last[:, size - new :]], 1)
        return both.take_along_dim(index.reshape(*index.shape, *(1,) * (both.ndim - 2)), 1)

    return tree.map(row_windows, before, after)


def make_room(cache: Any, new: int, capacity: int) -> Any:
    """Return the cache with its rows moved together, if T more tokens exceed the capacity.

    Args:
        cache: of any kind; only a `Cache` takes up room.
        new: T.
        capacity: tokens; T and the longest row must fit it.
    """
    if not isinstance(cache, Cache) or kv_cache.length(cache) + new <= capacity:
        return cache
    longest = int(cache.valid.sum(-1).max())
    order = (~cache.valid).int().argsort(stable=True, dim=-1)[:, :longest]  # tokens first
    slots = order[:, None, :, None]  # [B, 1, S, 1]

    def move(*segments: Tensor) -> Tensor:
        return torch.cat(segments, -2).take_along_dim(slots, -2)

    segments = (tree.map(move, *cache.segments),) if cache.segments else ()
    return Cache(segments, cache.valid.gather(-1, order))


def join(first: Any, second: Any) -> Any:
    """Return the state of the rows of two; of two caches, the shorter is padded on the left.

    Args:
        first: tensors [B1, ...].
        second: tensors [B2, ...] of the same kind and, but for a `Cache`, the same further axes.

    Raises:
        TypeError: a `FixedCache`, whose rows have one length.

    >>> state = Mems((torch.ones(2, 3, 4),), torch.ones(2, 3, dtype=torch.bool))
    >>> join(state, state).valid.shape
    torch.Size([4, 3])
    """
    if isinstance(first, FixedCache):
        raise TypeError(
            "rows of a FixedCache have one length, and cannot join others: let apply return the "
            "Cache that it starts by itself"
        )
    if not isinstance(first, Cache):
        return tree.map(lambda *parts: torch.cat(parts, 0), first, second)
    longest = max(map(kv_cache.length, (first, second)))
    first, second = (_pad_left(cache, longest) for cache in (first, second))
    return tree.map(lambda *parts: torch.cat(parts, 0), first, second)


def _pad_left(cache: Cache, size: int) -> Cache:
    """Return the cache as one segment of S = `size` slots, the first of them empty."""
    missing = size - kv_cache.length(cache)

    def widen(*segments: Tensor) -> Tensor:
        first = segments[0]
        empty = first.new_zeros(*first.shape[:-2], missing, first.shape[-1])
        return torch.cat([empty, *segments], -2)

    segments = (tree.map(widen, *cache.segments),) if cache.segments else ()
    return Cache(segments, torch.nn.functional.pad(cache.valid, (missing, 0)))


def trim(cache: Any, rows: Tensor) -> Any:
    """Return the state of the selected rows; a cache drops the first slots that none of them uses.

    Args:
        cache: tensors [B, ...], of any kind.
        rows: int64 [n].
    """
    cache = select_rows(cache, rows)
    if not isinstance(cache, Cache):
        return cache
    first = int((~cache.valid.any(0)).int().cumprod(0).sum())
    segments = tuple(tree.map(lambda x: x[..., first:, :], s) for s in cache.segments)
    return Cache(segments, cache.valid[:, first:])


def check_rows(highest: Tensor, numbers: Tensor, made: Tensor) -> None:
    """Raise ValueError if logits are no distribution, in rows that have made different numbers.

    Args:
        highest: [R], the highest logit of each row.
        numbers: int64 [R], what the rows are called in the error.
        made: int64 [R], how many tokens each made before.
    """
    wrong = ~highest.isfinite()
    if bool(wrong.any()):
        first = made[wrong].min()  # the first token of which an error can be told
        wrong = wrong & (made == first)
        named = highest.new_zeros(int(numbers.max()) + 1)
        check_highest(named.index_put((numbers[wrong],), highest[wrong]), int(first))
