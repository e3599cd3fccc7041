"""A name is resolved once: what it stands for is handed on, to weights, config and vocabulary."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import GPT2, make_params

from fnlm import checkpoints, gpt2, pipeline, tree
from fnlm import cli as command
from fnlm.files import hub
from fnlm.tokenize import gpt2 as bpe

TOKENIZER = bpe.train(["the king and the queen"], 258)
CONFIG = gpt2.Config(vocab_size=258, n_positions=24, n_embd=6, n_layer=1, n_head=3)
USES: dict[str, Callable[[Any, Path], object]] = {
    "generate": lambda name, _: list(command.generate(str(name), max_new_tokens=2)),
    "inspect": lambda name, _: list(checkpoints.inspect(name)),
    "convert": lambda name, target: list(checkpoints.convert(name, target)),
    "family_of": lambda name, _: checkpoints.family_of(name),
    "pipeline": lambda name, _: pipeline.load(name),
    "load": lambda name, _: gpt2.load(name),
    "tokenizer": lambda name, _: bpe.load(name),
}


@pytest.fixture
def resolved(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The names that are looked for, on disk and on the hub."""
    names: list[object] = []
    for finder in ("_on_disk", "_from_hub"):
        real = getattr(hub, finder)

        def counted(name: object, *args: Any, real: Any = real) -> Any:
            names.append(name)
            return real(name, *args)

        monkeypatch.setattr(hub, finder, counted)
    return names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model with its vocabulary, and the weights of another one beside it."""
    params = make_params(GPT2._replace(config=CONFIG))
    gpt2.save(params, tmp_path / "model")
    TOKENIZER.save(tmp_path / "model")
    list(checkpoints.convert(tmp_path / "model", tmp_path / "other", dtype="float64"))
    weights = tmp_path / "other" / "model.safetensors"
    weights.rename(tmp_path / "model" / "other.safetensors")
    return tmp_path / "model"


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("form", ["bundled", "directory", "file"])
def test_a_name_is_looked_for_once(
    use: str, form: str, model: Path, tmp_path: Path, resolved: list[object]
) -> None:
    name = {"bundled": "tiny", "directory": model, "file": model / "other.safetensors"}[form]
    resolved.clear()
    USES[use](name, tmp_path / "target")
    assert list(map(str, resolved)) == [str(name)]


@pytest.mark.parametrize("use", [use for use in USES if use != "generate"])
def test_a_source_is_not_looked_for_again(
    use: str, model: Path, tmp_path: Path, resolved: list[object]
) -> None:
    source = hub.locate(model)
    resolved.clear()
    USES[use](source, tmp_path / "target")
    assert not resolved


def test_a_named_file_wins_over_its_folder(model: Path) -> None:
    """Its own weights, with the config and the vocabulary of the folder."""
    for name, dtype in (
        (model, torch.float32),
        (model / "model.safetensors", torch.float32),
        (model / "other.safetensors", torch.float64),
    ):
        source = hub.locate(name)
        assert source.config == model / "config.json" and source.directory == model
        for given in (name, source):
            assert {x.dtype for x in tree.leaves(gpt2.load(given))} == {dtype}
        made = pipeline.load(source, dtype="float64")
        assert made.tokenizer.encode("the king") == TOKENIZER.encode("the king")
    assert not hub.locate(model).repository


def test_weights_without_a_config_say_so_when_it_is_needed(model: Path) -> None:
    (model / "config.json").unlink()
    source = hub.locate(model, config_required=False)
    assert source.weights == model / "model.safetensors"
    assert checkpoints.family_of(source) == "gpt2"
    for use in (hub.locate, gpt2.load, pipeline.load):
        for name in (model, source):
            with pytest.raises(FileNotFoundError, match="config.json is missing"):
                use(name)
    assert "refuses it" in "".join(checkpoints.inspect(model))
