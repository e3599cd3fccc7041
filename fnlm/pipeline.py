"""A model that continues texts, with its tokenizer: what a program that writes needs of any family.

GPT-2 begins a text with <|endoftext|> and ends it so; Transformer-XL begins each line with <eos>,
and a text has any number of lines; GPT only continues.
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

# The families that continue texts, and the token at the beginning of a text or line.
_BEGINNINGS = {"gpt": None, "gpt2": "<|endoftext|>", "transfo_xl": "<eos>"}


class Pipeline(NamedTuple):
    """A model and its tokenizer."""

    name: str  # of the family: "gpt", "gpt2" or "transfo_xl"
    family: ModuleType
    params: Tree
    tokenizer: Any
    begin: int | None  # id at the beginning of a text or line
    eos: int | None  # id after which a text is over

    def apply(
        self, params: Tree, ids: Tensor, cache: Any = None, **data: Any
    ) -> tuple[Tensor, Any]:
        """Score the tokens of the vocabulary: the family's `apply` without rows that only pad.

        A table of embeddings may have more rows than the vocabulary has tokens, and what they score
        must never be chosen.
        """
        logits, cache = self.family.apply(params, ids, cache, **data)
        return logits[..., : self.tokenizer.vocab_size], cache

    def encode(self, prompt: str) -> list[int]:
        """Return the ids of a prompt; of nothing, that of a beginning.

        Raises:
            ValueError: there is no prompt, and the vocabulary has no token that begins a text.
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
        """Yield the text of ids, as far as it is certain, up to the end."""
        ids = takewhile(lambda at: at != self.eos, map(int, tokens))
        if self.name != "transfo_xl":
            yield from self.tokenizer.decode_stream(ids)
            return
        for at in ids:
            yield "\n" if at == self.begin else f"{self.tokenizer.decode([at])} "


def load(name_or_path: str | Path, *, dtype: str = "float32") -> Pipeline:
    """Load a model that continues texts, of whichever family, laid out for decoding.

    Args:
        name_or_path: a directory, a file beside its vocabulary, a bundled model or a hub name.
        dtype: of the arithmetic, such as "float32" or "bfloat16".

    Raises:
        ValueError: the model is of another family, or has not as many words as its tokenizer.
        FileNotFoundError: no such model, or it has no vocabulary.

    >>> pipeline = load("tiny")
    >>> pipeline.name, "".join(pipeline.decode(pipeline.encode("The king")))
    ('gpt2', 'The king')
    """
    name = checkpoints.family_of(name_or_path)
    if name not in _BEGINNINGS:
        raise ValueError(f"{name_or_path} is a model of {name}, which does not continue texts")
    family = import_module(f"fnlm.{name}")
    path = Path(name_or_path)
    folder = path.parent if path.is_file() else name_or_path
    tokenizer = import_module(f"fnlm.tokenize.{name}").load(folder)
    params = family.load(name_or_path)
    words = getattr(params["config"], "n_token", 0) or len(params["embed"]["token"])
    padded = name != "transfo_xl"  # an adaptive softmax has no rows to spare
    checkpoints.check_vocabulary(name_or_path, tokenizer.vocab_size, words, padded=padded)
    token = _BEGINNINGS[name]
    known = token is not None and (name != "gpt2" or token in tokenizer.special)
    begin = tokenizer.tokens_to_ids([token])[0] if known else None
    params = for_decoding(cast(params, getattr(torch, dtype)))
    return Pipeline(name, family, params, tokenizer, begin, begin if name == "gpt2" else None)
