"""Tables of GPT-2's tokenizer: the byte alphabet, words, vocabulary; and offsets in a text."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import regex

from fnlm.tokenize import _bpe, _byte_merges, _compiled
from fnlm.tokenize._tokens import SpecialTokens, in_one_pass, with_ids
from fnlm.tokenize.added import Added

PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

Offsets = list[tuple[int, int]]

words_of = regex.compile(PATTERN).findall
ASCII_SPACES = "\t\n\v\f\r"  # white space of PATTERN, besides " "
SPACES = f"{ASCII_SPACES}\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
GLUE = "\0"  # in units, for a space that begins no word; texts that hold it are not cut into units


_GLUED = [(space, f" {space}", f"{GLUE}{space}") for space in SPACES]
_ASCII_GLUED = _GLUED[: len(ASCII_SPACES)]


def units_of(text: str) -> list[str]:
    r"""Cut a text, without `GLUE`, at the spaces before visible characters.

    Each begins a word of PATTERN, whatever stands around it. Cutting there first is much faster
    than finding every word by PATTERN, and the words come out the same.

    Example:
        >>> units_of("a  big\n cat ")
        ['a\x00', 'big\n', 'cat\x00']
    """
    for space, before, glued in _ASCII_GLUED if text.isascii() else _GLUED:
        if space in text:
            text = text.replace(before, glued)
    if text.endswith(" "):
        text = text[:-1] + GLUE
    while "  " in text:
        text = text.replace("  ", f"{GLUE} ")
    if GLUE in text:
        text = text.replace(f" {GLUE}", GLUE * 2)
    return text.split(" ")


def _alphabet() -> tuple[str, ...]:
    """Return the printable character that stands for each byte in the vocabulary files."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in visible else next(others)) for byte in range(256))


ALPHABET = _alphabet()
_BYTE_OF = {symbol: byte for byte, symbol in enumerate(ALPHABET)}
_TO_BYTES = str.maketrans(_BYTE_OF)


class Tables(NamedTuple):
    """Look-up tables of a tokenizer, made once from its vocabulary and merges."""

    ids: dict[str, int]  # token -> id
    tokens: tuple[str, ...]  # id -> token
    content: dict[int, bytes]  # id -> the bytes it stands for
    added: tuple[Added, ...]  # in the order of their ids
    special: SpecialTokens  # those that are no byte and that no merge makes
    words: _bpe.WordCache  # word -> ids
    first: _bpe.WordCache  # text before the first cut of `units_of` -> ids
    units: _bpe.WordCache  # text between two cuts, or after the last -> ids of it after a space
    compiled: _compiled.Choice  # of what merges the bytes of new words


def make_tables(
    vocab: Mapping[str, int],
    merges: Sequence[tuple[str, str]],
    added: Sequence[str | Added],
    compiled: bool,
) -> Tables:
    """Validate a vocabulary and its merges, and return the tables.

    Args:
        vocab: token -> id.
        merges: pairs of tokens that join, in order.
        added, compiled: as for `gpt2.Tokenizer`.

    Raises:
        ValueError: bytes are missing, ids have gaps, merges do not fit, or a token is there twice.
    """
    missing = [symbol for symbol in ALPHABET if symbol not in vocab]
    if missing:
        raise ValueError(
            f"vocab lacks {len(missing)} of the 256 symbols that stand for bytes, {missing[0]!r} "
            "among them; it is not a byte-level vocabulary"
        )
    rules = _bpe.merges(merges, vocab)
    ids, tokens = with_ids(vocab, added)
    bytes_ids = [ids[symbol] for symbol in ALPHABET]
    ordinary = {*rules.made, *bytes_ids}
    special = {token: token_id for token, token_id in ids.items() if token_id not in ordinary}
    tokens = _validated(tokens, special, vocab)

    content = {i: token.encode() for token, i in special.items()} | _bytes_of(ids, special)
    known = _byte_merges.reachable(rules, bytes_ids, len(ids)).tolist()
    allowed = compiled and all(known[i] for i in rules.made)
    choice = _compiled.Choice(rules, tuple(bytes_ids), PATTERN, allowed=allowed)
    return Tables(
        ids,
        tuple(sorted(ids, key=ids.__getitem__)),
        content,
        tuple(tokens),
        SpecialTokens(dict(sorted(special.items(), key=lambda item: item[1])), tokens),
        *_caches(_byte_merges.encoder(rules, content, bytes_ids, known), choice),
        choice,
    )


