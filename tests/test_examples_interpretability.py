"""examples/interpretability: each draws its picture, and what it draws is what loops compute."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from fnlm import gpt2, taps, tree
from fnlm.heads import tied_logits
from fnlm.layers import layer_norm
from fnlm.tokenize import gpt2 as bpe

FOLDER = ROOT / "examples" / "interpretability"
SCRIPTS = sorted(FOLDER.glob("*.py"))
PARAMS = tree.cast(gpt2.load("tiny"), torch.float64)
TOKENIZER = bpe.load("tiny")


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def texts(example: Any) -> tuple[Tensor, Tensor]:
    """The ids of both texts and of both answers."""
    ids = torch.tensor([TOKENIZER.encode(text) for text in example.TEXTS])
    return ids, torch.tensor([TOKENIZER.encode(word)[0] for word in example.ANSWERS])


def answer(edits: dict[str, Any], ids: Tensor, answers: Tensor) -> Tensor:
    """She - he after a text, with other values at some sites."""
    run = taps.write(gpt2.apply, edits) if edits else gpt2.apply
    logits = run(PARAMS, ids)[0][-1]
    return logits[answers[1]] - logits[answers[0]]


def found(ids: Tensor, *patterns: str) -> dict[str, Tensor]:
    return taps.read(gpt2.apply, *patterns)(PARAMS, ids)[1]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_an_example_draws_a_picture(path: Path, tmp_path: Path) -> None:
    loaded(path.stem).main(["--output", str(tmp_path / "picture.png")])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60, "to be read at a glance"


def test_there_are_four() -> None:
    assert len(SCRIPTS) == 4


def test_the_lens_is_the_output_layer() -> None:
    ids = torch.tensor(TOKENIZER.encode("The king had"))
    logits = loaded("logit_lens").lens(PARAMS, ids)
    states = [found(ids, "blocks.0.in")["blocks.0.in"], *gpt2.layers(PARAMS, ids)[0]]
    for row, x in zip(logits, states, strict=True):
        hidden = layer_norm(x, **PARAMS["norm"], eps=PARAMS["config"].layer_norm_epsilon)
        close(row, tied_logits(hidden, PARAMS["embed"]["token"]))
    close(logits[-1], gpt2.apply(PARAMS, ids)[0])


def test_activations_are_patched_one_by_one() -> None:
    example = loaded("activation_patching")
    ids, answers = texts(example)
    for part in example.PARTS:
        result = example.patched(PARAMS, ids, answers, part)
        old, new = (found(row, f"blocks.*.{part}") for row in ids)
        for layer, position in [(0, 1), (2, 0), (4, 5), (5, 5)]:
            site = f"blocks.{layer}.{part}"
            x = old[site].clone()
            x[position] = new[site][position]
            close(result[layer, position], answer({site: x}, ids[0], answers))
    stream = example.patched(PARAMS, ids, answers, "in")
    close(stream[0, 1], answer({}, ids[1], answers))  # the texts differ in one token


def test_attributions_are_slopes_and_effects_are_patches() -> None:
    example = loaded("attribution_patching")
    ids, answers = texts(example)
    estimate, effect = example.effects(PARAMS, ids, answers)
    old, new = (found(row, "blocks.*.attention.heads") for row in ids)
    before, h = answer({}, ids[0], answers), 1e-4
    for layer, head in [(0, 0), (1, 0), (4, 1), (5, 3)]:
        site = f"blocks.{layer}.attention.heads"

        def at(t: float, site: str = site, head: int = head) -> Tensor:
            x = old[site].clone()
            x[head] += t * (new[site][head] - old[site][head])
            return answer({site: x}, ids[0], answers)

        close(effect[layer, head], at(1.0) - before)
        slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        torch.testing.assert_close(estimate[layer, head], slope, rtol=1e-7, atol=1e-9)


def test_paths_lead_from_head_to_later_head() -> None:
    example = loaded("path_patching")
    ids, answers = texts(example)
    effect = example.paths(PARAMS, ids, answers)
    old, new = (found(row, "blocks.*.attention.heads", "blocks.*.mlp.out") for row in ids)
    before = answer({}, ids[0], answers)
    for sender, receiver in [((1, 0), (4, 1)), ((4, 1), (5, 2)), ((0, 3), (1, 2))]:
        site = f"blocks.{sender[0]}.attention.heads"
        x = old[site].clone()
        x[sender[1]] = new[site][sender[1]]
        target = f"blocks.{receiver[0]}.attention.v"
        frozen = taps.write(gpt2.apply, {**old, site: x})
        sent = taps.read(frozen, target)(PARAMS, ids[0])[1][target]
        values = found(ids[0], target)[target].clone()
        values[receiver[1]] = sent[receiver[1]]
        expected = answer({target: values}, ids[0], answers) - before
        close(effect[4 * sender[0] + sender[1], 4 * receiver[0] + receiver[1]], expected)
    layers = torch.arange(24) // 4
    backwards = layers[:, None] >= layers
    assert not effect[backwards].abs().gt(1e-12).any() and effect.abs().max() > 0.05
