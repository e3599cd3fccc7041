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
from typing import Any, NamedTuple

from fnlm.files._checkpoint import half_written, replace
from fnlm.train._log import LOG, Log, read_log, write_log
from fnlm.train._processes import Processes
from fnlm.train.state import DamagedStateError, load_state, load_with_notes, save_state
from fnlm.tree import Tree

__all__ = ["STATE", "RunDirectory"]

STATE = "state.safetensors"


class RunDirectory(NamedTuple):
    """The directory of a run: all processes call its methods, the first one reads and writes."""

    path: Path
    processes: Processes
    keep: int  # how many states are kept

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold an exclusive lock, which the system releases when the process ends.

        What a killed run left half written is removed.
        """
        with contextlib.ExitStack() as stack:
            self.processes.on_first(lambda: stack.enter_context(_locked(self.path)))
            yield

    def resume(self, state: Any) -> tuple[Any, Log, dict[str, Any], int | None]:
        """Return the last state, the log up to it, its notes, its step; None where a run begins.

        Raises:
            ValueError: the state is damaged; the message names a former one that is whole.
            FileNotFoundError: there is a state without a log.
        """
        like, found = self.processes.collect(state), list[Tree]()

        def read() -> tuple[bool, Log, Any]:
            last = _last(self.path, like)
            if last is None:
                write_log(self.path, [])  # now, lest a directory that can't be written shows late
                return False, [], None
            if not (self.path / LOG).exists():
                raise FileNotFoundError(
                    f"{self.path / LOG} is missing, without which nobody knows which state was the "
                    "best; put it back, or an empty file, to go on as if there had been no "
                    "evaluation"
                )
            found.append(last[0])
            log = [row for row in read_log(self.path) if row["step"] <= int(last[0].step)]
            _prune(self.path, self.keep)
            write_log(self.path, log)
            return True, log, last[1]

        resumed, log, notes = self.processes.on_first(read)
        if not resumed:
            return state, log, {}, None
        state = self.processes.distribute(found[0] if found else {}, state)
        return state, log, notes or {}, int(state.step)

    def write_log(self, log: Log) -> None:
        """Write the log."""
        self.processes.on_first(lambda: write_log(self.path, log))

    def save(self, state: Any, notes: Any, former: int | None) -> int:
        """Save a state as the last one, with notes, and keep those before; return its step.

        Args:
            state: of the run, this process's part.
            notes: kept with it, as by `save_state`.
            former: the step of the state that is the last one now, None if there is none.
        """
        whole = self.processes.collect(state)

        def write() -> None:
            if former is not None and self.keep > 1:
                _name_also(self.path / STATE, self.path / f"state.step-{former}.safetensors")
            save_state(whole, self.path / STATE, notes=notes)
            _prune(self.path, self.keep)

        self.processes.on_first(write)
        return int(state.step)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
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


def _prune(directory: Path, keep: int) -> None:
    """Remove the states before the last `keep` ones."""
    for path in _former(directory)[keep - 1 :]:
        path.unlink()


def _last(directory: Path, like: Tree) -> tuple[Tree, Any] | None:
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
