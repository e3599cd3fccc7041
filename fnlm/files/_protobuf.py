"""The wire format of protobuf messages, read field by field: no message is built.

The bytes of a message are::

    message = field ... field
    field   = varint 8 number + wire type, then
              0: a varint, 1: 8 bytes, 2: a varint and as many bytes, 5: 4 bytes

Source: the page "Encoding" of protobuf's documentation. Deviation: groups are refused.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32, ANY = 0, 1, 2, 5, -1  # wire types


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of at most 64 bits, seven a byte, the lowest first, and where it ends.

    Returns:
        The number, and the place after it.

    Raises:
        ValueError: the data end within it, or it is larger.

    >>> varint(memoryview(bytes([172, 2, 9])), 0)
    (300, 2)
    """
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("the data end within a number")
        number |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128 and number < 1 << 64:
            return number, at
    raise ValueError("a number has more than 64 bits")


def fields(message: memoryview, expected: Mapping[int, int]) -> Iterator[tuple[int, memoryview]]:
    """Yield number and bytes of the fields of a message that have an expected number.

    Raises:
        ValueError: one has another wire type than expected, or the message is damaged.
    """
    at = 0
    while at < len(message):
        tag, at = varint(message, at)
        number, wire, start = tag >> 3, tag & 7, at
        if wire == BYTES:
            size, start = varint(message, at)
            at = start + size
        elif wire == VARINT:
            _, at = varint(message, at)
        elif wire in (FIXED32, FIXED64):
            at += 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"field {number} has wire type {wire}")
        if at > len(message):
            raise ValueError(f"field {number} runs past the end of its message")
        if number in expected:
            if expected[number] not in (wire, ANY):
                raise ValueError(f"field {number} has wire type {wire}, not {expected[number]}")
            yield number, message[start:at]


def integers(message: memoryview, defaults: Mapping[int, int]) -> list[int]:
    """Return the signed integers in the fields of these numbers, or their defaults."""
    values = dict(defaults)
    for number, value in fields(message, dict.fromkeys(defaults, VARINT)):
        unsigned, _ = varint(value, 0)
        values[number] = unsigned - (unsigned >> 63 << 64)
    return list(values.values())


def varints(data: bytearray) -> NDArray[np.uint64]:
    """Return the varints that fill the data, decoded all at once."""
    array = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(array < 128)
    starts = np.append(0, ends[:-1] + 1)[: ends.size]
    lengths = ends - starts + 1
    if array.size != lengths.sum() or lengths.max(initial=0) > 10:
        raise ValueError("its numbers are cut, or have more than 64 bits")
    numbers = np.zeros(ends.size, np.uint64)
    for place in range(lengths.max(initial=0)):
        longer = lengths > place
        bits = array[starts[longer] + place].astype(np.uint64) & np.uint64(127)
        numbers[longer] |= bits << np.uint64(7 * place)
    return numbers
