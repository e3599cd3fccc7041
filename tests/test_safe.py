"""Safetensors files and shards with an index: mapped, not read; damaged ones refused.

The format has no checksums: a changed byte of a tensor changes one element, and a changed header
is a file that says something else; a reader of a few lines reads the same from it.
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import Tensors, cuts, edits, flips, judge, nothing_runs, same, try_all
from safetensors.torch import save, save_file

from fnlm.files import _safetensors, _torch_pickle

Tally = Callable[..., None]
WANTED: Tensors = {
    "w": torch.arange(6.0).reshape(2, 3),
    "n": torch.tensor([1, -2]),
    "b": torch.tensor(1.5, dtype=torch.bfloat16),
    "e": torch.empty(0, 2),
}
TYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": "i2", "I64": "i8", "I32": "i4", "I16": "i2"}
TYPES |= {"I8": "i1", "U8": "u1", "BOOL": "?", "U16": "u2", "U32": "u4", "U64": "u8"}


def by_hand(content: bytes) -> Tensors:
    """Read a .safetensors file in the plainest way."""
    start = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, entry in json.loads(content[8:start]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        array = np.frombuffer(content[start + first : start + last], TYPES[entry["dtype"]])
        x = torch.from_numpy(array.copy()).reshape(entry["shape"])
        found[name] = x.view(torch.bfloat16) if entry["dtype"] == "BF16" else x
    return found


def test_tensors_and_what_describes_them(tmp_path: Path) -> None:
    more = {f"{d}": torch.arange(3).to(d) for d in (torch.float16, torch.int8, torch.bool)}
    save_file(WANTED | more, tmp_path / "w.safetensors", metadata={"format": "pt"})
    file = _safetensors.read(tmp_path / "w.safetensors")
    assert same(dict(file), WANTED | more)
    for name, x in (WANTED | more).items():
        entry = file.entries[name]
        assert (f"torch.{entry.dtype}", entry.shape) == (str(x.dtype), x.shape)
    assert _safetensors.can_read(tmp_path / "w.safetensors")
    _torch_pickle.write(WANTED, tmp_path / "w.bin")
    assert not _safetensors.can_read(tmp_path / "w.bin") and not _safetensors.can_read(tmp_path)


def resident() -> int:
    """The bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is counted on Linux")
