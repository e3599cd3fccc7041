"""A preemption-safe training loop: it writes checkpoints and resumes from them."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from fnlm import tree
from fnlm.files.checkpoint import half_written, replace
from fnlm.train.state import load_state, save_state
from fnlm.train.step import CarryState, Metrics, TrainState

__all__ = ["fit", "read_log"]

STATE, LOG = "state.safetensors", "log.jsonl"
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
    """Train up to step `steps`, with an evaluation and a checkpoint every `evaluate_every` steps.

    An interrupted run that is started again with the same arguments resumes from its last
    checkpoint and ends with the same numbers, because a batch is a function of the step.

    Args:
        step: from `train_step` or `carry_step`; it may donate.
        state: from `init_state`; replaced by the checkpoint in the directory if there is one.
        batch_at: returns the batch of a step, the arguments of `step` after the state.
        steps: total number of steps.
        directory: for `state.safetensors` and `log.jsonl`, one line per evaluation. Incomplete
            files of an interrupted run (`NAME.*.part`) are removed.
        evaluate: returns a validation loss, lower is better. If None, only the state and the mean
            training loss are written.
        evaluate_every: steps between evaluations, at least 1; the last step always has one.
        on_best: called with each state whose validation loss is the lowest so far.
        patience: number of evaluations without improvement after which to stop, at least 1.

    Returns:
        the last state.

    Raises:
        ValueError: a number is out of range; a loss or a parameter is NaN or infinite, and the
            directory keeps the last good state; or a file there is damaged.
        OSError: another run uses the directory, its log is missing, or the disk is full.
    """
    _check_range(steps, evaluate_every, patience)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _lock(directory):
        for part in half_written(directory):
            part.unlink()
        state, log = _resume(directory, state)
        bar = tqdm(total=steps, initial=int(state.step), unit="step")
        losses, start = [], time.monotonic()
        while (done := int(state.step)) < steps and not _should_stop(log, patience):
            state, metrics = step(state, *batch_at(done))
            losses.append(float(metrics.loss))
            if not math.isfinite(losses[-1]):
                raise _divergence_error(f"the loss of step {done + 1}", losses[-1], directory)
            bar.update()
            if (done + 1) % evaluate_every and done + 1 != steps:
                continue
            _check_state(state, directory)
            row = {"step": done + 1, "train_loss": sum(losses) / len(losses)}
            if evaluate is not None:
                row["valid_loss"] = evaluate(state)
                if math.isnan(row["valid_loss"]):
                    raise _divergence_error("what `evaluate` returned", math.nan, directory)
                if row["valid_loss"] < min(_valid_losses(log), default=math.inf):
                    on_best(state)
            row["seconds"] = time.monotonic() - start
            # The state last: a run killed in between repeats this evaluation, and `_resume` drops
            # the rows of the log beyond the step of the state.
            log.append(row)
            _write_log(directory, log)
            save_state(state, directory / STATE)
            bar.set_postfix({name: f"{row[name]:.3f}" for name in row if name.endswith("loss")})
            losses, start = [], time.monotonic()
        bar.close()
        return state


def read_log(directory: str | Path) -> Log:
    """Read the log of a run, a row per evaluation: step, train_loss, valid_loss and seconds.

    `seconds` is the time since the evaluation before.

    Raises:
        FileNotFoundError: there is no log.
        ValueError: it is damaged; the message names the file and the line.
    """
    path, log = Path(directory) / LOG, []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):  # invalid UTF-8 raises a ValueError, too
            row = None
        if not isinstance(row, dict) or not _is_row(row):
            raise ValueError(
                f"{path}, line {number}: {line[:60]!r} is no evaluation, such as "
                '{"step": 200, "train_loss": 1.5}; remove the line to go on without it'
            )
        log.append(row)
    return log


def _is_row(row: dict[str, Any]) -> bool:
    """Return whether a row has a step and a training loss, and all its values are numbers."""
    numbers = [isinstance(x, int | float) and not isinstance(x, bool) for x in row.values()]
    return all(numbers) and isinstance(row.get("step"), int) and "train_loss" in row


def _write_log(directory: Path, log: Log) -> None:
    text = "".join(json.dumps(row) + "\n" for row in log)
    replace(directory / LOG, lambda part: part.write_text(text, encoding="utf-8"))


def _resume(directory: Path, state: S) -> tuple[S, Log]:
    """Return the checkpoint of a directory and its log, or `state` and an empty log."""
    if not (directory / STATE).exists():
        return state, []
    state = load_state(directory / STATE, like=state)
    if not (directory / LOG).exists():
        raise FileNotFoundError(
            f"{directory / LOG} is missing, without which nobody knows which state was the best; "
            "put it back, or an empty file, to go on as if there had been no evaluation"
        )
    return state, [row for row in read_log(directory) if row["step"] <= int(state.step)]


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold an exclusive lock on a directory; the system releases it when the process ends."""
    if sys.platform == "win32":
        yield  # it has no such lock for directories
        return
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another run is at work in {directory}: wait for it, or give another directory"
            ) from error
        except OSError:  # a file system without locks, as some network file systems
            pass
        yield
    finally:
        os.close(handle)


def _check_range(steps: int, evaluate_every: int, patience: int | None) -> None:
    least = {"steps": (steps, 0), "evaluate_every": (evaluate_every, 1), "patience": (patience, 1)}
    for name, (value, limit) in least.items():
        if value is not None and value < limit:
            raise ValueError(f"{name} must be at least {limit}, got {value}")


def _divergence_error(what: str, value: float, directory: Path) -> ValueError:
    return ValueError(
        f"{what} is {value}: the run has diverged. {directory / STATE} is the last good state, if "
        "there is one: go on from it with a lower learning rate or with clipped gradients"
    )


def _check_state(state: TrainState | CarryState, directory: Path) -> None:
    """Raise if a parameter is NaN or infinite, before it overwrites a good checkpoint."""
    params = (state.train if isinstance(state, CarryState) else state).params
    for path, leaf in tree.named_leaves(params):
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            value = float(leaf[~torch.isfinite(leaf)][0])
            raise _divergence_error(f"a number of params.{path}", value, directory)


def _valid_losses(log: Log) -> list[float]:
    return [row["valid_loss"] for row in log if "valid_loss" in row]


def _should_stop(log: Log, patience: int | None) -> bool:
    """Return whether the last `patience` evaluations brought no improvement (early stopping)."""
    losses = _valid_losses(log)
    if patience is None or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience
