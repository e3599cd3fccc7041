"""Greedy decoding and sampling: one continuation per row.

A row's tokens depend on its own key and its own logits alone: the key of its n-th new token is
`fold_in(row key, n)`, whatever the other rows, their number or the padding. What remains is the
model's arithmetic, which may differ in the last bit between batch sizes; a token changes by that
only where two tokens are all but tied.
"""

from collections.abc import Iterable, Iterator
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from fnlm import _former, random
from fnlm.generate import logits as processors
from fnlm.generate._state import (
    Apply,
    State,
    advance,
    check_causal,
    check_highest,
    check_prompt,
    eos_ids,
    pad_id,
    pad_left,
    sample_settings,
    start,
)
from fnlm.layers.precision import at_least_float32
from fnlm.tree import Tree

__all__ = ["check_settings", "generate", "row_keys", "sample", "scan", "stream"]


def sample(
    logits: Tensor,
    key: Tensor | None = None,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
) -> Tensor:
    """Sample one token per row.

    Args:
        logits: [*lead, V].
        key: [*lead] keys; None takes the most likely token.
        temperature: see `fnlm.generate.logits`, as for `top_k`, `top_p`, `min_p` and `typical`.
            Without a key, 0 or 1.

    Returns:
        int64 [*lead]; -1, which is no token, where the logits are no distribution: they hold NaN or
        infinity, or exclude every token. No value is read, so this works under every transform;
        `generate`, `stream` and `beam_search` raise an error instead.

    Raises:
        ValueError: a setting out of range, or one that samples without a key.

    >>> sample(torch.tensor([[0.0, 2.0, 1.0]]))
    tensor([1])
    """
    logits = at_least_float32(logits)
    highest = logits.amax(-1, keepdim=True)  # [*lead, 1]
    if key is None:
        _check_greedy(temperature, top_k, top_p, min_p, typical)
        return torch.where(highest.squeeze(-1).isfinite(), logits.argmax(-1), -1)
    # Subtracting the maximum changes no probability and keeps a low temperature from overflowing.
    logits = processors.temperature(logits - highest, temperature)
    logits = processors.top_p(processors.top_k(logits, top_k), top_p)
    return random.categorical(key, processors.typical(processors.min_p(logits, min_p), typical))


def row_keys(key: Tensor, rows: tuple[int, ...]) -> Tensor:
    """Return one key per row: keys [*rows] as they are, a single key folded with each row index.

    Args:
        key: [] or [*rows].
        rows: the leading axes of the prompt.

    Returns:
        keys [*rows].

    Raises:
        TypeError: not a tensor.
        ValueError: another shape.

    >>> bool(row_keys(random.key(0), (3,))[2] == random.fold_in(random.key(0), 2))
    True
    """
    if not isinstance(key, Tensor):
        raise TypeError(
            f"key must be made by fnlm.random.key(seed), got {key!r:.60}: give random.key(0), or "
            "leave it out for the most likely tokens"
        )
    if tuple(key.shape) == rows:
        return key
    if key.ndim:
        raise ValueError(f"key has shape {list(key.shape)}: give one, or one a row, {list(rows)}")
    count = torch.Size(rows).numel()
    return random.fold_in(key, torch.arange(count, device=key.device).reshape(rows))


def scan(
    apply: Apply,
    params: Tree,
    state: State,
    steps: int,
    *,
    key: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    donate: bool = False,
) -> tuple[State, Tensor]:
    """Decode a fixed number of tokens without reading any value: inside `vmap`, `grad` or a graph.

    `torch.compile` makes one graph of all the steps, so that what a call costs is paid once for
    them: with a `FixedCache` and `donate` it is the fastest way to decode one text.

    Args:
        apply: the model.
        params: its parameters.
        state: from `start`.
        steps: how many tokens.
        key: [*lead] keys, or None for the most likely tokens.
        temperature: see `sample`, as for `top_k`, `top_p`, `min_p` and `typical`.
        donate: see `advance`.

    Returns:
        the state after all the tokens, and the tokens, int64 [*lead, steps]. Where the logits are
        no distribution the token is -1, see `sample`, and so are those after it.
    """
    settings = sample_settings(temperature, top_k, top_p, min_p, typical)
    tokens: list[Tensor] = []
    for n in range(steps):
        step_key = None if key is None else random.fold_in(key, n)
        token = sample(state.logits, step_key, **settings)
        # A row without a distribution stays at -1, whatever the model makes of the tokens after.
        tokens.append(token if n == 0 else torch.where(tokens[-1] < 0, -1, token))
        known = tokens[-1].clamp_min(0)  # -1 has no embedding
        state = advance(apply, params, state, known, donate=donate)
    if not tokens:
        return state, state.logits.argmax(-1, keepdim=True)[..., :0]  # [*lead, 0]
    return state, torch.stack(tokens, -1)


