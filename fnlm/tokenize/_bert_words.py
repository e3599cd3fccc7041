"""BERT's basic tokenization: a text is cleaned, spaced, lower-cased, stripped of accents and cut.

Two implementations give the same words. `Spacing`, a table for `str.translate`, takes each
character by itself and is fast. `words` looks at a character with its neighbours and gives offsets.
What needs the neighbours (a sigma that may be final, marks that may be reordered, surrogates) the
table marks with `CARE`, and then `words` is used.
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
CARE = "\0"  # a control character, so that no cleaned text holds it

_REPLACEMENT = 0xFFFD
_SURROGATES = range(0xD800, 0xE000)
# Ideographs, each a word by itself. The gap from 2B820 to 2B91F in the second set is in the
# `tokenizers` library.
_IDEOGRAPHS: dict[Edition, Ranges] = {
    "python": Ranges("3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2CEAF 2F800-2FA1F".split()),
    "tokenizers": Ranges(
        "3400-4DBF 4E00-9FFF F900-FAFF 20000-2A6DF 2A700-2B81F 2B920-2CEAF 2F800-2FA1F".split()
    ),
}


class Profile(NamedTuple):
    """The settings in which one published BERT tokenizer differs from the others."""

    edition: Edition  # of the character data
    dropped: Literal["other", "control"]  # the characters that are removed
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
    """The rules of cleaning and cutting, in full."""

    chars: Data
    dropped: Ranges
    ideographs: Ranges
    lower: bool
    strip: bool  # accents
    sigma: bool  # whether a capital sigma at the end of a word becomes a final one
    never_split: frozenset[str]  # words that stay as they are


class Word(NamedTuple):
    """A word, and the offsets of each of its characters in the text."""

    text: str
    starts: list[int]
    ends: list[int]


def make_rules(
    profile: Profile, lower: bool, strip: bool, ideographs: bool, never_split: tuple[str, ...]
) -> Rules:
    """Return the rules of a profile with its settings."""
    chars = data(profile.edition)
    return Rules(
        chars,
        chars.other if profile.dropped == "other" else chars.control,
        _IDEOGRAPHS[profile.edition] if ideographs else Ranges([]),
        lower,
        strip,
        lower and profile.edition == "python",
        frozenset() if profile.anywhere else frozenset(never_split),
    )


def chunk_pattern(rules: Rules) -> re.Pattern[str]:
    """Return a pattern of chunks that no word crosses, so that `words` may take each by itself.

    Example:
        >>> chunk_pattern(make_rules(PROFILES[DEFAULT], True, True, True, ())).findall("a, b語c")
        ['a,', 'b', '語', 'c']
    """
    alone, space = rules.ideographs.characters(), rules.chars.space.characters()
    return re.compile(f"[{alone}]|[^{space}{alone}]+" if alone else f"[^{space}]+")


class Spacing(dict[int, str]):
    """Table of replacements for `str.translate`, with spaces around what is a word by itself."""

    __slots__ = ("rules",)

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def __missing__(self, code: int) -> str:
        self[code] = text = self._make(code)
        return text

    def _make(self, code: int) -> str:
        rules, chars = self.rules, self.rules.chars
        if code in _SURROGATES:
            return CARE
        if _is_dropped(code, rules):
            return ""
        if code in chars.space:
            return " "
        folded = [character for character, _, _ in _fold(chr(code), [0], rules)]
        text = "".join(f" {c} " if ord(c) in chars.punctuation else c for c in folded)
        if code in rules.ideographs:
            text = f" {text} "
        moves = rules.strip and any(character in chars.order for character in folded)
        return text + CARE if moves or (rules.sigma and chr(code) == "Σ") else text


def normalized(text: str, rules: Rules) -> list[tuple[str, int, int]]:
    r"""Return the characters of a text without surrogates, cleaned and folded, with offsets.

    Example:
        >>> rules = make_rules(PROFILES[DEFAULT], True, True, True, ())
        >>> normalized("É\t語", rules)
        [('e', 0, 1), (' ', 1, 2), (' ', 2, 3), ('語', 2, 3), (' ', 2, 3)]
    """
    characters: list[tuple[str, int, int]] = []
    word: list[int] = []
    for i, character in enumerate(text + " "):
        code = ord(character)
        if _is_dropped(code, rules):
            continue
        alone = code in rules.ideographs
        if not alone and code not in rules.chars.space:
            word.append(i)
            continue
        content = "".join(text[i] for i in word)
        if content in rules.never_split:
            characters += [(text[i], i, i + 1) for i in word]
        else:
            characters += _fold(content, word, rules)
        word = []
        space = (" ", i, i + 1)
        characters += [space, *_fold(character, [i], rules), space] if alone else [space]
    return characters[:-1]


def only_cut(rules: Rules) -> Rules:
    """Return the rules that only cut, for a text that is `normalized` already."""
    nothing = Ranges([])
    return rules._replace(
        dropped=nothing, ideographs=nothing, lower=False, strip=False, sigma=False
    )


def words(text: str, rules: Rules) -> Iterator[Word]:
    """Yield the words of a text without surrogates.

    Accents that are stripped belong to the character before them, so that the offsets of a word
    include its accents.
    """
    for cleaned, positions in _clean(text, rules):
        if cleaned in rules.never_split:
            yield Word(cleaned, positions, [i + 1 for i in positions])
            continue
        folded, begin = _fold(cleaned, positions, rules), 0
        for i, (character, _, _) in enumerate(folded):
            if ord(character) in rules.chars.punctuation:
                if begin < i:
                    yield _word(folded[begin:i])
                yield _word(folded[i : i + 1])
                begin = i + 1
        if begin < len(folded):
            yield _word(folded[begin:])


def _word(folded: list[tuple[str, int, int]]) -> Word:
    characters, starts, ends = zip(*folded, strict=True)
    return Word("".join(characters), [*starts], [*ends])


def _is_dropped(code: int, rules: Rules) -> bool:
    return code in rules.dropped or code == _REPLACEMENT


def _clean(text: str, rules: Rules) -> Iterator[tuple[str, list[int]]]:
    """Yield what is between spaces, ideographs apart, with the position of each character."""
    positions: list[int] = []
    for i, character in enumerate(text + " "):
        if "!" <= character <= "~":
            positions.append(i)
            continue
        code = ord(character)
        alone = code in rules.ideographs
        if _is_dropped(code, rules):
            continue
        if not alone and code not in rules.chars.space:
            positions.append(i)
            continue
        if positions:
            yield "".join(text[i] for i in positions), positions
        positions = []
        if alone:
            yield character, [i]


def _fold(word: str, positions: list[int], rules: Rules) -> list[tuple[str, int, int]]:
    """Lower-case a word and strip its accents; return characters with their offsets."""
    if word.isascii():
        word = word.lower() if rules.lower else word
        return [(character, i, i + 1) for character, i in zip(word, positions, strict=True)]
    chars = rules.chars
    entries: list[tuple[str, int]] = []
    for i, character in enumerate(word):
        if rules.sigma and character == "Σ" and final_sigma(word, i, chars):
            character = "ς"
        elif rules.lower:
            character = chars.lower.get(character, character)
        if rules.strip:
            character = "".join(decompose(part, chars) for part in character)
        entries += [(part, positions[i]) for part in character]
    if not rules.strip:
        return [(character, i, i + 1) for character, i in entries]
    # An accent is dropped, and extends the end of the character before it.
    ends: dict[int, int] = {}
    last = None
    for part, i in entries:
        if ord(part) not in chars.mark:
            last = i
        elif last is not None:
            ends[last] = i + 1
    return [
        (part, i, ends.get(i, i + 1))
        for part, i in reorder(entries, chars)
        if ord(part) not in chars.mark
    ]
