"""TensorFlow's checkpoints, read without TensorFlow: bundles (V2) and the older single files (V1).

A bundle is `NAME.index`, a table of contents, and `NAME.data-00000-of-00001` or more, the
bytes. The table's key "" holds a header, every other key the entry of a tensor: type, shape, data
file, place, size, checksum. A variable that was partitioned has an entry that lists its slices,
and an entry a slice whose key starts with a zero byte. A V1 file is one table: the key "" lists all
tensors and their slices, every other key holds the values of a slice, as a protobuf message.

Optimizer slots, `global_step` and the bookkeeping of TensorFlow 2 are entries as all others.
Source: the comments of tensor_bundle.proto, saved_tensor_slice.proto and tensor.proto and of
ordered_code.h in TensorFlow. Deviations: every name is checked and every data file must be there
when a checkpoint is opened, two tensors may not share bytes, and slices must cover their variable
exactly; big-endian bundles are refused; of a V1 checkpoint in several files each is read by itself.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fnlm.files._archive import check_regular
from fnlm.files._checkpoint import Checkpoint, Entry
from fnlm.files._protobuf import ANY, BYTES, FIXED32, VARINT, fields, integers, varints
from fnlm.files._sstable import MAGIC, Table, crc32c, ordered, unmask

__all__ = ["read", "can_read"]

# The enum DataType from 1 on, by the names of torch where it has the type.
_TYPES = (
    "float32 float64 int32 uint8 int16 int8 string complex64 int64 bool qint8 quint8 qint32 "
    "bfloat16 qint16 quint16 uint16 complex128 float16 resource variant uint32 uint64"
).split()
# The fields of TensorProto with the values of a type: their bytes; for others, varints.
_PLAIN_VALUES = {"float32": 5, "float64": 6, "complex64": 9, "complex128": 12}
_VALUES = (
    _PLAIN_VALUES
    | dict.fromkeys(("int32", "int16", "int8", "uint16", "uint8"), 7)
    | dict.fromkeys(("float16", "bfloat16"), 13)
    | {"int64": 10, "bool": 11, "uint32": 16, "uint64": 17}
)
_BITS = {"float16": "uint16", "bfloat16": "uint16", "bool": "uint8"}  # for NumPy
_NEWEST = 1  # version of either format
_MOST_DIMENSIONS = 16

Extents = tuple[tuple[int, int], ...]  # a slice: start and length of every dimension
Part = tuple[Extents, Callable[[], Tensor]]  # a slice, or all, of a tensor, and how it is read


def read(path: str | Path) -> Checkpoint:
    """Open a TensorFlow checkpoint; each tensor is read on access.

    A tensor's checksum is verified when it is read. What is read is the caller's own: a private
    memory map of the file where the bytes lie aligned there, else a copy.

    Args:
        path: the common part of a bundle's file names (`bert_model.ckpt`), its `.index` or one of
            its data files; or a V1 file.

    Returns:
        The checkpoint; partitioned variables are joined under their own names.

    Raises:
        FileNotFoundError: the file or one of the data files isn't there.
        ValueError: a file is damaged, big-endian, or no checkpoint; the message names it.

    >>> read("no-folder/bert_model.ckpt")
    Traceback (most recent call last):
    FileNotFoundError: no-folder...bert_model.ckpt.index is not there; ...
    """
    prefix, file = _files(Path(path))
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there; a checkpoint is read by its index")
    check_regular(file)
    with _naming(file):
        if file.stat().st_size == 0:
            raise ValueError("it is empty")
        table = Table(np.memmap(file, np.uint8, "r").data)
        if prefix is None:
            return Checkpoint(file, "TensorFlow V1 checkpoint", _single(file, table))
        return Checkpoint(prefix, "TensorFlow bundle", _bundle(prefix, file, table))


def can_read(path: str | Path) -> bool:
    """Whether a file, or its index, ends with the magic number of TensorFlow's tables.

    >>> can_read("model.safetensors")
    False
    """
    table = _files(Path(path))[1]
    if not table.is_file() or table.stat().st_size < len(MAGIC):
        return False
    with open(table, "rb") as file:
        file.seek(-len(MAGIC), 2)
        return file.read() == MAGIC


def _files(path: Path) -> tuple[Path | None, Path]:
    """Return the prefix of a bundle (None for a V1 file), and the file with the table."""
    match = re.fullmatch(r"(.+)\.(index|data-\d{5}-of-\d{5})", path.name, re.DOTALL)
    prefix = path.with_name(match[1]) if match else path
    index = prefix.with_name(f"{prefix.name}.index")
    return (prefix, index) if match or index.exists() or not path.exists() else (None, path)


@contextmanager
def _naming(what: object) -> Iterator[None]:
    """Prefix the errors raised inside with their subject."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _entry(file: Path, name: str, dtype: str, shape: tuple[int, ...], parts: list[Part]) -> Entry:
    """Return the entry of a tensor, whose parts must have as many elements as it has."""
    count = sum(math.prod(length for _, length in place) for place, _ in parts)
    if count != math.prod(shape):
        raise ValueError(f"its slices have {count:,} elements, its shape {shape} another number")
    return Entry(dtype, shape, partial(_join, f"{file}: tensor {name!r:.200}", dtype, shape, parts))


