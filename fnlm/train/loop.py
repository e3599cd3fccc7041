"""The loop of a run that may be killed at any time: the one place where training meets the disk."""

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
from fnlm.train.state import CarryState, Metrics, TrainState, load_state, save_state

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
    """Make steps until `steps` are done; every `evaluate_every` of them evaluate and write.

    A run that was killed and is started again with the same arguments goes on from what it wrote
    last, and ends with the same numbers, because a batch is a function of the step.

    Args:
        step: from `train_step` or `carry_step`; it may donate.
        state: from `init_state`; replaced by that in the directory where there is one.
        batch_at: the batch of a step, as the arguments of `step` after the state.
        steps: how many in all.
        directory: gets `state.safetensors` and `log.jsonl`, a line an evaluation. What a killed
            run left half written (`NAME.*.part`) is removed.
        evaluate: a validation loss: lower is better. Without it only the state and the mean
            training loss are written.
        evaluate_every: steps between evaluations, at least 1; the last step is always one.
        on_best: called with each state that is better than all before.
        patience: stop after so many evaluations without a better one, at least 1.

    Returns:
        the last state.

    Raises:
        ValueError: a number is out of range; a loss or a parameter is NaN or infinite, and what the
            directory holds is the last good state; or a file there is damaged.
        OSError: another run is at work in the directory, its log is missing, or the disk is full.
    """
    _check_range(steps, evaluate_every, patience)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with _alone_in(directory):
        for part in half_written(directory):
            part.unlink()
        state, log = _found(directory, state)
        bar = tqdm(total=steps, initial=int(state.step), unit="step")
        losses, began = [], time.monotonic()
        while (done := int(state.step)) < steps and not _is_over(log, patience):
            state, metrics = step(state, *batch_at(done))
            losses.append(float(metrics.loss))
            if not math.isfinite(losses[-1]):
                raise _diverged(f"the loss of step {done + 1}", losses[-1], directory)
            bar.update()
            if (done + 1) % evaluate_every and done + 1 != steps:
                continue
            _check_state(state, directory)
            row = {"step": done + 1, "train_loss": sum(losses) / len(losses)}
            if evaluate is not None:
                row["valid_loss"] = evaluate(state)
                if math.isnan(row["valid_loss"]):
                    raise _diverged("what `evaluate` returned", math.nan, directory)
                if row["valid_loss"] < min(_losses(log), default=math.inf):
                    on_best(state)
            row["seconds"] = time.monotonic() - began
            log.append(row)
            _write_log(directory, log)
            save_state(state, directory / STATE)
            bar.set_postfix({name: f"{row[name]:.3f}" for name in row if name.endswith("loss")})
            losses, began = [], time.monotonic()
        bar.close()
        return state


def read_log(directory: str | Path) -> Log:
    """Read the evaluations of a run: step, train_loss, valid_loss, seconds since the one before.

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
        except (ValueError, RecursionError):  # bytes that are no UTF-8 are ValueErrors, too
            row = None
        if not isinstance(row, dict) or not _is_row(row):
            raise ValueError(
                f"{path}, line {number}: {line[:60]!r} is no evaluation, such as "
                '{"step": 200, "train_loss": 1.5}; remove the line to go on without it'
            )
        log.append(row)
    return log


def _is_row(row: dict[str, Any]) -> bool:
    """Say whether a line has its step, and numbers alone."""
    numbers = [isinstance(x, int | float) and not isinstance(x, bool) for x in row.values()]
    return all(numbers) and isinstance(row.get("step"), int) and "train_loss" in row


def _write_log(directory: Path, log: Log) -> None:
    text = "".join(json.dumps(row) + "\n" for row in log)
    replace(directory / LOG, lambda part: part.write_text(text, encoding="utf-8"))


def _found(directory: Path, state: S) -> tuple[S, Log]:
    """Return the state of a directory and its log, or the given state where it has none yet."""
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
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep other runs out of a directory, until this one ends or is killed."""
    if sys.platform == "win32":
        yield  # no lock that ends with its process and leaves no file
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
        except OSError:  # a file system without locks, as some over a network are
            pass
        yield
    finally:
        os.close(handle)


def _check_range(steps: int, evaluate_every: int, patience: int | None) -> None:
    least = {"steps": (steps, 0), "evaluate_every": (evaluate_every, 1), "patience": (patience, 1)}
    for name, (value, limit) in least.items():
        if value is not None and value < limit:
            raise ValueError(f"{name} must be at least {limit}, got {value}")


def _diverged(what: str, value: float, directory: Path) -> ValueError:
    return ValueError(
        f"{what} is {value}: the run has diverged. {directory / STATE} is the last good state, if "
        "there is one: go on from it with a lower learning rate or with clipped gradients"
    )


def _check_state(state: TrainState | CarryState, directory: Path) -> None:
    """Refuse to write parameters that are no numbers over those that are."""
    params = (state.train if isinstance(state, CarryState) else state).params
    for path, leaf in tree.named_leaves(params):
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            worst = float(leaf[~torch.isfinite(leaf)][0])
            raise _diverged(f"a number of params.{path}", worst, directory)


def _losses(log: Log) -> list[float]:
    return [row["valid_loss"] for row in log if "valid_loss" in row]


def _is_over(log: Log, patience: int | None) -> bool:
    """Say whether the best loss is more than `patience` evaluations old."""
    losses = _losses(log)
    if patience is None or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience
