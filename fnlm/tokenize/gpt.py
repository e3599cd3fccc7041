r"""GPT's tokenizer: lower-cased words, then byte-pair encoding of their characters.

- The words of a text depend on the `mode`, chosen once and saved with the tokenizer, and not on
  what is installed. "original" does what the model was trained with: ftfy's `fix_text`, spaCy's
  English words. "fallback" does what pytorch-pretrained-bert does without these two packages:
  BERT's basic words. Where the two differ, a model reads other ids than those it learned from.
- Encoding is total but lossy: text is cleaned and lower-cased, and decoding does not restore it;
  offsets refer to the original. Characters outside the vocabulary become `<unk>`.
- A special token in a text is ordinary text unless the caller allows it.
- Ids outside the vocabulary and unknown tokens are errors.

Sources: Radford et al. 2018; openai/finetune-transformer-lm, `text_utils.py`;
pytorch-pretrained-bert 0.6.2, `tokenization_openai.py`. Deviation: that one asks which packages can
be imported, and cuts special tokens in a text into pieces.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fnlm import _former
from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _batch, _bpe, _files, _gpt_files, _settings
from fnlm.tokenize._added import simplest
from fnlm.tokenize._byte_level import Offsets
from fnlm.tokenize._gpt_files import END_OF_WORD
from fnlm.tokenize._gpt_words import WAYS, Mode, normalized, offsets_in, traced
from fnlm.tokenize._tokens import Special, SpecialTokens, each_id, ids_of, with_ids
from fnlm.tokenize.added import Added

UNKNOWN = "<unk>"

# Replacements (old, new) by which `decode` undoes the cutting of words, in this order.
_CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
    (" n't", "n't"), (" 'm", "'m"), (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"),
    (" 're", "'re"),
)  # fmt: skip


class _Tables(NamedTuple):
    """Look-up tables of a tokenizer, made once from its vocabulary, merges and mode."""

    ids: dict[str, int]  # token -> id
    symbols: dict[str, int]  # those of the vocabulary alone
    tokens: tuple[str, ...]  # id -> token
    added: tuple[Added, ...]  # in the order of their ids
    special: SpecialTokens  # those that are no symbol and that no merge makes
    rules: _bpe.Merges
    unknown: int
    chunks: _bpe.WordCache  # chunk of a text -> ids

    def encode_word(self, word: str) -> list[int]:
        symbols = [*word[:-1], word[-1] + END_OF_WORD]
        return _bpe.merge(
            [self.symbols.get(symbol, self.unknown) for symbol in symbols], self.rules
        )


def _long(token: str) -> bool:
    return len(token.removesuffix(END_OF_WORD)) != 1


@_former.explained
@dataclass(frozen=True, slots=True, repr=False)
class Tokenizer:
    """Text to ids and back: a value; only its cache of words, bounded in size, ever changes.

    Args:
        vocab: token -> id, ids 0 to n - 1, with "<unk>" among the tokens.
        merges: pairs of tokens that join, the first rule first; the last symbol of a word ends in
            "</w>".
        mode: "original" or "fallback": how the words of a text are found.
        added: special tokens, with the ids that follow. `Added` are those that count in some places
            only; they may also be of `vocab`.
        unknown: the token that stands for unknown characters, of `vocab` or `added`.

    Raises:
        ValueError: `unknown` is missing, ids have gaps, merges do not fit, a token is there twice,
            or there is no such mode.

    Example:
        >>> vocab = {"<unk>": 0, "l": 1, "o": 2, "w</w>": 3, "lo": 4, "low</w>": 5, ".</w>": 6}
        >>> tokenizer = Tokenizer(vocab, [("l", "o"), ("lo", "w</w>")])
        >>> tokenizer.encode("Low. Lo")
        [5, 6, 1, 0]
        >>> tokenizer.decode([5, 6])
        'low.'
    """

    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    mode: Mode = "original"
    added: Sequence[str | Added] = ()
    unknown: str = UNKNOWN
    _tables: _Tables = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if self.mode not in WAYS:
            raise ValueError(f"mode={self.mode!r} must be one of {[*WAYS]}")
        object.__setattr__(self, "vocab", MappingProxyType(dict(self.vocab)))
        object.__setattr__(self, "merges", tuple(self.merges))
        tables = self._make_tables()
        object.__setattr__(self, "added", tuple(map(simplest, tables.added)))
        object.__setattr__(self, "_tables", tables)

    def _make_tables(self) -> _Tables:
        vocab = dict(self.vocab)
        rules = _bpe.merges(self.merges, vocab)
        ids, added = with_ids(vocab, self.added)
        if self.unknown not in ids:
            raise ValueError(
                f"vocab lacks {self.unknown!r}, which stands for unknown characters; add it"
            )
        made = set(rules.made)
        way = WAYS[self.mode]

        def encode_chunk(chunk: str) -> tuple[int, ...]:
            return tuple(chain.from_iterable(map(tables.encode_word, way.words(chunk))))

        tokens = tuple(sorted(ids, key=ids.__getitem__))
        new = ids.keys() - vocab.keys()
        special = {t: ids[t] for t in tokens if t in new or (ids[t] not in made and _long(t))}
        for token in added:
            if token.content not in special:
                raise ValueError(f"added holds {token.content!r}, an ordinary token of vocab")
        if self.unknown not in special:
            raise ValueError(f"unknown={self.unknown!r} is an ordinary token of vocab")
        special_tokens = SpecialTokens(special, added, normalized)
        chunks = _bpe.WordCache(encode_chunk)
        tables = _Tables(
            ids, vocab, tokens, tuple(added), special_tokens, rules, ids[self.unknown], chunks
        )
        return tables

    def __hash__(self) -> int:
        return hash((len(self.vocab), len(self.merges), self.mode, self.added))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (dict(self.vocab), self.merges, self.mode, self.added, self.unknown)

    def __repr__(self) -> str:
        return (
            f"gpt.Tokenizer(vocab_size={self.vocab_size}, mode={self.mode!r}, "
            f"special={[*self.special]})"
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included."""
        return len(self._tables.tokens)

    @property
    def special(self) -> tuple[str, ...]:
        """The special tokens, in order of their ids; "<unk>" is one of them."""
        return tuple(self._tables.special.ids)

    def encode(self, text: str, *, allowed_special: Special = ()) -> list[int]:
        """Return the ids of a text.

        Args:
            text: any string.
            allowed_special: the special tokens that `text` may hold as such, or "all"; the others
                are ordinary text. Allow none in text you did not write.

        Raises:
            TypeError: `text` is not a string.
            ValueError: `allowed_special` names what is no special token.

        Example:
            >>> tokenizer = Tokenizer({"<unk>": 0, "a</w>": 1}, [], added=["_end_"])
            >>> tokenizer.encode("A a_end_", allowed_special={"_end_"})
            [1, 1, 2]
        """
        if not isinstance(text, str):
            raise TypeError(
                f"text is of type {type(text).__name__}, not str; decode bytes first, and give "
                "several texts to encode_batch"
            )
        ids: list[int] = []
        chunks, held = WAYS[self.mode].chunks, self._tables.chunks
        for part, special in self._tables.special.split(text, allowed_special):
            if special is None:
                ids += chain.from_iterable(map(held.__getitem__, chunks(part)))
            else:
                ids.append(special)
        return ids

    def encode_batch(
        self, texts: Iterable[str], *, allowed_special: Special = (), workers: int = 1
    ) -> list[list[int]]:
        """Return the ids of each text, as `encode` gives them.

        Args:
            texts: any number of strings.
            allowed_special: as for `encode`.
            workers: processes to share the work, this one among them. Each other starts a fresh
                interpreter and an empty cache, so more than one pays only for much text.

        Raises:
            ValueError: `texts` is one string, `workers` is below 1, or as for `encode`.

        Example:
            >>> Tokenizer({"<unk>": 0, "a</w>": 1}, []).encode_batch(["a", "b A"])
            [[1], [0, 1]]
        """
        if not isinstance(allowed_special, str):
            allowed_special = frozenset(allowed_special)
        encode = partial(self.encode, allowed_special=allowed_special)
        return _batch.encode_all(encode, texts, workers)

    def encode_with_offsets(
        self, text: str, *, allowed_special: Special = ()
    ) -> tuple[list[int], Offsets]:
        """Return the ids of a text and the offsets of their tokens.

        Args:
            text: any string.
            allowed_special: as for `encode`.

        Returns:
            ids: those of `encode`.
            offsets: one `(start, end)` a token, in characters of `text` as it was given, before it
                was cleaned and lower-cased. Tokens that came from one character all have its place.

        Example:
            >>> tokenizer = Tokenizer({"<unk>": 0, "a</w>": 1, "&</w>": 2}, [])
            >>> tokenizer.encode_with_offsets("A  &amp; b")
            ([1, 2, 0], [(0, 1), (3, 8), (9, 10)])
        """
        tables, way = self._tables, WAYS[self.mode]
        ids: list[int] = []
        offsets: Offsets = []
        start = 0  # of the part
        for part, special in self._tables.special.split(text, allowed_special):
            if special is None:
                for word in traced(part, way):
                    word_ids = tables.encode_word(word.text)
                    ids += word_ids
                    for begin, end in offsets_in(word, [self._size(token) for token in word_ids]):
                        offsets.append((start + begin, start + end))
            else:
                ids.append(special)
                offsets.append((start, start + len(part)))
            start += len(part)
        return ids, offsets

    def _size(self, token_id: int) -> int:
        """Return how many characters of a word a token stands for."""
        unknown = token_id == self._tables.unknown
        return 1 if unknown else len(self._tables.tokens[token_id].removesuffix(END_OF_WORD))

    def tokenize(self, text: str, *, allowed_special: Special = ()) -> list[str]:
        """Return the tokens of a text; "</w>" marks the end of a word.

        Example:
            >>> Tokenizer({"<unk>": 0, "a": 1, "b</w>": 2}, []).tokenize("Ab")
            ['a', 'b</w>']
        """
        return self.ids_to_tokens(self.encode(text, allowed_special=allowed_special))

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each token; a token that is not in the vocabulary is an error.

        Example:
            >>> Tokenizer({"<unk>": 0, "a</w>": 1}, []).tokens_to_ids(["a</w>", "<unk>"])
            [1, 0]
        """
        return ids_of(tokens, self._tables.ids)

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the token of each id.

        Example:
            >>> Tokenizer({"<unk>": 0, "a</w>": 1}, []).ids_to_tokens([1, 0])
            ['a</w>', '<unk>']
        """
        return [self._tables.tokens[i] for i in each_id(ids, self.vocab_size)]

    def decode(
        self, ids: Iterable[int], *, skip_special: bool = False, clean_up: bool = True
    ) -> str:
        """Return the text of ids: words between spaces.

        Args:
            ids: integers from 0 to `vocab_size - 1`: a list, or an array of one axis.
            skip_special: whether added special tokens are left out.
            clean_up: whether marks and contractions move to the word before them, and "<unk>" is
                left out, as pytorch-pretrained-bert does it.

        Raises:
            ValueError: an id is out of range.

        Example:
            >>> tokenizer = Tokenizer({"<unk>": 0, "a</w>": 1, ",</w>": 2}, [])
            >>> tokenizer.decode([1, 2, 1]), tokenizer.decode([1, 2, 1], clean_up=False)
            ('a, a', 'a , a')
        """
        tokens = self.ids_to_tokens(ids)
        if skip_special:
            added = {token.content for token in self._tables.added}
            tokens = [token for token in tokens if token not in added]
        text = "".join(tokens).replace(END_OF_WORD, " ").strip()
        for old, new in ((self.unknown, ""), *_CLEAN_UP) if clean_up else ():
            text = text.replace(old, new)
        return text

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids as they come: together, `decode(ids, clean_up=False)`.

        Example:
            >>> list(Tokenizer({"<unk>": 0, "a</w>": 1, "b": 2}, []).decode_stream([1, 2, 1]))
            ['a', ' b', 'a']
        """
        begun, space = False, ""
        for token_id in ids:
            text = space + self.ids_to_tokens([token_id])[0].replace(END_OF_WORD, " ")
            if not begun:
                text = text.lstrip()
            shown = text.rstrip()
            space = text[len(shown) :]
            if shown:
                begun = True
                yield shown

    def extend(self, tokens: Sequence[str]) -> "Tokenizer":
        """Return a tokenizer with more special tokens, their ids following the last one.

        Example:
            >>> tokenizer = Tokenizer({"<unk>": 0, "a</w>": 1}, []).extend(["_start_", "_end_"])
            >>> tokenizer.tokens_to_ids(["_start_", "_end_"])
            [2, 3]
        """
        if isinstance(tokens, str):
            raise ValueError(f"tokens={tokens!r} is one string; give a list of tokens")
        added = (*self.added, *tokens)
        return Tokenizer(self.vocab, self.merges, self.mode, added, self.unknown)

    def save(self, directory: str | Path) -> None:
        """Write vocab.json, merges.txt, the mode and, if tokens were added, these.

        They go into tokenizer_config.json, added_tokens.json and special_tokens.txt, the last for
        pytorch-pretrained-bert, which knows no modes. What an earlier tokenizer left in the
        directory goes; a process that is killed leaves all of the former files or all of the new.

        Raises:
            ValueError: a merge cannot be a line of a file.
            OSError: the disk is full or can't be written; the former files are as they were.
        """
        tables = self._tables
        settings: dict[str, Any] = {"tokenizer_class": "OpenAIGPTTokenizer", "mode": self.mode}
        if self.unknown != UNKNOWN:
            settings["unk_token"] = self.unknown
        contents = {
            "vocab.json": _files.write_vocab(self.vocab),
            "merges.txt": _files.write_merges(self.merges),
        }
        if new := [token.content for token in tables.added if token.content not in self.vocab]:
            contents[_files.ADDED] = _files.write_vocab({token: tables.ids[token] for token in new})
            if lines := _files.write_lines(new):
                contents[_files.ADDED_LINES] = lines
        unmade = map(Added, _files.unmade(self.vocab, self.merges, END_OF_WORD))
        if rows := _settings.write_rows([*unmade, *tables.added], tables.ids):
            settings[_settings.ROWS] = rows
        contents[_files.CONFIG] = json.dumps(settings, indent=2) + "\n"
        _files.save(directory, contents)


@_former.answering
def load(name_or_path: NameOrPath, *, mode: Mode | None = None) -> Tokenizer:
    """Read a tokenizer from disk or, by its name, from the Hugging Face hub.

    Args:
        name_or_path: a directory (or the file in it that is meant) that holds tokenizer.json; or
            else vocab.json and merges.txt, or OpenAI's encoder_bpe_40000.json and vocab_40000.bpe;
            and perhaps lists of added tokens and settings; or the name of a model on the hub; or a
            `Source`, whose vocabulary is then read.
        mode: "original" or "fallback"; None for the one that was saved, "original" if none was.

    Raises:
        FileNotFoundError: the files are not there; the message says where they were looked for.
        ValueError: a file is not what its name says, the files do not fit each other, there is no
            such mode, or a setting that is not supported here.

    Example:
        >>> load("./no/such/directory")
        Traceback (most recent call last):
        ...
        FileNotFoundError: './no/such/directory' is no directory and no name of a model ...
    """
    files = _gpt_files.read(name_or_path)
    return Tokenizer(files.vocab, files.merges, mode or files.mode, files.added, files.unknown)
