"""WordPiece: greedy longest-match-first tokenization of a word, from left to right.

A piece that does not begin its word is written with "##" before it. A word without such
a tokenization, or that is too long, is one unknown token.

Source: `WordpieceTokenizer` of Google's BERT. Deviation: it tries every length that is left of the
word, quadratic in that length; here no piece is tried that is longer than all those of the
vocabulary which begin with the same two characters, so that the time is proportional to the length
of the word, and the pieces are the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from fnlm.tokenize import _files

CONTINUED = "##"

Piece = tuple[int, int, int]  # id, and where in its word it begins and ends


class Pieces(NamedTuple):
    """A vocabulary, indexed for `split`."""

    first: dict[str, int]  # piece at the beginning of a word -> id
    later: dict[str, int]  # continuation without its "##" -> id
    first_longest: dict[str, int]  # two characters -> those of the longest of `first` with them
    later_longest: dict[str, int]  # the same of `later`
    unknown: int  # id of a word that cannot be cut
    max_characters: int  # of a word; a longer one is unknown


def pieces(
    vocab: Mapping[str, int], *, unknown: str = "[UNK]", max_characters: int = 100
) -> Pieces:
    """Return a vocabulary indexed for `split`.

    Args:
        vocab: token -> id.
        unknown: the token for words that cannot be cut.
        max_characters: words with more characters are unknown.

    Raises:
        ValueError: `vocab` lacks `unknown`.

    Example:
        >>> pieces({"[UNK]": 0, "a": 1, "##bc": 2}).later
        {'bc': 2}
    """
    if unknown not in vocab:
        raise ValueError(
            f"vocab lacks {unknown!r}, the token for unknown words, among its {len(vocab)} tokens; "
            "add it with the id that the model has for it"
        )
    later = {
        token.removeprefix(CONTINUED): i for token, i in vocab.items() if token[:2] == CONTINUED
    }
    longest = _longest(vocab), _longest(later)
    return Pieces(dict(vocab), later, *longest, vocab[unknown], max_characters)


def _longest(table: Mapping[str, int]) -> dict[str, int]:
    """Return the first two characters of pieces -> characters of the longest that begins so."""
    return {piece[:2]: len(piece) for piece in sorted(table, key=len)}


def split(word: str, known: Pieces) -> list[Piece]:
    """Return the pieces of a word: at each position the longest that matches.

    Args:
        word: a word; an empty one has no pieces.
        known: the vocabulary, of `pieces`.

    Returns:
        Id, begin and end of each piece. An unknown word is one piece.

    Example:
        >>> known = pieces({"[UNK]": 0, "un": 1, "##aff": 2, "##able": 3, "##a": 4})
        >>> split("unaffable", known), split("able", known)
        ([(1, 0, 2), (2, 2, 5), (3, 5, 9)], [(0, 0, 4)])
    """
    ids, ends = ids_and_ends(word, known)
    return list(zip(ids, [0, *ends], ends, strict=False))


def ids_and_ends(word: str, known: Pieces) -> tuple[list[int], list[int]]:
    """Return the ids of the pieces of a word, and where in the word each of them ends.

    Example:
        >>> ids_and_ends("unable", pieces({"[UNK]": 0, "un": 1, "##able": 2}))
        ([1, 2], [2, 6])
    """
    table, later, longest, later_longest, unknown, most = known
    length = len(word)
    if length > most:
        return [unknown], [length]
    ids: list[int] = []
    ends: list[int] = []
    begin = 0
    while begin < length:
        piece = word[begin : begin + longest.get(word[begin : begin + 2], 1)]
        while (token_id := table.get(piece)) is None:
            piece = piece[:-1]
            if not piece:
                return [unknown], [length]
        ids.append(token_id)
        begin += len(piece)
        ends.append(begin)
        table, longest = later, later_longest
    return ids, ends


def read_vocab(path: Path) -> dict[str, int]:
    """Return token -> id from a vocab.txt file: one token a line, the first has id 0.

    A byte order mark, any line ends and empty lines at the end are accepted, and spaces and tabs
    around a token are taken away.

    Raises:
        ValueError: the file is not UTF-8, a line within it is empty, or two lines are the same.
    """
    lines = _files.read_text(path).rstrip("\n").split("\n")
    vocab: dict[str, int] = {}
    for i, line in enumerate(lines):
        token = line.strip(" \t")
        if not token:
            raise ValueError(f"{path}, line {i + 1} is empty; every line must be a token")
        if vocab.setdefault(token, i) != i:
            raise ValueError(
                f"{path}, lines {vocab[token] + 1} and {i + 1} are both {token!r}, which can have "
                "one id only; give one of them another name, such as '[unused-2]'"
            )
    return vocab
