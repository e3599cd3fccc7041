r"""Cleaning of text before GPT's words are found: the steps of ftfy and of GPT's authors.

Every step is a function from a text to edits, so that the same steps serve with and without
offsets.

Sources: ftfy 4.4.3, `fix_text` with its defaults; openai/finetune-transformer-lm, `text_utils.py`.
Deviation: text decoded by the wrong encoding is repaired where it is UTF-8 read as Latin-1 or
Windows-1252, in a whole line or in quotes alone; ftfy weighs more encodings, and odds.
"""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from html.entities import html5
from typing import NamedTuple

import regex

Edit = tuple[int, int, str]  # start, end, replacement
Step = Callable[[str], Iterable[Edit]]
Span = tuple[int, int]


class Traced(NamedTuple):
    """A text, and the offsets of each of its characters in the original."""

    text: str
    offsets: list[Span] | None  # None if they are not traced


def whole(text: str, traced: bool) -> Traced:
    """Return a text as it is, with offsets if `traced`."""
    return Traced(text, [(i, i + 1) for i in range(len(text))] if traced else None)


def edited(source: Traced, edits: Iterable[Edit]) -> Traced:
    """Apply edits to a text; they are in order and do not overlap.

    Example:
        >>> edited(whole("a&lt;b", True), [(1, 5, "<")])
        Traced(text='a<b', offsets=[(0, 1), (1, 5), (5, 6)])
    """
    pieces: list[str] = []
    offsets: list[Span] = []
    done = 0
    for start, end, new in edits:
        pieces += source.text[done:start], new
        if source.offsets is not None:
            offsets += source.offsets[done:start]
            old = source.offsets[start:end]
            near = old or source.offsets[start - 1 : start] or source.offsets[:1]
            same = len(new) == len(old)
            offsets += old if same else [(near[0][0], near[-1][1])] * len(new)
        done = end
    if not pieces:
        return source
    pieces.append(source.text[done:])
    traced_to_end = None if source.offsets is None else offsets + source.offsets[done:]
    return Traced("".join(pieces), traced_to_end)


def _sub(pattern: str, new: Callable[[str], str]) -> Step:
    """Return the step that replaces every match by `new(match)`."""
    find = regex.compile(pattern).finditer

    def step(text: str) -> Iterator[Edit]:
        for match in find(text):
            if (fresh := new(match.group())) != match.group():
                yield match.start(), match.end(), fresh

    return step


# The control characters C1, and what their bytes are in Windows-1252 (five are themselves there).
_WINDOWS = {chr(i): bytes([i]).decode("cp1252", "ignore") or chr(i) for i in range(0x80, 0xA0)}
_BYTES = str.maketrans({windows: control for control, windows in _WINDOWS.items()})
_not_ascii = regex.compile(r"[^\x00-\x7f]+").finditer
# What three bytes of a quote, dash or dot of UTF-8 become; the last is no punctuation by itself.
_QUOTE = "".join(_WINDOWS.get(chr(i), chr(i)) for i in range(0x80, 0xC0))
_quotes = regex.compile(rf"â€(?![…‹‘’–—›\xa0¡«´»¿])[{_QUOTE}]").finditer


def _again(text: str) -> str:
    return text.translate(_BYTES).encode("latin-1").decode()


def _repair(text: str) -> Iterator[Edit]:
    """Decode as UTF-8 what was decoded as Latin-1 or Windows-1252; C1 controls as the latter."""
    if text.isascii():
        return
    try:
        _again(text)
        spoilt = list(_not_ascii(text))
    except UnicodeError:
        spoilt = list(_quotes(text))
    if spoilt:
        yield from ((match.start(), match.end(), _again(match.group())) for match in spoilt)
    elif max(text) <= "\xff" and not any(c == _WINDOWS.get(c) for c in text):
        yield from ((i, i + 1, _WINDOWS[c]) for i, c in enumerate(text) if c in _WINDOWS)


def _unescape(entity: str) -> str:
    """Return the character of an HTML entity, or the entity itself if it stands for none."""
    if entity.count(";") > 1:
        return "&"
    if not entity.startswith("&#"):
        return html5.get(entity[1:], entity)
    try:
        code = int(entity[3:-1], 16) if entity[2] == "x" else int(entity[2:-1])
        return "\ufffd" if 0xD800 <= code < 0xE000 else _WINDOWS.get(chr(code), chr(code))
    except (ValueError, OverflowError):
        return entity