@_former.answering
def stream(
    apply: Apply,
    params: Tree,
    ids: Tensor,
    max_new_tokens: int,
    *,
    key: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    repetition_penalty: float = 1.0,
    mask: Tensor | None = None,
    eos: SupportsIndex | Iterable[SupportsIndex] | None = None,
    pad: SupportsIndex | None = None,
    prefill: Apply | None = None,
) -> Iterator[Tensor]:
    """Yield the new tokens, one per row at a time, until every row has reached eos.

    `generate` step by step, with its arguments and errors; errors come with this call, not with the
    first token.

    Yields:
        int64 [*lead].

    >>> def next_token(params, ids, cache=None):  # a model that counts
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), ids
    >>> [int(token) for token in stream(next_token, {}, torch.tensor([2]), 4)]
    [3, 4, 0, 1]
    """
    check_causal(apply)
    check_prompt(params, ids, mask, max_new_tokens)
    ids, mask = pad_left(ids, mask)
    settings = sample_settings(temperature, top_k, top_p, min_p, typical)
    check_settings(key, **settings, repetition_penalty=repetition_penalty)
    keys = None if key is None else row_keys(key, tuple(ids.shape[:-1]))
    eos_tokens = eos_ids(eos, ids.device)
    filler = pad_id(eos_tokens, pad)

    def choose(logits: Tensor, seen: Tensor | None, n: int) -> Tensor:
        if seen is not None:
            logits = processors.repetition_penalty(logits, seen, repetition_penalty)
        check_highest(logits.amax(-1), n)
        step_keys = None if keys is None else random.fold_in(keys, n)
        return sample(logits, step_keys, **settings)

    def run() -> Iterator[Tensor]:
        with torch.no_grad():  # left before every yield
            state = start(apply, params, ids, mask=mask, prefill=prefill)
        seen = None if repetition_penalty == 1 else _seen(state.logits, ids, mask)
        finished = torch.zeros(ids.shape[:-1], dtype=torch.bool, device=ids.device)
        for n in range(max_new_tokens):
            tokens = choose(state.logits, seen, n)  # [*lead]
            yield tokens if eos_tokens is None else tokens.masked_fill(finished, filler)
            if seen is not None:
                seen = seen.scatter(-1, tokens.unsqueeze(-1), True)
            if eos_tokens is not None:
                finished = finished | torch.isin(tokens, eos_tokens)
                if bool(finished.all()):
                    return
            if n + 1 < max_new_tokens:  # the last token's logits would not be read
                with torch.no_grad():
                    state = advance(apply, params, state, tokens)

    return run() if max_new_tokens else iter(())


