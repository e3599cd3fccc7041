"""NumPy's files and OpenAI's shards: what _numpy.load reads, fnlm reads; nothing is unpickled.

An .npz file has checksums. An .npy file has none: a changed byte of an array changes one element,
and a changed header is a file that says something else; NumPy reads the same from it.
"""

import io
import json
import math
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_path
from hostile import Tensors, cuts, edits, flips, judge, little_memory, same, try_all
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fnlm.files import _numpy, _torch_pickle

Tally = Callable[..., None]
DTYPES = "f8 f4 f2 i8 i4 i2 i1 u8 u4 u2 u1 ?".split()
ARRAYS = {"w": np.arange(6.0, dtype="f4").reshape(2, 3), "n": np.array([1, -2])}
WANTED: Tensors = {name: torch.from_numpy(array) for name, array in ARRAYS.items()}


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def npz(content: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **content)
    return file.getvalue()


def tensor(array: Any) -> torch.Tensor:
    native = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))
    return torch.from_numpy(native).reshape(array.shape)


@given(
    hnp.arrays(
        st.sampled_from([order + kind for kind in DTYPES for order in "<>"]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
    ),
    st.booleans(),
)
def test_arrays_of_any_type_shape_and_order(
    tmp_path_factory: pytest.TempPathFactory, array: Any, turned: bool
) -> None:
    """Big-endian and Fortran order, too; alone, in archives, compressed."""
    folder = tmp_path_factory.mktemp("arrays")
    array = np.asfortranarray(array) if turned else array
    (folder / "w.npy").write_bytes(npy(array))
    (folder / "a.npz").write_bytes(npz({"w": array, "other": array[None]}))
    (folder / "b.npz").write_bytes(npz({"w": array, "other": array[None]}, True))
    wanted = {"w": tensor(array)}
    assert same(dict(_numpy.read(folder / "w.npy")), wanted)
    for name in ("a.npz", "b.npz"):
        found = _numpy.read(folder / name)
        assert same(dict(found), wanted | {"other": tensor(array)[None]})
        assert found.entries["w"].shape == array.shape
        assert f"torch.{found.entries['w'].dtype}" == str(wanted["w"].dtype)


def test_headers_of_every_version(tmp_path: Path) -> None:
    """As numpy wrote them since 2006, Python 2 among its users, and as other programs do."""
    elements = np.arange(6, dtype="<f4").tobytes()
    for version, wide in ((1, "H"), (2, "I"), (3, "I")):
        for text in (
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2L, 3L), }\n",
            "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}\n",
        ):
            head = b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<" + wide, len(text))
            (tmp_path / "w.npy").unlink(missing_ok=True)
            (tmp_path / "w.npy").write_bytes(head + text.encode() + elements)
            assert same(dict(_numpy.read(tmp_path / "w.npy")), {"w": WANTED["w"]})


def test_files_are_recognised_by_their_first_bytes(tmp_path: Path) -> None:
    _torch_pickle.write(WANTED, tmp_path / "w.bin")
    for content, wanted in (
        (npy(ARRAYS["w"]), True),
        (npz(ARRAYS), True),
        (npz(ARRAYS, True), True),
        ((tmp_path / "w.bin").read_bytes(), False),
        (b"", False),
    ):
        (tmp_path / "w").write_bytes(content)
        assert _numpy.can_read(tmp_path / "w") == wanted
    assert not _numpy.can_read(tmp_path) and not _torch_pickle.can_read(tmp_path)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("was here",)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([Evil()]), "object"),
        (np.array(["a"]), "string"),
        (np.array([b"a"]), "string"),
        (np.array([1j]), "<c16"),
        (np.array([0], "M8[ns]"), "<M8[ns]"),
        (np.array([b"a"], "V1"), "|V1"),
    ],
)
def test_arrays_of_other_types_are_listed_and_not_read(
    array: Any, dtype: str, tmp_path: Path
) -> None:
    (tmp_path / "w.npz").write_bytes(npz({"odd": array} | ARRAYS))
    (tmp_path / "odd.npy").write_bytes(npy(array))
    for file in (_numpy.read(tmp_path / "w.npz"), _numpy.read(tmp_path / "odd.npy")):
        assert file.entries["odd"].dtype == dtype
        with pytest.raises(ValueError, match="not of numbers"):
            file["odd"]
    assert torch.equal(_numpy.read(tmp_path / "w.npz")["w"], WANTED["w"])


def test_records_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.npy").write_bytes(npy(np.zeros(2, [("a", "f4"), ("b", "O")])))
    with pytest.raises(ValueError, match="w.npy can't be read: its header"):
        _numpy.read(tmp_path / "w.npy")


def test_opening_reads_no_array(tmp_path: Path) -> None:
    """Damage in an array shows when it is read, not when the file is opened."""
    content = npz({"a": np.full(5000, 2, "f4"), "b": np.full(5000, 3, "f4")})
    place = content.index(struct.pack("<f", 3.0) * 100)
    (tmp_path / "w.npz").write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    file = _numpy.read(tmp_path / "w.npz")
    assert torch.equal(file["a"], torch.full((5000,), 2.0))
    with pytest.raises(ValueError, match="w.npz can't be read: member 'b.npy' is damaged"):
        file["b"]


