"""The programs of examples/ that train; `examples/generate.py` has a test file of its own."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

from fnlm import bert, cli, random, tree
from fnlm.tokenize import bert as tokenize


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = "fine good old sad the king and sea a is was .".split()
    tokenizer = tokenize.Tokenizer({token: at for at, token in enumerate([*marks, *words])})
    config = bert.Config(
        vocab_size=tokenizer.vocab_size, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=40, max_position_embeddings=32,
    )  # fmt: skip
    params = bert.init(config, random.key(5))
    bert.save(tree.map(lambda x: 3 * x if x.ndim == 2 else x, params), tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_learns_rows_in_memory(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, line = load("finetune"), f"--model {model} --directory {tmp_path}/run --dtype bfloat16"
    assert cli.run(program.main, program.Flags, shlex.split(line)) == 0
    assert "accuracy = 1.0" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["dtype"] == "bfloat16"


def test_a_model_learns_in_private(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("fine", "good", "old", "sad")
    rows = [(f"the {a} king and the {b} sea", a in words[:2]) for a in words for b in words] * 8
    text = "sentence\tlabel\n" + "".join(f"{row}\t{label:d}\n" for row, label in rows)
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(text)
    line = (
        f"--task_name SST-2 --data_dir {tmp_path} --bert_model {model} --output_dir "
        f"{tmp_path}/run --noise_multiplier 0.05 --expected_batch_size 64 --max_norm 1 "
        "--num_train_epochs 30 --learning_rate 1e-2 --max_seq_length 16 --chunk_size 100"
    )
    program = load("private_glue")
    assert cli.run(program.main, program.Flags, shlex.split(line)) == 0
    out = capsys.readouterr().out
    assert "128 examples, 60 steps of 50.00%, noise multiplier 0.050\n" in out
    assert json.loads((tmp_path / "run" / "eval_results.json").read_text())["accuracy"] > 0.9
    assert bert.load(tmp_path / "run")["heads"].keys() == {"sequence_classification"}
    assert cli.run(program.main, program.Flags, shlex.split(line.replace("SST-2", "STS-B"))) == 2
    few = [*shlex.split(line), "--num_train_epochs", "0.5", "--dtype"]
    assert cli.run(program.main, program.Flags, [*few, "bfloat16"]) == 0
    with pytest.raises(SystemExit):
        cli.run(program.main, program.Flags, [*few, "float16"])