def _join(what: str, dtype: str, shape: tuple[int, ...], parts: list[Part]) -> Tensor:
    """Return a tensor, assembled from its parts."""
    with _naming(what):
        if dtype not in _VALUES:
            raise ValueError(f"{dtype} is no type that can be read")
        tensors = [(place, read()) for place, read in parts]
        if len(tensors) == 1 and tensors[0][1].shape == shape:
            return tensors[0][1]
        whole = torch.empty(shape, dtype=getattr(torch, dtype))
        covered = torch.zeros(shape, dtype=torch.bool)
        for place, tensor in tensors:
            at = tuple(slice(start, start + length) for start, length in place)
            whole[at] = tensor
            covered[at] = True
        if not covered.all():
            raise ValueError("its slices overlap and leave some of it out")
        return whole


class _Stored(NamedTuple):
    """An entry of a bundle."""

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    checksum: int
    slices: list[Extents]


def _bundle(prefix: Path, file: Path, table: Table) -> dict[str, Entry]:
    """Return the entries of a bundle by name."""
    rows = iter(table)
    key, header = next(rows, (b"no header", memoryview(b"")))
    if key:
        raise ValueError("it has no header; is it the index of a checkpoint?")
    shards = _shards(prefix, header)
    stored: dict[bytes, _Stored] = {}
    for key, value in rows:
        with _naming(_title(key)):
            stored[key] = _stored(value)
    _check_places(stored, [shard.stat().st_size for shard in shards])
    slices = {key: stored.pop(key) for key in list(stored) if not key[0]}
    entries = {}
    for key, whole in stored.items():
        name = key.decode()
        with _naming(_title(key)):
            if whole.slices:
                parts = [_slice(key, whole, extents, slices) for extents in whole.slices]
            else:
                parts = [(_place((), whole.shape), whole)]
            mapped: list[Part] = [(place, partial(_map, shards, part)) for place, part in parts]
            entries[name] = _entry(file, name, whole.dtype, whole.shape, mapped)
    if slices:
        raise ValueError(f"{_title(next(iter(slices)))} belongs to no tensor")
    return entries


def _title(key: bytes) -> str:
    """Return what a key of a bundle stands for, for an error."""
    return f"tensor {key.decode()!r:.200}" if key[0] else f"slice {key!r:.200}"


def _shards(prefix: Path, header: memoryview) -> list[Path]:
    """Return the data files that the header of a bundle counts."""
    count, big_endian = integers(header, {1: 0, 2: 0})
    _check_version(header, 3)
    if big_endian:
        raise ValueError("its numbers are big-endian; save it again on a little-endian machine")
    if count < 1:
        raise ValueError(f"it is said to have {count} data files")
    shards = []
    for shard in range(count):  # ends at the first that is absent, whatever the count
        path = prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-{count:05d}")
        if not path.exists():
            raise FileNotFoundError(f"{path} is not there; the checkpoint has {count:,} data files")
        check_regular(path)
        shards.append(path)
    return shards


