"""spaCy's English tokenization: affixes come off one by one, and listed words are exceptions.

The text has been cleaned (`_fix_text.clean`): its chunks, what stands between two spaces, hold no
curly quotes, and no two kinds of the marks that cleaning puts spaces around. So chunks are all
there is to cut, and the exceptions are those that such chunks can meet.

Source: spaCy 3.8, `spacy.blank("en")`, whose results are followed. Deviation: classes of letters
and symbols are those of the Unicode properties in `regex`, not lists of ranges.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

import regex

Words = tuple[str, ...]


def _contractions() -> Iterator[Words]:
    """Yield the parts of contractions, in lower case and with apostrophes."""
    with_have = "ca could did does do had may might must need ought sha should wo would".split()
    for verb in (*with_have, *"ai are dare has have is was were".split()):
        yield verb, "n't"
    yield from ((verb, "n't", "'ve") for verb in with_have)
    yield from ((verb, "'ve") for verb in "could might must should would not".split())
    people, places = "i you he she it we they".split(), "who what when where why how there".split()
    things = "these those".split()
    for word in (*people, *places, *things, "that", "this"):
        yield from ((word, "'d"), (word, "'d", "'ve"), (word, "'ll"), (word, "'ll", "'ve"))
    yield from ((word, "'s") for word in ("he", "she", "it", *places, "that", "this"))
    yield from ((word, "'re") for word in ("you", "we", "they", *places, *things))
    yield from ((word, "'ve") for word in ("i", "you", "we", "they", *places, *things))
    yield from (("i", "'m"), ("i", "'m", "a"))


# Contractions whose letters are another word: these keep their apostrophe.
_OTHER_WORDS = frozenset("ill hell shell shed well were its whore".split())
# More words in parts; those of the second row begin with a capital letter too.
_PARTS = ("y' all", "y all", "how 'd 'y", "How 'd 'y")
_PARTS_ANY_CASE = ("can not", "gon na", "got ta", "let 's", "c'm on")
# Words that keep the marks at their ends.
_WHOLE = """
    's 'S 'd 'll 're 'em '' 'bout 'nuff a.m. p.m. e.g. i.e. E.g. E.G. I.e. I.E. v.s. vs. co. ä. ö.
    ü. Adm. Ak. Ala. Apr. Ariz. Ark. Aug. Bros. Calif. Co. Colo. Conn. Corp. D.C. Dec. Del. Dr. Feb.
    Fla. Ga. Gen. Gov. Ia. Id. Ill. Inc. Ind. Jan. Jr. Jul. Jun. Kan. Kans. Ky. La. Ltd. Mar. Mass.
    Md. Messrs. Mich. Minn. Miss. Mo. Mont. Mr. Mrs. Ms. Mt. N.C. N.D. N.H. N.J. N.M. N.Y. Neb.
    Nebr. Nev. Nov. Oct. Okla. Ore. Pa. Ph.D. Prof. Rep. Rev. S.C. Sen. Sep. Sept. St. Tenn. Va.
    Wash. Wis. ol' Ol' V.V v.v O.O O.o o.O o.o 0.o o.0 0.0 <.< >.> >.< <3 <33 <333 <space>
    :> :D :O :P :X :0 :1 :3 :o :p :x =3 =D 8D >:o xD XD xDD XDD ಠ︵ಠ
