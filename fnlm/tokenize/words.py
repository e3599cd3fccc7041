"""Words: reading the lines of files, splitting at delimiters, and counting.

White space is that of `str.split` and `str.strip`, and lower case that of `str.lower`, as in the
programs whose vocabularies are read here.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from io import TextIOWrapper
from pathlib import Path

from fnlm.tokenize._byte_level import Offsets

__all__ = ["count", "lines", "places", "split"]


def lines(*paths: str | Path) -> Iterator[str]:
    r"""Yield the lines of text files, which may be compressed by gzip, one file after the other.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not UTF-8, or its compressed data are damaged.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "text.txt"
        ...     _ = path.write_text("a b\nc")
        ...     list(lines(path, path))
        ['a b\n', 'c', 'a b\n', 'c']
    """
    for path in paths:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            content = gzip.GzipFile(fileobj=raw) if compressed else raw
            try:
                with TextIOWrapper(content, encoding="utf-8") as text:
                    yield from text
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert it") from None
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise ValueError(f"{path} is damaged ({error}); copy the file again") from None


def split(text: str, lower_case: bool = False, delimiter: str | None = None) -> list[str]:
    """Return the words of a text, without the white space around it.

    Args:
        text: any string.
        lower_case: whether it is lower-cased.
        delimiter: what is between words: None for any white space, "" for nothing, that is, each
            character is a word. Words between other delimiters may be empty.

    Raises:
        TypeError: `text` is not a string.

    Example:
        >>> split(" A  b "), split("a,,b", delimiter=","), split("ab", delimiter="")
        (['A', 'b'], ['a', '', 'b'], ['a', 'b'])
    """
    if not isinstance(text, str):
        raise TypeError(
            f"text is of type {type(text).__name__}, not str; decode bytes first, and give "
            "several texts to encode_batch"
        )
    text = text.strip().lower() if lower_case else text.strip()
    return [*text] if delimiter == "" else text.split(delimiter)


def places(text: str, lower_case: bool = False, delimiter: str | None = None) -> Offsets:
    """Return the offsets `(start, end)` of each word of `split` in the text before lower-casing.

    Example:
        >>> places(" A  b ")
        [(1, 2), (4, 5)]
    """
    lowered = text.lower() if lower_case else text
    begin = len(lowered) - len(lowered.lstrip())
    offsets: Offsets = []
    for word in split(text, lower_case, delimiter):
        start = lowered.index(word, begin)
        offsets.append((start, start + len(word)))
        begin = start + len(word) + len(delimiter or "")
    if len(lowered) == len(text):
        return offsets
    # Lower-casing made several letters of some: all of these have the offsets of the one.
    letters = [i for i, letter in enumerate(text) for _ in letter.lower()] + [len(text)]
    ends = [0, *(i + 1 for i in letters)]
    return [(letters[start], max(letters[start], ends[end])) for start, end in offsets]


def count(
    texts: Iterable[str], *, lower_case: bool = False, delimiter: str | None = None
) -> Counter[str]:
    """Count the words of texts, such as the `lines` of files; the counts of several can be added.

    Args:
        texts: any number of strings.
        lower_case, delimiter: as for `split`.

    Raises:
        ValueError: `texts` is one string.

    Example:
        >>> count(["a b", "b"]) + count(["B"], lower_case=True)
        Counter({'b': 3, 'a': 1})
    """
    if isinstance(texts, str):
        raise ValueError(f"texts={texts[:40]!r} is one string; give a list of strings, or lines")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text, lower_case, delimiter))
    return counts