def _stored(message: memoryview) -> _Stored:
    """Return a parsed BundleEntryProto."""
    dtype, shard, offset, size = integers(message, {1: 0, 3: 0, 4: 0, 5: 0})
    shape: tuple[int, ...] = ()
    checksum, slices = 0, []
    for number, value in fields(message, {2: BYTES, 6: FIXED32, 7: BYTES}):
        if number == 2:
            shape = _shape(value)
        elif number == 6:
            checksum = unmask(int.from_bytes(value, "little"))
        else:
            slices.append(_extents(value))
    entry = _Stored(_type(dtype), shape, shard, offset, size, checksum, slices)
    if entry.dtype in _VALUES and not slices:
        expected = math.prod(shape) * _bits(entry.dtype).itemsize
        if size != expected:
            raise ValueError(f"{entry.dtype} {shape} takes {expected:,} bytes, not {size:,}")
    return entry


def _check_places(stored: Mapping[bytes, _Stored], sizes: list[int]) -> None:
    """Raise ValueError unless tensors lie inside the data files and apart from each other."""
    before, end = -1, 0
    for key, entry in sorted(stored.items(), key=lambda item: item[1][2:5]):
        shard, start, size = entry[2:5]
        with _naming(_title(key)):
            if not 0 <= shard < len(sizes):
                raise ValueError(f"it is in data file {shard}, of {len(sizes)}")
            if start < 0 or size < 0 or start + size > sizes[shard]:
                raise ValueError(
                    f"it takes bytes {start:,} to {start + size:,} of data file {shard}, "
                    f"which has {sizes[shard]:,}; is it cut?"
                )
            if size and shard == before and start < end:
                raise ValueError(f"byte {start:,} of data file {shard} is another tensor's too")
        if size:
            before, end = shard, start + size


def _slice(
    key: bytes, whole: _Stored, extents: Extents, slices: dict[bytes, _Stored]
) -> tuple[Extents, _Stored]:
    """Return the place of a slice in its variable, and its entry, removed from `slices`."""
    place = _place(extents, whole.shape)
    part = slices.pop(_key(key, extents), None)
    if part is None:
        raise ValueError(f"its slice {extents} is not there, or is listed twice")
    if part.slices or (part.dtype, part.shape) != (whole.dtype, tuple(size for _, size in place)):
        raise ValueError(f"its slice {extents} is of {part.dtype} {part.shape}")
    return place, part


def _map(shards: list[Path], part: _Stored) -> Tensor:
    """Return a tensor or slice as a private memory map, or a copy where it is not aligned."""
    file, kind = shards[part.shard], _bits(part.dtype)
    raw = np.zeros(0, np.uint8)
    if part.size:
        raw = np.memmap(file, np.uint8, "c", part.offset, (part.size,))
    if crc32c(raw) != part.checksum:
        raise ValueError(f"bytes {part.offset:,} and on of {file.name} don't match their checksum")
    return _tensor(np.require(raw.view(kind), requirements=["A", "W"]), part.dtype, part.shape)


def _single(file: Path, table: Table) -> dict[str, Entry]:
    """Return the entries of a V1 file by name."""
    entries: dict[str, Entry] = {}
    for _, meta in fields(table.find(b""), {1: BYTES}):
        _check_version(meta, 2)
        for _, saved in fields(meta, {1: BYTES}):
            name, dtype, shape, slices = _listed(saved)
            with _naming(f"tensor {name!r:.200}"):
                if name in entries or len(set(slices)) < len(slices):
                    raise ValueError("it, or a slice of it, is listed twice")
                parts: list[Part] = []
                for extents in sorted(slices):
                    place = _place(extents, shape)
                    read = partial(_values, table, name.encode(), extents, dtype, place)
                    parts.append((place, read))
                entries[name] = _entry(file, name, dtype, shape, parts)
    return dict(sorted(entries.items()))  # all in the order of the table: it remembers one block


def _listed(message: memoryview) -> tuple[str, str, tuple[int, ...], list[Extents]]:
    """Return a parsed SavedSliceMeta: name, type, shape, slices."""
    name, slices = "", []
    shape: tuple[int, ...] = ()
    for number, value in fields(message, {1: BYTES, 2: BYTES, 4: BYTES}):
        if number == 1:
            name = bytes(value).decode()
        elif number == 2:
            shape = _shape(value)
        else:
            slices.append(_extents(value))
    (dtype,) = integers(message, {3: 0})
    return name, _type(dtype), shape, slices


