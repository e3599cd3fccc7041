"""The decoding state: `start` reads a prompt (prefill), `advance` one more token.

Any model can be decoded whose `apply(params, ids, cache=None, *, mask=None)` returns logits [...,
T, V] (or log-probabilities) and a state; `mask` is passed only where there is padding.
"""

import operator
from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from typing import Any, NamedTuple, SupportsIndex

import torch
from torch import Tensor

from fnlm import tree
from fnlm.layers import kv_cache
from fnlm.layers.embedding import check_range
from fnlm.layers.mask import check_mask
from fnlm.tree import Tree, register_value

__all__ = [
    "Apply",
    "State",
    "advance",
    "call",
    "check_causal",
    "check_highest",
    "check_prompt",
    "eos_ids",
    "num_embeddings",
    "pad_id",
    "pad_left",
    "sample_settings",
    "select_rows",
    "start",
    "take_rows",
    "whole",
]

Apply = Callable[..., tuple[Tensor, Any]]


@register_value
class State(NamedTuple):
    """The model's cache, and its logits of the next token."""

    cache: Any  # whatever `apply` returned beside the logits
    logits: Tensor  # [*lead, V]


def start(
    apply: Apply,
    params: Tree,
    ids: Tensor,
    cache: Any = None,
    *,
    mask: Tensor | None = None,
    prefill: Apply | None = None,
) -> State:
    """Run the model on a prompt and return the state after it.

    Args:
        apply: the model.
        params: its parameters.
        ids: int64 [*lead, T], the last column real tokens (see `pad_left`).
        cache: of tokens that `ids` continue, such as a text that many prompts share.
        mask: [*lead, T], nonzero for real tokens.
        prefill: like `apply`, for all tokens but the last, whose logits nobody reads: a function
            that does not compute them, such as `gpt2.hidden_states`, saves their time and memory in
            long prompts.

    >>> def next_token(params, ids, cache=None):  # a model that counts
    ...     return torch.nn.functional.one_hot((ids + 1) % 5, 5).float(), ids
    >>> start(next_token, {}, torch.tensor([[0, 3]])).logits
    tensor([[0., 0., 0., 0., 1.]])
    """
    if prefill is not None and ids.shape[-1] > 1:
        first = None if mask is None else mask[..., :-1]
        _, cache = call(prefill, params, ids[..., :-1], cache, first)
        ids, mask = ids[..., -1:], None
    logits, cache = call(apply, params, ids, cache, mask)
    return State(cache, logits[..., -1, :])


def advance(
    apply: Apply, params: Tree, state: State, ids: Tensor, *, donate: bool = False
) -> State:
    """Run the model on one more token per row; the old state stays usable.

    Args:
        apply: the model.
        params: its parameters.
        state: from `start` or `advance`.
        ids: int64 [*lead].
        donate: write the new cache, a `FixedCache`, into the memory of the old one, which is lost.
            Under `torch.compile` a token then writes its own keys and values, and no copy of all.

    Raises:
        TypeError: donate, and the cache is no `FixedCache`.
    """
    logits, cache = apply(params, ids.unsqueeze(-1), state.cache)
    if donate:
        cache = kv_cache.overwrite(state.cache, cache)
    return State(cache, logits[..., -1, :])


def take_rows(state: State, rows: Tensor) -> State:
    """Return the state of the selected rows.

    Args:
        state: all its tensors with the batch as their first axis; numbers (tensors without axes)
            are shared by all.
        rows: int64 [n], rows may repeat.
    """
    return State(select_rows(state.cache, rows), state.logits.index_select(0, rows))


def select_rows(cache: Any, rows: Tensor) -> Any:
    """Return a model's state, of any kind, of the selected rows: see `take_rows`."""
    if isinstance(cache, kv_cache.Cache):
        return kv_cache.take_rows(cache, rows)
    if cache is None:
        return None
    return tree.map(lambda x: x.index_select(0, rows) if x.ndim else x, cache)


