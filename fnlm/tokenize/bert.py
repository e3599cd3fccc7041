"""BERT's tokenizers: words, then WordPiece; ids that do not depend on the Python that runs.

- There is no single BERT tokenizer. A `profile` says which published one is meant, and its ids are
  reproduced exactly: "ppb-0.6.2" (pytorch-pretrained-BERT), "google-2018-11", "google-2019-03"
  (google-research/bert at 332a687 and d66a146) and "transformers" (the `tokenizers` library).
- Every string has ids. Text is cleaned, so it does not come back; offsets say where it was.
- Surrogates are not text: a pair is joined into its character, a lone one is dropped.
- Ids outside the vocabulary and unknown tokens are errors.

Source: `tokenization.py` of google-research/bert. Deviation: the originals ask the Python that runs
for the categories of characters, which change with its version; here they are Unicode 14.0.0's.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import index
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fnlm.tokenize import _batch, _bert_files, wordpiece
from fnlm.tokenize._bert_words import (
    CARE,
    DEFAULT,
    PROFILES,
    SPECIAL,
    Spacing,
    chunk_pattern,
    make_rules,
    words,
)
from fnlm.tokenize._byte_level import Offsets, cut, places
from fnlm.tokenize.bpe import WordCache


class _Tables(NamedTuple):
    """What a tokenizer looks up, made once from its vocabulary and settings."""

    ids: dict[str, int]  # token -> id
    tokens: tuple[str, ...]  # id -> token
    anywhere: tuple[str, ...]  # tokens that are cut out of the text before all else
    spacing: Spacing
    guards: tuple[str, ...]  # what is in a spaced text if a token that is never split was in it
    words: WordCache  # word -> ids
    chunks: WordCache  # match of `chunk` -> id, start and end of each token in it
    chunk: re.Pattern[str]


@dataclass(frozen=True, slots=True, repr=False)
class Tokenizer:
    """Text to ids: a value; only its caches of words, bounded in size, ever change.

    Args:
        vocab: token -> id, ids 0 to n - 1, with "[UNK]" among the tokens.
        lower_case: whether letters are lower-cased.
        profile: which published tokenizer to follow, a key of `PROFILES`.
        never_split: tokens that a text may hold as such; None for those of the profile. They are
            whole words between spaces; under "transformers", wherever they are.
        strip_accents: whether accents are taken away; None for as `lower_case`.
        tokenize_chinese_chars: whether each ideograph is a word by itself.

    Raises:
        ValueError: "[UNK]" is missing, ids have gaps, or there is no such profile.

    Example:
        >>> vocab = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "##s", "!"]
        >>> tokenizer = Tokenizer({token: at for at, token in enumerate(vocab)})
        >>> tokenizer.tokenize("The Cafés [MASK] !")
        ['the', 'cafe', '##s', '[MASK]', '!']
    """

    vocab: Mapping[str, int]
    lower_case: bool = True
    profile: str = DEFAULT
    never_split: tuple[str, ...] | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    _tables: _Tables = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile={self.profile!r} must be one of {[*PROFILES]}")
        if isinstance(self.never_split, str):
            raise ValueError(f"never_split={self.never_split!r} is one string; give a tuple")
        tokens = (
            PROFILES[self.profile].never_split if self.never_split is None else self.never_split
        )
        object.__setattr__(self, "vocab", MappingProxyType(dict(self.vocab)))
        object.__setattr__(self, "never_split", tuple(tokens))
        object.__setattr__(self, "_tables", self._make_tables(tuple(tokens)))

    def _make_tables(self, never_split: tuple[str, ...]) -> _Tables:
        profile = PROFILES[self.profile]
        ids = dict(self.vocab)
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"vocab must give its {len(ids)} tokens the ids 0 to {len(ids) - 1}")
        strip = self.lower_case if self.strip_accents is None else self.strip_accents
        rules = make_rules(
            profile, self.lower_case, strip, self.tokenize_chinese_chars, never_split
        )
        known = wordpiece.pieces(ids, max_characters=profile.max_characters)
        spacing = Spacing(rules)

        def encode_word(word: str) -> tuple[int, ...]:
            return tuple([at for at, _, _ in wordpiece.split(word, known)])

        def encode_chunk(chunk: str) -> tuple[int, ...]:
            flat: list[int] = []
            for word, starts, ends in words(chunk, rules):
                for at, begin, end in wordpiece.split(word, known):
                    flat += at, min(starts[begin:end]), max(ends[begin:end])
            return tuple(flat)

        return _Tables(
            ids,
            tuple(sorted(ids, key=ids.__getitem__)),
            tuple(token for token in never_split if token in ids) if profile.anywhere else (),
            spacing,
            tuple(token.translate(spacing) for token in never_split),
            WordCache(encode_word),
            WordCache(encode_chunk),
            chunk_pattern(rules),
        )

    def __hash__(self) -> int:
        return hash((len(self.vocab), self.lower_case, self.profile, self.never_split))

    def __reduce__(self) -> tuple[Any, ...]:
        settings = (self.lower_case, self.profile, self.never_split, self.strip_accents)
        return Tokenizer, (dict(self.vocab), *settings, self.tokenize_chinese_chars)

    def __repr__(self) -> str:
        return (
            f"bert.Tokenizer(vocab_size={self.vocab_size}, lower_case={self.lower_case}, "
            f"profile={self.profile!r})"
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._tables.tokens)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without "[CLS]" and "[SEP]" around them; `join` adds those.

        Args:
            text: any string.

        Raises:
            TypeError: `text` is not a string.

        Example:
            >>> Tokenizer({"[UNK]": 0, "un": 1, "##able": 2, ".": 3}).encode("Unable. Able")
            [1, 2, 3, 0]
        """
        _check_text(text)
        tables = self._tables
        spaced = text.translate(tables.spacing)
        if CARE in spaced or any(guard in spaced for guard in tables.guards):
            return self.encode_with_offsets(text)[0]
        return list(chain.from_iterable(map(tables.words.__getitem__, spaced.split())))

    def encode_batch(self, texts: Iterable[str], *, workers: int = 1) -> list[list[int]]:
        """Return the ids of each text, as `encode` gives them.

        Args:
            texts: any number of strings.
            workers: processes to share the work. Each starts a fresh interpreter and an empty
                cache, so more than one pays only for much text; a script that asks for them must
                guard its own code by ``if __name__ == "__main__":``.

        Raises:
            ValueError: `texts` is one string, or `workers` is below 1.

        Example:
            >>> Tokenizer({"[UNK]": 0, "low": 1}).encode_batch(["low", "Low slow"])
            [[1], [1, 0]]
        """
        return _batch.encode_all(self.encode, texts, workers)

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Return the ids of a text and where in it each token stands.

        Args:
            text: any string.

        Returns:
            ids: those of `encode`.
            offsets: one `(start, end)` a token, in characters of `text` as it was given, before
                it was cleaned and lower-cased. An unknown word has the place of the whole word; an
                accent belongs to the letter before it, also where it is taken away.

        Example:
            >>> tokenizer = Tokenizer({"[UNK]": 0, "cafe": 1, "##s": 2})
            >>> tokenizer.encode_with_offsets("Cafés  élan")
            ([1, 2, 0], [(0, 4), (4, 5), (7, 11)])
        """
        _check_text(text)
        tables = self._tables
        clean, origin = places(text)
        ids: list[int] = []
        offsets: Offsets = []
        begin = 0
        for part in cut(clean, tables.anywhere):
            if part in tables.anywhere:
                ids.append(tables.ids[part])
                offsets.append((begin, begin + len(part)))
            else:
                for found in tables.chunk.finditer(part):
                    flat, at = tables.chunks[found[0]], begin + found.start()
                    for i in range(0, len(flat), 3):
                        ids.append(flat[i])
                        offsets.append((at + flat[i + 1], at + flat[i + 2]))
            begin += len(part)
        if origin is not None:
            offsets = [(origin[start], origin[end]) for start, end in offsets]
        return ids, offsets

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text.

        Example:
            >>> Tokenizer({"[UNK]": 0, "un": 1, "##able": 2}).tokenize("Unable able")
            ['un', '##able', '[UNK]']
        """
        return self.ids_to_tokens(self.encode(text))

    def join(
        self, first: Iterable[int], second: Iterable[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Return the ids of "[CLS] first [SEP]" or "[CLS] first [SEP] second [SEP]".

        Args:
            first: ids, of `encode`.
            second: the same, or None.

        Returns:
            ids: with the special tokens.
            token_types: 0 up to the first "[SEP]", 1 after it.

        Example:
            >>> tokenizer = Tokenizer({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3})
            >>> tokenizer.join([3, 3], [3])
            ([1, 3, 3, 2, 3, 2], [0, 0, 0, 0, 1, 1])
        """
        start, end = self.tokens_to_ids(["[CLS]", "[SEP]"])
        ids = [start, *first, end]
        token_types = [0] * len(ids)
        if second is not None:
            ids += *second, end
            token_types += [1] * (len(ids) - len(token_types))
        return ids, token_types

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each token; a token that is not in the vocabulary is an error.

        Example:
            >>> Tokenizer({"[UNK]": 0, "low": 1}).tokens_to_ids(["low", "[UNK]"])
            [1, 0]
        """
        if isinstance(tokens, str):
            raise ValueError(f"tokens={tokens!r} is one string; give a list of tokens, or encode")
        try:
            return [self._tables.ids[token] for token in tokens]
        except KeyError as error:
            raise ValueError(
                f"tokens holds {error.args[0]!r}, which is not among the {self.vocab_size} tokens "
                "of the vocabulary; encode turns any text into ids"
            ) from None

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the token of each id.

        Raises:
            ValueError: an id is out of range.

        Example:
            >>> Tokenizer({"[UNK]": 0, "low": 1}).ids_to_tokens([1, 0])
            ['low', '[UNK]']
        """
        tokens, found = self._tables.tokens, []
        for at in map(index, ids):
            if not 0 <= at < len(tokens):
                raise ValueError(f"ids holds {at}, outside 0 to {len(tokens) - 1} (vocab_size - 1)")
            found.append(tokens[at])
        return found

    def decode(self, ids: Iterable[int]) -> str:
        """Return the words of ids with a space between any two; nothing else is put right.

        Args:
            ids: integers from 0 to `vocab_size - 1`: a list, or an array of one axis.

        Raises:
            ValueError: an id is out of range.

        Example:
            >>> tokenizer = Tokenizer({"[UNK]": 0, "[SEP]": 1, "do": 2, "##ing": 3, "'": 4})
            >>> tokenizer.decode([2, 3, 4, 1])
            "doing ' [SEP]"
        """
        return " ".join(self.ids_to_tokens(ids)).replace(f" {wordpiece.CONTINUED}", "")

    def save(self, directory: str | Path) -> None:
        """Write vocab.txt and tokenizer_config.json, which `load` and `transformers` read.

        Raises:
            ValueError: a token cannot be a line of a file.
        """
        for token in self._tables.tokens:
            if token.strip(" \t") != token or not token or "\n" in token or "\r" in token:
                raise ValueError(f"vocab holds {token!r}, which cannot be a line of vocab.txt")
        ids, never_split = self._tables.ids, self.never_split or ()
        further = [token for token in never_split if token in ids and token not in SPECIAL]
        settings = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lower_case,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.tokenize_chinese_chars,
            "additional_special_tokens": further,
            "never_split": never_split,
            "profile": self.profile,
        }
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        contents = {
            "vocab.txt": "".join(f"{token}\n" for token in self._tables.tokens),
            _bert_files.CONFIG: json.dumps(settings, indent=2) + "\n",
        }
        for name, content in contents.items():
            (directory / name).write_text(content, encoding="utf-8", newline="\n")


def load(
    name_or_path: str | Path, lower_case: bool | None = None, profile: str | None = None
) -> Tokenizer:
    """Read a tokenizer from disk or, by its name, from the Hugging Face hub.

    Args:
        name_or_path: a vocabulary file (one token a line), or a directory that holds vocab.txt or
            tokenizer.json and perhaps tokenizer_config.json; or the name of a model on the hub.
        lower_case: whether letters are lower-cased. None: as the saved settings say; or else as
            the name says ("cased" or "uncased"); or else if no token has a capital letter.
        profile: which published tokenizer to follow. None: the saved one, or else "ppb-0.6.2".

    Raises:
        FileNotFoundError: there is no vocabulary; the message says where it was looked for.
        ValueError: a file is not what its name says, or the vocabulary has no "[UNK]".

    Example:
        >>> load("./no/such/directory")
        Traceback (most recent call last):
        ...
        FileNotFoundError: './no/such/directory' is no directory and no name of a model ...
    """
    vocab, settings = _bert_files.read(name_or_path, profile)
    if lower_case is not None:
        settings["lower_case"] = lower_case
    return Tokenizer(vocab, **settings)


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(
            f"text is of type {type(text).__name__}, not str; decode bytes first, and give "
            "several texts to encode_batch"
        )