@_former.answering
def generate(
    apply: Apply,
    params: Tree,
    ids: Tensor,
    max_new_tokens: int,
    *,
    key: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    repetition_penalty: float = 1.0,
    mask: Tensor | None = None,
    eos: SupportsIndex | Iterable[SupportsIndex] | None = None,
    pad: SupportsIndex | None = None,
    prefill: Apply | None = None,
) -> Tensor:
    """Generate a continuation of every prompt, greedily or by sampling.

    Args:
        apply: the model: `apply(params, ids, cache=None, *, mask=None) -> (logits [*lead, T, V],
            cache)`.
        params: its parameters.
        ids: int64 [*lead, T], the prompts.
        max_new_tokens: tokens to make for each row; prompt and new tokens must fit `n_positions`.
        key: None takes the most likely token each time. One key (row i then uses
            `fold_in(key, i)`), or keys [*lead], sample: a row's tokens depend on its own key and
            logits alone.
        temperature: more than 0; see `fnlm.generate.logits` for this and the next five. Without a
            key, 0 or 1.
        top_k: sample among the k most likely tokens; 0 for all.
        top_p: sample among the fewest tokens that have this probability together; 1 for all.
        min_p: sample among the tokens that are at least this times as likely as the most likely
            one; 0 for all.
        typical: sample among the tokens of typical surprise that have this probability together; 1
            for all.
        repetition_penalty: more than 1 makes the tokens of the prompt and of the text so far less
            likely.
        mask: [*lead, T], nonzero for real tokens, 0 for padding on either side.
        eos: the end-of-sequence id, or ids: integers of any type, or a tensor.
        pad: id that fills a row after eos; by default the (first) eos id. The model never sees
            it.
        prefill: see `start`; `gpt2.hidden_states` saves the unread logits of long prompts.

    Returns:
        the new tokens alone, int64 [*lead, max_new_tokens].

    Raises:
        TypeError: ids, eos or pad are not integers, or a mask is floating.
        ValueError: an empty prompt, more tokens than positions, a setting out of range, or one that
            samples without a key; logits that are no distribution (NaN), naming the token.
        IndexError: an id out of range.

    >>> def next_token(params, ids, cache=None):  # a model that counts
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), ids
    >>> generate(next_token, {}, torch.tensor([[0], [2]]), 4, eos=3, pad=9)
    tensor([[1, 2, 3, 9],
            [3, 9, 9, 9]])
    """
    steps = list(
        stream(
            apply,
            params,
            ids,
            max_new_tokens,
            key=key,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical=typical,
            repetition_penalty=repetition_penalty,
            mask=mask,
            eos=eos,
            pad=pad,
            prefill=prefill,
        )
    )
    filler = pad_id(eos_ids(eos, ids.device), pad)
    padding = ids.new_full(
        (*ids.shape[:-1], max_new_tokens - len(steps)), filler, dtype=torch.int64
    )
    return torch.cat([torch.stack(steps, -1), padding], -1) if steps else padding


def check_settings(
    key: Tensor | None, *, temperature: float, repetition_penalty: float = 1.0, **others: Any
) -> None:
    """Raise an error unless the settings of sampling are in their ranges, and need no absent key.

    They are applied to a dummy.

    Args:
        key: of `sample`, like the others.
        temperature: without a key, 0 or 1.
        repetition_penalty: of `generate`.
        **others: `top_k`, `top_p`, `min_p`, `typical`.

    Raises:
        TypeError: one is not a number.
        ValueError: one is out of range, or samples without a key.
    """
    logits = torch.zeros(1)
    if key is not None or temperature != 0:
        processors.temperature(logits, temperature)
    for name, value in others.items():
        getattr(processors, name)(logits, value)
    processors.repetition_penalty(logits, logits > 0, repetition_penalty)
    if key is None:
        _check_greedy(temperature, **others)


def _check_greedy(
    temperature: float, top_k: int, top_p: float, min_p: float, typical: float
) -> None:
    """Validate that no setting asks for sampling where there is no key."""
    for name, value, neutral in (
        ("temperature", temperature, (0, 1)),
        ("top_k", top_k, (0,)),
        ("top_p", top_p, (1,)),
        ("min_p", min_p, (0,)),
        ("typical", typical, (1,)),
    ):
        if value not in neutral:
            raise ValueError(
                f"{name}={value} needs a key to sample with: give key=random.key(seed), or leave "
                f"{name} out for the most likely token"
            )


def _seen(logits: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Return which tokens of the vocabulary occur in the prompt: bool [*lead, V]."""
    real = torch.ones_like(ids) if mask is None else mask.long()
    counts = torch.zeros(logits.shape, dtype=torch.int64, device=ids.device)
    return counts.scatter_add(-1, ids.long(), real) > 0
