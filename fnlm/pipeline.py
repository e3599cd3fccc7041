"""A causal language model with its tokenizer: all that text generation needs, for any family.

Which token begins a text, ends one or ends a line is in the register, `fnlm.families`: GPT-2 begins
and ends a text with <|endoftext|>; Transformer-XL begins each line with <eos>, and a text has any
number of lines; GPT has no such token: it needs a prompt and ends nowhere.
"""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import checkpoints, families
from fnlm.families import Record
from fnlm.files import hub
from fnlm.files.hub import NameOrPath
from fnlm.params.layout import for_decoding
from fnlm.tree import Tree, cast

__all__ = ["Pipeline", "load"]


class Pipeline(NamedTuple):
    """A causal language model with its tokenizer."""

    record: Record  # of the family
    params: Tree
    tokenizer: Any
    begin: int | None  # id at the beginning of a text or line; None if the vocabulary has none
    eos: int | None  # end-of-sequence id; None if texts have no end

    @property
    def family(self) -> ModuleType:
        """The module of the family."""
        return self.record.module

    def apply(
        self, params: Tree, ids: Tensor, cache: Any = None, **data: Any
    ) -> tuple[Tensor, Any]:
        """Run the family's `apply` and return the logits of the tokenizer's vocabulary alone.

        An embedding may have more rows than the tokenizer has tokens (padding to a round number),
        and their logits must never be chosen.
        """
        logits, cache = self.family.apply(params, ids, cache, **data)
        return logits[..., : self.tokenizer.vocab_size], cache

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a prompt; of an empty one, `begin`.

        Raises:
            ValueError: the prompt is empty and the vocabulary has no token that begins a text.
        """
        if newline := self.record.newline:
            prompt = prompt.replace("\n", f" {newline} ")
        if ids := self.tokenizer.encode(prompt):
            return list(ids)
        if self.begin is None:
            token = self.record.begin or "token"
            raise ValueError(f"the vocabulary has no {token} to start from: give a prompt")
        return [self.begin]

    def decode(self, tokens: Iterable[Tensor | int]) -> Iterator[str]:
        """Yield the text of a stream of ids, up to `eos`, as soon as it is certain."""
        ids = takewhile(lambda token_id: token_id != self.eos, map(int, tokens))
        if self.record.newline is None:
            yield from self.tokenizer.decode_stream(ids)
            return
        for token_id in ids:
            yield "\n" if token_id == self.begin else f"{self.tokenizer.decode([token_id])} "


def load(name_or_path: NameOrPath, *, dtype: str | torch.dtype = "float32") -> Pipeline:
    """Load a causal language model of any family with its tokenizer, laid out for decoding.

    Args:
        name_or_path: a directory, a file beside its vocabulary, a bundled model, a hub name, or a
            `hub.Source`. Weights and vocabulary are of one directory, or of one commit on the hub.
        dtype: of the arithmetic, such as "float32", "bfloat16" or torch.bfloat16.

    Raises:
        ValueError: the model is not causal, or has not as many tokens as its tokenizer.
        FileNotFoundError: no such model, or it has no vocabulary.

    >>> pipeline = load("tiny")
    >>> pipeline.record.name, "".join(pipeline.decode(pipeline.encode("The king")))
    ('gpt2', 'The king')
    """
    kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
        raise ValueError(f"dtype={dtype!r} is no floating type: give 'float32' or 'bfloat16'")
    source = hub.locate(name_or_path)
    record = families.find(checkpoints.family_of(source))
    if not record.is_causal:
        raise ValueError(
            f"{source.weights}: {record.name} is not a causal language model: it cannot generate "
            f"text, as {', '.join(r.title for r in families.causal())} can"
        )
    tokenizer = record.tokenizer_module.load(source)
    params = record.module.load(source)
    checkpoints.check_vocabulary(
        str(source.weights.parent),
        tokenizer.vocab_size,
        getattr(params["config"], record.vocab_size),
        padded=record.may_pad,
    )
    params = for_decoding(cast(params, kind))
    begin, eos = (_id_of(token, tokenizer) for token in (record.begin, record.eos))
    return Pipeline(record, params, tokenizer, begin, eos)


def _id_of(token: str | None, tokenizer: Any) -> int | None:
    """Return the id of a token, or None if the vocabulary does not have it as a special one."""
    if token is None or token not in getattr(tokenizer, "special", (token,)):
        return None
    return int(tokenizer.tokens_to_ids([token])[0])
