"""Commands that train on two processes end with the numbers of one, and leave the same files.

They run on small files with small random models. `programs_rank.py` is one of the processes.
"""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import NO_SOCKETS, ROOT
from safetensors.torch import load_file
from test_programs_bert import CONTEXT, TEXT, choices, make_model, pairs, questions
from test_programs_causal import ROWS, csv_of, letters, make_gpt
from test_programs_causal import TEXT as WORDS

from fnlm import cli, train

pytestmark = pytest.mark.skipif(NO_SOCKETS, reason="processes meet by sockets on this machine")

SECONDS = 300
RUN = "--do_train --do_eval --bert_model model --checkpoint_every 2"
PRETRAIN = (
    "pretrain --train_files text.txt --vocab_size 270 --n_positions 16 --n_embd 12 --n_head 3 "
    "--n_layer 2 --steps 4 --warmup_steps 1 --evaluate_every 2 --batch_size 4 --learning_rate 1e-3"
)
# Name -> the command, and the flag of its directory; every plan is tried, and micro-batches.
LINES = {
    "glue": f"glue --task_name MRPC --data_dir MRPC {RUN} --max_seq_length 32 --train_batch_size 4 "
    "--gradient_accumulation_steps 2 --eval_batch_size 4 --num_train_epochs 2 --output_dir",
    "squad": "squad --do_train --do_predict --do_eval --train_file squad.json --predict_file "
    "squad.json --bert_model model --max_seq_length 64 --max_query_length 16 --train_batch_size 4 "
    "--checkpoint_every 2 --num_train_epochs 0.8 --plan shard --output_dir",
    "swag": f"swag --data_dir swag {RUN} --train_batch_size 4 --plan tensor "
    "--num_train_epochs 0.5 --output_dir",
    "lm": "lm --train_corpus text.txt --bert_model model --max_seq_length 32 --num_train_epochs "
    "0.2 --train_batch_size 4 --checkpoint_every 2 --plan shard --output_dir",
    "rocstories": "rocstories --do_train --do_eval --model_name gpt --train_dataset train.csv "
    "--eval_dataset valid.csv --train_batch_size 4 --checkpoint_every 2 --num_train_epochs 1 "
    "--plan shard --output_dir",
    "pretrain-bert": "pretrain-bert --do_train --do_eval --pregenerated_data rows "
    "--bert_config_file model/config.json --num_train_steps 4 --num_warmup_steps 1 "
    "--train_batch_size 4 --save_checkpoints_steps 2 --max_eval_steps 3 --eval_batch_size 2 "
    "--output_dir",
    "wikitext103": "wikitext103 --train_file words.txt --eval_file words.txt --tgt_len 9 "
    "--mem_len 12 --d_model 16 --n_layer 2 --n_head 2 --d_inner 20 --min_freq 1 "
    "--train_batch_size 4 --batch_size 2 --steps 5 --checkpoint_every 2 --plan shard --work_dir",
    "pretrain": f"{PRETRAIN} --output",
    "pretrain-tensor": f"{PRETRAIN} --plan tensor --output",
    "pretrain-shard": f"{PRETRAIN} --plan shard --dropout 0.3 --output",
}  # fmt: skip
TIMES = ("seconds", "tokens_per_second")


