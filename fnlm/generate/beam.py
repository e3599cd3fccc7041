"""Beam search: several continuations a row, the best kept.

Dimensions: B rows, K beams, V vocabulary, N new tokens.

A hypothesis that has ended competes by its log-probability divided by length ** length_penalty.
Decisions are those of `transformers` 5 with `early_stopping=False`: each step looks at the (1 + end
ids, at least 2) K best continuations of a row; those that end count only if they are among the best
K; a row is done when its best running hypothesis, scored as if it ended now, is no better than the
worst of K ended ones. Deviation: padding may stand on either side.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from fnlm.generate.state import (
    Apply,
    State,
    advance,
    check_highest,
    check_prompt,
    eos_ids,
    pad_id,
    pad_left,
    start,
    take_rows,
    whole,
)
from fnlm.tree import Tree

__all__ = ["beam_search"]


class _Beams(NamedTuple):
    """Hypotheses of all rows, best first; -inf scores places that are still empty."""

    running: Tensor  # int64 [B, K, n], new tokens so far
    running_scores: Tensor  # float32 [B, K], log-probabilities
    ended: Tensor  # int64 [B, K, N]
    ended_scores: Tensor  # float32 [B, K], divided by length ** length_penalty
    done: Tensor  # bool [B]


def beam_search(
    apply: Apply,
    params: Tree,
    ids: Tensor,
    max_new_tokens: int,
    *,
    num_beams: int,
    mask: Tensor | None = None,
    eos: SupportsIndex | Iterable[SupportsIndex] | None = None,
    pad: SupportsIndex | None = None,
    length_penalty: float = 1.0,
    prefill: Apply | None = None,
) -> tuple[Tensor, Tensor]:
    """Find likely continuations.

    Args:
        apply: the model, as for `generate`; its state must have the batch as first axis of every
            tensor.
        params: its parameters.
        ids: int64 [*lead, T], the prompts.
        max_new_tokens: the most tokens of a continuation, at least 1.
        num_beams: K, how many hypotheses are followed; 1 is greedy decoding.
        mask: [*lead, T], nonzero for real tokens, 0 for padding on either side.
        eos: the id, or ids, after which a hypothesis has ended.
        pad: what follows the end; by default the (first) end id.
        length_penalty: more than 0 favours longer hypotheses, less than 0 shorter ones.
        prefill: as for `generate`.

    Returns:
        the new tokens [*lead, K, max_new_tokens], best hypothesis first, and their scores float32
        [*lead, K]: the log-probability of the new tokens (the end included) divided by their number
        ** length_penalty.

    Raises:
        TypeError: ids, eos, pad or a number is not an integer, or a mask is floating.
        ValueError: num_beams or max_new_tokens less than 1, an empty prompt, more tokens than
            positions; logits that are no distribution (NaN), naming the token; a row whose every
            continuation the logits exclude.
        IndexError: an id out of range.

    >>> def next_word(params, ids, cache=None):  # a model that counts
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float() * 9, ids
    >>> tokens, scores = beam_search(next_word, {}, torch.tensor([[0]]), 3, num_beams=2)
    >>> tokens[:, 0]
    tensor([[1, 2, 3]])
    """
    num_beams, max_new_tokens = (
        whole(num_beams, "num_beams"),
        whole(max_new_tokens, "max_new_tokens"),
    )
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a finite number, got {length_penalty}")
    check_prompt(params, ids, mask, max_new_tokens)
    lead = ids.shape[:-1]
    ids, mask = pad_left(ids, mask)
    ids = ids.reshape(-1, ids.shape[-1])
    mask = None if mask is None else mask.reshape(ids.shape)
    ends = eos_ids(eos, ids.device)
    filler = ids.new_tensor(pad_id(ends, pad), dtype=torch.int64)
    if not len(ids):
        scores = torch.zeros(*lead, num_beams, device=ids.device)
        return ids.new_zeros(*lead, num_beams, max_new_tokens, dtype=torch.int64), scores
    with torch.no_grad():
        state = start(apply, params, ids, mask=mask, prefill=prefill)
        beams = _empty(len(ids), num_beams, max_new_tokens, filler)
        for n in range(max_new_tokens):
            last = n + 1 == max_new_tokens
            beams, origin = _step(
                beams, state.logits, ends, filler, length_penalty=length_penalty, last=last
            )
            if last or bool(beams.done.all()):
                break
            state = advance(
                apply, params, _reorder(state, origin), beams.running[..., -1].flatten()
            )
    if bool((lost := beams.ended_scores[:, 0] == -torch.inf).any()):
        raise ValueError(
            f"rows {lost.nonzero().flatten().tolist()} have no continuation: the logits are -inf "
            "for every token of each hypothesis"
        )
    tokens = beams.ended.reshape(*lead, num_beams, max_new_tokens)
    return tokens, beams.ended_scores.reshape(*lead, num_beams)


def _empty(rows: int, beams: int, tokens: int, pad: Tensor) -> _Beams:
    """One running hypothesis without tokens in each row, no ended one."""
    device = pad.device
    scores = torch.full((rows, beams), -torch.inf, device=device)
    return _Beams(
        running=torch.zeros(rows, beams, 0, dtype=torch.int64, device=device),
        running_scores=torch.where(torch.arange(beams, device=device) == 0, 0.0, scores),
        ended=pad.expand(rows, beams, tokens),
        ended_scores=scores,
        done=torch.zeros(rows, dtype=torch.bool, device=device),
    )


def _step(
    beams: _Beams,
    logits: Tensor,
    ends: Tensor | None,
    pad: Tensor,
    *,
    length_penalty: float,
    last: bool,
) -> tuple[_Beams, Tensor]:
    """Lengthen every running hypothesis by a token.

    Args:
        beams: after n tokens.
        logits: [B, V] at n = 0, where a row has one hypothesis, else [B K, V].
        ends: ids [E] that end a hypothesis.
        pad: int64 [], what follows the end.
        length_penalty: see `beam_search`.
        last: whether every hypothesis ends here.

    Returns:
        beams after n + 1 tokens, and the row of the state that each of their B K hypotheses
        continues.
    """
    rows, width, n = beams.running.shape
    words = logits.shape[-1]
    scores = _scores(beams, logits.reshape(rows, -1, words)).flatten(1)  # [B, K V]
    wide = max(2, 1 + (0 if ends is None else len(ends))) * width
    found, place = scores.topk(min(wide, width * words))  # [B, W]
    parent, word = place // words, place % words
    text = torch.cat([_pick(beams.running, parent), word.unsqueeze(-1)], -1)  # [B, W, n + 1]
    over = torch.full_like(word, last, dtype=torch.bool)
    if ends is not None:
        over = over | torch.isin(word, ends)

    running_scores, best = found.masked_fill(over, -torch.inf).topk(width)
    first = torch.arange(rows, device=word.device).unsqueeze(-1)
    origin = first * width + parent.gather(1, best) if n else first.expand(rows, width)

    counts = (
        over & (torch.arange(over.shape[1], device=word.device) < width) & ~beams.done.unsqueeze(-1)
    )
    divisor = (n + 1) ** length_penalty
    new_scores = (found / divisor).masked_fill(~counts, -torch.inf)
    ended_scores, kept = torch.cat([beams.ended_scores, new_scores], 1).topk(width)
    rest = pad.expand(rows, text.shape[1], beams.ended.shape[-1] - n - 1)
    ended = torch.cat([beams.ended, torch.cat([text, rest], -1)], 1)
    improvable = running_scores[:, 0] / divisor > ended_scores[:, -1]
    return (
        _Beams(
            _pick(text, best),
            running_scores,
            _pick(ended, kept),
            ended_scores,
            beams.done | ~improvable,
        ),
        origin.flatten(),
    )


def _scores(beams: _Beams, logits: Tensor) -> Tensor:
    """Score every continuation of every hypothesis that goes on; -inf for those of others.

    Args:
        beams: after n tokens.
        logits: [B, 1 or K, V]; those of hypotheses that do not count, or of rows that are done, may
            be anything, and those that are all -inf end a hypothesis without a result.
    """
    highest = logits.amax(-1)  # the highest of NaN is NaN
    live = (beams.running_scores[:, : logits.shape[1]] > -torch.inf) & ~beams.done.unsqueeze(-1)
    live = live & (highest != -torch.inf)
    check_highest(highest.masked_fill(~live, 0.0).amax(-1), beams.running.shape[-1])
    scores = beams.running_scores.unsqueeze(-1) + logits.float().log_softmax(-1)
    return scores.masked_fill(~live.unsqueeze(-1), -torch.inf)


def _pick(hypotheses: Tensor, index: Tensor) -> Tensor:
    """Take hypotheses [B, K, n] by their numbers [B, W]: [B, W, n]."""
    return hypotheses.gather(1, index.unsqueeze(-1).expand(-1, -1, hypotheses.shape[-1]))


def _reorder(state: State, origin: Tensor) -> State:
    """Let each hypothesis have the state of the one it continues."""
    stays = torch.arange(len(state.logits), device=origin.device)
    if torch.equal(origin, stays):
        return state
    return take_rows(state, origin)
