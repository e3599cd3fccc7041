"""The directory of a run: whose it is, and the results in it. One process writes for all."""

import json
import shlex
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fnlm import distributed
from fnlm.files._checkpoint import replace

__all__ = ["claim_run_directory", "last_line", "write_results"]


def write_results(
    results: dict[str, float], directory: str | Path, name: str, *, then: Sequence[str] = ()
) -> str:
    """Write results to `name`.json and, one per line, to `name`.txt; return what to print.

    Args:
        results: the numbers.
        directory: of the run; created if missing.
        name: of the files.
        then: the words of a command that uses what the run has made, if there is one.

    Returns:
        the lines of the text, and a last one that names the files of the directory and the command.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = write_results({"f1": 0.5, "accuracy": 0.75}, folder, "eval_results")
    >>> print(text.replace(folder, "runs/one"), end="")
    accuracy = 0.75
    f1 = 0.5
    runs/one holds eval_results.json, eval_results.txt
    """
    lines = "".join(f"{key} = {results[key]}\n" for key in sorted(results))

    def write() -> str:
        text = json.dumps(results, indent=2, sort_keys=True) + "\n"
        _write(Path(directory, f"{name}.txt"), lines)
        _write(Path(directory, f"{name}.json"), text)
        return lines + last_line(directory, then)

    return distributed.on_first(write)


def last_line(directory: str | Path, then: Sequence[str] = ()) -> str:
    """Return the last line of a program: what its directory holds, and the next command if any.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     text = write_results({"f1": 0.5}, folder, "eval_results")
    ...     line = last_line(folder, ["fnlm", "inspect", folder])
    >>> print(line.replace(folder, "runs/one"), end="")
    runs/one holds eval_results.json, eval_results.txt; next: fnlm inspect runs/one
    """
    paths = distributed.on_first(lambda: [*Path(directory).iterdir()])
    names = sorted(path.name for path in paths if path.name[0] != ".")
    following = f"; next: {shlex.join(then)}" if then else ""
    return f"{directory} holds {', '.join(names)}{following}\n"


def claim_run_directory(
    directory: str | Path,
    settings: Mapping[str, Any],
    fingerprinted: Mapping[str, Sequence[npt.NDArray[Any]]],
) -> None:
    """Claim a directory for a run, by the settings and checksums in its `run.json`.

    On many processes, all of which call it, the first one does it.

    Args:
        directory: of the run; created if missing.
        settings: name -> value that JSON can represent.
        fingerprinted: name -> arrays, of which a checksum is compared.

    Raises:
        ValueError: the directory holds another run, and the message names what differs; or its
            `run.json` is damaged.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     claim_run_directory(folder, {"seed": 1}, {"data": [np.zeros(3)]})
    ...     claim_run_directory(folder, {"seed": 2}, {"data": [np.zeros(3)]})
    Traceback (most recent call last):
    ...
    ValueError: ... holds a run with other seed: give another directory, ...
    """
    distributed.on_first(lambda: _claim_there(Path(directory), settings, fingerprinted))


def _claim_there(
    directory: Path,
    settings: Mapping[str, Any],
    fingerprinted: Mapping[str, Sequence[npt.NDArray[Any]]],
) -> None:
    checksums = dict.fromkeys(fingerprinted, 0)
    for name, arrays in fingerprinted.items():
        for array in arrays:
            checksums[name] = zlib.crc32(np.ascontiguousarray(array).data, checksums[name])
    text = json.dumps({**settings, **checksums}, indent=2, sort_keys=True) + "\n"
    path = directory / "run.json"
    try:
        _write(path, text, new=True)  # of two runs that begin at once, one is the first
    except FileExistsError:
        _compare(path, json.loads(text))  # as JSON, where a tuple is a list


def _compare(path: Path, expected: dict[str, Any]) -> None:
    """Raise unless a `run.json` has the expected values."""
    try:
        recorded = json.loads(path.read_bytes().decode())
    except (ValueError, RecursionError):
        recorded = None
    if not isinstance(recorded, dict):
        raise ValueError(
            f"{path} is damaged, so nobody knows which run is in {path.parent}: remove the file "
            "if it is this one, or give another directory"
        )
    differing = [name for name in expected if recorded.get(name) != expected[name]]
    if differing:
        raise ValueError(
            f"{path.parent} holds a run with other {', '.join(differing)}: give another "
            "directory, or remove this one to start anew"
        )


def _write(path: Path, text: str, *, new: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda partial: partial.write_text(text, encoding="utf-8"), new=new)
