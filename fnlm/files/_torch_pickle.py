"""PyTorch's files (.bin, .pt, .pth), zip and legacy format, read without unpickling.

The pickle in such a file is a program that could do anything; `fnlm.files._pickle` runs the small
part that describes tensors and refuses the rest. Of a checkpoint that wraps a state dict, as in
`{"state_dict": ..., "epoch": 3, "optimizer": ...}`, the state dict is read and nothing else: the
dict under the first of the names in WRAPPERS, or else the only one that holds tensors.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from fnlm.files import _archive, _pickle
from fnlm.files._checkpoint import Checkpoint, Entry, replace
from fnlm.files._pickle import Pairs, Strided

__all__ = ["read", "can_read", "write"]

WRAPPERS = ("state_dict", "model_state_dict", "model")

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_TAR = slice(257, 262)


def can_read(path: str | Path) -> bool:
    """Whether a file may be one of torch.save, or another pickle, by its first bytes.

    >>> can_read(__file__)
    False
    """
    if Path(path).is_dir():
        return False
    with open(path, "rb") as file:
        head = file.read(512)
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    is_zip = head[:4] == b"PK\3\4" and not name.endswith(b".npy")
    # A file of safetensors may begin with that byte, too; its ninth is a brace.
    is_pickle = head[:1] == b"\x80" and head[8:9] != b"{"
    return is_zip or is_pickle or head[_TAR] == b"ustar"


def read(path: str | Path) -> Checkpoint:
    """Open a file of torch.save, zip or legacy; each tensor is read on access.

    Aligned tensors are mapped into memory. Checksums of a zip file are verified; the legacy format
    has none. Tensors of one storage share their memory.

    Raises:
        ValueError: the file is damaged, asks to run code, is no dict of tensors, or was written by
            torch 0.1.9 or older, by torch.jit.save or on a big-endian machine.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "pytorch_model.bin"
    ...     write({"w": torch.ones(2), "n": torch.tensor(3)}, path)
    ...     file = read(path)
    ...     file.format, file.entries["w"].shape, file["n"]
    ('PyTorch', (2,), tensor(3))
    """
    path = Path(path)
    try:
        data = _archive.map_file(path)
        legacy = not _archive.is_zip(data)
        value, places = _legacy(data) if legacy else _zip(data)
        storages = _Storages(path, data, places)
        entries = {name: storages.entry(name, item) for name, item in _state_dict(value)}
    except ValueError as error:
        raise ValueError(f"{path} can't be read: {str(error)[:600]}") from error
    return Checkpoint(path, "PyTorch, legacy" if legacy else "PyTorch", entries)


def write(tensors: Mapping[str, Tensor], path: str | Path, *, legacy: bool = False) -> None:
    """Write tensors as a plain dict by torch.save; the file appears whole or not at all.

    Equal views of one memory (ties) stay so. `legacy=True` writes the format of torch before 1.6,
    for pytorch-pretrained-bert and its contemporaries.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write({"w": torch.ones(2)}, f"{folder}/w.bin", legacy=True)
    ...     torch.load(f"{folder}/w.bin", weights_only=True)
    {'w': tensor([1., 1.])}
    """
    copies: dict[tuple[object, ...], Tensor] = {}
    separate = {name: _alone(value.detach().cpu(), copies) for name, value in tensors.items()}

    def save(part: Path) -> None:
        with open(part, "wb") as file:  # given a path, torch would write its name into the file
            torch.save(separate, file, _use_new_zipfile_serialization=not legacy)

    replace(path, save)


def _alone(value: Tensor, copies: dict[tuple[object, ...], Tensor]) -> Tensor:
    """Return the tensor, copied if it is part of a larger storage: torch.save writes all of it."""
    address = (value.untyped_storage().data_ptr(), value.storage_offset(), value.dtype)
    view = (*address, value.shape, value.stride())  # equal views are ties, and stay one
    if view not in copies:
        whole = value.untyped_storage().nbytes() == value.numel() * value.itemsize
        copies[view] = value if whole else value.clone(memory_format=torch.contiguous_format)
    return copies[view]


class _Place(NamedTuple):
    """The bytes of a storage in the file."""

    offset: int
    size: int
    member: _archive.Member | None  # with its checksum; None in a legacy file


class _Bytes(bytearray):
    """A copy of a storage, shared while a tensor holds it."""


class _Storages:
    """The storages of a file."""

    def __init__(self, path: Path, data: mmap, places: dict[str, _Place]) -> None:
        self.path, self.data, self.places = path, data, places
        self.verified: set[str] = set()
        self.copies: WeakValueDictionary[str, _Bytes] = WeakValueDictionary()

    def entry(self, name: str, item: Strided) -> Entry:
        """Return the entry of a tensor, after checking the size of its storage."""
        storage = item.storage
        expected = storage.numel * getattr(torch, storage.dtype).itemsize
        place = self.places.get(storage.key)
        if place is None or place.size != expected:
            actual = "none" if place is None else f"{place.size}"
            raise ValueError(
                f"tensor {name!r} needs {expected} bytes in storage {storage.key!r}, there are "
                f"{actual}: copy or download the file again"
            )
        return Entry(storage.dtype, item.shape, partial(self.tensor, item))

    def tensor(self, item: Strided) -> Tensor:
        """Return a tensor, from the memory map or from a shared aligned copy of its storage."""
        storage, dtype = item.storage, getattr(torch, item.storage.dtype)
        if 0 in item.shape:
            return torch.empty_strided(item.shape, item.stride, dtype=dtype)
        place = self.places[storage.key]
        if place.member and storage.key not in self.verified:
            try:
                _archive.verify(self.data, place.member)
            except ValueError as error:
                raise ValueError(f"{self.path} can't be read: {error}") from error
            self.verified.add(storage.key)
        buffer: mmap | bytearray = self.data
        offset = place.offset
        if offset % dtype.itemsize:  # not aligned: torch needs a copy
            offset, copy = 0, self.copies.get(storage.key)
            if copy is None:
                copy = _Bytes(self.data[place.offset : place.offset + place.size])
                self.copies[storage.key] = copy
            buffer = copy
        whole = _archive.tensor(buffer, dtype, offset, storage.numel)
        return whole.as_strided(item.shape, item.stride, storage.start + item.offset)


def _zip(data: mmap) -> tuple[Any, dict[str, _Place]]:
    """Return what the pickle of a zip file describes, and where its storages are."""
    members = _archive.members(data)
    folders = [name.removesuffix("data.pkl") for name in members if name.endswith("/data.pkl")]
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in members):
        raise ValueError(
            "it is a program of torch.jit.save: load it with torch.jit.load, and save its "
            "state_dict() by torch.save"
        )
    if len(folders) != 1:
        raise ValueError(
            f"it is a zip archive, but not one of torch.save: it has {len(folders)} data.pkl, not 1"
        )
    records = {
        name.removeprefix(folders[0]): member
        for name, member in members.items()
        if name.startswith(folders[0])
    }
    if any(member.deflated for member in records.values()):
        raise ValueError(
            "it is compressed, which torch.save never does: unpack it and zip it uncompressed, or "
            "save it again with torch.save"
        )
    order = records.get("byteorder")
    if order and _archive.content(data, order) != b"little":
        raise ValueError("it was written on a big-endian machine: save it on a little-endian one")
    places = {
        name.removeprefix("data/"): _Place(member.offset, member.size, member)
        for name, member in records.items()
        if name.startswith("data/")
    }
    program = records["data.pkl"]
    _archive.verify(data, program)
    return _pickle.run(data, program.offset, program.offset + program.size).value, places


def _legacy(data: mmap) -> tuple[Any, dict[str, _Place]]:
    """Return what the pickles of a legacy file describe, and where its storages are."""
    if data[_TAR] == b"ustar":
        raise ValueError(
            "it is a tar archive of torch 0.1.9 or older: load it with torch 1.x, and save it again"
        )
    if data[:1] != b"\x80":
        raise ValueError("it is no file of torch.save: it begins with neither a zip nor a pickle")
    magic, end, _ = _pickle.run(data, 0, len(data))
    if magic != _MAGIC:
        raise ValueError("it is a pickle, but not one of torch.save: load it with its own program")
    version, end, _ = _pickle.run(data, end, len(data))
    system, end, _ = _pickle.run(data, end, len(data))
    if version != _PROTOCOL or not isinstance(system, Pairs):
        raise ValueError("it has a header that torch.save doesn't write: copy the file again")
    if ("little_endian", True) not in system.items:
        raise ValueError("it was written on a big-endian machine: save it on a little-endian one")
    value, end, storages = _pickle.run(data, end, len(data))
    keys, end, _ = _pickle.run(data, end, len(data))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ValueError("its list of storages is damaged: copy or download the file again")
    if sorted(keys) != sorted(storages):
        raise ValueError("its storages are not those of its tensors: copy or download it again")
    places = {}
    for key in keys:
        size = storages[key].numel * getattr(torch, storages[key].dtype).itemsize
        if data[end : end + 8] != storages[key].numel.to_bytes(8, "little"):
            raise ValueError(f"storage {key!r} is not where it should be: copy the file again")
        places[key] = _Place(end + 8, size, None)
        end += 8 + size
    if end != len(data):
        raise ValueError(
            f"it should have {end} bytes, it has {len(data)}: copy or download the file again"
        )
    return value, places


def _state_dict(value: Any) -> Iterator[tuple[str, Strided]]:
    """Yield names and tensors of the state dict in what a pickle describes."""
    if not isinstance(value, Pairs):
        raise ValueError(
            "it holds no dict: save the tensors by name, torch.save({'name': tensor}, path)"
        )
    if value.items and not value.holds_tensors:
        value = _wrapped(value)
    for name, item in value.items:
        if isinstance(item, Strided):
            if not isinstance(name, str):
                raise ValueError(f"a tensor has a {type(name).__name__} as its name: use a text")
            yield name, item


def _wrapped(value: Pairs) -> Pairs:
    """Return the state dict inside a training checkpoint."""
    inner = {
        name: item
        for name, item in value.items
        if isinstance(name, str) and isinstance(item, Pairs) and item.holds_tensors
    }
    for name in WRAPPERS:
        if name in inner:
            return inner[name]
    if len(inner) != 1:
        dicts = f"several, {sorted(inner)[:10]}" if inner else "none"
        raise ValueError(
            f"it should hold one dict of tensors, there are {dicts}; save that alone, by "
            "torch.save(model.state_dict(), path)"
        )
    return next(iter(inner.values()))
