"""GPT-2's tokenizer: byte-level byte-pair encoding. Lossless, total, exact.

Every string has ids, and ``decode(encode(text)) == text`` for every string without surrogates
(surrogate pairs are joined, a lone surrogate becomes U+FFFD). Text is never cleaned up. A special
token such as ``<|endoftext|>`` in a text is ordinary text unless the caller allows it.

Source: Radford et al. 2019, section 2.2, and the vocabulary files published with it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import regex

from fnlm.tokenize import bpe
from fnlm.tokenize.files import find

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"
FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))


def _alphabet() -> tuple[str, ...]:
    """Return the printable character that stands for each byte in the vocabulary files."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in visible else next(hidden)) for byte in range(256))


ALPHABET = _alphabet()
_BYTE = {symbol: byte for byte, symbol in enumerate(ALPHABET)}


class Tokenizer:
    """Text to ids and back; a value: nothing about it changes but what its cache remembers.

    Args:
        vocab: token -> id, in the printable form of the vocabulary files.
        merges: pairs of tokens that join, the first rule first.
    """

    __slots__ = ("_bytes", "_cache", "_ids", "_rules", "_special", "merges", "vocab")

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> None:
        self.vocab = dict(vocab)
        self.merges = tuple(merges)
        missing = [symbol for symbol in ALPHABET if symbol not in self.vocab]
        if missing:
            raise ValueError(
                f"vocab lacks {len(missing)} of the 256 byte symbols, such as {missing[0]!r}; "
                "it is not a byte-level vocabulary"
            )
        self._rules = bpe.merges(self.merges, self.vocab)
        made = {*self._rules.made, *(self.vocab[symbol] for symbol in ALPHABET)}
        self._special = {token: at for token, at in self.vocab.items() if at not in made}
        self._bytes = {
            at: token.encode() if at not in made else bytes(map(_BYTE.__getitem__, token))
            for token, at in self.vocab.items()
        }
        self._ids = tuple(self.vocab[symbol] for symbol in ALPHABET)
        self._cache = bpe.WordCache(partial(_encode_word, self._ids, self._rules))

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self.vocab)

    def __repr__(self) -> str:
        return f"gpt2.Tokenizer(vocab_size={self.vocab_size})"

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        words = _find(text)
        try:
            return list(chain.from_iterable(map(self._cache.__getitem__, words)))
        except UnicodeEncodeError:
            return self.encode(bpe.well_formed(text))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`."""
        return b"".join(map(self._bytes.__getitem__, ids)).decode("utf-8", "replace")

    def save(self, directory: str | Path) -> None:
        """Write vocab.json and merges.txt."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "vocab.json").write_text(json.dumps(self.vocab), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{left} {right}" for left, right in self.merges), ""]
        (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


_find = regex.compile(PATTERN).findall


def _encode_word(byte_ids: tuple[int, ...], rules: bpe.Merges, word: str) -> tuple[int, ...]:
    """Return the ids of one word."""
    return tuple(bpe.merge([byte_ids[byte] for byte in word.encode()], rules))


def load(name_or_path: str | Path) -> Tokenizer:
    """Read a tokenizer from a directory or, by name, from the Hugging Face hub.

    Args:
        name_or_path: a directory with vocab.json and merges.txt (or encoder.json and vocab.bpe,
            their first names), or the name of a model on the hub.

    Raises:
        FileNotFoundError: the files are not there; the message says where they were looked for.
        ValueError: the files do not fit each other.
    """
    vocab, merges = find(name_or_path, FILES)
    return Tokenizer(json.loads(vocab.read_text(encoding="utf-8")), tuple(_read_merges(merges)))


def _read_merges(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a merges file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.partition(" ")
        if not left or not right or " " in right:
            raise ValueError(f"{path}, line {number}: {line!r} is not two tokens and a space")
        yield left, right


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn a vocabulary: 256 bytes, merges, and `<|endoftext|>` as the last id.

    Args:
        texts: any number of texts; `<|endoftext|>` in them divides documents.
        vocab_size: number of tokens, at least 257; fewer come out if the texts hold no more.

    Example:
        >>> tokenizer = train(["low lower lowest"], 259)
        >>> tokenizer.decode(tokenizer.encode("low"))
        'low'
    """
    if vocab_size < 257:
        raise ValueError(f"vocab_size={vocab_size} is below 257 (256 bytes and {END_OF_TEXT})")
    parts = (part for text in texts for part in text.split(END_OF_TEXT))
    pairs = [
        ("".join(ALPHABET[byte] for byte in left), "".join(ALPHABET[byte] for byte in right))
        for left, right in bpe.train(parts, vocab_size - 1, PATTERN)
    ]
    tokens = [*sorted(ALPHABET), *dict.fromkeys(left + right for left, right in pairs)]
    return Tokenizer({token: at for at, token in enumerate([*tokens, END_OF_TEXT])}, pairs)
