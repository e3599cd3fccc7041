"""Transformer-XL's tokenizer: word level; the symbols are the words between spaces.

- A word that is not in the vocabulary becomes its unknown symbol; where it has none, an error.
- What ends a line is added only when asked for: "<eos>" after it, or "<S>" on both sides.
- Ids outside the vocabulary are errors.

Source: `vocabulary.py` of kimiyoung/transformer-xl, and pytorch-pretrained-BERT 0.6.2. Deviations:
an end of line that the vocabulary lacks is an error, where the latter takes the unknown symbol; and
`decode` puts the delimiter between symbols, where it always puts a space.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fnlm import _former
from fnlm.files.hub import NameOrPath
from fnlm.tokenize import _batch, _transfo_xl_files, words
from fnlm.tokenize._byte_level import Offsets
from fnlm.tokenize._tokens import each_id
from fnlm.tokenize._transfo_xl_files import Ids

END = "<eos>"
BOUNDARY = "<S>"
UNKNOWN = ("<unk>", "<UNK>")


@_former.explained
@dataclass(frozen=True, slots=True, repr=False)
class Tokenizer:
    """Text to ids and back: a value.

    Args:
        vocab: symbol -> id, ids 0 to n - 1.
        lower_case: whether text is lower-cased.
        delimiter: what is between symbols, as for `str.split`: None for any white space, "" for
            nothing, that is, each character is a symbol.
        unknown: the symbol for words that are not in `vocab`. None: "<unk>" or else "<UNK>", or
            else there is none.

    Raises:
        ValueError: ids have gaps, or `unknown` is not in `vocab`.

    Example:
        >>> tokenizer = train(["the cat sat on the mat"], special=["<eos>", "<unk>"])
        >>> tokenizer.encode("the dog sat", add_eos=True)
        [2, 1, 4, 0]
        >>> tokenizer.decode([2, 1, 4, 0])
        'the <unk> sat <eos>'
    """

    vocab: Mapping[str, int]
    lower_case: bool = False
    delimiter: str | None = None
    unknown: str | None = None
    _ids: dict[str, int] = field(init=False, compare=False)
    _symbols: tuple[str, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        ids = dict(self.vocab)
        if sorted(ids.values()) != list(range(len(ids))):
            raise ValueError(f"vocab must give its {len(ids)} symbols the ids 0 to {len(ids) - 1}")
        if (unknown := self.unknown) is None:
            unknown = next((symbol for symbol in UNKNOWN if symbol in ids), None)
        elif unknown not in ids:
            raise ValueError(f"unknown={unknown!r} must be one of the {len(ids)} symbols of vocab")
        object.__setattr__(self, "vocab", MappingProxyType(ids))
        object.__setattr__(self, "unknown", unknown)
        object.__setattr__(self, "_ids", ids)
        object.__setattr__(self, "_symbols", tuple(sorted(ids, key=ids.__getitem__)))

    def __hash__(self) -> int:
        return hash((len(self.vocab), self.lower_case, self.delimiter, self.unknown))

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (dict(self.vocab), self.lower_case, self.delimiter, self.unknown)

    def __repr__(self) -> str:
        return (
            f"transfo_xl.Tokenizer(vocab_size={self.vocab_size}, lower_case={self.lower_case}, "
            f"delimiter={self.delimiter!r}, unknown={self.unknown!r})"
        )

    @property
    def vocab_size(self) -> int:
        """Number of symbols."""
        return len(self._symbols)

    def tokenize(
        self, text: str, *, add_eos: bool = False, add_double_eos: bool = False
    ) -> list[str]:
        """Return the words of a text, be they in the vocabulary or not.

        Args:
            text: any string.
            add_eos: whether "<eos>" follows, as for Penn Treebank and WikiText.
            add_double_eos: whether "<S>" is on both sides instead, as for the One Billion Words.

        Raises:
            TypeError: `text` is not a string.

        Example:
            >>> train(["a b"]).tokenize(" a b  c", add_double_eos=True)
            ['<S>', 'a', 'b', 'c', '<S>']
        """
        before, after = _ends(add_eos, add_double_eos)
        return before + words.split(text, self.lower_case, self.delimiter) + after

    def encode(
        self, text: str, *, add_eos: bool = False, add_double_eos: bool = False
    ) -> list[int]:
        """Return the ids of a text; the arguments are those of `tokenize`.

        Raises:
            TypeError: `text` is not a string.
            ValueError: a word is not in the vocabulary, which has no unknown symbol; or the end of
                line is not there.

        Example:
            >>> train(["a b a", "c"], special=["<eos>"]).encode("c a", add_eos=True)
            [3, 1, 0]
        """
        for symbol in _ends(add_eos, add_double_eos)[1]:
            if symbol not in self._ids:
                raise ValueError(
                    f"{symbol!r} is to end a line, but is not in the vocabulary; build it with "
                    f"special=[{symbol!r}]"
                )
        return self.tokens_to_ids(
            self.tokenize(text, add_eos=add_eos, add_double_eos=add_double_eos)
        )

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        add_eos: bool = False,
        add_double_eos: bool = False,
        workers: int = 1,
    ) -> list[list[int]]:
        """Return the ids of each text, as `encode` gives them.

        Args:
            texts: any number of strings.
            add_eos, add_double_eos: as for `tokenize`.
            workers: processes to share the work, as for `gpt2.Tokenizer.encode_batch`.

        Raises:
            ValueError: `texts` is one string, `workers` is below 1, or as for `encode`.

        Example:
            >>> train(["a b a"]).encode_batch(["a", "b a"])
            [[0], [1, 0]]
        """
        encode = partial(self.encode, add_eos=add_eos, add_double_eos=add_double_eos)
        return _batch.encode_all(encode, texts, workers)

    def encode_with_offsets(
        self, text: str, *, add_eos: bool = False, add_double_eos: bool = False
    ) -> tuple[list[int], Offsets]:
        """Return the ids of a text and the offsets of their symbols.

        Args:
            text: any string.
            add_eos, add_double_eos: as for `tokenize`.

        Returns:
            ids: those of `encode`.
            offsets: one `(start, end)` a symbol, in characters of `text` as it was given. Added
                symbols have empty offsets at its beginning and end.

        Example:
            >>> train(["a b"], special=["<eos>"]).encode_with_offsets(" b  a", add_eos=True)
            ([2, 1, 0], [(1, 2), (4, 5), (5, 5)])
        """
        ids = self.encode(text, add_eos=add_eos, add_double_eos=add_double_eos)
        before, after = _ends(add_eos, add_double_eos)
        offsets = words.places(text, self.lower_case, self.delimiter)
        return ids, [(0, 0)] * len(before) + offsets + [(len(text), len(text))] * len(after)

    def encode_file(
        self, path: str | Path, *, add_eos: bool = True, add_double_eos: bool = False
    ) -> Iterator[list[int]]:
        r"""Yield the ids of each line of a file; one line is held at a time.

        The file is read by `words.lines`; the arguments and errors are those of it and `encode`.

        Example:
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = Path(folder) / "text.txt"
            ...     _ = path.write_text("b a\n\na\n")
            ...     list(train(["a b"], special=["<eos>"]).encode_file(path))
            [[2, 1, 0], [0], [1, 0]]
        """
        for line in words.lines(path):
            yield self.encode(line, add_eos=add_eos, add_double_eos=add_double_eos)

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each symbol, or of the unknown one.

        Raises:
            ValueError: a symbol is not in the vocabulary, which has no unknown one.

        Example:
            >>> train(["a b"]).tokens_to_ids(["b", "a"])
            [1, 0]
        """
        if isinstance(tokens, str):
            raise ValueError(f"tokens={tokens!r} is one string; give a list of tokens, or encode")
        if self.unknown is not None:
            unknown = self._ids[self.unknown]
            return [self._ids.get(token, unknown) for token in tokens]
        try:
            return [self._ids[token] for token in tokens]
        except KeyError as error:
            raise ValueError(
                f"{error.args[0]!r} is not among the {self.vocab_size} symbols of the vocabulary, "
                "which has no unknown symbol; build it with special=['<unk>']"
            ) from None

    def ids_to_tokens(self, ids: Iterable[int]) -> list[str]:
        """Return the symbol of each id.

        Raises:
            ValueError: an id is out of range.

        Example:
            >>> train(["a b"]).ids_to_tokens([1, 0])
            ['b', 'a']
        """
        symbols = self._symbols
        return [symbols[i] for i in each_id(ids, len(symbols))]

    def decode(self, ids: Iterable[int], *, exclude: Collection[int] = ()) -> str:
        """Return the symbols of ids, with the delimiter (or a space) between any two.

        Args:
            ids: integers from 0 to `vocab_size - 1`: a list, or an array of one axis.
            exclude: ids to leave out, such as that of "<eos>".

        Raises:
            ValueError: an id is out of range.

        Example:
            >>> train(["a b"], special=["<eos>"]).decode([1, 2, 0], exclude=[0])
            'a b'
        """
        kept = (i for i in each_id(ids, self.vocab_size) if i not in exclude)
        return "".join(self.decode_stream(kept))

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Yield the text of ids as they come: together, `decode(ids)`.

        Example:
            >>> list(train(["a b"]).decode_stream([1, 0]))
            ['b', ' a']
        """
        delimiter = " " if self.delimiter is None else self.delimiter
        for number, token_id in enumerate(ids):
            (symbol,) = self.ids_to_tokens([token_id])
            yield f"{delimiter}{symbol}" if number else symbol

    def extend(self, tokens: Sequence[str]) -> "Tokenizer":
        """Return a tokenizer with more symbols, their ids following the last one.

        Raises:
            ValueError: `tokens` is one string, or a symbol is there already, or twice.

        Example:
            >>> train(["a b"]).extend(["<eos>"]).encode("b", add_eos=True)
            [1, 2]
        """
        new = {token: i for i, token in enumerate(tokens, self.vocab_size)}
        if isinstance(tokens, str) or len(new) < len(tokens) or new.keys() & self.vocab.keys():
            raise ValueError(f"tokens={tokens!r} must be a list of symbols, each of them a new one")
        return replace(self, vocab={**self.vocab, **new})

    def save(self, directory: str | Path) -> None:
        """Write vocab.txt, a symbol a line, and tokenizer_config.json.

        Raises:
            ValueError: a symbol cannot be a line of a file.
        """
        _transfo_xl_files.write(self, directory)


@_former.answering
def load(name_or_path: NameOrPath, *, lower_case: bool | None = None) -> Tokenizer:
    """Read a tokenizer from disk or, by its name, from the Hugging Face hub.

    Args:
        name_or_path: a directory that `Tokenizer.save` wrote, or one that holds the vocab.bin of
            pytorch-pretrained-BERT; or one of these files; or any text file whose lines begin with
            a symbol, or pickle of a vocabulary or corpus (such as corpus.pkl or cache.pt); or the
            name of a model on the hub, or a `Source`. Pickles are read without running them.
        lower_case: whether text is lower-cased; None: as was saved, or else it is not.

    Raises:
        FileNotFoundError: there is no vocabulary; the message says where it was looked for.
        ValueError: a file is not what its name says, or a pickle asks to run code.

    Example:
        >>> load("./no/such/directory")
        Traceback (most recent call last):
        FileNotFoundError: './no/such/directory' is no directory and no name of a model ...
    """
    vocabulary = _transfo_xl_files.read_vocabulary(name_or_path)
    vocab = {symbol: i for i, symbol in enumerate(vocabulary.symbols)}
    lower_case = vocabulary.lower_case if lower_case is None else lower_case
    return Tokenizer(vocab, lower_case, vocabulary.delimiter, vocabulary.unknown)


def load_corpus(name_or_path: str | Path) -> dict[str, list[Ids]]:
    """Read an encoded corpus of pytorch-pretrained-BERT or its source; no code is run.

    Args:
        name_or_path: corpus.bin, corpus.pkl, cache.pt or cache.pkl, or a directory that holds one
            of them, or the name of a model on the hub.

    Returns:
        the arrays of the splits that are there, of "train", "valid" and "test": one if it is a text
        in order, one a sentence if it is not.

    Raises:
        FileNotFoundError: there is no such file; the message says where it was looked for.
        ValueError: it is no such file, or asks to run code.

    >>> load_corpus("./no/such/directory")
    Traceback (most recent call last):
    FileNotFoundError: './no/such/directory' is no directory and no name of a model ...
    """
    return _transfo_xl_files.read_corpus(name_or_path)


def build(
    counts: Mapping[str, int],
    *,
    special: Sequence[str] = (),
    min_freq: int = 0,
    max_size: int | None = None,
    lower_case: bool = False,
    delimiter: str | None = None,
) -> Tokenizer:
    """Build a tokenizer from word counts, the most frequent first; of ties, the first counted.

    Args:
        counts: word -> number of occurrences, as of `words.count`.
        special: symbols with the first ids, such as "<eos>" and "<unk>", counted or not.
        min_freq: words with fewer occurrences are left out.
        max_size: how many words there may be, besides the special symbols that were not counted;
            None for any number.
        lower_case, delimiter: as for `Tokenizer`.

    Raises:
        ValueError: `special` is one string, or `max_size` is below 0.

    Example:
        >>> dict(build({"a": 1, "b": 3, "c": 1}, special=["<unk>"], max_size=2).vocab)
        {'<unk>': 0, 'b': 1, 'a': 2}
    """
    if isinstance(special, str):
        raise ValueError(f"special={special!r} is one string; give a list of symbols")
    if max_size is not None and max_size < 0:
        raise ValueError(f"max_size={max_size} must be at least 0, or None for any number")
    common = Counter(counts).most_common(max_size)
    symbols = dict.fromkeys([*special, *(word for word, n in common if n >= min_freq)])
    vocab = {symbol: i for i, symbol in enumerate(symbols)}
    return Tokenizer(vocab, lower_case, delimiter)


def train(
    texts: Iterable[str],
    *,
    special: Sequence[str] = (),
    min_freq: int = 0,
    max_size: int | None = None,
    lower_case: bool = False,
    delimiter: str | None = None,
) -> Tokenizer:
    """Train a tokenizer on texts: `words.count`, then `build`, whose arguments these are.

    Example:
        >>> dict(train(["b a", "B c"], special=["<eos>"], min_freq=2, lower_case=True).vocab)
        {'<eos>': 0, 'b': 1}
    """
    cut: dict[str, Any] = {"lower_case": lower_case, "delimiter": delimiter}
    counts = words.count(texts, **cut)
    return build(counts, special=special, min_freq=min_freq, max_size=max_size, **cut)


def _ends(add_eos: bool, add_double_eos: bool) -> tuple[list[str], list[str]]:
    """Return what is added before and after a line."""
    return ([BOUNDARY], [BOUNDARY]) if add_double_eos else ([], [END] if add_eos else [])
