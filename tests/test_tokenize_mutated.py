"""Files of tokenizers that were damaged in any way: a documented error, soon and in little memory.

The gate tries a part; FNLM_TEST_FULL=1 tries all, some minutes.
"""

import json
import os
import random
import shutil
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vocabularies import GPT2_TOKENS, KINDS, write, xl_small

from fnlm.tokenize import bert, gpt, gpt2, transfo_xl

FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"
LOADS: dict[str, Callable[[Path], Any]] = {
    "bert": bert.load,
    "gpt": gpt.load,
    "gpt2": gpt2.load,
    "transfo_xl": transfo_xl.load,
}
SECONDS, BYTES = 2, 100_000_000
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 10**30, float("inf"), float("nan"), "", "x", "\ud800", "\0",
    "a b", "\ufeff", [], [[]], {}, {"": ""}, [1], ["a", 5], [None], {"a": None}, {"content": 5},
    {"content": "the"}, "[UNK]", "<unk>", "WordPiece", 2**31, 2**63,
)  # fmt: skip


def forms(tmp_path: Path) -> list[tuple[str, str, dict[str, bytes]]]:
    """Folders of all forms: the family, the form, and the content of each file."""
    found = []
    for family, kind in KINDS.items():
        old = write(family, tmp_path / family / "old")
        peer = kind.peer.from_pretrained(old)
        peer.add_tokens(["<s>", "covid19"])
        peer.save_pretrained(tmp_path / family / "whole")
        size = len(peer) - 2
        row = {"content": "<e1>", "lstrip": False, "normalized": True, "single_word": True}
        for name, content in {
            "added_tokens.json": {"<e1>": size, "<s>": size + 1},
            "special_tokens_map.json": {"mask_token": "<s>", "additional_special_tokens": ["<s>"]},
            "tokenizer_config.json": {"do_lower_case": True, "model_max_length": 512},
        }.items():
            (old / name).write_text(json.dumps(content))
        kind.make(added=("<s>", "two words")).save(tmp_path / family / "ours")
        shutil.copytree(old, tmp_path / family / "rows")
        config = {"added_tokens_decoder": {str(size): row}, "mask_token": "<e1>", "never_split": []}
        (tmp_path / family / "rows" / "tokenizer_config.json").write_text(json.dumps(config))
        (tmp_path / family / "rows" / "added_tokens.json").unlink()
        if family != "bert":
            (old / "special_tokens.txt").write_text("<e1>\n<s>\n")
    xl_small(lower_case=True, delimiter=",").save(tmp_path / "transfo_xl" / "ours")
    for folder in sorted(tmp_path.glob("*/*")):
        files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        found.append((folder.parent.name, folder.name, files))
    return found


