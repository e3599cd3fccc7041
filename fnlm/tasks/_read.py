"""Reading the files of data sets: text, perhaps compressed; every error names the file."""

import gzip
import json
import zlib
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
