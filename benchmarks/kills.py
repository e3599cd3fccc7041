"""Kill trainings at random moments and start them again: do the files at the end stay the same?

    python benchmarks/kills.py --kills 50

Small models are trained by `fnlm pretrain`, `fnlm glue`, `fnlm squad` and `fnlm wikitext103`, each
once without a kill, and in other directories with one kill -9 each: one in four at a moment between
start and first state, the others at a moment between first state and end, as the run without a kill
took. Data and models are made by the script.
"""

import csv
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import auto_cli

from fnlm import bert, random, train, tree
from fnlm.tokenize import bert as tokenize

PLACES = [f"The {a} {b} went to the {c}." for a in ("old", "red") for b in ("fox", "king")
          for c in ("wood", "sea", "hill")]  # fmt: skip
BERT = "--do_train --bert_model model --checkpoint_every 2 --train_batch_size 4"
# Command -> its flags, the last one that of its directory; texts are files of the folder.
LINES = {
    "pretrain": "--train_files text.txt --vocab_size 280 --n_positions 16 --n_embd 12 --n_head 3 "
    "--n_layer 2 --steps 60 --warmup_steps 5 --evaluate_every 4 --output",
    "glue": f"--do_eval {BERT} --task_name MRPC --data_dir . --max_seq_length 32 "
    "--num_train_epochs 8 --output_dir",
    "squad": f"--do_predict --do_eval {BERT} --train_file asked.json --predict_file asked.json "
    "--max_seq_length 48 --max_query_length 16 --doc_stride 24 --num_train_epochs 2 --output_dir",
    "wikitext103": "--train_file text.txt --eval_file text.txt --tgt_len 9 --mem_len 12 --d_model "
    "16 --n_layer 2 --n_head 2 --d_inner 20 --min_freq 1 --train_batch_size 3 --batch_size 2 "
    "--steps 60 --checkpoint_every 4 --work_dir",
}
Command = Literal["pretrain", "glue", "squad", "wikitext103"]
ALL: tuple[Command, ...] = ("pretrain", "glue", "squad", "wikitext103")
TIMES = ("seconds", "tokens_per_second")


def make_data(folder: Path) -> None:
    """Write the texts, tasks and the model that the commands read."""
    Path(folder, "text.txt").write_text("\n".join(PLACES * 12))
    for split in ("train", "dev"):
        with Path(folder, f"{split}.tsv").open("w", newline="") as file:
            rows = csv.writer(file, delimiter="\t")
            rows.writerow(["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"])
            for at, text in enumerate(PLACES):
                rows.writerow([at % 2, at, at, text, PLACES[at - at % 2]])
    context = " ".join(PLACES)
    asked = [
        {"id": str(at), "question": f"Who went to the {text.split()[-1][:-1]}?",
         "answers": [{"text": " ".join(text.split()[:3]), "answer_start": context.index(text)}]}
        for at, text in enumerate(PLACES)
    ]  # fmt: skip
    data = {"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}
    Path(folder, "asked.json").write_text(json.dumps(data))
    words = sorted(set(re.findall(r"[a-z]+|[^a-z ]", f"{context} who ?".lower())))
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    config = bert.Config(
        vocab_size=len(vocab), hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=40, max_position_embeddings=64,
    )  # fmt: skip
    params = bert.init(config, random.key(5))
    bert.save(tree.map(lambda x: 3 * x if x.ndim == 2 else x, params), folder / "model")
    tokenize.Tokenizer({token: at for at, token in enumerate(vocab)}).save(folder / "model")


def start(command: str, output: Path) -> subprocess.Popen[bytes]:
    """Start a command, in the folder of its data."""
    return subprocess.Popen(
        [sys.executable, "-m", "fnlm", command, *shlex.split(LINES[command]), output.name],
        cwd=output.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_state(process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until a run has saved its first state, or is over."""
    while not (output / "state.safetensors").exists() and process.poll() is None:
        time.sleep(0.002)


def contents(output: Path) -> dict[str, object]:
    """Return what a run left, but for the seconds that it took."""
    files = [path for path in output.rglob("*") if path.is_file()]
    found: dict[str, object] = {path.name: path.read_bytes() for path in files}
    numbers = {f"row {i}": row for i, row in enumerate(train.read_log(output))}
    if (output / "eval_results.json").exists():
        numbers["results"] = json.loads((output / "eval_results.json").read_text())
    for name in ("log.jsonl", "eval_results.json", "eval_results.txt"):
        found.pop(name, None)
    return found | {
        n: {k: x for k, x in row.items() if k not in TIMES} for n, row in numbers.items()
    }


def kill(command: str, folder: Path, moments: list[float]) -> None:
    """Kill runs of a command at moments from 0 to 1, and compare their files."""
    counts = {"same files": 0, "killed before the first state": 0, "over before": 0}
    whole = folder / f"{command}-whole"
    began, process = time.monotonic(), start(command, whole)
    wait_for_state(process, whole)
    first = time.monotonic() - began
    if process.wait():
        raise SystemExit(f"the run of {command} without a kill failed")
    seconds, wanted = time.monotonic() - began, contents(whole)
    for i, moment in enumerate(moments):
        output = folder / f"{command}-{i}"
        process = start(command, output)
        if i % 4:
            wait_for_state(process, output)
        time.sleep(moment * (seconds - first if i % 4 else first))
        process.send_signal(signal.SIGKILL)
        counts["over before"] += process.wait() == 0
        counts["killed before the first state"] += not (output / "state.safetensors").exists()
        if start(command, output).wait() or contents(output) != wanted:
            raise SystemExit(
                f"run {i} of {command}, killed at moment {moment:.2f}, ended otherwise: {output}"
            )
        counts["same files"] += 1
    print(f"{command}: {len(moments)} kills over {seconds:.1f} s: {counts}", flush=True)


def main(kills: int = 50, seed: int = 0, commands: tuple[Command, ...] = ALL) -> None:
    """Kill runs, and compare their files.

    Args:
        kills: how many runs of each command are killed.
        seed: of the moments.
        commands: those that are tried.
    """
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder))
        for command in commands:
            kill(command, Path(folder), torch.rand(kills, generator=generator).tolist())


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
