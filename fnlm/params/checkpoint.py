"""A file's tensors by name: what is there is known at once, what it holds is read when asked."""

import os
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fnlm.params._text import printable_errors

__all__ = ["Checkpoint", "Entry", "replace"]


class Entry(NamedTuple):
    """One tensor of a file."""

    dtype: str  # "float32", "bfloat16", "int64", ...; "string" and the like can't be read
    shape: tuple[int, ...]
    read: Callable[[], Tensor]  # raises ValueError where the bytes are damaged


class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a checkpoint file, in whatever format it is.

    `checkpoint.entries` tells names, types and shapes without reading a tensor; `checkpoint[name]`
    reads one, and maps it into memory where the format allows.

    >>> import torch
    >>> entry = Entry("float32", (2,), lambda: torch.ones(2))
    >>> file = Checkpoint(Path("w.bin"), "toy", {"w": entry})
    >>> list(file), file.entries["w"].shape, file["w"]
    (['w'], (2,), tensor([1., 1.]))
    """

    def __init__(self, path: Path, format: str, entries: Mapping[str, Entry]) -> None:
        """Take the description of every tensor of the file."""
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
        """Give the names in the order of the file."""
        return iter(self.entries)

    def __len__(self) -> int:
        """Count the tensors."""
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
        """Return the same names with tensors on the meta device: shapes and types, nothing read.

        >>> file = Checkpoint(Path("w.bin"), "toy", {"w": Entry("float32", (2,), torch.Tensor)})
        >>> file.outlined()["w"]
        tensor(..., device='meta', size=(2,))
        """
        outlines = {n: e._replace(read=partial(_outline, e)) for n, e in self.entries.items()}
        return Checkpoint(self.path, self.format, outlines)


def _outline(entry: Entry) -> Tensor:
    """Make a tensor without memory; what no tensor can hold is read, which is refused."""
    dtype = getattr(torch, entry.dtype, None)
    if not isinstance(dtype, torch.dtype) or entry.dtype.startswith("q"):
        return entry.read()
    return torch.empty((), dtype=dtype, device="meta").expand(entry.shape)


def replace(path: str | Path, fill: Callable[[Path], object]) -> None:
    """Fill a new file and put it in the place of the former one, at once or not at all."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.", suffix=".part")
    os.close(handle)
    try:
        fill(Path(name))
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
