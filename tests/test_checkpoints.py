"""Checkpoints: exact both ways with transformers, every tensor accounted for, damage named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import GPT2, make_params
from peers import ppb, ppb_gpt2, quiet
from safetensors.torch import load_file, save_file
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.params import _rename
from fnlm.params.names.gpt2 import FAMILY

HEAD = ("multiple_choice",)


def same(a: Any, b: Any) -> None:
    assert tree.structure(a) == tree.structure(b)
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.equal(y), path


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Path]:
    params = make_params(GPT2)
    gpt2.save(params, tmp_path)
    return params, tmp_path


def without_heads(params: Any) -> Any:
    return {k: v for k, v in params.items() if k != "heads"}


def edit(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


MODELS = {"GPT2Model": (), "GPT2LMHeadModel": (), "GPT2DoubleHeadsModel": HEAD}


@pytest.mark.parametrize("wrapped", ["", "module."])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_names_of_pytorch_pretrained_bert(
    name: str, legacy: bool, wrapped: str, tmp_path: Path
) -> None:
    """Its .bin, as it is or wrapped, with mask buffers and a tied copy, both ways."""
    module = ppb_gpt2(GPT2.config.to_dict(), name)
    state = {wrapped + key: value for key, value in module.state_dict().items()}
    file = tmp_path / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    GPT2.config.to_json_file(tmp_path / "config.json")
    params = gpt2.load(tmp_path)
    assert tuple(params.get("heads", ())) == MODELS[name]
    theirs = {k.removeprefix("transformer."): v for k, v in module.named_parameters()}
    leaves = {k: v for k, v in params.items() if k != "config"}
    ours = {
        k.removeprefix("transformer."): v
        for k, v in _rename.to_foreign(leaves, FAMILY.dialects[1]).items()
    }
    assert ours.keys() == theirs.keys() - {"lm_head.decoder.weight"}
    assert all(value.equal(theirs[key]) for key, value in ours.items())
    gpt2.save(params, tmp_path / "again", dialect="pytorch-pretrained-bert")
    same(gpt2.load(tmp_path / "again"), params)
    with quiet():
        again = getattr(ppb(), name).from_pretrained(str(tmp_path / "again")).state_dict()
    assert all(again[key].equal(value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("kept", ["both", "only the copy"])
def test_a_tied_copy_is_accepted(kept: str, saved: tuple[Any, Path]) -> None:
    params, path = saved

    def change(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()
        if kept == "only the copy":
            del tensors["transformer.wte.weight"]

    edit(path, change)
    same(gpt2.load(path), params)


def test_an_untied_copy_is_refused(saved: tuple[Any, Path]) -> None:
    _, path = saved
    edit(path, lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"] + 1}))
    with pytest.raises(ValueError, match=r"lm_head.weight is tied to transformer.wte.weight"):
        gpt2.load(path)


def test_a_head_must_be_named_and_keyed(tmp_path: Path) -> None:
    base = without_heads(make_params(GPT2))
    gpt2.save(base, tmp_path)
    assert "heads" not in gpt2.load(tmp_path)
    with pytest.raises(ValueError, match=r"no head multiple_choice.*key="):
        gpt2.load(tmp_path, heads=HEAD)
    loaded = gpt2.load(tmp_path, heads=HEAD, key=random.key(1))
    same(without_heads(loaded), base)
    assert loaded["heads"]["multiple_choice"]["weight"].std() > 0
    same(loaded, gpt2.load(tmp_path, heads=HEAD, key=random.key(1)))
    gpt2.save(loaded, tmp_path)
    same(gpt2.load(tmp_path, heads=HEAD), loaded)
    same(gpt2.load(tmp_path, heads=()), base)  # heads that are not wanted are left out


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_named(share: float, saved: tuple[Any, Path]) -> None:
    _, path = saved
    file = path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole .safetensors file"):
        gpt2.load(path)


def test_wrong_places_are_named(saved: tuple[Any, Path], tmp_path: Path) -> None:
    _, path = saved
    bert = tmp_path / "bert"
    shutil.copytree(path, bert, ignore=shutil.ignore_patterns("bert"))
    (bert / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 4}))
    with pytest.raises(ValueError, match=r"config.json is of family 'bert', not 'gpt2'"):
        gpt2.load(bert)
    (bert / "config.json").write_text("[1")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        gpt2.load(bert)
    (bert / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        gpt2.load(bert)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing"):
        gpt2.load(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"'no/such' is no directory or.*check the name"):
        gpt2.load("no/such")
    with pytest.raises(FileNotFoundError, match=r"is no directory and no name of a model"):
        gpt2.load("not a name at all!")


def test_unknown_keys_of_a_config_survive(tmp_path: Path) -> None:
    content = {
        "n_embd": 12,
        "n_head": 3,
        "task_specific_params": {"a": [1, 2]},
        "summary_type": "x",
    }
    config = gpt2.Config.from_dict(content)
    assert content.items() <= config.to_dict().items()
    config.to_json_file(tmp_path / "c.json")
    again = gpt2.Config.from_json_file(tmp_path / "c.json")
    assert again == config and again.to_json_string() == config.to_json_string()
    assert hash(again) == hash(config)


def test_a_failed_write_leaves_the_former_file(saved: tuple[Any, Path]) -> None:
    params, path = saved
    broken = {**params, "more": torch.zeros(1)}
    with pytest.raises(ValueError, match="does not fit: unexpected more"):
        gpt2.save(broken, path)
    same(gpt2.load(path), params)


def test_opening_reads_no_tensor(saved: tuple[Any, Path]) -> None:
    """Loaded tensors lie in a map of the file: their memory is the file's, and private."""
    params, path = saved
    loaded = gpt2.load(path)
    before = (path / "model.safetensors").read_bytes()
    loaded["embed"]["token"].zero_()
    assert (path / "model.safetensors").read_bytes() == before
    same(gpt2.load(path), params)