def pad_left(ids: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Left-pad: move padding to the left, and drop the columns that are padding in every row.

    Args:
        ids: [*lead, T].
        mask: [*lead, T], nonzero for real tokens; reads its values.

    Returns:
        ids [*lead, S], mask bool [*lead, S] or None where no padding is left; S is the length of
        the longest row.

    >>> ids = torch.tensor([[7, 8, 0, 0], [5, 6, 9, 0]])
    >>> ids, mask = pad_left(ids, ids > 0)
    >>> ids
    tensor([[0, 7, 8],
            [5, 6, 9]])
    >>> mask.int()
    tensor([[0, 1, 1],
            [1, 1, 1]], dtype=torch.int32)
    """
    check_mask(mask)
    if mask is None or not mask.numel():
        return ids, None
    real = mask != 0
    order = real.int().argsort(stable=True, dim=-1)  # padding first, tokens in their order
    longest = int(real.sum(-1).max())
    first = ids.shape[-1] - longest
    ids, real = (x.gather(-1, order)[..., first:] for x in (ids, real))  # [*lead, S]
    return ids, None if bool(real.all()) else real


def check_causal(apply: Any) -> None:
    """Raise TypeError unless a model can be decoded, as far as its arguments tell.

    >>> from fnlm import bert, gpt2
    >>> check_causal(gpt2.apply)
    >>> check_causal(bert.masked_lm)
    Traceback (most recent call last):
    TypeError: apply must be a causal model, apply(params, ids, cache), got masked_lm with ...
    """
    if not callable(apply):
        raise TypeError(
            f"apply must be a function, such as gpt2.apply, got {type(apply).__name__}: the order "
            "is apply, params, ids, max_new_tokens"
        )
    if "token_types" in list(signature(apply).parameters)[2:3]:
        raise TypeError(
            "apply must be a causal model, apply(params, ids, cache), got "
            f"{getattr(apply, '__name__', 'one')} with token_types in place of a cache: BERT "
            "generates no text, gpt2.apply does"
        )


def check_prompt(params: Tree, ids: Tensor, mask: Tensor | None, max_new_tokens: int) -> None:
    """Validate a prompt before the model runs: its ids, mask and length.

    Reads the values of ids and mask.

    Args:
        params: limits are the rows of the token embedding, else `vocab_size` of
            `params["config"]`, and its `n_positions`, where there are such.
        ids: [*lead, T].
        mask: [*lead, T].
        max_new_tokens: how many tokens are to follow.

    Raises:
        TypeError: ids or max_new_tokens are not integers, or a mask is floating.
        ValueError: no token in some row, a mask of another shape, more tokens than there are
            positions.
        IndexError: an id out of range.
    """
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise TypeError(
            f"ids must be a tensor of integers (torch.int64), got {kind}: of a text "
            "torch.tensor([tokenizer.encode(text)]) makes one, of a list torch.tensor(ids)"
        )
    if not ids.ndim:
        raise ValueError(
            "ids must be [T] or [batch, T], got a single number: ids[None] has an axis"
        )
    check_mask(mask)
    if mask is not None and mask.shape != ids.shape:
        raise ValueError(
            f"mask has shape {list(mask.shape)}, ids {list(ids.shape)}: they must agree, one "
            "number for each token"
        )
    if whole(max_new_tokens, "max_new_tokens") < 0:
        raise ValueError(
            f"max_new_tokens must be at least 0, got {max_new_tokens}: it counts the tokens that "
            "follow the prompt"
        )
    counts = torch.tensor(ids.shape[-1]) if mask is None else (mask != 0).sum(-1)
    if bool((counts == 0).any()):
        empty = f"rows {(counts == 0).nonzero().flatten().tolist()}" if counts.ndim else "ids"
        raise ValueError(
            f"the prompt is empty: {empty} of ids, of shape {list(ids.shape)}, hold no token; "
            "start from one, such as the id of <|endoftext|>"
        )
    config = params.get("config") if isinstance(params, Mapping) else None
    limit = getattr(config, "n_positions", None)
    length = int(counts.max()) if counts.numel() else 0
    if limit is not None and length + max_new_tokens > limit:
        raise ValueError(
            f"a prompt of {length} tokens and max_new_tokens={max_new_tokens} make "
            f"{length + max_new_tokens}, more than n_positions={limit}: "
            f"ask for at most {max(limit - length, 0)}, or shorten the prompt"
        )
    if (known := num_embeddings(params)) is not None:
        check_range((ids if mask is None else ids[mask != 0]).cpu(), known)


def num_embeddings(params: Tree) -> int | None:
    """Return the number of token embeddings: those of added special tokens, too."""
    if not isinstance(params, Mapping):
        return None
    embed = params.get("embed")
    table = embed.get("token") if isinstance(embed, Mapping) else None
    if isinstance(table, Tensor) and table.ndim > 1:
        return table.shape[-2]
    return getattr(params.get("config"), "vocab_size", None)


def whole(number: Any, name: str) -> int:
    """Return an integer of any type (numpy's, a tensor of one element) as an int.

    Raises:
        TypeError: it is not an integer; names the argument.

    >>> whole(torch.tensor(3), "eos")
    3
    """
    try:
        return operator.index(number)
    except TypeError:
        hint = ": tokenizer.tokens_to_ids gives that of a token" if isinstance(number, str) else ""
        raise TypeError(f"{name} must be a whole number, got {number!r:.60}{hint}") from None


def eos_ids(eos: Any, device: torch.device | str) -> Tensor | None:
    """Return the eos ids as a tensor [E]; None where there are none.

    Args:
        eos: an integer or several, of any type: Python's, numpy's, a tensor.
        device: of the result.

    Raises:
        TypeError: something else.

    >>> eos_ids(torch.tensor([3, 5]), "cpu")
    tensor([3, 5])
    """
    if eos is None:
        return None
    if isinstance(eos, str) or not isinstance(eos, Iterable) or getattr(eos, "ndim", 1) == 0:
        eos = (eos,)
    ids = [whole(token_id, "eos") for token_id in eos]
    return torch.tensor(ids, device=device) if ids else None


def pad_id(eos_tokens: Tensor | None, pad: SupportsIndex | None) -> int:
    """Return the id that fills a row after eos: `pad`, else the first eos id, else 0."""
    if pad is not None:
        return whole(pad, "pad")
    return 0 if eos_tokens is None else int(eos_tokens[0])


def check_highest(highest: Tensor, step: int) -> None:
    """Raise ValueError if logits are no distribution, as those of a diverged model.

    Reads values.

    Args:
        highest: [*lead], the highest logit of each row: that of NaN is NaN.
        step: how many tokens were made before.

    Raises:
        ValueError: a row holds NaN or infinity, or excludes every token.

    >>> check_highest(torch.tensor([[0.0, float("nan")]]).amax(-1), 3)
    Traceback (most recent call last):
    ValueError: the logits of new token 3 are no distribution in rows [0], where they hold NaN: ...
    """
    invalid = ~highest.isfinite()
    if not bool(invalid.any()):
        return
    rows = invalid.flatten().nonzero().flatten().tolist()
    first = float(highest[invalid][0])
    what = "hold NaN" if first != first else "hold infinity" if first > 0 else "are all -inf"
    raise ValueError(
        f"the logits of new token {step} are no distribution in rows "
        f"{rows}, where they {what}: look for the cause in "
        "params (tree.named_leaves) and in what changes the logits; a model that overflows in "
        "float16 needs bfloat16 or float32 (tree.cast)"
    )


def call(
    apply: Apply, params: Tree, ids: Tensor, cache: Any, mask: Tensor | None
) -> tuple[Tensor, Any]:
    """Call the model, with a mask only where there is one: not every model takes padding.

    Args:
        apply: the model.
        params: its parameters.
        ids: int64 [*lead, T].
        cache: of the tokens before.
        mask: [*lead, T], nonzero for real tokens.

    Raises:
        TypeError: there is a mask, and the model takes none.
    """
    if mask is None:
        return apply(params, ids, cache)
    parameters = signature(apply).parameters.values()
    if not any(p.name == "mask" or p.kind is Parameter.VAR_KEYWORD for p in parameters):
        raise TypeError(
            "mask says that some rows of ids are padded, and apply takes no mask (as "
            "Transformer-XL's): decode rows of one length together, or one prompt at a time"
        )
    return apply(params, ids, cache, mask=mask)


def sample_settings(
    temperature: float, top_k: int, top_p: float, min_p: float, typical: float
) -> dict[str, Any]:
    """Return the settings of `sample` by their names."""
    return {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "typical": typical,
    }  # fmt: skip
