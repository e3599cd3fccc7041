"""Specs: initialising, counting, checking and meta trees are maps over one description."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, GPT2, Family
from scipy import stats

from fnlm import gpt2, random, tree
from fnlm.params import spec
from fnlm.params.config import BaseConfig
from fnlm.params.spec import Spec

each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def spec_of(family: Family, heads: tuple[str, ...] | None = None) -> Any:
    return family.module.spec(family.config, family.module.HEADS if heads is None else heads)


@each_family
def test_init_and_meta_have_the_shapes_and_types_described(family: Family) -> None:
    described = spec_of(family)
    params, shapes = spec.init(described, random.key(0)), spec.meta(described)
    for made in (params, shapes):
        assert [path for path, _ in tree.named_leaves(made)] == [
            path for path, _ in tree.named_leaves(described)
        ]
        for s, x in zip(tree.leaves(described), tree.leaves(made), strict=True):
            assert tuple(x.shape) == s.shape and x.dtype == s.dtype
        assert made["config"] == family.config
        spec.check(described, made)
    assert all(x.is_meta for x in tree.leaves(shapes))
    assert spec.size(described) == tree.count(params) == tree.count(shapes)


@each_family
def test_leaves_start_as_described(family: Family) -> None:
    described = spec_of(family)
    params = spec.init(described, random.key(1))
    for (path, s), x in zip(tree.named_leaves(described), tree.leaves(params), strict=True):
        if s.start == "normal":
            assert stats.kstest(x.flatten().numpy() / s.std, "norm").pvalue > 1e-4, path
        else:
            assert x.eq(float(s.start == "ones")).all(), path


@each_family
def test_every_leaf_has_numbers_of_its_own(family: Family) -> None:
    params = spec.init(spec_of(family), random.key(2))
    firsts = [x.flatten()[:8] for x in tree.leaves(params) if x.unique().numel() > 1]
    assert len({tuple(x.tolist()) for x in firsts}) == len(firsts)


@each_family
def test_a_head_changes_no_other_leaf(family: Family) -> None:
    bare = dict(tree.named_leaves(spec.init(spec_of(family, ()), random.key(3))))
    full = dict(tree.named_leaves(spec.init(spec_of(family), random.key(3))))
    assert bare.keys() < full.keys() if family.module.HEADS else bare.keys() == full.keys()
    assert all(full[path].equal(x) for path, x in bare.items())


def test_init_follows_the_key_and_the_type() -> None:
    described = {"w": Spec((3, 5), "normal", 0.5, torch.bfloat16), "b": Spec((3,), "ones")}
    a, b, c = (spec.init(described, random.key(seed)) for seed in (0, 0, 1))
    assert a["w"].equal(b["w"]) and not a["w"].equal(c["w"])
    assert a["w"].dtype == torch.bfloat16 and a["b"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "sizes", "millions"),
    [("small", (768, 12), 124.4), ("medium", (1024, 24), 354.8), ("xl", (1600, 48), 1557.6)],
)
def test_published_sizes(name: str, sizes: tuple[int, int], millions: float) -> None:
    """The sizes of the published models, counted without their memory."""
    width, layers = sizes
    config = gpt2.Config(n_embd=width, n_layer=layers, n_head=width // 64)
    assert spec.size(gpt2.spec(config)) / 1e6 == pytest.approx(millions, abs=0.1), name
    described = gpt2.spec(config)
    assert math.prod(spec.meta(described)["embed"]["token"].shape) == 50257 * width


def test_check_lists_every_problem() -> None:
    described = {"up": spec.linear(3, 4, 0.1), "norm": spec.norm(4)}
    params = tree.map(lambda s: torch.zeros(s.shape), described)
    spec.check(described, params)
    spec.check(described, tree.cast(params, torch.float16))
    del params["up"]["bias"]
    params["up"]["biass"] = torch.zeros(4)
    params["norm"]["scale"] = torch.zeros(5)
    params["norm"]["bias"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError) as error:
        spec.check(described, params, "file.bin")
    text = str(error.value)
    for part in (
        "file.bin does not fit",
        "missing up.bias [4]",
        "unexpected up.biass [4] (nearest missing: up.bias)",
        "norm.scale has shape [5], expected [4]",
        "norm.bias has type torch.int64, expected torch.float32",
    ):
        assert part in text


def test_unknown_heads_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['classify'\] not among \('multiple_choice',\)"):
        gpt2.spec(GPT2.config, ("multiple_choice", "classify"))


# Configs


def test_unknown_keys_survive_a_round_trip(tmp_path: Path) -> None:
    content = {"n_embd": 48, "n_head": 4, "summary_type": "cls_index", "nested": {"a": [1, None]}}
    config = gpt2.Config.from_dict(content)
    assert config.to_dict().items() >= content.items()
    assert gpt2.Config.from_dict(config.to_dict()).to_dict() == config.to_dict()
    config.to_json_file(tmp_path / "config.json")
    again = gpt2.Config.from_json_file(tmp_path / "config.json")
    assert again == config and again.to_json_string() == config.to_json_string()
    assert json.loads(config.to_json_string()) == config.to_dict()


def test_configs_that_differ_in_unknown_keys_only_are_equal() -> None:
    a, b = gpt2.Config(), gpt2.Config.from_dict({"task": "poetry"})
    assert a == b and hash(a) == hash(b)
    assert tree.structure({"config": a}) == tree.structure({"config": b})
    assert gpt2.Config(n_layer=3) != a


def test_defaults_are_those_of_the_published_file() -> None:
    """The config.json of the smallest published GPT-2, the keys that describe arithmetic."""
    published = {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_ctx": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "activation_function": "gelu_new",
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
    }
    assert gpt2.Config().to_dict().items() >= published.items()


def test_configs_are_frozen_and_take_names_only() -> None:
    with pytest.raises(AttributeError):
        gpt2.Config().n_embd = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        gpt2.Config(50257)  # type: ignore[call-arg, arg-type]
    assert issubclass(gpt2.Config, BaseConfig)


def test_invalid_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="n_embd=37 must be a multiple of n_head=3"):
        gpt2.Config(n_embd=37, n_head=3)
    with pytest.raises(ValueError, match="activation_function='sine' is not one of gelu, "):
        gpt2.Config(activation_function="sine")


def test_files_that_are_no_config_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(FileNotFoundError, match="config.json"):
        gpt2.Config.from_json_file(path)
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match="config.json is not JSON"):
        gpt2.Config.from_json_file(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="must hold a JSON object, found list"):
        gpt2.Config.from_json_file(path)
