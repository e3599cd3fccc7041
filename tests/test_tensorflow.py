"""TensorFlow's checkpoints: what TensorFlow reads, fnlm reads, bit for bit; nothing damaged.

Reference: `golden.json`, what TensorFlow itself read in the checkpoints of the fixtures (its own)
and of the optional data; for forms that it cannot be made to write, an independent writer.
"""

import hashlib
import itertools
import json
import math
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_writer as writer
import torch
from conftest import ROOT, data_path
from hostile import bits, cuts, edits, flips, little_memory, same, try_all
from numpy.typing import NDArray
from tensorflow_writer import CODES, Entries, Stored, bundle, field, header, varint

from fnlm.files import _tensorflow
from fnlm.files._checkpoint import Checkpoint
from fnlm.files._sstable import Table, crc32c, uncompress

HERE = ROOT / "tests" / "fixtures" / "tensorflow"
GOLDEN: dict[str, dict[str, tuple[str, list[int], str]]] = json.loads(
    (HERE / "golden.json").read_text(encoding="utf-8")
)


def fixture(name: str) -> Path:
    """The prefix of a checkpoint here or in the optional data."""
    if name.startswith("checkpoints/"):
        return data_path(f"{name}.index").with_suffix("")
    return HERE / name


def numbers(path: Path) -> Checkpoint:
    """Read a checkpoint without its texts."""
    file = _tensorflow.read(path)
    entries = {name: e for name, e in file.entries.items() if e.dtype != "string"}
    return Checkpoint(file.path, file.format, entries)


def copied(name: str, folder: Path) -> Path:
    """Copy the files of a fixture; give the path of the first that is named so."""
    for path in HERE.glob(f"{name.split('.')[0]}*"):
        if path.stem == name.split(".")[0] or path.name == name:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder / name


@pytest.mark.parametrize("name", GOLDEN)
def test_all_is_as_tensorflow_reads_it(name: str) -> None:
    file = _tensorflow.read(fixture(name))
    assert file.format == ("TensorFlow V1 checkpoint" if "_v1" in name else "TensorFlow bundle")
    assert sorted(file) == sorted(GOLDEN[name])
    for key, (dtype, shape, digest) in GOLDEN[name].items():
        assert file.entries[key][:2] == (dtype, tuple(shape))
        if dtype == "string":
            with pytest.raises(ValueError, match=f"{key}.*string is no type that can be read"):
                file[key]
        else:
            x = file[key]
            assert (str(x.dtype), list(x.shape)) == (f"torch.{dtype}", shape)
            assert hashlib.sha256(bits(x).numpy().tobytes()).hexdigest() == digest, key


def test_every_file_of_a_checkpoint_stands_for_it(tmp_path: Path) -> None:
    for name in ("sharded", "sharded.index", "sharded.data-00001-of-00002"):
        file = _tensorflow.read(HERE / name)
        assert file.path == HERE / "sharded" and sorted(file) == sorted(GOLDEN["sharded"])
        assert _tensorflow.can_read(HERE / name)
    assert _tensorflow.can_read(str(HERE / "adam_v1"))
    for other in (HERE / "make.py", HERE / "no-file", HERE, tmp_path):
        assert not _tensorflow.can_read(other)
    (tmp_path / "empty").touch()
    assert not _tensorflow.can_read(tmp_path / "empty")


def test_what_is_read_is_the_callers_own(tmp_path: Path) -> None:
    path = copied("adam", tmp_path)
    before = (tmp_path / "adam.data-00000-of-00001").read_bytes()
    file = _tensorflow.read(path)
    wanted = file["layer/kernel"].clone()
    file["layer/kernel"].zero_()
    assert torch.equal(file["layer/kernel"], wanted)
    assert (tmp_path / "adam.data-00000-of-00001").read_bytes() == before


