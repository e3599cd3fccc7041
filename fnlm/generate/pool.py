"""Continuous batching: a pool of rows that requests enter and leave one by one.

`step` is a pure function from a pool to the next: every row gains a token, those that have ended
leave. `admit` is one from a pool and a request to a pool with one row more. `serve` is the loop
over both. What a row gains depends on its own request alone, so a request has the tokens that
`generate` gives it by itself; see `fnlm.generate.sampling` for the last bit of the logits.

Dimensions: R rows, V vocabulary, N the most new tokens of a row.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from fnlm import _former, random
from fnlm.generate._rows import check_rows, join, trim
from fnlm.generate._state import (
    Apply,
    State,
    advance,
    check_causal,
    check_prompt,
    eos_ids,
    sample_settings,
    start,
    whole,
)
from fnlm.generate.sampling import check_settings, row_keys, sample
from fnlm.tree import Tree, register_value

__all__ = ["Completion", "Pool", "Request", "admit", "serve", "step"]


@register_value
class Request(NamedTuple):
    """A prompt, and how much text is wanted."""

    ids: Tensor  # int64 [T]
    max_new_tokens: int


@register_value
class Completion(NamedTuple):
    """The text of a request."""

    number: int  # of the request, in the order in which they came
    tokens: Tensor  # int64 [n], the new tokens alone: max_new_tokens, or up to eos


@register_value
class Pool(NamedTuple):
    """The rows that are running."""

    state: State  # the model's, of R rows
    numbers: Tensor  # int64 [R], the number of each row's request
    made: Tensor  # int64 [R], new tokens so far
    limits: Tensor  # int64 [R], new tokens at most
    tokens: Tensor  # int64 [R, N], the new tokens, then 0


def admit(
    apply: Apply,
    params: Tree,
    pool: Pool | None,
    request: Request,
    number: int,
    *,
    prefill: Apply | None = None,
) -> Pool:
    """Return the pool with one row more, whose prompt the model has read.

    Args:
        apply: the model; its state is a `Cache`, or has the batch as first axis of every tensor,
            of one size in all requests.
        params: its parameters.
        pool: the rows that are running; None for none.
        request: at least one token wanted.
        number: what its `Completion` says, and what its draws depend on.
        prefill: see `start`.

    Raises:
        TypeError: the request's ids are not integers; a `FixedCache`.
        ValueError: an empty prompt, more tokens than positions, or none wanted.
        IndexError: an id out of range.

    >>> def next_token(params, ids, cache=None):  # a model that counts, and has no state
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), None
    >>> pool = admit(next_token, {}, None, Request(torch.tensor([1, 2]), 4), 0)
    >>> pool.made, pool.limits
    (tensor([0]), tensor([4]))
    """
    ids = request.ids
    _check_request(params, request)
    if not request.max_new_tokens:
        raise ValueError("max_new_tokens must be at least 1 to enter a pool, got 0: it has ended")
    limit = whole(request.max_new_tokens, "max_new_tokens")
    with torch.no_grad():
        state = start(apply, params, ids.unsqueeze(0), prefill=prefill)
        one = torch.ones(1, dtype=torch.int64, device=ids.device)
        row = Pool(state, one * number, one * 0, one * limit, one.new_zeros(1, limit))
        if pool is None or not len(pool.numbers):
            return row
        cache = None if state.cache is None else join(pool.state.cache, state.cache)
        logits = torch.cat([pool.state.logits, state.logits])
    width = max(limit, pool.tokens.shape[-1])
    tokens = [
        torch.nn.functional.pad(x, (0, width - x.shape[-1])) for x in (pool.tokens, row.tokens)
    ]
    numbers, made, limits = (torch.cat(pair) for pair in zip(pool[1:4], row[1:4], strict=True))
    return Pool(State(cache, logits), numbers, made, limits, torch.cat(tokens))


def step(
    apply: Apply,
    params: Tree,
    pool: Pool,
    *,
    key: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    eos: Tensor | None = None,
) -> tuple[Pool, tuple[Completion, ...]]:
    """Return the pool in which every row has a token more, and the texts that have ended.

    Args:
        apply: the model.
        params: its parameters.
        pool: from `admit` or `step`; it stays usable.
        key: one key: the n-th token of a request is drawn with `fold_in(fold_in(key, number), n)`,
            as `generate` draws it in the row of that number. None takes the most likely token.
        temperature: see `sample`, as for `top_k`, `top_p`, `min_p` and `typical`.
        eos: ids that end a text, [E].

    Raises:
        ValueError: logits that are no distribution (NaN), naming the request as a row.

    >>> def next_token(params, ids, cache=None):  # a model that counts, and has no state
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), None
    >>> pool = admit(next_token, {}, None, Request(torch.tensor([2]), 1), 7)
    >>> step(next_token, {}, pool)[1]
    (Completion(number=7, tokens=tensor([3])),)
    """
    check_rows(pool.state.logits.amax(-1), pool.numbers, pool.made)
    keys = None
    if key is not None:
        keys = random.fold_in(random.fold_in(key, pool.numbers), pool.made)
    new = sample(
        pool.state.logits,
        keys,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical=typical,
    )
    tokens = pool.tokens.scatter(1, pool.made.unsqueeze(-1), new.unsqueeze(-1))
    pool = pool._replace(tokens=tokens, made=pool.made + 1)
    ended = pool.made >= pool.limits
    if eos is not None:
        ended = ended | torch.isin(new, eos)
    completions = tuple(
        Completion(int(pool.numbers[row]), pool.tokens[row, : int(pool.made[row])].clone())
        for row in ended.nonzero().flatten().tolist()
    )
    if completions:
        going = (~ended).nonzero().flatten()
        state = State(trim(pool.state.cache, going), pool.state.logits[going])
        pool, new = Pool(state, *(x[going] for x in pool[1:])), new[going]
    if len(new):
        with torch.no_grad():
            pool = pool._replace(state=advance(apply, params, pool.state, new))
    return pool, completions


@_former.answering
def serve(
    apply: Apply,
    params: Tree,
    requests: Iterable[Request],
    *,
    rows: int,
    key: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    eos: SupportsIndex | Iterable[SupportsIndex] | None = None,
    prefill: Apply | None = None,
) -> Iterator[Completion]:
    """Yield the texts of many requests as they end, at most `rows` of them running at a time.

    A request enters as soon as a row is free: none waits for the longest of a batch. Its tokens are
    those of `generate(apply, params, ids, max_new_tokens, key=fold_in(key, number))`.

    Args:
        apply: the model, see `admit`.
        params: its parameters.
        requests: any number of them, also without end; each is taken when a row is free.
        rows: most rows at a time, at least 1.
        key: None takes the most likely token each time. One key samples: request i draws with
            `fold_in(key, i)`.
        temperature: see `fnlm.generate.logits`, as for `top_k`, `top_p`, `min_p` and `typical`.
        eos: the end-of-sequence id, or ids.
        prefill: see `start`.

    Yields:
        a `Completion`, those that end first first.

    Raises:
        TypeError: as for `generate`; a request is none.
        ValueError: as for `generate`, naming the number of the request; rows less than 1.
        IndexError: an id out of range.

    Source: Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
    Models" (iteration-level scheduling). Deviation: a prompt is read by itself, between two steps.

    >>> def next_token(params, ids, cache=None):  # a model that counts, and has no state
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), None
    >>> requests = [Request(torch.tensor([0]), 4), Request(torch.tensor([2, 3]), 1)]
    >>> for number, tokens in serve(next_token, {}, requests, rows=2):
    ...     print(number, tokens)
    1 tensor([4])
    0 tensor([1, 2, 3, 4])
    """
    settings = sample_settings(temperature, top_k, top_p, min_p, typical)
    check_causal(apply)
    check_settings(key, **settings)
    if key is not None:
        row_keys(key, ())
    if (rows := whole(rows, "rows")) < 1:
        raise ValueError(f"rows must be at least 1, got {rows}: they hold the requests that run")
    queue, eos_tokens = enumerate(requests), eos_ids(eos, "cpu")

    def run() -> Iterator[Completion]:
        pool: Pool | None = None
        while True:
            while pool is None or len(pool.numbers) < rows:
                number, request = next(queue, (-1, None))
                if request is None:
                    break
                _check_numbered(params, request, number)
                if request.max_new_tokens:
                    pool = admit(apply, params, pool, request, number, prefill=prefill)
                else:
                    yield Completion(number, request.ids[:0].long())
            if pool is None or not len(pool.numbers):
                return
            ends = None if eos_tokens is None else eos_tokens.to(pool.numbers.device)
            pool, completions = step(apply, params, pool, key=key, eos=ends, **settings)
            yield from completions

    return run()


def _check_numbered(params: Tree, request: Request, number: int) -> None:
    """Validate a request; errors say which it is."""
    try:
        _check_request(params, request)
    except (TypeError, ValueError, IndexError) as error:
        raise type(error)(f"request {number}: {error}") from None


def _check_request(params: Tree, request: Request) -> None:
    """Raise an error unless a request can be read and answered."""
    if not isinstance(request, Request):
        raise TypeError(
            f"a request must be a Request(ids, max_new_tokens), got {type(request).__name__}"
        )
    check_prompt(params, request.ids, None, request.max_new_tokens)
    if request.ids.ndim != 1:
        raise ValueError(
            f"ids of a request must be [T], got {list(request.ids.shape)}: each row is a request "
            "of its own"
        )
