"""Pinned Unicode data: character properties that do not depend on the version of Python.

`unicode-14.0.0.txt` holds two editions: `python`, Unicode 14.0.0, and `tokenizers`, which is how
the library of that name sees characters, from several versions of Unicode. The script that made it,
`tests/make_unicode.py`, is the reference for both.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Literal, NamedTuple

Edition = Literal["python", "tokenizers"]

_PATH = Path(__file__).with_name("unicode-14.0.0.txt")
# Hangul syllables are composed by arithmetic: The Unicode Standard, section 3.12.
_HANGUL = range(0xAC00, 0xD7A4)
_LEAD, _VOWEL, _TAIL, _VOWELS, _TAILS = 0x1100, 0x1161, 0x11A7, 21, 28


class Ranges:
    """A set of code points, as sorted ranges.

    Example:
        >>> 0x41 in Ranges(["30-39", "41"]), 0x40 in Ranges(["30-39", "41"])
        (True, False)
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, fields: Iterable[str]) -> None:
        bounds = [field.partition("-") for field in fields]
        self._firsts = [int(first, 16) for first, _, _ in bounds]
        self._lasts = [int(last or first, 16) for first, _, last in bounds]

    def __contains__(self, code: int) -> bool:
        at = bisect_right(self._firsts, code) - 1
        return at >= 0 and code <= self._lasts[at]

    def characters(self) -> str:
        """Return the ranges as they stand within the brackets of a regular expression."""
        bounds = zip(self._firsts, self._lasts, strict=True)
        return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in bounds)


class Data(NamedTuple):
    """The character data of an edition."""

    space: Ranges  # white space that is not dropped as a control character
    other: Ranges  # categories C*: control, format, surrogate, private, and perhaps unassigned
    control: Ranges  # categories Cc and Cf
    mark: Ranges  # category Mn
    punctuation: Ranges  # categories P*, and what is neither letter nor digit in ASCII
    cased: Ranges  # what makes a sigma after it final
    skipped: Ranges  # ignored around a sigma, on both sides
    lower: dict[str, str]  # character -> its lower case, where they differ
    decomposed: dict[str, str]  # the same for canonical decomposition, without Hangul
    order: dict[str, int]  # canonical combining classes other than 0


@cache
def data(edition: Edition) -> Data:
    """Return the character data of an edition, read once."""
    sections = _sections()

    def both(name: str) -> Iterator[tuple[str, str]]:
        """Yield the entries of a map, those in which the other edition differs last."""
        for part in ("python", "tokenizers") if edition == "tokenizers" else ("python",):
            for field in sections[f"{part}.{name}"]:
                source, _, target = field.partition("=")
                yield source, target

    def texts(name: str) -> dict[str, str]:
        return {
            chr(int(source, 16)): "".join(chr(int(code, 16)) for code in target.split("."))
            for source, target in both(name)
        }

    order = {}
    for source, target in both("order"):
        first, _, last = source.partition("-")
        for code in range(int(first, 16), int(last or first, 16) + 1):
            order[chr(code)] = int(target, 16)
    return Data(
        space=Ranges(sections["space"]),
        other=Ranges(sections[f"{edition}.other"]),
        control=Ranges(sections["python.control"]),
        mark=Ranges(sections[f"{edition}.mark"]),
        punctuation=Ranges(sections[f"{edition}.punctuation"]),
        cased=Ranges(sections["cased"]),
        skipped=Ranges(sections["skipped"]),
        lower=texts("lower"),
        decomposed=texts("decomposed"),
        order={character: value for character, value in order.items() if value},
    )


def _sections() -> dict[str, list[str]]:
    """Return section name -> fields of the data file."""
    sections: dict[str, list[str]] = {}
    name = ""
    for line in _PATH.read_text(encoding="ascii").splitlines():
        if line.startswith("["):
            name = line.strip("[]")
            sections[name] = []
        elif line and not line.startswith("#"):
            sections[name] += line.split()
    return sections


def decompose(character: str, chars: Data) -> str:
    r"""Return the canonical decomposition of a character.

    Example:
        >>> ascii(decompose("é", data("python"))), ascii(decompose("각", data("python")))
        ("'e\\u0301'", "'\\u1100\\u1161\\u11a8'")
    """
    code = ord(character)
    if code not in _HANGUL:
        return chars.decomposed.get(character, character)
    quotient, tail = divmod(code - _HANGUL.start, _TAILS)
    lead, vowel = divmod(quotient, _VOWELS)
    return chr(_LEAD + lead) + chr(_VOWEL + vowel) + (chr(_TAIL + tail) if tail else "")


def reorder(entries: list[tuple[str, int]], chars: Data) -> list[tuple[str, int]]:
    r"""Put runs of combining marks into canonical order; each character keeps its number.

    Example:
        >>> entries = [("a", 0), ("\u0301", 1), ("\u0323", 2)]
        >>> [i for _, i in reorder(entries, data("python"))]
        [0, 2, 1]
    """

    def order(entry: tuple[str, int]) -> int:
        return chars.order.get(entry[0], 0)

    if sum(entry[0] in chars.order for entry in entries) < 2:
        return entries
    result: list[tuple[str, int]] = []
    for combining, run in groupby(entries, lambda entry: order(entry) > 0):
        members = [*run]
        result += sorted(members, key=order) if combining else members
    return result


def final_sigma(word: str, i: int, chars: Data) -> bool:
    """Return whether the capital sigma word[i] becomes a final one: after a letter, before none.

    Source: The Unicode Standard, section 3.13, Final_Sigma.

    Example:
        >>> final_sigma("ΑΣ", 1, data("python")), final_sigma("ΑΣΑ", 1, data("python"))
        (True, False)
    """

    def meets_letter(characters: Iterable[str]) -> bool:
        letter = next((c for c in characters if ord(c) not in chars.skipped), "")
        return letter != "" and ord(letter) in chars.cased

    before = (word[j] for j in range(i - 1, -1, -1))
    after = (word[j] for j in range(i + 1, len(word)))
    return meets_letter(before) and not meets_letter(after)
