"""What a run and its files survive: full disks, damage, Ctrl-C, NaN, another run, a umask."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fnlm import cli, finetune, gpt2, random, train, tree
from fnlm.files._checkpoint import half_written, replace
from fnlm.tasks import features
from fnlm.tree import Tree

OPTIMIZER = train.adamw(0.05)
STEP = train.train_step(lambda params, x, key: ((params["w"] - x) ** 2).mean(), OPTIMIZER)


def start(size: int = 3) -> train.TrainState:
    return train.init_state({"w": torch.zeros(size)}, OPTIMIZER, random.key(1))


def run(
    directory: Path,
    steps: int = 8,
    at: Callable[[int], float] = float,
    *,
    step: Any = STEP,
    size: int = 3,
    **settings: Any,
) -> train.TrainState:
    usual: dict[str, Any] = {
        "evaluate": lambda state: float(state.params["w"].sum()),
        "evaluate_every": 2,
    }
    return train.fit(
        step, start(size), lambda i: (torch.tensor(at(i)),), steps=steps, directory=directory,
        **(usual | settings),
    )  # fmt: skip


def equal(a: Tree, b: Tree) -> bool:
    return all(x.equal(y) for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True))


def on_disk(directory: Path, size: int = 3) -> train.TrainState:
    return train.load_state(directory / "state.safetensors", like=start(size))


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def params() -> Tree:
    config = gpt2.Config(vocab_size=20, n_positions=8, n_embd=4, n_layer=2, n_head=2)
    return gpt2.init(config, random.key(0))


class Ids(NamedTuple):
    ids: Any


def ids(records: list[list[int]], first: int) -> Ids:
    return Ids(np.array(records, np.int32))


# Files, however they are written.

WRITERS: dict[str, Callable[[Path], object]] = {
    "state": lambda folder: train.save_state(start(3000), folder / "state.safetensors"),
    "log and state": lambda folder: run(folder, 40, size=3000, evaluate_every=1),
    "transformers": lambda folder: gpt2.save(params(), folder),
    "ppb": lambda folder: gpt2.save(params(), folder, dialect="pytorch-pretrained-bert"),
    "results": lambda folder: finetune.write_results({"f1": 0.5}, folder, "eval"),
    "ids": lambda folder: features.convert(partial(ids), [[1, 2]], Ids, cache=folder),
    "run": lambda folder: finetune.claim_run_directory(folder, {"text": "x" * 4000}, {}),
}
each_writer = pytest.mark.parametrize("writer", WRITERS)


@each_writer
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_files_have_the_rights_that_the_umask_leaves(
    writer: str, umask: int, tmp_path: Path
) -> None:
    former = os.umask(umask)
    try:
        WRITERS[writer](tmp_path)
    finally:
        os.umask(former)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may be larger than 512 bytes: what a full disk does to who writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)


@pytest.mark.parametrize("writer", [name for name in WRITERS if name not in ("results", "ids")])
def test_a_full_disk_is_an_error_of_the_file_and_leaves_the_former_one(
    writer: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],  # so that pytest writes what a bar shows to no file
) -> None:
    WRITERS[writer](tmp_path)
    if writer == "log and state":  # the run is over: let it go on
        (tmp_path / "log.jsonl").write_text("")
        train.save_state(start(3000), tmp_path / "state.safetensors")
    before = content(tmp_path)
    request.getfixturevalue("small_files")
    with pytest.raises(OSError, match="could not be written: .*as it was") as caught:
        WRITERS[writer](tmp_path)
    assert any(str(tmp_path / name) in str(caught.value) for name in before)
    before.pop("log.jsonl", None)  # it may be ahead of the state by a line, which is passed over
    assert {name: content(tmp_path)[name] for name in before} == before
    assert not half_written(tmp_path)


def test_a_new_file_is_written_by_one_of_all_who_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def others_were_first(part: Path) -> None:
        part.write_bytes(b"late")
        replace(tmp_path / "file", lambda other: other.write_bytes(b"first"), new=True)

    with pytest.raises(FileExistsError):
        replace(tmp_path / "file", others_were_first, new=True)
    assert content(tmp_path) == {"file": b"first"}

    def no_links(*args: Any) -> None:
        raise PermissionError("a file system without hard links")

    monkeypatch.setattr(os, "link", no_links)
    with pytest.raises(FileExistsError, match="file exists"):
        replace(tmp_path / "file", lambda part: part.write_bytes(b"late"), new=True)
    replace(tmp_path / "other", lambda part: part.write_bytes(b"new"), new=True)
    assert content(tmp_path) == {"file": b"first", "other": b"new"}


@pytest.mark.parametrize(
    ("raised", "caught"),
    [(SafetensorError("disk"), OSError), (OSError(28, "No space"), OSError),
     (RuntimeError("disk"), OSError), (ValueError("x"), ValueError), (TypeError("x"), TypeError),
     (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)  # fmt: skip
def test_what_fails_while_it_is_written_is_never_there(
    raised: BaseException, caught: type[BaseException], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"former")

    def fill(part: Path) -> None:
        part.write_bytes(b"half")
        raise raised

    with pytest.raises(caught):
        replace(tmp_path / "file", fill)
    assert content(tmp_path) == {"file": b"former"}


def test_a_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str, function: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any) -> None:
            calls.append(name)
            function(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    replace(tmp_path / "file", lambda part: part.write_bytes(b"whole"))
    assert calls == ["fsync", "replace", "fsync"]  # the second one is for the directory


def test_what_kills_left_of_any_file_is_removed(tmp_path: Path) -> None:
    names = ["config.json.0123abcd.part", "state.safetensors.00000000.part", "my.part", "x.part.y"]
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    run(tmp_path)
    kept = {"log.jsonl", "state.safetensors", "state.step-6.safetensors"}
    assert set(content(tmp_path)) == {"my.part", "x.part.y"} | kept


# The log.

ROW = '{"step": 2, "train_loss": 1.5}'


@pytest.mark.parametrize(
    "damage",
    ['{"step": 2, "train', "[]", '{"train_loss": 1}', '{"step": "2", "train_loss": 1}', "NaN",
     '{"step": 2, "train_loss": null}', '{"step": 2}', "[" * 100_000, b"\xff\xfe{}", "\x00"],
    ids=lambda damage: repr(damage)[:24],
)  # fmt: skip
def test_a_damaged_log_is_named_and_can_be_mended(damage: str | bytes, tmp_path: Path) -> None:
    run(tmp_path, 4)
    log, before = tmp_path / "log.jsonl", on_disk(tmp_path)
    line = damage if isinstance(damage, bytes) else damage.encode()
    log.write_bytes(f"{ROW}\n".encode() + line + b"\n")
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: .* remove the line"):
        run(tmp_path)
    assert equal(on_disk(tmp_path), before)
    log.write_text(f"{ROW}\n")  # the line removed, as it says
    whole = run(tmp_path / "whole")
    assert equal(run(tmp_path), whole) and train.read_log(tmp_path)[-1]["step"] == 8


def test_a_missing_log_is_named_and_an_empty_one_goes_on(tmp_path: Path) -> None:
    run(tmp_path, 4)
    (tmp_path / "log.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl is missing.*an empty file"):
        run(tmp_path)
    (tmp_path / "log.jsonl").touch()
    assert equal(run(tmp_path), run(tmp_path / "whole"))
    assert [row["step"] for row in train.read_log(tmp_path)] == [6, 8]


@given(
    at=st.integers(0, 90),
    cut=st.integers(0, 90),
    put=st.binary(max_size=8),
    lines=st.integers(1, 3),
)
def test_any_damage_to_a_log_is_rows_or_an_error_that_names_it(
    tmp_path_factory: pytest.TempPathFactory, at: int, cut: int, put: bytes, lines: int
) -> None:
    folder = tmp_path_factory.mktemp("log")
    text = f"{ROW}\n".encode() * lines
    (folder / "log.jsonl").write_bytes(text[:at] + put + text[at + cut :])
    try:
        rows = train.read_log(folder)
    except ValueError as error:
        assert f"{folder / 'log.jsonl'}, line" in str(error) and "remove" in str(error)
    else:
        assert all(isinstance(row["step"], int) and "train_loss" in row for row in rows)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00", "[" * 100_000], ids=lambda t: t[:3])
def test_a_damaged_description_of_a_run_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        finetune.claim_run_directory(tmp_path, {"seed": 1}, {})


# Settings, before anything is done.


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"evaluate_every": 0}, "evaluate_every must be at least 1, got 0"),
        ({"evaluate_every": -3}, "evaluate_every must be at least 1, got -3"),
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range_are_named_before_the_first_step(
    setting: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "new", **setting)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("held_out", "setting", "message"),
    [(0, {}, "held_out has no rows"), (4, {"checkpoint_every": 0}, "checkpoint_every must be at")],
)
def test_a_recipe_without_rows_or_checkpoints_is_refused_before_the_first_step(
    held_out: int, setting: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def never(*batch: Any, **key: Any) -> torch.Tensor:
        raise AssertionError("a step was made")

    rows = tuple(np.ones((8, 3), np.int32) for _ in range(3)) + (np.zeros(8, np.int32),)
    recipe = finetune.Recipe(**{"train_batch_size": 2, "checkpoint_every": 5, **setting})
    with pytest.raises(ValueError, match=message):
        finetune.finetune(
            never, {"w": torch.zeros(3)}, rows, recipe, tmp_path / "new",
            held_out=tuple(array[:held_out] for array in rows),
        )  # fmt: skip
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="no rows"):
        finetune.mean_loss(never, {}, tuple(array[:0] for array in rows), recipe)


# Ctrl-C.


def test_ctrl_c_ends_the_command_by_a_line_and_code_130() -> None:
    words = ["generate", "tiny", "--num_samples", "500", "--max_new_tokens", "200"]
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "  # of a shell
    code += (
        "from fnlm.cli import main; raise SystemExit(main())"  # in the background, it is ignored
    )
    started = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *words],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert started.stdout is not None and len(started.stdout.read(20)) == 20  # it is at work
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors.split("\n")[1:]) == (130, ["fnlm generate: interrupted", ""])


def test_ctrl_c_ends_a_program_of_flags_likewise(capsys: pytest.CaptureFixture[str]) -> None:
    def work(flags: finetune.Recipe) -> None:
        raise KeyboardInterrupt

    assert cli.run(work, finetune.Recipe, []) == 130
    assert capsys.readouterr().err.endswith(": interrupted\n")


# Numbers that are none.


def spoiled(at: int, value: float) -> Callable[[int], float]:
    return lambda i: value if i == at else float(i)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 2, 5, 7])
def test_a_run_skips_a_step_whose_gradient_is_no_number_and_says_so(
    at: int, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = run(tmp_path, at=spoiled(at, value))
    line = f"1 step skipped, the last one step {at + 1}: the gradient of w was not finite"
    assert line in capsys.readouterr().err and train.describe_skipped(state) == line
    assert equal(on_disk(tmp_path), state) and all(x.isfinite().all() for x in tree.leaves(state))
    rows = train.read_log(tmp_path)
    told = {"skipped": 1, "skipped_step": at + 1, "skipped_leaf": "w"}
    assert [told.items() <= row.items() for row in rows] == [row["step"] > at for row in rows]
    assert all(np.isfinite(row["train_loss"]) for row in rows)
    assert int(state.step) == 8 and int(state.opt_state.step) == 7


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("max_skipped", [0, 1, 4])
def test_too_many_skipped_steps_in_a_row_stop_the_run_and_keep_the_good_state(
    max_skipped: int, value: float, tmp_path: Path
) -> None:
    def at(i: int) -> float:
        return value if i >= 5 else float(i)

    with pytest.raises(ValueError, match=rf"the gradient of w .* max_skipped={max_skipped} .* div"):
        run(tmp_path, 40, at=at, max_skipped=max_skipped)
    state = on_disk(tmp_path)
    assert int(state.opt_state.step) == (4 if max_skipped == 0 else 5)
    assert all(x.isfinite().all() for x in tree.leaves(state))
    assert train.read_log(tmp_path)[-1]["step"] == int(state.step) <= 5 + max_skipped
    whole = run(tmp_path / "whole")
    if max_skipped == 0:  # the state has none of them: the batches were mended
        assert equal(run(tmp_path), whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_of_nan_are_not_written(value: float, tmp_path: Path) -> None:
    """The loss of a step is that before its update, so it does not tell of a spoiled one."""

    def step(state: train.TrainState, x: torch.Tensor) -> tuple[train.TrainState, train.Metrics]:
        state, metrics = STEP(state, x)
        if int(state.step) == 4:  # of an optimizer that overflows
            state = state._replace(params={"w": torch.tensor([0.0, value, 0.0])})
        return state, metrics

    with pytest.raises(ValueError, match=r"a number of params\.w is (nan|inf): .* diverged"):
        run(tmp_path, step=step)
    assert equal(on_disk(tmp_path), run(tmp_path / "short", 2))


def test_an_evaluation_of_nan_stops_the_run(tmp_path: Path) -> None:
    values = iter([1.0, float("inf"), float("nan")])  # infinite is worse than all, but a number
    with pytest.raises(ValueError, match="what `evaluate` returned is nan: .* diverged"):
        run(tmp_path, evaluate=lambda state: next(values))
    assert int(on_disk(tmp_path).step) == 4


# Two runs in one directory.


def test_a_second_run_in_a_directory_is_refused_while_the_first_is_at_work(tmp_path: Path) -> None:
    refused = []

    def evaluate(state: train.TrainState) -> float:
        with pytest.raises(OSError, match=f"another run is at work in {tmp_path}") as caught:
            run(tmp_path, evaluate=lambda state: 0.0)
        refused.append(caught.value)
        return 0.0

    state = run(tmp_path, evaluate=evaluate)
    assert len(refused) == 4 and equal(state, run(tmp_path / "alone"))
    assert equal(run(tmp_path, 8), state)  # and then it is free
    names = {"log.jsonl", "state.safetensors", "state.step-6.safetensors"}
    assert set(content_names(tmp_path)) == {"alone"} | names


def content_names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


def test_a_directory_is_free_when_its_run_is_killed_or_fails(tmp_path: Path) -> None:
    hold = (
        "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdout.readline() == b"held\n"
    with pytest.raises(OSError, match="another run is at work"):
        run(tmp_path)
    other.kill()
    other.communicate()
    with pytest.raises(ValueError, match="diverged"):
        run(tmp_path, at=spoiled(5, float("nan")), max_skipped=0)
    assert equal(run(tmp_path), run(tmp_path / "whole"))


# The file of a state.


@given(places=st.lists(st.integers(0, 4), min_size=1, max_size=8), nested=st.booleans())
def test_leaves_that_are_one_tensor_are_one_again(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], nested: bool
) -> None:
    whole = torch.arange(6.0)
    tensors = [whole, whole.view(2, 3), whole[2:], torch.zeros(0), torch.tensor(True)]
    state: Tree = {f"x{i}": tensors[place] for i, place in enumerate(places)}
    state = {"now": state, "average": state} if nested else state
    path = tmp_path_factory.mktemp("state") / "state.safetensors"
    train.save_state(state, path)
    assert len(load_file(path)) == len(set(places)) if 3 not in places else True
    apart = tree.map(torch.clone, state)  # what is like it need not be tied
    found = train.load_state(path, like=apart)
    assert equal(found, state)
    before, after = tree.leaves(state), tree.leaves(found)
    for i, x in enumerate(before):
        for j, y in enumerate(before):
            if x.numel():
                assert (after[i] is after[j]) == (x is y)
                # Views of one memory that are not the same view have memory of their own.
                assert (after[i].data_ptr() == after[j].data_ptr()) == (x is y)


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_a_run_of_tied_leaves_goes_on_as_it_would_have(donate: bool, tmp_path: Path) -> None:
    """Of two places for one tensor, each step in place changes both, before and after a restart."""
    shared = torch.ones(3)
    step = train.train_step(
        lambda p, x, key: ((p["a"] * p["b"] - x) ** 2).mean(), train.adamw(0.1), donate=donate
    )
    state = train.init_state({"a": shared, "b": shared}, train.adamw(0.1), random.key(0))
    for i in range(2):
        state, _ = step(state, torch.tensor(float(i)))
    train.save_state(state, tmp_path / "state")
    found = train.load_state(tmp_path / "state", like=tree.map(torch.clone, state))
    for i in range(2):
        state, _ = step(state, torch.tensor(float(i)))
        found, _ = step(found, torch.tensor(float(i)))
    assert equal(found, state)
    assert (found.params["a"] is found.params["b"]) == donate


@pytest.mark.parametrize("dialect", ["transformers", "pytorch-pretrained-bert"])
def test_a_model_whose_layers_are_one_is_saved(dialect: str, tmp_path: Path) -> None:
    shared = params()
    shared = {**shared, "blocks": (shared["blocks"][0],) * 2}
    gpt2.save(shared, tmp_path, dialect=dialect)
    assert equal(gpt2.load(tmp_path), shared)


def test_any_damage_to_a_state_is_refused_by_name(
    tmp_path: Path, tally: Callable[..., None]
) -> None:
    """Every byte with one bit flipped, every tail zeroed or cut, the header included."""
    path, good = tmp_path / "state.safetensors", start()
    train.save_state(good, path, notes={"losses": [0.5]})
    whole = path.read_bytes()
    flipped = [
        whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :] for i in range(len(whole))
    ]
    zeroed = [whole[:i] + bytes(len(whole) - i) for i in range(len(whole))]
    zeroed = [damaged for damaged in zeroed if damaged != whole]  # it ends in zeros
    counts = {"refused": 0}
    for damaged in [*flipped, *zeroed, *(whole[:i] for i in range(len(whole)))]:
        path.write_bytes(damaged)
        with pytest.raises(train.DamagedStateError) as caught:
            train.load_state(path, like=good)
        assert str(path) in str(caught.value)
        counts["refused"] += 1
    tally("states, bits flipped, zeroed and cut", counts)
    assert counts["refused"] > 2.5 * len(whole) > 500


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_former_states_are_kept_and_one_is_offered(keep: int, tmp_path: Path) -> None:
    state = run(tmp_path, keep=keep)
    former = [f"state.step-{step}.safetensors" for step in (2, 4, 6)]
    kept = former[len(former) - keep + 1 :]
    assert set(content_names(tmp_path)) == {"log.jsonl", "state.safetensors", *kept}
    path = tmp_path / "state.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
    with pytest.raises(train.DamagedStateError, match=r"state\.safetensors is damaged") as caught:
        run(tmp_path, keep=keep)
    if keep == 1:
        assert "mv" not in str(caught.value)
        return
    assert f"mv {tmp_path / kept[-1]} {path} and start again" in str(caught.value)
    if keep == 3:  # that one is damaged, too: the one before is offered
        (tmp_path / kept[-1]).write_bytes(b"")
        with pytest.raises(train.DamagedStateError, match=f"mv {tmp_path / kept[-2]}"):
            run(tmp_path, keep=keep)
        (tmp_path / kept[-1]).unlink()
        kept.pop()
    (tmp_path / kept[-1]).rename(path)  # as it says
    assert equal(run(tmp_path, keep=keep), state)
    assert [row["step"] for row in train.read_log(tmp_path)] == [2, 4, 6, 8]


def test_equal_states_are_equal_files_in_every_process(tmp_path: Path) -> None:
    """The library writes several metadata in an order that each process draws anew."""
    train.save_state(start(), tmp_path / "state.safetensors")
    with safe_open(tmp_path / "state.safetensors", framework="pt") as file:
        assert list(file.metadata()) == ["fnlm"]


def test_a_file_without_a_checksum_is_no_state(tmp_path: Path) -> None:
    train.save_state(start(), tmp_path / "a.safetensors")
    save_file(load_file(tmp_path / "a.safetensors"), tmp_path / "b.safetensors")
    with pytest.raises(
        train.DamagedStateError, match=r"b\.safetensors has no checksum: .*load_file"
    ):
        train.load_state(tmp_path / "b.safetensors", like=start())
