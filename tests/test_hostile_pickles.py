"""Damaged and hostile files of torch.save: a clear error or the same tensors, and nothing runs.

The legacy format has no checksums: there a changed byte of a tensor changes one element, and a
changed name or shape is a file that says something else; torch reads the same from it.
"""

import io
import os
import pickle
import random
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile import (
    Tensors,
    cuts,
    edits,
    flips,
    judge,
    little_memory,
    nothing_runs,
    same,
    try_all,
)

from fnlm.files import _torch_pickle

Tally = Callable[..., None]
WANTED: Tensors = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([1, -2])}
MEBI = 1 << 20


def saved(value: Any, legacy: bool) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def says_so(path: Path) -> Callable[[Tensors], bool]:
    """Whether torch, too, reads these tensors from the file."""

    def check(found: Tensors) -> bool:
        theirs = torch.load(path, map_location="cpu", weights_only=True)
        return same(found, {n: x for n, x in theirs.items() if isinstance(x, torch.Tensor)})

    return check


# Each byte of a file.


def test_every_byte_of_a_zip_file(tmp_path: Path, tally: Tally) -> None:
    """All of it is under checksums, or of no meaning."""
    content, path = saved(WANTED, False), tmp_path / "w.bin"
    counts = try_all(_torch_pickle.read, path, flips(content), WANTED)
    counts += try_all(_torch_pickle.read, path, cuts(content), WANTED)
    headers = [range(60), range(len(content) - 700, len(content))]
    counts += try_all(_torch_pickle.read, path, edits(content, headers, 600), WANTED)
    tally("torch zip, bytes changed and cut", counts)
    assert set(counts) == {"error", "same tensors"}
    assert sum(counts.values()) > 5000
    assert counts["error"] > 3000


def test_every_byte_of_a_legacy_file(tmp_path: Path, tally: Tally) -> None:
    content, path = saved(WANTED, True), tmp_path / "w.bin"
    check = says_so(path)
    tail = try_all(_torch_pickle.read, path, flips(content[:]), WANTED, check)
    counts = tail + try_all(_torch_pickle.read, path, cuts(content), WANTED, check)
    head = [range(content.index(b"storage") - 60, len(content) - 60)]
    counts += try_all(_torch_pickle.read, path, edits(content, head, 600), WANTED, check)
    tally("torch legacy, bytes changed and cut", counts)
    assert counts["one element"] >= 24 + 16, "the bytes of the tensors"
    assert sum(counts.values()) > 2000
    assert counts["error"] > 1500


# Pickles that ask for something.

STOP = b"."
CALLS = (
    *("os system", "posix system", "nt system", "builtins eval", "builtins exec"),
    *("builtins __import__", "builtins getattr", "builtins open", "__builtin__ apply"),
    *("builtins print", "subprocess Popen", "runpy run_path", "importlib import_module"),
    *("torch load", "torch hub.load", "torch.storage _load_from_bytes", "pickle loads"),
    *("torch._utils _import_dotted_name", "torch.serialization load", "torch.jit load"),
    *("torch.jit._script unpackage_script_module", "torch.fx._symbolic_trace wrap"),
    *("collections namedtuple", "collections OrderedDict.fromkeys", "collections Counter"),
    *("operator attrgetter", "operator methodcaller", "functools partial", "codecs decode"),
    *("copyreg _reconstructor", "copyreg __newobj__", "types FunctionType", "types CodeType"),
    *("numpy load", "numpy.core.multiarray _reconstruct", "numpy frombuffer", "ctypes CDLL"),
    *("torch FloatStorage.from_file", "torch from_file", "torch FloatTensor", "torch typename"),
    *("torch._utils _rebuild_tensor_v2 ", "torch._utils  _rebuild_tensor_v2", "torch.ops load"),
    *("collections.OrderedDict __init__", "builtins object", "socket create_connection"),
    *("hostile nothing_runs", "conftest os.system", "fnlm.files._torch_pickle write"),
)


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def named(name: str) -> bytes:
    module, _, attribute = name.partition(" ")
    return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


def stack_named(name: str) -> bytes:
    module, _, attribute = name.partition(" ")
    return text(module) + text(attribute) + b"\x93"


