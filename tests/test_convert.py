"""`fnlm convert` and `fnlm inspect`: any form in, two out, pytorch-pretrained-bert's four verbs."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_path
from families import FILE_IDS, FILES, GPT, GPT2, Family, make_params, with_heads
from peers import hf, ppb, quiet
from safetensors.torch import load_file, save_file

from fnlm import bert, checkpoints, cli, gpt, gpt2, transfo_xl, tree
from fnlm.files import hub
from fnlm.params import _rename, io

OPENAI = "checkpoints/gpt2-tiny-tf"


def same(a: Any, b: Any) -> None:
    assert tree.structure(a) == tree.structure(b)
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.equal(y), path


def bare(params: Any) -> Any:
    return {name: value for name, value in params.items() if name != "heads"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command that must work, and give its output."""

    def run(*words: object) -> str:
        assert cli.main([str(word) for word in words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize(("family", "heads"), FILES, ids=FILE_IDS)
def test_there_and_back_is_the_same(
    family: Family, heads: tuple[str, ...], tmp_path: Path, run: Any
) -> None:
    """Every model, through either form, bit for bit, and no more files than said."""
    params = with_heads(family, heads)
    family.module.save(params, tmp_path / "a")
    for dialect in (d.name for d in family.names.dialects[:2]):
        target = tmp_path / dialect
        run("convert", tmp_path / "a", target, "--to", dialect)
        file = {d.name: d.file for d in family.names.dialects}[dialect]
        assert sorted(p.name for p in target.iterdir()) == sorted(["config.json", file])
        same(family.module.load(target), params)
        run("convert", target / file, target / "c" / "m.safetensors")
        same(family.module.load(target / "c" / "m.safetensors"), params)


@pytest.mark.parametrize("heads", [False, True])
def test_pytorch_pretrained_bert_reads_what_is_converted(
    heads: bool, tmp_path: Path, run: Any
) -> None:
    params = make_params(GPT2) if heads else bare(make_params(GPT2))
    gpt2.save(params, tmp_path / "a")
    run("convert", tmp_path / "a", tmp_path / "b", "--to", "pytorch-pretrained-bert")
    names = ["GPT2DoubleHeadsModel"] if heads else ["GPT2Model", "GPT2LMHeadModel"]
    foreign = _rename.to_foreign(
        {name: value for name, value in params.items() if name != "config"},
        GPT2.names.dialects[1],
    )
    for name in names:
        with quiet():
            module = getattr(ppb(), name).from_pretrained(str(tmp_path / "b"))
        theirs = {k.removeprefix("transformer."): v for k, v in module.named_parameters()}
        for key, value in foreign.items():
            assert theirs[key.removeprefix("transformer.")].equal(value), (name, key)


def test_openais_release_becomes_what_transformers_loads(tmp_path: Path, run: Any) -> None:
    source = data_path(OPENAI)
    said = run("convert", source, tmp_path)
    assert "TensorFlow" in said and "as gpt2" in said and "40 tensors" in said
    files = {"config.json", "model.safetensors", "vocab.json", "merges.txt"}
    assert {path.name for path in tmp_path.iterdir()} == files
    with quiet():
        module = hf().GPT2LMHeadModel.from_pretrained(tmp_path)
    ids = torch.arange(12)[None] * 7
    torch.testing.assert_close(
        gpt2.apply(gpt2.load(source), ids)[0], module(ids).logits, atol=1e-5, rtol=0
    )


def test_the_verb_of_pytorch_pretrained_bert_for_gpt2(tmp_path: Path, run: Any) -> None:
    source = data_path(OPENAI)
    for more in ([], [source / "hparams.json"]):
        target = tmp_path / str(len(more))
        run("convert_gpt2_checkpoint", source / "model.ckpt", target, *more)
        same(gpt2.load(target / "pytorch_model.bin"), gpt2.load(source))


def test_the_verb_for_gpt_needs_no_config(tmp_path: Path, run: Any) -> None:
    """OpenAI's release has none: the published one is meant, and a model of other sizes refused."""
    source = tmp_path / "release"
    source.mkdir()
    params = bare(make_params(GPT))
    leaves = {name: value for name, value in params.items() if name != "config"}
    (dialect,) = (d for d in GPT.names.dialects if d.name == "openai")
    arrays = _rename.to_foreign(leaves, dialect)
    ordered = [arrays[f"params.{i}"] for i in range(len(arrays))]
    flat = torch.cat([x.flatten() for x in ordered]).numpy()
    for i, part in enumerate(np.array_split(flat, 3)):
        np.save(source / f"params_{i}.npy", part)
    (source / "params_shapes.json").write_text(json.dumps([list(x.shape) for x in ordered]))
    GPT.config.to_json_file(tmp_path / "gpt.json")
    run("convert_openai_checkpoint", source, tmp_path / "made", tmp_path / "gpt.json")
    same(gpt.load(tmp_path / "made"), params)
    for act in (
        lambda: gpt.load(source),
        lambda: list(checkpoints.convert(source, tmp_path / "b")),
    ):
        with pytest.raises(ValueError, match=r"does not fit: missing params.26 "):
            act()
    assert cli.main(["convert_openai_checkpoint", str(source), str(tmp_path / "b")]) == 2
    assert not (tmp_path / "b").exists()


def test_the_verb_for_bert(tmp_path: Path, run: Any) -> None:
    source = data_path("checkpoints/bert-tiny-tf")
    words = (
        source / "bert_model.ckpt",
        source / "bert_config.json",
        tmp_path / "pytorch_model.bin",
    )
    said = run("convert_tf_checkpoint_to_pytorch", *words)
    assert "93 of a trainer" in said and (tmp_path / "vocab.txt").exists()
    same(bert.load(tmp_path), bert.load(source))


def test_the_verb_for_transformer_xl(tmp_path: Path, run: Any) -> None:
    source = data_path("checkpoints/transfo-xl-tiny-tf/div_2_cutoffs_3")
    config = transfo_xl.Config(
        n_token=30, n_layer=3, d_model=32, d_embed=32, n_head=4, d_head=8, d_inner=64,
        cutoffs=(10, 20), div_val=2, untie_r=False, proj_share_all_but_first=False,
    )  # fmt: skip
    config.to_json_file(tmp_path / "config.json")
    target = tmp_path / "made"
    run("convert_transfo_xl_checkpoint", source, target, tmp_path / "config.json")
    tables = transfo_xl.names.FAMILY  # type: ignore[attr-defined]
    tensors = io.read(hub.locate(source, config_required=False).weights)
    same(transfo_xl.load(target), io.assemble(tensors, config, tables, transfo_xl.spec))


def test_what_is_not_read_is_counted(tmp_path: Path, run: Any) -> None:
    """Optimizer slots, counters, mask buffers and tied copies are told, and never loaded."""
    params = bare(make_params(GPT2))
    gpt2.save(params, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    wte = tensors["transformer.wte.weight"]
    more = {
        "transformer.wte.weight/Adam": torch.zeros_like(wte),
        "global_step": torch.tensor(3),
        "transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4),
        "lm_head.weight": wte.clone(),
    }
    save_file(tensors | more, tmp_path / "model.safetensors")
    said = run("convert", tmp_path, tmp_path / "b")
    assert "not needed: 2 of a trainer, 2 others" in said
    same(gpt2.load(tmp_path / "b"), params)
    shown = run("inspect", tmp_path)
    assert shown.count("of a trainer, not read") == 2 and "a second time" in shown
    assert "of a trainer: 2 tensors" in shown and shown.count("no parameter, not read") == 1


def test_values_that_are_not_finite_are_reported_and_kept(tmp_path: Path, run: Any) -> None:
    params = bare(make_params(GPT2))
    params["norm"]["bias"][:2] = torch.tensor([torch.nan, torch.inf])
    gpt2.save(params, tmp_path / "a")
    said = run("convert", tmp_path / "a", tmp_path / "b")
    assert "norm.bias has 2 values that are not finite" in said
    bias = gpt2.load(tmp_path / "b")["norm"]["bias"]
    assert bias.view(torch.int32).equal(params["norm"]["bias"].view(torch.int32))


def test_a_checkpoint_may_be_converted_in_its_place(tmp_path: Path, run: Any) -> None:
    params = make_params(GPT2)
    gpt2.save(params, tmp_path)
    run("convert", tmp_path, tmp_path)
    same(gpt2.load(tmp_path), params)


@pytest.mark.parametrize("form", ["transformers", "pytorch-pretrained-bert", "tensorflow"])
def test_inspect_knows_every_form(form: str, tmp_path: Path, run: Any) -> None:
    if form == "tensorflow":
        source, kind = data_path(OPENAI), "TensorFlow"
        params = gpt2.load(source)
    else:
        params, source, kind = make_params(GPT2), tmp_path, "safetensors"
        gpt2.save(params, tmp_path, dialect=form)
        kind = {"transformers": "safetensors", "pytorch-pretrained-bert": "torch"}[form]
    lines = run("inspect", source).splitlines()
    count = len(tree.leaves(params))
    assert kind in lines[-3] and f"{count} tensors" in lines[-3]
    assert f"family: gpt2, by {count} of {count}" in lines[-2]
    heads = ", ".join(params.get("heads", {})) or "none"
    assert lines[-1] == (f"fnlm.gpt2.load reads {tree.count(params):,} parameters; heads: {heads}")
    assert {path for path, _ in tree.named_leaves(params)} <= set(re.split(r"\s+", " ".join(lines)))


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt2.save(make_params(GPT2), tmp_path / "good")
    (tmp_path / "empty").mkdir()
    lonely = tmp_path / "lonely"
    gpt2.save(make_params(GPT2), lonely)
    (lonely / "config.json").unlink()
    other = tmp_path / "other"
    gpt2.save(make_params(GPT2), other)
    config = json.loads((other / "config.json").read_text()) | {"model_type": "llama"}
    (other / "config.json").write_text(json.dumps(config))
    strange = tmp_path / "strange"
    strange.mkdir()
    save_file({"a.b": torch.zeros(2)}, strange / "model.safetensors")
    (strange / "config.json").write_text("{}")
    (tmp_path / "text.bin").write_text("hello " * 100)
    (tmp_path / "config.json").write_text("{}")
    for words, parts in {
        ("good", "t", "--family", "gpt3"): ["--family gpt3 is not one of", "gpt2"],
        ("empty", "t"): ["empty", "model.safetensors"],
        ("lonely", "t"): ["config.json"],
        ("other", "t"): ["'llama'"],
        ("strange", "t"): ["holds no tensor that fnlm knows", "fnlm inspect"],
        ("good", "t", "--family", "bert"): ["holds no tensor of family 'bert'", "fnlm inspect"],
        ("text.bin", "t"): ["text.bin"],
        ("nowhere", "t"): ["nowhere"],
        ("good", "t", "--config", "none.json"): ["none.json"],
    }.items():
        paths = [str(tmp_path / word) for word in words[:2]]
        options = [w if w[0] == "-" or "." not in w else str(tmp_path / w) for w in words[2:]]
        assert cli.main(["convert", *paths, *options]) == 2, words
        shown = capsys.readouterr()
        assert shown.err.startswith("fnlm convert: ") and shown.err.count("\n") == 1, shown.err
        assert not shown.out
        for part in parts:
            assert part in shown.err, (part, shown.err)
        assert not (tmp_path / "t").exists()