def test_opening_a_large_file_costs_its_headers(tmp_path: Path) -> None:
    """A sparse file of 1 GiB."""
    path, size = tmp_path / "x", 1 << 30
    bundle(path, {"w": Stored(shape=[size // 4], size=size)}, [b""])
    with open(tmp_path / "x.data-00000-of-00001", "r+b") as data:
        data.truncate(size)
    with little_memory(1 << 20):
        assert _tensorflow.read(path).entries["w"].shape == (size // 4,)


@pytest.mark.parametrize(("offset", "least", "most"), [(4, 0, 4), (5, 16, 20)])
def test_aligned_tensors_are_mapped(offset: int, least: int, most: int, tmp_path: Path) -> None:
    """They take no memory but the buffers of the checksum; what is not aligned is copied."""
    data = np.random.default_rng(0).integers(0, 256, 16 << 20, np.uint8)
    right = b"\x35" + writer.mask(crc32c(data))
    stored = Stored(shape=[4 << 20], size=16 << 20, offset=offset, extra=right)
    bundle(tmp_path / "x", {"w": stored}, [b""])
    (tmp_path / "x.data-00000-of-00001").write_bytes(bytes(offset) + data.tobytes())
    file = _tensorflow.read(tmp_path / "x")
    tracemalloc.start()
    x = file["w"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(bits(x).reshape(-1), torch.from_numpy(data))
    assert least << 20 <= peak < most << 20


def test_checksums() -> None:
    """The examples of RFC 3720, and all sizes at which the method changes."""
    assert crc32c(memoryview(bytes(32))) == 0x8A9136AA
    assert crc32c(memoryview(b"\xff" * 32)) == 0x62A8AB43
    assert crc32c(memoryview(bytes(range(32)))) == 0x46DD794E
    data = np.random.default_rng(0).integers(0, 256, 3 * 131072 + 99, np.uint8)
    for size in (*range(20), *range(510, 540), 1024, 2047, 9001, 131071, 131073, 262151, data.size):
        part = data[data.size - size :]
        assert crc32c(part) == writer.crc(part.tobytes()), size


def test_snappy() -> None:
    """Every form of an element, copies that overlap what they make; then damage."""
    rng, verdicts = random.Random(0), Counter[str]()
    for seed in range(200):
        letters = rng.choice([b"ab", b"abcdefgh", bytes(range(256))])
        plain = bytes(rng.choices(letters, k=rng.choice([0, 1, 59, 60, 61, 300, 900])))
        plain += bytes(rng.choice([0, 5, 70]))
        packed = writer.snappy(plain, seed)
        assert uncompress(memoryview(packed)) == plain
        for damaged in rng.sample([*flips(packed, seed), *cuts(packed)], min(20, len(packed))):
            try:
                found = uncompress(memoryview(damaged))
                verdicts["as many bytes"] += 1
                assert varint(len(found)) == damaged[: len(varint(len(found)))]
            except ValueError:
                verdicts["error"] += 1
    assert min(verdicts.values()) > 500
    with little_memory(1 << 20), pytest.raises(ValueError, match="can't hold"):
        uncompress(memoryview(varint(1 << 40) + b"\0a"))


def cut(rng: random.Random, sizes: list[int]) -> list[list[tuple[int, int]]]:
    """Cut a shape into a grid of slices."""
    cuts = [sorted({0, size, rng.randint(0, size)}) for size in sizes]
    lengths = [list(zip(c, np.diff(c).tolist(), strict=False)) or [(0, 0)] for c in cuts]
    return [list(place) for place in itertools.product(*lengths)]


Arrays = dict[str, tuple[NDArray[Any], list[list[tuple[int, int]]]]]


def drawn(rng: random.Random, most: int) -> Arrays:
    """Draw arrays of random names, types and shapes, and where each is cut."""
    arrays: Arrays = {}
    for i in range(rng.randrange(1, most)):
        dtype = rng.choice([*CODES])
        sizes = [rng.choice([0, 1, 2, 3, 5]) for _ in range(rng.randrange(4))]
        raw = rng.randbytes(math.prod(sizes) * np.dtype(dtype).itemsize)
        raw = bytes(b % 2 for b in raw) if dtype == "bool" else raw
        name = "".join(rng.choices("ab/_0é名", k=rng.randrange(9))) + str(i)
        arrays[name] = np.frombuffer(raw, dtype).reshape(sizes), []
        if rng.random() < 0.3 and sizes:
            arrays[name][1].extend(cut(rng, sizes))
    return arrays


def part_of(array: NDArray[Any], place: list[tuple[int, int]]) -> NDArray[Any]:
    return array[tuple(slice(start, start + length) for start, length in place)]


def packing(rng: random.Random) -> writer.Pack:
    """Choose how a table is cut in blocks, where keys are whole, whether it is compressed."""
    compress = rng.choice([None, writer.snappy])
    each, restart = rng.choice([1, 2, 7, 99]), rng.choice([1, 2, 16])
    return partial(writer.table, each=each, restart=restart, compress=compress)


def assert_holds(file: Checkpoint, arrays: Arrays) -> None:
    assert same(dict(file), {n: torch.tensor(array) for n, (array, _) in arrays.items()})


@pytest.mark.parametrize("seed", range(40))
def test_bundles_of_any_content(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    arrays, stored = drawn(rng, 40), Entries()
    shards = [bytearray() for _ in range(rng.randrange(1, 4))]

    def store(key: str | bytes, array: NDArray[Any]) -> None:
        shard = rng.randrange(len(shards))
        shards[shard] += rng.randbytes(rng.choice([0, 0, 1, 8]))
        where = (shard, len(shards[shard]), array.nbytes)
        stored[key] = Stored(CODES[array.dtype.name], array.shape, *where)
        shards[shard] += array.tobytes()

    for name, (array, places) in arrays.items():
        for place in places:
            store(writer.slice_key(name, place), part_of(array, place))
        if places:
            stored[name] = Stored(CODES[array.dtype.name], array.shape, size=0, slices=places)
        else:
            store(name, array)
    bundle(tmp_path / "any", stored, [bytes(x) for x in shards], pack=packing(rng))
    assert_holds(_tensorflow.read(tmp_path / "any"), arrays)


def proto(rng: random.Random, array: NDArray[Any]) -> bytes:
    """A TensorProto: bytes, or typed values, packed or one by one."""
    number = _tensorflow._VALUES[array.dtype.name]
    if rng.random() < 0.2 and array.size:
        return field(4, array.tobytes())
    if array.dtype.kind in "fc" and array.dtype != np.float16:
        return field(number, array.tobytes())
    items = (array.view(np.uint16) if array.dtype == np.float16 else array).reshape(-1).tolist()
    if rng.random() < 0.5:
        return b"".join(field(number, int(item)) for item in items)
    return field(number, b"".join(varint(int(item)) for item in items))


@pytest.mark.parametrize("seed", range(40))
def test_v1_files_of_any_content(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    arrays, listed, rows = drawn(rng, 30), [], []
    for name, (array, places) in arrays.items():
        everything = [(0, -1)] * array.ndim
        listed.append(
            writer.listing(name, CODES[array.dtype.name], array.shape, places or [everything])
        )
        for place in places or [everything]:
            part = part_of(array, place) if places else array
            rows.append(writer.values(name, place, proto(rng, np.ascontiguousarray(part))))
    writer.single(tmp_path / "any", listed, rows, packing(rng))
    assert_holds(_tensorflow.read(tmp_path / "any"), arrays)


FULL = [[(0, -1)]]
THREE = field(5, bytes(12))  # a TensorProto


def test_v1_files_are_read_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However they are listed: or files could be made whose reading takes hours."""
    names = [f"{i:03}" for i in range(200)]
    listed = [writer.listing(name, 1, [3], FULL) for name in [*names[::2], *names[1::2]]]
    rows = [writer.values(name, FULL[0], THREE) for name in names]
    writer.single(tmp_path / "x", listed, rows, partial(writer.table, each=50))
    file, block, read = _tensorflow.read(tmp_path / "x"), Table._block, list[int]()

    def watched(table: Table, start: int, size: int) -> memoryview:
        read.append(start)
        return block(table, start, size)

    monkeypatch.setattr(Table, "_block", watched)
    assert len(dict(file)) == 200
    assert len(read) == len(set(read)) == 4  # the first of five was read with the list


def test_blocks_that_are_read_in_turns_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{i:03}" for i in range(100)]
    listed = [writer.listing(name, 1, [3], FULL) for name in names]
    rows = [writer.values(name, FULL[0], THREE) for name in names]
    writer.single(tmp_path / "x", listed, rows, partial(writer.table, each=51))
    file, block, read = _tensorflow.read(tmp_path / "x"), Table._block, list[int]()

    def watched(table: Table, start: int, size: int) -> memoryview:
        read.append(start)
        return block(table, start, size)

    monkeypatch.setattr(Table, "_block", watched)
    for first, second in zip(names[:50], names[50:], strict=True):
        assert file[first].shape == file[second].shape == (3,)
    assert len(read) <= 2


HALVES = [[(0, 2)], [(2, 1)]]
WHOLE = Stored(size=0, slices=HALVES)
PARTS: Entries = {
    writer.slice_key("w", [(0, 2)]): Stored(shape=[2], size=8),
    writer.slice_key("w", [(2, 1)]): Stored(shape=[1], size=4, offset=8),
}
# A bundle of 64 bytes, and what is said to be wrong with it.
HOSTILE: dict[str, tuple[Entries, str]] = {
    "beyond the end": ({"w": Stored(offset=60)}, "bytes 60 to 72 .* has 64; is it cut"),
    "far beyond the end": ({"w": Stored(offset=(1 << 63) - 4)}, "is it cut"),
    "before the start": ({"w": Stored(offset=-4)}, "bytes -4 to 8"),
    "less than no bytes": ({"w": Stored(dtype=7, size=-4)}, "bytes 0 to -4"),
    "another size": ({"w": Stored(shape=[4])}, r"float32 \(4,\) takes 16 bytes, not 12"),
    "a huge shape": ({"w": Stored(shape=[1 << 40])}, "takes 4,398,046,511,104 bytes, not 12"),
    "a shape that overflows": ({"w": Stored(shape=[1 << 32] * 2)}, "is no shape"),
    "nothing, hugely": ({"w": Stored(shape=[0, 1 << 62], size=0)}, "is no shape"),
    "a negative shape": ({"w": Stored(shape=[-3, -1])}, r"\(-3, -1\) is no shape"),
    "many dimensions": ({"w": Stored(shape=[1] * 999, size=4)}, "more than 16 dimensions"),
    "unknown rank": ({"w": Stored(extra=field(2, field(3, 1)))}, "unknown rank"),
    "no such data file": ({"w": Stored(shard=1)}, "data file 1, of 1"),
    "a data file below 0": ({"w": Stored(shard=-1)}, "data file -1, of 1"),
    "shared bytes": ({"v": Stored(), "w": Stored(offset=8)}, "'w': byte 8 .* another tensor's"),
    "no type": ({"w": Stored(dtype=0)}, "0 is no type"),
    "a type from the future": ({"w": Stored(dtype=99)}, "TensorFlow's 99 is no type that can"),
    "another wire type": ({"w": Stored(extra=field(1, b"x"))}, "field 1 has wire type 2, not 0"),
    "a group": ({"w": Stored(extra=b"\x0b")}, "field 1 has wire type 3"),
    "a field that is cut": ({"w": Stored(extra=b"\x62\x7f")}, "field 12 runs past the end"),
    "a number that is cut": ({"w": Stored(extra=b"\x60\xff")}, "end within a number"),
    "a number too long": ({"w": Stored(extra=b"\x60" + b"\xff" * 11)}, "more than 64 bits"),
    "a number too large": ({"w": Stored(extra=b"\x60" + b"\xff" * 9 + b"\2")}, "than 64 bits"),
    "another checksum": ({"w": Stored(extra=b"\x35abcd")}, "bytes 0 and on .* checksum"),
    "a name that is no text": ({b"\xff": Stored()}, "can't decode byte 0xff"),
    "a slice of nothing": ({**PARTS}, "slice .* belongs to no tensor"),
    "a missing slice": ({"w": WHOLE}, r"slice \(\(0, 2\),\) is not there"),
    "slices listed twice": ({"w": WHOLE._replace(slices=[*HALVES, HALVES[0]]), **PARTS}, "twice"),
    "slices that don't cover": (
        {"w": WHOLE._replace(shape=[4]), **PARTS},
        r"slices have 3 elements, its shape \(4,\) another",
    ),
    "slices outside": ({"w": WHOLE._replace(slices=[[(2, 2)]]), **PARTS}, "no slice of shape"),
    "slices before": ({"w": WHOLE._replace(slices=[[(-1, 2)]]), **PARTS}, "no slice of shape"),
    "slices of another rank": ({"w": WHOLE._replace(shape=[3, 1]), **PARTS}, "no slice of shape"),
    "a slice of another shape": (
        {
            "w": WHOLE,
            **PARTS,
            writer.slice_key("w", [(2, 1)]): Stored(shape=[1, 1], size=4, offset=8),
        },
        r"is of float32 \(1, 1\)",
    ),
    "overlapping slices": (
        {
            "w": WHOLE._replace(shape=[4], slices=[[(0, 2)], [(1, 2)]]),
            writer.slice_key("w", [(0, 2)]): Stored(shape=[2], size=8),
            writer.slice_key("w", [(1, 2)]): Stored(shape=[2], size=8, offset=8),
        },
        "overlap and leave some of it out",
    ),
}


@pytest.mark.parametrize(("stored", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_entries(stored: Entries, said: str, tmp_path: Path) -> None:
    bundle(tmp_path / "x", stored)
    with little_memory(1 << 20), pytest.raises(ValueError, match=f"x.index.*{said}"):
        dict(_tensorflow.read(tmp_path / "x"))


@pytest.mark.parametrize(
    ("head", "error", "said"),
    [
        (header(1, field(2, 1)), ValueError, "numbers are big-endian"),
        (header(0), ValueError, "0 data files"),
        (header(-1), ValueError, "-1 data files"),
        (header((1 << 63) - 1), FileNotFoundError, "x.data-00000-of-9223372036854775807 is not"),
        (header(2), FileNotFoundError, "x.data-00000-of-00002 is not there"),
        (header(1, field(3, field(2, 2))), ValueError, "readers of version 2; this one is of 1"),
        ((b"a", b""), ValueError, "no header"),
    ],
)
def test_hostile_headers(
    head: writer.Row, error: type[Exception], said: str, tmp_path: Path
) -> None:
    bundle(tmp_path / "x", {"w": Stored()}, head=head)
    with pytest.raises(error, match=said):
        _tensorflow.read(tmp_path / "x")


def test_missing_files(tmp_path: Path) -> None:
    path = copied("sharded", tmp_path)
    (tmp_path / "sharded.data-00001-of-00002").unlink()
    with pytest.raises(FileNotFoundError, match="sharded.data-00001-of-00002 is not there"):
        _tensorflow.read(path)
    (tmp_path / "sharded.index").unlink()
    with pytest.raises(FileNotFoundError, match="sharded.index is not there"):
        _tensorflow.read(path)
    with pytest.raises(FileNotFoundError, match="sharded.index is not there"):
        _tensorflow.read(tmp_path / "sharded.data-00000-of-00002")


def pointed(handles: list[tuple[int, int]]) -> bytes:
    """A table whose index names these places: a few bytes could be read for ever."""
    rows = [
        (bytes([97 + i]), writer.varint(start) + writer.varint(size))
        for i, (start, size) in enumerate(handles)
    ]
    file, places = bytes(64), b""
    for content in (writer.block([], 1), writer.block(rows, 1)):
        places += writer.varint(len(file)) + writer.varint(len(content))
        file += content + b"\0" + writer.masked(content + b"\0")
    return file + places.ljust(40, b"\0") + writer.MAGIC


def test_hostile_tables() -> None:
    """Keys out of order, and keys that grow: a small block must not become gigabytes."""
    for rows in ([header(), (b"b", b""), (b"a", b"")], [header(), (b"a", b""), (b"a", b"")]):
        for each in (1, 99):
            with pytest.raises(ValueError, match="key b.* is out of order"):
                list(Table(memoryview(writer.table(rows, each=each))))
    indexed_late = writer.table([header(), (b"bbb", b"x")]).replace(b"bbb\0", b"aaa\0")
    with pytest.raises(ValueError, match="key b'bbb' is out of order"):
        list(Table(memoryview(writer.sealed(indexed_late))))
    late = [header(), (b"a", bytes(1 << 20)), (b"b", b"")]
    with pytest.raises(ValueError, match="a block has entries after its first 1,048,576 bytes"):
        list(Table(memoryview(writer.table(late))))
    assert len(list(Table(memoryview(writer.table(late[:2]))))) == 2
    for handles in ([(0, 9), (0, 9)], [(0, 9), (14, 9), (0, 9)], [(0, 9), (13, 9)]):
        with pytest.raises(ValueError, match="the block at .* lies in the one at"):
            Table(memoryview(pointed(handles)))
    keys = [(b"a" * n, b"") for n in range(3000)]
    grown = writer.table(keys, each=9999, restart=9999)
    with little_memory(4 << 20), pytest.raises(ValueError, match="does not fit its block"):
        list(Table(memoryview(grown)))


# What a V1 file lists, its slices, and what is said to be wrong.
HOSTILE_V1: dict[str, tuple[list[bytes], list[writer.Row], str]] = {
    "no values": ([writer.listing("w", 1, [3], FULL)], [], "no entry of key"),
    "fewer values": (
        [writer.listing("w", 1, [4], FULL)],
        [writer.values("w", FULL[0], THREE)],
        r"there are 3 values for a slice of shape \(4,\)",
    ),
    "a huge shape": (
        [writer.listing("w", 1, [1 << 50], FULL)],
        [writer.values("w", FULL[0], THREE)],
        "there are 3 values",
    ),
    "a number too large": (
        [writer.listing("w", 6, [1], FULL)],
        [writer.values("w", FULL[0], field(7, varint(128)))],
        "numbers that are no int8",
    ),
    "a number that is cut": (
        [writer.listing("w", 6, [1], FULL)],
        [writer.values("w", FULL[0], field(7, b"\x80"))],
        "its numbers are cut",
    ),
    "half a number": (
        [writer.listing("w", 1, [3], FULL)],
        [writer.values("w", FULL[0], field(5, bytes(11)))],
        "multiple of element size",
    ),
    "listed twice": ([writer.listing("w", 1, [3], FULL)] * 2, [], "'w'.* is listed twice"),
    "a slice twice": ([writer.listing("w", 1, [6], FULL * 2)], [], "'w'.* is listed twice"),
    "no slices": ([writer.listing("w", 1, [3], [])], [], "its slices have 0 elements"),
    "overlapping slices": (
        [writer.listing("w", 1, [6], [[(0, 3)], [(1, 3)]])],
        [writer.values("w", [(0, 3)], THREE), writer.values("w", [(1, 3)], THREE)],
        "overlap and leave some of it out",
    ),
}


@pytest.mark.parametrize(("listed", "rows", "said"), HOSTILE_V1.values(), ids=HOSTILE_V1)
def test_hostile_v1_files(
    listed: list[bytes], rows: list[writer.Row], said: str, tmp_path: Path
) -> None:
    writer.single(tmp_path / "x", listed, rows)
    with little_memory(1 << 20), pytest.raises(ValueError, match=f"x: .*{said}"):
        dict(_tensorflow.read(tmp_path / "x"))


DAMAGED = ("adam.index", "sharded.index", "sharded.data-00000-of-00002", "adam_v1")


@pytest.mark.parametrize("name", [*DAMAGED, "compressed.index"])
def test_damage(name: str, tmp_path: Path, tally: Callable[..., None]) -> None:
    """No bit of a tensor, of its name, type or shape may be changed unnoticed."""
    path = copied(name, tmp_path)
    content, wanted = path.read_bytes(), dict(numbers(path))
    tries = itertools.chain(flips(content, 1), flips(content, 2), cuts(content))
    counts = try_all(numbers, path, tries, wanted)
    assert set(counts) <= {"error", "same tensors"}
    assert counts["same tensors"] < 80  # what pads the footer means nothing
    tally(f"TensorFlow, {name}, bytes flipped and cut", counts)


def forged(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """The table with bytes of its blocks, its keys or its values changed, and right checksums."""
    rng, rows = random.Random(seed), list(Table(memoryview(content)))

    def edited(old: bytes, blocks: range) -> bytes:
        if rng.random() < 0.5:
            return next(edits(old, [blocks], 1, rng.randrange(1 << 30)))
        at = rng.choice(blocks)
        return old[:at] + bytes([old[at] ^ 1 << rng.randrange(8)]) + old[at + 1 :]

    for i in range(count):
        if i % 3 == 0:
            yield writer.sealed(edited(content, range(len(content) - 48)))
            continue
        changed = [(key, bytes(value)) for key, value in rows]
        at = rng.randrange(len(rows))
        key, value = changed[at]
        if key and rng.random() < 0.2:
            changed[at] = edited(key, range(len(key))), value
        else:
            changed[at] = key, edited(value, range(len(value)))
        yield writer.table(sorted(changed))


@pytest.mark.parametrize("name", ["partitioned.index", "sharded.index", "adam_v1"])
def test_forgery(name: str, tmp_path: Path, tally: Callable[..., None]) -> None:
    """Damage behind checksums that are right ends in an error, or in what the file now says."""
    path = copied(name, tmp_path)
    content, wanted = path.read_bytes(), dict(numbers(path))
    attempt = partial(try_all, numbers, path, wanted=wanted, check=lambda found: True)
    with little_memory(4 << 20):
        attempt(forged(content, 20, seed=1))
    counts = attempt(forged(content, 1000))
    assert counts["error"] > 500 and len(counts) > 2
    tally(f"TensorFlow, {name}, forged checksums", counts)
