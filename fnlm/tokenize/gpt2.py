r"""GPT-2's tokenizer: byte-level byte-pair encoding. Lossless, total, exact.

- Encoding is total and lossless: ``decode(encode(text)) == text``. Text is never cleaned up.
- Surrogates are not text: a pair is joined into its character, a lone one becomes U+FFFD.
- A special token such as ``<|endoftext|>`` in a text is ordinary text unless the caller allows it.
- Ids outside the vocabulary and unknown tokens are errors.

Source: Radford et al. 2019, section 2.2, and the vocabulary files published with it. Deviation
from pytorch-pretrained-BERT 0.6.2: that one fails on characters above U+00FF, gives wrong ids from
U+0080 to U+00FF, and turns an unknown token into id 0.
"""

import codecs
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fnlm import _former
from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _batch, _bpe, _files, _gpt2_files, _settings
from fnlm.tokenize._added import simplest
from fnlm.tokenize._byte_level import (
    ALPHABET,
    GLUE,
    PATTERN,
    Offsets,
    Tables,
    make_tables,
    offsets_in,
    units_of,
    with_origin,
    words_of,
)
from fnlm.tokenize._tokens import Special, each_id, ids_of
from fnlm.tokenize.added import Added

END_OF_TEXT = "<|endoftext|>"


