"""Contrastive search: likely tokens whose hidden state is unlike those of the text before.

Dimensions: B rows, K candidates, S tokens of the text, D width, V vocabulary, N new tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fnlm import _former
from fnlm.generate._state import (
    call,
    check_causal,
    check_highest,
    check_prompt,
    eos_ids,
    pad_id,
    pad_left,
    select_rows,
    whole,
)
from fnlm.generate.logits import check_number
from fnlm.layers.precision import at_least_float32
from fnlm.tree import Tree

__all__ = ["contrastive_search"]

# what `fnlm.taps.read(apply, "hidden")` returns: ((logits, cache), {"hidden": [..., T, D]})
Reading = Callable[..., tuple[tuple[Tensor, Any], Mapping[str, Tensor]]]


class _Text(NamedTuple):
    """The text so far."""

    cache: Any
    logits: Tensor  # [B, V], of the next token
    hidden: Tensor  # [B, S, D], of length 1
    valid: Tensor  # bool [B, S], False for padding


@_former.answering
def contrastive_search(
    apply: Reading,
    params: Tree,
    ids: Tensor,
    max_new_tokens: int,
    *,
    top_k: int = 4,
    alpha: float = 0.6,
    mask: Tensor | None = None,
    eos: SupportsIndex | Iterable[SupportsIndex] | None = None,
    pad: SupportsIndex | None = None,
) -> Tensor:
    """Generate the likely tokens that repeat the text the least.

    Each time, of the `top_k` most likely tokens v, the one of the highest score::

        (1 - alpha) p(v | text) - alpha max_j cos(h_v, h_j)

    with h_j the hidden state of the text's token j, and h_v that of v after the text.

    Args:
        apply: the model, with its hidden states: `fnlm.taps.read(gpt2.apply, "hidden")`, or any
            function of its arguments that returns ((logits, cache), {"hidden": [..., T, D]}). Its
            state has the batch as first axis of every tensor.
        params: its parameters.
        ids: int64 [*lead, T], the prompts.
        max_new_tokens: tokens to make for each row.
        top_k: K, candidates of a token, which the model reads together; 1 is greedy decoding.
        alpha: from 0, greedy decoding, to 1.
        mask: [*lead, T], nonzero for real tokens, 0 for padding on either side.
        eos: the end-of-sequence id, or ids.
        pad: id that fills a row after eos; by default the (first) eos id.

    Returns:
        the new tokens alone, int64 [*lead, max_new_tokens].

    Raises:
        TypeError: as for `generate`; apply returns no hidden states.
        ValueError: as for `generate`; top_k less than 1, alpha out of range.
        IndexError: an id out of range.

    Source: Su et al. 2022, "A Contrastive Framework for Neural Text Generation"
    (arXiv:2202.06417). Deviation: padding is no part of the text.

    >>> from fnlm import gpt2, random, taps
    >>> config = gpt2.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = gpt2.init(config, random.key(0))
    >>> reading = taps.read(gpt2.apply, "hidden")
    >>> contrastive_search(reading, params, torch.tensor([[3, 1, 4]]), 5).shape
    torch.Size([1, 5])
    """
    check_causal(apply)
    check_prompt(params, ids, mask, max_new_tokens)
    if (top_k := whole(top_k, "top_k")) < 1:
        raise ValueError(f"top_k must be at least 1, which is greedy decoding, got {top_k}")
    check_number("alpha", alpha)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0, which is greedy decoding, to 1, got {alpha}")
    lead, (ids, mask) = ids.shape[:-1], pad_left(ids, mask)
    eos_tokens = eos_ids(eos, ids.device)
    tokens = ids.new_full((lead.numel(), max_new_tokens), pad_id(eos_tokens, pad)).long()
    if not tokens.numel():
        return tokens.reshape(*lead, max_new_tokens)
    finished = torch.zeros_like(tokens[:, 0], dtype=torch.bool)
    with torch.no_grad():
        text = _read(apply, params, ids.reshape(len(tokens), -1), mask)
        for n in range(max_new_tokens):
            new, text = _step(apply, params, text, n, top_k=top_k, alpha=alpha)
            tokens[:, n] = torch.where(finished, tokens[:, n], new)
            if eos_tokens is not None:
                finished = finished | torch.isin(new, eos_tokens)
            if bool(finished.all()):
                break
    return tokens.reshape(*lead, max_new_tokens)


def _read(apply: Reading, params: Tree, ids: Tensor, mask: Tensor | None) -> _Text:
    """Return the text of the prompts [B, T]."""
    mask = None if mask is None else mask.reshape(ids.shape)
    model: Any = apply  # not the usual result
    result: Any = call(model, params, ids, None, mask)
    if not isinstance(result[1], Mapping) or "hidden" not in result[1]:
        raise TypeError(
            "apply must return its hidden states, too: ((logits, cache), {'hidden': ...}), as "
            'fnlm.taps.read(gpt2.apply, "hidden") does'
        )
    (logits, cache), found = result
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask != 0
    return _Text(cache, logits[:, -1], _normalized(found["hidden"]), valid)


def _step(
    apply: Reading, params: Tree, text: _Text, n: int, *, top_k: int, alpha: float
) -> tuple[Tensor, _Text]:
    """Return the next token of each row [B], and the text with it."""
    rows = torch.arange(len(text.valid), device=text.valid.device)
    check_highest(text.logits.amax(-1), n)
    probs = at_least_float32(text.logits).softmax(-1)
    probs, candidates = probs.topk(min(top_k, probs.shape[-1]))  # [B, K]
    count = probs.shape[-1]
    forks = select_rows(text.cache, rows.repeat_interleave(count))
    (logits, cache), found = apply(params, candidates.reshape(-1, 1), forks)  # of B K rows
    hidden = _normalized(found["hidden"]).unflatten(0, probs.shape).squeeze(-2)  # [B, K, D]

    cosines = (hidden @ text.hidden.mT).masked_fill(~text.valid.unsqueeze(1), -torch.inf)
    scores = (1 - alpha) * probs - alpha * cosines.amax(-1)  # [B, K]
    scores = scores.masked_fill(probs == 0, -torch.inf)  # excluded by the model
    check_highest(scores.amax(-1), n)
    best = scores.argmax(-1)  # [B]
    fork = rows * count + best
    text = _Text(
        select_rows(cache, fork),
        logits[fork, -1],
        torch.cat([text.hidden, hidden[rows, best].unsqueeze(1)], 1),
        F.pad(text.valid, (0, 1), value=True),
    )
    return candidates[rows, best], text


def _normalized(hidden: Tensor) -> Tensor:
    """Return vectors of length 1, at least in float32: [..., D] -> the same."""
    return F.normalize(at_least_float32(hidden), dim=-1)
