"""Features: rows of ids from records, conversion by several processes, a cache on disk.

A task turns records (what a file says) into a NamedTuple of NumPy arrays that share their first
axis, one row for what the model sees as one example. N is the number of rows, T their length.
"""

import hashlib
import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, is_dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from fnlm import __version__
from fnlm.tasks._types import Bools, Ints, Progress, Tokenizer

F = TypeVar("F", bound=tuple[Any, ...])

# Records that are converted together: between two calls of `progress`, and as one job of a worker.
CHUNK = 256


class SpecialTokens(NamedTuple):
    """The ids of BERT's special tokens."""

    cls: int  # [CLS], at the beginning
    sep: int  # [SEP], after each text
    pad: int  # [PAD]


def special_tokens(tokenizer: Tokenizer) -> SpecialTokens:
    """Return the ids of [CLS], [SEP] and [PAD] in the vocabulary of a tokenizer.

    Raises:
        ValueError: the vocabulary lacks one of them.

    >>> from fnlm.tokenize import bert
    >>> special_tokens(bert.Tokenizer({"[UNK]": 0, "[PAD]": 1, "[SEP]": 2, "[CLS]": 3}))
    SpecialTokens(cls=3, sep=2, pad=1)
    """
    return SpecialTokens(*tokenizer.tokens_to_ids(["[CLS]", "[SEP]", "[PAD]"]))


