"""Encoding many texts, in this process or in several."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context

Encode = Callable[[str], list[int]]


def encode_all(encode: Encode, texts: Iterable[str], workers: int) -> list[list[int]]:
    """Return the ids of each text, in order.

    Args:
        encode: text -> ids; it can be pickled if there is more than one worker.
        texts: any number of strings.
        workers: processes to share the work, this one among them. The others are spawned, not
            forked: a fork of a process that runs threads, as torch does, may hang.

    Raises:
        ValueError: `texts` is one string, or `workers` is below 1.
    """
    if isinstance(texts, str):
        raise ValueError(f"texts={texts[:40]!r} is one string; give a list of strings, or encode")
    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1, the process that calls")
    texts = list(texts)
    if workers == 1 or len(texts) < 2:
        return [encode(text) for text in texts]
    own, *parts = shares(texts, workers)
    if not parts:
        return [encode(text) for text in own]
    with ProcessPoolExecutor(len(parts), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(encode_all, encode, part, 1) for part in parts]
        rows = [encode(text) for text in own]  # while the others start
        return [*rows, *(ids for job in jobs for ids in job.result())]


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
