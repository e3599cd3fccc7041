"""The directory of a run: its lock, and the states that are kept in it.

`state.safetensors` is the last state, `state.step-200.safetensors` one before it. A new state is
whole before it takes the name, and the former one has its second name by then, so that a kill at
any moment leaves a last state that is whole.
"""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fnlm.files._checkpoint import half_written, replace
from fnlm.train.state import DamagedStateError, load_state, load_with_notes, save_state
from fnlm.tree import Tree

__all__ = ["STATE", "locked", "prune", "resume", "save"]

STATE = "state.safetensors"


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on a directory, which the system releases when the process ends.

    What a killed run left half written is removed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.nullcontext() if sys.platform == "win32" else _flock(directory):
        for part in half_written(directory):
            part.unlink()
        yield


@contextlib.contextmanager
def _flock(directory: Path) -> Iterator[None]:
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another run is at work in {directory}: wait for it, or give another directory"
            ) from error
        except OSError:  # a file system without locks, as some network file systems
            pass
        yield
    finally:
        os.close(handle)


def save(directory: Path, state: Tree, *, notes: Any, former: int | None, keep: int) -> None:
    """Save the state of a run as its last one, and keep the ones before.

    Args:
        directory: of the run.
        state: its state.
        notes: kept with it, as by `save_state`.
        former: the step of the state that is the last one now, None if there is none.
        keep: how many states are kept, the new one included.
    """
    if former is not None and keep > 1:
        _name_also(directory / STATE, directory / f"state.step-{former}.safetensors")
    save_state(state, directory / STATE, notes=notes)
    prune(directory, keep)


def prune(directory: Path, keep: int) -> None:
    """Remove the states before the last `keep` ones."""
    for path in _former(directory)[keep - 1 :]:
        path.unlink()


def resume(directory: Path, like: Tree) -> tuple[Tree, Any] | None:
    """Return the last state of a directory and its notes, None if there is no state.

    Raises:
        ValueError: the state is damaged; the message names a former one that is whole.
    """
    path = directory / STATE
    if not path.exists():
        return None
    try:
        return load_with_notes(path, like)
    except DamagedStateError as error:
        former = next((former for former in _former(directory) if _is_whole(former, like)), None)
        if former is None:
            raise
        raise DamagedStateError(
            f"{error}. The state before it is whole: mv {former} {path} and start again"
        ) from error


def _is_whole(path: Path, like: Tree) -> bool:
    try:
        load_state(path, like)
    except (ValueError, OSError):
        return False
    return True


def _former(directory: Path) -> list[Path]:
    """Return the former states, the last one first."""
    steps: dict[int, Path] = {}
    for path in directory.iterdir():
        if found := re.fullmatch(r"state\.step-(\d+)\.safetensors", path.name):
            steps[int(found[1])] = path
    return [steps[step] for step in sorted(steps, reverse=True)]


def _name_also(path: Path, name: Path) -> None:
    """Give a file a second name, instead of what has it."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:  # a file system without hard links
        replace(name, lambda part: shutil.copyfile(path, part))
