"""The commands for BERT: the lines of docs/examples.md run, survive a kill, and err in one line.

They run in a folder that has what the lines name: data, and a small random model under the name
`bert-base-uncased`. The data are the small published files where the optional test data are there,
else texts of this file.
"""

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, data_path

from fnlm import bert, cli, finetune, gpt2, random, train, tree
from fnlm.finetune import data
from fnlm.programs import PROGRAMS, extract_features
from fnlm.tasks import corpus, glue
from fnlm.tokenize import bert as tokenize

PAGE = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
LINES = re.findall(r"^fnlm (\S+) (.*runs/.*|.*rows.*|.*jsonl.*)$", PAGE, re.MULTILINE)
# What makes the lines fit the small files; the last of two flags counts.
SMALL = {
    "glue": "--max_seq_length 48 --num_train_epochs 6 --train_batch_size 4 --checkpoint_every 3",
    "squad": "--max_seq_length 96 --max_query_length 24 --train_batch_size 4 --checkpoint_every 3",
    "swag": "--num_train_epochs 0.6 --train_batch_size 8 --checkpoint_every 2",
    "lm": "--max_seq_length 48 --num_train_epochs 2.5 --train_batch_size 8 --checkpoint_every 3",
    "lm-rows": "--max_seq_length 48",
    "pretrain-bert": "--num_train_steps 8 --num_warmup_steps 2 --train_batch_size 4 "
    "--save_checkpoints_steps 3 --max_eval_steps 2 --eval_batch_size 2",
    "extract-features": "--layers=-1,0 --batch_size 2",
}
PAIRS = [("The king went home.", "He went home.", 1), ("It rains.", "The sea is red.", 0)] * 3
TEXT = (
    "The old king had three sons.\nThey lived by the sea.\n\nIt rained.\nThe sea was red.\n\n" * 20
)
CONTEXT = "The old king had three sons. They lived by the red sea, and it rained every day."
ASKED = [("What did the king have?", "three sons"), ("Where did they live?", "by the red sea")] * 10


def questions() -> str:
    asked = [
        {"id": str(at), "question": question, "answers": [{"text": text, "answer_start": start}]}
        for at, (question, text) in enumerate(ASKED)
        for start in [CONTEXT.index(text)]
    ]
    return json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": asked}]}]})


def pairs() -> str:
    rows = [f"{label}\t1\t2\t{first}\t{second}\n" for first, second, label in PAIRS]
    return "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n" + "".join(rows)


def choices(count: int) -> str:
    row = "The king was old.,He,had sons.,sang.,rained.,was red.,{}\n"
    header = "sent1,sent2,ending0,ending1,ending2,ending3,label\n"
    return header + "".join(row.format(at % 4) for at in range(count))


# Name in the folder -> the published file, and what stands in for it.
FILES = {
    "glue/MRPC/train.tsv": ("glue/mini/hf-MRPC/train.tsv", pairs()),
    "glue/MRPC/dev.tsv": ("glue/mini/hf-MRPC/dev.tsv", pairs()),
    "squad/train-v1.1.json": ("squad/fixtures/allennlp-squad.json", questions()),
    "squad/dev-v1.1.json": ("squad/dev-v1.1-mini.json", questions()),
    "swag/train.csv": ("swag/train-sample.csv", choices(60)),
    "swag/val.csv": ("swag/allennlp-swag.csv", choices(9)),
    "text.txt": ("lm/sample_text.txt", TEXT),
}


def published(name: str, own: str) -> str:
    try:
        return data_path(name).read_text(encoding="utf-8")
    except pytest.skip.Exception:
        return own


def make_model(folder: Path, text: str) -> None:
    words = [word for word in dict.fromkeys(re.findall(r"[a-z]+", text.lower())) if len(word) > 1]
    letters = [chr(at) for at in range(33, 127) if not chr(at).isupper()]
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = [*marks, *letters, *(f"##{x}" for x in letters if x.isalpha()), *words[:150]]
    tokenizer = tokenize.Tokenizer({token: at for at, token in enumerate(vocab)})
    config = bert.Config(
        vocab_size=tokenizer.vocab_size, hidden_size=24, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=40, max_position_embeddings=96,
    )  # fmt: skip
    params = bert.init(config, random.key(5))
    bert.save(tree.map(lambda x: 3 * x if x.ndim == 2 else x, params), folder)
    tokenizer.save(folder)


def run(command: str, line: str, *more: str) -> int:
    """Run a command in this process, as it would run in one of its own."""
    return cli.main([command, *shlex.split(line), *shlex.split(SMALL[command]), *more])


