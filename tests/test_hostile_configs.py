"""Mutated config.json files: loaded as they say, or refused with an error that names the file.

A part runs in the gate; FNLM_TEST_FULL=1 runs 30,000.
"""

import json
import os
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from families import BERT, FAMILIES, Family, make_params

from fnlm import tree

COUNT = 7500 if os.environ.get("FNLM_TEST_FULL") else 120  # for each family
SECONDS, BYTES = 2.0, 100e6  # of this process, and of Python at once

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 0.5, -0.5, 1e-400, 1e308, 1.0, 2.0, 10**6, 10**7, 10**9,
    2**31, 2**63, 2**64, 2**70, 10**400, float("nan"), float("inf"), "", "2", "gelu", "relu", "x",
    "BertForMaskedLM", "\ud800", "a" * 10000, [], [1], [[]], [3, 2, 1], [True], ["x"], [None],
    {}, {"a": 1}, {"0": "no"}, {"a": {"b": []}}, [0.5], list(range(3000)), {"x": float("nan")},
]  # fmt: skip


def mutated(content: dict[str, Any], rng: random.Random) -> str:
    """A config.json with one to three things wrong, or right in an unusual way."""
    content = dict(content)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        key = rng.choice([*content, "architectures", "id2label", "num_labels", "hidden_size"])
        match rng.randrange(8):
            case 0:
                content.pop(key, None)
            case 1:
                content[rng.choice([*content])] = content.get(key)
            case 2 if isinstance(content.get(key), int | float):
                content[key] = content[key] * rng.choice([-1, 0, 2, 10**6, 0.5, 10**30])
            case 3 if isinstance(content.get(key), int | float):
                content[key] = str(content[key])
            case 4:
                content[key] = [content.get(key)]
            case _:
                content[key] = rng.choice(VALUES)
    text = json.dumps(content)
    match rng.randrange(12):
        case 0:  # bytes are lost, doubled or changed
            place = rng.randrange(len(text))
            text = (
                text[:place] + rng.choice(["", "{", '"', ",", "\x00", "9", "]"]) + text[place + 1 :]
            )
        case 1:
            text = text[: rng.randrange(len(text))]
        case 2:
            key = rng.choice([*content])
            text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(rng.choice(VALUES))}}}"
        case 3:
            depth = rng.choice([40, 60, 2000, 100_000])
            text = f'{text[:-1]}, "deep": {"[" * depth}{"]" * depth}}}'
        case 4:
            text = "\ufeff" + text
    return text


def judged(load: Callable[[Path], Any], folder: Path) -> tuple[str, Any]:
    """Load, and say what came of it; no other kind of error, no long time, no large memory."""
    tracemalloc.start()
    before = time.process_time()
    try:
        return "loaded", load(folder)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        assert type(error) in (ValueError, FileNotFoundError), repr(error)
        assert str(folder) in text and len(text) < 3000, text
        return "refused", None
    finally:
        seconds, peak = time.process_time() - before, tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seconds < SECONDS and peak < BYTES, f"{seconds:.1f} s, {peak:,} bytes"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_mutated_configs_load_or_are_named(family: Family, tmp_path: Path, tally: Any) -> None:
    module = family.module
    params = make_params(family)
    if family is BERT:
        head = "sequence_classification"
        params["heads"] = {head: params["heads"][head]}
    module.save(params, tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    rng = random.Random(0)
    counts: Counter[str] = Counter()
    for _ in range(COUNT):
        path.write_text(mutated(content, rng), encoding="utf-8", errors="surrogatepass")
        verdict, loaded = judged(module.load, tmp_path)
        counts[verdict] += 1
        if loaded:  # what is loaded is what the file holds, and can be written
            pairs = zip(tree.leaves(loaded), tree.leaves(params), strict=True)
            assert all(x.equal(y) for x, y in pairs)
            json.loads(loaded["config"].to_json_string())
    tally(f"config.json of {family.name}", counts)
    assert counts["loaded"] > COUNT / 20 and counts["refused"] > COUNT / 4
