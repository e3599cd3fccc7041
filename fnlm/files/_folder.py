"""Atomic saving of several files: a reader finds all of the former ones or all of the new ones.

A model is its weights and its configuration, a tokenizer is up to four files, and one file of each
of two saves would load as something that nobody saved. So the new files are written into a hidden
folder, which takes its final name in one rename: from then on they count. Afterwards they are
linked into the directory, where other libraries look for them. A tokenizer that is saved with its
model lies in the model's hidden folder until then, so that one rename commits both.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

__all__ = ["current", "directory_of", "replace_files"]

Files = Mapping[str, Callable[[Path], object]]  # how each is written, by name

_REMOVED = ".removed"  # in a hidden folder: names in the directory that are not to stay


def current(directory: Path, kind: str) -> Path:
    """Return the folder of the files last saved: the directory, or a hidden one inside it.

    Args:
        directory: where `replace_files` saved, or anything else.
        kind: "model" or "tokenizer".

    >>> current(Path("my-model"), "model").name
    'my-model'
    """
    places = [_committed(directory, kind)]
    if kind == "tokenizer" and not _committed(directory, "model").is_symlink():
        places.insert(0, _committed(_committed(directory, "model"), kind))
    for place in places:
        if place.is_dir() and not place.is_symlink():
            return place
    return directory


def directory_of(file: Path) -> Path:
    """Return the directory of a file of a model, even if that is in a hidden folder of it.

    >>> directory_of(Path("my-model/.model.saved/config.json")).name
    'my-model'
    """
    hidden = file.parent.name in (".model.saved", ".tokenizer.saved")
    return file.parent.parent if hidden else file.parent


def replace_files(
    directory: str | Path,
    kind: str,
    files: Files,
    owned: Iterable[str] = (),
    *,
    tokenizer: Files | None = None,
) -> list[str]:
    """Replace the files of an earlier save by new ones, all at once.

    A process that is killed leaves all former or all new files, for readers that ask `current`.
    The next call completes an interrupted one.

    Args:
        directory: created if need be.
        kind: "model" or "tokenizer"; saves of the two kinds leave each other alone.
        files: for each name, a function that writes the file at the path that it is given; they
            are called in this order, in one folder.
        owned: names that an earlier save of this kind may have left; other files stay.
        tokenizer: more files, of the kind "tokenizer", to be saved with those of a model.

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
    directory, tokenizer = Path(directory), tokenizer or {}
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise type(error)(
            f"{str(directory)!r} or a folder of its path is a file: give the path of a directory, "
            "which is made if need be"
        ) from error
    for begun in (kind, "tokenizer") if tokenizer else (kind,):
        for stale in directory.glob(f".{begun}.*.part"):  # of saves that were killed
            shutil.rmtree(stale, ignore_errors=True)
    if _committed(_committed(directory, "model"), "tokenizer").is_dir():
        _publish(directory, "model")
    _publish(directory, kind)
    # Stage all files in one hidden folder; its rename to .KIND.saved is the commit.
    staged = Path(tempfile.mkdtemp(dir=directory, prefix=f".{kind}.", suffix=".part"))
    try:
        for folder, contents in ((staged, files), (_committed(staged, "tokenizer"), tokenizer)):
            if contents:
                folder.mkdir(exist_ok=True)
            for name, write in contents.items():
                write(folder / name)
        gone = set(owned).difference(files, tokenizer)
        (staged / _REMOVED).write_text("\n".join(sorted(gone)), encoding="utf-8")
        os.rename(staged, _committed(directory, kind))
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, OSError):  # name the file by the place that it was to have
            raise OSError(str(error).replace(str(staged), str(directory))) from error
        raise
    _publish(directory, kind)
    return [*files, *tokenizer]


def _committed(directory: Path, kind: str) -> Path:
    return directory / f".{kind}.saved"


def _publish(directory: Path, kind: str) -> None:
    """Move committed files to their places in the directory, then remove the hidden folder."""
    committed = _committed(directory, kind)
    if not committed.is_dir() or committed.is_symlink():
        return
    for name in os.listdir(committed):  # the hidden folder stays whole until all have their places
        if name.startswith("."):
            continue
        place = directory / f".{kind}.{name}.part"
        place.unlink(missing_ok=True)
        try:
            os.link(committed / name, place)
        except OSError:  # a file system without hard links
            shutil.copyfile(committed / name, place)
        os.replace(place, directory / name)
    removed = committed / _REMOVED
    for name in removed.read_text(encoding="utf-8").split("\n") if removed.is_file() else ():
        if name and Path(name).name == name:
            (directory / name).unlink(missing_ok=True)
    tokenizer = _committed(committed, "tokenizer")
    if tokenizer.is_dir():
        _publish(directory, "tokenizer")
        os.rename(tokenizer, _committed(directory, "tokenizer"))
        _publish(directory, "tokenizer")
    emptied = Path(tempfile.mkdtemp(dir=directory, prefix=f".{kind}.", suffix=".part"))
    os.rename(committed, emptied)
    shutil.rmtree(emptied, ignore_errors=True)
