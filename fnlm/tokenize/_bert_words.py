"""From a text to the words that BERT cuts into pieces: cleaned, spaced, lower-cased, unaccented.

There are two ways to the same words. `Spacing` is a table for `str.translate`: it takes each
character by itself, and is fast. `words` looks at a character with its neighbours and knows where
each came from. The table marks what it cannot do (a sigma that may be final, marks that may change
places, surrogates) with `CARE`, and then `words` is asked.
"""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from fnlm.tokenize._unicode import Data, Edition, Ranges, data, decompose, final_sigma, reorder


class Special(NamedTuple):
    """The names of the special tokens."""

    unk: str = "[UNK]"
    sep: str = "[SEP]"
    pad: str = "[PAD]"
    cls: str = "[CLS]"
    mask: str = "[MASK]"


SPECIAL = Special()
CARE = "\0"  # a text has none left: it is a control character

_REPLACEMENT = 0xFFFD
_SURROGATES = range(0xD800, 0xE000)
# Ideographs, each a word by itself. The gap from 2B820 to 2B91F in the second set is the peer's.
_IDEOGRAPHS: dict[Edition, Ranges] = {
    "python": Ranges("3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2CEAF 2F800-2FA1F".split()),
    "tokenizers": Ranges(
        "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B81F 2B920-2CEAF 2F800-2FA1F".split()
    ),
}


class Profile(NamedTuple):
    """What one published BERT tokenizer does differently from the others."""

    edition: Edition  # whose character data
    dropped: Literal["other", "control"]  # which characters vanish
    max_characters: int  # of a word
    never_split: bool  # whether a text may hold special tokens as such
    anywhere: bool  # whether these count within a word too, before the text is cleaned


PROFILES = {
    "ppb-0.6.2": Profile("python", "other", 100, True, False),
    "google-2018-11": Profile("python", "other", 200, False, False),
    "google-2019-03": Profile("python", "control", 200, False, False),
    "transformers": Profile("tokenizers", "other", 100, True, True),
}


DEFAULT = "ppb-0.6.2"


class Rules(NamedTuple):
    """What is done to a text, in full."""

    known: Data
    dropped: Ranges
    ideographs: Ranges
    lower: bool
    strip: bool  # accents
    sigma: bool  # whether a capital sigma at the end of a word becomes a final one
    never_split: frozenset[str]  # words that stay as they are


class Word(NamedTuple):
    """A word, and where in the text each of its characters came from."""

    text: str
    starts: list[int]
    ends: list[int]


def make_rules(
    profile: Profile, lower: bool, strip: bool, ideographs: bool, never_split: tuple[str, ...]
) -> Rules:
    """Return the rules of a profile with its settings."""
    known = data(profile.edition)
    return Rules(
        known,
        known.other if profile.dropped == "other" else known.control,
        _IDEOGRAPHS[profile.edition] if ideographs else Ranges([]),
        lower,
        strip,
        lower and profile.edition == "python",
        frozenset() if profile.anywhere else frozenset(never_split),
    )


def chunk_pattern(rules: Rules) -> re.Pattern[str]:
    """Return a pattern that cuts a text where its words end for sure: `words` may take the parts.

    Example:
        >>> chunk_pattern(make_rules(PROFILES[DEFAULT], True, True, True, ())).findall("a, b語c")
        ['a,', 'b', '語', 'c']
    """
    alone, space = rules.ideographs.characters(), rules.known.space.characters()
    return re.compile(f"[{alone}]|[^{space}{alone}]+" if alone else f"[^{space}]+")


class Spacing(dict[int, str]):
    """Character -> what becomes of it, with spaces around what is a word by itself."""

    __slots__ = ("rules",)

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __missing__(self, code: int) -> str:
        self[code] = text = self._make(code)
        return text

    def _make(self, code: int) -> str:
        rules, known = self.rules, self.rules.known
        if code in _SURROGATES:
            return CARE
        if _vanishes(code, rules):
            return ""
        if code in known.space:
            return " "
        folded = [character for character, _, _ in _fold(chr(code), [0], rules)]
        text = "".join(f" {c} " if ord(c) in known.punctuation else c for c in folded)
        if code in rules.ideographs:
            text = f" {text} "
        moves = rules.strip and any(character in known.order for character in folded)
        return text + CARE if moves or (rules.sigma and chr(code) == "Σ") else text


