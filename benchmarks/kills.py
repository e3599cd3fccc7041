"""Kill a pretraining at random moments and start it again: do the files at the end stay the same?

    python benchmarks/kills.py --kills 50

A small GPT-2 is pretrained by `fnlm pretrain` once without a kill, and in other
directories with one kill -9 each: one in four at a moment between start and first state, the others
at a moment between first state and end, as the run without a kill took.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli

from fnlm import train

SIZES = {"vocab_size": 280, "n_positions": 16, "n_embd": 12, "n_head": 3, "n_layer": 2, "steps": 60,
         "warmup_steps": 5, "evaluate_every": 4}  # fmt: skip


def start(text: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start the program."""
    flags = {**SIZES, "train_files": json.dumps([str(text)]), "output": str(output)}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return subprocess.Popen(
        [sys.executable, "-m", "fnlm", "pretrain", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for_state(process: subprocess.Popen[bytes], output: Path) -> None:
    """Wait until a run has saved its first state, or is over."""
    while not (output / "state.safetensors").exists() and process.poll() is None:
        time.sleep(0.002)


def contents(output: Path) -> dict[str, object]:
    """Return what a run left, but for the seconds that it took."""
    found: dict[str, object] = {path.name: path.read_bytes() for path in output.iterdir()}
    rows = train.read_log(output)
    return found | {"log.jsonl": [{k: v for k, v in r.items() if k != "seconds"} for r in rows]}


def main(kills: int = 50, seed: int = 0) -> None:
    """Kill runs, and compare their files.

    Args:
        kills: how many runs are killed.
        seed: of the moments.
    """
    counts = {"same files": 0, "killed before the first state": 0, "over before": 0}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        rows = [f"The {a} {b} went to the {c}." for a in ("old", "red") for b in ("fox", "king")
                for c in ("wood", "sea", "hill")]  # fmt: skip
        text.write_text("\n".join(rows * 12))
        began, process = time.monotonic(), start(text, Path(folder, "whole"))
        wait_for_state(process, Path(folder, "whole"))
        first = time.monotonic() - began
        if process.wait():
            raise SystemExit("the run without a kill failed")
        seconds, whole = time.monotonic() - began, contents(Path(folder, "whole"))
        moments = torch.rand(kills, generator=torch.Generator().manual_seed(seed))
        for i, moment in enumerate(moments.tolist()):
            output = Path(folder, f"run-{i}")
            process = start(text, output)
            if i % 4:
                wait_for_state(process, output)
            time.sleep(moment * (seconds - first if i % 4 else first))
            process.send_signal(signal.SIGKILL)
            counts["over before"] += process.wait() == 0
            counts["killed before the first state"] += not (output / "state.safetensors").exists()
            if start(text, output).wait() or contents(output) != whole:
                raise SystemExit(
                    f"run {i}, killed at moment {moment:.2f}, ended otherwise: {output}"
                )
            counts["same files"] += 1
    print(f"{kills} kills over {seconds:.1f} s: {counts}")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
