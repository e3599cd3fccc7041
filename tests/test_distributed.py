"""Two and four gloo processes compute what one does; a rank that ends or hangs ends the others.

`ranks.py` has the checks: the processes are started once, and run all of them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import ranks
import torch
from conftest import NO_SOCKETS, ROOT
from families import BERT, GPT2, Family, make_params
from torch.func import grad
from torch.utils.flop_counter import FlopCounterMode

from fnlm import bert, distributed, gpt2, random, tree
from fnlm.train import adamw, init_state, losses, train_step

SECONDS = 300  # for all checks, on a busy machine
needs_sockets = pytest.mark.skipif(NO_SOCKETS, reason="processes meet by sockets on this machine")


def start(*command: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    settings = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(
        [sys.executable, *command],
        env=os.environ | settings,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch(size: int, folder: Path, *what: str) -> dict[str, str]:
    """Run all checks on some processes: what failed by the name of the check."""
    script = str(ROOT / "tests" / "ranks.py")
    processes = [start(script, str(r), str(size), str(folder), *what) for r in range(size)]
    found: dict[str, str] = {}
    try:
        for number, process in enumerate(processes):
            _, errors = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, errors
            text = (folder / f"results{size}-{number}.json").read_text()
            for name, failure in json.loads(text).items():
                found[name] = found.get(name, "") + (f"rank {number}: {failure}" if failure else "")
    finally:
        for process in processes:
            process.kill()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, str]:
    return launch(2, folder)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    place = tmp_path_factory.mktemp("four")
    return launch(4, place), place


@needs_sockets
@pytest.mark.parametrize("name", ranks.checks(2, Path()))
def test_two_processes_are_as_one(two: dict[str, str], name: str) -> None:
    assert two[name] == ""


@needs_sockets
@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.checks(4, Path()))
def test_four_processes_are_as_one(four: tuple[dict[str, str], Path], name: str) -> None:
    assert four[0][name] == ""


@needs_sockets
@pytest.mark.slow
def test_four_processes_save_and_two_read(four: tuple[dict[str, str], Path]) -> None:
    found = launch(2, four[1], "reads")
    assert len(found) == len(ranks.PLANS) and not any(found.values())


@needs_sockets
@pytest.mark.slow
@pytest.mark.parametrize("plan", [p for p in ranks.PLANS if p != "mesh"])
def test_four_processes_save_and_one_reads(four: tuple[dict[str, str], Path], plan: str) -> None:
    assert not four[0]["saves"]
    ranks.reads(four[1] / "saved" / plan)


ENDLESS = """
import os, signal, sys, time, torch
from fnlm import distributed
number, place, end, timeout = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4])
options = {"init_method": f"file://{place}", "rank": number, "backend": "gloo"}
options["world_size"] = int(sys.argv[5])
with distributed.session(timeout=timeout, **options):
    for step in range(10**9):
        distributed.sum(torch.ones(1000))
        if step == 50 and number == 1:
            if end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
"""


@needs_sockets
@pytest.mark.parametrize("end, timeout, size", [("killed", 60.0, 3), ("hangs", 3.0, 2)])
def test_a_rank_that_ends_ends_the_others(
    tmp_path: Path, end: str, timeout: float, size: int
) -> None:
    """At once where it was killed; where it hangs, after the timeout."""
    arguments = str(tmp_path / "meet"), end, str(timeout), str(size)
    processes = [start("-c", ENDLESS, str(r), *arguments) for r in range(size)]
    try:
        if end == "killed":
            assert processes[1].wait(timeout=SECONDS) == -signal.SIGKILL
        else:
            processes[0].wait(timeout=SECONDS)
        begin = time.monotonic()
        for number in {*range(size)} - {1}:
            _, errors = processes[number].communicate(timeout=60)
            assert processes[number].returncode > 0 and "RuntimeError" in errors
        assert time.monotonic() - begin < 60
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_one_process_needs_no_launcher() -> None:
    """The same program runs alone: plans change nothing, and nothing is sent."""
    params, ids = make_params(GPT2), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])

    def loss(params: tree.Tree, ids: torch.Tensor, *, key: object = None) -> torch.Tensor:
        return losses.language_model(gpt2.apply(params, ids)[0], ids)

    with distributed.session() as device, distributed.messages() as sent:
        assert device.type == "cpu" or torch.cuda.is_available()
        assert (distributed.rank(), distributed.size()) == (0, 1)
        for plan in (distributed.replicated(), distributed.fully_sharded(),
                     distributed.tensor_parallel()):  # fmt: skip
            placed = distributed.shard(params, plan)
            assert not tree.spanning_leaves(placed)
            found = grad(distributed.data_parallel(loss))(placed, distributed.own_rows(ids))
            wanted = grad(loss)(params, ids)
            for x, y in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
                torch.testing.assert_close(x, y)
            step = train_step(distributed.data_parallel(loss), adamw(0.1, max_grad_norm=1.0))
            state, _ = step(init_state(placed, adamw(0.1), torch.tensor(0)), ids)
            assert tree.count(distributed.gather(state.params)) == tree.count(params)
    assert not sent


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    leaf = torch.ones(4, 3)
    with pytest.raises(ValueError, match="'replicate', 'shard' or 'split', got 'cut'"):
        distributed.shard({"w": leaf}, lambda path, x: (distributed.Placement("cut"),))
    with pytest.raises(ValueError, match="can't be cut along axis -3: count from the end"):
        distributed.shard({"w": leaf}, lambda path, x: (distributed.Placement("shard", -3),))
    with pytest.raises(ValueError, match="one row for each of 1 ranks, got the shape \\[4, 3\\]"):
        distributed.scatter_sum(leaf)
    with (
        pytest.raises(ValueError, match="timeout must be positive"),
        distributed.session(timeout=0),
    ):
        pass
    placed = distributed.shard({"w": leaf}, distributed.fully_sharded())
    with pytest.raises(ValueError, match="total does not fit like at 'w'"):
        distributed.scatter({"w": torch.ones(2)}, placed)
    with pytest.raises(ValueError, match="batch.0 has shape \\[\\], whose first axis"):
        distributed.own_rows((torch.tensor(1),))
    with pytest.raises(FileNotFoundError, match="holds no state"):
        distributed.load_state(tmp_path, placed)


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    return ranks.scaling()


def test_the_table_of_costs_is_up_to_date(scaling: ModuleType) -> None:
    assert scaling.PAGE.read_text(encoding="utf-8") == scaling.page(), "run `make docs`"


@pytest.mark.parametrize("family", [GPT2, BERT], ids=lambda family: family.name)
def test_the_table_counts_operations_as_torch_does(family: Family, scaling: ModuleType) -> None:
    """With dropout, so that attention is in operations that torch's counter knows."""
    step, shapes = scaling.Step(2, 5), scaling.shapes_of(family.module, family.config)
    heads = ("masked_lm",) if family is BERT else ()
    params = family.module.init(family.config, random.key(0), heads=heads)
    params = tree.map(lambda x: x.requires_grad_(), params)
    ids = torch.ones(step.examples, step.length, dtype=torch.int64)
    function = bert.masked_lm if family is BERT else gpt2.apply
    with FlopCounterMode(display=False) as counter:
        result = function(params, ids, key=random.key(1))
        tree.leaves(result)[0].sum().backward()
    assert counter.get_total_flops() == scaling.flops(shapes, scaling.Ranks(1, 1), step)
