"""A preemption-safe training loop: it writes checkpoints and resumes from them."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from tqdm import tqdm

from fnlm import tree
from fnlm.train._directory import RunDirectory
from fnlm.train._log import Log, Row, valid_losses
from fnlm.train._processes import ALONE, Processes
from fnlm.train.step import CarryState, Metrics, TrainState, describe_skipped

__all__ = ["Interrupted", "fit"]

S = TypeVar("S", TrainState, CarryState)


class Interrupted(SystemExit):
    """Raised by `fit` after SIGINT or SIGTERM, when the state is saved.

    A program that does not catch it ends with code 130 or 143, without a traceback.
    """


class _Interval(NamedTuple):
    """The losses since the last evaluation; a state that is saved in between keeps them."""

    total: float = 0.0
    steps: int = 0


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
    on_row: Callable[[Row], None] = lambda row: None,
    patience: int | None = None,
    keep: int = 2,
    max_skipped: int = 20,
    processes: Processes = ALONE,
) -> S:
    """Train up to step `steps`, with an evaluation and a checkpoint every `evaluate_every` steps.

    An interrupted run that is started again with the same arguments resumes from its last
    checkpoint and ends with the same numbers, because a batch is a function of the step. SIGINT and
    SIGTERM let the step at work end, save, and raise `Interrupted` after a line on standard error;
    a second one acts at once. On a terminal there is a progress bar.

    Args:
        step: from `train_step` or `carry_step`; it may donate.
        state: from `init_state`; replaced by the checkpoint in the directory if there is one.
        batch_at: returns the batch of a step, the arguments of `step` after the state.
        steps: total number of steps.
        directory: for `state.safetensors`, states before it, and `log.jsonl`, one line per
            evaluation (see `read_log`). Incomplete files of an interrupted run (`NAME.*.part`) are
            removed.
        evaluate: returns a validation loss, lower is better. If None, only the state and the mean
            training loss are written.
        evaluate_every: steps between evaluations, at least 1; the last step always has one.
        on_best: called with each state whose validation loss is the lowest so far.
        on_row: called with each row of the log, when the state is saved.
        patience: number of evaluations without improvement after which to stop, at least 1.
        keep: how many states are kept, at least 1; the former ones are called
            `state.step-NUMBER.safetensors`.
        max_skipped: number of steps in a row without finite gradients after which to stop.
        processes: those that run this together, `fnlm.distributed.processes()`, each with its part
            of the state and of the batches. The first one reads and writes the directory, in which
            states are whole; `evaluate` and `on_best` are called on all, and `on_row` on it.

    Returns:
        the last state.

    Raises:
        ValueError: a number is out of range; too many steps were skipped, or a parameter is NaN or
            infinite, and the directory keeps the last good state; or a file there is damaged, and
            the message names the state before it.
        OSError: another run uses the directory, its log is missing, or the disk is full.
    """
    _check_range(steps=(steps, 0), evaluate_every=(evaluate_every, 1), patience=(patience, 1),
                 keep=(keep, 1), max_skipped=(max_skipped, 0))  # fmt: skip
    run = RunDirectory(Path(directory), processes, keep)
    with run.locked(), _signals() as received:
        state, log, notes, saved = run.resume(state)
        interval, hidden = _Interval(**notes), None if processes.is_first else True
        bar = tqdm(total=steps, initial=int(state.step), unit="step", disable=hidden)
        start = time.monotonic()
        while (done := int(state.step)) < steps and not _should_stop(log, patience):
            state, metrics = step(state, *batch_at(done))
            if bool(metrics.finite):
                interval = _Interval(interval.total + float(metrics.loss), interval.steps + 1)
            else:
                _report_skipped(state, run, max_skipped)
            bar.update()
            if (done + 1) % evaluate_every == 0 or done + 1 == steps:
                _check_state(state, run.path)
                row = _evaluate(state, interval, evaluate)
                row["seconds"] = time.monotonic() - start
                if row.get("valid_loss", math.inf) < min(valid_losses(log), default=math.inf):
                    on_best(state)
                # The state last: a run killed in between repeats this evaluation, and `resume`
                # drops the rows of the log beyond the step of the state.
                log.append(row)
                run.write_log(log)
                interval, start = _Interval(), time.monotonic()
                saved = run.save(state, interval._asdict(), saved)
                if processes.is_first:
                    on_row(row)
                bar.set_postfix({name: f"{row[name]:.3f}" for name in row if name.endswith("loss")})
            if signal_number := processes.highest(received[0] if received else 0):
                if saved != int(state.step):
                    _check_state(state, run.path)
                    run.save(state, interval._asdict(), saved)
                bar.close()
                _interrupt(signal_number, state, run)
        bar.close()
        return state


def _evaluate(
    state: TrainState | CarryState, interval: _Interval, evaluate: Callable[[Any], float] | None
) -> Row:
    """Return the row of the log for a state; raise where the validation loss is NaN."""
    train = state.train if isinstance(state, CarryState) else state
    mean = interval.total / interval.steps if interval.steps else math.nan
    row: Row = {"step": int(state.step), "train_loss": mean}
    if evaluate is not None:
        row["valid_loss"] = evaluate(state)
        if math.isnan(row["valid_loss"]):
            raise ValueError(f"what `evaluate` returned is nan{_DIVERGED}")
    if train.loss_scale:
        row["loss_scale"] = float(train.loss_scale[0])
    if count := int(train.skipped.steps):
        row |= {"skipped": count, "skipped_step": int(train.skipped.last)}
        if (leaf := int(train.skipped.leaf)) >= 0:
            row["skipped_leaf"] = tree.named_leaves(train.params)[leaf][0]
    return row


_DIVERGED = (
    ": the run has diverged. Its directory keeps the last good state, if there was one: go on from "
    "it with a lower learning rate or with clipped gradients"
)


def _report_skipped(state: TrainState | CarryState, run: RunDirectory, most: int) -> None:
    """Write a line on the step that was skipped; raise after too many in a row."""
    train = state.train if isinstance(state, CarryState) else state
    line = describe_skipped(state)
    if int(train.skipped.in_a_row) > most:
        raise ValueError(f"{run.path}: {line}, and max_skipped={most} were so in a row{_DIVERGED}")
    if run.processes.is_first:
        tqdm.write(line, file=sys.stderr)


def _check_state(state: TrainState | CarryState, directory: Path) -> None:
    """Raise if a parameter is NaN or infinite, before it overwrites a good checkpoint."""
    train = state.train if isinstance(state, CarryState) else state
    named: dict[str, Any] = {"params": train.params, "opt_state": train.opt_state}
    if isinstance(state, CarryState):
        named["carry"] = state.carry
    for path, leaf in tree.named_leaves(named):
        if leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            value = float(leaf[~torch.isfinite(leaf)][0])
            raise ValueError(f"{directory}: a number of {path} is {value}{_DIVERGED}")


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM in a list instead of acting on the first of them.

    Signals that the process ignores stay ignored; outside the main thread nothing is done.
    """
    received: list[int] = []
    former: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        while former:
            signal.signal(*former.popitem())

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                former[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        restore()


def _interrupt(number: int, state: TrainState | CarryState, run: RunDirectory) -> None:
    """Raise after a line that says how to go on."""
    if run.processes.is_first:
        sys.stderr.write(
            f"{signal.Signals(number).name}: stopped after step {int(state.step)}, which is saved "
            f"in {run.path}; start the same command again to go on\n"
        )
    raise Interrupted(128 + number)


def _check_range(**limits: tuple[int | None, int]) -> None:
    for name, (value, least) in limits.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _should_stop(log: Log, patience: int | None) -> bool:
    """Return whether the last `patience` evaluations brought no improvement (early stopping)."""
    losses = valid_losses(log)
    if patience is None or not losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) >= patience