def contents(folder: Path) -> dict[str, Any]:
    """All that a run leaves, but for the time it took."""
    found: dict[str, Any] = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "log.jsonl"
    }
    if (folder / "log.jsonl").exists():
        rows = train.read_log(folder)
        found["log.jsonl"] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return found


SHOWN: dict[tuple[str, str], tuple[str, str]] = {}  # what each line wrote, standard error apart


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all lines have run, one after the other, without interruption."""
    folder = tmp_path_factory.mktemp("programs")
    for name, (source, own) in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(published(source, own), encoding="utf-8")
    (folder / "input.txt").write_text("Who was king ? ||| The old one.\nNo.\n\nA king\nand a sea\n")
    make_model(folder / "bert-base-uncased", TEXT + CONTEXT)
    shutil.copy(folder / "bert-base-uncased" / "config.json", folder / "config.json")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in LINES:
            out, err = io.StringIO(), io.StringIO()
            with redirect_stdout(out), redirect_stderr(err):
                assert run(*line) == 0
            SHOWN[line] = (out.getvalue(), err.getvalue())
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def output_of(line: str) -> str:
    words = shlex.split(line)
    return words[words.index("--output_dir") + 1]


def results(output: str, name: str = "eval_results") -> dict[str, float]:
    found = json.loads(Path(output, f"{name}.json").read_text())
    lines = Path(output, f"{name}.txt").read_text().splitlines()
    assert lines == [f"{key} = {found[key]}" for key in sorted(found)]
    return found


def test_the_page_has_a_line_of_every_command() -> None:
    assert {command for command, _ in LINES} == SMALL.keys()
    assert SMALL.keys() == PROGRAMS.keys() - {"pretrain", "rocstories", "wikitext103"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^fnlm (?:glue|squad|swag) .*$", readme, re.MULTILINE) == [
        " ".join(("fnlm", *LINES[0]))
    ]


def test_lines_leave_what_the_page_says() -> None:
    assert results("runs/mrpc").keys() == {"f1", "accuracy", "eval_loss", "global_step", "loss"}
    again = results("runs/mrpc-again")
    assert again == {name: results("runs/mrpc")[name] for name in again} and len(again) == 3
    assert results("runs/squad").keys() == {"exact_match", "f1", "global_step", "loss"}
    assert results("runs/swag").keys() == {"accuracy", "eval_loss", "global_step", "loss"}
    for output in ("runs/lm", "runs/lm-pregenerated"):
        assert results(output, "train_results").keys() == {"global_step", "loss"}
        assert bert.load(output)["heads"].keys() == {"masked_lm", "next_sentence_prediction"}
        assert tokenize.load(output) == tokenize.load("bert-base-uncased")
    answers, n_best, odds = (
        json.loads(Path("runs/squad", f"{name}.json").read_text(encoding="utf-8"))
        for name in ("predictions", "nbest_predictions", "null_odds")
    )
    contexts = json.dumps(json.loads(Path("squad/dev-v1.1.json").read_text(encoding="utf-8")))
    assert answers.keys() == n_best.keys() == odds.keys()
    for name, text in answers.items():
        assert text == n_best[name][0]["text"] and json.dumps(text)[1:-1] in contexts
    assert [row["step"] for row in train.read_log("runs/mrpc")] == [3, 6, 9]
    assert all("valid_loss" in row for row in train.read_log("runs/mrpc"))


@pytest.mark.parametrize("line", LINES, ids=[f"{a}-{len(b)}" for a, b in LINES])
def test_a_command_says_what_it_wrote_and_what_comes_next(line: tuple[str, str]) -> None:
    """On no terminal, nothing else but results: no bar, no control character."""
    out, err = SHOWN[line]
    assert err == "" and "\r" not in out
    last = out.splitlines()[-1]
    made = re.fullmatch(r"(\S+) holds (.+?)(?:; next: (.+))?", last)
    assert made, last
    place = Path(made[1])
    if place.is_dir():
        assert {*made[2].split(", ")} == {path.name for path in place.iterdir()}
    trains = "--do_train" in line[1] or line[0].startswith("lm")
    assert bool(made[3]) == (trains or line[0] == "extract-features")


NEXT = {"glue": "", "squad": "--n_best_size 2", "swag": "",
        "lm": "", "lm-rows": "--num_train_epochs 1", "pretrain-bert": ""}  # fmt: skip


@pytest.mark.parametrize("command", NEXT)
def test_the_next_command_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = next(line for line in LINES if line[0] == command)
    program, *words = shlex.split(SHOWN[line][0].splitlines()[-1].partition("; next: ")[2])
    assert program == "fnlm"
    assert cli.main([*words, *shlex.split(NEXT[command])]) == 0
    if command == "glue":  # it evaluates what was trained, as it was evaluated then
        again = results("runs/mrpc-again")
        assert again.items() <= results("runs/mrpc").items() and capsys.readouterr().out


def test_hidden_states_are_those_of_the_model() -> None:
    params, tokenizer = bert.load("bert-base-uncased"), tokenize.load("bert-base-uncased")
    rows = [json.loads(line) for line in Path("output.jsonl").read_text().splitlines()]
    assert [row["linex_index"] for row in rows] == [0, 1, 2, 3, 4]
    texts = [("Who was king ?", "The old one."), ("No.", None), ("", None), ("A king", None)]
    for row, (first, second) in zip(rows, texts, strict=False):
        encoded = None if second is None else tokenizer.encode(second)
        ids, token_types = tokenizer.join(tokenizer.encode(first), encoded)
        assert [shown["token"] for shown in row["features"]] == tokenizer.ids_to_tokens(ids)
        states = bert.layers(params, torch.tensor(ids), torch.tensor(token_types))
        for at, layer in enumerate((-1, 0)):
            assert {shown["layers"][at]["index"] for shown in row["features"]} == {layer}
            values = torch.tensor([shown["layers"][at]["values"] for shown in row["features"]])
            torch.testing.assert_close(values, states[layer], rtol=0, atol=5e-6)


def interrupt(owner: Any, name: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a function raise KeyboardInterrupt once, at one of its calls."""
    genuine, calls = getattr(owner, name), iter(range(1, 1_000_000))

    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return genuine(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


TRAINING = [line for line in LINES if "--do_train" in line[1] or line[0].startswith("lm")]


@pytest.mark.parametrize("command,line", TRAINING, ids=[f"{a}-{len(b)}" for a, b in TRAINING])
def test_a_run_that_is_cut_ends_with_the_same_numbers(
    command: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between two checkpoints, started again with the same flags."""
    if command == "lm-rows":
        interrupt(corpus, "features", 2, monkeypatch)
    else:
        interrupt(data, "tensors", 7, monkeypatch)
    assert run(command, line, "--output_dir", str(tmp_path)) == 130
    left = {file.name for file in tmp_path.iterdir()}
    assert {"state.safetensors", "epoch_0.npz"} & left, "there was nothing to go on from"
    assert not {"model.safetensors", "epoch_1.npz"} & left
    assert run(command, line, "--output_dir", str(tmp_path)) == 0
    assert contents(tmp_path) == contents(Path(output_of(line)))


def test_hidden_states_go_on_after_a_torn_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command, line), output = LINES[-1], tmp_path / "part" / "made.jsonl"
    output.parent.mkdir()
    monkeypatch.setattr(extract_features, "BATCHES", 1)  # a part of two lines, not of all
    assert run(command, line, "--output_file", str(tmp_path / "whole.jsonl")) == 0
    interrupt(finetune, "length_sorted_batches", 3, monkeypatch)
    assert run(command, line, "--output_file", str(output)) == 130
    (partial,) = output.parent.iterdir()
    assert partial.read_text().count("\n") == 4 and not output.exists()
    with partial.open("a") as file:
        file.write('{"linex_index": 4, "feat')  # as a machine that stops may leave it
    read: list[int] = []
    monkeypatch.setattr(finetune, "predict", read)
    assert run(command, line, "--output_file", str(output)) == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    assert output.read_bytes() == whole and not partial.exists()


def test_a_run_that_is_killed_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """A process of its own, killed by force in the middle."""
    command, line = LINES[0]
    more = ["--num_train_epochs", "30", "--checkpoint_every", "1", "--output_dir"]
    words = [*shlex.split(line), *shlex.split(SMALL["glue"]), *more]
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "fnlm", command, *words, str(cut)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (cut / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -9, "it was over before it could be killed: give it more steps"
    assert len(train.read_log(cut)) < 45
    assert run(command, line, *more, str(cut)) == 0 and run(command, line, *more, str(whole)) == 0
    assert contents(cut) == contents(whole)


def test_a_model_learns_and_a_config_file_says_how(tmp_path: Path) -> None:
    words = ("fine", "good", "old", "sad")
    rows = [(f"the {a} king and the {b} sea", a in words[:2]) for a in words for b in words]
    text = "sentence\tlabel\n" + "".join(f"{row}\t{label:d}\n" for row, label in rows)
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_text(text)
    flags = {
        "task_name": "SST-2", "data_dir": str(tmp_path), "bert_model": "bert-base-uncased",
        "output_dir": str(tmp_path / "run"), "do_train": True, "do_eval": True,
        "learning_rate": 3e-3, "num_train_epochs": 20, "train_batch_size": 4,
        "cache_dir": str(tmp_path / "cache"), "max_seq_length": 32,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text("".join(f"{k}: {json.dumps(v)}\n" for k, v in flags.items()))
    assert cli.main(["glue", "--config", str(tmp_path / "run.yaml")]) == 0
    found = results(str(tmp_path / "run"))
    assert found["accuracy"] == 1 and found["global_step"] == 80
    assert len(list((tmp_path / "cache").iterdir())) == 1, "both files hold the same rows"


def test_squad_2_finds_thresholds(tmp_path: Path) -> None:
    known = json.loads(questions())
    known["data"][0]["paragraphs"][0]["qas"].append(
        {"id": "none", "question": "Who sang?", "answers": [], "is_impossible": True}
    )
    (tmp_path / "v2.json").write_text(json.dumps(known))
    words = (
        f"--predict_file {tmp_path / 'v2.json'} --output_dir {tmp_path} --version_2_with_negative"
    )
    line = f"--do_predict --do_eval --bert_model runs/squad {words}"
    assert run("squad", line, "--null_score_diff_threshold", "-1000") == 0
    found = results(str(tmp_path))
    answers = json.loads((tmp_path / "predictions.json").read_text())
    assert (
        set(answers.values()) == {""}
        and found["NoAns_exact"] == 100
        and found["total"] == len(ASKED) + 1
    )
    assert found["HasAns_exact"] == 0 and "best_f1_thresh" in found


def test_a_regression_and_a_third_class_get_heads_that_fit(tmp_path: Path) -> None:
    header = "\t".join(["sentence1", "sentence2"])
    for name, column, labels in (
        ("STS-B", "score", ("0.5", "4.25", "1.0")),
        ("MNLI", "gold_label", ("neutral", "entailment", "contradiction")),
    ):
        rows = [f"{a}\t{b}\t{c}\n" for (a, b, _), c in zip(PAIRS, labels * 2, strict=True)]
        for split in ("train", "dev", "dev_mismatched"):
            file = (
                tmp_path
                / name
                / (glue.file_name("MNLI", split) if name == "MNLI" else f"{split}.tsv")
            )
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{header}\t{column}\n" + "".join(rows))
        line = f"--task_name {name} --do_train --do_eval --bert_model runs/mrpc"
        output = tmp_path / f"{name}-run"
        words = ("--data_dir", str(tmp_path / name), "--output_dir", str(output))
        assert run("glue", line, *words) == 0
        weight = bert.load(output)["heads"]["sequence_classification"]["weight"]
        assert weight.shape == (24, 1 if name == "STS-B" else 3)
    assert results(str(tmp_path / "STS-B-run")).keys() >= {"pearson", "spearman"}
    assert results(str(tmp_path / "MNLI-run")).keys() >= {"accuracy", "mismatched_accuracy"}


UNANSWERED = {"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "7", "question": "b"}]}]}]}
TRAIN_GLUE = "--task_name MRPC --do_train --bert_model bert-base-uncased --output_dir wrong"
TRAIN_SQUAD = "--do_train --bert_model bert-base-uncased --output_dir wrong"
RUN = f"{LINES[0][1]} {SMALL['glue']}"
TUNE = "--bert_model bert-base-uncased --output_dir wrong"
MISTAKES = {
    "a missing file": ("glue", f"{TRAIN_GLUE} --data_dir no/such", "'no/such/train.tsv'"),
    "wrong columns": ("glue", f"{TRAIN_GLUE} --data_dir columns",
                      "columns/train.tsv, line 1: no column '#1 String'"),
    "no such task": ("glue", f"{TRAIN_GLUE} --data_dir columns --task_name POS", "'POS'"),
    "nothing to do": ("glue", "--task_name MRPC --bert_model x --output_dir wrong --data_dir y",
                      "--do_train, --do_eval or both"),
    "nothing to answer": ("squad", "--bert_model x --output_dir wrong", "--do_train, --do_predict"),
    "no file": ("squad", TRAIN_SQUAD, "--train_file"),
    "no answers to learn": ("squad", f"{TRAIN_SQUAD} --train_file unanswered.json",
                            "qas[0] (id '7') has no answers"),
    "no answers to compare": ("squad", "--bert_model runs/squad --output_dir wrong --do_eval "
                              "--predict_file unanswered.json", "question '7' has no answers"),
    "no JSON": ("squad", f"{TRAIN_SQUAD} --train_file text.txt", "text.txt, line 1"),
    "another family": ("glue", f"{TRAIN_GLUE} --data_dir glue/MRPC --bert_model other",
                       "is of family 'gpt2', not 'bert'"),
    "no such model": ("swag", "--do_train --data_dir swag --output_dir wrong --bert_model ./none",
                      "'./none'"),
    "no head": ("swag", "--do_eval --data_dir swag --output_dir wrong --bert_model "
                "bert-base-uncased", "no head multiple_choice"),
    "other labels": ("glue", "--task_name MNLI --do_eval --data_dir mnli --output_dir wrong "
                     "--bert_model runs/mrpc", "MNLI"),
    "other settings": ("glue", f"{RUN} --learning_rate 0.5", "other learning_rate: give"),
    "parts": ("glue", f"{RUN} --gradient_accumulation_steps 3", "multiple of"),
    "one document": ("lm", f"--train_corpus one.txt {TUNE}", "has 1 documents"),
    "other rows": ("lm-rows", f"--train_corpus text.txt {TUNE} --output_dir rows --seed 1 "
                   "--max_seq_length 48",
                   "rows holds rows with other seed"),
    "no rows": ("lm", f"--pregenerated_data glue {TUNE}", "glue/rows.json"),
    "another vocabulary": ("lm", f"--pregenerated_data strange {TUNE}", "another vocabulary"),
    "a text and rows": ("lm", f"--train_corpus text.txt --pregenerated_data rows {TUNE}",
                        "one of them"),
    "no model to pretrain": ("pretrain-bert", "--do_train --pregenerated_data rows --output_dir "
                             "wrong", "--bert_config_file for a new model, or --init_checkpoint"),
    "two models": ("pretrain-bert", "--do_train --pregenerated_data rows --output_dir wrong "
                   "--bert_config_file config.json --init_checkpoint bert-base-uncased",
                   "--bert_config_file for a new model, or --init_checkpoint"),
    "a new model to evaluate": ("pretrain-bert", "--do_eval --pregenerated_data rows --output_dir "
                                "wrong --bert_config_file config.json", "is to be trained"),
    "a model for other rows": ("pretrain-bert", "--do_train --pregenerated_data rows --output_dir "
                               "wrong --bert_config_file narrow.json",
                               "narrow.json: the vocabulary has"),
    "warm-up without end": ("pretrain-bert", "--do_train --pregenerated_data rows --output_dir "
                            "wrong --bert_config_file config.json --num_train_steps 100",
                            "--num_warmup_steps 10000 must be"),
    "nothing to pretrain on": ("pretrain-bert", "--do_train --output_dir wrong --bert_config_file "
                               "config.json", "no rows: give --pregenerated_data"),
    "no such layer": ("extract-features", "--input_file input.txt --output_file x --bert_model "
                      "bert-base-uncased --layers=-9", "from -2 to 1"),
    "no input": ("extract-features", "--input_file no.txt --output_file x --bert_model "
                 "bert-base-uncased --layers=0", "no.txt"),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong(folder: Path) -> None:
    """What the mistakes name."""
    for name in ("columns", "strange", "mnli"):
        (folder / name).mkdir()
    (folder / "columns" / "train.tsv").write_text("label\ttext\n1\tIt rains.\n")
    (folder / "unanswered.json").write_text(json.dumps(UNANSWERED))
    (folder / "one.txt").write_text("It rains.\nThe sea is red.\n")
    (folder / "narrow.json").write_text(json.dumps({"vocab_size": 9}))
    (folder / "strange" / "rows.json").write_text(json.dumps({"vocabulary": "0"}))
    for name in ("dev_matched.tsv", "dev_mismatched.tsv"):
        rows = "sentence1\tsentence2\tgold_label\na\tb\tneutral\n"
        (folder / "mnli" / name).write_text(rows)
    config = gpt2.Config(vocab_size=9, n_positions=8, n_embd=12, n_layer=1, n_head=2)
    gpt2.save(gpt2.init(config, random.key(0)), folder / "other")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name: str, wrong: None, capsys: pytest.CaptureFixture[str]) -> None:
    command, line, fragment = MISTAKES[name]
    assert cli.main([command, *shlex.split(line)]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"fnlm {command}: ") and fragment in shown.err
    assert shown.err.count("\n") == 1 and not shown.out
    assert not Path("wrong", "run.json").exists()
