"""Other processes that encode texts: fresh interpreters that import the tokenizers and no more.

They are started by a command and not by `multiprocessing`, which would import the main module of
the caller again: that takes as long as all that it imports, and runs a script once more that does
not guard against it. Nor are they forked: a fork of a process with threads, as torch has, may hang.
"""

import gc
import os
import pickle
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from subprocess import PIPE, Popen
from typing import Any

Encode = Callable[[str], list[int]]
Part = tuple[int, list[str]]  # its place, its texts
Rows = list[list[int]]  # the ids of each text

_BEGUN, _FAILED = b".", b"!"


def take(waiting: deque[Part], *, last: bool = False) -> Iterator[Part]:
    """Yield the first part that waits, or the last, until none does; others may take some too."""
    with suppress(IndexError):
        while True:
            yield waiting.pop() if last else waiting.popleft()


def start() -> Popen[bytes]:
    """Return a new process that will `serve`."""
    command = [sys.executable, "-P", "-c", f"from {__name__} import serve; serve()"]
    path = os.pathsep.join(filter(None, sys.path))
    return Popen(command, stdin=PIPE, stdout=PIPE, env={**os.environ, "PYTHONPATH": path})


def encode_elsewhere(process: Popen[bytes], encode: bytes, waiting: deque[Part]) -> dict[int, Rows]:
    """Have a process encode parts until none waits; return place -> ids of those it took.

    It is sent a part once it has begun the one before, and so has another whenever it is done.

    Args:
        process: from `start`; it ends with this.
        encode: text -> ids, pickled.
        waiting: the parts; none is left if an error is raised.

    Raises:
        RuntimeError: the process ended before its work did.
        Exception: as `encode` raised it there.
    """
    assert process.stdin and process.stdout  # both are pipes
    places = []
    answer: Any
    try:
        with process:
            process.stdin.write(encode)
            for place, texts in take(waiting):
                places.append(place)
                process.stdin.write(pickle.dumps(texts))
                process.stdin.flush()
                if process.stdout.read(1) != _BEGUN:
                    break
            process.stdin.write(pickle.dumps(None))
            process.stdin.close()
            answer = pickle.load(process.stdout)
    except (BrokenPipeError, EOFError):
        answer = RuntimeError(f"a process that encodes texts ended with code {process.wait()}")
    if isinstance(answer, Exception):
        waiting.clear()
        raise answer
    return dict(zip(places, map(pickle.loads, answer), strict=True))


def serve() -> None:
    """Encode the parts that standard input brings, up to None, and then write their ids.

    After an error the parts are read and not encoded, so that the caller is not left writing.
    """
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever is printed is no part of the answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller says when to end
    gc.disable()  # lists of ids have no cycles
    done: list[bytes] = []  # the rows of each part, pickled: a tenth of the memory of lists
    error: Exception | None = None
    with suppress(BrokenPipeError, EOFError):  # the caller has ended
        encode: Encode = pickle.load(source)
        while (texts := pickle.load(source)) is not None:
            sink.write(_FAILED if error else _BEGUN)
            sink.flush()
            try:
                done += () if error else (pickle.dumps([encode(text) for text in texts]),)
            except Exception as raised:
                error = raised
        pickle.dump(error or done, sink)
        sink.flush()
    os._exit(0)  # faster than to take the tables apart