# Damage.


def test_every_byte_of_an_npy_file(tmp_path: Path, tally: Tally) -> None:
    content, path = npy(ARRAYS["w"]), tmp_path / "w.npy"

    def says_so(found: Tensors) -> bool:
        return same(found, {"w": tensor(np.load(path, allow_pickle=False))})

    wanted = {"w": WANTED["w"]}
    counts = try_all(_numpy.read, path, flips(content), wanted, says_so)
    assert counts["one element"] == 24, "each byte of the array"
    counts += try_all(_numpy.read, path, cuts(content), wanted, says_so)
    counts += try_all(_numpy.read, path, edits(content, [range(128)], 1000), wanted, says_so)
    tally("npy, bytes changed and cut", counts)
    assert counts["error"] > 500


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
def test_every_byte_of_an_npz_file(compressed: bool, tmp_path: Path, tally: Tally) -> None:
    content, path = npz(ARRAYS, compressed), tmp_path / "w.npz"
    counts = try_all(_numpy.read, path, flips(content), WANTED)
    counts += try_all(_numpy.read, path, cuts(content), WANTED)
    headers = [range(70), range(len(content) - 140, len(content))]
    counts += try_all(_numpy.read, path, edits(content, headers, 600), WANTED)
    tally(f"npz, {'deflated' if compressed else 'stored'}, bytes changed and cut", counts)
    assert set(counts) == {"error", "same tensors"}
    assert counts["error"] > 1000


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def lies() -> Iterator[bytes]:
    plain = "{'descr': '%s', 'fortran_order': %s, 'shape': %s, }"
    for shape in ("(9223372036854775807,)", "(4294967296, 4294967296)", "(-1,)", "(1e3,)", "(2,"):
        yield header(plain % ("<f4", "False", shape)) + bytes(16)
    for shape in (f"({'9' * 5000},)", f"({'1, ' * 5000})", "(0, 9223372036854775807, 9)", "2"):
        yield header(plain % ("<f4", "False", shape)) + bytes(16)
    for kind in ("<f3", "<f8192", "<z4", "", "<f4,<f4", "O", "__import__"):
        yield header(plain % (kind, "False", "(4,)")) + bytes(16)
    yield header(plain % ("<f4", "__import__('os')", "(4,)")) + bytes(16)
    for text in ("(" * 60_000, "{" * 60_000, "-" * 60_000, "[" * 9000 + "]" * 9000, ""):
        yield header(text) + bytes(16)
    yield b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"
    yield b"\x93NUMPY\x09\x00\x00\x00"
    yield b"\x93NUMPY"


def bombs() -> Iterator[bytes]:
    """Archives that claim more than they hold, or hold more than they claim."""
    whole = npy(np.zeros((1 << 20,), "f4"))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", whole)
    plain = file.getvalue()
    local, line = 22, plain.rindex(b"PK\1\2") + 24
    for size in (10, 128, len(whole) - 1, len(whole) + 1, 1 << 30, (1 << 32) - 1):
        changed = bytearray(plain)
        struct.pack_into("<I", changed, local, size)
        struct.pack_into("<I", changed, line, size)
        yield bytes(changed)


def test_lies_and_bombs_end_in_errors_in_little_memory(tmp_path: Path, tally: Tally) -> None:
    liars, bombers = [*lies()], [*bombs()]
    members = [npz({"w": ARRAYS["w"]}).replace(npy(ARRAYS["w"])[:128], liar) for liar in liars]
    with little_memory(8 << 20):
        counts = try_all(_numpy.read, tmp_path / "w.npy", liars, {})
        counts += try_all(_numpy.read, tmp_path / "w.npz", members + bombers, {})
    tally("arrays, lies and bombs", counts)
    assert set(counts) == {"error"}


def test_values_that_are_not_finite_are_the_same_bits(tmp_path: Path) -> None:
    array = np.array([0x7FC00001, 0xFFFFFFFF, 0x7F800000, 0x7F800001], "u4").view("f4")
    (tmp_path / "w.npz").write_bytes(npz({"w": array}, True))
    (tmp_path / "w.npy").write_bytes(npy(array))
    for name in ("w.npz", "w.npy"):
        assert judge(_numpy.read, tmp_path / name, {"w": tensor(array)})[0] == "same tensors"


# OpenAI's shards.


def write_gpt(folder: Path, shapes: list[list[int]], borders: list[int], kind: str = "<f4") -> Any:
    """Write parameters of these shapes, cut at these borders; return their concatenation."""
    total = sum(math.prod(shape) for shape in shapes)
    flat = np.random.default_rng(0).standard_normal(total).astype(kind)
    for number, part in enumerate(np.split(flat, borders)):
        np.save(folder / f"params_{number}.npy", part)
    (folder / "params_shapes.json").write_text(json.dumps(shapes), encoding="utf-8")
    return flat


