"""Sorted tables with checksums, the container of TensorFlow's checkpoint files; CRC-32C; Snappy.

A file of such a table is laid out as::

    file    = block ... block, footer
    block   = content, 1 byte (0: as it is, 1: compressed by Snappy), masked CRC-32C of both
    content = entry ... entry, uint32 offsets of entries with a whole key, uint32 number of those
    entry   = varint bytes shared with the key before, varint bytes of key that follow,
              varint bytes of value, key, value
    footer  = handles (varint offset, varint size) of the metaindex block and of the index block,
              padded to 40 bytes, magic number

The index block has an entry a data block: a key not before its last one, and its handle. All
numbers are little-endian. Source: the table format document of LevelDB, the format description of
Snappy and RFC 3720 (CRC-32C); ordered_code.h of TensorFlow.
"""

from bisect import bisect_left
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fnlm.files._protobuf import varint

MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER = 48
_TRAILER = 5  # of a block: compression and checksum
_FULL = 1 << 20  # bytes after which a block takes no more entries; TensorFlow closes at 1 << 18
_RECENT = 4  # blocks that are kept
_POLYNOMIAL = 0x82F63B78  # CRC-32C; the highest power is the lowest bit
_LANES = 1 << 14  # words of 8 bytes; with them the tables stay in the cache of a core

Words = NDArray[np.uint64]


class Table:
    """The keys and values of a table in memory, in the order of their bytes.

    The blocks' checksums are verified when they are read, which is when an entry is asked for.
    """

    def __init__(self, data: memoryview) -> None:
        """Read footer and index.

        Raises:
            ValueError: the data are no table, or a damaged one.
        """
        if len(data) < _FOOTER or data[-8:] != MAGIC:
            raise ValueError("it does not end as a table of TensorFlow's does; is it cut?")
        self._data = data[:-_FOOTER]
        footer = data[-_FOOTER:-8]
        start, size, at = _handle(footer, 0)
        self._block(start, size)  # the metaindex; empty in every known file
        start, size, _ = _handle(footer, at)
        index = dict(_entries(self._block(start, size)))
        self._last = list(index)
        self._recent: dict[int, dict[bytes, memoryview]] = {}
        self._handles = [_handle(value, 0)[:2] for value in index.values()]
        for (start, size), (following, _) in pairwise(self._handles):
            if start + size + _TRAILER > following:  # else a few bytes could be read for ever
                raise ValueError(f"the block at {following:,} lies in the one at {start:,}")

    def __iter__(self) -> Iterator[tuple[bytes, memoryview]]:
        """Yield every key with its value.

        Raises:
            ValueError: a block is damaged.
        """
        before: bytes | None = None
        for handle, last in zip(self._handles, self._last, strict=True):
            for key, value in _entries(self._block(*handle), _FULL):
                if (before is not None and key <= before) or key > last:
                    raise ValueError(f"key {key!r:.200} is out of order")
                before = key
                yield key, value

    def find(self, key: bytes) -> memoryview:
        """Return the value of one key, from its block, of which the most recent are cached.

        Raises:
            ValueError: there is no such key, or its block is damaged.
        """
        block = bisect_left(self._last, key)
        entries = self._recent.pop(block, None)
        if entries is None and block < len(self._last):
            entries = dict(_entries(self._block(*self._handles[block]), _FULL))
        if entries is not None:
            self._recent[block] = entries
            if len(self._recent) > _RECENT:
                del self._recent[next(iter(self._recent))]
        if entries is None or key not in entries:
            raise ValueError(f"there is no entry of key {key!r:.200}")
        return entries[key]

    def _block(self, start: int, size: int) -> memoryview:
        """Return a block, verified and uncompressed."""
        content = self._data[start : start + size + 1]
        checksum = self._data[start + size + 1 : start + size + _TRAILER]
        if len(checksum) < 4:
            raise ValueError(f"a block at {start:,} of {size:,} bytes is past the end; is it cut?")
        if crc32c(content) != unmask(int.from_bytes(checksum, "little")):
            raise ValueError(f"the block at {start:,} does not match its checksum")
        if content[-1] > 1:
            raise ValueError(f"the block at {start:,} has compression {content[-1]}, not 0 or 1")
        return memoryview(uncompress(content[:-1])) if content[-1] else content[:-1]


def _handle(data: memoryview, at: int) -> tuple[int, int, int]:
    """Return the offset and the size of a block, and where its handle ends."""
    start, at = varint(data, at)
    size, at = varint(data, at)
    return start, size, at