def calls(name: str, argument: str) -> Iterator[bytes]:
    """Every way in which a pickle calls a thing by its name, or sets it up to be called."""
    module, _, attribute = name.partition(" ")
    one = text(argument) + b"\x85"
    line = module.encode() + b"\n" + attribute.encode() + b"\n"
    for found in (named(name), stack_named(name)):
        yield found
        yield found + one + b"R"
        yield found + b"(" + text(argument) + b"tR"
        yield found + one + b"\x81"
        yield found + one + b"}\x92"
        yield found + b"q\x00" + one + b"R"
        yield b"(" + found + text(argument) + b"o"
        yield found + one + b"b"
        yield found + b"}" + text("__setstate__") + found + b"sb"
        yield b"ccollections\nOrderedDict\n)R}" + text("__reduce__") + found + b"sb"
        yield b"ccollections\nOrderedDict\n)R" + found + one + b"Rb"
        yield b"(" + text("storage") + found + text("0") + text("cpu") + b"K\x01tQ"
        yield b"(" + text("module") + found + text("a.py") + text("print(1)") + b"tQ"
        yield b"ctorch._utils\n_rebuild_parameter\n" + found + b"\x88N\x87R"
    yield b"(" + text(argument) + b"i" + line
    yield b"P" + name.encode() + b"\n"
    yield text(name) + b"Q"


