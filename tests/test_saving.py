"""What is saved is what is loaded: of any family and form, in a used folder, after a kill."""

import json
import os
import random as chance
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BERT, FILE_IDS, FILES, GPT2, TRANSFO_XL, Family, make_params, with_heads
from killing import forks, killed_at
from peers import hf, quiet
from safetensors.torch import load_file, save_file

from fnlm import checkpoints, gpt2, random, tree
from fnlm.files import _folder, hub

FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def dialects(family: Family) -> list[str]:
    return [d.name for d in family.names.dialects if d.file]


def assert_loads(place: Path, family: Family, params: Any, dialect: str) -> None:
    loaded = family.module.load(place)
    heads = tuple(sorted(params.get("heads", {})))
    stated = family.names.stated(params["config"], heads, dialect)
    assert loaded["config"] == stated
    wanted, found = dict(tree.named_leaves(params)), dict(tree.named_leaves(loaded))
    assert wanted.keys() == found.keys()
    for path, leaf in wanted.items():
        assert found[path].dtype == leaf.dtype and found[path].equal(leaf), path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "heads"), FILES, ids=FILE_IDS)
def test_what_is_saved_is_loaded(
    family: Family, heads: tuple[str, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    params = with_heads(family, heads, dtype)
    for dialect in dialects(family):
        family.module.save(params, place := tmp_path / dialect, dialect=dialect)
        weights, *others = sorted(os.listdir(place), reverse=True)
        assert others == ["config.json"]
        assert_loads(place, family, params, dialect)
        assert_loads(place / weights, family, params, dialect)


# What other programs leave in a folder.


def leave_shards(place: Path, end: str) -> None:
    """Weights of another model in two shards with their index."""
    stem = "model" if end == "safetensors" else "pytorch_model"
    files = [f"{stem}-0000{i}-of-00002.{end}" for i in (1, 2)]
    for i, file in enumerate(files):
        tensors = {f"x{i}": torch.zeros(2)}
        save_file(tensors, place / file) if end == "safetensors" else torch.save(
            tensors, place / file
        )
    index = {"weight_map": {f"x{i}": file for i, file in enumerate(files)}}
    (place / f"{stem}.{end}.index.json").write_text(json.dumps(index))


LEFT: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda place: save_file({"x": torch.zeros(2)}, place / "model.safetensors"),
    "shards": lambda place: leave_shards(place, "safetensors"),
    "bin": lambda place: torch.save({"x": torch.zeros(2)}, place / "pytorch_model.bin"),
    "shards of bin": lambda place: leave_shards(place, "bin"),
    "another file": lambda place: save_file({"x": torch.zeros(2)}, place / "other.safetensors"),
    "TensorFlow": lambda place: [
        (place / f"model.ckpt.{end}").write_bytes(b"") for end in ("index", "data-00000-of-00001")
    ],
    "a note": lambda place: (place / "checkpoint").write_text('model_checkpoint_path: "model"'),
    "an archive": lambda place: (place / "notes.npz").write_bytes(b"PK"),
    "a killed save": lambda place: (place / ".model.x.part").mkdir(exist_ok=True),
}


@pytest.mark.parametrize("seed", range(200 if FULL else 12))
def test_any_sequence_of_saves_into_one_folder(seed: int, tmp_path: Path) -> None:
    """By the families' `save` and by conversion, over what others left: the last one is loaded."""
    rng, place = chance.Random(seed), tmp_path / "used"
    place.mkdir()
    for step in range(6):
        for name in rng.sample(list(LEFT), rng.randrange(3)):
            LEFT[name](place)
        family, heads = rng.choice(FILES)
        params = tree.map(lambda x: x + rng.random(), with_heads(family, heads, rng.choice(DTYPES)))
        dialect = rng.choice(dialects(family)[:2])
        if rng.randrange(3):
            family.module.save(params, place, dialect=dialect)
        else:
            source = tmp_path / str(step)
            family.module.save(params, source, dialect=rng.choice(dialects(family)))
            params = family.module.load(source)
            list(checkpoints.convert(source, place, dialect=dialect))
        assert_loads(place, family, params, dialect)
        weights = {p.name for p in place.iterdir() if "model" in p.name} & {*hub.WEIGHTS}
        assert len(weights) == 1 and not list(place.glob("*-of-00002.*[!1]"))
        assert not list(place.glob("*model-0000*")) and not list(place.glob(".*"))


def test_a_folder_that_transformers_wrote(tmp_path: Path) -> None:
    with quiet():
        config = hf().GPT2Config(
            vocab_size=41, n_positions=24, n_embd=36, n_layer=2, n_head=3, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        hf().GPT2LMHeadModel(config).save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    theirs, params = gpt2.load(tmp_path), make_params(GPT2)
    gpt2.save(params, tmp_path, dialect="pytorch-pretrained-bert")
    assert_loads(tmp_path, GPT2, params, "pytorch-pretrained-bert")
    gpt2.save(theirs, tmp_path)  # its tensors lie in shards that are gone
    assert_loads(tmp_path, GPT2, theirs, "transformers")


def test_what_is_mapped_from_a_file_may_replace_it(tmp_path: Path) -> None:
    params = make_params(GPT2)
    gpt2.save(params, tmp_path)
    for _ in range(3):
        gpt2.save(gpt2.load(tmp_path), tmp_path)
        assert_loads(tmp_path, GPT2, params, "transformers")


# What can't be loaded again is not saved.


def changed(family: Family, path: str, change: Callable[[Any], Any]) -> Any:
    """Parameters with one leaf changed."""
    params = with_heads(family, ())
    return tree.map_with_path(lambda p, x: change(x) if p == path else x, params)


SCALE = "blocks.0.norm_1.scale"
REFUSED: dict[str, tuple[Family, Any, str]] = {
    "a longer table": (
        GPT2, changed(GPT2, "embed.token", lambda x: torch.cat([x, x[:2]])),
        r"embed.token has shape \[43, 36\], expected \[41, 36\]",
    ),
    "an example axis": (
        BERT, tree.map(lambda x: x[None], with_heads(BERT, ())), r"has shape \[1, .*expected",
    ),
    "another type": (
        GPT2, changed(GPT2, SCALE, lambda x: x.double()), f"{SCALE} has type torch.float64",
    ),
    "whole numbers": (
        GPT2, tree.map(lambda x: x.int(), with_heads(GPT2, ())), "has type torch.int32: cast it",
    ),
    "complex numbers": (
        GPT2, changed(GPT2, SCALE, lambda x: x.cfloat()), f"{SCALE} has type torch.complex64",
    ),
    "eight bits": (
        GPT2, tree.map(lambda x: x.to(torch.float8_e5m2), with_heads(GPT2, ())), "float8_e5m2",
    ),
    "sparse": (
        GPT2, changed(GPT2, "embed.token", lambda x: x.to_sparse()), "embed.token .*sparse_coo",
    ),
    "without memory": (
        TRANSFO_XL, tree.map(lambda x: x.to("meta"), with_heads(TRANSFO_XL, ())), "meta device",
    ),
    "no tensor": (GPT2, changed(GPT2, SCALE, lambda x: "x"), f"{SCALE} is no tensor but .* str"),
    "a number": (GPT2, changed(GPT2, SCALE, lambda x: 1.0), f"{SCALE} is no tensor but .* float"),
    "a missing leaf": (
        GPT2, {k: v for k, v in with_heads(GPT2, ()).items() if k != "norm"}, "missing norm.scale",
    ),
    "one more leaf": (BERT, {**with_heads(BERT, ()), "more": torch.ones(1)}, "unexpected more"),
    "a missing layer": (
        GPT2, {**with_heads(GPT2, ()), "blocks": with_heads(GPT2, ())["blocks"][:1]},
        "missing blocks.1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_unloadable_parameters_are_not_saved(what: str, tmp_path: Path) -> None:
    family, params, said = REFUSED[what]
    good = with_heads(family, ())
    family.module.save(good, tmp_path)
    for dialect in dialects(family):
        with pytest.raises(ValueError, match=said):
            family.module.save(params, tmp_path, dialect=dialect)
        assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
        assert_loads(tmp_path, family, good, "transformers")


def test_nan_is_saved_and_loaded(tmp_path: Path) -> None:
    params = changed(GPT2, SCALE, lambda x: torch.full_like(x, torch.nan))
    gpt2.save(params, tmp_path)
    assert gpt2.load(tmp_path)["blocks"][0]["norm_1"]["scale"].isnan().all()


def test_weights_keep_their_config_beside_a_named_file(tmp_path: Path) -> None:
    """A converted file that is named leaves others alone, or is refused."""
    params = with_heads(GPT2, ())
    gpt2.save(params, tmp_path / "a")
    list(checkpoints.convert(tmp_path / "a", tmp_path / "a" / "more.bin"))
    assert sorted(os.listdir(tmp_path / "a")) == ["config.json", "model.safetensors", "more.bin"]
    assert_loads(tmp_path / "a" / "more.bin", GPT2, params, "transformers")
    wider = gpt2.init(gpt2.Config(vocab_size=9, n_embd=8, n_head=2, n_layer=1), random.key(0))
    gpt2.save(wider, tmp_path / "b")
    with pytest.raises(ValueError, match="holds model.safetensors with another config.json"):
        list(checkpoints.convert(tmp_path / "b", tmp_path / "a" / "b.safetensors"))
    assert_loads(tmp_path / "a", GPT2, params, "transformers")


# A kill.

WORDS = ({"vocab.json": "old", "merges.txt": "old"}, {"vocab.json": "new", "vocab.txt": "new"})


@forks
@pytest.mark.parametrize("way", ["save", "convert"])
def test_a_kill_leaves_the_old_model_or_the_new(
    way: str, places: Iterator[Path], tmp_path: Path
) -> None:
    """Other weights, another config, another form; by conversion another vocabulary, too."""
    old, new = with_heads(GPT2, ()), with_heads(GPT2, ("multiple_choice",), torch.float16)
    for number, params in enumerate((old, new)):
        gpt2.save(params, tmp_path / str(number))
        for name, text in WORDS[number].items():
            (tmp_path / str(number) / name).write_text(text)
    outcomes = set()

    def write(number: int, place: Path) -> None:
        to = ("transformers", "pytorch-pretrained-bert")[number]
        if way == "convert":
            list(checkpoints.convert(tmp_path / str(number), place, dialect=to))
        else:
            gpt2.save((old, new)[number], place, dialect=to)

    for operation, place in enumerate(places, start=1):
        write(0, place)
        was_killed = killed_at(operation, place, partial(write, 1, place))
        loaded = gpt2.load(place)
        number = int("heads" in loaded)
        assert_loads(place, GPT2, (old, new)[number], "transformers")
        if way == "convert":
            words = _folder.current(place, "tokenizer")
            texts = {n: (words / n).read_text() for n in ("vocab.json", "merges.txt", "vocab.txt")
                     if (words / n).is_file()}  # fmt: skip
            assert texts == WORDS[number], f"killed at operation {operation}"
        outcomes.add(number)
        write(1, place)
        assert_loads(place, GPT2, new, "pytorch-pretrained-bert")
        assert not list(place.glob(".*")) and not (place / "model.safetensors").exists()
        if not was_killed:
            break
    assert outcomes == {0, 1} and operation > 15


def test_a_file_of_a_killed_save_is_found_by_its_name(tmp_path: Path) -> None:
    """As long as committed files have no place of their own, their name means them."""
    old, new = with_heads(GPT2, ()), with_heads(GPT2, (), torch.float64)
    gpt2.save(old, tmp_path)
    gpt2.save(new, tmp_path / "b")
    os.rename(tmp_path / "b", tmp_path / ".model.saved")
    assert_loads(tmp_path / "model.safetensors", GPT2, new, "transformers")
    os.rename(tmp_path / ".model.saved", tmp_path / "elsewhere")
    (tmp_path / ".model.saved").symlink_to("elsewhere")
    assert_loads(tmp_path, GPT2, old, "transformers")  # no link is followed
    assert load_file(tmp_path / "model.safetensors").keys()