def mutated(value: Any, draw: random.Random) -> Any:
    """Return a JSON value with one thing in it changed."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        value = dict(value)
        key = draw.choice([*value])
        match draw.randrange(6):
            case 0:
                del value[key]
            case 1:
                value[draw.choice([str(odd) for odd in ODD if odd != "\ud800"])] = value.pop(key)
            case _:
                value[key] = mutated(value[key], draw)
        return value
    if isinstance(value, list) and value and draw.random() < 0.85:
        at = draw.randrange(len(value))
        match draw.randrange(5):
            case 0:
                return [*value[:at], *value[at + 1 :]]
            case 1:
                return [*value, value[at]]
            case _:
                return [*value[:at], mutated(value[at], draw), *value[at + 1 :]]
    return draw.choice(ODD)


def damaged(content: bytes, name: str, draw: random.Random) -> bytes:
    """Return the content of a file, damaged: as JSON where it is, as lines or as bytes."""
    way = draw.randrange(10)
    if name.endswith(".json") and way < 7:
        value = mutated(json.loads(content), draw)
        while draw.random() < 0.3:
            value = mutated(value, draw)
        return json.dumps(value).encode()
    if way == 7 or way < 4:  # lines
        lines = content.split(b"\n")
        at = draw.randrange(len(lines))
        new = draw.choice([b"", b" ", b"a", b"a b c", b"\xff", b"\0", lines[0], b"\r", b"x" * 99])
        lines[at : at + draw.randrange(2)] = [new] * draw.randrange(3)
        return b"\n".join(lines)
    if way == 8:
        deep = draw.choice([b"[", b'{"a":']) * draw.choice([10, 1000, 100_000])
        return draw.choice([deep, b"", b"\xef\xbb\xbf" + content, b"9" * 5000, b"[1e999]", b"\0"])
    raw = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(raw) + 1)
        raw[at : at + draw.randrange(9)] = draw.randbytes(draw.randrange(4))
    return bytes(raw)


def outcome(load: Callable[[Path], Any], place: Path) -> str:
    """Load a folder and use what it gives: "read", or the documented error."""
    start = time.process_time()
    try:
        tokenizer = load(place)
    except (ValueError, FileNotFoundError) as error:
        documented = type(error) in (ValueError, FileNotFoundError)  # no UnicodeError, no decoder's
        assert documented and len(str(error)) < 2000, f"{type(error)}: {error}"
        kind = "refused"
    else:
        kind = "read"
        text = "The covid19 <s>cat 中 [MASK] \x00\u0301 two words"
        ids = tokenizer.encode(text) if tokenizer.vocab_size > 5 else []
        tokenizer.decode(ids)
        tokenizer.encode_with_offsets(text) if ids else None
    assert time.process_time() - start < SECONDS
    return kind


@pytest.mark.parametrize("share", range(8))
def test_damaged_files_raise_documented_errors(
    share: int, tmp_path: Path, tally: Callable[..., None]
) -> None:
    draw, counts = random.Random(share), Counter[str]()
    found = forms(tmp_path / "forms")
    place = tmp_path / "place"
    for case in range(30_000 // 8 if FULL else 75):
        family, form, files = found[(case * 8 + share) % len(found)]
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        name = draw.choice([*files])
        for file, content in files.items():
            (place / file).write_bytes(damaged(content, file, draw) if file == name else content)
        measured = case % 10 == 0
        if measured:
            tracemalloc.start()
        try:
            counts[outcome(LOADS[family], place)] += 1
        except Exception as error:
            kept = (place / name).read_bytes()[:300]
            raise AssertionError(f"{family}, {form}, {name}, {kept!r}") from error
        finally:
            peak = tracemalloc.get_traced_memory()[1] if measured else 0
            tracemalloc.stop()
        assert peak < BYTES
    tally("damaged files of tokenizers", counts)
    assert counts["refused"] > counts["read"] / 4 > 0


@pytest.mark.parametrize("family", sorted(LOADS))
def test_byte_order_marks_and_line_ends(family: str, tmp_path: Path) -> None:
    """All text files with a byte order mark and with the line ends of Windows."""
    folder = tmp_path / "whole"
    if family == "transfo_xl":
        xl_small(lower_case=True).save(folder)
    else:
        KINDS[family].make(added=("<s>",)).save(folder)
    tokenizer = LOADS[family](folder)
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert LOADS[family](folder) == tokenizer


def test_a_key_that_is_there_twice_is_named(tmp_path: Path) -> None:
    folder = write("gpt2", tmp_path)
    text = (folder / "vocab.json").read_text(encoding="utf-8")
    (folder / "vocab.json").write_text(text.replace('"!": 0', '"!": 0, "!": 0'), encoding="utf-8")
    with pytest.raises(ValueError, match=r"vocab\.json is not JSON.*the key '!' is there twice"):
        gpt2.load(folder)
    vocab = {token: at for at, token in enumerate(GPT2_TOKENS)}
    for odd in (-1, 2**40, True, 1.0, "0"):
        (folder / "vocab.json").write_text(json.dumps(vocab | {"!": odd}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"vocab\.json"):
            gpt2.load(folder)
