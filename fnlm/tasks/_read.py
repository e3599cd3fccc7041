"""Reading the files of data sets: text, perhaps compressed; every error names the file."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def read_text(path: str | Path) -> str:
    """Return the text of a file in UTF-8, without a byte order mark.

    Args:
        path: the file; it may be compressed by gzip, whatever its name. Where there is no such
            file, the one with ".gz" after its name is taken.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: the file is not UTF-8, or its compressed data are damaged.
    """
    path = Path(path).expanduser()
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return _decoded(candidate)
    what = "a directory" if path.is_dir() else "no file"
    raise FileNotFoundError(f"{str(path)!r} is {what}; give the path of a data file")


def _decoded(path: Path) -> str:
    raw = path.read_bytes()
    try:
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); copy the file again") from None


def read_json(path: str | Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is not JSON; the message names the line and the column.
    """
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg})"
        ) from None


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file; only line feeds (and a return before them) end a line.

    `str.splitlines` would also break lines at characters that occur within sentences, such as
    U+0085 and U+2028.
    """
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_csv(path: str | Path, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a csv file with a header: where each is, and its cells by column.

    Args:
        path: as for `read_text`.
        wanted: columns that must be there.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not csv, lacks a column, or has no rows.
    """
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    empty = True
    try:
        for column in wanted:
            if column not in (reader.fieldnames or ()):
                raise ValueError(
                    f"{path}, line 1: no column {column!r} among {reader.fieldnames}; is it the "
                    "right file?"
                )
        for row in reader:
            empty, place = False, f"{path}, line {reader.line_num}"
            short = [name for name, cell in row.items() if cell is None]
            if short or None in row:
                where = f"none for {short[0]!r}" if short else "more than the header"
                raise ValueError(f"{place}: wrong number of columns: {where}; see to its quotes")
            yield place, {name: cell or "" for name, cell in row.items()}
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.reader.line_num}: not csv ({error})") from None
    if empty:
        raise ValueError(f"{path} holds no examples; is it the right file?")
