"""A causal language model with its tokenizer: all that text generation needs, for any family.

GPT-2 begins and ends a text with <|endoftext|>. Transformer-XL begins each line with <eos>, and a
text has any number of lines. GPT has no such token: it needs a prompt and ends nowhere.
"""

from collections.abc import Iterable, Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import checkpoints
from fnlm.params.layout import for_decoding
from fnlm.tree import Tree, cast

__all__ = ["Pipeline", "load"]

# The causal families, and the token at the beginning of a text or line.
_BEGINNINGS = {"gpt": None, "gpt2": "<|endoftext|>", "transfo_xl": "<eos>"}


class Pipeline(NamedTuple):
    """A causal language model with its tokenizer."""

    name: str  # of the family: "gpt", "gpt2" or "transfo_xl"
    family: ModuleType
    params: Tree
    tokenizer: Any
    begin: int | None  # id at the beginning of a text or line; None if the vocabulary has none
    eos: int | None  # end-of-sequence id; None if texts have no end

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
        if self.name == "transfo_xl":
            prompt = prompt.replace("\n", f" {_BEGINNINGS[self.name]} ")
        if ids := self.tokenizer.encode(prompt):
            return list(ids)
        if self.begin is None:
            raise ValueError(
                f"the vocabulary has no {_BEGINNINGS[self.name] or 'token'} to start from: "
                "give a prompt"
            )
        return [self.begin]

    def decode(self, tokens: Iterable[Tensor | int]) -> Iterator[str]:
        """Yield the text of a stream of ids, up to `eos`, as soon as it is certain."""
        ids = takewhile(lambda token_id: token_id != self.eos, map(int, tokens))
        if self.name != "transfo_xl":
            yield from self.tokenizer.decode_stream(ids)
            return
        for token_id in ids:
            yield "\n" if token_id == self.begin else f"{self.tokenizer.decode([token_id])} "


def load(name_or_path: str | Path, *, dtype: str = "float32") -> Pipeline:
    """Load a causal language model of any family with its tokenizer, laid out for decoding.

    Args:
        name_or_path: a directory, a file beside its vocabulary, a bundled model or a hub name.
        dtype: of the arithmetic, such as "float32" or "bfloat16".

    Raises:
        ValueError: the model is not causal, or has not as many tokens as its tokenizer.
        FileNotFoundError: no such model, or it has no vocabulary.

    >>> pipeline = load("tiny")
    >>> pipeline.name, "".join(pipeline.decode(pipeline.encode("The king")))
    ('gpt2', 'The king')
    """
    name = checkpoints.family_of(name_or_path)
    if name not in _BEGINNINGS:
        raise ValueError(
            f"{name_or_path}: {name} is not a causal language model: it cannot generate text"
        )
    family = import_module(f"fnlm.{name}")
    path = Path(name_or_path)
    folder = path.parent if path.is_file() else name_or_path
    tokenizer = import_module(f"fnlm.tokenize.{name}").load(folder)
    params = family.load(name_or_path)
    num_tokens = getattr(params["config"], "n_token", 0) or len(params["embed"]["token"])
    padded = name != "transfo_xl"  # an adaptive softmax has no rows to spare
    checkpoints.check_vocabulary(name_or_path, tokenizer.vocab_size, num_tokens, padded=padded)
    token = _BEGINNINGS[name]
    has_begin = token is not None and (name != "gpt2" or token in tokenizer.special)
    begin = tokenizer.tokens_to_ids([token])[0] if has_begin else None
    params = for_decoding(cast(params, getattr(torch, dtype)))
    return Pipeline(name, family, params, tokenizer, begin, begin if name == "gpt2" else None)