def truncate_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Return the lengths of two texts after the longer one lost a token until both fit.

    Of two equally long texts the second loses a token. Source: `_truncate_seq_pair` of the BERT
    paper's code, here without the loop.

    Args:
        first, second: lengths in tokens.
        room: tokens that both may have together.

    Example:
        >>> truncate_pair(10, 3, 9), truncate_pair(10, 8, 9), truncate_pair(2, 3, 9)
        ((6, 3), (5, 4), (2, 3))
    """
    if first + second <= room:
        return first, second
    first_length = min(first, max(room - second, (room + 1) // 2))
    return first_length, room - first_length


def rows(
    pairs: Sequence[tuple[Sequence[int], Sequence[int] | None]],
    special: SpecialTokens,
    length: int,
) -> tuple[Ints, Ints, Bools]:
    """Return the rows [CLS] first [SEP] second [SEP] padding of texts.

    Args:
        pairs: the ids of a first and a second text, or None for the second; with the two or
            three special tokens they are at most `length`.
        special: the ids of the special tokens.
        length: T.

    Returns:
        ids: [N, T] int32.
        token_types: [N, T] int32, 1 from the second text to the [SEP] after it, else 0.
        mask: [N, T] bool, False on padding.

    Example:
        >>> ids, token_types, mask = rows([([5, 6], [7]), ([8], None)], SpecialTokens(1, 2, 0), 6)
        >>> ids.tolist(), token_types[0].tolist(), mask.sum(axis=1).tolist()
        ([[1, 5, 6, 2, 7, 2], [1, 8, 2, 0, 0, 0]], [0, 0, 0, 0, 1, 1], [6, 3])
    """
    ids = np.full((len(pairs), length), special.pad, np.int32)
    ends = np.zeros((len(pairs), 2, 1), np.int32)  # of the first text and of the row
    for row, (first, second) in enumerate(pairs):
        tail = () if second is None else (*second, special.sep)
        line = (special.cls, *first, special.sep, *tail)
        ids[row, : len(line)] = line
        ends[row, :, 0] = len(line) - len(tail), len(line)
    positions = np.arange(length, dtype=np.int32)
    mask = positions < ends[:, 1]  # [N, T]
    return ids, ((positions >= ends[:, 0]) & mask).astype(np.int32), mask


def encode_pairs(
    tokenizer: Tokenizer, texts: Iterable[tuple[str, str | None]], length: int
) -> tuple[Ints, Ints, Bools]:
    """Encode texts or pairs of texts, cut them to a length and lay them out as `rows` does.

    What does not fit is cut off the ends: of a pair as `truncate_pair` says.

    Args:
        tokenizer: BERT's.
        texts: a first and a second text each, or None for the second.
        length: T.

    Returns:
        ids, token_types, mask: as `rows` returns them.

    Raises:
        ValueError: `length` has no room for a token of each text.

    Example:
        >>> from fnlm.tokenize import bert
        >>> words = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "a", "b", "c"]
        >>> tokenizer = bert.Tokenizer({word: i for i, word in enumerate(words)})
        >>> encode_pairs(tokenizer, [("A b c", "c"), ("B", None)], 6)[0].tolist()
        [[2, 4, 5, 3, 6, 3], [2, 5, 3, 1, 1, 1]]
    """
    if length < 5:
        raise ValueError(
            f"max_seq_length={length} must be at least 5, for 3 special tokens and 2 others"
        )
    pairs: list[tuple[list[int], list[int] | None]] = []
    for first, second in texts:
        left = tokenizer.encode(first)
        if second is None:
            pairs.append((left[: length - 2], None))
        else:
            right = tokenizer.encode(second)
            lengths = truncate_pair(len(left), len(right), length - 3)
            pairs.append((left[: lengths[0]], right[: lengths[1]]))
    return rows(pairs, special_tokens(tokenizer), length)


def convert(
    make: "partial[F]",
    records: Sequence[Any],
    kind: type[F],
    *,
    workers: int = 1,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> F:
    """Convert records to arrays, in their order.

    Args:
        make: (records, first) -> arrays, a pure function: some consecutive records and the index
            of the first of them give a `kind`. It is a `functools.partial`, so that its settings
            can be seen; with more than one worker it can be pickled.
        records: what the arrays are made of.
        kind: a NamedTuple of arrays; those of all chunks are joined along their first axes.
        workers: processes that share the work. They are spawned, so a script that asks for more
            than one must guard its own code by ``if __name__ == "__main__":``.
        progress: called as progress(records done, records in all) from time to time.
        cache: a directory for results, or None for none. A result is found again by a hash of
            `make`, its settings, the records and the version of this package. A file is complete
            from the moment it has its name, and made anew where it is damaged.

    Raises:
        ValueError: `workers` is below 1.
        TypeError: with a cache, a setting has no content that can be hashed.
        OSError: `cache` is no directory and cannot become one.

    Example:
        >>> class Arrays(NamedTuple):
        ...     number: Ints  # [N]
        ...     place: Ints  # [N]
        >>> def make(records, first, plus):
        ...     places = np.arange(first, first + len(records))
        ...     return Arrays(np.array(records) + plus, places)
        >>> convert(partial(make, plus=1), [7, 8], Arrays)
        Arrays(number=array([8, 9]), place=array([0, 1]))
    """
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1, the process that calls")
    if cache is None:
        return _join(kind, _parts(make, records, workers, progress))
    name = f"{make.func.__module__}.{make.func.__qualname__}"
    content = digest(__version__, name, make.args, make.keywords, records)
    path = Path(cache).expanduser() / f"{make.func.__module__.split('.')[-1]}-{content}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = _load(path, kind)
    if arrays is None:
        arrays = _join(kind, _parts(make, records, workers, progress))
        _save(path, arrays)
    elif progress is not None:
        progress(len(records), len(records))
    return arrays


def _parts(
    make: "partial[F]", records: Sequence[Any], workers: int, progress: Progress | None
) -> Iterator[F]:
    """Yield the arrays of one chunk of the records after the other; of none, one empty chunk."""
    jobs = [(records[i : i + CHUNK], i) for i in range(0, max(len(records), 1), CHUNK)]
    if workers == 1 or len(jobs) == 1:
        yield from _counted((make(*job) for job in jobs), len(records), progress)
        return
    # Spawned, not forked: a fork of a process that runs threads, as torch does, may hang.
    count = min(workers, len(jobs))
    with ProcessPoolExecutor(count, get_context("spawn"), _install, (make,)) as pool:
        yield from _counted(pool.map(_call, jobs), len(records), progress)


def _counted(parts: Iterable[F], total: int, progress: Progress | None) -> Iterator[F]:
    for number, part in enumerate(parts, start=1):
        if progress is not None:
            progress(min(number * CHUNK, total), total)
        yield part


# In a worker: the function that it was started with, sent once rather than with every job.
_installed: list["partial[Any]"] = []


def _install(make: "partial[Any]") -> None:
    _installed[:] = [make]


def _call(job: tuple[Sequence[Any], int]) -> Any:
    return _installed[0](*job)


def _join(kind: type[F], parts: Iterable[F]) -> F:
    columns = zip(*parts, strict=True)
    return _from_columns(kind, [np.concatenate(pieces) for pieces in columns])


def _from_columns(kind: type[F], columns: list[npt.NDArray[Any]]) -> F:
    return cast(F, cast(Any, kind)._make(columns))


def _names(kind: type[F]) -> tuple[str, ...]:
    return cast(tuple[str, ...], cast(Any, kind)._fields)


def digest(*content: Any) -> str:
    """Return a hash of values: equal values give equal hashes in any process, on any machine.

    Args:
        content: strings, numbers, booleans, None, arrays, ranges, lists, tuples, mappings with
            strings as keys, and dataclasses such as tokenizers, which go by their compared fields.

    Returns:
        40 hexadecimal digits.

    Raises:
        TypeError: a value is of another type.

    Example:
        >>> digest("a", {"b": 1, "c": (2.5, None)}) == digest("a", {"c": [2.5, None], "b": 1})
        True
    """
    text = json.dumps(content, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _plain(value: Any) -> Any:
    """Return a value that JSON lacks in terms of values that it has."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        raw = hashlib.sha256(value.tobytes()).hexdigest()
        return ["array", value.dtype.str, value.shape, raw]
    if is_dataclass(value) and not isinstance(value, type):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        return [name, *(getattr(value, field.name) for field in fields(value) if field.compare)]
    raise TypeError(
        f"the content of {type(value).__name__} cannot be hashed, so there is no cache for it; "
        "give cache=None, or make it a dataclass"
    )


def _load(path: Path, kind: type[F]) -> F | None:
    """Return the arrays of a file; None where it is absent or damaged."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return _from_columns(kind, [arrays[name] for name in _names(kind)])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error):
        return None


def _save(path: Path, arrays: tuple[Any, ...]) -> None:
    """Write arrays to a file that is complete from the moment it has its name."""
    part = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            np.savez_compressed(file, **dict(zip(_names(type(arrays)), arrays, strict=True)))
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
