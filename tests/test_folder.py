"""Files that are saved together: old or new, never some of each."""

import errno
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from killing import forks, killed_at

from fnlm.files import _folder

OLD = {"weights": "old weights", "config": "old config", "left": "old rest"}
NEW = {"weights": "new weights", "config": "new config", "added": "new rest"}


def save(place: Path, contents: dict[str, str]) -> None:
    files = {name: lambda path, text=text: path.write_text(text) for name, text in contents.items()}
    _folder.replace_files(place, "model", files, OLD.keys() | NEW.keys())


def read(place: Path) -> dict[str, str]:
    found = _folder.current(place, "model")
    return {path.name: path.read_text() for path in found.glob("[!.]*") if path.is_file()}


@forks
def test_a_kill_at_any_operation_leaves_the_old_or_the_new(places: Iterator[Path]) -> None:
    outcomes = set()
    for operation, place in enumerate(places, start=1):
        save(place, OLD)
        (place / "notes.txt").write_text("of the user")
        was_killed = killed_at(operation, place, partial(save, place, NEW))
        found = read(place)
        found.pop("notes.txt", None)  # only where the directory itself is read
        assert found in (OLD, NEW), f"killed at operation {operation}: {found}"
        outcomes.add(found == NEW)
        save(place, NEW)
        assert {path.name for path in place.iterdir()} == {*NEW, "notes.txt"}
        if not was_killed:
            break
    assert outcomes == {False, True} and operation > 10


def test_without_hard_links_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*args: Any) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", link)
    save(tmp_path, OLD)
    save(tmp_path, NEW)
    assert read(tmp_path) == NEW


def test_a_failed_write_leaves_the_former_files(tmp_path: Path) -> None:
    save(tmp_path, OLD)

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(OSError, match="no space"):
        _folder.replace_files(tmp_path, "model", {"weights": fail}, OLD)
    assert read(tmp_path) == OLD
    assert sorted(os.listdir(tmp_path)) == sorted(OLD)


def test_kinds_know_nothing_of_each_other(tmp_path: Path) -> None:
    save(tmp_path, OLD)
    _folder.replace_files(tmp_path, "tokenizer", {"vocab": lambda path: path.write_text("v")})
    save(tmp_path, NEW)
    assert read(tmp_path) == {**NEW, "vocab": "v"}


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        save(tmp_path, OLD)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