@_former.explained
@dataclass(frozen=True, slots=True, repr=False)
class Tokenizer:
    """Text to ids and back: a value; only its cache of words, bounded in size, ever changes.

    Args:
        vocab: token -> id, ids 0 to n - 1, in the printable form of the vocabulary files. A token
            that is neither a byte nor made by a merge is special, and stands for itself.
        merges: pairs of tokens that join, the first rule first.
        added: more special tokens, with the ids that follow. They are kept as they are, so they
            may hold spaces or any characters. `Added` are those that count in some places only;
            they may also be of `vocab`.
        add_prefix_space: whether text that does not begin with a space is given one, at its
            beginning and after each special token; it is then part of what `decode` returns.
        compiled: whether `tiktoken` may merge the bytes of words that are new, if it is installed
            and proved to give the same ids. `engine` says whether it does.

    Raises:
        ValueError: bytes are missing, ids have gaps, merges do not fit, or a token is there twice.

    Example:
        >>> tokenizer = train(["low lower lowest", "low slower"], 262)
        >>> tokenizer.encode("a lower low")
        [64, 259, 81, 220, 257]
        >>> tokenizer.decode([64, 259, 81, 220, 257])
        'a lower low'
    """

    vocab: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added: Sequence[str | Added] = ()
    add_prefix_space: bool = False
    compiled: bool = field(default=True, kw_only=True, compare=False)
    _tables: Tables = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab", MappingProxyType(dict(self.vocab)))
        object.__setattr__(self, "merges", tuple(self.merges))
        tables = make_tables(self.vocab, self.merges, self.added, self.compiled)
        object.__setattr__(self, "added", tuple(map(simplest, tables.added)))
        object.__setattr__(self, "_tables", tables)

    def __hash__(self) -> int:
        return hash((len(self.vocab), len(self.merges), self.added))

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = dict(self.vocab), self.merges, self.added, self.add_prefix_space
        return partial(Tokenizer, compiled=self.compiled), arguments

    def __repr__(self) -> str:
        return f"gpt2.Tokenizer(vocab_size={self.vocab_size}, special={[*self.special]})"

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the special ones included."""
        return len(self._tables.tokens)

    @property
    def special(self) -> tuple[str, ...]:
        """The special tokens, in order of their ids."""
        return tuple(self._tables.special.ids)

    @property
    def engine(self) -> str:
        """What merges the bytes of words that are new: "tiktoken" or "python"; ids are the same.

        The first 2,000 characters or so are merged in Python, as a prompt is done before `tiktoken`
        has its tables. It is "python" also without `tiktoken` 0.13 or later, with
        `compiled=False`, and for a vocabulary for which the two are not proved equal.

        Example:
            >>> tokenizer = train(["low lower lowest"], 260)
            >>> Tokenizer(tokenizer.vocab, tokenizer.merges, compiled=False).engine
            'python'
        """
        return self._tables.compiled.name

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
            >>> tokenizer = train(["low lower lowest"], 260)
            >>> tokenizer.encode("low<|endoftext|>", allowed_special={"<|endoftext|>"})
            [257, 259]
        """
        if not allowed_special:
            return self._encode(text)
        ids: list[int] = []
        for part, special in self._tables.special.split(with_origin(text)[0], allowed_special):
            ids += self._encode(part) if special is None else (special,)
        return ids

    def _encode(self, text: str) -> list[int]:
        """Return the ids of a text without special tokens."""
        if not isinstance(text, str):
            raise TypeError(
                f"text is of type {type(text).__name__}, not str; decode bytes first, and give "
                "several texts to encode_batch"
            )
        if self.add_prefix_space and text and not text.startswith(" "):
            text = f" {text}"
        tables = self._tables
        try:
            if GLUE in text:
                return list(chain.from_iterable(map(tables.words.__getitem__, words_of(text))))
            units = iter(units_of(text))
            ids = list(tables.first[next(units)])
            ids.extend(chain.from_iterable(map(tables.units.__getitem__, units)))
        except UnicodeEncodeError:  # surrogates
            return self._encode(_bpe.well_formed(text))
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
            >>> train(["low lower lowest"], 260).encode_batch(["low", "we"])
            [[257], [86, 68]]
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
            offsets: one `(start, end)` a token, in characters of `text`: `text[start:end]` holds
                the token's characters. Tokens that share one character (its bytes were split)
                all have that whole character's offsets. The slices leave nothing out.

        Example:
            >>> train(["low lower lowest"], 260).encode_with_offsets("low é")
            ([257, 220, 127, 102], [(0, 3), (3, 4), (4, 5), (4, 5)])
        """
        clean, origin = with_origin(text)
        ids: list[int] = []
        offsets: Offsets = []
        start = 0  # of the part
        for part, special in self._tables.special.split(clean, allowed_special):
            if special is None:
                spaced = self.add_prefix_space and part[0] != " "
                word_start, first = start - spaced, len(offsets)
                for word in words_of(f" {part}" if spaced else part):
                    word_ids = self._tables.words[word]
                    ids += word_ids
                    sizes = [len(self._tables.content[i]) for i in word_ids]
                    offsets += offsets_in(word, word_start, sizes)
                    word_start += len(word)
                if spaced:  # the space that was added is not in the text
                    offsets[first] = start, max(start, offsets[first][1])
                start += len(part)
            else:
                ids.append(special)
                offsets.append((start, start := start + len(part)))
        if origin is not None:
            offsets = [(origin[begin], origin[end]) for begin, end in offsets]
        return ids, offsets

    def tokenize(self, text: str, *, allowed_special: Special = ()) -> list[str]:
        """Return the tokens of a text, in the printable form of the vocabulary files.

        Example:
            >>> train(["low lower lowest"], 262).tokenize("a lower low")
            ['a', 'Ġlowe', 'r', 'Ġlow']
        """
        return self.ids_to_tokens(self.encode(text, allowed_special=allowed_special))

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each token; a token that is not in the vocabulary is an error.

        Example:
            >>> train(["low"], 260).tokens_to_ids(["Ġ", "<|endoftext|>"])
            [220, 256]
        """
        return ids_of(tokens, self._tables.ids)

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the token of each id, in the printable form of the vocabulary files.

        Example:
            >>> train(["low"], 260).ids_to_tokens([220, 256])
            ['Ġ', '<|endoftext|>']
        """
        return [self._tables.tokens[i] for i in each_id(ids, self.vocab_size)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        r"""Return the bytes that ids stand for; they need not be whole characters.

        Example:
            >>> train(["low"], 260).decode_bytes([127])
            b'\xc3'
        """
        content = self._tables.content
        try:
            ids = list(ids)
            return b"".join(map(content.__getitem__, ids))
        except (KeyError, TypeError):  # not ints: elements of tensors, or wrong
            return b"".join(content[i] for i in each_id(ids, self.vocab_size))

    def decode(self, ids: Iterable[int], *, errors: str = "replace") -> str:
        """Return the text of ids, exactly as it was encoded.

        Args:
            ids: integers from 0 to `vocab_size - 1`: a list, or an array of one axis.
            errors: what to do with bytes that are not UTF-8, as for `bytes.decode`.

        Raises:
            ValueError: an id is out of range.

        Example:
            >>> tokenizer = train(["low"], 260)
            >>> tokenizer.decode([127, 102]), tokenizer.decode([127])
            ('é', '�')
        """
        return self.decode_bytes(ids).decode("utf-8", errors)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids as they come, each character as soon as its bytes are complete.

        Example:
            >>> list(train(["low"], 260).decode_stream(iter([75, 127, 102])))
            ['l', 'é']
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in ids:
            if text := decoder.decode(self.decode_bytes([token_id])):
                yield text
        if text := decoder.decode(b"", final=True):
            yield text

    def extend(self, tokens: Sequence[str]) -> "Tokenizer":
        """Return a tokenizer with more special tokens, their ids following the last one.

        Example:
            >>> tokenizer = train(["low"], 260).extend(["<sep>", "two words"])
            >>> tokenizer.encode("l<sep>", allowed_special="all"), tokenizer.decode([258])
            ([75, 257], 'two words')
        """
        if isinstance(tokens, str):
            raise ValueError(f"tokens={tokens!r} is one string; give a list of tokens")
        added = (*self.added, *tokens)
        return Tokenizer(
            self.vocab, self.merges, added, self.add_prefix_space, compiled=self.compiled
        )

    def save(self, directory: str | Path) -> None:
        """Write vocab.json, merges.txt and, where need be, lists of added tokens and settings.

        These are the files that `load`, `transformers` and `tokenizers` read. What an earlier
        tokenizer left in the directory goes; a process that is killed leaves all of the former
        files or all of the new ones.

        Raises:
            ValueError: a merge cannot be a line of a file.
            OSError: the disk is full or can't be written; the former files are as they were.
        """
        tables = self._tables
        contents = {
            "vocab.json": _files.write_vocab(self.vocab),
            "merges.txt": _files.write_merges(self.merges),
        }
        if new := [token.content for token in tables.added if token.content not in self.vocab]:
            contents[_files.ADDED] = _files.write_vocab({token: tables.ids[token] for token in new})
        settings: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer"}
        if self.add_prefix_space:
            settings["add_prefix_space"] = True
        unmade = [*map(Added, _files.unmade(self.vocab, self.merges))]
        if unmade or not all(token.plain for token in tables.added):
            rows = [*unmade, *tables.added]
            settings[_settings.ROWS] = _settings.write_rows(rows, tables.ids)
        if len(settings) > 1:
            contents[_files.CONFIG] = json.dumps(settings, indent=2) + "\n"
        _files.save(directory, contents)


@_former.answering
def load(name_or_path: NameOrPath, *, compiled: bool = True) -> Tokenizer:
    """Read a tokenizer from disk or, by its name, from the Hugging Face hub.

    Args:
        name_or_path: a directory (or the file in it that is meant) that holds tokenizer.json; or
            else vocab.json and merges.txt, or encoder.json and vocab.bpe (their first names); and
            perhaps lists of added tokens and settings. Or the name of a model inside the package,
            or of one on the hub, which is asked only when its cache lacks the files; or a `Source`,
            whose vocabulary is then read.
        compiled: as for `Tokenizer`.

    Raises:
        FileNotFoundError: the files are not there; the message says where they were looked for.
        ValueError: a file is not what its name says, the files do not fit each other, or there is
            a setting that is not supported here.

    Example:
        >>> load("./no/such/directory")
        Traceback (most recent call last):
        ...
        FileNotFoundError: './no/such/directory' is no directory and no name of a model ...
    """
    return Tokenizer(*_gpt2_files.read(name_or_path), compiled=compiled)


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a tokenizer: the 256 bytes, merged tokens, and `<|endoftext|>` as the last id.

    Args:
        texts: any number of texts; `<|endoftext|>` in them divides documents.
        vocab_size: number of tokens, at least 257; fewer come out if no more pairs are seen twice.

    Raises:
        ValueError: `vocab_size` is below 257.

    Example:
        >>> train(["low lower lowest"], 260).tokenize("low lower")
        ['low', 'Ġlow', 'e', 'r']
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size={vocab_size} is below 257: 256 bytes and {END_OF_TEXT}")
    documents = (part for text in texts for part in text.split(END_OF_TEXT))
    pairs = [
        ("".join(ALPHABET[byte] for byte in left), "".join(ALPHABET[byte] for byte in right))
        for left, right in _bpe.train(documents, vocab_size - 1, PATTERN)
    ]
    tokens = [*sorted(ALPHABET), *dict.fromkeys(left + right for left, right in pairs)]
    return Tokenizer({token: i for i, token in enumerate([*tokens, END_OF_TEXT])}, pairs)
