"""Mutated listings and side files: an error in words, or the same model, soon and in little memory.

The gate takes a part of them; FNLM_TEST_FULL=1 takes all, some minutes.
"""

import json
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import little_memory
from safetensors.torch import save_file
from test_every_format import bundle

from fnlm import gpt, gpt2, tree
from fnlm import random as keys
from fnlm.files import _hub_client
from fnlm.params import _rename

COUNT = 7500 if os.environ.get("FNLM_TEST_FULL", "0") != "0" else 250
SMALL: dict[str, Any] = {"n_positions": 4, "n_ctx": 4, "n_embd": 4, "n_layer": 1, "n_head": 2}
CONFIG = gpt2.Config(vocab_size=5, **SMALL)
ODD: list[Any] = [
    None, True, 0, -1, 1e999, float("nan"), 1 << 62, 1 << 70, 10**400, 3.0, "", "x" * 5000, "../x",
    "/etc/passwd", "a\0b", "\x1b[31m", "\ud800", [], {}, [[]], {"": {}}, ["model"],
    "model.safetensors",
]  # fmt: skip


def mutated(value: Any, rng: random.Random) -> Any:
    """The same JSON with one part of it replaced, removed, doubled or wrapped."""
    if isinstance(value, dict | list) and value and rng.randrange(4):
        copy: Any = value.copy()
        key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        match rng.randrange(4):
            case 0:
                del copy[key]
            case 1 if isinstance(copy, dict):
                copy[rng.choice(["", "x", "wte.weight", "\x1b", key + key])] = copy[key]
            case 1:
                copy.insert(0, copy[key])
            case _:
                copy[key] = mutated(copy[key], rng)
        return copy
    if isinstance(value, int) and not isinstance(value, bool) and rng.randrange(2):
        return rng.choice(
            [value + 1, value - 1, -value, value * 1000, 0, str(value), value % 97 + 0.5]
        )
    return rng.choice([*ODD, [value], {"x": value}])


def texts(content: bytes, rng: random.Random) -> bytes:
    """The same file with another JSON, or with some bytes changed."""
    kind = rng.randrange(10)
    if kind < 6 and content.lstrip()[:1] in (b"{", b"["):
        value = mutated(json.loads(content), rng)
        if kind == 0:
            value = mutated(value, rng)
        return json.dumps(value).encode("utf-8", "surrogatepass")
    if kind == 6:
        return rng.choice(
            [b"[" * 100_000, b'{"a":' * 50_000, b"", b"\xff\xfe", b"\0" * 99, b"[" * 9]
        )
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(len(changed))
        changed[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return bytes(changed)


def tensors(family: Any, config: Any, dialect: int) -> tuple[Any, dict[str, torch.Tensor]]:
    params = tree.map(lambda x: x + 0.1, family.init(config, keys.key(0)))
    leaves = {name: value for name, value in params.items() if name != "config"}
    found = _rename.to_foreign(leaves, family.names.FAMILY.dialects[dialect])
    return params, {name: x.contiguous() for name, x in found.items()}


def make_index(place: Path) -> tuple[str, Any, Any]:
    params, weights = tensors(gpt2, CONFIG, 0)
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(weights)}
    for file in set(files.values()):
        save_file({n: x for n, x in weights.items() if files[n] == file}, place / file)
    CONFIG.to_json_file(place / "config.json")
    name = "model.safetensors.index.json"
    (place / name).write_text(json.dumps({"metadata": {"total_size": 9}, "weight_map": files}))
    return name, gpt2, params


def make_note(place: Path) -> tuple[str, Any, Any]:
    params, weights = tensors(gpt2, CONFIG, 2)
    bundle(weights, place)
    for end in ("index", "data-00000-of-00001"):  # which of two is meant, the note tells
        shutil.copy(place / f"model.ckpt.{end}", place / f"other.ckpt.{end}")
    CONFIG.to_json_file(place / "hparams.json")
    (place / "checkpoint").write_text(
        'model_checkpoint_path: "/home/x/model.ckpt"\nall_model_checkpoint_paths: "model.ckpt-1"\n'
    )
    return "checkpoint", gpt2, params


def make_shapes(place: Path) -> tuple[str, Any, Any]:
    config = gpt.Config(vocab_size=5, **SMALL)
    params, weights = tensors(gpt, config, 3)
    ordered = [weights[f"params.{i}"] for i in range(len(weights))]
    flat = torch.cat([x.flatten() for x in ordered]).numpy()
    for i, part in enumerate(np.array_split(flat, 10)):
        np.save(place / f"params_{i}.npy", part)
    config.to_json_file(place / "config.json")
    (place / "params_shapes.json").write_text(json.dumps([list(x.shape) for x in ordered]))
    return "params_shapes.json", gpt, params


SIDES: dict[str, Callable[[Path], tuple[str, Any, Any]]] = {
    "index of shards": make_index,
    "note of TensorFlow": make_note,
    "shapes of OpenAI": make_shapes,
}


def judged(act: Callable[[], Any], right: Callable[[Any], bool]) -> str:
    """Act; an error must be one that is documented, and short."""
    start = time.process_time()
    try:
        result = act()
    except (ValueError, OSError, _hub_client.Reason) as error:
        text = str(error)
        assert len(text) <= 2000 and text.isprintable(), text
        verdict = "error"
    else:
        assert right(result), result
        verdict = "same"
    assert time.process_time() - start < 2
    return verdict


@pytest.mark.parametrize("side", SIDES)
def test_mutated_side_files(side: str, tmp_path: Path, tally: Callable[..., None]) -> None:
    name, family, params = SIDES[side](tmp_path)
    content, rng, counts = (tmp_path / name).read_bytes(), random.Random(side), Counter[str]()
    wanted = dict(tree.named_leaves(params))

    def right(loaded: Any) -> bool:
        found = dict(tree.named_leaves(loaded))
        return found.keys() == wanted.keys() and all(found[p].equal(x) for p, x in wanted.items())

    assert right(family.load(tmp_path))
    for number in range(COUNT):
        (tmp_path / name).write_bytes(texts(content, rng))
        with nullcontext() if number % 10 else little_memory(100 << 20):
            counts[judged(lambda: family.load(tmp_path), right)] += 1
    assert counts["error"] > COUNT / 20 and counts["same"]
    tally(f"{side}, mutated", counts)


def test_mutated_listings(tally: Callable[..., None]) -> None:
    commit, files = "5" * 40, ["config.json", "model.safetensors", "vocab.json"]
    about = {"id": "o/m", "sha": commit, "siblings": [{"rfilename": name} for name in files]}
    content, rng, counts = json.dumps(about).encode(), random.Random(0), Counter[str]()

    def right(result: tuple[str, list[str]]) -> bool:
        sha, names = result
        return len(sha) == 40 and all(isinstance(name, str) for name in names)

    with little_memory(100 << 20):
        for _ in range(COUNT):
            changed = texts(content, rng)
            counts[judged(partial(_hub_client.listed, changed), right)] += 1
    assert counts["error"] > COUNT / 5 and counts["same"]
    tally("listings of a hub, mutated", counts)
