"""Runs that are killed, interrupted, or not allowed to write: they go on as if nothing had been."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from killing import WATCHED

from fnlm import random, train, tree
from fnlm.train import loss_scale

OPTIMIZER, SCALE = train.adamw(0.05), loss_scale.dynamic(16.0, growth_interval=3)
STEPS = 7


def loss(params: Any, x: torch.Tensor, *, key: torch.Tensor) -> torch.Tensor:
    return ((params["w"] - x + 0.1 * random.normal(key, (3,))) ** 2).sum()


def batch_at(step: int) -> tuple[torch.Tensor, ...]:
    x = random.normal(random.fold_in(random.key(2), step), (3,))
    return (x * torch.inf if step == 2 else x,)  # one step is skipped


def run(
    directory: Path, at: Callable[[int], Any] = lambda step: None, **options: Any
) -> train.TrainState:
    def batch(step: int) -> tuple[torch.Tensor, ...]:
        at(step)
        return batch_at(step)

    settings: dict[str, Any] = {
        "evaluate": lambda state: float((state.params["w"] - 1).square().sum()),
        "evaluate_every": 2,
        "on_best": lambda state: train.save_state(state.params, directory / "best.safetensors"),
    }
    return train.fit(
        train.train_step(loss, OPTIMIZER, loss_scale=SCALE, donate=True),
        train.init_state({"w": torch.zeros(3)}, OPTIMIZER, random.key(1), loss_scale=SCALE),
        batch,
        steps=STEPS,
        directory=directory,
        **(settings | options),
    )


def files(directory: Path) -> dict[str, Any]:
    """What a run left, but for the seconds that it took."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in directory.iterdir()}
    rows = train.read_log(directory)
    return found | {"log.jsonl": [{k: v for k, v in r.items() if k != "seconds"} for r in rows]}


def in_a_fork(work: Callable[[], Any], told: Path | None = None) -> int:
    """Do something in a process of its own; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        if told is not None:
            os.dup2(os.open(told, os.O_CREAT | os.O_WRONLY), 2)
            sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115, PTH123
        code = 0
        try:
            work()
        except SystemExit as error:
            code = int(str(error.code))
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            code = 1
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("whole")
    run(directory)
    return files(directory)


pytestmark = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


def sent(number: signal.Signals, at: int, times: int = 1) -> Callable[[int], None]:
    """Return what sends this process a signal before a step."""

    def send(step: int) -> None:
        for _ in range(times if step == at else 0):
            os.kill(os.getpid(), number)

    return send


def killed_at(operation: int, place: Path) -> Callable[[], None]:
    """Return a run that is killed just before its n-th operation on files."""

    def work() -> None:
        left = operation

        def hook(event: str, args: tuple[Any, ...]) -> None:
            nonlocal left
            if event in WATCHED and str(place) in str(args[0]):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        run(place, evaluate_every=4)

    return work


def test_a_kill_at_any_operation_on_files_changes_no_bit_of_the_end(
    tmp_path: Path,
) -> None:
    run(tmp_path / "whole", evaluate_every=4)
    whole, operations = files(tmp_path / "whole"), 0
    for operation in range(1, 1000):
        place = tmp_path / str(operation)
        if in_a_fork(killed_at(operation, place)) == 0:
            break
        operations = operation
        like = train.init_state({"w": torch.zeros(3)}, OPTIMIZER, random.key(1), loss_scale=SCALE)
        for state in place.glob("*.safetensors"):  # whatever has the name is whole
            train.load_state(state, like=like.params if state.stem == "best" else like)
        run(place, evaluate_every=4)
        assert files(place) == whole, f"killed at operation {operation}"
    assert operations > 25


def test_kills_at_random_moments_change_no_bit_of_the_end(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    def slowly() -> None:
        run(tmp_path, at=lambda step: time.sleep(0.02))

    for moment in torch.rand(8, generator=torch.Generator().manual_seed(0)).tolist():
        pid = os.fork()
        if pid == 0:
            slowly()
            os._exit(0)
        time.sleep(0.15 * moment)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    run(tmp_path)
    assert files(tmp_path) == whole


# SIGINT and SIGTERM.


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """The handlers of a program started from a shell."""
    former = [
        signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.signal(signal.SIGTERM, signal.SIG_DFL),
    ]
    yield
    signal.signal(signal.SIGINT, former[0])
    signal.signal(signal.SIGTERM, former[1])


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at", range(STEPS))
def test_a_signal_lets_the_step_end_saves_and_says_how_to_go_on(
    at: int, number: signal.Signals, tmp_path: Path, whole: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(train.Interrupted) as caught:
        run(tmp_path, at=sent(number, at))
    assert caught.value.code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"{number.name}: stopped after step {at + 1}, which is saved in {tmp_path}; start the same "
        "command again to go on"
    )
    state = run(tmp_path)
    assert int(state.step) == STEPS
    found = files(tmp_path)
    for name in ("state.safetensors", "best.safetensors", "log.jsonl"):
        assert found[name] == whole[name], name


@pytest.mark.usefixtures("usual_signals")
def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, at=sent(signal.SIGINT, 3, times=2))
    like = train.init_state({"w": torch.zeros(3)}, OPTIMIZER, random.key(1), loss_scale=SCALE)
    assert int(train.load_state(tmp_path / "state.safetensors", like=like).step) == 2


@pytest.mark.usefixtures("usual_signals")
def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path, whole: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
    run(tmp_path, at=lambda step: os.kill(os.getpid(), signal.SIGINT))
    assert files(tmp_path) == whole


def test_a_program_ends_by_one_line_and_without_a_traceback(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import signal, sys, time, torch
        from fnlm import random, train
        signal.signal(signal.SIGINT, signal.default_int_handler)
        optimizer = train.adamw(0.1)
        def batch(step):
            print(step, flush=True)
            time.sleep(0.05)
            return ()
        train.fit(
            train.train_step(lambda p, key: p["w"].square().sum(), optimizer),
            train.init_state({"w": torch.ones(2)}, optimizer, random.key(0)),
            batch, steps=10_000, directory=sys.argv[1], evaluate_every=5_000,
        )
    """)
    started = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert started.stdout is not None and started.stdout.readline() == "0\n"
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == 130
    assert len(errors.splitlines()) == 1 and "start the same command again" in errors
    assert (tmp_path / "state.safetensors").exists()


