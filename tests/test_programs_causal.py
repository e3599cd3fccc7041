"""The commands that use GPT and Transformer-XL: they learn, survive a kill, and err in one line.

Stories are the first of the published files where the optional test data are there, else those of
this file. `examples/generate.py` has a test file of its own for GPT-2.
"""

import csv
import importlib.util
import io
import json
import math
import os
import pickle
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, data_path
from torch import Tensor
from torch.nn import functional as F

from fnlm import bert, cli, gpt, random, train, transfo_xl, tree
from fnlm import generate as decoding
from fnlm.finetune import data
from fnlm.programs import pretrain as gpt2_program
from fnlm.programs import rocstories as rocstories_program
from fnlm.tasks import language_model, rocstories
from fnlm.tokenize import gpt as tokenize_gpt
from fnlm.tokenize import transfo_xl as tokenize_xl

ROWS = [
    ("Rick was cold.", "He had no coat.", "Ann came.", "She had two.", 'He said "oh".', "No.", "1"),
    ("Ann ran fast.", "She fell, twice.", "It hurt.", "She cried.", "All was good.", "Ow.", "2"),
    ("It rained.", "The sea rose.", "We ran.", "We hid.", "We were dry.", "We swam.", "1"),
]
LINES = (" = A king = ", "", " the old king had three sons by the sea", " the sea was <unk>", "")
TEXT = "".join(f"{line}\n" for line in LINES * 8)
SIZES = "--d_model 16 --n_layer 2 --n_head 2 --d_inner 20 --cutoffs [6] --div_val 2 --min_freq 1"
RUNS = {
    "rocstories": "--do_train --do_eval --model_name gpt --train_dataset train.csv --eval_dataset "
    "valid.csv --train_batch_size 4 --checkpoint_every 3 --num_train_epochs 2 --output_dir stories",
    "wikitext103": "--train_file text.txt --eval_file text.txt --work_dir xl --tgt_len 9 "
    f"--mem_len 12 {SIZES} --train_batch_size 3 --batch_size 2 --steps 14 --checkpoint_every 4",
}
OUTPUT = {"rocstories": "--output_dir", "wikitext103": "--work_dir"}
LAST = {"rocstories": 12, "wikitext103": 14}


def csv_of(rows: Sequence[Sequence[str]]) -> str:
    file = io.StringIO()
    csv.writer(file).writerows([["id", *rocstories.COLUMNS, rocstories.ANSWER]])
    csv.writer(file).writerows([[str(at), *row] for at, row in enumerate(rows)])
    return file.getvalue()


def stories(name: str, count: int) -> str:
    """The first rows of a published file, or those of this one."""
    try:
        text = data_path(f"rocstories/{name}").read_text(encoding="utf-8")
    except pytest.skip.Exception:
        return csv_of((ROWS * count)[:count])
    return csv_of([row[1:] for row in list(csv.reader(io.StringIO(text)))[1 : count + 1]])


def letters(added: Sequence[str] = ()) -> tokenize_gpt.Tokenizer:
    shown = [chr(at) for at in range(33, 127) if not chr(at).isupper()]
    tokens = ["<unk>", *shown, *(f"{x}</w>" for x in shown)]
    return tokenize_gpt.Tokenizer(
        {token: at for at, token in enumerate(tokens)}, [], "fallback", added
    )


def make_gpt(folder: Path, words: int) -> None:
    config = gpt.Config(vocab_size=words, n_positions=96, n_embd=24, n_layer=2, n_head=3)
    gpt.save(
        tree.map(lambda x: 3 * x if x.ndim == 2 else x, gpt.init(config, random.key(5))), folder
    )
    letters().save(folder)


def run(command: str, line: str, *more: str) -> int:
    """Run a command in this process, as it would run in one of its own."""
    words = [*shlex.split(line), *more]
    return generate_example().main(words) if command == "generate" else cli.main([command, *words])


