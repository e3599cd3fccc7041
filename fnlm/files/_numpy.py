"""NumPy's files, .npy and .npz, and the ten shards in which OpenAI published its GPT.

Nothing is unpickled: arrays of Python objects are refused. The header of an array is read by a
pattern, not evaluated.
"""

import math
import re
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fnlm.files import _archive
from fnlm.files._checkpoint import Checkpoint, Entry

__all__ = ["read", "can_read"]

SHAPES = "params_shapes.json"
SHARDS = 10  # of the published GPT

_MAGIC = b"\x93NUMPY"
_HEADER = 1 << 16
_SHORT = 512  # most headers
_LARGEST = 1 << 62
_PATTERN = re.compile(
    r"\{ ?'descr': '([<>|=]?)([a-zA-Z][0-9]{0,9}(?:\[[a-z]{1,9}\])?)', ?"
    r"'fortran_order': (True|False), ?'shape': \(([0-9L, ]*)\),? ?\} *\n?"
)
_DTYPES = {
    "f8": "float64",
    "f4": "float32",
    "f2": "float16",
    "i8": "int64",
    "i4": "int32",
    "i2": "int16",
    "i1": "int8",
    "u8": "uint64",
    "u4": "uint32",
    "u2": "uint16",
    "u1": "uint8",
    "b1": "bool",
}
_UNREADABLE = {"O": "object", "U": "string", "S": "string", "a": "string"}


class _Array(NamedTuple):
    """The header of an array."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool
    swapped: bool  # big-endian
    start: int  # of the elements, after the header

    @property
    def size(self) -> int:
        """The size in bytes of the array with its header."""
        return self.start + math.prod(self.shape) * getattr(torch, self.dtype).itemsize


def can_read(path: str | Path) -> bool:
    """Whether a file is NumPy's, by its first bytes, or a folder has params_shapes.json.

    >>> can_read(__file__)
    False
    """
    path = Path(path)
    if path.is_dir():
        return (path / SHAPES).is_file()
    with open(path, "rb") as file:
        head = file.read(512)
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return head.startswith(_MAGIC) or (head[:4] == b"PK\3\4" and name.endswith(b".npy"))


def read(path: str | Path) -> Checkpoint:
    """Open an .npz or .npy file, or a folder of OpenAI's GPT.

    The arrays of an .npz file have the names of its members, and their checksums are verified when
    they are read. The array of an .npy file has the name of the file. In a folder,
    `params_shapes.json` splits the concatenation of `params_0.npy`, `params_1.npy`, ... into
    "params.0", "params.1", ...

    Raises:
        ValueError: the file is damaged, holds objects, or the shards don't match the shapes.
        FileNotFoundError: a shard is missing.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/w.npz", w=np.ones((2, 1), np.float32))
    ...     file = read(f"{folder}/w.npz")
    ...     file.format, file.entries["w"].shape, file["w"]
    ('NumPy', (2, 1), tensor([[1.], [1.]]))
    """
    path = Path(path)
    if path.is_dir():
        return _shards(path)
    try:
        data = _archive.map_file(path)
        if not _archive.is_zip(data):
            return Checkpoint(path, "NumPy", {path.stem: _file(path, data)})
        members = _archive.members(data)
        entries = {
            name.removesuffix(".npy"): _member(path, data, member)
            for name, member in members.items()
            if name.endswith(".npy")
        }
    except ValueError as error:
        raise _broken(path, error) from error
    if not entries:
        raise ValueError(f"{path} is a zip archive without arrays: write it with numpy.savez")
    return Checkpoint(path, "NumPy", entries)


def _broken(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} can't be read: {str(error)[:600]}")


def _parse(head: bytes) -> _Array | str:
    """Return the parsed header of an array, or the name of its type if that is not numeric."""
    wide = 2 if head[6:7] == b"\x01" else 4
    start = 8 + wide + int.from_bytes(head[8 : 8 + wide], "little")
    if not head.startswith(_MAGIC) or head[6:8] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it does not begin like an array of NumPy: write it with numpy.save")
    text = head[8 + wide : start]
    if len(text) < start - 8 - wide:
        raise ValueError("its header is cut, or larger than any of numbers: write it again")
    match = _PATTERN.fullmatch(text.decode("latin-1"))
    if match is None:
        raise ValueError(
            "its header is not one of plain numbers as NumPy writes it: write it again"
        )
    order, kind, fortran, sizes = match.groups()
    shape = tuple(int(size.strip(" L")) for size in sizes.split(",") if size.strip())
    if kind not in _DTYPES:
        return _UNREADABLE.get(kind[0], order + kind)
    if len(shape) > 64 or math.prod(size or 1 for size in shape) >= _LARGEST:
        raise ValueError("its shape is larger than any array: write it again")
    return _Array(_DTYPES[kind], shape, fortran == "True", order == ">", start)


def _whole(array: _Array, size: int) -> None:
    if array.size != size:
        raise ValueError(
            f"an array of shape {array.shape} and type {array.dtype} should have {array.size} "
            f"bytes with its header, there are {size}: copy or download the file again"
        )


def _file(path: Path, data: mmap) -> Entry:
    """Return the entry of an .npy file."""
    array = _parse(data[:_HEADER])
    if isinstance(array, str):
        return Entry(array, (), partial(_refuse, path, array))
    _whole(array, len(data))
    return Entry(array.dtype, array.shape, partial(_view, array, data, 0))


def _member(path: Path, data: mmap, member: _archive.Member) -> Entry:
    """Return the entry of a member of an .npz file."""
    try:
        head = _archive.start(data, member, _SHORT)
        if int.from_bytes(head[8:10], "little") > _SHORT - 10:
            head = _archive.start(data, member, _HEADER)
        array = _parse(head)
        if isinstance(array, str):
            return Entry(array, (), partial(_refuse, path, array))
        _whole(array, member.size)
    except ValueError as error:
        raise ValueError(f"member {member.name!r}: {error}") from error
    return Entry(array.dtype, array.shape, partial(_inflate, path, data, member, array))


def _refuse(path: Path, dtype: str) -> Tensor:
    why = "; fnlm unpickles nothing" if dtype == "object" else ""
    raise ValueError(f"{path} holds an array of type {dtype}, not of numbers{why}: leave it out")


def _inflate(path: Path, data: mmap, member: _archive.Member, array: _Array) -> Tensor:
    """Return a member of an .npz file, after verifying its checksum."""
    try:
        if member.deflated:
            return _view(array, _archive.content(data, member), 0)
        _archive.verify(data, member)
    except ValueError as error:
        raise _broken(path, error) from error
    return _view(array, data, member.offset)


def _view(array: _Array, buffer: mmap | bytearray, offset: int) -> Tensor:
    """Return the array that begins at byte `offset`, as a view where its bytes allow."""
    dtype, count = getattr(torch, array.dtype), math.prod(array.shape)
    if array.swapped:
        stored = np.dtype(array.dtype).newbyteorder(">")
        elements = np.frombuffer(buffer, stored, count, offset + array.start)
        flat = torch.from_numpy(elements.astype(array.dtype))
    else:
        flat = _archive.tensor(buffer, dtype, offset + array.start, count)
    if array.fortran:
        return flat.reshape(array.shape[::-1]).permute(*reversed(range(len(array.shape))))
    return flat.reshape(array.shape)


def _shards(folder: Path) -> Checkpoint:
    """Return the checkpoint of OpenAI's GPT, in shards."""
    shapes = _shapes(folder / SHAPES)
    flat = _flat(folder, sum(math.prod(shape) for shape in shapes))
    entries, start = {}, 0
    for number, shape in enumerate(shapes):
        count = math.prod(shape)
        read = partial(_slice, flat, start, shape)
        entries[f"params.{number}"] = Entry(flat[0].dtype, shape, read)
        start += count
    return Checkpoint(folder, f"OpenAI GPT, {len(flat)} shards", entries)


