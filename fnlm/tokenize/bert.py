"""BERT's tokenizers: basic words, then WordPiece; ids do not depend on the version of Python.

- There is no single BERT tokenizer. The `profile` is the published one whose ids are reproduced
  exactly: "ppb-0.6.2" (pytorch-pretrained-BERT), "google-2018-11", "google-2019-03"
  (google-research/bert at 332a687 and d66a146) and "transformers" (the `tokenizers` library).
- Encoding is total but lossy: decoding does not restore the text; offsets refer to the original.
- Surrogates are not text: a pair is joined into its character, a lone one is dropped.
- Ids outside the vocabulary and unknown tokens are errors.

Source: `tokenization.py` of google-research/bert. Deviation: the originals ask the Python that runs
for the categories of characters, which change with its version; here they are Unicode 14.0.0's.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fnlm import _former
from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _added, _batch, _bert_files, _bert_tables, wordpiece
from fnlm.tokenize._bert_words import CARE, DEFAULT, PROFILES, SPECIAL, Special
from fnlm.tokenize._byte_level import Offsets, with_origin
from fnlm.tokenize._tokens import each_id
from fnlm.tokenize.added import Added


@_former.explained
@dataclass(frozen=True, slots=True, repr=False)
class Tokenizer:
    """Text to ids: a value; only its caches of words, bounded in size, ever change.

    Args:
        vocab: token -> id, ids 0 to n - 1, with "[UNK]" among the tokens.
        lower_case: whether letters are lower-cased.
        profile: the published tokenizer to follow, a key of `PROFILES`.
        never_split: tokens that a text may hold as such; None for those of the profile. They are
            whole words between spaces; under "transformers", wherever they are.
        strip_accents: whether accents are taken away; None for as `lower_case`.
        tokenize_chinese_chars: whether each ideograph is a word by itself.
        added: further tokens, with the ids that follow, or tokens of `vocab`, that are looked for
            in a text before it is cut into words, under every profile; `Added` are those that
            count in some places only.
        special: the names of the special tokens, where they are not "[UNK]", "[SEP]" and so on.

    Raises:
        ValueError: "[UNK]" is missing, ids have gaps, or there is no such profile.

    Example:
        >>> vocab = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cafe", "##s", "!"]
        >>> tokenizer = Tokenizer({token: i for i, token in enumerate(vocab)})
        >>> tokenizer.tokenize("The Cafés [MASK] !")
        ['the', 'cafe', '##s', '[MASK]', '!']
    """

    vocab: Mapping[str, int]
    lower_case: bool = True
    profile: str = DEFAULT
    never_split: tuple[str, ...] | None = None
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True
    added: Sequence[str | Added] = ()
    special: Special = SPECIAL
    _tables: _bert_tables.Tables = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"profile={self.profile!r} must be one of {[*PROFILES]}")
        for name, value in (("never_split", self.never_split), ("added", self.added)):
            if isinstance(value, str):
                raise ValueError(f"{name}={value!r} is one string; give a tuple")
        never_split = self.never_split
        if never_split is None:
            never_split = self.special if PROFILES[self.profile].never_split else ()
        strip = self.lower_case if self.strip_accents is None else self.strip_accents
        case = (self.lower_case, strip, self.tokenize_chinese_chars)
        vocab, never_split = dict(self.vocab), tuple(never_split)
        tables = _bert_tables.make_tables(
            vocab, self.profile, case, never_split, self.added, self.special
        )
        object.__setattr__(self, "vocab", MappingProxyType(vocab))
        object.__setattr__(self, "never_split", never_split)
        object.__setattr__(self, "added", tuple(map(_added.simplest, tables.added)))
        object.__setattr__(self, "special", Special(*self.special))
        object.__setattr__(self, "_tables", tables)

    def __hash__(self) -> int:
        return hash((len(self.vocab), self.lower_case, self.profile, self.never_split))

    def __reduce__(self) -> tuple[Any, ...]:
        settings = (self.lower_case, self.profile, self.never_split, self.strip_accents)
        tokens = (self.tokenize_chinese_chars, self.added, self.special)
        return Tokenizer, (dict(self.vocab), *settings, *tokens)

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
            workers: processes to share the work, this one among them. Each other starts a fresh
                interpreter and an empty cache, so more than one pays only for much text.

        Raises:
            ValueError: `texts` is one string, or `workers` is below 1.

        Example:
            >>> Tokenizer({"[UNK]": 0, "low": 1}).encode_batch(["low", "Low slow"])
            [[1], [1, 0]]
        """
        return _batch.encode_all(self.encode, texts, workers)

    def encode_with_offsets(self, text: str) -> tuple[list[int], Offsets]:
        """Return the ids of a text and the offsets of their tokens.

        Args:
            text: any string.

        Returns:
            ids: those of `encode`.
            offsets: one `(start, end)` a token, in characters of `text` as it was given, before
                it was cleaned and lower-cased. An unknown word has the offsets of the whole word;
                an accent belongs to the letter before it, also where it is taken away.

        Example:
            >>> tokenizer = Tokenizer({"[UNK]": 0, "cafe": 1, "##s": 2})
            >>> tokenizer.encode_with_offsets("Cafés  élan")
            ([1, 2, 0], [(0, 4), (4, 5), (7, 11)])
        """
        _check_text(text)
        clean, origin = with_origin(text)
        ids, offsets = _bert_tables.encode_with_offsets(clean, self._tables)
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
        cls, sep = self.tokens_to_ids([self.special.cls, self.special.sep])
        ids = [cls, *first, sep]
        token_types = [0] * len(ids)
        if second is not None:
            ids += *second, sep
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
        tokens = self._tables.tokens
        return [tokens[i] for i in each_id(ids, len(tokens))]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids: words with a space between any two, as they were cleaned.

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

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids as they come: together, `decode(ids)`.

        Example:
            >>> tokenizer = Tokenizer({"[UNK]": 0, "do": 1, "##ing": 2})
            >>> list(tokenizer.decode_stream([1, 2, 1]))
            ['do', 'ing', ' do']
        """
        for number, token_id in enumerate(ids):
            (token,) = self.ids_to_tokens([token_id])
            spaced = f" {token}" if number else token
            if text := spaced.replace(f" {wordpiece.CONTINUED}", ""):
                yield text

    def extend(self, tokens: Sequence[str]) -> "Tokenizer":
        """Return a tokenizer with more added tokens, their ids following the last one.

        Raises:
            ValueError: `tokens` is one string, or a token is there already, or twice.

        Example:
            >>> tokenizer = Tokenizer({"[UNK]": 0, "low": 1}).extend(["[name]"])
            >>> tokenizer.encode("low [name]")
            [1, 2]
        """
        new = set(tokens)
        if isinstance(tokens, str) or len(new) < len(tokens) or new & self._tables.ids.keys():
            raise ValueError(f"tokens={tokens!r} must be a list of tokens, each of them a new one")
        return replace(self, added=(*self.added, *tokens))

    def save(self, directory: str | Path) -> None:
        """Write vocab.txt and tokenizer_config.json, which `load` and `transformers` read.

        What an earlier tokenizer left in the directory goes; a process that is killed leaves all
        of the former files or all of the new ones.

        Raises:
            ValueError: a token cannot be a line of a file.
            OSError: the disk is full or can't be written; the former files are as they were.
        """
        _bert_files.write(self, directory)


@_former.answering
def load(
    name_or_path: NameOrPath, *, lower_case: bool | None = None, profile: str | None = None
) -> Tokenizer:
    """Read a tokenizer from disk or, by its name, from the Hugging Face hub.

    Args:
        name_or_path: a vocabulary file (one token a line, or a tokenizer.json), or a directory that
            holds one, and perhaps settings beside it; or the name of a model on the hub; or a
            `Source`, whose vocabulary is then read.
        lower_case: whether letters are lower-cased. None: as in the saved settings; or else if no
            token has a capital letter.
        profile: the published tokenizer to follow. None: the saved one, or else "ppb-0.6.2".

    Raises:
        FileNotFoundError: there is no vocabulary; the message says where it was looked for.
        ValueError: a file is not what its name says, or has a setting that is not supported here;
            or the vocabulary has no "[UNK]"; or too few tokens with a capital to tell the case.

    Example:
        >>> load("./no/such/directory")
        Traceback (most recent call last):
        ...
        FileNotFoundError: './no/such/directory' is no directory and no name of a model ...
    """
    vocab, settings = _bert_files.read(name_or_path, lower_case, profile)
    return Tokenizer(vocab, **settings)


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise TypeError(
            f"text is of type {type(text).__name__}, not str; decode bytes first, and give "
            "several texts to encode_batch"
        )
