"""Texts encoded by several processes: the ids, the errors, and what a caller has to mind."""

import gc
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fnlm.tokenize import _batch, gpt2

END = gpt2.END_OF_TEXT


@pytest.fixture(scope="module")
def small() -> gpt2.Tokenizer:
    return gpt2.train(["low lower lowest", "slow slower, slowest"] * 3, 300)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_processes_give_what_one_gives(small: gpt2.Tokenizer, count: int) -> None:
    texts = [f"text {number} {'x ' * number}{END}" for number in range(count)]
    expected = [small.encode(text, allowed_special="all") for text in texts]
    assert small.encode_batch(texts, allowed_special="all", workers=2) == expected
    assert small.encode_batch(iter(texts), allowed_special=iter([END]), workers=1) == expected


def test_texts_of_uneven_cost_come_back_in_their_order(small: gpt2.Tokenizer) -> None:
    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh ", k=300)) for _ in range(200)] + ["a " * 150] * 200
    assert small.encode_batch(texts, workers=2) == [small.encode(text) for text in texts]


@pytest.mark.parametrize("place", [0, 99], ids=["other process", "this one"])
@pytest.mark.parametrize("size", [1, 1_000], ids=["short", "more than a pipe holds"])
def test_what_is_no_text_is_refused_by_any_process(
    small: gpt2.Tokenizer, place: int, size: int
) -> None:
    texts: list[Any] = ["one two" * size] * 100
    texts[place] = b"bytes"
    with pytest.raises(TypeError, match="bytes, not str"):
        small.encode_batch(texts, workers=2)


def _end_elsewhere(text: str) -> list[int]:
    """Return the length of a text, or end the process if it is another than the tests'."""
    if os.getpid() != int(os.environ["FNLM_TEST_PID"]):
        os._exit(3)
    time.sleep(0.01)
    return [len(text)]


def test_a_process_that_ends_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FNLM_TEST_PID", str(os.getpid()))
    with pytest.raises(RuntimeError, match="a process that encodes texts ended with code 3"):
        _batch.encode_all(_end_elsewhere, ["a"] * 1_000, 2)


def test_a_script_needs_no_guard(small: gpt2.Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").write_bytes(pickle.dumps(small))
    (tmp_path / "regex.py").write_text("1 / 0  # a process does not import what lies around")
    script = tmp_path / "script.py"
    script.write_text(
        "import pickle, sys\n"
        "sys.path.pop(0)\n"
        "print('begins')\n"
        "tokenizer = pickle.load(open('tokenizer', 'rb'))\n"
        "print(tokenizer.encode_batch(['low lower', 'new'] * 3, workers=3))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "script.py"]
    out = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
    assert out == f"begins\n{[small.encode('low lower'), small.encode('new')] * 3}\n"


def test_what_is_frozen_stays_so(small: gpt2.Tokenizer) -> None:
    gc.freeze()
    try:
        small.encode_batch(["low", "lower"])
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_shares_hold_all_texts_in_order() -> None:
    for texts in (["a"] * 5, ["a" * 100, "", "b"], ["", "", ""], ["a", "b" * 100], ["a"]):
        for workers in (1, 2, 3, 8):
            shares = list(_batch.shares(texts, workers))
            assert [text for share in shares for text in share] == texts
            assert len(shares) <= workers
            assert all(shares)
