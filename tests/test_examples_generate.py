"""examples/generate.py: the conditional, unconditional and interactive modes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT

from fnlm import generate as decoding
from fnlm import gpt2, random, tree
from fnlm.tokenize import gpt2 as bpe

SCRIPT = ROOT / "examples" / "generate.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples_generate", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = bpe.train(["once upon a time there was a time 👍 é"], 275)
    config = gpt2.Config(
        vocab_size=tokenizer.vocab_size, n_positions=48, n_embd=24, n_layer=2, n_head=3
    )
    params = tree.map(lambda x: x * 4 if x.ndim == 2 else x, gpt2.init(config, random.key(1)))
    gpt2.save(params, folder)
    tokenizer.save(folder)
    return str(folder)


def texts(model: str, prompt: str, count: int, length: int, seed: int) -> list[str]:
    """What the library makes of the same keys, all in one batch."""
    tokenizer = bpe.load(model)
    (end,) = tokenizer.tokens_to_ids(["<|endoftext|>"])
    ids = torch.tensor([tokenizer.encode(prompt) or [end]]).expand(count, -1)
    out = decoding.generate(
        gpt2.apply, gpt2.load(model), ids, length, key=random.key(seed), top_k=9, eos=end
    )
    return [tokenizer.decode([i for i in row if i != end]) for row in out.tolist()]


@pytest.mark.parametrize("batch_size", [1, 2, -1])
def test_samples_depend_on_seed_and_number_alone(
    batch_size: int, example: ModuleType, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = f"--model_name_or_path {model} --seed 4 --nsamples 3 --top_k 9 --length 20"
    words += f" --batch_size {batch_size}"
    assert example.main([*words.split(), "--prompt", "once é"]) == 0
    line = "=" * 30
    assert capsys.readouterr().out == "".join(
        f"{line} sample {i} {line}\n{text}\n"
        for i, text in enumerate(texts(model, "once é", 3, 20, 4), 1)
    )


def test_unconditional_text_begins_from_the_end_of_text(
    example: ModuleType, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", model, "--unconditional", "--top_k", "9"]
    assert example.main(words) == 0
    assert capsys.readouterr().out == texts(model, "", 1, 24, 0)[0] + "\n", "half the positions"


def test_interactive_asks_until_the_input_ends(model: str) -> None:
    words = ["--model_name_or_path", model, "--top_k", "9", "--length", "12"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        input="once\n\n" + "time " * 40 + "\na\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    ask = "Model prompt >>> "
    first, last = texts(model, "once", 1, 12, 0)[0], texts(model, "a", 1, 12, 0)[0]
    assert done.stdout.startswith(f"{ask}{first}\n{ask}The prompt is empty")
    assert f"{ask}No text: a prompt of" in done.stdout
    assert done.stdout.endswith(f"{ask}{last}\n{ask}\n")


def test_mistakes_are_one_line(
    example: ModuleType, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model_name_or_path", model, "--prompt", "once"]
    assert example.main([*words, "--length", "48"]) == 2
    shown = capsys.readouterr()
    assert "n_positions=48" in shown.err and shown.err.count("\n") == 1
    assert example.main(["--model_name_or_path", str(tmp_path), "--unconditional"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    for wrong in (["--nsamples", "0"], ["--unconditional"]):
        with pytest.raises(SystemExit) as caught:
            example.main([*words, *wrong])
        assert caught.value.code == 2
