"""Reading the files of data sets: text, perhaps compressed; every error names the file."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from fnlm.tasks._types import Rows, Source


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
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 1,000 brackets
        raise ValueError(f"{path}: JSON that cannot be read ({error})") from None


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a text file; only line feeds (and a return before them) end a line.

    `str.splitlines` would also break lines at characters that occur within sentences, such as
    U+0085 and U+2028.
    """
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_table(source: Source, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a csv file, as `read_csv` does, or of dicts, as `dict_rows` does.

    Args:
        source: a path, or rows.
        columns: names in files -> names on the hub.
    """
    if isinstance(source, str | Path):
        return read_csv(source, tuple(columns))
    return dict_rows(source, columns)


def dict_rows(rows: Rows, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield rows given as dicts: (location, cells by column), numbers as text.

    Args:
        rows: dicts, such as those of a data set of the package `datasets`.
        columns: name of each column -> another name that it may have in the rows.

    Raises:
        TypeError: a row is no dict.
        ValueError: a row lacks a column, or a cell is neither text nor a number; or there are none.

    >>> list(dict_rows([{"text": "It rains.", "label": 1}], {"text": "text", "gold": "label"}))
    [('row 0', {'text': 'It rains.', 'gold': '1'})]
    """
    for place, row in numbered(rows):
        yield place, {name: cell(row, place, name, hub) for name, hub in columns.items()}


def numbered(rows: Rows) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (location, row) of dicts.

    Raises:
        TypeError: a row is no dict.
        ValueError: there are none.
    """
    empty = True
    for number, row in enumerate(rows):
        empty = False
        if not isinstance(row, Mapping):
            raise TypeError(
                f"row {number} is of type {type(row).__name__}, not dict; give the rows of one "
                "split, or the path of a file"
            )
        yield f"row {number}", row
    if empty:
        raise ValueError("there are no rows, so no examples")


def cell(row: Mapping[str, Any], place: str, *names: str) -> str:
    """Return the text of the first of some columns that a row has.

    Raises:
        ValueError: it has none of them, or a cell is neither text nor a number.
    """
    name = next((name for name in names if name in row), None)
    if name is None:
        asked = " or ".join(map(repr, dict.fromkeys(names)))
        raise ValueError(f"{place}: no column {asked} among {list(row)}; are they the right rows?")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, str | Real):
        raise ValueError(f"{place}, column {name!r}: {value!r} is neither text nor a number")
    return value if isinstance(value, str) else str(value)


def read_csv(path: str | Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a csv file with a header: (location, cells by column).

    Args:
        path: as for `read_text`.
        columns: those that the file must have.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not csv, lacks a column, or has no rows.
    """
    rows = csv_rows(read_text(path), path)
    _, header = next(rows, (1, []))
    for column in columns:
        if column not in header:
            raise ValueError(
                f"{path}, line 1: no column {column!r} among {header}; is it the right file?"
            )
    empty = True
    for line, cells in rows:
        empty, place = False, f"{path}, line {line}"
        if len(cells) != len(header):
            short = len(cells) < len(header)
            where = f"none for {header[len(cells)]!r}" if short else "more than the header"
            raise ValueError(f"{place}: wrong number of columns: {where}; see to its quotes")
        yield place, dict(zip(header, cells, strict=True))
    if empty:
        raise ValueError(f"{path} holds no examples; is it the right file?")


# A cell, quoted (a quote in it is doubled) or not, and what ends it; "++" never takes back, so
# that the time is linear in the text, whatever it is.
_CELL = re.compile(r'(?:"((?:[^"]++|"")*+)"|([^",\r\n][^,\r\n]*+|))(,|\r\n|\r|\n|\Z)')
_LINE_END = re.compile(r"\r\n|\r|\n")


def csv_rows(text: str, path: str | Path) -> Iterator[tuple[int, list[str]]]:
    r"""Yield the rows of csv: the number of the last line of each, and its cells; no blank lines.

    As `csv.reader(..., strict=True)` reads it, without its limit of 131,072 characters a cell,
    which is a switch of the whole process.

    Args:
        text: of the file.
        path: for errors.

    Raises:
        ValueError: a quoted cell is not closed, or goes on after its closing quote.

    >>> list(csv_rows('a,"b ""c"", d"\n\n1,2', "f"))
    [(1, ['a', 'b "c", d']), (3, ['1', '2'])]
    """
    position, line, cells = 0, 1, list[str]()
    while position < len(text) or cells:
        match = _CELL.match(text, position)
        if match is None:
            closed = re.compile(r'"(?:[^"]++|"")*+"').match(text, position)
            what = "text follows a closing quote" if closed else "a quote is not closed"
            raise ValueError(f"{path}, line {line}: not csv ({what})")
        quoted, plain, end = match.groups()
        cells.append(plain if quoted is None else quoted.replace('""', '"'))
        if quoted is not None:
            line += len(_LINE_END.findall(quoted))
        position = match.end()
        if end == ",":
            continue
        if cells != [""] or quoted is not None:
            yield line, cells
        cells, line = [], line + 1
