"""Shared by the readers of checkpoints: memory maps, members of zip archives, small JSON files."""

import json
import mmap
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Member",
    "check_regular",
    "content",
    "is_zip",
    "leads_out",
    "map_file",
    "members",
    "read_json",
    "start",
    "tensor",
    "verify",
]

_LOCAL = struct.Struct("<4s5H3L2H")  # the header in front of a member
_LARGEST_JSON = 1 << 22
_BLOCK = 1 << 20
_INPUT = 1 << 16
# Deflate can't do better than 258 bytes for 2 bits.
_MOST_PER_BYTE = 1032


class Member(NamedTuple):
    """The bytes of a member of a zip archive."""

    name: str
    offset: int  # of its first byte in the file
    stored: int  # bytes in the file
    size: int  # bytes once inflated
    crc: int | None  # None where the writer recorded none
    deflated: bool


def check_regular(path: str | Path) -> None:
    """Raise ValueError where a path is a pipe, a device or the like: reading may never end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file: copy what it gives into one")


def leads_out(path: Path) -> bool:
    """Whether a file is a link out of its folder; links within the hub's cache are not.

    >>> leads_out(Path(__file__))
    False
    """
    home, real = path.parent.resolve(), path.resolve()
    return real.parent not in (home, *(above / "blobs" for above in home.parents))


def map_file(path: str | Path) -> mmap.mmap:
    """Return a private memory map of a file: writes to it never reach the file."""
    check_regular(path)
    with open(path, "rb") as file:
        if file.seek(0, 2) == 0:
            raise ValueError("the file is empty: copy or download it again")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def read_json(path: Path) -> Any:
    """Return the content of a small JSON file, which may have no duplicate key.

    Raises:
        ValueError: it is damaged.
    """
    check_regular(path)
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path} is larger than any list of shapes or shards: download it again")
    try:
        return json.loads(path.read_bytes().decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {str(error)[:200]}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name is given twice")
    return values


def tensor(buffer: mmap.mmap | bytearray, dtype: torch.dtype, offset: int, count: int) -> Tensor:
    """Return `count` elements from byte `offset` on, a view where they are aligned, else a copy."""
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if offset % dtype.itemsize:
        buffer, offset = bytearray(memoryview(buffer)[offset:][: count * dtype.itemsize]), 0
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset)


def is_zip(data: mmap.mmap) -> bool:
    """Whether the first bytes are those of a zip archive."""
    return data[:4] == b"PK\3\4"


def members(data: mmap.mmap) -> dict[str, Member]:
    """Return every member of a zip archive by name.

    The directory at the end and the header in front of each member must agree, and no two
    members may share a name or a byte.

    Raises:
        ValueError: they don't, or a member is encrypted or compressed otherwise than by deflate.
    """
    try:
        with zipfile.ZipFile(data) as archive:  # type: ignore[call-overload]
            listed, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ArithmeticError, ValueError) as error:
        raise ValueError(f"the zip archive is damaged ({error}): copy it again") from error
    last = data.rfind(b"PK\5\6")
    count = int.from_bytes(data[last + 10 : last + 12], "little")
    if len(listed) != count and count != 0xFFFF:
        raise ValueError(f"the zip archive lists {len(listed)} members of {count}: copy it again")
    unchecked = all(info.CRC == 0 for info in listed)  # the writer computed no checksums
    result = {info.filename: _member(data, info, unchecked) for info in listed}
    if len(result) != len(listed):
        raise ValueError("the zip archive has several members of one name: write it again")
    # Overlapping members would make a small archive claim any amount of content.
    spans = sorted((info.header_offset, result[info.filename]) for info in listed)
    ends = [member.offset + member.stored for _, member in spans]
    starts = [offset for offset, _ in spans[1:]] + [end]
    for (_, member), stop, following in zip(spans, ends, starts, strict=True):
        if stop > following:
            raise ValueError(f"member {member.name!r} of the zip archive overlaps what follows it")
    return result


def content(data: mmap.mmap, member: Member) -> bytearray:
    """Return the bytes of a member, inflated and verified."""
    if not member.deflated:
        verify(data, member)
        return bytearray(data[member.offset : member.offset + member.stored])
    # Inflate in blocks, so that a member that lies about its size ends early.
    engine, whole = zlib.decompressobj(-zlib.MAX_WBITS), bytearray(member.size)
    crc, filled, position, end = 0, 0, member.offset, member.offset + member.stored
    pending = b""
    while filled < member.size and not engine.eof and (pending or position < end):
        if not pending:
            pending = data[position : min(position + _INPUT, end)]
            position += len(pending)
        try:
            block = engine.decompress(pending, min(_BLOCK, member.size - filled))
        except zlib.error as error:
            raise _damaged(member) from error
        pending = engine.unconsumed_tail
        whole[filled : filled + len(block)] = block
        crc, filled = zlib.crc32(block, crc), filled + len(block)
    if filled != member.size or member.crc not in (None, crc):
        raise _damaged(member)
    return whole


def start(data: mmap.mmap, member: Member, size: int) -> bytes:
    """Return the first bytes of a member, at most `size`, without verifying the others."""
    if not member.deflated:
        return data[member.offset : member.offset + min(size, member.stored)]
    compressed = data[member.offset : member.offset + min(member.stored, size + 1024)]
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(compressed, size)
    except zlib.error as error:
        raise _damaged(member) from error


def verify(data: mmap.mmap, member: Member) -> None:
    """Verify the checksum of a stored member.

    Raises:
        ValueError: they differ.
    """
    if member.crc is None:
        return
    crc = 0
    for offset in range(member.offset, member.offset + member.stored, _BLOCK):
        crc = zlib.crc32(data[offset : min(offset + _BLOCK, member.offset + member.stored)], crc)
    if crc != member.crc:
        raise _damaged(member)


def _member(data: mmap.mmap, info: zipfile.ZipInfo, unchecked: bool) -> Member:
    """Return a member, after comparing the directory with the header in front of it."""
    name, offset = info.orig_filename, info.header_offset
    contradiction = ValueError(
        f"member {name!r} of the zip archive contradicts itself: copy it again"
    )
    if offset < 0 or offset + _LOCAL.size > len(data) or info.filename != name:
        raise contradiction
    mark, _, flags, method, _, _, crc, stored, size, long_name, extra = _LOCAL.unpack_from(
        data, offset
    )
    first = offset + _LOCAL.size
    local = data[first : first + long_name].decode("utf-8" if flags & 0x800 else "cp437")
    if (mark, local, flags, method) != (b"PK\3\4", name, info.flag_bits, info.compress_type):
        raise contradiction
    streamed = flags & 8 != 0  # the sizes come after the member
    large = 0xFFFFFFFF in (stored, size)  # zip64: the sizes are in the extra field
    recorded = (info.CRC, info.compress_size, info.file_size)
    if not streamed and not large and (crc, stored, size) != recorded:
        raise contradiction
    if flags & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"member {name!r} is encrypted or compressed in a way fnlm doesn't read")
    deflated = method == zipfile.ZIP_DEFLATED
    if not deflated and info.compress_size != info.file_size:
        raise contradiction
    if info.file_size > info.compress_size * _MOST_PER_BYTE:
        raise ValueError(f"member {name!r} claims {info.file_size} bytes, more than it can hold")
    begin = first + long_name + extra
    checksum = None if unchecked else info.CRC
    return Member(name, begin, info.compress_size, info.file_size, checksum, deflated)


def _damaged(member: Member) -> ValueError:
    return ValueError(
        f"member {member.name!r} is damaged, it has not the checksum or the size that the archive "
        "records: copy or download the file again"
    )
