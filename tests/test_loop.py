"""The training loop: killed anywhere and started again, it ends with the same numbers."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT

from fnlm import gpt2, random, train, tree


def quadratic(params: Any, target: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    noise = random.normal(key, (3,))  # randomness that a resumed run must repeat
    return ((params["w"] - target + 0.1 * noise) ** 2).sum()


OPTIMIZER = train.adamw(0.05)


def run(directory: Path, steps: int = 20, **options: Any) -> train.TrainState:
    start = train.init_state({"w": torch.zeros(3)}, OPTIMIZER, random.key(1))
    settings: dict[str, Any] = {
        "evaluate": lambda state: float((state.params["w"] - 1).square().sum()),
        "evaluate_every": 4,
    }
    return train.fit(
        train.train_step(quadratic, OPTIMIZER, donate=True),
        start,
        lambda step: (random.normal(random.fold_in(random.key(2), step), (3,)) * 0.1 + 1,),
        steps=steps,
        directory=directory,
        **(settings | options),
    )


def without_time(directory: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in r.items() if k != "seconds"} for r in train.read_log(directory)]


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_numbers(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")

    def killed(step: int) -> tuple[torch.Tensor]:
        if step == 14:
            raise KeyboardInterrupt
        return (random.normal(random.fold_in(random.key(2), step), (3,)) * 0.1 + 1,)

    with pytest.raises(KeyboardInterrupt):
        train.fit(
            train.train_step(quadratic, OPTIMIZER, donate=True),
            train.init_state({"w": torch.zeros(3)}, OPTIMIZER, random.key(1)),
            killed,
            steps=20,
            directory=tmp_path / "cut",
            evaluate=lambda state: float((state.params["w"] - 1).square().sum()),
            evaluate_every=4,
        )
    assert [row["step"] for row in train.read_log(tmp_path / "cut")] == [4, 8, 12]
    resumed = run(tmp_path / "cut")
    for a, b in zip(tree.leaves(whole), tree.leaves(resumed), strict=True):
        assert a.equal(b)
    assert without_time(tmp_path / "cut") == without_time(tmp_path / "whole")
    again = run(tmp_path / "cut")  # nothing is left to do
    assert all(a.equal(b) for a, b in zip(tree.leaves(again), tree.leaves(resumed), strict=True))


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    kill = (
        "import os, signal; from fnlm.files._checkpoint import replace; "
        f"replace({str(tmp_path / 'state.safetensors')!r}, "
        "lambda part: (part.write_bytes(b'half'), os.kill(os.getpid(), signal.SIGKILL)))"
    )
    subprocess.run([sys.executable, "-c", kill], cwd=ROOT, check=False)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"half"]
    (tmp_path / ".tmpa1B2c3").touch()  # as safetensors calls what it writes
    run(tmp_path)
    names = {"state.safetensors", "state.step-16.safetensors", "log.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_stops_when_patience_is_over_and_keeps_the_best(tmp_path: Path) -> None:
    scores = iter([3.0, 2.0, 2.5, 2.1, 2.2, 1.0])
    best: list[int] = []
    state = run(
        tmp_path,
        40,
        evaluate=lambda state: next(scores),
        on_best=lambda state: best.append(int(state.step)),
        patience=3,
    )
    assert best == [4, 8] and int(state.step) == 20
    assert int(run(tmp_path, 40, patience=3).step) == 20  # it stays stopped


def test_pretraining_survives_a_kill(tmp_path: Path) -> None:
    """Run as a user runs it, killed by force in the middle, started again with the same flags."""
    rows = [f"The {a} {b} went to the {c}." for a in ("old", "red") for b in ("fox", "king")
            for c in ("wood", "sea", "hill")]  # fmt: skip
    (tmp_path / "text.txt").write_text("\n".join(rows * 12))

    def start(output: str) -> subprocess.Popen[bytes]:
        flags = {
            "train_files": json.dumps([str(tmp_path / "text.txt")]),
            "output": str(tmp_path / output),
            "vocab_size": "280",
            "n_positions": "16",
            "n_embd": "12",
            "n_head": "3",
            "n_layer": "2",
            "steps": "60",
            "warmup_steps": "5",
            "evaluate_every": "4",
        }
        words = [w for name, value in flags.items() for w in (f"--{name}", value)]
        return subprocess.Popen(
            [sys.executable, "-m", "fnlm", "pretrain", *words],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    assert start("whole").wait(120) == 0
    cut = start("cut")
    deadline = time.monotonic() + 120
    while not (tmp_path / "cut" / "state.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    cut.kill()
    assert cut.wait() != 0, "the run was over before it could be killed: give it more steps"
    assert len(train.read_log(tmp_path / "cut")) < 15
    assert start("cut").wait(120) == 0
    assert without_time(tmp_path / "cut") == without_time(tmp_path / "whole")
    for name in ("model.safetensors", "vocab.json", "state.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert (tmp_path / "cut" / "loss.png").stat().st_size > 1000
    log = train.read_log(tmp_path / "cut")
    assert log[-1]["valid_loss"] < log[0]["valid_loss"]
    assert gpt2.load(tmp_path / "cut")["config"].n_layer == 2
