"""The methods that all families, and all tokenizers, have in common, as types for annotations.

A family is a module (`fnlm.gpt2`), which a type checker holds to a `Protocol` like any object.
Data are positional, since `vmap` maps no keywords, and may also be named; keys and switches are
keyword-only. A family may take more arguments than its protocol, each with a default.

>>> from fnlm import gpt2
>>> def count(family: Family) -> int:
...     return len(family.HEADS)
>>> count(gpt2)
1
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from fnlm.files.hub import NameOrPath
from fnlm.layers.kv_cache import FixedCache
from fnlm.layers.memory import Mems
from fnlm.params.config import BaseConfig
from fnlm.tree import Tree

__all__ = ["CacheFamily", "Family", "MemoryFamily", "Tokenizer"]

Params = dict[str, Any]
Offsets = list[tuple[int, int]]


class Family(Protocol):
    """A module of models: what all families have.

    `apply` returns what the family is for: BERT the hidden states and the pooled output, the
    others logits or log-probabilities. `hidden_states` returns the last hidden states [..., T, D],
    `layers` those after every block, a tuple of L. A causal family returns its next state, too.
    """

    @property
    def Config(self) -> type[BaseConfig]: ...  # noqa: N802
    @property
    def HEADS(self) -> tuple[str, ...]: ...  # noqa: N802
    def spec(self, config: Any, heads: Sequence[str] = ()) -> Tree: ...
    def init(self, config: Any, key: Tensor, heads: Sequence[str] = ()) -> Params: ...
    def load(
        self,
        name_or_path: NameOrPath,
        *,
        heads: Sequence[str] | None = None,
        key: Tensor | None = None,
        ignore: Sequence[str] = (),
    ) -> Params: ...
    def save(
        self, params: Params, directory: str | Path, *, dialect: str = "transformers"
    ) -> None: ...
    def apply(
        self,
        params: Params,
        ids: Tensor,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> Any: ...
    def hidden_states(
        self,
        params: Params,
        ids: Tensor,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> Any: ...
    def layers(
        self,
        params: Params,
        ids: Tensor,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> Any: ...


class CacheFamily(Family, Protocol):
    """A causal family whose state is a key-value cache; without one, a text begins."""

    def init_cache(
        self, params: Params, batch: int | Sequence[int], capacity: int
    ) -> FixedCache: ...
    def apply(
        self,
        params: Params,
        ids: Tensor,
        cache: Any = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> tuple[Tensor, Any]: ...
    def hidden_states(
        self,
        params: Params,
        ids: Tensor,
        cache: Any = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> tuple[Tensor, Any]: ...
    def layers(
        self,
        params: Params,
        ids: Tensor,
        cache: Any = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> tuple[tuple[Tensor, ...], Any]: ...


class MemoryFamily(Family, Protocol):
    """A causal family whose state is a memory of hidden states; without one, a text begins."""

    def init_mems(
        self, params: Params, batch: int | Sequence[int], *, empty: bool = False
    ) -> Mems: ...
    def apply(
        self,
        params: Params,
        ids: Tensor,
        mems: Mems | None = None,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> tuple[Tensor, Mems]: ...
    def hidden_states(
        self,
        params: Params,
        ids: Tensor,
        mems: Mems | None = None,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> tuple[Tensor, Mems]: ...
    def layers(
        self,
        params: Params,
        ids: Tensor,
        mems: Mems | None = None,
        *,
        key: Tensor | None = None,
        remat: bool = False,
    ) -> tuple[tuple[Tensor, ...], Mems]: ...


class Tokenizer(Protocol):
    """Text to ids and back: what all tokenizers have.

    `decode_stream` yields the text of ids as they come; `extend` returns a tokenizer with further
    tokens, whose ids follow the last one; `ids_to_tokens` and `tokens_to_ids` undo each other.
    """

    @property
    def vocab(self) -> Mapping[str, int]: ...
    @property
    def vocab_size(self) -> int: ...
    def tokenize(self, text: str) -> list[str]: ...
    def encode(self, text: str) -> list[int]: ...
    def encode_batch(self, texts: Iterable[str], *, workers: int = 1) -> list[list[int]]: ...
    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]: ...
    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]: ...
    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]: ...
    def extend(self, tokens: Sequence[str]) -> "Tokenizer": ...
    def save(self, directory: str | Path) -> None: ...