"""
_WHOLE_ANY_CASE = "'cause 'cos 'coz 'cuz doin' goin' havin' lovin' nothin' nuthin' somethin'"


def _exceptions() -> dict[str, Words]:
    """Return word -> its parts, for the words that are listed."""
    parts = [tuple(words.split()) for words in (*_PARTS, *_PARTS_ANY_CASE)]
    parts += [(word[0].upper() + word[1:], *rest) for word, *rest in parts[len(_PARTS) :]]
    for words in _contractions():
        bare = tuple(word.replace("'", "") for word in words)
        forms = (words,) if "".join(bare) in _OTHER_WORDS else (words, bare)
        for word, *rest in forms:
            parts += (word, *rest), (word.capitalize(), *rest)
    parts += [(hour, half) for hour, half in product(map(str, range(1, 13)), _HALVES)]
    parts += [("°", unit, ".") for unit in "CFKcfk"]
    whole = [*_WHOLE.split(), *(f"{letter}." for letter in "abcdefghijklmnopqrstuvwxyz")]
    for word in _WHOLE_ANY_CASE.split():
        whole += word, word.title()
    return {"".join(words): words for words in parts} | {word: (word,) for word in whole}


_HALVES = ("am", "pm", "a.m.", "p.m.")

_UNCASED = (
    r"\u0591-\u05f4\u0620-\u064a\u066e-\u06d5\u06e5-\u06ff\u0750-\u077f\u08a0-\u08bd\u0900-\u09ff"
    r"\u0b80-\u0cff\u0d80-\u0dff\u1100-\u137f\u2e80-\u2fdf\u2ff0-\u30ff\u31c0-\u31ef\u3200-\u4dbf"
    r"\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\ufb1d-\ufbb1\ufbd3-\ufd3d\ufd50-\ufdc7\ufdf0-\ufdfb"
    r"\ufe30-\ufe4f\ufe70-\ufefc\U0001ee00-\U0001eebb\U0001f200-\U0001f2ff\U00020000-\U0002a6df"
    r"\U0002a700-\U0002ebef\U0002f800-\U0002fa1f"
)
_LOWER = rf"[[\p{{Latin}}&&\p{{Ll}}]ʔʕа-щъ-яёәөүҗңһюіїєґѓѕјљњќѐѝьα-ωάέίόώήύ{_UNCASED}]"
_UPPER = rf"[[\p{{Latin}}&&\p{{Lu}}]А-ЩЪ-ЯЁӘӨҮҖҢҺЮІЇЄҐЃЅЈЉЊЌЀЍЬΑ-ΩΆΈΊΌΏΉΎ{_UNCASED}]"
_ALPHA = rf"[{_LOWER}{_UPPER}ƻǅǈǋǲ]"
_PUNCTUATION = r"…,:;!?¿؟¡()\[\]{}<>_\#*\&。？！，、；：～·।،۔؛٪"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉〈〉⟦⟧"
_MONEY = r"(?:US\$|C\$|A\$|[$£€¥฿₽﷼₴₠-₾₿])"
_SYMBOLS = r"[\p{So}]"
_UNITS = (
    "(?:km|km²|km³|m|m²|m³|dm|dm²|dm³|cm|cm²|cm³|mm|mm²|mm³|ha|µm|nm|yd|in|ft|kg|g|mg|µg|t|lb|oz"
    "|m/s|km/h|kmh|mph|hPa|Pa|mbar|mb|MB|kb|KB|gb|GB|tb|TB|T|G|M|K|%"
    "|км|км²|км³|м|м²|м³|дм|дм²|дм³|см|см²|см³|мм|мм²|мм³|нм|кг|г|мг|м/с|км/ч|кПа|Па|мбар"
    "|[КМГ][Бб]|[кмг]б|Т[Бб]|كم²|كم³|م|م²|م³|سم|سم²|سم³|مم|مم²|مم³|كم|غرام|جرام|جم|كغ|ملغ|كوب|اكواب)"
)

_prefix = regex.compile(
    rf"(?:[§%=—–]|\+(?![0-9])|……|[{_PUNCTUATION}]|\.\.+|[{_QUOTES}]|{_MONEY}|{_SYMBOLS})",
    regex.V1,
).match
_suffix = regex.compile(
    rf"(?:……|[{_PUNCTUATION}]|[{_QUOTES}]|{_SYMBOLS}|'[sS]|[—–]|(?<=[0-9])\+"
    rf"|(?<=°[FfCcKk])\.|(?<=[0-9]){_MONEY}|(?<=[0-9]){_UNITS}"
    rf"|(?<=[0-9{_LOWER}%²\-+|{_PUNCTUATION}{_QUOTES}])\.|(?<={_UPPER}{_UPPER})\.)$",
    regex.V1,
).search
_infixes = regex.compile(
    rf"\.\.+|…|{_SYMBOLS}|(?<=[0-9])[+\-*^](?=[0-9-])"
    rf"|(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])|(?<={_ALPHA}),(?={_ALPHA})"
    rf"|(?<=[{_ALPHA}0-9])(?:-|–|—|~)(?={_ALPHA})|(?<=[{_ALPHA}0-9])[:<>=/](?={_ALPHA})",
    regex.V1,
).finditer
# An address; cleaning has put spaces around slashes and hyphens, so little of one is left.
_address = regex.compile(
    rf"(?:\S+(?::\S*)?@)?(?:(?:[A-Za-z0-9\u00a1-\uffff][A-Za-z0-9\u00a1-\uffff_-]{{0,62}})?"
    rf"[A-Za-z0-9\u00a1-\uffff]\.)+(?:{_LOWER}{{2,63}})(?::\d{{2,5}})?(?:[/?#]\S*)?",
    regex.V1,
).fullmatch


class _Lists(NamedTuple):
    """The exceptions, by their text and by the run of words that the rules would cut it into."""

    exceptions: dict[str, Words]
    runs: dict[Words, Words]
    longest: int  # words in a key of `runs`


_LONGEST = 16  # characters of an exception, and of what a suffix is and looks back at
_LONGEST_ADDRESS = 512  # more than there are; the time to look for one grows with the square


@cache
def _lists() -> _Lists:
    exceptions = _exceptions()
    cuts = {tuple(_cut(word, {})): words for word, words in exceptions.items()}
    runs = {run: words for run, words in cuts.items() if len(run) > 1}
    return _Lists(exceptions, runs, max(map(len, runs)))


def split(chunk: str) -> list[str]:
    """Return the words of a chunk of cleaned text (without spaces), which concatenate to it.

    Example:
        >>> split("don't"), split("U.S."), split("end."), split("$5.50'")
        (['do', "n't"], ['U.S.'], ['end', '.'], ['$', '5.50', "'"])
    """
    lists = _lists()
    if chunk.isalpha() and chunk.isascii() and chunk not in lists.exceptions:
        return [chunk]
    words = _cut(chunk, lists.exceptions)
    return _mended(words, lists) if len(words) > 1 else words


def _cut(chunk: str, exceptions: dict[str, Words]) -> list[str]:
    """Strip prefixes and suffixes until the middle is an exception or has neither."""
    before: list[str] = []
    after: list[str] = []
    start, end = 0, len(chunk)
    while start < end and _slice(chunk, start, end) not in exceptions:
        prefix = _prefix(chunk, start, end)
        first, last = prefix.end() if prefix else start, end
        if _slice(chunk, first, end) not in exceptions:
            last = _before_suffix(chunk, first, end)
        if last < end and _slice(chunk, start, last) in exceptions:  # with what seemed a prefix
            first = start
        if (first, last) == (start, end):
            return [*before, *_middle(chunk[start:end]), *reversed(after)]
        if first > start:
            before.append(chunk[start:first])
        if last < end:
            after.append(chunk[last:end])
        start, end = first, last
    return [*before, *exceptions.get(chunk[start:end], ()), *reversed(after)]


def _slice(chunk: str, start: int, end: int) -> str:
    """Return a slice of a chunk if it is short enough for an exception, else an empty string."""
    return chunk[start:end] if end - start <= _LONGEST else ""


def _before_suffix(chunk: str, start: int, end: int) -> int:
    """Return where the suffix of a part of a chunk begins, or its end if it has none."""
    dots = end
    while dots > start and chunk[dots - 1] == ".":
        dots -= 1
    if end - dots > 1:
        return dots
    tail = max(start, end - _LONGEST)  # all that a suffix can look at
    match = _suffix(chunk[tail:end])
    return tail + match.start() if match else end


def _middle(chunk: str) -> list[str]:
    """Cut a chunk without affixes at its infixes, unless it is an address."""
    if len(chunk) <= _LONGEST_ADDRESS and _address(chunk):
        return [chunk]
    words: list[str] = []
    done = 0
    for infix in _infixes(chunk):
        if infix.start():
            words += chunk[done : infix.start()], infix.group()
            done = infix.end()
    return [word for word in (*words, chunk[done:]) if word]


def _mended(words: list[str], lists: _Lists) -> list[str]:
    """Replace the runs of words that exceptions were cut into by the parts of the exceptions."""
    result: list[str] = []
    i = 0
    while i < len(words):
        sizes = range(min(lists.longest, len(words) - i), 1, -1)  # the longest run first
        runs = (tuple(words[i : i + size]) for size in sizes)
        run = next((run for run in runs if run in lists.runs), (words[i],))
        result += lists.runs.get(run, run)
        i += len(run)
    return result