@cache
def generate_example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which both commands have run without interruption."""
    folder = tmp_path_factory.mktemp("programs")
    (folder / "train.csv").write_text(stories("cloze_test_val__spring2016-first1171.csv", 24))
    (folder / "valid.csv").write_text(stories("cloze_test_test__spring2016-first1371.csv", 9))
    (folder / "text.txt").write_text(TEXT)
    make_gpt(folder / "gpt", letters().vocab_size)
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert [run(*item) for item in RUNS.items()] == [0, 0]
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def results(output: str | Path) -> dict[str, float]:
    return json.loads(Path(output, "eval_results.json").read_text())


def contents(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for the time it took."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in files
        if path.name != "log.jsonl" and not path.name.startswith("eval_results")
    }
    times = ("seconds", "tokens_per_second")
    for row in (*train.read_log(folder), results(folder)):
        found[f"numbers {len(found)}"] = {k: v for k, v in row.items() if k not in times}
    return found


# Both commands.


@pytest.mark.parametrize("stem", RUNS)
def test_a_run_that_is_cut_ends_with_the_same_numbers(
    stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between two checkpoints, started again with the same flags."""
    owner: Any = data if stem == "rocstories" else transfo_xl
    name = "tensors" if stem == "rocstories" else "negative_log_likelihood"
    genuine, calls = getattr(owner, name), iter(range(1, 10_000))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 10:
            raise KeyboardInterrupt
        return genuine(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    assert run(stem, RUNS[stem], OUTPUT[stem], str(tmp_path)) == 130
    assert 0 < train.read_log(tmp_path)[-1]["step"] < LAST[stem]
    assert not (tmp_path / "model.safetensors").exists()
    assert run(stem, RUNS[stem], OUTPUT[stem], str(tmp_path)) == 0
    output = Path("stories" if stem == "rocstories" else "xl")
    assert contents(tmp_path) == contents(output)
    assert train.read_log(output)[-1]["step"] == LAST[stem]


def test_a_run_that_is_killed_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """A process of its own, killed by force in the middle."""
    more = ("--output_dir", str(tmp_path), "--checkpoint_every", "1")
    words = ["-m", "fnlm", "rocstories", *shlex.split(RUNS["rocstories"]), *more]
    process = subprocess.Popen(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9, "it was over before it could be killed: give it more steps"
    assert len(train.read_log(tmp_path)) < LAST["rocstories"]
    assert run("rocstories", RUNS["rocstories"], "--output_dir", str(tmp_path)) == 0
    for name in ("model.safetensors", "state.safetensors"):
        assert (tmp_path / name).read_bytes() == Path("stories", name).read_bytes()


# rocstories.


def test_rows_are_laid_out_with_the_token_that_follows() -> None:
    tokenizer = letters(rocstories.MARKS)
    examples = rocstories.read("valid.csv")
    made = rocstories.features(examples, tokenizer, max_seq_length=50)
    start, delimiter, classify = tokenizer.tokens_to_ids(rocstories.MARKS)
    for row, example in enumerate(examples):
        assert made.labels[row] == example.label
        for choice, ending in enumerate(example.endings):
            line = [start, *tokenizer.encode(example.story)[:23], delimiter]
            line += [*tokenizer.encode(ending)[:23], classify]
            rest = 50 - len(line)
            assert made.ids[row, choice].tolist() == line + [0] * rest
            assert made.mask[row, choice].tolist() == [True] * len(line) + [False] * rest
            assert made.targets[row, choice].tolist() == line[1:] + [-1] * (rest + 1)


def test_published_files_are_read() -> None:
    path = data_path("rocstories/cloze_test_val__spring2016-first1171.csv")
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))[1:]
    found = rocstories.read(path)
    assert len(found) == len(rows) == 1171
    for example, row in zip(
        found, rows, strict=True
    ):  # the columns that pytorch-pretrained-bert takes
        assert example == (" ".join(row[1:5]), (row[5], row[6]), int(row[-1]) - 1)
    assert {example.label for example in rocstories.read(path, labelled=False)} == {None}


