"""Beam search: the best K continuations of every row.

Dimensions: B rows, K beams, V vocabulary, N new tokens, W candidates of a step.

A finished hypothesis is scored by its log-probability divided by length ** length_penalty.
Decisions are those of `transformers` 5 with `early_stopping=False`: each step looks at the
W = max(2, 1 + number of eos ids) K best continuations of a row; those that end in eos count only if
they are among the best K; a row is done when its best running hypothesis, scored as if it finished
now, is no better than the worst of K finished ones. Deviation: padding may be on either side.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from fnlm import _former
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
    start,
    take_rows,
    whole,
)
from fnlm.tree import Tree

__all__ = ["beam_search"]


class _Beams(NamedTuple):
    """Hypotheses of all rows, best first; empty slots have score -inf."""

    running: Tensor  # int64 [B, K, n], new tokens so far
    running_scores: Tensor  # float32 [B, K], log-probabilities
    finished: Tensor  # int64 [B, K, N]
    finished_scores: Tensor  # float32 [B, K], divided by length ** length_penalty
    done: Tensor  # bool [B]


@_former.answering
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
    """Return the most likely continuations that beam search finds, and their scores.

    Args:
        apply: the model, as for `generate`; its state must have the batch as first axis of every
            tensor.
        params: its parameters.
        ids: int64 [*lead, T], the prompts.
        max_new_tokens: the most tokens of a continuation, at least 1.
        num_beams: K, hypotheses per row; 1 is greedy decoding.
        mask: [*lead, T], nonzero for real tokens, 0 for padding on either side.
        eos: the end-of-sequence id, or ids.
        pad: id that fills a hypothesis after eos; by default the (first) eos id.
        length_penalty: more than 0 favours longer hypotheses, less than 0 shorter ones.
        prefill: as for `generate`.

    Returns:
        the new tokens [*lead, K, max_new_tokens], best hypothesis first, and their scores float32
        [*lead, K]: the log-probability of the new tokens (eos included) divided by their number
        ** length_penalty.

    Raises:
        TypeError: ids, eos, pad or a number is not an integer, or a mask is floating.
        ValueError: num_beams or max_new_tokens less than 1, an empty prompt, more tokens than
            positions; logits that are no distribution (NaN), naming the token; a row whose every
            continuation the logits exclude.
        IndexError: an id out of range.

    >>> def next_token(params, ids, cache=None):  # a model that counts
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float() * 9, ids
    >>> tokens, scores = beam_search(next_token, {}, torch.tensor([[0]]), 3, num_beams=2)
    >>> tokens[:, 0]
    tensor([[1, 2, 3]])
    """
    num_beams, max_new_tokens = (
        whole(num_beams, "num_beams"),
        whole(max_new_tokens, "max_new_tokens"),
    )
    for name, value in (("num_beams", num_beams), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}: 1 beam is greedy decoding")
    if not math.isfinite(length_penalty):
        raise ValueError(f"length_penalty must be a finite number, got {length_penalty}")
    check_causal(apply)
    check_prompt(params, ids, mask, max_new_tokens)
    lead = ids.shape[:-1]
    ids, mask = pad_left(ids, mask)
    ids = ids.reshape(-1, ids.shape[-1])
    mask = None if mask is None else mask.reshape(ids.shape)
    eos_tokens = eos_ids(eos, ids.device)
    filler = ids.new_tensor(pad_id(eos_tokens, pad), dtype=torch.int64)
    if not len(ids):
        scores = torch.zeros(*lead, num_beams, device=ids.device)
        return ids.new_zeros(*lead, num_beams, max_new_tokens, dtype=torch.int64), scores
    with torch.no_grad():
        state = start(apply, params, ids, mask=mask, prefill=prefill)
        beams = _empty(len(ids), num_beams, max_new_tokens, filler)
        for n in range(max_new_tokens):
            last = n + 1 == max_new_tokens
            beams, origin = _step(
                beams, state.logits, eos_tokens, filler, length_penalty=length_penalty, last=last
            )
            if last or bool(beams.done.all()):
                break
            state = advance(
                apply, params, _reorder(state, origin), beams.running[..., -1].flatten()
            )
    if bool((failed := beams.finished_scores[:, 0] == -torch.inf).any()):
        raise ValueError(
            f"rows {failed.nonzero().flatten().tolist()} have no continuation: the logits are -inf "
            "for every token of each hypothesis"
        )
    tokens = beams.finished.reshape(*lead, num_beams, max_new_tokens)
    return tokens, beams.finished_scores.reshape(*lead, num_beams)


def _empty(rows: int, beams: int, tokens: int, pad: Tensor) -> _Beams:
    """Return one running hypothesis of no tokens in each row, and no finished one."""
    device = pad.device
    scores = torch.full((rows, beams), -torch.inf, device=device)
    return _Beams(
        running=torch.zeros(rows, beams, 0, dtype=torch.int64, device=device),
        running_scores=torch.where(torch.arange(beams, device=device) == 0, 0.0, scores),
        finished=pad.expand(rows, beams, tokens),
        finished_scores=scores,
        done=torch.zeros(rows, dtype=torch.bool, device=device),
    )


def _step(
    beams: _Beams,
    logits: Tensor,
    eos: Tensor | None,
    pad: Tensor,
    *,
    length_penalty: float,
    last: bool,
) -> tuple[_Beams, Tensor]:
    """Extend the running hypotheses by one token and keep the best.

    Args:
        beams: after n tokens.
        logits: [B, V] at n = 0, where a row has one hypothesis, else [B K, V].
        eos: ids [E] that finish a hypothesis.
        pad: int64 [], fills a hypothesis after eos.
        length_penalty: see `beam_search`.
        last: whether every hypothesis finishes here.

    Returns:
        beams after n + 1 tokens, and the row of the state that each of their B K hypotheses
        continues.
    """
    rows, num_beams, n = beams.running.shape
    vocab_size = logits.shape[-1]
    device = logits.device
    # The W best continuations of each row: enough of them that K remain where some end in eos.
    log_probs = _scores(beams, logits.reshape(rows, -1, vocab_size)).flatten(1)  # [B, K V]
    num_candidates = max(2, 1 + (0 if eos is None else len(eos))) * num_beams
    num_candidates = min(num_candidates, num_beams * vocab_size)
    candidate_scores, flat_index = log_probs.topk(num_candidates)  # [B, W]
    parent, token = flat_index // vocab_size, flat_index % vocab_size  # [B, W]
    sequences = torch.cat([_pick(beams.running, parent), token.unsqueeze(-1)], -1)  # [B, W, n + 1]
    is_eos = torch.full_like(token, last, dtype=torch.bool)  # at the last step all finish
    if eos is not None:
        is_eos = is_eos | torch.isin(token, eos)

    # The best K that go on keep running.
    running_scores, best = candidate_scores.masked_fill(is_eos, -torch.inf).topk(num_beams)
    row = torch.arange(rows, device=device).unsqueeze(-1)  # [B, 1]
    origin = row * num_beams + parent.gather(1, best) if n else row.expand(rows, num_beams)

    # Those that finish, if among the best K, compete with the finished ones of earlier steps.
    in_best = torch.arange(num_candidates, device=device) < num_beams
    eligible = is_eos & in_best & ~beams.done.unsqueeze(-1)
    divisor = (n + 1) ** length_penalty
    new_scores = (candidate_scores / divisor).masked_fill(~eligible, -torch.inf)
    finished_scores, best_finished = torch.cat([beams.finished_scores, new_scores], 1).topk(
        num_beams
    )
    padding = pad.expand(rows, num_candidates, beams.finished.shape[-1] - n - 1)
    finished = torch.cat([beams.finished, torch.cat([sequences, padding], -1)], 1)  # [B, K + W, N]

    improvable = running_scores[:, 0] / divisor > finished_scores[:, -1]  # [B]
    return (
        _Beams(
            _pick(sequences, best),
            running_scores,
            _pick(finished, best_finished),
            finished_scores,
            beams.done | ~improvable,
        ),
        origin.flatten(),
    )


def _scores(beams: _Beams, logits: Tensor) -> Tensor:
    """Return the log-probability of every continuation: [B, 1 or K, V], -inf where none may be.

    Args:
        beams: after n tokens.
        logits: [B, 1 or K, V]; those of empty slots, or of rows that are done, may be anything;
            a hypothesis whose logits are all -inf is dropped.
    """
    highest = logits.amax(-1)  # the highest of NaN is NaN
    live = (beams.running_scores[:, : logits.shape[1]] > -torch.inf) & ~beams.done.unsqueeze(-1)
    live = live & (highest != -torch.inf)
    check_highest(highest.masked_fill(~live, 0.0).amax(-1), beams.running.shape[-1])
    scores = beams.running_scores.unsqueeze(-1) + logits.float().log_softmax(-1)
    return scores.masked_fill(~live.unsqueeze(-1), -torch.inf)


def _pick(hypotheses: Tensor, index: Tensor) -> Tensor:
    """Gather hypotheses [B, K, n] by index [B, W]: [B, W, n]."""
    return hypotheses.gather(1, index.unsqueeze(-1).expand(-1, -1, hypotheses.shape[-1]))


def _reorder(state: State, origin: Tensor) -> State:
    """Return the state in which each hypothesis has that of the one it continues."""
    identity = torch.arange(len(state.logits), device=origin.device)
    if torch.equal(origin, identity):
        return state  # nothing to copy
    return take_rows(state, origin)