def test_a_large_file_is_in_memory_only_as_far_as_it_is_read(tmp_path: Path) -> None:
    """500 MB in ten tensors: opening and describing takes none, summing one takes that one."""
    size = 50_000_000
    header = {
        f"w.{n}": {"dtype": "F32", "shape": [size // 4], "data_offsets": [n * size, (n + 1) * size]}
        for n in range(10)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(tmp_path / "w.safetensors", "wb") as file:  # a file of holes takes no disk
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + 10 * size)
    before = resident()
    found = _safetensors.read(tmp_path / "w.safetensors")
    assert len(found) == 10
    tensors = dict(found)
    assert resident() - before < size // 5
    assert tensors["w.3"].sum() == 0
    assert size * 0.9 < resident() - before < size * 1.3


def test_every_byte_of_a_file(tmp_path: Path, tally: Tally) -> None:
    content, path = save(WANTED), tmp_path / "w.safetensors"

    def says_so(found: Tensors) -> bool:
        return same(found, by_hand(path.read_bytes()))

    counts = try_all(_safetensors.read, path, flips(content), WANTED, says_so)
    elements = counts["one element"]
    counts += try_all(_safetensors.read, path, cuts(content), WANTED, says_so)
    start = 8 + int.from_bytes(content[:8], "little")
    header = [range(start)]
    counts += try_all(_safetensors.read, path, edits(content, header, 1500), WANTED, says_so)
    tally("safetensors, bytes changed and cut", counts)
    assert elements == 6 * 4 + 2 * 8 + 2, "each byte of the tensors"
    assert counts["error"] > 1500


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}x",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":1}',
        b'{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"O","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[1e3],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
    ],
)
def test_headers_that_lie(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for size in (len(header), 1 << 40, (1 << 64) - 1):
        path.write_bytes(struct.pack("<Q", size) + header + bytes(4))
        assert judge(_safetensors.read, path, {})[0] == "error"


# Shards.

SHARDS = {"w": "model-1.safetensors", "n": "model-1.safetensors", "b": "model-2.safetensors"}
SHARDS |= {"e": "model-2.safetensors"}


def write_shards(folder: Path, suffix: str = "safetensors") -> Path:
    """Write WANTED in two shards; return the path of the index."""
    for file in set(SHARDS.values()):
        part = {name: x for name, x in WANTED.items() if SHARDS[name] == file}
        if suffix == "safetensors":
            save_file(part, folder / file)
        else:
            _torch_pickle.write(part, folder / file.replace("safetensors", suffix))
    files = {name: file.replace("safetensors", suffix) for name, file in SHARDS.items()}
    index = folder / f"model.{suffix}.index.json"
    content = {"metadata": {"total_size": 42}, "weight_map": files}
    index.write_text(json.dumps(content), encoding="utf-8")
    return index


def change(index: Path, **names: Any) -> None:
    content = json.loads(index.read_text(encoding="utf-8"))
    content["weight_map"] |= names
    content["weight_map"] = {n: f for n, f in content["weight_map"].items() if f != "drop"}
    index.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_one_checkpoint(suffix: str, tmp_path: Path) -> None:
    index = write_shards(tmp_path, suffix)
    assert _safetensors.can_read(index)
    found = _safetensors.read(index)
    assert same(dict(found), WANTED)
    assert list(found) == list(SHARDS)
    assert found.format.endswith(", 2 shards")


def test_the_links_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    """There, every file of a snapshot is a link to a blob."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write_shards(blobs)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / file.name)
    assert same(dict(_safetensors.read(snapshot / "model.safetensors.index.json")), WANTED)


@pytest.mark.parametrize(
    "file",
    [
        *("../other.safetensors", "/etc/passwd", "sub/other.safetensors", ".", "..", ""),
        *("sub\\other.safetensors", "C:\\w", "a\0b", "\ud800", "./model-1.safetensors", "a\nb"),
        *("link.safetensors", "loop.safetensors", "x" * 300, "model-3.safetensors", "sub"),
        *(3, None, ["model-1.safetensors"], {}, True),
    ],
)
def test_paths_out_of_the_folder_are_refused(file: Any, tmp_path: Path) -> None:
    """Whether or not there is a file; and so are links out of it, loops and folders."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    index = write_shards(folder)
    for place in (tmp_path, folder / "sub"):
        save_file({"other": torch.ones(1)}, place / "other.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "other.safetensors")
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    for name in ("other", "w"):
        change(index, **{name: file})
        with nothing_runs():
            assert judge(_safetensors.read, index, {})[0] == "error"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"x": "model-1.safetensors"}, "shard model-1.safetensors of .* lacks 'x': download"),
        ({"w": "model-2.safetensors"}, "shard model-2.safetensors of .* lacks 'w': download"),
        ({"w": "drop"}, "shard model-1.safetensors of .* has, and the index lacks, 'w': "),
        ({"w": "../model-1.safetensors"}, "a shard is the name of a file beside it"),
        ({"w": "link.safetensors"}, "a link out of its folder"),
        ({"w": 3}, 'no "weight_map" of tensors to files'),
    ],
)
def test_errors_in_an_index_are_named(names: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    index = write_shards(tmp_path / "model")
    (tmp_path / "model" / "link.safetensors").symlink_to(tmp_path / "other.safetensors")
    change(index, **names)
    with pytest.raises(ValueError, match=message):
        _safetensors.read(index)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path)
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="not beside it: model-2.safetensors; download"):
        _safetensors.read(index)
    with pytest.raises(FileNotFoundError):
        _safetensors.read(tmp_path / "other.index.json")
    with pytest.raises(FileNotFoundError):
        _safetensors.read(tmp_path / "other.safetensors")


def test_every_byte_of_an_index(tmp_path: Path, tally: Tally) -> None:
    """What an index tells of tensors, the shards tell too: nothing else is ever read."""
    index = write_shards(tmp_path)
    content = index.read_bytes()
    counts = try_all(_safetensors.read, index, flips(content), WANTED)
    counts += try_all(_safetensors.read, index, cuts(content), WANTED)
    counts += try_all(_safetensors.read, index, edits(content, [range(len(content))], 300), WANTED)
    tally("index of shards, bytes changed and cut", counts)
    assert set(counts) == {"error", "same tensors"}


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"[]",
            b"{}",
            b'{"weight_map": []}',
            b"[" * 200_000,
            b'{"a":' * 200_000,
            b"\xff\xfe",
        ),
        b'{"weight_map": {"w": "a", "w": "b"}}',
        b'{"weight_map": {}, "weight_map": {}}',
        b'{"x": ' + b"9" * 10_000 + b"}",
    ],
)
def test_invalid_indexes_are_errors(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.index.json"
    path.write_bytes(content)
    with nothing_runs():
        assert judge(_safetensors.read, path, WANTED)[0] == "error"


def test_values_that_are_not_finite_are_the_same_bits(tmp_path: Path) -> None:
    wanted = {"x": torch.tensor([0x7FC00001, -1, 0x7F800000, 0x7F800001]).int().view(torch.float32)}
    save_file(wanted, tmp_path / "w.safetensors")
    assert judge(_safetensors.read, tmp_path / "w.safetensors", wanted)[0] == "same tensors"
