"""A process that is killed just before any of its operations on files."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.copyfile")
forks = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


def killed_at(operation: int, place: Path, work: Callable[[], object]) -> bool:
    """Work in a process that is killed before its n-th operation on files of a place; was it?"""
    pid = os.fork()
    if pid == 0:
        left = operation

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal left
            if event in WATCHED and any(str(place) in str(arg) for arg in args):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        work()
        os._exit(0)
    return os.waitpid(pid, 0)[1] != 0
