"""Speculative decoding: a small model guesses tokens, and the model reads all guesses at once.

The two are coupled by the key. A row's n-th new token is drawn with the key that `generate` draws
it with, by both models: by the Gumbel-max trick each takes the highest of its logits plus the same
noise. A guess stands if it is the token that the model itself draws there; the first that is not is
replaced by that token. So what comes out is, at every position, the model's own draw.

Dimensions: B rows, R of them running, G guesses of a round, V vocabulary, N new tokens.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from fnlm import _former, random
from fnlm.generate._rows import check_rewinds, check_rows, make_room, rewind
from fnlm.generate._state import (
    Apply,
    check_causal,
    check_prompt,
    eos_ids,
    num_embeddings,
    pad_id,
    pad_left,
    sample_settings,
    select_rows,
    start,
    whole,
)
from fnlm.generate.sampling import check_settings, row_keys, sample
from fnlm.tree import Tree, register_value

__all__ = ["Round", "speculative", "speculative_stream"]

Choose = Callable[[Tensor, Tensor, Tensor], Tensor]  # (logits, rows, numbers of tokens) -> tokens


@register_value
class Round(NamedTuple):
    """What the rows gained by one call of the model."""

    tokens: Tensor  # int64 [*lead, G + 1], the new tokens of each row, then pad
    gained: Tensor  # int64 [*lead], how many they are; 0 where the row had ended before
    accepted: Tensor  # int64 [*lead], how many of them the draft had guessed, of G


class _Model(NamedTuple):
    """A model with its parameters."""

    apply: Apply
    params: Tree


class _Texts(NamedTuple):
    """The rows that are still running, and what both models know of them."""

    rows: Tensor  # int64 [R], which rows of the batch
    made: Tensor  # int64 [R], new tokens so far
    last: Tensor  # int64 [R], the last token of each, which neither model has read
    cache: Any  # the model's, of all tokens before
    draft_cache: Any  # the draft's


@_former.answering
def speculative(
    apply: Apply,
    params: Tree,
    draft_apply: Apply,
    draft_params: Tree,
    ids: Tensor,
    max_new_tokens: int,
    *,
    key: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    mask: Tensor | None = None,
    eos: SupportsIndex | Iterable[SupportsIndex] | None = None,
    pad: SupportsIndex | None = None,
    draft_tokens: int = 4,
    prefill: Apply | None = None,
    draft_prefill: Apply | None = None,
) -> Tensor:
    """Generate what `generate` generates, in fewer calls of the model, by the guesses of a draft.

    With a key or without, the tokens are those of `generate` with the same arguments: the draft
    decides how soon they come, and nothing else. (The model reads several tokens at once, and its
    arithmetic may differ in the last bit from that of one; a token changes by that only where two
    are all but tied.) So the distribution is the model's. Rows advance independently: each by as
    many guesses as were right in it.

    Args:
        apply: the model, as for `generate`; its state is a `Cache`, a `Mems` whose config has
            `same_length` and no `ext_len`, or None.
        params: its parameters.
        draft_apply: a faster model of the same tokens.
        draft_params: its parameters.
        ids: int64 [*lead, T], the prompts.
        max_new_tokens: tokens to make for each row; both models must have as many positions.
        key: as for `generate`, like the arguments that follow.
        temperature: see `fnlm.generate.logits`, as for `top_k`, `top_p`, `min_p` and `typical`;
            they hold for both models.
        mask: [*lead, T], nonzero for real tokens, 0 for padding on either side.
        eos: the end-of-sequence id, or ids.
        pad: id that fills a row after eos.
        draft_tokens: guesses of a round, at least 1; fewer as a row nears its end.
        prefill: see `start`.
        draft_prefill: likewise, of the draft.

    Returns:
        the new tokens alone, int64 [*lead, max_new_tokens]. `speculative_stream` tells how many
        guesses were accepted.

    Raises:
        TypeError: as for `generate`; a state that tokens cannot be taken back from.
        ValueError: as for `generate`; a draft of a larger vocabulary, or one whose logits are NaN;
            a memory of `transfo_xl` in which a token's logits depend on those read with it.
        IndexError: an id out of range.

    Source: Leviathan, Kalman and Matias 2023, "Fast Inference from Transformers via Speculative
    Decoding" (arXiv:2211.17192); Chen et al. 2023, "Accelerating Large Language Model Decoding with
    Speculative Sampling" (arXiv:2302.01318). Deviation: they accept a guess by a draw of its own,
    with the probability 1 - d, d the total variation of the two distributions, which is the highest
    possible; here both models draw with one noise (Daliri, Musco and Suresh 2024,
    arXiv:2408.07978), which accepts with (1 - d) / (1 + d) or more, and gives the same text with
    any draft or none.

    >>> def next_token(params, ids, cache=None):  # a model that counts, and has no state
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), None
    >>> def guess(params, ids, cache=None):  # 4 comes as a surprise to this one
    ...     return torch.nn.functional.one_hot((ids + 1) % 4, 5).float(), None
    >>> speculative(next_token, {}, guess, {}, torch.tensor([[0], [2]]), 5)
    tensor([[1, 2, 3, 4, 0],
            [3, 4, 0, 1, 2]])
    """
    ends = eos_ids(eos, "cpu")
    rounds = speculative_stream(
        apply,
        params,
        draft_apply,
        draft_params,
        ids,
        max_new_tokens,
        key=key,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical=typical,
        mask=mask,
        eos=ends,
        pad=pad,
        draft_tokens=draft_tokens,
        prefill=prefill,
        draft_prefill=draft_prefill,
    )
    shape = (*ids.shape[:-1], max_new_tokens)
    tokens = ids.new_full(shape, pad_id(ends, pad), dtype=torch.int64)
    made = ids.new_zeros((*ids.shape[:-1], 1), dtype=torch.int64)
    for each in rounds:
        index = torch.arange(each.tokens.shape[-1], device=ids.device)
        new = index < each.gained.unsqueeze(-1)  # [*lead, G + 1]
        *where, _ = new.nonzero(as_tuple=True)
        tokens[(*where, (made + index)[new])] = each.tokens[new]
        made = made + each.gained.unsqueeze(-1)
    return tokens


@_former.answering
def speculative_stream(
    apply: Apply,
    params: Tree,
    draft_apply: Apply,
    draft_params: Tree,
    ids: Tensor,
    max_new_tokens: int,
    *,
    key: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
    mask: Tensor | None = None,
    eos: SupportsIndex | Iterable[SupportsIndex] | None = None,
    pad: SupportsIndex | None = None,
    draft_tokens: int = 4,
    prefill: Apply | None = None,
    draft_prefill: Apply | None = None,
) -> Iterator[Round]:
    """Yield what each call of the model adds to the rows, until all of them have ended.

    `speculative` step by step, with its arguments and errors; errors come with this call, not with
    the first tokens.

    Yields:
        a `Round`; the tokens of a row in all rounds, `gained` of each, are those of `generate`.

    >>> def next_token(params, ids, cache=None):  # a model that counts, and has no state
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), None
    >>> models = (next_token, {}, next_token, {})
    >>> for each in speculative_stream(*models, torch.tensor([0]), 6, draft_tokens=3):
    ...     print(each.tokens, int(each.accepted))
    tensor([1, 2, 3, 4]) 3
    tensor([0, 1]) 1
    """
    settings = sample_settings(temperature, top_k, top_p, min_p, typical)
    model, draft = _Model(apply, params), _Model(draft_apply, draft_params)
    draft_tokens = whole(draft_tokens, "draft_tokens")
    _check(model, draft, ids, mask, max_new_tokens, draft_tokens=draft_tokens)
    check_settings(key, **settings)
    lead, (ids, mask) = ids.shape[:-1], pad_left(ids, mask)
    keys = None if key is None else row_keys(key, tuple(lead)).flatten()
    eos_tokens = eos_ids(eos, ids.device)
    filler = pad_id(eos_tokens, pad)
    limit, prefills = int(max_new_tokens), (prefill or apply, draft_prefill or draft_apply)

    def choose(logits: Tensor, rows: Tensor, n: Tensor) -> Tensor:
        if keys is None:
            return sample(logits, **settings)
        of_rows = keys[rows].reshape(-1, *(1,) * (n.ndim - 1))
        return sample(logits, random.fold_in(of_rows, n), **settings)

    def run() -> Iterator[Round]:
        prompts = ids.reshape(-1, ids.shape[-1])
        capacity = prompts.shape[-1] + limit
        with torch.no_grad():  # left before every yield
            texts = _begin(model, draft, prompts, mask, prefills)
        while limit and len(texts.rows):
            count = min(draft_tokens, limit - 1 - int(texts.made.max()))
            with torch.no_grad():
                rows, texts = texts.rows, _with_room(texts, count + 1, capacity)
                texts, tokens, accepted = _round(model, draft, texts, count, choose)
                gained, ended = _gained(tokens, accepted, eos_tokens, filler)
                texts = _select(texts, ~ended & (texts.made < limit))
            yield _of_all(gained, rows, tuple(lead), filler)

    return run()


def _check(
    model: _Model,
    draft: _Model,
    ids: Tensor,
    mask: Tensor | None,
    max_new_tokens: int,
    *,
    draft_tokens: int,
) -> None:
    """Validate the prompt for both models, and that they can take tokens back."""
    if draft_tokens < 1:
        raise ValueError(
            f"draft_tokens must be at least 1, got {draft_tokens}: without guesses use generate"
        )
    for name, each in (("params", model), ("draft_params", draft)):
        check_causal(each.apply)
        try:
            check_prompt(each.params, ids, mask, max_new_tokens)
        except (ValueError, IndexError) as error:
            if each is model:
                raise
            raise type(error)(f"of the draft: {error}") from None
        check_rewinds(each.params, name, draft_tokens + 1)


def _begin(
    model: _Model,
    draft: _Model,
    ids: Tensor,
    mask: Tensor | None,
    prefills: tuple[Apply, Apply],
) -> _Texts:
    """Let both models read the prompts [B, T] but for the last token of each."""
    first = None if mask is None else mask.reshape(ids.shape)[:, :-1]
    caches = [
        start(prefill, params, ids[:, :-1], mask=first).cache if ids.shape[-1] > 1 else None
        for prefill, params in zip(prefills, (model.params, draft.params), strict=True)
    ]
    rows = torch.arange(len(ids), device=ids.device)
    return _Texts(rows, torch.zeros_like(rows), ids[:, -1].long(), *caches)


def _with_room(texts: _Texts, new: int, capacity: int) -> _Texts:
    """Return the texts with caches that `new` more tokens of each row fit into."""
    cache, draft_cache = (
        make_room(cache, new, capacity) for cache in (texts.cache, texts.draft_cache)
    )
    return texts._replace(cache=cache, draft_cache=draft_cache)


def _round(
    model: _Model, draft: _Model, texts: _Texts, count: int, choose: Choose
) -> tuple[_Texts, Tensor, Tensor]:
    """Let the draft guess `count` tokens, and the model read them.

    Returns:
        the texts with the right guesses and one more token, these tokens [R, G + 1], of which the
        last ones of a row may be wrong, and how many guesses were right [R].
    """
    guessed, draft_cache = _guess(model, draft, texts, count, choose)  # [R, 1 + G]
    read = guessed.clamp_min(0)
    logits, cache = model.apply(model.params, read, texts.cache)  # [R, G + 1, V]
    index = torch.arange(count + 1, device=read.device)
    made = texts.made.unsqueeze(-1) + index  # [R, G + 1]
    tokens = choose(logits, texts.rows, made)
    accepted = (tokens[:, :-1] == guessed[:, 1:]).int().cumprod(-1).sum(-1)  # [R]
    # What follows a wrong guess may be anything.
    highest = logits.amax(-1).masked_fill(index > accepted.unsqueeze(-1), 0.0)
    check_rows(highest, texts.rows.unsqueeze(-1).expand_as(made), made)

    kept, unread = accepted + 1, int(accepted.max()) < count
    if not unread:  # where all guesses were right the draft has not read the last one
        _, draft_cache = draft.apply(draft.params, read[:, count:], draft_cache)
    texts = texts._replace(
        made=texts.made + kept,
        last=tokens.gather(-1, accepted.unsqueeze(-1)).squeeze(-1),
        cache=rewind(texts.cache, cache, kept, count + 1),
        draft_cache=rewind(texts.draft_cache, draft_cache, kept, count + 1 - unread),
    )
    return texts, tokens, accepted


def _guess(
    model: _Model, draft: _Model, texts: _Texts, count: int, choose: Choose
) -> tuple[Tensor, Any]:
    """Return the last token and the guesses after it [R, 1 + G], and the draft's cache.

    Where the draft excludes every token there is no guess, but -1.
    """
    cache, tokens, highest = texts.draft_cache, [texts.last], []
    for n in range(count):
        logits, cache = draft.apply(draft.params, tokens[-1].clamp_min(0).unsqueeze(-1), cache)
        logits = logits[..., -1, :]  # [R, V]
        known = num_embeddings(model.params)
        if known is not None and logits.shape[-1] > known:
            raise ValueError(
                f"the draft has logits of {logits.shape[-1]} tokens, the model knows {known}: both "
                "must have one vocabulary; where the draft's is padded, draft_apply cuts its logits"
            )
        tokens.append(choose(logits, texts.rows, texts.made + n))
        highest.append(logits.amax(-1))
    if count and not bool((torch.stack(highest) < torch.inf).all()):
        raise ValueError(
            "the draft's logits hold NaN or infinity: look for the cause in draft_params "
            "(tree.named_leaves)"
        )
    return torch.stack(tokens, -1), cache


def _gained(
    tokens: Tensor, accepted: Tensor, eos: Tensor | None, filler: int
) -> tuple[Round, Tensor]:
    """Return what R rows gained up to eos, and whether they have ended: bool [R]."""
    index = torch.arange(tokens.shape[-1], device=tokens.device)
    count, ended = accepted + 1, torch.zeros_like(accepted, dtype=torch.bool)
    if eos is not None:
        ends = torch.isin(tokens, eos) & (index < count.unsqueeze(-1))  # [R, G + 1]
        ended = ends.any(-1)
        count = torch.where(ended, ends.int().argmax(-1) + 1, count)  # argmax: the first of them
    tokens = torch.where(index < count.unsqueeze(-1), tokens, filler)
    return Round(tokens, count, accepted.minimum(count)), ended


def _of_all(gained: Round, rows: Tensor, lead: tuple[int, ...], filler: int) -> Round:
    """Return the round of all rows of the batch [*lead], of which only R were running."""
    size = torch.Size(lead).numel()
    width = gained.tokens.shape[-1]
    tokens = gained.tokens.new_full((size, width), filler).index_copy(0, rows, gained.tokens)
    count, accepted = (
        x.new_zeros(size).index_copy(0, rows, x).reshape(lead)
        for x in (gained.gained, gained.accepted)
    )
    return Round(tokens.reshape(*lead, width), count, accepted)


def _select(texts: _Texts, going: Tensor) -> _Texts:
    """Return the texts of the rows that go on: bool [R]."""
    if bool(going.all()):
        return texts
    index = going.nonzero().squeeze(-1)
    return _Texts(
        *(x[index] for x in texts[:3]), *(select_rows(cache, index) for cache in texts[3:])
    )