def test_the_loss_is_that_of_words_and_endings() -> None:
    params, tokenizer = gpt.load("stories"), letters(rocstories.MARKS)
    rows = rocstories.features(rocstories.read("valid.csv"), tokenizer, max_seq_length=96)
    ids, targets, mask, labels = (torch.from_numpy(x).long() for x in rows)
    words, endings = [], []
    for example in zip(ids, mask, strict=True):
        for row, real in zip(*example, strict=True):  # each row alone, without padding
            hidden, _ = gpt.hidden_states(params, row[: real.sum()])
            logits = hidden @ params["embed"]["token"].mT
            words += F.cross_entropy(logits[:-1], row[1 : real.sum()], reduction="none").tolist()
            endings.append(hidden[-1] @ params["heads"]["multiple_choice"]["weight"][:, 0])
    wanted = 0.7 * np.mean(words) + F.cross_entropy(torch.stack(endings).view(-1, 2), labels)
    found = rocstories_program.loss(params, ids, targets, mask, labels, lm_coef=0.7)
    torch.testing.assert_close(found.double(), wanted.double(), rtol=0, atol=1e-5)


def test_a_trained_model_is_evaluated_as_it_was_after_training() -> None:
    assert results("stories").keys() == {"accuracy", "eval_loss", "global_step", "loss"}
    line = "--do_eval --model_name stories --eval_dataset valid.csv --output_dir again"
    assert run("rocstories", line) == 0
    again = results("again")
    assert again == {name: results("stories")[name] for name in again} and len(again) == 2
    tokenizer = tokenize_gpt.load("stories")
    assert tokenizer.added == rocstories.MARKS
    assert len(gpt.load("stories")["embed"]["token"]) == tokenizer.vocab_size


def test_a_model_learns_which_ending_is_right(tmp_path: Path) -> None:
    (tmp_path / "few.csv").write_text(csv_of(ROWS))
    line = f"--do_train --do_eval --model_name gpt --output_dir {tmp_path} --lm_coef 0 --seed 1"
    files = f"--train_dataset {tmp_path}/few.csv --eval_dataset {tmp_path}/few.csv"
    more = "--num_train_epochs 20 --train_batch_size 3 --learning_rate 3e-3 --lr_schedule constant"
    assert run("rocstories", f"{line} {files} {more}") == 0
    assert results(tmp_path)["accuracy"] == 1
    assert json.loads((tmp_path / "run.json").read_text())["lr_schedule"] == "constant"


def test_the_first_step_is_that_of_adam_with_bias_correction(tmp_path: Path) -> None:
    """Each weight moves by the learning rate, then loses its share; vectors lose nothing."""
    line = f"--do_train --model_name gpt --train_dataset train.csv --output_dir {tmp_path}"
    more = "--num_train_epochs 1 --train_batch_size 24 --learning_rate 2e-3 --lr_schedule constant"
    assert run("rocstories", f"{line} {more} --weight_decay 0.5") == 0
    before, after = gpt.load("gpt")["blocks"][0], gpt.load(tmp_path)["blocks"][0]
    up, norm = (
        (lambda block: block["mlp"]["up"]["weight"]),
        (lambda block: block["norm_1"]["scale"]),
    )
    for leaf, share in ((up, 2e-3 * 0.5), (norm, 0.0)):
        moved = (leaf(after) / (1 - share) - leaf(before)).abs()
        torch.testing.assert_close(moved.median(), torch.tensor(2e-3), rtol=0.01, atol=0)


# wikitext103.