def start(commands: Sequence[Sequence[str]], size: int = 2) -> list[subprocess.Popen[str]]:
    """Start the processes that run commands together, in this directory."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in commands]
    ports = [str(server.getsockname()[1]) for server in held]
    for server in held:
        server.close()
    script = str(ROOT / "tests" / "programs_rank.py")
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), json.dumps(commands), *ports],
            env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def together(*lines: str, size: int = 2) -> list[list[list[Any]]]:
    """Run commands: for each process and command its exit code and what it wrote."""
    processes = start([shlex.split(line) for line in lines], size)
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, err
            found.append(json.loads(out))
    finally:
        for process in processes:
            process.kill()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all lines have run in one process, and in two."""
    folder = tmp_path_factory.mktemp("ranks")
    files = {
        "MRPC/train.tsv": pairs(), "MRPC/dev.tsv": pairs(), "squad.json": questions(),
        "swag/train.csv": choices(20), "swag/val.csv": choices(9), "text.txt": TEXT,
        "words.txt": WORDS, "train.csv": csv_of(ROWS * 4), "valid.csv": csv_of(ROWS),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    make_model(folder / "model", TEXT + CONTEXT)
    make_gpt(folder / "gpt", letters().vocab_size)
    before = Path.cwd()
    os.chdir(folder)
    try:
        rows = "lm-rows --train_corpus text.txt --bert_model model --output_dir rows"
        assert cli.main(shlex.split(f"{rows} --max_seq_length 32 --epochs_to_generate 1")) == 0
        for name, line in LINES.items():
            assert cli.main([*shlex.split(line), f"one/{name}"]) == 0
        found = together(*(f"{line} two/{name}" for name, line in LINES.items()))
    finally:
        os.chdir(before)
    (folder / "said.json").write_text(json.dumps(found))
    return folder


@pytest.fixture(autouse=True)
def inside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's log, and its results, without times."""
    found: list[dict[str, Any]] = [*train.read_log(folder)]
    for path in folder.glob("*_results.json"):
        found.append(json.loads(path.read_text()))
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def assert_same(one: Path, two: Path) -> None:
    """Two runs have left the same numbers and files."""
    for a, b in zip(numbers(one), numbers(two), strict=True):
        assert a == pytest.approx(b, rel=1e-6, abs=1e-7)
    assert (one / "run.json").read_bytes() == (two / "run.json").read_bytes()
    a, b = (load_file(path / "state.safetensors") for path in (one, two))
    assert a.keys() == b.keys()
    for name, x in a.items():
        torch.testing.assert_close(b[name], x, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.parametrize("name", LINES)
def test_two_processes_are_as_one(name: str) -> None:
    first, second = (
        said[list(LINES).index(name)] for said in json.loads(Path("said.json").read_text())
    )
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert second[1:] == ["", ""] and first[2] == "" and f"two/{name} holds " in first[1]
    one, two = Path("one", name), Path("two", name)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}
    assert_same(one, two)
    if name == "squad":
        for path in one.glob("predictions.json"):
            assert path.read_bytes() == (two / path.name).read_bytes()


@pytest.mark.parametrize("name, size", [("squad", 1), ("pretrain", 2), ("wikitext103", 1)])
def test_any_number_of_processes_goes_on(name: str, size: int, tmp_path: Path) -> None:
    """From the checkpoint before the last one of two processes, or of one."""
    there = tmp_path / "run"
    shutil.copytree(Path("two" if size == 1 else "one", name), there)
    (former,) = there.glob("state.step-*.safetensors")
    shutil.copy(former, there / "state.safetensors")
    line = f"{LINES[name]} {there}"
    if size == 1:
        assert cli.main(shlex.split(line)) == 0
    else:
        assert [said[0][0] for said in together(f"{line} --plan shard")] == [0, 0]
    assert_same(Path("one", name), there)


def test_half_precision_is_near_that_of_one_process(tmp_path: Path) -> None:
    """Sums over processes are in half precision there, and of scaled gradients in float16."""
    kinds = {"bfloat16": "replicate", "float16": "shard"}
    how = "--optimize_on_cpu --dtype"
    lines = [
        f"{LINES['pretrain']} {tmp_path}/two-{dtype} {how} {dtype} --plan {plan}"
        for dtype, plan in kinds.items()
    ]
    assert [said[0] for both in together(*lines) for said in both] == [0] * 4
    for dtype in kinds:
        line = f"{LINES['pretrain']} {tmp_path}/one-{dtype} {how} {dtype}"
        assert cli.main(shlex.split(line)) == 0
        one, two = numbers(tmp_path / f"one-{dtype}"), numbers(tmp_path / f"two-{dtype}")
        for a, b in zip(one, two, strict=True):
            assert a == pytest.approx(b, rel=2e-3)


def test_errors_are_said_once(tmp_path: Path) -> None:
    """By the first process, whichever reads the file; a command that does not train is alone."""
    lines = (
        f"{LINES['glue']} {tmp_path}/a --data_dir none",
        f"{LINES['glue']} {tmp_path}/b --train_batch_size 3 --gradient_accumulation_steps 1",
        "lm-rows --train_corpus text.txt --bert_model model --output_dir rows-2",
        f"{LINES['glue']} {tmp_path}/c --local_rank 0",
    )
    first, second = together(*lines)
    assert [said[0] for said in first + second] == [2] * 8
    assert "none" in first[0][2] and second[0][2] == ""
    wanted = "a batch of 3 rows must be a multiple of 2 processes: give another size"
    assert wanted in first[1][2] and "fnlm glue (process 1): " in second[1][2]
    assert "this command is one process, and torchrun has started 2" in first[2][2]
    assert "there is no --local_rank: leave it out, as torchrun sets it" in first[3][2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_ends_ends_the_others(number: int, tmp_path: Path) -> None:
    """After a signal that can be heeded, all save; after a kill, the others say so at once."""
    more = ["--steps", "100000", "--output", str(tmp_path / "run")]
    processes = start([[*shlex.split(PRETRAIN), *more]])
    try:
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / "run" / "state.safetensors").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        processes[1].send_signal(number)
        out, _ = processes[0].communicate(timeout=60)
        ((code, _, err),) = json.loads(out)
        if number == signal.SIGTERM:
            assert code == 143 and processes[1].wait(timeout=60) == 0
            assert "SIGTERM: stopped after step" in err
        else:
            assert code == 2 and "another process of this run has ended or hangs" in err
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_torchrun_starts_it(tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fnlm"]
    done = subprocess.run(
        [sys.executable, *words, *shlex.split(LINES["glue"]), str(tmp_path / "run")],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("holds ") == 1
    assert_same(Path("one", "glue"), tmp_path / "run")
