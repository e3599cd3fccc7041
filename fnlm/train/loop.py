"""The loop of a run that may be killed at any time: the one place where training meets the disk."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from fnlm.train.state import CarryState, Metrics, TrainState, load_state, save_state

__all__ = ["fit", "read_log"]

Log = list[dict[str, float]]
S = TypeVar("S", TrainState, CarryState)


def fit(
    step: Callable[..., tuple[S, Metrics]],
    state: S,
    batch_at: Callable[[int], tuple[Any, ...]],
    *,
    steps: int,
    directory: str | Path,
    evaluate: Callable[[S], float] | None = None,
    evaluate_every: int,
    on_best: Callable[[S], None] = lambda state: None,
    patience: int | None = None,
) -> S:
    """Make steps until `steps` are done; every `evaluate_every` of them evaluate and write.

    A run that was killed and is started again with the same arguments goes on from what it wrote
    last, and ends with the same numbers, because a batch is a function of the step.

    Args:
        step: from `train_step` or `carry_step`; it may donate.
        state: from `init_state`; replaced by that in the directory where there is one.
        batch_at: the batch of a step, as the arguments of `step` after the state.
        steps: how many in all.
        directory: gets `state.safetensors` and `log.jsonl`, a line an evaluation. What a killed
            run left half written (`*.safetensors.*.part`) is removed.
        evaluate: a validation loss: lower is better. Without it only the state and the mean
            training loss are written.
        evaluate_every: steps between evaluations; the last step is always one.
        on_best: called with each state that is better than all before.
        patience: stop after so many evaluations without a better one.

    Returns:
        the last state.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for half_written in directory.glob("*.safetensors.*.part"):
        half_written.unlink()
    state_path = directory / "state.safetensors"
    log: Log = []
    if state_path.exists():
        state = load_state(state_path, like=state)
        log = [row for row in read_log(directory) if row["step"] <= int(state.step)]
    bar = tqdm(total=steps, initial=int(state.step), unit="step")
    losses, began = [], time.monotonic()
    while (done := int(state.step)) < steps and not _is_over(log, patience):
        state, metrics = step(state, *batch_at(done))
        losses.append(float(metrics.loss))
        bar.update()
        if (done + 1) % evaluate_every and done + 1 != steps:
            continue
        row = {"step": done + 1, "train_loss": sum(losses) / len(losses)}
        if evaluate is not None:
            row["valid_loss"] = evaluate(state)
            if row["valid_loss"] < min(_losses(log), default=math.inf):
                on_best(state)
        row["seconds"] = time.monotonic() - began
        log.append(row)
        _write_log(directory, log)
        save_state(state, state_path)
        bar.set_postfix({name: f"{row[name]:.3f}" for name in row if name.endswith("loss")})
        losses, began = [], time.monotonic()
    bar.close()
    return state


def read_log(directory: str | Path) -> Log:
    """Read the evaluations of a run: step, train_loss, valid_loss, seconds since the one before."""
    text = (Path(directory) / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _write_log(directory: Path, log: Log) -> None:
    partial = directory / "log.jsonl.partial"
    partial.write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
    partial.replace(directory / "log.jsonl")


def _losses(log: Log) -> list[float]:
    return [row["valid_loss"] for row in log if "valid_loss" in row]


def _is_over(log: Log, patience: int | None) -> bool:
    """Say whether the best loss is more than `patience` evaluations old."""
    losses = _losses(log)
    if patience is None or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience
