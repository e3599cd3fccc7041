"""Rows, conversion in several processes, and the cache, whatever the task."""

import os
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from fnlm.tasks import _read, features, glue
from fnlm.tasks._types import Ints
from fnlm.tokenize import bert

MARKS = ("[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]")


def tokenizer_of(*texts: str) -> bert.Tokenizer:
    """A tokenizer that knows every second word of some texts, and letters for the others."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word})
    tokens = dict.fromkeys([*MARKS, *words[::2], *letters, *(f"##{x}" for x in letters)])
    return bert.Tokenizer({token: at for at, token in enumerate(tokens)})


def assert_equal(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    """Two NamedTuples of arrays are the same to the bit."""
    assert type(one) is type(other)
    for name, left, right in zip(one._fields, one, other, strict=True):  # type: ignore[attr-defined]
        assert left.dtype == right.dtype and left.shape == right.shape, name
        assert left.tobytes() == right.tobytes(), name


class Arrays(NamedTuple):
    number: Ints  # [N]
    squares: Ints  # [N, 2]


def repeat(records: Sequence[int], first: int, base: int = 0) -> Arrays:
    """Record r gives r % 3 rows."""
    numbers = [(base + r, first + at) for at, r in enumerate(records) for _ in range(r % 3)]
    rows = np.array(numbers, np.int32).reshape(-1, 2)
    return Arrays(rows[:, 0], rows)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_the_longer_text_is_cut(first: int, second: int, room: int) -> None:
    a, b = first, second
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert features.truncate_pair(first, second, room) == (a, b)


def test_rows_are_laid_out() -> None:
    draw = random.Random(1)
    pairs: list[tuple[list[int], list[int] | None]] = []
    expected = []
    for _ in range(50):
        first = [draw.randrange(5, 90) for _ in range(draw.randrange(7))]
        second = draw.choice([None, [draw.randrange(5, 90) for _ in range(draw.randrange(7))]])
        pairs.append((first, second))
        ids, types = [2, *first, 3], [0] * (len(first) + 2)
        if second is not None:
            ids, types = [*ids, *second, 3], types + [1] * (len(second) + 1)
        padding = [0] * (17 - len(ids))
        expected.append((ids + [1] * len(padding), types + padding, [1] * len(ids) + padding))
    got = features.rows(pairs, features.SpecialTokens(cls=2, sep=3, pad=1), 17)
    assert [x.dtype for x in got] == [np.int32, np.int32, np.bool_]
    for array, lists in zip(got, zip(*expected, strict=True), strict=True):
        assert array.astype(int).tolist() == list(lists)


def test_texts_are_encoded_and_cut() -> None:
    tokenizer = tokenizer_of("a b c d e f g h")
    ids, types, mask = features.encode_pairs(tokenizer, [("a b c d e f", "g h"), ("a", None)], 9)
    tokens = [tokenizer.ids_to_tokens(ids[row, mask[row]].tolist()) for row in range(2)]
    assert tokens[0] == "[CLS] a b c d [SEP] g h [SEP]".split()
    assert tokens[1] == ["[CLS]", "a", "[SEP]"]
    assert types.sum(axis=1).tolist() == [3, 0]
    with pytest.raises(ValueError, match="max_seq_length=4 must be at least 5"):
        features.encode_pairs(tokenizer, [("a", "b")], 4)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 1000])
def test_chunks_do_not_show(count: int) -> None:
    records = [r * r for r in range(count)]
    seen: list[tuple[int, int]] = []
    got = features.convert(
        partial(repeat, base=5), records, Arrays, progress=lambda *at: seen.append(at)
    )
    assert_equal(got, repeat(records, 0, base=5))
    assert seen[-1] == (count, count) and seen == sorted(seen)


def test_several_processes_give_what_one_gives() -> None:
    """The task is a real one: another process then need not import this file."""
    texts = [f"word {'and word ' * (at % 7)}{at}" for at in range(1000)]
    tokenizer = tokenizer_of(*texts)
    examples = [glue.Example(text, None, at % 2) for at, text in enumerate(texts)]
    seen: list[tuple[int, int]] = []
    got = glue.features(
        *(examples, "SST-2", tokenizer), workers=2, progress=lambda *at: seen.append(at)
    )
    assert_equal(got, glue.features(examples, "SST-2", tokenizer))
    assert seen == [(256, 1000), (512, 1000), (768, 1000), (1000, 1000)]
    with pytest.raises(ValueError, match="workers=0 must be at least 1"):
        glue.features(examples, "SST-2", tokenizer, workers=0)
    with pytest.raises(ValueError, match="max_seq_length=4 must be at least 5"):  # from a worker
        glue.features(examples, "SST-2", tokenizer, max_seq_length=4, workers=2)


def fail(records: Sequence[int], first: int) -> Arrays:
    raise ValueError(f"record {first} is wrong")


def test_results_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, records = tmp_path / "new" / "cache", [4, 5, 6]
    first = features.convert(partial(repeat, base=5), records, Arrays, cache=folder)
    monkeypatch.setattr(features, "_parts", None)  # whoever works now, fails
    again = features.convert(partial(repeat, base=5), tuple(records), Arrays, cache=folder)
    assert_equal(first, again)
    different: list[tuple[partial[Arrays], list[int]]] = [
        (partial(repeat, base=6), records),
        (partial(repeat, base=5), [4, 5, 7]),
        (partial(fail), records),
    ]
    for make, others in different:
        with pytest.raises(TypeError, match="not callable"):
            features.convert(make, others, Arrays, cache=folder)
    monkeypatch.setattr(features, "__version__", "another")
    with pytest.raises(TypeError, match="not callable"):
        features.convert(partial(repeat, base=5), records, Arrays, cache=folder)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "bit", "text", "fields"])
def test_a_damaged_result_is_made_anew(tmp_path: Path, damage: str) -> None:
    records = list(range(30))
    first = features.convert(partial(repeat), records, Arrays, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    raw = path.read_bytes()
    middle = len(raw) // 2
    flipped = raw[:60] + bytes([raw[60] ^ 1]) + raw[61:]
    if damage == "fields":
        np.savez(path, number=first.number)
    else:
        changes = {"cut": raw[:middle], "empty": b"", "bit": flipped, "text": b"no archive"}
        path.write_bytes(changes[damage])
    again = features.convert(partial(repeat), records, Arrays, cache=tmp_path)
    assert_equal(again, first)
    assert_equal(Arrays(**np.load(path, allow_pickle=False)), first)


def test_a_cache_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        features.convert(partial(repeat), [1], Arrays, cache=tmp_path / "file")


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        features.convert(partial(repeat), [1, 2], Arrays, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_hashes_go_by_content() -> None:
    tokenizer = tokenizer_of("some words")
    again = bert.Tokenizer(dict(reversed(list(tokenizer.vocab.items()))))
    again.encode("some words fill the cache")
    assert features.digest(tokenizer) == features.digest(again)
    values: list[Any] = [
        *(None, True, 1, 1.5, "1", "", [], [[]], ["a", "b"], ["ab"], {"a": 1}, {"a": 2}),
        *(range(3), range(4), np.arange(3), np.arange(3.0), np.arange(4), np.zeros((2, 0))),
        *("\ud800", "\u2028", tokenizer, bert.Tokenizer(tokenizer.vocab, lower_case=False)),
    ]
    assert len({features.digest(value) for value in values}) == len(values)
    assert features.digest(MappingProxyType({"a": 1})) == features.digest({"a": 1})
    assert features.digest(np.int64(3), np.float32(0.5)) == features.digest(3, 0.5)
    with pytest.raises(TypeError, match="content of set cannot be hashed"):
        features.digest([{1, 2}])


def test_hashes_are_the_same_in_another_process() -> None:
    code = "from fnlm.tasks.features import digest; print(digest('x', {'b': [1], 'a': 2.5}))"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == features.digest("x", {"a": 2.5, "b": [1]})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "damaged").write_bytes(b"\x1f\x8b\x08\x00broken")
    (tmp_path / "half.json").write_text('{"data": [1,\n2')
    for name, message in (
        ("absent", r"'.*absent' is no file; give the path"),
        (".", "is a directory; give the path"),
        ("latin", r"latin is not UTF-8 \(byte 0\)"),
        ("damaged", "damaged is damaged"),
        ("half.json", r"half.json, line 2, column 2: not JSON"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message) as error:
            _read.read_json(tmp_path / name)
        assert "\n" not in str(error.value)


def test_lines_end_at_line_feeds_only(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes("\ufeffa\r\n\u2028b\x85c\x0bd\n\ne".encode())
    assert _read.read_lines(tmp_path / "x") == ["a", "\u2028b\x85c\x0bd", "", "e"]