def normalized(text: str, rules: Rules) -> list[tuple[str, int, int]]:
    r"""Return the characters of a text without surrogates, cleaned and folded, with their places.

    Example:
        >>> rules = make_rules(PROFILES[DEFAULT], True, True, True, ())
        >>> normalized("É\t語", rules)
        [('e', 0, 1), (' ', 1, 2), (' ', 2, 3), ('語', 2, 3), (' ', 2, 3)]
    """
    found: list[tuple[str, int, int]] = []
    word: list[int] = []
    for at, character in enumerate(text + " "):
        code = ord(character)
        if _vanishes(code, rules):
            continue
        alone = code in rules.ideographs
        if not alone and code not in rules.known.space:
            word.append(at)
            continue
        content = "".join(text[place] for place in word)
        if content in rules.never_split:
            found += [(text[place], place, place + 1) for place in word]
        else:
            found += _fold(content, word, rules)
        word = []
        space = (" ", at, at + 1)
        found += [space, *_fold(character, [at], rules), space] if alone else [space]
    return found[:-1]


def only_cut(rules: Rules) -> Rules:
    """Return the rules that cut a text which is `normalized`."""
    nothing = Ranges([])
    return rules._replace(
        dropped=nothing, ideographs=nothing, lower=False, strip=False, sigma=False
    )


def words(text: str, rules: Rules) -> Iterator[Word]:
    """Yield the words of a text without surrogates.

    Accents that are taken away belong to the character before them, so that the place of a word
    takes in all of its accents.
    """
    for cleaned, places in _clean(text, rules):
        if cleaned in rules.never_split:
            yield Word(cleaned, places, [place + 1 for place in places])
            continue
        folded, begin = _fold(cleaned, places, rules), 0
        for at, (character, _, _) in enumerate(folded):
            if ord(character) in rules.known.punctuation:
                if begin < at:
                    yield _word(folded[begin:at])
                yield _word(folded[at : at + 1])
                begin = at + 1
        if begin < len(folded):
            yield _word(folded[begin:])


def _word(folded: list[tuple[str, int, int]]) -> Word:
    characters, starts, ends = zip(*folded, strict=True)
    return Word("".join(characters), [*starts], [*ends])


def _vanishes(code: int, rules: Rules) -> bool:
    return code in rules.dropped or code == _REPLACEMENT


def _clean(text: str, rules: Rules) -> Iterator[tuple[str, list[int]]]:
    """Yield what stands between spaces, ideographs apart, with the place of each character."""
    places: list[int] = []
    for at, character in enumerate(text + " "):
        if "!" <= character <= "~":
            places.append(at)
            continue
        code = ord(character)
        alone = code in rules.ideographs
        if _vanishes(code, rules):
            continue
        if not alone and code not in rules.known.space:
            places.append(at)
            continue
        if places:
            yield "".join(text[place] for place in places), places
        places = []
        if alone:
            yield character, [at]


def _fold(word: str, places: list[int], rules: Rules) -> list[tuple[str, int, int]]:
    """Lower-case a word and take its accents away; return characters with their places."""
    if word.isascii():
        word = word.lower() if rules.lower else word
        return [(character, at, at + 1) for character, at in zip(word, places, strict=True)]
    known = rules.known
    entries: list[tuple[str, int]] = []
    for at, character in enumerate(word):
        if rules.sigma and character == "Σ" and final_sigma(word, at, known):
            character = "ς"
        elif rules.lower:
            character = known.lower.get(character, character)
        if rules.strip:
            character = "".join(decompose(part, known) for part in character)
        entries += [(part, places[at]) for part in character]
    if not rules.strip:
        return [(character, place, place + 1) for character, place in entries]
    ends: dict[int, int] = {}
    last = None
    for part, place in entries:
        if ord(part) not in known.mark:
            last = place
        elif last is not None:
            ends[last] = place + 1
    return [
        (part, place, ends.get(place, place + 1))
        for part, place in reorder(entries, known)
        if ord(part) not in known.mark
    ]