def _shapes(path: Path) -> list[tuple[int, ...]]:
    shapes = _archive.read_json(path)
    if not isinstance(shapes, list) or not all(isinstance(s, list) and len(s) < 64 for s in shapes):
        raise ValueError(f"{path} is not a list of shapes: download it again")
    if not all(type(size) is int and 0 <= size < _LARGEST for shape in shapes for size in shape):
        raise ValueError(f"{path} has sizes that are no sizes: download it again")
    if any(math.prod(size or 1 for size in shape) >= _LARGEST for shape in shapes):
        raise ValueError(f"{path} has shapes larger than any array: download it again")
    return [tuple(shape) for shape in shapes]


def _flat(folder: Path, expected: int) -> list[Entry]:
    """Return the entries of the shards, whose concatenation must have `expected` elements."""
    names = [path.stem.removeprefix("params_") for path in folder.glob("params_*.npy")]
    numbers = {int(name) for name in names if name.isascii() and name.isdigit() and len(name) < 5}
    entries = [_vector(folder / f"params_{number}.npy") for number in sorted(numbers)]
    total = sum(math.prod(entry.shape) for entry in entries)
    missing = set(range(max(numbers, default=0))) - numbers
    if total < expected or not numbers:
        missing |= set(range(SHARDS)) - numbers
    if missing:
        listed = ", ".join(f"params_{number}.npy" for number in sorted(missing)[:SHARDS])
        raise FileNotFoundError(f"{folder} lacks {listed}: download them there")
    if total != expected:
        raise ValueError(
            f"{folder / SHAPES} asks for {expected} numbers, the shards have {total}: download both"
        )
    if len({entry.dtype for entry in entries}) > 1:
        raise ValueError(f"the shards of {folder} are of several types: download them again")
    return entries


def _vector(path: Path) -> Entry:
    try:
        entry = _file(path, _archive.map_file(path))
        if entry.dtype not in _DTYPES.values() or len(entry.shape) != 1:
            raise ValueError(
                f"expected a 1-D array of numbers, got shape {entry.shape}, type {entry.dtype}"
            )
        return entry
    except ValueError as error:
        raise _broken(path, error) from error


def _slice(shards: list[Entry], start: int, shape: tuple[int, ...]) -> Tensor:
    """Return a parameter from the concatenation of the shards, reading those it overlaps."""
    stop, parts = start + math.prod(shape), []
    if start == stop:
        return torch.empty(shape, dtype=getattr(torch, shards[0].dtype))
    for shard in shards:  # start and stop count from the beginning of this shard
        size = shard.shape[0]
        if start < size and stop > 0:
            parts.append(shard.read()[max(start, 0) : stop])
        start, stop = start - size, stop - size
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).reshape(shape)
