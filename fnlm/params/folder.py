"""Several files saved as one: a reader finds all of the former ones or all of the new ones.

A model is its weights and its configuration, a tokenizer is up to four files, and one file of each
of two saves would load as something that nobody saved. So the new files are written into a hidden
folder, which takes its final name in one rename: from then on they count. Afterwards they are
linked into the directory, where other libraries look for them.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

__all__ = ["current", "replace_files"]


def current(directory: Path, kind: str) -> Path:
    """Return the folder that holds the files last saved: the directory, or a hidden one inside it.

    Args:
        directory: where `replace_files` saved, or anything else.
        kind: "model" or "tokenizer".

    >>> current(Path("my-model"), "model").name
    'my-model'
    """
    committed = _committed(directory, kind)
    return committed if committed.is_dir() else directory


def replace_files(
    directory: str | Path,
    kind: str,
    files: Mapping[str, Callable[[Path], object]],
    owned: Iterable[str] = (),
) -> list[str]:
    """Write files that belong together; those of an earlier save that are not among them go.

    A process that is killed leaves what was there before or all that is new, for readers that ask
    `current`. The next call finishes what it had begun.

    Args:
        directory: made if need be.
        kind: "model" or "tokenizer"; saves of the two kinds know nothing of each other.
        files: for each name, a function that writes the file at the path that it is given.
        owned: names that another save of this kind may have left; whatever else is there stays.

    Returns:
        the names of the files.

    Raises:
        OSError: the disk is full or can't be written; the former files are as they were.

    >>> with tempfile.TemporaryDirectory() as place:
    ...     first = replace_files(place, "model", {"a.txt": lambda path: path.write_text("one")})
    ...     replace_files(place, "model", {"b.txt": lambda path: path.write_text("two")}, first)
    ...     sorted(os.listdir(place))
    ['b.txt']
    ['b.txt']
    """
    directory, owned = Path(directory), set(owned)
    directory.mkdir(parents=True, exist_ok=True)
    for remains in directory.glob(f".{kind}.*.part"):  # of saves that were killed
        shutil.rmtree(remains, ignore_errors=True)
    _publish(directory, kind, owned)
    staged = Path(tempfile.mkdtemp(dir=directory, prefix=f".{kind}.", suffix=".part"))
    try:
        for name, write in files.items():
            write(staged / name)
        os.rename(staged, _committed(directory, kind))
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _publish(directory, kind, owned)
    return list(files)


def _committed(directory: Path, kind: str) -> Path:
    return directory / f".{kind}.saved"


def _publish(directory: Path, kind: str, owned: set[str]) -> None:
    """Give committed files their places in the directory, then remove the hidden folder."""
    committed = _committed(directory, kind)
    if not committed.is_dir():
        return
    names = os.listdir(committed)
    for name in names:  # the hidden folder stays whole until all have their places
        place = directory / f".{kind}.{name}.part"
        place.unlink(missing_ok=True)
        try:
            os.link(committed / name, place)
        except OSError:  # a file system without hard links
            shutil.copyfile(committed / name, place)
        os.replace(place, directory / name)
    for name in owned.difference(names):
        (directory / name).unlink(missing_ok=True)
    emptied = Path(tempfile.mkdtemp(dir=directory, prefix=f".{kind}.", suffix=".part"))
    os.rename(committed, emptied)
    shutil.rmtree(emptied, ignore_errors=True)