# Directories.


def test_of_two_runs_at_once_in_a_directory_one_is_refused(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    codes = []
    for i in range(2):
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(tmp_path / f"told-{i}", os.O_CREAT | os.O_WRONLY), 2)
            try:
                run(tmp_path / "run", at=lambda step: time.sleep(0.05))
            except OSError as error:
                os.write(2, str(error).encode())
                os._exit(2)
            os._exit(0)
        codes.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in codes]
    assert sorted(codes) == [0, 2]
    told = (tmp_path / f"told-{codes.index(2)}").read_text()
    assert f"another run is at work in {tmp_path / 'run'}" in told
    assert files(tmp_path / "run") == whole


def test_a_directory_that_cannot_be_written_is_an_error_before_the_first_step(
    tmp_path: Path,
) -> None:
    for place in (tmp_path / "new", tmp_path / "old"):
        place.mkdir()
    run(tmp_path / "old")
    before = files(tmp_path / "old")
    for name in ("new", "old"):
        place = tmp_path / name

        def work(place: Path = place) -> None:
            os.chdir(place)
            if os.geteuid() == 0:  # who may write everywhere
                os.setuid(65534)
            run(Path())

        place.chmod(0o555)
        told = tmp_path / f"told-{name}"
        told.touch()
        assert in_a_fork(work, told) == 1
        place.chmod(0o755)
        assert "OSError: log.jsonl could not be written: " in told.read_text()
        assert "Permission denied" in told.read_text()
    assert files(tmp_path / "old") == before and not list((tmp_path / "new").iterdir())


def test_a_bar_is_for_terminals(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(tmp_path)
    assert capfd.readouterr().err.splitlines() == [
        "1 step skipped, the last one step 3: the gradient of w was not finite; the loss scale is 8"
    ]


# What `fit` calls.


def test_rows_are_called_with_what_is_in_the_log_and_saved(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    like = train.init_state({"w": torch.zeros(3)}, OPTIMIZER, random.key(1), loss_scale=SCALE)

    def on_row(row: dict[str, Any]) -> None:
        saved = train.load_state(tmp_path / "state.safetensors", like=like)
        assert int(saved.step) == row["step"]
        rows.append(row)

    run(tmp_path, on_row=on_row)
    assert rows == train.read_log(tmp_path) and [row["step"] for row in rows] == [2, 4, 6, 7]
    assert [row["loss_scale"] for row in rows] == [16.0, 8.0, 16.0, 16.0]
    line = train.describe_run(tmp_path)
    assert line.startswith("7 steps, the best valid_loss ") and "1 of them skipped" in line
    assert "best.safetensors, log.jsonl, state.safetensors" in line


def test_a_plot_is_drawn_of_what_is_there(tmp_path: Path) -> None:
    run(tmp_path)
    assert train.plot_log(tmp_path) == tmp_path / "loss.png"
    assert (tmp_path / "loss.png").read_bytes()[:4] == b"\x89PNG"
    (tmp_path / "log.jsonl").write_text("")
    assert train.plot_log(tmp_path).stat().st_size > 1000
    with pytest.raises(FileNotFoundError):
        train.plot_log(tmp_path / "none")


def test_the_state_of_a_run_is_all_that_it_needs(tmp_path: Path) -> None:
    """From a fresh start with other numbers, all that matters comes from the file."""
    with pytest.raises(train.Interrupted):
        run(tmp_path, at=sent(signal.SIGTERM, 4))
    like = train.init_state({"w": torch.ones(3)}, OPTIMIZER, random.key(9), loss_scale=SCALE)
    found = train.load_state(tmp_path / "state.safetensors", like=like)
    assert found.key.equal(random.key(1)) and int(found.step) == 5
    assert int(found.opt_state.step) == 4 and int(found.skipped.steps) == 1
    assert found.loss_scale.scale == 8 and found.loss_scale.good_steps == 2
    assert train.read_notes(tmp_path / "state.safetensors")["steps"] == 1
    assert not tree.leaves(found)[0].equal(torch.ones(3))