def columns(path: str, rows: int) -> Tensor:
    """The text in columns, as pytorch-pretrained-bert's iterator has it."""
    tokenizer = tokenize_xl.load("xl")
    ids = [at for line in tokenizer.encode_file(path) for at in line]
    return torch.tensor(ids[: len(ids) // rows * rows]).view(rows, -1)


@pytest.mark.parametrize("length,memory", [(9, 12), (4, 0), (5, 30), (100, 3)])
def test_perplexity_is_that_of_segments_with_their_memory(
    length: int, memory: int, tmp_path: Path
) -> None:
    line = f"--model_name xl --eval_file text.txt --work_dir {tmp_path} --batch_size 2"
    assert run("wikitext103", f"{line} --tgt_len {length} --mem_len {memory}") == 0
    params, text = transfo_xl.load("xl"), columns("text.txt", 2)
    config = json.loads(Path("xl", "config.json").read_text()) | {"mem_len": memory}
    params |= {"config": transfo_xl.Config.from_dict(config | {"clamp_len": 1000})}
    mems, total = None, 0.0
    for at in range(0, text.shape[1] - 1, length):
        part = text[:, at : at + length + 1]
        logs, mems = transfo_xl.apply(params, part[:, :-1], mems)
        total -= logs.gather(-1, part[:, 1:, None]).double().sum().item()
    found = results(tmp_path)
    assert found["tokens"] == 2 * (text.shape[1] - 1)
    assert found["ppl"] == pytest.approx(math.exp(total / found["tokens"]), rel=1e-5)


def test_memory_does_not_grow_with_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step is given: a segment of ids that stand on disk, and a memory of the same size."""
    (tmp_path / "long.txt").write_text(TEXT * 5)
    genuine, ordered = transfo_xl.negative_log_likelihood, language_model.ordered
    lengths, sizes, mapped = [], [], []

    def watched(params: Any, ids: Tensor, targets: Tensor, mems: Any, **kwargs: Any) -> Any:
        nll, new = genuine(params, ids, targets, mems, **kwargs)
        lengths.append(ids.shape[1])
        sizes.append(sum(leaf.untyped_storage().nbytes() for leaf in tree.leaves(new)))
        return nll, new

    def cut(ids: Any, batch_size: int, length: int) -> Any:
        mapped.append(isinstance(ids, np.memmap))
        return ordered(ids, batch_size, length)

    monkeypatch.setattr(transfo_xl, "negative_log_likelihood", watched)
    monkeypatch.setattr(language_model, "ordered", cut)
    line = f"--model_name xl --eval_file {tmp_path}/long.txt --work_dir {tmp_path} --batch_size 2"
    assert run("wikitext103", f"{line} --tgt_len 8 --mem_len 12") == 0
    assert mapped == [True] and len(lengths) > 50
    assert set(lengths[:-1]) == {8} and len(set(sizes[:-1])) == 1


def test_a_corpus_of_pytorch_pretrained_bert_is_evaluated(tmp_path: Path) -> None:
    ids = columns("text.txt", 1)[0].numpy()
    with open(tmp_path / "corpus.bin", "wb") as file:
        pickle.dump({"valid": ids[:40], "test": ids}, file)
    line = f"--model_name xl --eval_file {tmp_path}/corpus.bin --work_dir {tmp_path} --batch_size 2"
    assert run("wikitext103", f"{line} --tgt_len 9 --mem_len 12") == 0
    assert results(tmp_path)["ppl"] == results("xl")["ppl"]
    assert run("wikitext103", f"{line} --split valid") == 0
    assert results(tmp_path)["tokens"] == 2 * 19


# generate.


@pytest.mark.parametrize("model", ["stories", "xl"])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_text_is_that_of_the_library(
    model: str, batch_size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    family: Any = gpt if model == "stories" else transfo_xl
    tokenizer: Any = (tokenize_gpt if model == "stories" else tokenize_xl).load(model)
    prompt = "the king" if model == "stories" else "the\nking"
    line = f"--model_name_or_path {model} --nsamples 3 --top_k 5 --length 25 --seed 4"
    assert run("generate", f"{line} --batch_size {batch_size} --prompt", prompt) == 0
    ids = torch.tensor([tokenizer.encode(prompt.replace("\n", " <eos> "))]).expand(3, -1)
    made = decoding.generate(family.apply, family.load(model), ids, 25, key=random.key(4), top_k=5)
    shown = re.split("=+ sample . =+\n", capsys.readouterr().out)[1:]
    for row, text in zip(made.tolist(), shown, strict=True):
        words = (
            tokenizer.decode(row) if family is transfo_xl else tokenizer.decode(row, clean_up=False)
        )
        lines = [part.strip() for part in words.split("<eos>")]
        assert [part.strip() for part in text.split("\n")[: len(lines)]] == lines


def test_transformer_xl_begins_with_the_end_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--model_name_or_path xl --unconditional --top_k 1 --length 40") == 0
    (end,) = tokenize_xl.load("xl").tokens_to_ids(["<eos>"])
    ids = torch.tensor([[end]])
    made = decoding.generate(transfo_xl.apply, transfo_xl.load("xl"), ids, 40)[0].tolist()
    shown = capsys.readouterr().out.replace("\n", " <eos> ").split()
    assert shown == [*tokenize_xl.load("xl").ids_to_tokens(made), "<eos>"]


@pytest.mark.parametrize("model", ["stories", "xl"])
def test_the_command_writes_the_same(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"--model_name_or_path {model} --top_k 1 --length 25 --prompt"
    assert run("generate", line, "the king") == 0
    wanted = capsys.readouterr().out
    words = "--temperature 0 --max_new_tokens 25 --prompt".split()
    assert cli.main(["generate", model, *words, "the king"]) == 0
    assert capsys.readouterr().out == f"the king{wanted}" and wanted.strip()
    assert cli.main(["generate", model, "--num_beams", "2", *words[2:], "the king"]) == 0


# Mistakes.


class Command:
    """Unpickled by the usual way, it runs a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hacked",)


EVAL_XL = "--work_dir wrong --model_name xl --batch_size 2"
EVAL_GPT = "--do_eval --output_dir wrong --eval_dataset valid.csv"
TRAIN_GPT = "--do_train --output_dir wrong --model_name gpt"
MISTAKES = {
    "nothing to do": ("rocstories", "--output_dir wrong", "--do_train, --do_eval or both"),
    "no file named": ("rocstories", TRAIN_GPT, "no stories: give --train_dataset"),
    "no such file": ("rocstories", f"{TRAIN_GPT} --train_dataset no.csv", "'no.csv' is no file"),
    "other columns": ("rocstories", f"{TRAIN_GPT} --train_dataset columns.csv",
                      "columns.csv, line 1: no column 'InputSentence1' among ['label', 'text']"),
    "no such answer": ("rocstories", f"{TRAIN_GPT} --train_dataset answer.csv",
                       "answer.csv, line 3, column 'AnswerRightEnding': '3' is not 1 or 2"),
    "not trained": ("rocstories", f"{EVAL_GPT} --model_name gpt", "no head multiple_choice"),
    "words of another model": ("rocstories", f"{EVAL_GPT} --do_train --model_name gpt-90",
                               "gpt-90: the vocabulary has 137 tokens, the model 90"),
    "another coefficient": ("rocstories", f"{RUNS['rocstories']} --lm_coef 0.5",
                            "stories holds a run with other lm_coef: give"),
    "another memory": ("wikitext103", f"{RUNS['wikitext103']} --mem_len 5",
                       "xl holds a run with other mem_len: give"),
    "memories of another shape": ("wikitext103", f"{RUNS['wikitext103']} --work_dir shape",
                                  "mismatched carry.hidden.0: (3, 5, 16) torch.float32"),
    "a vocabulary that runs code": ("wikitext103", "--work_dir wrong --model_name hostile "
                                    "--eval_file text.txt", "hostile/vocab.bin can't be read"),
    "a corpus that runs code": ("wikitext103", f"{EVAL_XL} --eval_file hostile/vocab.bin",
                                "hostile/vocab.bin can't be read"),
    "symbols of another model": ("wikitext103", "--work_dir wrong --model_name short --eval_file "
                                 "text.txt", "short: the vocabulary has 3 tokens, the model 13"),
    "ids out of range": ("wikitext103", f"{EVAL_XL} --eval_file ids.bin",
                         "less than 13; got values from 2 to 15"),
    "no such split": ("wikitext103", f"{EVAL_XL} --eval_file ids.bin --split valid", "'valid'"),
    "no corpus": ("wikitext103", f"{EVAL_XL}", "corpus"),
    "nothing to see": ("wikitext103", f"{EVAL_XL} --eval_file text.txt --same_length --mem_len 0",
                       "same_length=True with mem_len=0"),
    "a short text": ("wikitext103", f"{EVAL_XL} --eval_file text.txt --batch_size 999",
                     "batch_size=999"),
    "no beginning": ("generate", "--model_name_or_path stories --unconditional", "give a prompt"),
    "no language model": ("generate", "--model_name_or_path bert --prompt a",
                          "bert is not a causal language model"),
    "tokens of another model": ("generate", "--model_name_or_path short --prompt a",
                                "short: the vocabulary has 3 tokens, the model 13"),
    "a prompt that runs code": ("generate", "--model_name_or_path hostile --prompt a",
                                "hostile/vocab.bin can't be read"),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong(folder: Path) -> None:
    """What the mistakes name."""
    (folder / "columns.csv").write_text("label,text\n1,It rains.\n")
    (folder / "answer.csv").write_text(csv_of([ROWS[0], [*ROWS[1][:-1], "3"]]))
    make_gpt(folder / "gpt-90", 90)
    xl = transfo_xl.load(folder / "xl")
    for name in ("hostile", "short"):
        transfo_xl.save(xl, folder / name)
    (folder / "hostile" / "vocab.bin").write_bytes(pickle.dumps(Command()))
    tokenize_xl.Tokenizer({"<eos>": 0, "<unk>": 1, "a": 2}).save(folder / "short")
    (folder / "ids.bin").write_bytes(pickle.dumps({"test": np.array([1, 2, 15, 3, 4, 5])}))
    config = bert.Config(vocab_size=9, hidden_size=12, num_hidden_layers=1, num_attention_heads=2)
    bert.save(bert.init(config, random.key(0)), folder / "bert")
    (folder / "shape").mkdir()
    params = xl | {"config": transfo_xl.Config.from_dict(xl["config"].to_dict() | {"mem_len": 5})}
    state = train.init_state(params, train.adamw(0.1), random.key(0))
    mems = transfo_xl.init_mems(params, 3)
    train.save_state(train.CarryState(state, mems), folder / "shape" / "state.safetensors")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str, wrong: None, capsys: pytest.CaptureFixture[str]) -> None:
    command, line, fragment = MISTAKES[name]
    assert run(command, line) == 2
    shown = capsys.readouterr()
    program = "generate.py" if command == "generate" else f"fnlm {command}"
    assert shown.err.startswith(f"{program}: ") and fragment in shown.err
    assert shown.err.count("\n") == 1
    assert not Path("hacked").exists()


# Precision, and the parts of a published corpus.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_changes_little(dtype: str, tmp_path: Path) -> None:
    more = ("--work_dir", str(tmp_path / "xl"), "--dtype", dtype, "--optimize_on_cpu")
    assert run("wikitext103", RUNS["wikitext103"], *more) == 0
    whole, half = results("xl"), results(tmp_path / "xl")
    assert half["loss"] != whole["loss"]
    assert half["loss"] == pytest.approx(whole["loss"], rel=0.02)
    weights = tree.leaves(transfo_xl.load(tmp_path / "xl"))
    assert {leaf.dtype for leaf in weights} == {torch.float32}
    scales = [row.get("loss_scale") for row in train.read_log(tmp_path / "xl")]
    assert all(scales) if dtype == "float16" else not any(scales)


def test_a_loss_scale_may_be_given(tmp_path: Path) -> None:
    more = ("--work_dir", str(tmp_path), "--fp16", "--loss_scale", "128")
    assert run("wikitext103", RUNS["wikitext103"], *more) == 0
    assert {row["loss_scale"] for row in train.read_log(tmp_path)} == {128.0}


def test_all_parts_of_a_corpus_are_evaluated(tmp_path: Path) -> None:
    ids = columns("text.txt", 1)[0].numpy()
    with open(tmp_path / "corpus.bin", "wb") as file:
        pickle.dump({"valid": ids[:40], "test": ids}, file)
    line = f"--model_name xl --eval_file {tmp_path}/corpus.bin --batch_size 2 --tgt_len 9"
    for split in ("all", "valid", "test"):
        words = ("--mem_len", "12", "--split", split, "--work_dir", str(tmp_path / split))
        assert run("wikitext103", line, *words) == 0
    for split in ("valid", "test"):
        for name in ("loss", "ppl", "tokens"):
            assert results(tmp_path / "all")[f"{split}_{name}"] == results(tmp_path / split)[name]


# pretrain.

PRETRAIN = (
    "--train_files ['text.txt'] --vocab_size 270 --n_positions 16 --n_embd 12 --n_head 3 "
    "--n_layer 2 --steps 9 --warmup_steps 2 --evaluate_every 3 --output"
)


def test_a_pretraining_that_is_cut_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run("pretrain", PRETRAIN, str(whole)) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines()[-1].endswith(f"; next: fnlm generate {whole}")
    genuine, calls = gpt2_program.draw_batch, iter(range(1, 100))

    def counted(*args: Any) -> Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return genuine(*args)

    monkeypatch.setattr(gpt2_program, "draw_batch", counted)
    assert run("pretrain", PRETRAIN, str(cut)) == 130
    assert [row["step"] for row in train.read_log(cut)] == [3]
    assert run("pretrain", PRETRAIN, str(cut)) == 0
    names = {path.name for path in whole.iterdir()} - {"log.jsonl", "loss.png"}
    assert names == {path.name for path in cut.iterdir()} - {"log.jsonl", "loss.png"}
    for name in names:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert cli.main(["generate", str(whole), "--max_new_tokens", "3"]) == 0
    assert run("pretrain", PRETRAIN, str(cut), "--n_embd", "24") == 2
    assert "holds a run with other n_embd" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_pretraining_in_half_precision(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert run("pretrain", PRETRAIN, str(tmp_path / "a")) == 0
    more = ("--dtype", dtype, "--optimize_on_cpu")
    assert run("pretrain", PRETRAIN, str(tmp_path / "b"), *more) == 0
    a, b = (train.read_log(tmp_path / name)[-1]["valid_loss"] for name in "ab")
    assert a != b and b == pytest.approx(a, rel=0.02)


def test_files_may_be_listed_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    Path("more.txt").write_text("the sea\n<|endoftext|>a red king\nby the sea" * 3)
    words = PRETRAIN.removeprefix("--train_files ['text.txt'] ")
    for name, files in (("a", ["text.txt", "more.txt"]), ("b", ["['text.txt','more.txt']"])):
        assert run("pretrain", f"{words} {tmp_path / name} --train_files", *files) == 0
    for name in ("vocab.json", "state.safetensors", "run.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    held = ("--train_files", "more.txt", "--hold_out", "the sea", "a red king")
    assert run("pretrain", f"{words} {tmp_path / 'c'}", *held) == 2
    assert "the validation text has 13 tokens, fewer than --n_positions 16" in (
        capsys.readouterr().err
    )


def test_documents_held_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("pretrain", PRETRAIN, str(tmp_path), "--hold_out", "No such") == 2
    assert "--hold_out: no document begins with ['No such']" in capsys.readouterr().err
