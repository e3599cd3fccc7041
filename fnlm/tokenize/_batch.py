"""Encoding many texts, in this process or in several."""

import gc
import pickle
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import accumulate, chain

from fnlm.tokenize._processes import Encode, encode_elsewhere, start, take

# Parts of the work for each process: texts of one length do not take one time, and the last process
# to end has up to two parts that no other may take.
_PARTS = 128


def encode_all(encode: Encode, texts: Iterable[str], workers: int) -> list[list[int]]:
    """Return the ids of each text, in order.

    Args:
        encode: text -> ids; it can be pickled if there is more than one worker.
        texts: any number of strings.
        workers: processes to share the work, this one among them. The others take parts from the
            front and this one from the back until all are taken.

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
    with ExitStack() as stack:
        count = min(workers, len(texts))
        processes = [stack.enter_context(start()) for _ in range(count - 1)]  # import meanwhile
        waiting = deque(enumerate(shares(texts, _PARTS * count)))
        parts, pickled = len(waiting), pickle.dumps(encode)
        pool = stack.enter_context(ThreadPoolExecutor(count))
        others = [pool.submit(encode_elsewhere, process, pickled, waiting) for process in processes]
        try:
            rows = {
                place: [encode(text) for text in part] for place, part in take(waiting, last=True)
            }
        finally:
            waiting.clear()  # of texts, once one is refused
        for other in others:
            rows |= other.result()
    return list(chain.from_iterable(rows[place] for place in range(parts)))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the collector of cycles: lists of ids have none, and it would walk them often.

    It would also walk them when it goes on, as they are new. To freeze and unfreeze makes them old,
    in no time, and is left out where the caller has frozen something.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()
            gc.enable()


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
