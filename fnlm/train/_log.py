"""The log of a run: a row of numbers per evaluation, as JSON lines."""

import json
from pathlib import Path
from typing import Any

from fnlm.files._checkpoint import replace

__all__ = ["Log", "describe_run", "plot_log", "read_log", "valid_losses", "write_log"]

LOG = "log.jsonl"
Row = dict[str, Any]
Log = list[Row]


def read_log(directory: str | Path) -> Log:
    """Read the log of a run, a row per evaluation: step, train_loss, valid_loss and seconds.

    `seconds` is the time since the evaluation before. A run with skipped steps has `skipped`, how
    many so far, with `skipped_step` and `skipped_leaf` of the last of them; one with a loss scale
    has `loss_scale`.

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


def write_log(directory: Path, log: Log) -> None:
    """Write the log of a run, which appears whole or not at all."""
    text = "".join(json.dumps(row) + "\n" for row in log)
    replace(directory / LOG, lambda part: part.write_text(text, encoding="utf-8"))


def plot_log(directory: str | Path, *, unit: str = "nats") -> Path:
    """Draw training and validation loss over the steps, into `loss.png` of the directory.

    Args:
        directory: of a run, with its `log.jsonl`.
        unit: of the losses, the label of their axis.

    Returns:
        the path of the picture.

    Raises:
        FileNotFoundError: there is no log.
        ImportError: matplotlib is not installed (`pip install matplotlib`).
    """
    from matplotlib.figure import Figure

    log, figure = read_log(directory), Figure(figsize=(7, 4))
    axes = figure.subplots()
    for name in ("train_loss", "valid_loss"):
        rows = [row for row in log if name in row]
        if rows:
            steps, losses = [row["step"] for row in rows], [row[name] for row in rows]
            axes.plot(steps, losses, label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel=unit)
    if log:
        axes.legend()
    path = Path(directory) / "loss.png"
    replace(path, lambda part: figure.savefig(part, dpi=120, format="png"))
    return path


def describe_run(directory: str | Path) -> str:
    """Return one line on a run: its steps, its best evaluation, and what its directory holds.

    Raises:
        FileNotFoundError: there is no log.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_log(Path(folder), [{"step": 8, "train_loss": 1.5, "valid_loss": 1.25}])
    ...     describe_run(folder).replace(folder, "runs/one")
    '8 steps, the best valid_loss 1.2500 at step 8; runs/one holds log.jsonl'
    """
    log = read_log(directory)
    line = f"{log[-1]['step'] if log else 0} steps"
    scored = [row for row in log if "valid_loss" in row]
    if scored:
        best = min(scored, key=lambda row: row["valid_loss"])
        line += f", the best valid_loss {best['valid_loss']:.4f} at step {best['step']}"
    elif log:
        line += f", the last train_loss {log[-1]['train_loss']:.4f}"
    if log and log[-1].get("skipped"):
        line += f", {log[-1]['skipped']} of them skipped"
    names = [path.name for path in Path(directory).iterdir() if not path.name.startswith(".")]
    return f"{line}; {directory} holds {', '.join(sorted(names))}"


def valid_losses(log: Log) -> list[float]:
    """Return the validation losses of the rows that have one.

    >>> valid_losses([{"step": 1, "train_loss": 2.0}, {"step": 2, "valid_loss": 1.0}])
    [1.0]
    """
    return [row["valid_loss"] for row in log if "valid_loss" in row]


def _is_row(row: Row) -> bool:
    """Return whether a row has a step and a training loss, and all its values are numbers."""
    texts = {"skipped_leaf"}
    numbers = [isinstance(x, str) if name in texts else _is_number(x) for name, x in row.items()]
    return all(numbers) and isinstance(row.get("step"), int) and "train_loss" in row


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)
