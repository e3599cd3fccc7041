"""Encoding many texts, in this process or in several."""

import gc
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, chain
from multiprocessing import get_context

Encode = Callable[[str], list[int]]

# Parts of the work for each process: texts of one length do not take one time, and a process has up
# to three parts before it that no other may take.
_PARTS = 32


def encode_all(encode: Encode, texts: Iterable[str], workers: int) -> list[list[int]]:
    """Return the ids of each text, in order.

    Args:
        encode: text -> ids; it can be pickled if there is more than one worker.
        texts: any number of strings.
        workers: processes to share the work, this one among them. The others take parts from the
            front and this one from the back until all are taken. They are spawned, not forked: a
            fork of a process that runs threads, as torch does, may hang.

    Raises:
        ValueError: `texts` is one string, or `workers` is below 1.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts={texts[:40]!r} is one string; give a list of strings, or encode")
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1, the process that calls")
    texts = list(texts)
    with _collector_paused():
        return _encode_all(encode, texts, workers)


def _encode_all(encode: Encode, texts: list[str], workers: int) -> list[list[int]]:
    if workers == 1 or len(texts) < 2:
        return [encode(text) for text in texts]
    parts = list(shares(texts, _PARTS * workers))
    if len(parts) < 2:
        return [encode(text) for text in texts]
    others = min(workers, len(parts)) - 1
    with ProcessPoolExecutor(others, get_context("spawn"), _begin, (encode,)) as pool:
        jobs = [pool.submit(_encode_part, part) for part in parts]
        rows: list[list[list[int]]] = []  # of the parts that this process takes, last one first
        try:
            while len(rows) < len(jobs) and jobs[~len(rows)].cancel():
                rows.append([encode(text) for text in parts[~len(rows)]])
            rows += [job.result() for job in reversed(jobs[: len(jobs) - len(rows)])]
        finally:
            pool.shutdown(cancel_futures=True)  # of texts, once one is refused
    return list(chain.from_iterable(reversed(rows)))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the collector of cycles: lists of ids have none, and it would walk them often."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Worker:
    """What a process that was started for `encode_all` encodes with: it does nothing else."""

    encode: Encode


def _begin(encode: Encode) -> None:
    gc.disable()  # see `_collector_paused`
    _Worker.encode = encode


def _encode_part(texts: list[str]) -> list[list[int]]:
    return [_Worker.encode(text) for text in texts]


def shares(texts: list[str], workers: int) -> Iterator[list[str]]:
    """Divide texts, in their order, into at most `workers` runs of about equal length.

    Example:
        >>> list(shares(["one", "two", "three", "", "four"], 2))
        [['one', 'two'], ['three', '', 'four']]
    """
    ends = list(accumulate(map(len, texts)))
    begin = 0
    for share in range(1, workers + 1):
        end = bisect_right(ends, ends[-1] * share // workers) if share < workers else len(texts)
        if begin < end:
            yield texts[begin:end]
            begin = end