SHAPES = [[5, 3], [7, 3], [1, 3, 4], [2], [], [0, 3], [6]]


@given(st.lists(st.integers(0, 57), max_size=9).map(sorted))
def test_parameters_cross_the_borders_of_shards(
    tmp_path_factory: pytest.TempPathFactory, borders: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("gpt")
    flat = write_gpt(folder, SHAPES, borders)
    assert _numpy.can_read(folder)
    ends = np.cumsum([math.prod(shape) for shape in SHAPES])
    parts = zip(np.split(flat, ends[:-1]), SHAPES, strict=True)
    wanted = {f"params.{n}": tensor(p.reshape(s)) for n, (p, s) in enumerate(parts)}
    found = _numpy.read(folder)
    assert same(dict(found), wanted)
    assert [entry.shape for entry in found.entries.values()] == [tuple(s) for s in SHAPES]


def test_the_published_shapes_are_read_without_touching_the_shards(tmp_path: Path) -> None:
    """With the shapes of the release, and shards of holes: 466 MB that take no disk or memory."""
    shapes = json.loads(data_path("vocab/openai-gpt/params_shapes.json").read_text())
    total = sum(math.prod(shape) for shape in shapes)
    (tmp_path / "params_shapes.json").write_text(json.dumps(shapes), encoding="utf-8")
    for number in range(10):
        size = total // 10 + (number < total % 10)
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({size},), }}"
        with open(tmp_path / f"params_{number}.npy", "wb") as file:
            file.write(header(text.ljust(117) + "\n"))
            file.truncate(file.tell() + 4 * size)
    with little_memory(1 << 20):
        found = _numpy.read(tmp_path)
    assert len(found) == 2 + 12 * 12
    assert found.entries["params.1"].shape == (40478, 768)
    assert found["params.143"].shape == (768,)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda folder: (folder / "params_1.npy").unlink(), FileNotFoundError, "params_1.npy"),
        (lambda folder: (folder / "params_2.npy").unlink(), FileNotFoundError, "params_2.npy"),
        (lambda folder: (folder / "params_shapes.json").unlink(), FileNotFoundError, "shapes"),
        (
            lambda folder: np.save(folder / "params_3.npy", np.ones(1)),
            ValueError,
            "asks for 57 num",
        ),
        (lambda folder: np.save(folder / "params_1.npy", np.ones(20)), ValueError, "several types"),
        (
            lambda folder: np.save(folder / "params_1.npy", np.ones((4, 5), "f4")),
            ValueError,
            "expected a 1-D array of numbers",
        ),
        (
            lambda folder: np.save(folder / "params_1.npy", np.array([Evil()] * 20)),
            ValueError,
            "expected a 1-D array of numbers",
        ),
        (
            lambda folder: (folder / "params_shapes.json").write_text("[[-1]]"),
            ValueError,
            "sizes that are no sizes",
        ),
        (
            lambda folder: (folder / "params_shapes.json").write_text('{"a": [1]}'),
            ValueError,
            "not a list of shapes",
        ),
        (
            lambda folder: (folder / "params_shapes.json").write_text("[" * 100_000),
            ValueError,
            "is not JSON",
        ),
        (
            lambda folder: (folder / "params_shapes.json").write_text("[[0, 4e9]]"),
            ValueError,
            "sizes that are no sizes",
        ),
        (
            lambda folder: (folder / "params_shapes.json").write_text(f"[[0{', 4194304' * 3}]]"),
            ValueError,
            "larger than any array",
        ),
    ],
)
def test_errors_in_shards_are_named(
    change: Callable[[Path], Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    write_gpt(tmp_path, SHAPES, [20, 40])
    change(tmp_path)
    with pytest.raises(error) as caught:
        _numpy.read(tmp_path)
    assert message in str(caught.value)


def test_big_endian_shards_are_read(tmp_path: Path) -> None:
    flat = write_gpt(tmp_path, [[3], [2]], [2], ">f4")
    found = torch.cat(list(_numpy.read(tmp_path).values()))
    assert torch.equal(found, tensor(flat))


def test_every_byte_of_the_shapes(tmp_path: Path, tally: Tally) -> None:
    """The shapes have no checksum; changed ones must still fill the shards to the last number."""
    flat = torch.from_numpy(write_gpt(tmp_path, SHAPES, [20, 40]))
    path = tmp_path / "params_shapes.json"
    content, wanted = path.read_bytes(), dict(_numpy.read(tmp_path))

    def says_so(found: Tensors) -> bool:
        listed = [list(x.shape) for x in found.values()]
        everything = torch.cat([x.reshape(-1) for x in found.values()])
        return json.loads(path.read_text()) == listed and torch.equal(everything, flat)

    files = [*flips(content), *cuts(content), *edits(content, [range(len(content))], 200)]
    counts = try_all(lambda path: _numpy.read(path.parent), path, files, wanted, says_so)
    tally("shapes of OpenAI's shards, bytes changed and cut", counts)
    assert counts["error"] > 250