def _values(table: Table, name: bytes, extents: Extents, dtype: str, place: Extents) -> Tensor:
    """Return a slice of a V1 file: SavedTensorSlices > SavedSlice > TensorProto."""
    content, values = bytearray(), bytearray()
    for _, saved in fields(table.find(_key(name, extents)), {2: BYTES}):
        for _, proto in fields(saved, {3: BYTES}):
            for number, value in fields(proto, {4: BYTES, _VALUES[dtype]: ANY}):
                if number == 4:
                    content += value
                else:
                    values += value
    if content or dtype in _PLAIN_VALUES:
        array = np.frombuffer(content or values, _bits(dtype))
    else:
        numbers = varints(values)
        array = numbers.astype(_bits(dtype))
        if (array.astype(np.uint64) != numbers).any():
            raise ValueError(f"it has numbers that are no {dtype}")
    shape = tuple(length for _, length in place)
    if array.size != math.prod(shape):
        raise ValueError(f"there are {array.size:,} values for a slice of shape {shape}")
    return _tensor(array, dtype, shape)


def _tensor(array: NDArray[np.generic], dtype: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of the bits of its elements."""
    tensor = torch.from_numpy(array)
    tensor = tensor != 0 if dtype == "bool" else tensor.view(getattr(torch, dtype))
    return tensor.reshape(shape)


def _bits(dtype: str) -> np.dtype[np.generic]:
    """Return the NumPy type for the bits of a type."""
    return np.dtype(_BITS.get(dtype, dtype))


def _type(number: int) -> str:
    """Return the name of a DataType."""
    if number < 1:
        raise ValueError(f"{number} is no type")
    return _TYPES[number - 1] if number <= len(_TYPES) else f"TensorFlow's {number}"


def _check_version(message: memoryview, field: int) -> None:
    """Raise ValueError for files of newer readers: see VersionDef."""
    for _, version in fields(message, {field: BYTES}):
        (oldest,) = integers(version, {2: 0})
        if oldest > _NEWEST:
            raise ValueError(f"it is for readers of version {oldest}; this one is of {_NEWEST}")


def _shape(message: memoryview) -> tuple[int, ...]:
    """Return the shape of a TensorShapeProto."""
    shape: list[int] = []
    for number, value in fields(message, {2: BYTES, 3: VARINT}):
        if number == 3:
            raise ValueError("it has a shape of unknown rank")
        shape += integers(value, {1: 0})
        if len(shape) > _MOST_DIMENSIONS:
            raise ValueError(f"its shape has more than {_MOST_DIMENSIONS} dimensions")
    if min(shape, default=0) < 0 or math.prod(max(size, 1) for size in shape) >= 1 << 60:
        raise ValueError(f"{tuple(shape)} is no shape")
    return tuple(shape)


def _extents(message: memoryview) -> Extents:
    """Return the extents of a TensorSliceProto; length -1 stands for all of a dimension."""
    extents: list[tuple[int, int]] = []
    for _, value in fields(message, {1: BYTES}):
        start, length = integers(value, {1: 0, 2: -1})
        extents.append((start, length))
        if len(extents) > _MOST_DIMENSIONS:
            raise ValueError(f"a slice has more than {_MOST_DIMENSIONS} dimensions")
    return tuple(extents)


def _place(extents: Extents, shape: tuple[int, ...]) -> Extents:
    """Return a slice with all lengths resolved; () stands for the whole tensor."""
    extents = extents or ((0, -1),) * len(shape)
    if len(extents) == len(shape):
        sized = zip(extents, shape, strict=True)
        place = tuple((at, size if (at, n) == (0, -1) else n) for (at, n), size in sized)
        sized = zip(place, shape, strict=True)
        if all(0 <= at <= at + n <= size for (at, n), size in sized):
            return place
    raise ValueError(f"{extents} is no slice of shape {shape}")


def _key(name: bytes, extents: Extents) -> bytes:
    """Return the key of a slice."""
    key = b"\0" + name.replace(b"\0", b"\0\xff") + b"\0\1"
    key += bytes([1, len(extents)]) if extents else b"\0"
    return key + b"".join(ordered(number) for extent in extents for number in extent)