def _caches(
    merge_word: Callable[[str], tuple[int, ...]], choice: _compiled.Choice
) -> tuple[_bpe.WordCache, _bpe.WordCache, _bpe.WordCache]:
    """Return the caches `words`, `first` and `units` of `Tables`.

    Args:
        merge_word: a word -> its ids, in Python.
        choice: of a library, which may do the same, and find the words of ASCII as well.
    """

    def encode_word(word: str) -> tuple[int, ...]:
        library = choice.library(len(word))
        return merge_word(word) if library is None else tuple(library.word(word.encode()))

    def encode_first(unit: str) -> tuple[int, ...]:
        unit_words = words_of(unit.replace(GLUE, " "))
        if len(unit_words) == 1:  # which `words` need not cache as well
            return encode_word(unit_words[0])
        return tuple(chain.from_iterable(map(words.__getitem__, unit_words)))

    def encode_unit(unit: str) -> tuple[int, ...]:
        text = f" {unit}"
        if unit.isascii() and len(unit) <= words.longest:
            if (library := choice.library(len(text))) is not None:
                return tuple(library.words(text.replace(GLUE, " ")))
            if unit.isalpha():  # the usual case: one word of PATTERN
                return merge_word(text)
        return encode_first(text)

    words = _bpe.WordCache(encode_word)
    return words, _bpe.WordCache(encode_first), _bpe.WordCache(encode_unit)


def _bytes_of(ids: Mapping[str, int], special: Mapping[str, int]) -> dict[int, bytes]:
    """Return the bytes of each ordinary token, by its id."""
    tokens = {token: token_id for token, token_id in ids.items() if token not in special}
    text = "".join(tokens)
    if unknown := set(text) - _BYTE_OF.keys():
        raise ValueError(
            f"merges make a token with {min(unknown)!r}, which stands for no byte; vocabulary and "
            "merges are not byte-level"
        )
    raw, ends = text.translate(_TO_BYTES).encode("latin-1"), accumulate(map(len, tokens), initial=0)
    return {
        i: raw[begin:end] for i, (begin, end) in zip(tokens.values(), pairwise(ends), strict=True)
    }


def _validated(
    added: Iterable[Added], special: Mapping[str, int], vocab: Mapping[str, int]
) -> list[Added]:
    """Return the added tokens, less those of the vocabulary that are special all the same."""
    for token in added:
        if token.content not in special:
            raise ValueError(f"added holds {token.content!r}, an ordinary token of the vocabulary")
    tokens = in_one_pass(added, special)
    return [token for token in tokens if token.content not in vocab or not token.plain]


def with_origin(text: str) -> tuple[str, list[int] | None]:
    r"""Return `text` well formed, and the index in `text` of each of its characters (and its end).

    Returns:
        The well-formed text, and the indices; None for them if the text was well formed already.

    Example:
        >>> with_origin("\ud83d\udc4d!") == ("\U0001f44d!", [0, 2, 3])
        True
    """
    try:
        text.encode()
        return text, None
    except UnicodeEncodeError:
        pieces = re.findall("(?s)[\ud800-\udbff][\udc00-\udfff]|.", text)
        return _bpe.well_formed(text), list(accumulate(map(len, pieces), initial=0))


def offsets_in(word: str, start: int, sizes: Iterable[int]) -> Offsets:
    """Return the offsets of the tokens of a word from their sizes in bytes.

    Args:
        word: the word.
        start: where it begins.
        sizes: bytes of each token, together those of the word in UTF-8.

    Example:
        >>> offsets_in("né", 10, [1, 1, 1])
        [(10, 11), (11, 12), (11, 12)]
    """
    ends = pairwise(accumulate(sizes, initial=0))
    if word.isascii():
        return [(start + begin, start + end) for begin, end in ends]
    owner = [i for i, character in enumerate(word, start) for _ in character.encode()]  # per byte
    return [(owner[begin], owner[end - 1] + 1) for begin, end in ends]
