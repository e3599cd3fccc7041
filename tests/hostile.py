"""Damaged and hostile files: how they are made, and how what a reader makes of them is judged."""

import codecs
import random
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fnlm.files._checkpoint import Checkpoint

Tensors = dict[str, Tensor]
Read = Callable[[Path], Checkpoint]

# What a reader may do to the world: open files to read, map them, look at folders.
HARMLESS = {"open", "mmap.__new__", "os.listdir", "os.scandir", "pathlib.Path.glob"}


class Watch:
    """Writes down what the interpreter is asked to do, while it is switched on."""

    def __init__(self) -> None:
        self.on = False
        self.installed = False
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        reads = event != "open" or arguments[1] in (None, "r", "rb")
        if event not in HARMLESS or not reads:
            self.seen.append((event, arguments))


WATCH = Watch()


@contextmanager
def nothing_runs() -> Iterator[None]:
    """Fail where something inside is imported, compiled, called by name, written or started."""
    if not WATCH.installed:  # a hook can't be removed again
        for name in ("ascii", "cp437", "latin-1", "raw_unicode_escape", "utf-8"):
            codecs.lookup(name)  # the first time, Python imports it
        sys.addaudithook(WATCH)
        WATCH.installed = True
    WATCH.seen.clear()
    WATCH.on = True
    try:
        yield
    finally:
        WATCH.on = False
    assert not WATCH.seen, WATCH.seen[:3]


@contextmanager
def little_memory(limit: int) -> Iterator[None]:
    """Fail where Python takes more than `limit` bytes at once."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit, f"{peak:,} bytes"


def bits(x: Tensor) -> Tensor:
    """The elements of a tensor as rows of bytes."""
    flat = x.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).reshape(flat.numel(), -1) if flat.numel() else flat


def alike(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype


def same(found: Tensors, wanted: Tensors) -> bool:
    """Whether names (in any order), shapes, types and all bits are equal."""
    return found.keys() == wanted.keys() and all(
        alike(found[name], x) and torch.equal(bits(found[name]), bits(x))
        for name, x in wanted.items()
    )


def one_element(found: Tensors, wanted: Tensors) -> bool:
    """Whether all is equal but one element of one tensor."""
    if found.keys() != wanted.keys() or not all(alike(found[n], x) for n, x in wanted.items()):
        return False
    return (
        sum(
            int((bits(found[name]) != bits(x)).any(1).sum())
            for name, x in wanted.items()
            if x.numel()
        )
        == 1
    )


def judge(read: Read, path: Path, wanted: Tensors) -> tuple[str, Tensors]:
    """Read all of a file; tell what came of it, and what was read.

    "error", a clear one; "same tensors"; "one element" that differs; or "others". Any other
    exception than those a reader may raise fails the test.
    """
    try:
        file = read(path)
        found = {name: file[name] for name in file}
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert path.name in text or path.parent.name in text, text
        assert len(text) < 2000 and "\n" not in text.strip(), text
        return "error", {}
    for name, entry in file.entries.items():
        x = found[name]
        assert (entry.dtype, entry.shape) == (str(x.dtype).removeprefix("torch."), x.shape)
    if same(found, wanted):
        return "same tensors", found
    return "one element" if one_element(found, wanted) else "others", found


def try_all(
    read: Read,
    path: Path,
    contents: Iterable[bytes],
    wanted: Tensors,
    check: Callable[[Tensors], bool] = lambda found: False,
) -> Counter[str]:
    """Judge files of these contents; `check` says whether "others" are what the file now says."""
    counts: Counter[str] = Counter()
    for content in contents:
        path.unlink(missing_ok=True)  # what is mapped must not change
        path.write_bytes(content)
        with nothing_runs():
            verdict, found = judge(read, path, wanted)
        if verdict == "others":
            assert check(found), f"{content!r:.2000}\n{found}"
            verdict = "others, as the file says"
        counts[verdict] += 1
    return counts


def flips(content: bytes, seed: int = 0) -> Iterator[bytes]:
    """The content with each byte changed, one at a time."""
    rng = random.Random(seed)
    for place, value in enumerate(content):
        changed = bytearray(content)
        changed[place] = value ^ rng.choice([1 << rng.randrange(8), rng.randrange(1, 256)])
        yield bytes(changed)


def cuts(content: bytes) -> Iterator[bytes]:
    """The content cut after each byte, and with each byte left out."""
    for place in range(len(content)):
        yield content[:place]
        yield content[:place] + content[place + 1 :]


def edits(content: bytes, regions: list[range], count: int, seed: int = 0) -> Iterator[bytes]:
    """The content with a few bytes of the regions (its headers) overwritten, deleted or doubled."""
    rng = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        for _ in range(rng.randrange(1, 5)):
            region = rng.choice(regions)
            place = rng.choice(region)
            piece = bytes(rng.choice([0, 1, 255, rng.randrange(256)]) for _ in range(4))
            match rng.randrange(4):
                case 0 | 1:
                    changed[place : place + rng.choice([1, 2, 4])] = piece[: rng.choice([1, 2, 4])]
                case 2:
                    del changed[place : place + rng.randrange(1, 9)]
                case _:
                    changed[place:place] = changed[place : place + rng.randrange(1, 9)]
        yield bytes(changed)
