"""A lazily loaded checkpoint: metadata up front, tensors on access."""

import os
import re
import secrets
import stat
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from fnlm.files._text import printable_errors

__all__ = ["Checkpoint", "Entry", "half_written", "replace"]


class Entry(NamedTuple):
    """The metadata of one tensor of a file, and how it is read."""

    dtype: str  # "float32", "bfloat16", "int64", ...; "string" and the like have no tensors
    shape: tuple[int, ...]
    read: Callable[[], Tensor]  # raises ValueError where the bytes are damaged


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint file of any format, a mapping by name.

    `checkpoint.entries` has names, dtypes and shapes without reading a tensor; `checkpoint[name]`
    reads one, and maps it into memory where the format allows.

    >>> import torch
    >>> entry = Entry("float32", (2,), lambda: torch.ones(2))
    >>> file = Checkpoint(Path("w.bin"), "toy", {"w": entry})
    >>> list(file), file.entries["w"].shape, file["w"]
    (['w'], (2,), tensor([1., 1.]))
    """

    def __init__(self, path: Path, format: str, entries: Mapping[str, Entry]) -> None:
        """Take the metadata of every tensor of the file."""
        self.path = path
        self.format = format  # for people: "safetensors", "TensorFlow bundle", ...
        self.entries = entries

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            KeyError: there is none of that name.
            ValueError: its bytes are damaged, or it is no tensor of numbers.
        """
        with printable_errors():
            return self.entries[name].read()

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the order of the file."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Return the number of tensors."""
        return len(self.entries)

    def without(self, names: Container[str]) -> "Checkpoint":
        """Return the same file without some of its tensors.

        >>> file = Checkpoint(Path("w.bin"), "toy", {"w": Entry("bool", (), torch.Tensor)})
        >>> file.without({"w"}).entries
        {}
        """
        left = {name: entry for name, entry in self.entries.items() if name not in names}
        return Checkpoint(self.path, self.format, left)

    def outlined(self) -> "Checkpoint":
        """Return the same names with tensors on the meta device: shapes and dtypes, nothing read.

        >>> file = Checkpoint(Path("w.bin"), "toy", {"w": Entry("float32", (2,), torch.Tensor)})
        >>> file.outlined()["w"]
        tensor(..., device='meta', size=(2,))
        """
        outlines = {n: e._replace(read=partial(_outline, e)) for n, e in self.entries.items()}
        return Checkpoint(self.path, self.format, outlines)


def _outline(entry: Entry) -> Tensor:
    """Return an entry as a meta tensor; for a dtype that torch lacks, reading raises ValueError."""
    dtype = getattr(torch, entry.dtype, None)
    if not isinstance(dtype, torch.dtype) or entry.dtype.startswith("q"):
        return entry.read()
    return torch.empty((), dtype=dtype, device="meta").expand(entry.shape)


def replace(path: str | Path, fill: Callable[[Path], object], *, new: bool = False) -> None:
    """Write a file atomically: `fill` a temporary one, then rename it to `path`.

    The file has the permissions of the process (its umask), and is synced to disk before it is
    renamed: a power failure leaves the former file or this one.

    Args:
        path: of the file.
        fill: writes it, at the path that it is given.
        new: whether there must be no such file yet; of several processes, one succeeds.

    Raises:
        FileExistsError: there is a file, and it was to be new.
        OSError: it could not be written, as on a full disk; the former file is as it was.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        fill(part)
        os.chmod(part, mode)  # safetensors replaces the file by one for the owner alone
        _flush(part)
        if new and _link(part, path):
            part.unlink()
        else:
            os.replace(part, path)
    except FileExistsError:
        part.unlink(missing_ok=True)
        raise
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError | RuntimeError):  # the last is torch.save's
            raise OSError(
                f"{path} could not be written: {error}; what was there before is as it was"
            ) from error
        raise
    _flush(path.parent)


def _link(file: Path, name: Path) -> bool:
    """Return whether a file was given a second name, which must be new."""
    try:
        os.link(file, name)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if name.exists():
            raise FileExistsError(f"{name} exists") from None
        return False
    return True


def half_written(directory: Path) -> list[Path]:
    """Return the temporary files that a killed process left of `replace`, and of safetensors in it.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("w.bin.0123abcd.part", ".tmpa1B2c3", "w.bin"):
    ...         Path(folder, name).touch()
    ...     sorted(path.name for path in half_written(Path(folder)))
    ['.tmpa1B2c3', 'w.bin.0123abcd.part']
    """
    # safetensors fills a file .tmpXXXXXX of its own, which it then renames to the one it was given.
    name = re.compile(r".*\.[0-9a-f]{8}\.part|\.tmp[0-9A-Za-z]{6}", re.DOTALL)
    return [path for path in directory.iterdir() if name.fullmatch(path.name)]


def _flush(path: Path) -> None:
    """Sync a file, or the entries of a directory, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # which Windows cannot open
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
