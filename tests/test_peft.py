"""Adapters in the files of peft, as peft itself wrote them: see tests/make_peft.py."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from families import BERT, FAMILIES, GPT2, Family, make_params
from safetensors.torch import load_file, save_file
from test_leaves import adapted, moved
from torch import Tensor

from fnlm import bert, gpt2, random, tree
from fnlm.leaves import LowRank, base, is_adapter, linear_weights, lora, merge, quantize
from fnlm.params import layout, peft

FOLDER = ROOT / "tests" / "fixtures" / "peft"
Tree = Any


def bert_hidden(params: Tree, ids: Tensor) -> Tensor:
    return bert.apply(params, ids)[0]


def gpt2_logits(params: Tree, ids: Tensor) -> Tensor:
    return gpt2.apply(params, ids)[0]


CASES: dict[str, tuple[Any, Callable[[Tree, Tensor], Tensor]]] = {
    "gpt2": (gpt2, gpt2_logits),
    "bert": (bert, bert_hidden),
    "bert_classes": (bert, bert.sequence_classification),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Path, Tree, Callable[..., Tensor]]:
    module, apply = CASES[request.param]
    return FOLDER / request.param, module.load(FOLDER / request.param / "base"), apply


def test_adapters_of_peft_give_the_numbers_of_peft(case: Any) -> None:
    folder, params, apply = case
    expected = load_file(folder / "expected.safetensors")
    found = peft.load(params, folder / "adapter")
    torch.testing.assert_close(apply(found, expected["ids"]), expected["result"])
    torch.testing.assert_close(apply(merge(found), expected["ids"]), expected["result"])
    assert not torch.allclose(apply(params, expected["ids"]), expected["result"], atol=1e-2)
    # What the adapters do not touch are the very leaves of the base.
    before = dict(tree.named_leaves(params))
    for path, leaf in tree.named_leaves(base(found)):
        assert leaf is before[path] or path.startswith("heads.")


def test_what_is_written_has_the_names_and_numbers_of_peft(case: Any, tmp_path: Path) -> None:
    """Peft reads these files: tests/make_peft.py checks that with peft."""
    folder, params, apply = case
    expected = load_file(folder / "expected.safetensors")
    found = peft.load(params, folder / "adapter", name="mine")
    written = peft.save(
        found, tmp_path, name="mine", also=lambda path, leaf: path.startswith("heads.")
    )
    assert sorted(written) == ["adapter_config.json", "adapter_model.safetensors"]
    ours, theirs = (
        load_file(place / "adapter_model.safetensors") for place in (tmp_path, folder / "adapter")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    again = peft.load(params, tmp_path)
    torch.testing.assert_close(apply(again, expected["ids"]), expected["result"])
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    peers = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == peers["fan_in_fan_out"] and config["peft_type"] == "LORA"
    assert config.keys() <= peers.keys()
    modules = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in ours}
    assert {*config["target_modules"]} <= modules
    peft.save(found, tmp_path, name="mine", also=lambda path, leaf: "heads" in path)  # once more
    assert not list(tmp_path.glob(".*"))


def test_ranks_and_scales_of_modules_survive(tmp_path: Path) -> None:
    found = peft.load(gpt2.load(FOLDER / "gpt2" / "base"), FOLDER / "gpt2" / "adapter")
    leaves = dict(tree.typed_leaves(found))
    kinds = {path: (x.factors[0][0].shape[-1], x.frame[0][1]) for path, x in leaves.items()}
    assert kinds == {
        "embed.position": (2, 1.5),
        "blocks.0.attention.qkv.weight": (2, 1.5),
        "blocks.1.attention.qkv.weight": (3, 1.0),
        "blocks.0.mlp.down.weight": (2, 2.5),
        "blocks.1.mlp.down.weight": (2, 1.5),
    }
    peft.save(found, tmp_path)
    again = dict(tree.typed_leaves(peft.load(base(found), tmp_path)))
    for path, leaf in leaves.items():
        assert tree.structure(again[path]) == tree.structure(leaf)
        assert torch.equal(again[path].dense(), leaf.dense())


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_adapters_of_every_family_come_back(family: Family, tmp_path: Path) -> None:
    params = moved(lora(make_params(family), random.key(1), rank=2, alpha=7))
    peft.save(params, tmp_path)
    again = peft.load(base(params), tmp_path)
    for (path, a), (_, b) in zip(tree.named_leaves(params), tree.named_leaves(again), strict=True):
        assert torch.equal(a, b), path
    # On a base of another type and in few bits, too: the adapters take its type.
    half = quantize(tree.cast(base(params), torch.bfloat16), bits=8)
    on_half = peft.load(half, tmp_path)
    for path, leaf in tree.named_leaves(on_half):
        assert not is_adapter(path) or leaf.dtype == torch.bfloat16
    two = peft.load(again, tmp_path, name="twice")
    assert all(len(x.factors) == 2 for _, x in tree.typed_leaves(two) if isinstance(x, LowRank))


def copied(tmp_path: Path, tensors: Callable[[Any], Any], **settings: Any) -> Path:
    """The adapters of peft for GPT-2, changed."""
    shutil.copytree(FOLDER / "gpt2" / "adapter", place := tmp_path / "adapter")
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps(config | settings))
    changed = tensors(load_file(place / "adapter_model.safetensors"))
    save_file(changed, place / "adapter_model.safetensors")
    return place


FRONT = "base_model.model.transformer"
QKV = f"{FRONT}.h.0.attn.c_attn"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'.*'LORA' only"),
        ({"use_dora": True}, "'use_dora'=True, which may change the arithmetic.*merge"),
        ({"some_new_key": 3}, "'some_new_key'=3"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changed the base"),
        ({"alpha_pattern": {"h.*": 1}}, "pattern 'h.\\*'.*names of modules only"),
        ({"alpha_pattern": ["c_attn"]}, "alpha_pattern=.*must be an object"),
        ({"lora_alpha": "3"}, "alpha '3' of 'lora_alpha': it must be a finite number"),
        ({"alpha_pattern": {"c_attn": 1e300}}, "it must be a finite number"),
    ],
)
def test_settings_that_change_numbers_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    place = copied(tmp_path, lambda tensors: tensors, **settings)
    with pytest.raises(ValueError, match=message):
        peft.load(gpt2.load(FOLDER / "gpt2" / "base"), place)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{FRONT}.h.7.attn.c_attn.lora_A.weight": (2, 12)}, "h.7.attn.*is of no leaf"),
        ({f"{FRONT}.h.0.atn.lora_A.weight": (2, 12)}, r"is of no leaf of these params \(nearest"),
        ({"base_model.model.score.weight": (2, 12)}, "score.weight is of no leaf"),
        ({f"{FRONT}.h.0.ln_1.weight": (11,)}, r"norm_1.scale has shape \[11\], expected \[12\]"),
        ({f"{QKV}.lora_A.weight": (2, 11)}, r"lora_A\) has shape \[2, 11\], expected \[2, 12\]"),
        ({f"{QKV}.lora_B.weight": (36, 3)}, r"lora_B\) has shape \[36, 3\], expected \[36, 2\]"),
        ({f"{QKV}.lora_A.weight": (0, 12)}, r"lora_A \[0, 12\], expected \[rank, inputs\]"),
        ({f"{QKV[17:]}.lora_A.weight": (2, 12)}, "has lora_A of .*h.0.attn.c_attn twice"),
        ({f"{QKV}.lora_B.weight": None}, "h.0.attn.c_attn has no lora_B"),
        ({f"{FRONT}.wte.lora_embedding_A": (2, 17)}, "embed.token is tied to the output layer"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        new = {name: torch.ones(shape) for name, shape in change.items() if shape}
        return {name: x for name, x in (tensors | new).items() if change.get(name, 1) is not None}

    place = copied(tmp_path, changed)
    with pytest.raises(ValueError, match=message):
        peft.load(gpt2.load(FOLDER / "gpt2" / "base"), place)


def test_adapters_that_peft_cannot_have_are_refused(tmp_path: Path) -> None:
    plain = make_params(GPT2)
    with pytest.raises(ValueError, match="params have no adapter ''"):
        peft.save(plain, tmp_path)
    with pytest.raises(ValueError, match="params have no adapter 'other'"):
        peft.save(lora(plain, random.key(0), rank=1), tmp_path, name="other")
    with pytest.raises(ValueError, match="embed.token is tied.*leaves.merge"):
        peft.save(adapted(GPT2), tmp_path)
    with pytest.raises(ValueError, match="embed.token is tied"):  # by the head masked_lm
        peft.save(adapted(BERT), tmp_path)
    with pytest.raises(ValueError, match="with its config"):
        peft.save({"w": torch.ones(2)}, tmp_path)
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        peft.load(plain, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_torch_save_is_read(tmp_path: Path) -> None:
    place = copied(tmp_path, lambda tensors: tensors)
    tensors = load_file(place / "adapter_model.safetensors")
    torch.save(tensors, place / "adapter_model.bin")
    (place / "adapter_model.safetensors").unlink()
    params = gpt2.load(FOLDER / "gpt2" / "base")
    a, b = (merge(peft.load(params, x)) for x in (place, FOLDER / "gpt2" / "adapter"))
    assert all(torch.equal(x, y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def test_the_default_choice_has_names_in_peft() -> None:
    for family in FAMILIES:
        chosen = tree.select(make_params(family), linear_weights)
        assert chosen


def test_the_base_of_adapters_is_laid_out_for_decoding() -> None:
    params = lora(tree.cast(make_params(GPT2), torch.bfloat16), random.key(0), rank=2)
    found = base(layout.for_decoding(params))
    for a, b in zip(
        tree.leaves(found), tree.leaves(layout.for_decoding(base(params))), strict=True
    ):
        assert a.stride() == b.stride() and torch.equal(a, b)