def others(argument: str) -> Iterator[bytes]:
    """Extension codes, calls of what is allowed by what is not, persistent objects of all sorts."""
    for code in (b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\x01\x01\x01"):
        yield code
        yield code + text(argument) + b"\x85R"
    for target in (b"N", b"K\x01", b"]", b"}", b")", text(argument), b"ctorch\nFloatStorage\n"):
        for ending in (b")R", b")\x81", b"}b", b")}\x92", b"Q", text(argument) + b"\x85R"):
            yield target + ending
    ordered = b"ccollections\nOrderedDict\n"
    for ending in (b")\x81", b")}\x92", b"K\x01R", b"K\x01\x85R", b"](K\x01e\x85R", b")R)R"):
        yield ordered + ending
    storage = [text("storage"), b"ctorch\nFloatStorage\n", text("0"), text("cpu"), b"K\x06"]
    for place in range(5):
        for piece in (b"N", b"J\xff\xff\xff\xff", b"]", b"}", b")", b"", b"K\x01K\x02", b"G" * 9):
            changed = [*storage[:place], piece, *storage[place + 1 :]]
            yield b"(" + b"".join(changed) + b"tQ"
    for number in (b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\x20" + b"\x7f" * 32):
        yield b"(" + b"".join([*storage[:4], number]) + b"tQ"
    whole = b"(" + b"".join(storage) + b"tQ"
    for offset in (b"K\x00", b"K\x06", b"J\xff\xff\xff\xff", b"\x88", b"N"):
        for shape in (b"K\x07\x85", b"J\xff\xff\xff\xff\x85", b"]", b"(" + b"K\x01" * 99 + b"t"):
            for stride in (b"K\x01\x85", b"K\x00\x85", b"J\xff\xff\xff\xff\x85", b"]", b")"):
                yield (
                    b"ctorch._utils\n_rebuild_tensor_v2\n("
                    + whole
                    + offset
                    + shape
                    + stride
                    + (b"\x89N" + b"tR")
                )
    large = b"\x8a\x06" + b"\xff" * 5 + b"\x7f"
    for shape, stride in (
        (large * 2 + b"\x86", b"K\x00K\x00\x86"),
        (large + b"\x85", b"K\x00\x85"),
    ):
        yield (
            b"ctorch._utils\n_rebuild_tensor_v2\n(" + whole + b"K\x00" + shape + stride + b"\x89NtR"
        )


def swap_pickle(content: bytes, body: bytes, legacy: bool) -> bytes:
    """The file with another pickle in place of its own."""
    if not legacy:
        return zipped([("a/data.pkl", body), ("a/data/0", bytes(24)), ("a/version", b"3\n")])
    start = content.index(b"\x80\x02}", content.index(b"type_sizes"))
    return content[:start] + body + content[content.index(b"\x80\x02]", start) :]


def zipped(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return file.getvalue()


def places(body: bytes) -> list[bytes]:
    """Pickles that hold a value: alone, in a dict, as a key, in a checkpoint."""
    return [
        b"\x80\x02" + body + STOP,
        b"\x80\x02}" + text("w") + body + b"s" + STOP,
        b"\x80\x04(" + body + b"K\x01d" + STOP,
        b"\x80\x05}" + text("state_dict") + b"}" + text("w") + body + b"ss" + STOP,
    ]


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_calls_in_every_form_run_nothing(legacy: bool, tmp_path: Path, tally: Tally) -> None:
    """The sentinel would be made by os.system; the watch of `try_all` sees any other event."""
    sentinel, content = tmp_path / "was_here", saved(WANTED, legacy)
    path, argument = tmp_path / "w.bin", f"touch {sentinel}"
    bodies = [body for name in CALLS for body in calls(name, argument)]
    programs = [places(body)[n % 4] for n, body in enumerate(bodies)]
    files = (swap_pickle(content, program, legacy) for program in programs)
    counts = try_all(_torch_pickle.read, path, files, {})
    assert set(counts) == {"error"}
    programs = [program for body in others(argument) for program in places(body)]
    files = (swap_pickle(content, program, legacy) for program in programs[:: 1 + 3 * legacy])
    counts += try_all(_torch_pickle.read, path, files, {}, lambda found: not found["w"].any())
    tally(f"hostile pickles, {'legacy' if legacy else 'zip'}", counts)
    assert counts["error"] > 1500
    assert counts["error"] > sum(counts.values()) - 20, "dicts of nothing, and a row repeated"
    assert not sentinel.exists()


def test_the_forbidden_name_and_the_remedy_are_named(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("touch was_here",)

    for legacy in (False, True):
        path = tmp_path / f"{legacy}.bin"
        path.write_bytes(saved({"w": torch.ones(1), "evil": Evil()}, legacy))
        with pytest.raises(ValueError, match=r"asks for (posix|nt) system, .* torch.save\("):
            _torch_pickle.read(path)


def test_the_watch_sees_what_runs() -> None:
    """The tests above and below can fail: Python's own unpickler fails them."""
    with pytest.raises(AssertionError, match="pickle.find_class"), nothing_runs():
        pickle.loads(b"cos\ngetcwd\n)R.")
    with pytest.raises(AssertionError, match="bytes"), little_memory(MEBI):
        bytes(2 * MEBI)


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return b"\x80\x02" + opening * depth + b"N" + closing * depth + STOP


def laughs(more: bytes) -> bytes:
    """Lists of ten times the list before, a hundred levels deep."""
    body = b"]q\x00"
    for level in range(1, 100):
        index = bytes([level])
        body += b"](" + b"h" + bytes([level - 1]) + (b"h" + bytes([level - 1])) * 9 + b"eq" + index
    return b"\x80\x02" + body + more + STOP


BOMBS: dict[str, bytes] = {
    "lists in lists": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + STOP,
    "tuples in tuples": nested(b"", b"\x85", 100_000),
    "dicts in dicts": b"\x80\x02" + b"}N" * 100_000 + b"}" + b"s" * 100_000 + STOP,
    "dicts as keys": b"\x80\x02" + b"}" * 100_000 + b"N" + b"Ns" * 99_999 + STOP,
    "tuple as a key": b"\x80\x02}" + b"N" + b"\x85" * 100_000 + b"Ns" + STOP,
    "name is deep": b"\x80\x02}N" + b"\x85" * 100_000 + b"ctorch\nfloat32\ns" + STOP,
    "marks": b"\x80\x02" + b"(" * 100_000 + STOP,
    "marks and tuples": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + STOP,
    "states of states": b"\x80\x02ccollections\nOrderedDict\n)R" + b"q\x00h\x00b" * 50_000 + STOP,
    "sizes of sizes": b"\x80\x02" + b"ctorch\nSize\n" * 50_000 + b"N" + b"\x85R" * 50_000 + STOP,
    "laughs": laughs(b""),
    "laughs in a dict": laughs(b"}" + text("a") + b"hcs"),
    "laughs as pairs": laughs(b"ccollections\nOrderedDict\nhc\x85R"),
    "large list, many dicts": b"\x80\x02](" + b"K\x01K\x02\x86" * 10_000 + b"eq\x000"
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 5_000 + STOP,
    "pairs, many dicts": b"\x80\x02](" + b"K\x01K\x02\x86" * 10_000 + b"eq\x00"
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 5_000 + STOP,
    "one dict under many names": b"\x80\x02}q\x00(" + b"K\x01K\x02" * 20_000 + b"u}("
    + b"".join(text(f"{n}") + b"h\x00" for n in range(20_000)) + b"u" + STOP,
    "list in itself": b"\x80\x02]q\x00h\x00a" + STOP,
    "dict in itself": b"\x80\x02}q\x00" + text("a") + b"h\x00s" + STOP,
    "dict is its own key": b"\x80\x02}q\x00h\x00h\x00s" + STOP,
    "memo far away": b"\x80\x02}r\xff\xff\xff\xff" + STOP,
    "memo everywhere": b"\x80\x02}" + b"".join(
        b"r" + struct.pack("<I", 4_000_000_000 - n * 40_000) for n in range(50_000)
    ) + STOP,
    "memo of nothing": b"\x80\x02h\x07" + STOP,
    "memo below zero": b"\x80\x02}p-1\ng-1\n" + STOP,
    "memo of many digits": b"\x80\x02}p" + b"9" * 5000 + b"\n" + STOP,
    "number of many digits": b"\x80\x02L" + b"9" * 60_000 + b"L\n" + STOP,
    "number without end": b"\x80\x02L" + b"9" * 200_000 + STOP,
    "LONG4 of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f" + STOP,
    "LONG4 below zero": b"\x80\x02\x8b\xff\xff\xff\xff" + STOP,
    "LONG4 of 1 MB": b"\x80\x02}" + text("a") + b"\x8b" + struct.pack("<i", MEBI) + b"\x7f" * MEBI
    + b"s" + STOP,
    "bytes of 4 GB": b"\x80\x03B\xff\xff\xff\xff" + STOP,
    "bytes of 2**62": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + STOP,
    "bytes of 2**64 - 1": b"\x80\x04\x8e" + b"\xff" * 8 + STOP,
    "bytearray of 2**40": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + STOP,
    "text of 4 GB": b"\x80\x02X\xff\xff\xff\xff" + STOP,
    "text of 2**63 - 1": b"\x80\x04\x8d" + struct.pack("<Q", (1 << 63) - 1) + STOP,
    "text below zero": b"\x80\x02T\xff\xff\xff\xffa" + STOP,
    "text of no encoding": b"\x80\x02}X\x02\x00\x00\x00\xff\xfeNs" + STOP,
    "half a surrogate": b"\x80\x02}X\x03\x00\x00\x00\xed\xa0\x80Ns" + STOP,
    "text with escapes": b"\x80\x02}S'\\q\\x00'\nNs" + STOP,
    "names with escapes": b"\x80\x02c\\x6fs\nsystem\n)R" + STOP,
    "frame of 2**63": b"\x80\x04\x95" + struct.pack("<Q", 1 << 63) + b"}" + STOP,
    "buffer from outside": b"\x80\x05\x97\x98" + STOP,
    "name of a megabyte": b"\x80\x04" + text("o" * MEBI) + text("s" * MEBI) + b"\x93" + STOP,
    "steps without end": b"\x80\x02" + b"N" * 1_000_001 + STOP,
    "nothing": STOP,
    "nothing at all": b"",
    "no stop": b"\x80\x02}",
    "unknown words": b"\x80\x02\xff\xfe" + STOP,
    "odd items": b"\x80\x02}(K\x01u" + STOP,
    "items of none": b"\x80\x02K\x01K\x02a" + STOP,
    "past the mark": b"\x80\x02}(" + b"\x86" + STOP,
}  # fmt: skip
# These are dicts of nothing in the end.
NOTHING = {"states of states", "memo far away", "memo everywhere", "memo below zero"}
NOTHING |= {"frame of 2**63"}


def test_bombs_end_in_errors_in_little_memory(tmp_path: Path, tally: Tally) -> None:
    """No recursion, and no more work or memory than the bytes that are there ask for."""
    path, counts = tmp_path / "w.bin", Counter[str]()
    for name, program in BOMBS.items():
        small = len(program) < 10_000
        for legacy in (False, True) if small else (False,):
            path.unlink(missing_ok=True)
            path.write_bytes(swap_pickle(saved(WANTED, legacy), program, legacy))
            # To trace the memory of a hundred thousand steps takes a minute.
            traced = little_memory(4 * MEBI) if small else nullcontext()
            with nothing_runs(), traced:
                verdict, _ = judge(_torch_pickle.read, path, {})
            assert verdict == "error" or name in NOTHING, name
            counts[verdict] += 1
    tally("pickle bombs", counts)


WORDS = [bytes([code]) for code in range(128, 153)] + [bytes([code]) for code in range(33, 127)]
PIECES = [
    *(named(name) for name in ("collections OrderedDict", "torch FloatStorage", "os system")),
    *(named(f"torch._utils {name}") for name in ("_rebuild_tensor_v2", "_rebuild_parameter")),
    *(text("w"), text("storage"), text("0"), text("cpu"), b"K\x00", b"K\x06", b"(", b"t", b"R"),
    *(b"}", b"]", b")", b"N", b"q\x00", b"h\x00", b"s", b"u", b"a", b"e", b"Q", b"b", b"\x85"),
]


def test_random_programs(tmp_path: Path, tally: Tally) -> None:
    rng = random.Random(1)
    path = tmp_path / "w.bin"

    def programs() -> Iterator[bytes]:
        for _ in range(1500):
            words = rng.choices([*PIECES, *rng.choices(WORDS, k=6)], k=rng.randrange(1, 40))
            yield zipped([("a/data.pkl", b"\x80\x02" + b"".join(words) + b"."), ("a/data/0", b"")])

    counts = try_all(_torch_pickle.read, path, programs(), {})
    tally("random pickles", counts)
    assert counts["error"] > 1000


# Zip archives.

PICKLE = zipfile.ZipFile(io.BytesIO(saved(WANTED, False))).read("archive/data.pkl")
DATA = [WANTED["w"].numpy().tobytes(), WANTED["n"].numpy().tobytes()]
MEMBERS = [("a/data.pkl", PICKLE), ("a/data/0", DATA[0]), ("a/data/1", DATA[1])]


def directory(content: bytes) -> list[int]:
    """Where the lines of the directory of an archive begin."""
    found, place = [], content.find(b"PK\1\2")
    while place >= 0:
        found.append(place)
        place = content.find(b"PK\1\2", place + 1)
    return found


def put(content: bytes, place: int, form: str, value: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into("<" + form, changed, place, value)
    return bytes(changed)


def numbers() -> Iterator[bytes]:
    """Every number of the directory, of the local headers and of the end, with values that lie."""
    plain = zipped(MEMBERS)
    lines, end = directory(plain), plain.rindex(b"PK\5\6")
    fields = {6: "H", 8: "H", 10: "H", 16: "I", 20: "I", 24: "I", 28: "H", 30: "H", 32: "H"}
    fields |= {34: "H", 42: "I"}
    local = {4: "H", 6: "H", 8: "H", 14: "I", 18: "I", 22: "I", 26: "H", 28: "H"}
    ending = {4: "H", 6: "H", 8: "H", 10: "H", 12: "I", 16: "I", 20: "H"}
    starts = [struct.unpack_from("<I", plain, line + 42)[0] for line in lines]
    spots = [(line + field, form) for line in lines for field, form in fields.items()]
    spots += [(start + field, form) for start in starts for field, form in local.items()]
    spots += [(end + field, form) for field, form in ending.items()]
    for place, form in spots:
        largest = 256 ** struct.calcsize(form) - 1
        now = struct.unpack_from("<" + form, plain, place)[0]
        for value in {
            0,
            1,
            8,
            now + 1,
            max(now - 1, 0),
            largest,
            largest // 2,
            len(plain),
            *starts,
        }:
            yield put(plain, place, form, min(value, largest))


def tricks() -> Iterator[bytes]:
    """Archives that list twice, overlap, climb out, hide, bomb or encrypt."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        for member in MEMBERS:
            yield zipped([*MEMBERS, member])
            yield zipped([(member[0], b"evil"), *MEMBERS])
    plain = zipped(MEMBERS)
    lines = directory(plain)
    first = struct.unpack_from("<I", plain, lines[1] + 42)[0]
    yield put(plain, lines[2] + 42, "I", first)  # two lines for one member
    for name in ("../data.pkl", "/data.pkl", "a/../data.pkl", "C:\\data.pkl", "a\\data.pkl"):
        yield zipped([(name, PICKLE), *MEMBERS[1:]])
    for name in ("a/data/../0", "a/data//0", "a//data/0", "../a/data/0", "b/data/0", "a/data/0/"):
        yield zipped([MEMBERS[0], (name, DATA[0]), MEMBERS[2]])
    yield zipped(MEMBERS, zipfile.ZIP_DEFLATED)
    yield zipped(MEMBERS, zipfile.ZIP_BZIP2)
    yield zipped(MEMBERS, zipfile.ZIP_LZMA)
    yield zipped([*MEMBERS, ("a/byteorder", b"big")])
    yield zipped([*MEMBERS, ("a/byteorder", b"?")])
    yield zipped([*MEMBERS, ("b/data.pkl", PICKLE)])
    yield zipped([*MEMBERS, ("a/constants.pkl", b"")])
    yield zipped([*MEMBERS, ("a/code/__torch__.py", b"import os")])
    yield zipped([("a/data.pkl", PICKLE)])
    yield zipped([("a/data.pkl", PICKLE), ("a/data/0", DATA[0][:-4]), MEMBERS[2]])
    yield zipped([("a/data.pkl", PICKLE), ("a/data/0", DATA[0] + bytes(4)), MEMBERS[2]])
    yield zipped([])
    yield zipped([("a.txt", b"hello")])


def harmless() -> Iterator[bytes]:
    plain = zipped(MEMBERS)
    yield plain
    yield zipped([*MEMBERS, ("../../evil", b"x"), ("/etc/passwd", b"x")])  # nothing is unpacked
    yield zipped([*reversed(MEMBERS)])
    yield plain[:-2] + b"\x05\x00hello"  # with a comment
    link = zipfile.ZipInfo("a/link")
    link.external_attr = 0xA1FF << 16
    file = io.BytesIO(plain)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")
        with archive.open("a/large", "w", force_zip64=True) as large:
            large.write(b"x")
    yield file.getvalue()


def test_tricks_of_zip_archives(tmp_path: Path, tally: Tally) -> None:
    path, liars = tmp_path / "w.bin", [*numbers()]
    tricky, fair = [*tricks()], [*harmless()]
    with little_memory(4 * MEBI):
        counts = try_all(_torch_pickle.read, path, liars, WANTED)
        refused = try_all(_torch_pickle.read, path, tricky, WANTED)
        taken = try_all(_torch_pickle.read, path, fair, WANTED)
    assert set(counts) == {"error", "same tensors"}
    assert set(refused) == {"error"}
    assert set(taken) == {"same tensors"}
    tally("torch zip, lies and tricks", counts + refused + taken)
    assert [found.name for found in tmp_path.iterdir()] == ["w.bin"]


def test_values_that_are_not_finite_are_the_same_bits(tmp_path: Path, tally: Tally) -> None:
    counts = Counter[str]()
    for dtype, whole in ((torch.float32, torch.int32), (torch.float16, torch.int16)):
        patterns = torch.tensor([-1, 1, 0x7FC1, -(1 << 15), 0x7C01], dtype=torch.int64)
        wanted = {"x": (patterns << (8 * dtype.itemsize - 16)).to(whole).view(dtype)}
        for legacy in (False, True):
            path = tmp_path / f"{dtype}{legacy}.bin"
            path.write_bytes(saved(wanted, legacy))
            counts[judge(_torch_pickle.read, path, wanted)[0]] += 1
    tally("values that are not finite", counts)
    assert counts == {"same tensors": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "begins with neither a zip nor a pickle"),
        (b"\x80\x02K\x01.", "a pickle, but not one of torch.save"),
        (bytes(257) + b"ustar" + bytes(250), "a tar archive of torch 0.1.9 or older"),
        (zipped([("a.npy", b"")]), "it has 0 data.pkl, not 1"),
        (zipped([*MEMBERS, ("a/constants.pkl", b"")]), "torch.jit.save"),
        (zipped([*MEMBERS, ("a/byteorder", b"big")]), "big-endian"),
        (zipped(MEMBERS, zipfile.ZIP_DEFLATED), "it is compressed"),
        (saved(WANTED, True).replace(b"little_endianq\x02\x88", b"little_endianq\x02\x89"), "big-"),
        (saved(WANTED, True) + b"x", "should have"),
    ],
    ids=lambda value: value if isinstance(value, str) else "bytes",  # those change from run to run
)
def test_files_of_other_formats_are_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"w\.bin can't be read: ") as caught:
        _torch_pickle.read(tmp_path / "w.bin")
    assert message in str(caught.value)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="w.bin"):
        _torch_pickle.read(tmp_path / "w.bin")