def _entries(block: memoryview, full: int = 1 << 62) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the entries of a block; keys must increase, and no entry begins after `full` bytes."""
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ValueError(f"a block of {len(block):,} bytes is said to hold {restarts:,} restarts")
    at, key, first = 0, b"", True
    room = 64 * len(block)  # for keys: sharing must not blow a small block up
    while at < end:
        if at > full:
            raise ValueError(f"a block has entries after its first {full:,} bytes")
        shared, at = varint(block, at)
        suffix, at = varint(block, at)
        size, at = varint(block, at)
        room -= shared + suffix
        if shared > len(key) or at + suffix + size > end or room < 0:
            raise ValueError(
                f"an entry of {shared} + {suffix} + {size} bytes does not fit its block"
            )
        before, key = key, key[:shared] + bytes(block[at : at + suffix])
        if key <= before and not first:
            raise ValueError(f"key {key!r:.200} is out of order")
        at, first = at + suffix + size, False
        yield key, block[at - size : at]


def ordered(number: int) -> bytes:
    """Return a signed number in bytes that sort as the numbers do, for parts of keys.

    >>> [ordered(number).hex() for number in (-1, 0, 63, 64)]
    ['7f', '80', 'bf', 'c040']
    """
    size = 1
    while not -1 << 7 * size - 1 <= number < 1 << 7 * size - 1:
        size += 1
    header = (1 << size) - 1 << 7 * size  # as many ones as there are bytes
    return (number % (1 << 8 * size) ^ header).to_bytes(size)


def uncompress(data: memoryview) -> bytes:
    """Return data uncompressed by Snappy (a block, not a framed stream).

    Raises:
        ValueError: the data are damaged.

    >>> uncompress(memoryview(bytes([9, 2 << 2]) + b"abc" + bytes([1 | 2 << 2, 3])))
    b'abcabcabc'
    """
    size, at = varint(data, 0)
    if size > 22 * len(data):  # no element makes more than 64 bytes of 3
        raise ValueError(f"Snappy: {len(data):,} bytes can't hold {size:,}")
    output = bytearray()
    while at < len(data):
        tag, kind = data[at] >> 2, data[at] & 3
        width = max(0, tag - 59) if kind == 0 else (1, 2, 4)[kind - 1]
        number = int.from_bytes(data[at + 1 : at + 1 + width], "little")
        at += 1 + width
        if kind == 0:
            length = 1 + (number if width else tag)
            output += data[at : at + length]
            at += length
        else:
            back = number | tag >> 3 << 8 if kind == 1 else number
            length = 4 + (tag & 7) if kind == 1 else 1 + tag
            if not 0 < back <= len(output):
                raise ValueError(f"Snappy: copies from {back:,} back, of {len(output):,} bytes")
            piece = output[len(output) - back : len(output) - back + length]
            output += (piece * (1 + length // back))[:length]  # a copy may overlap its own output
        if at > len(data) or len(output) > size:
            break
    if at != len(data) or len(output) != size:
        raise ValueError(f"Snappy: the data don't hold the {size:,} bytes that they should")
    return bytes(output)


def unmask(stored: int) -> int:
    """Return a checksum unmasked; files mask it by a rotation of 15 bits and a constant."""
    rotated = (stored - 0xA282EAD8) % (1 << 32)
    return (rotated >> 17 | rotated << 15) % (1 << 32)


def crc32c(data: memoryview | NDArray[np.uint8]) -> int:
    """Return the CRC-32C (Castagnoli) checksum.

    The remainder of the bytes as a polynomial is linear in them: many words of 8 bytes are
    multiplied at a time, by tables, by the power of x that brings them to the place of later
    words, and added to those, until a few are left for the loop over bytes.

    >>> hex(crc32c(memoryview(b"123456789")))
    '0xe3069283'
    """
    crc, array = 0xFFFFFFFF, np.frombuffer(data, np.uint8)
    count = len(array) // 8
    if count > 64:
        crc, left = 0, _fold(array, count).tobytes() + array[8 * count :].tobytes()
    else:
        left = array.tobytes()
    for byte in left:
        crc = crc >> 8 ^ _BYTES[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF


def _fold(data: NDArray[np.uint8], count: int) -> Words:
    """Return 8 words whose remainder from 0 is that of the first `count` words from ~0."""
    lanes = min(_LANES, 1 << (count - 1).bit_length())
    first = count % lanes or lanes  # the first group may be shorter, and is padded in front
    state = np.zeros(lanes, np.uint64)
    state[lanes - first :] = data[: 8 * first].copy().view(np.uint64)
    state[lanes - first] ^= np.uint64(0xFFFFFFFF)
    for at in range(8 * first, 8 * count, 8 * lanes):
        state = _shift(state, lanes) ^ data[at : at + 8 * lanes].copy().view(np.uint64)
    while lanes > 8:  # fold the upper half onto the lower
        lanes //= 2
        state = _shift(state[:lanes], lanes) ^ state[lanes:]
    return state


def _shift(words: Words, places: int) -> Words:
    """Return every word times x^(64 places), modulo the polynomial."""
    tables = _tables(places)
    parts = words.view(np.uint8).reshape(-1, 8)
    shifted = tables[0][parts[:, 0]]
    for table, part in zip(tables[1:], parts.T[1:], strict=True):
        shifted ^= table[part]
    return shifted


@cache
def _tables(places: int) -> Words:
    """Return `_shift` of all words with one byte set: [8 places of the byte, its 256 values]."""
    bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
    # Linear over bits: the images of the 64 single bits give those of all 256 values of a byte.
    if places > 1:
        images = _shift(_shift(bits, places // 2), places // 2)
    else:
        images = np.array([_through(int(bit)) for bit in bits], np.uint64) << np.uint64(32)
    tables = np.zeros((8, 256), np.uint64)
    for bit, image in enumerate(images.reshape(8, 8).T):
        tables[:, 1 << bit : 2 << bit] = tables[:, : 1 << bit] ^ image[:, None]
    return tables


def _through(word: int) -> int:
    """Return the remainder of a word and 4 zero bytes after it, x^64 times the word."""
    crc = 0
    for byte in word.to_bytes(8, "little") + bytes(4):
        crc = crc >> 8 ^ _BYTES[(crc ^ byte) & 255]
    return crc


def _byte_table() -> list[int]:
    """Return the remainder of every byte."""
    remainders = []
    for remainder in range(256):
        for _ in range(8):
            remainder = remainder >> 1 ^ (_POLYNOMIAL if remainder & 1 else 0)
        remainders.append(remainder)
    return remainders


_BYTES = _byte_table()
