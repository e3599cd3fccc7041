"""A writer of TensorFlow's checkpoints for tests: small, slow, and of anything, damage included."""

import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

MAGIC = bytes.fromhex("57fb808b247547db")
CODES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int16": 5, "int8": 6, "complex64": 8}
CODES |= {"int64": 9, "bool": 10, "uint16": 17, "float16": 19, "uint32": 22, "uint64": 23}
Extents = Sequence[tuple[int, int]]
Row = tuple[bytes, bytes]
Compress = Callable[[bytes], bytes]
Pack = Callable[[Sequence[Row]], bytes]


@cache
def divided(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
    return byte


def crc(data: bytes) -> int:
    """CRC-32C byte by byte."""
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder = remainder >> 8 ^ divided((remainder ^ byte) & 255)
    return remainder ^ 0xFFFFFFFF


def mask(value: int) -> bytes:
    return (((value >> 15 | value << 17) + 0xA282EAD8) % (1 << 32)).to_bytes(4, "little")


def masked(data: bytes) -> bytes:
    return mask(crc(data))


def varint(value: int) -> bytes:
    value %= 1 << 64
    return bytes([value % 128 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def field(number: int, value: int | bytes) -> bytes:
    """A field of a protobuf message: a varint, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(rows: Sequence[Row], restart: int) -> bytes:
    content, before, restarts = b"", b"", [0]
    for i, (key, value) in enumerate(rows):
        shared = 0
        if i % restart:
            while shared < min(len(key), len(before)) and key[shared] == before[shared]:
                shared += 1
        elif i:
            restarts.append(len(content))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value))
        content += key[shared:] + value
        before = key
    return content + np.array([*restarts, len(restarts)], "<u4").tobytes()


def table(
    rows: Sequence[Row], each: int = 99, restart: int = 16, compress: Compress | None = None
) -> bytes:
    """A table with `each` entries a block."""
    file, index = b"", []

    def add(content: bytes) -> bytes:
        nonlocal file
        stored = compress(content) + b"\1" if compress else content + b"\0"
        start = len(file)
        file += stored + masked(stored)
        return varint(start) + varint(len(stored) - 1)

    for i in range(0, len(rows), each):
        index.append((rows[i : i + each][-1][0] + b"\0", add(block(rows[i : i + each], restart))))
    footer = add(block([], restart)) + add(block(index, 1))
    return file + footer.ljust(40, b"\0") + MAGIC


def sealed(content: bytes) -> bytes:
    """The table with its checksums made right; of one data block, its handles undamaged."""
    numbers, value, shift = [], 0, 0
    for byte in content[-48:-8]:
        value |= byte % 128 << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    made = bytearray(content)
    for start, size in ((0, numbers[0] - 5), numbers[:2], numbers[2:4]):
        end = start + size + 1
        made[end : end + 4] = masked(bytes(made[start:end]))
    return bytes(made)


def ordered(value: int) -> bytes:
    """A number in bytes that sort as it does: -1, and those from 0 to 2^20 - 1."""
    if value < 64:
        return bytes([128 + value])
    return (0xC000 | value).to_bytes(2) if value < 8192 else (0xE00000 | value).to_bytes(3)


def slice_key(name: str, extents: Extents) -> bytes:
    rank = bytes([1, len(extents)]) if extents else b"\0"
    numbers = b"".join(ordered(number) for extent in extents for number in extent)
    return b"\0" + name.encode() + b"\0\1" + rank + numbers


def shape(sizes: Sequence[int]) -> bytes:
    return b"".join(field(2, field(1, size)) for size in sizes)


def extents(given: Extents) -> bytes:
    """A TensorSliceProto; (0, -1) is all of a dimension."""
    return b"".join(
        field(1, field(1, start) + (field(2, length) if length >= 0 else b""))
        for start, length in given
    )


class Stored(NamedTuple):
    """An entry of a bundle; the checksum is made from the bytes in the data file."""

    dtype: int = 1
    shape: Sequence[int] = (3,)
    shard: int = 0
    offset: int = 0
    size: int = 12
    slices: Sequence[Extents] = ()
    extra: bytes = b""  # any more fields


Entries = dict[str | bytes, Stored]  # bytes are the key of a slice


def header(shards: int = 1, more: bytes = b"") -> Row:
    return b"", field(1, shards) + more + field(3, field(1, 1))


def entry(stored: Stored, shards: Sequence[bytes]) -> bytes:
    dtype, sizes, shard, offset, size, slices, extra = stored
    data = shards[shard] if 0 <= shard < len(shards) else b""
    message = field(1, dtype) + field(2, shape(sizes)) + field(3, shard) + field(4, offset)
    message += field(5, size) + b"\x35" + masked(data[max(offset, 0) :][: max(size, 0)])
    return message + b"".join(field(7, extents(each)) for each in slices) + extra


def bundle(
    prefix: Path,
    stored: Entries,
    shards: Sequence[bytes] = (bytes(range(64)),),
    head: Row | None = None,
    pack: Pack | None = None,
) -> None:
    """Write a bundle of these entries and data files."""
    rows = [
        (key if isinstance(key, bytes) else key.encode(), entry(value, shards))
        for key, value in stored.items()
    ]
    content = (pack or table)(sorted([head or header(len(shards)), *rows]))
    prefix.with_name(f"{prefix.name}.index").write_bytes(content)
    for i, data in enumerate(shards):
        prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{len(shards):05d}").write_bytes(data)


def single(
    path: Path, listed: Sequence[bytes], rows: Sequence[Row], pack: Pack | None = None
) -> None:
    """Write a V1 file of these SavedSliceMeta and entries of slices."""
    meta = b"".join(field(1, each) for each in listed) + field(2, field(1, 1))
    path.write_bytes((pack or table)(sorted([(b"", field(1, meta)), *rows])))


def listing(name: str, code: int, sizes: Sequence[int], slices: Sequence[Extents]) -> bytes:
    """A SavedSliceMeta."""
    message = field(1, name.encode()) + field(2, shape(sizes)) + field(3, code)
    return message + b"".join(field(4, extents(each)) for each in slices)


def values(name: str, part: Extents, proto: bytes) -> Row:
    """The entry of a slice, with the TensorProto of its values."""
    saved = field(1, name.encode()) + field(2, extents(part)) + field(3, proto)
    return slice_key(name, part), field(2, saved)


def snappy(data: bytes, seed: int = 0) -> bytes:
    """Compress, by any of the forms that an element may have."""
    rng = random.Random(seed)
    seen: dict[bytes, int] = {}
    made, start, at = varint(len(data)), 0, 0
    while at < len(data):
        back = at - seen.get(data[at : at + 4], at)
        seen[data[at : at + 4]] = at
        length = 0
        while back and length < min(64, len(data) - at):
            if data[at + length] != data[at + length - back]:
                break
            length += 1
        if length < 4:
            at += 1
            continue
        made += literal(data[start:at], rng) + copy(length, back, rng)
        at = start = at + length
    return made + literal(data[start:], rng)


def literal(piece: bytes, rng: random.Random) -> bytes:
    if not piece:
        return b""
    count = len(piece) - 1
    width = rng.choice([w for w in range(5) if count < (256**w if w else 60)])
    tag = 59 + width if width else count
    return bytes([tag << 2]) + (count.to_bytes(width, "little") if width else b"") + piece


def copy(length: int, back: int, rng: random.Random) -> bytes:
    kinds = [1] * (length < 12 and back < 2048) + [2] * (back < 65536) + [3]
    match rng.choice(kinds):
        case 1:
            return bytes([1 | length - 4 << 2 | back >> 8 << 5, back & 255])
        case 2:
            return bytes([2 | length - 1 << 2]) + back.to_bytes(2, "little")
        case _:
            return bytes([3 | length - 1 << 2]) + back.to_bytes(4, "little")