def _characters() -> dict[str, str]:
    """Return the replacements of ligatures, wide characters, quotes, line ends and controls."""
    wide = [chr(i) for i in (0x3000, *range(0xFF01, 0xFFF0))]
    controls = [*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF]
    controls += [*range(0xFFF9, 0xFFFD), *range(0x1D173, 0x1D17B), *range(0xE0000, 0xE0080)]
    ligatures = {"Ĳ": "IJ", "ĳ": "ij", "ﬀ": "ff", "ﬁ": "fi", "ﬂ": "fl", "ﬃ": "ffi", "ﬄ": "ffl"}
    return {
        **{c: normal for c in wide if (normal := unicodedata.normalize("NFKC", c)) != c},
        **ligatures, "ﬅ": "ſt", "ﬆ": "st",
        **dict.fromkeys("\u2018\u2019\u201a\u201b", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f", '"'),
        **dict.fromkeys(["\r", "\r\n", "\x85", "\u2028", "\u2029"], "\n"),
        **dict.fromkeys(map(chr, controls), ""),
    }  # fmt: skip


_CHARACTERS = _characters()
_LISTED = regex.escape("".join(character for character in _CHARACTERS if len(character) == 1))
_compose = _sub(r"\X", lambda cluster: unicodedata.normalize("NFC", cluster))
# A nest such as "&amp;amp;amp;" is opened at once: one layer a turn would take quadratic time.
_ENTITIES = _sub(r"&(?:(?:amp|AMP|#0{0,6}38|#x0{0,5}26);){2,}+|&#?\w{0,8};", _unescape)
_FIXES: tuple[Step, ...] = (
    _sub(r"\x1b\[[\d;]*[A-Za-z]", lambda escape: ""),
    _repair,
    _sub(rf"\r\n|[{_LISTED}]", _CHARACTERS.__getitem__),
    lambda text: () if unicodedata.is_normalized("NFC", text) else _compose(text),
)
_may_need_fixes = regex.compile(r"[^\t\n\x0c\x20-\x25\x27-\x7e]").search


def _fix_line(line: Traced, entities: bool) -> Traced:
    """Apply the fixes until they change nothing."""
    before = None
    while before != line.text:
        before = line.text
        for step in (_ENTITIES, *_FIXES) if entities else _FIXES:
            line = edited(line, step(line.text))
    return line


def _fix(source: Traced) -> Traced:
    """Fix a text line by line; from a line with both angle brackets on, entities are left alone."""
    if not _may_need_fixes(source.text):
        return source
    pieces: list[str] = []
    offsets: list[Span] = []
    entities, start = True, 0
    for piece in regex.findall(r"[^\n]*\n|[^\n]+", source.text):
        entities = entities and not ("<" in piece and ">" in piece)
        end = start + len(piece)
        line = _fix_line(Traced(piece, source.offsets and source.offsets[start:end]), entities)
        pieces.append(line.text)
        offsets += line.offsets or []
        start = end
    return Traced("".join(pieces), None if source.offsets is None else offsets)


_marks = regex.compile(
    r'-+|~+|!+|"+|;+|\?+|\++|,+|\)+|\(+|\\+|/+|\*+|\[+|\]+|\}+|\{+|\|+|_+'
).finditer


def _space_marks(text: str) -> Iterator[Edit]:
    """Put a space before and after every run of one mark."""
    for match in _marks(text):
        yield match.start(), match.start(), " "
        yield match.end(), match.end(), " "


def _strip(text: str) -> Iterator[Edit]:
    stripped = text.strip()
    if len(stripped) < len(text):
        start = text.find(stripped)
        yield 0, start, ""
        yield start + len(stripped), len(text), ""


_PLAIN = {"—": "-", "–": "-", "―": "-", "…": "...", "´": "'"}
_STANDARD: tuple[Step, ...] = (
    _sub("[—–―…´]", _PLAIN.__getitem__),
    _space_marks,
    _sub(r"[^\S\n]{2,}|[^\S\n ]", lambda _: " "),
    _sub(r"\s*\n\s*", lambda _: " \n "),
    _strip,
)


def clean(text: str, traced: bool = False) -> Traced:
    r"""Return a text cleaned: its words, marks and line ends between single spaces.

    Args:
        text: without surrogates.
        traced: whether to say where each character came from.

    Example:
        >>> clean("“Caf\u0065\u0301”&amp;c.\r\n\r\nx").text
        '" Café " &c. \n x'
        >>> clean("a--b", traced=True)
        Traced(text='a -- b', offsets=[(0, 1), (0, 1), (1, 2), (2, 3), (2, 3), (3, 4)])
    """
    result = _fix(whole(text, traced))
    for step in _STANDARD:
        result = edited(result, step(result.text))
    return result
