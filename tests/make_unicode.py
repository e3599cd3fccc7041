"""Make fnlm/tokenize/unicode-14.0.0.txt, the character data that BERT's tokenizers need.

    python tests/make_unicode.py

The part named `python` is what Python 3.11 knows (Unicode 14.0.0), the part named `tokenizers`
what the library of that name does, found by giving it every character: its own tables come from
several versions of Unicode. Run it with both; the file says which they were.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from textwrap import wrap

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import tokenizers
from tokenizers import normalizers, pre_tokenizers

PATH = Path(__file__).parent.parent / "fnlm" / "tokenize" / "unicode-14.0.0.txt"
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
SURROGATES = range(0xD800, 0xE000)
HANGUL = range(0xAC00, 0xD7A4)  # decomposed by arithmetic, not by a table
WHITESPACE = {ord(character) for character in "\t\n\r"}
ASCII_PUNCTUATION = {*range(33, 48), *range(58, 65), *range(91, 97), *range(123, 127)}

HEADER = f"""\
# Character data of BERT's tokenizers: Unicode {unicodedata.unidata_version} as Python has it, and
# what tokenizers {tokenizers.__version__} does. Made by tests/make_unicode.py: do not edit.
# Code points and ranges of them, in hexadecimal; "=" gives what one maps to.
# From the Unicode Character Database, copyright Unicode, Inc., under the Unicode License."""


def ranges(codes: Iterable[int], value: Callable[[int], str] = lambda code: "") -> Iterator[str]:
    """Yield the fields of a set, or of a map with few values: neighbours of one value are one."""
    numbered = enumerate(sorted(codes))
    for (_, text), run in groupby(numbered, lambda pair: (pair[1] - pair[0], value(pair[1]))):
        members = [code for _, code in run]
        first, last = f"{members[0]:X}", f"{members[-1]:X}"
        yield (first if first == last else f"{first}-{last}") + text


def pairs(mapping: Mapping[int, str]) -> Iterator[str]:
    """Yield the fields of a map from characters to strings."""
    for code, text in sorted(mapping.items()):
        yield f"{code:X}={'.'.join(f'{ord(character):X}' for character in text)}"


def changed(function: Callable[[str], str]) -> dict[int, str]:
    """Return what a function makes of each character that it changes."""
    found = {code: function(chr(code)) for code in CODES}
    return {code: text for code, text in found.items() if text != chr(code)}


def peer_changed(normalizer: normalizers.Normalizer) -> dict[int, str]:
    """Return what a normalizer of the peer makes of each character: one call for all of them."""
    codes = [code for code in CODES if code != ord("|")]
    texts = normalizer.normalize_str("|".join(map(chr, codes))).split("|")
    return {code: text for code, text in zip(codes, texts, strict=True) if text != chr(code)}


def python_sections() -> dict[str, Iterator[str]]:
    category = {code: unicodedata.category(chr(code)) for code in CODES}

    def among(*wanted: str) -> set[int]:
        return {code for code in CODES if category[code].startswith(wanted)}

    # Python does not tell these two properties, but a final sigma depends on them.
    cased = {code for code in CODES if f"{chr(code)}Σ".lower().endswith("ς")}
    skipped = {code for code in CODES if f"A{chr(code)}Σ".lower().endswith("ς")} - cased
    order = {code: unicodedata.combining(chr(code)) for code in CODES}
    nfd = changed(lambda character: unicodedata.normalize("NFD", character))
    return {
        "space": ranges(among("Zs", "Zl", "Zp") | WHITESPACE),
        "cased": ranges(cased),
        "skipped": ranges(skipped),
        "python.other": ranges((among("C") | {*SURROGATES}) - WHITESPACE),
        "python.control": ranges(among("Cc", "Cf") - WHITESPACE),
        "python.mark": ranges(among("Mn")),
        "python.punctuation": ranges(among("P") | ASCII_PUNCTUATION),
        "python.lower": pairs(changed(str.lower)),
        "python.decomposed": pairs({c: text for c, text in nfd.items() if c not in HANGUL}),
        "python.order": ranges(filter(order.get, order), lambda code: f"={order[code]:X}"),
    }


def peer_sections() -> dict[str, Iterator[str]]:
    """Return the sets of the peer, and of its maps what differs from those of Python."""
    clean = peer_changed(normalizers.BertNormalizer(True, False, False, False))
    stripped = peer_changed(normalizers.BertNormalizer(False, False, True, False))
    lower = peer_changed(normalizers.Lowercase())
    nfd = peer_changed(normalizers.NFD())
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    lowered = changed(str.lower)
    decomposed = changed(lambda character: unicodedata.normalize("NFD", character))
    cut = {code for code in CODES if len(split(f"a{chr(code)}b")) == 3}

    def differing(peer: Mapping[int, str], ours: Mapping[int, str]) -> dict[int, str]:
        differ = {code for code, _ in peer.items() ^ ours.items()}
        return {code: peer.get(code, chr(code)) for code in differ}

    def unordered(code: int) -> bool:
        """Whether the peer orders this mark among no others."""
        before, after = f"{chr(code)}\u0334", f"\u0301{chr(code)}"
        text = normalizers.NFD().normalize_str
        return text(before) == before and text(after) == after

    classes = {code: unicodedata.combining(chr(code)) for code in CODES}
    return {
        "tokenizers.other": ranges({c for c, text in clean.items() if not text} - {0xFFFD}),
        "tokenizers.mark": ranges(code for code, text in stripped.items() if not text),
        "tokenizers.punctuation": ranges(cut),
        "tokenizers.lower": pairs(differing(lower, lowered)),
        "tokenizers.decomposed": pairs(differing(nfd, decomposed)),
        "tokenizers.order": ranges(
            filter(unordered, filter(classes.get, classes)), lambda code: "=0"
        ),
    }


def make() -> str:
    """Return the text of the file."""
    parts = [HEADER]
    for name, fields in (python_sections() | peer_sections()).items():
        parts.append(f"[{name}]\n" + "\n".join(wrap(" ".join(fields), 100, break_on_hyphens=False)))
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PATH.write_text(make(), encoding="utf-8", newline="\n")
