"""What the programs that train have in common: one process or many, what they leave and print."""

from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from fnlm import distributed, finetune
from fnlm.programs._command import next_command
from fnlm.programs._launch import environment

__all__ = ["check_work", "in_session", "report", "save"]

SECONDS = 3600.0  # that a process waits for another, as while the first one reads the data


def check_work(flags: Any) -> None:
    """Raise ValueError unless there is something to do."""
    if not (flags.do_train or flags.do_eval):
        raise ValueError("nothing to do: give --do_train, --do_eval or both")


def save(family: Any, params: Any, tokenizer: Any, directory: Path) -> None:
    """Write a model and its tokenizer, by the first process."""

    def write() -> None:
        family.save(params, directory)
        tokenizer.save(directory)

    distributed.on_first(write)


def report(
    command: str, flags: Any, results: dict[str, float], keep: tuple[str, ...] = (), **given: Any
) -> None:
    """Write the results of a run and print them, with a command that uses a trained model.

    Args:
        command: without `fnlm`.
        flags: of the run.
        results: the numbers.
        keep: flags that the command takes over.
        given: its other flags.
    """
    again = f"{flags.output_dir}-again"
    then = next_command(command, flags, keep=keep, output_dir=again, **given)
    then = then if flags.do_train else []
    print(finetune.write_results(results, flags.output_dir, "eval_results", then=then), end="")


@contextmanager
def in_session(device: str) -> Iterator[None]:
    """Join the other processes of `torchrun` for the block; only the first of them prints.

    Raises:
        ValueError: the processes of this machine cannot have the device.
        ConnectionError: another process has ended or hangs.
    """
    _check_device(device)
    backend = "gloo" if device == "cpu" else None
    with distributed.session(backend=backend, timeout=SECONDS):
        try:
            with redirect_stdout(StringIO()) if distributed.rank() else _unchanged():
                yield
        except RuntimeError as error:
            if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise
            raise ConnectionError(
                "another process of this run has ended or hangs; start the same command again, and "
                f"it goes on from the last checkpoint ({str(error).splitlines()[0]})"
            ) from error


@contextmanager
def _unchanged() -> Iterator[None]:
    yield


def _check_device(device: str) -> None:
    """Raise ValueError unless every process of this machine can have a device of its own."""
    here = environment().here
    if device == "cpu" or here == 1 or not torch.cuda.is_available():
        return
    if device.startswith("cuda:"):
        raise ValueError(
            f"--device {device} is one GPU for {here} processes: give --device cuda, and each "
            "takes its own"
        )
    if here > (there := torch.cuda.device_count()):
        raise ValueError(
            f"{here} processes on a machine with {there} GPUs: start at most {there}, or give "
            "--device cpu"
        )
