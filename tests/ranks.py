"""One rank of the tests of fnlm.distributed: runs its checks and writes down what failed.

    python ranks.py RANK SIZE FOLDER            all checks
    python ranks.py RANK SIZE FOLDER vmap -v    those with a word in their names; prints their times
    python ranks.py RANK SIZE FOLDER reads      reads the states that others wrote

Each check compares what the ranks compute together with one process, in float64.
"""

import importlib.util
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from families import BERT, GPT2, TRANSFO_XL, Family, make_batch, make_params, scalar
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.func import grad, jvp, vjp, vmap

from fnlm import distributed, random, tree
from fnlm.distributed import (
    _buckets,
    fully_sharded,
    gather,
    own_rows,
    rank,
    replicated,
    shard,
    size,
)
from fnlm.distributed import tensor_parallel as tensor_parallel_plan
from fnlm.distributed.plans import use_copies
from fnlm.heads import output_table
from fnlm.leaves import is_adapter, lora
from fnlm.train import adamw, bert_adam, init_state, losses, mask_rows, openai_adam, train_step
from fnlm.transforms import (
    clipped_grad_sum,
    hessian,
    lanczos,
    per_example_grads,
    per_example_norms,
    remat,
    solve,
    trace,
)  # fmt: skip
from fnlm.tree import Tree

ROWS = 4
PLANS = ("replicated", "fully_sharded", "tensor_parallel", "mesh", "gathered")
Run = Callable[[], tuple[Tree, Tree]]


def assert_close(found: Tree, wanted: Tree, tolerance: float = 1e-9) -> None:
    assert tree.structure(found) == tree.structure(wanted)
    for (path, x), (_, y) in zip(tree.named_leaves(found), tree.named_leaves(wanted), strict=True):
        assert x.shape == y.shape, f"{path}: {x.shape}, {y.shape}"
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=partial(_at, path))


def _at(path: str, message: str) -> str:
    return f"{path}: {message}"


class Case:
    """A family under a plan: its loss on the ranks together, and in one process."""

    def __init__(self, family: Family, plan: str) -> None:
        self.family, self.task = family, list(family.tasks.values())[-1]
        params = make_params(family, dtype=torch.float64)
        self.params = {**params, "blocks": params["blocks"][:1]}  # every block is the same code
        self.direction = tree.map(torch.sin, self.params)
        ids, mask = make_batch(family, rows=ROWS)
        self.batch = ids, mask, random.split(random.key(3), ROWS)
        self.plan_name = plan
        self.plan, self.data = plan_of(plan)
        self.placed, self.moved = self.place(self.params), self.place(self.direction)
        self.own = own_rows(self.batch, self.data) if self.data is not None else self.batch

    def place(self, params: Tree) -> Tree:
        return shard(params, self.plan)

    def one(self, params: Tree, ids: Tensor, mask: Tensor, key: Tensor) -> Tensor:
        """The loss of an example, with dropout."""
        return scalar(self.task(params, ids, mask, key=key))

    def whole(self, params: Tree, *batch: Tensor) -> Tensor:
        return vmap(self.one, in_dims=(None, 0, 0, 0))(params, *batch).sum()

    def together(self, params: Tree, *batch: Tensor) -> Tensor:
        if self.plan_name == "gathered":
            params = gather(params)
        if self.plan_name == "bucketed":
            params = use_copies(params)
        value = self.whole(params, *batch)
        return value if self.data is None else distributed.sum(value, self.data)

    def compare(self, function: Callable[..., Tree], order: int = 1) -> None:
        """Compare a function of the loss, parameters and directions."""
        found = function(lambda p: self.together(p, *self.own), self.placed, self.moved)
        wanted = function(lambda p: self.whole(p, *self.batch), self.params, self.direction)
        assert_close(found, wanted if isinstance(wanted, Tensor) else self.place(wanted))


def plan_of(name: str) -> tuple[distributed.plans.Plan, Any]:
    """A plan, and the group that the batch is spread over; None where all compute the same."""
    if name in ("replicated", "bucketed"):
        return replicated(), ""
    if name in ("fully_sharded", "gathered"):
        return fully_sharded(), ""
    if name == "tensor_parallel":
        return tensor_parallel_plan(), None
    mesh = MESHES.setdefault("mesh", None) or init_device_mesh(
        "cpu", (size() // 2, 2), mesh_dim_names=("data", "tensor")
    )
    MESHES["mesh"] = mesh
    return tensor_parallel_plan(mesh["tensor"], fully_sharded(mesh["data"])), mesh["data"]


MESHES: dict[str, Any] = {}


def along(f: Callable[[Tree], Tree], params: Tree, direction: Tree) -> Tree:
    return jvp(f, (params,), (direction,))[1]


def back(f: Callable[[Tree], Tree], params: Tree, direction: Tree) -> Tree:
    return vjp(f, params)[1](direction)[0]


TRANSFORMS: dict[str, Callable[..., Tree]] = {
    "loss": lambda f, p, t: f(p),
    "gradient": lambda f, p, t: grad(f)(p),
    "jvp": along,
    "forward over reverse": lambda f, p, t: along(grad(f), p, t),
    "reverse over reverse": lambda f, p, t: back(grad(f), p, t),
    "reverse over forward": lambda f, p, t: grad(lambda q: along(f, q, t))(p),
    "forward over forward": lambda f, p, t: along(lambda q: along(f, q, t), p, t),
    "third order": lambda f, p, t: along(lambda q: along(grad(f), q, t), p, t),
    "third order, reversed": lambda f, p, t: grad(lambda q: along(lambda r: along(f, r, t), q, t))(
        p
    ),
    "vmap of jvp": lambda f, p, t: vmap(lambda s: along(f, p, tree.map(lambda x: x * s, t)))(
        torch.tensor([1.0, 2.0], dtype=torch.float64)
    ),
    "vmap of vjp": lambda f, p, t: tree.map(
        lambda x: x[0], vmap(lambda s: back(grad(f), p, s))(tree.map(lambda x: x[None], t))
    ),
    "plain autograd": lambda f, p, t: plain(f, p),
    "norm": lambda f, p, t: tree.norm(grad(f)(p)),
    "product": lambda f, p, t: tree.dot(p, t),
}


def plain(f: Callable[[Tree], Tensor], params: Tree) -> Tree:
    params = tree.map(lambda x: x.detach().requires_grad_(), params)
    found = torch.autograd.grad(
        f(params), tree.leaves(params), allow_unused=True, materialize_grads=True
    )
    return tree.unflatten(tree.structure(params), found)


def every_transform(case: Case, name: str) -> None:
    case.compare(TRANSFORMS[name])


def vmap_of_grad(case: Case) -> None:
    """Row i of the result is the gradient of the sum over ranks of their examples i."""
    in_dims = (None, 0, 0, 0)

    def together(params: Tree, *example: Tensor) -> Tensor:
        return case.together(params, *(x[None] for x in example))

    found = vmap(grad(together), in_dims=in_dims)(case.placed, *case.own)
    each = per_example_grads(case.one, case.params, *case.batch)
    rows = len(case.own[0])
    wanted = tree.map(lambda g: g.unflatten(0, (-1, rows)).sum(0), each)
    for i in range(rows):
        assert_close(
            tree.map(lambda g, i=i: g[i], found),
            case.place(tree.map(lambda g, i=i: g[i], wanted)),
        )


def clipped(case: Case) -> None:
    """Per-example quantities of the whole, and the sum of clipped gradients brought back."""
    for transform in (per_example_norms, per_example_grads):
        try:
            transform(case.one, case.placed, *case.own)
        except ValueError as error:
            assert "fnlm.distributed.gather(params)" in str(error)
        else:
            raise AssertionError("gradients of shards are not those of examples")
    norms = per_example_norms(case.one, case.params, *case.batch)
    limit = float(norms.median())
    whole = gather(case.placed)
    assert_close(per_example_norms(case.one, whole, *case.own), own_rows(norms, case.data))
    total, _ = clipped_grad_sum(case.one, whole, *case.own, max_norm=limit)
    wanted, _ = clipped_grad_sum(case.one, case.params, *case.batch, max_norm=limit)
    assert_close(distributed.scatter(total, case.placed), case.place(wanted))


OPTIMIZERS = {
    "adamw": lambda: adamw(0.01, max_grad_norm=0.5, weight_decay=0.1),
    "bert_adam": lambda: bert_adam(0.01, max_grad_norm=0.1),
    "openai_adam": lambda: openai_adam(0.01, max_grad_norm=0.1, weight_decay=0.1),
}


def ten_steps(case: Case, optimizer: str, donate: bool) -> None:
    """Ten steps, of which the fourth has no gradient on one rank: all ranks skip it."""
    bad = torch.zeros(ROWS, dtype=torch.float64)
    bad[-1] = torch.nan

    def loss(
        params: Tree, ids: Tensor, mask: Tensor, keys: Tensor, add: Tensor, *, key: Any
    ) -> Any:
        keys = random.fold_in(keys, key)
        each = vmap(case.one, in_dims=(None, 0, 0, 0))(params, ids, mask, keys)
        return losses.mean(each + add)

    def spread(params: Tree, *batch: Tensor, key: Any) -> Tensor:
        params = gather(params) if case.plan_name == "gathered" else params
        return loss(params, *batch, key=key)

    together = loss if case.data is None else distributed.data_parallel(spread, case.data)
    results = []
    for params, batch, of in (
        (case.placed, case.own, together),
        (case.params, case.batch, loss),
    ):
        rule = OPTIMIZERS[optimizer]()
        state = init_state(tree.map(torch.clone, params), rule, random.key(1))
        step, extra = train_step(of, rule, donate=donate), [bad * 0, bad]
        if batch is case.own and case.data is not None:
            extra = own_rows(extra, case.data)
        rows = []
        for number in range(10):
            state, metrics = step(state, *batch, extra[number == 3])
            rows.append(torch.stack([metrics.loss, metrics.gradient_norm]))
        results.append((state, torch.stack(rows)))
    (found, norms), (wanted, other) = results
    assert found.skipped == wanted.skipped
    torch.testing.assert_close(norms, other, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert_close(found.params, case.place(wanted.params))
    for link, same in zip(found.opt_state.links, wanted.opt_state.links, strict=True):
        assert_close(link, type(same)(*map(case.place, same)) if same else same)


def uneven_counts() -> None:
    """Means are over all ranks' tokens, in micro-batches too; a penalty is a mean over ranks."""
    case = Case(GPT2, "fully_sharded")
    ids, mask = make_batch(GPT2, rows=2 * ROWS)
    mask[:3, 1:] = False  # hardly any targets on the first rank

    def loss(params: Tree, ids: Tensor, mask: Tensor, *, key: Any) -> Tensor:
        logits = GPT2.module.apply(params, ids)[0]
        hidden = GPT2.module.hidden_states(params, ids)[0]
        first = losses.language_model(logits, ids, mask)
        table = output_table(params)
        second = losses.linear_language_model(hidden[::2], table, ids[::2], mask[::2])
        return first + second + params["norm"]["scale"].square().sum()

    step = train_step(loss, adamw(0.01), accumulate=1)
    state, metrics = step(init_state(case.params, adamw(0.01), random.key(0)), ids, mask)
    own = own_rows((ids, mask))
    for accumulate in (1, 2):
        if accumulate * size() > 4:
            continue
        many = train_step(distributed.data_parallel(loss), adamw(0.01), accumulate=accumulate)
        found, numbers = many(init_state(case.placed, adamw(0.01), random.key(0)), *own)
        torch.testing.assert_close(numbers.loss, metrics.loss, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(
            numbers.gradient_norm, metrics.gradient_norm, rtol=1e-9, atol=1e-9
        )
        assert_close(found.params, case.place(state.params), 1e-7)  # Adam divides by small roots


def buckets() -> None:
    """Sums in buckets have every derivative, the numbers of sums one by one, and few messages."""
    case = Case(GPT2, "bucketed")
    for name in TRANSFORMS if FULL else (*CORE, "forward over forward", "vmap of vjp"):
        every_transform(case, name)
    vmap_of_grad(case)
    torch.manual_seed(rank())
    things = {
        "a": torch.randn(3, 5, dtype=torch.float64), "b": torch.randn(7),
        "c": (torch.randn(4, 6).mT, torch.tensor(3 + rank()), torch.randn(())),
        "d": torch.randn(0, 3), "e": torch.randn(2, 3, dtype=torch.float64),
    }  # fmt: skip
    wanted = tree.map(distributed.sum, things)
    before, counts = _buckets.BUCKET, []
    for nbytes in (before, 150, 1):
        _buckets.BUCKET = nbytes
        with distributed.messages() as sent:
            found = distributed.sum(things)
        assert_close(found, wanted, 1e-6)  # with more than two ranks, in another order
        assert_close([found["a"], found["e"]], [wanted["a"], wanted["e"]], 1e-12)
        counts.append(len(sent))
        moved, rest = tree.partition(things, lambda path, x: path in ("a", "b"))
        found = grad(lambda x, rest=rest: distributed.sum({**rest, **x})["a"].square().sum())(moved)
        assert_close(found["a"], 2 * wanted["a"], 1e-12)
        assert not found["b"].any()
    _buckets.BUCKET = before
    assert counts == [3, 4, 7], counts  # of three types; the last ones one by one


def masked_rows() -> None:
    """A row of a table is masked on the rank that has it, and files are the first rank's."""
    whole = make_params(GPT2, dtype=torch.float64)
    last = whole["embed"]["token"].shape[0] - 1
    for name in PLANS:
        placed, gradients = (shard(x, plan_of(name)[0]) for x in (whole, tree.map(abs, whole)))
        for row in (0, 1, last):
            for donate in (False, True):
                rule = mask_rows(adamw(0.1, weight_decay=0.0), {"embed.token": row})
                params = tree.map(torch.clone, placed)
                grads = tree.map(torch.clone, gradients)
                found, _ = rule.update(grads, rule.init(params), params, donate=donate)
                table = gather(found)["embed"]["token"]
                same = (table == whole["embed"]["token"]).all(-1)
                assert same.nonzero().flatten().tolist() == [row], (name, row)
        collected = distributed.collect(placed)
        assert_close(collected, whole if rank() == 0 else {}, 0.0)
        blank = tree.map(torch.zeros_like, placed)
        assert_close(distributed.distribute(collected, blank), placed, 0.0)
    nested = distributed.on_first(lambda: distributed.on_first(lambda: rank()))
    assert (nested, distributed.every(rank())) == (0, [*range(size())])
    try:
        distributed.on_first(lambda: whole["none"])
    except KeyError as error:
        assert error.args == ("none",)
        assert getattr(error, "__notes__", []) == (["raised on rank 0"] if rank() else [])
    else:
        raise AssertionError("an error of the first rank was lost")


def bytes_of_a_rank() -> None:
    """A rank holds 1/N of parameters and moments, and not the memory of the whole."""
    params = make_params(GPT2)
    placed = shard(params, fully_sharded())
    state = adamw(0.1).init(placed)
    for held in (placed, state.links[1].mu, state.links[1].nu):
        stored = sum(x.untyped_storage().nbytes() for x in tree.leaves(held))
        share = stored / sum(x.nbytes for x in tree.leaves(params))
        assert 1 / size() <= share < 1.1 / size(), share


def round_trips() -> None:
    """What was placed comes back, of all shapes and types; a leaf of a partition, too."""
    torch.manual_seed(0)
    things = {
        "odd": torch.randn(5, 3), "vector": torch.arange(7.0), "one": torch.ones(1),
        "scalar": torch.tensor(2.0), "half": torch.randn(6, 4).bfloat16(),
        "turned": torch.randn(4, 6).mT, "three": torch.randn(3, 5, 7), "none": torch.ones(0, 3),
    }  # fmt: skip
    for name in PLANS:
        placed = shard(things, plan_of(name)[0])
        assert_close(gather(placed), things, 0.0)
        assert shard(placed, replicated()) is not placed
        assert_close(gather(shard(placed, replicated())), things, 0.0)
        halves = tree.partition(placed, lambda path, x: path == "odd")
        assert_close(gather(tree.merge(*halves)), things | {}, 0.0)
        ensemble = tree.stack([placed, tree.map(lambda x: x + 1, placed)])
        assert_close(gather(ensemble)["turned"][1], things["turned"] + 1, 0.0)
        assert [p for p, _ in tree.named_leaves(placed)] == list(things)
        for path, leaf in tree.named_leaves(placed, whole=distributed.Placed):
            assert leaf.shape == things[path].shape and leaf.dtype == things[path].dtype, path


def other_leaves() -> None:
    """Adapters on shards, and recomputation of blocks, have the gradients of the whole."""
    case = Case(GPT2, "fully_sharded")
    adapted = lora(case.params, random.key(0), rank=2)
    adapted = tree.map(lambda x: x + 0.01, adapted)
    wanted = grad(lambda p: case.whole(p, *case.batch))(adapted)
    found = grad(lambda p: case.together(p, *case.own))(shard(adapted, fully_sharded()))
    assert_close(gather(found), wanted)
    assert any(is_adapter(path) for path, _ in tree.named_leaves(found))
    again = grad(remat(lambda p: case.together(p, *case.own)))(case.placed)
    assert_close(again, case.place(grad(lambda p: case.whole(p, *case.batch))(case.params)))


def solver() -> None:
    """Hessian products and conjugate gradients over shards; what needs whole vectors says so."""
    case = Case(GPT2, "fully_sharded")
    together = hessian(lambda p: case.together(p, *case.own), case.placed)
    alone = hessian(lambda p: case.whole(p, *case.batch), case.params)
    assert_close(together(case.moved), case.place(alone(case.direction)))
    options: dict[str, Any] = {"damping": 3e4, "tol": 1e-10}
    found = solve(together, case.moved, **options)
    wanted = solve(alone, case.direction, **options)
    assert found.converged and found.iterations == wanted.iterations
    assert_close(found.x, case.place(wanted.x))
    for function in (trace, lanczos):
        try:
            function(together, case.placed, random.key(0), 2)
        except ValueError as error:
            assert "fnlm.distributed.gather(params)" in str(error)
        else:
            raise AssertionError("random numbers of parts are not those of the whole")


def scaling() -> Any:
    """The program that writes the table of docs/scaling.md."""
    path = Path(__file__).resolve().parent.parent / "docs" / "scaling.py"
    described = importlib.util.spec_from_file_location("scaling", path)
    assert described is not None and described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def messages_of(plan: str) -> None:
    """What is communicated is what docs/scaling.md says."""
    for family in (GPT2, BERT):
        scaling().check(family.module, family.config, plan)


def saves(folder: Path) -> None:
    """A state is read with another plan, and refused where it is another one."""
    rule = adamw(0.1)
    whole = init_state(Case(GPT2, "replicated").params, rule, random.key(0))
    gradients = tree.map(lambda x: x * 0.1, whole.params)
    for name in PLANS:
        plan = plan_of(name)[0]
        state = init_state(shard(whole.params, plan), rule, random.key(0))
        params, opt_state = rule.update(shard(gradients, plan), state.opt_state, state.params)
        state = state._replace(params=params, opt_state=opt_state)
        distributed.save_state(state, folder / name)
    for name in PLANS:
        reads(folder / name)
    try:
        distributed.save_state(state, folder / name)
    except FileExistsError:
        pass
    else:
        raise AssertionError("a state was overwritten")


def reads(folder: Path) -> None:
    """Read a state that some number of processes wrote, with every plan."""
    rule = adamw(0.1)
    whole = init_state(Case(GPT2, "replicated").params, rule, random.key(0))
    gradients = tree.map(lambda x: x * 0.1, whole.params)
    params, opt_state = rule.update(gradients, whole.opt_state, whole.params)
    wanted = whole._replace(params=params, opt_state=opt_state)
    for name in PLANS if size() > 1 else PLANS[:3]:
        plan = plan_of(name)[0]
        blank = tree.map(torch.zeros_like, shard(whole.params, plan))
        found = distributed.load_state(folder, init_state(blank, rule, random.key(5)))
        # Parts are updated in the same arithmetic; vector instructions may round otherwise.
        assert_close(gather(found.params), wanted.params, 1e-14)
        assert_close(gather(found.opt_state.links[1]), wanted.opt_state.links[1], 1e-14)
        assert int(found.opt_state.step) == 1 and torch.equal(found.key, whole.key)
    small = dict(list(whole.params.items())[:2])
    for like, word in ((small, "absent"), (tree.cast(wanted, torch.float32), "float32")):
        try:
            distributed.load_state(folder, like)
        except ValueError as error:
            assert word in str(error)
        else:
            raise AssertionError("another state was taken")


# What the gate tries of every family and plan; FNLM_TEST_FULL=1 tries everything.
CORE = ("gradient", "jvp", "forward over reverse", "reverse over reverse", "third order")
FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"


def checks_of(family: Family, plan: str, ranks: int) -> dict[str, Callable[[], None]]:
    """The checks of a family under a plan, by their names."""
    made: list[Case] = []

    def case() -> Case:
        if not made:
            made.append(Case(family, plan))
        return made[0]

    every = FULL or (family is GPT2 and ranks == 2 and plan in ("replicated", "fully_sharded"))
    found: dict[str, Callable[[], None]] = {}
    few = CORE[::2] if plan == "gathered" and family is not GPT2 else CORE
    for name in TRANSFORMS if every else few:
        found[name] = lambda n=name: every_transform(case(), n)  # type: ignore[misc]
    found["vmap of grad"] = lambda: vmap_of_grad(case())
    if plan not in ("tensor_parallel", "mesh"):
        found["clipped"] = lambda: clipped(case())
    steps = {"fully_sharded": "adamw", "tensor_parallel": "bert_adam"}
    for rule, donate in (("adamw", True), ("bert_adam", False), ("openai_adam", True)):
        if every or (ranks == 2 and (family is GPT2 or steps.get(plan) == rule)):
            found[f"ten steps of {rule}"] = lambda r=rule, d=donate: ten_steps(case(), r, d)  # type: ignore[misc]
    return {f"{family.name}, {plan}: {name}": check for name, check in found.items()}


def checks(ranks: int, folder: Path) -> dict[str, Callable[[], None]]:
    """Every check by its name."""
    found: dict[str, Callable[[], None]] = {
        "uneven counts": uneven_counts,
        "buckets": buckets,
        "masked rows": masked_rows,
        "bytes of a rank": bytes_of_a_rank,
        "round trips": round_trips,
        "other leaves": other_leaves,
        "solver": solver,
        "saves": lambda: saves(folder / "saved"),
    }
    if ranks == 4 and not FULL:
        del found["solver"], found["other leaves"]
    for plan in (*PLANS, "bucketed"):
        found[f"messages, {plan}"] = lambda p=plan: messages_of(p)  # type: ignore[misc]
    for family in (GPT2, BERT, TRANSFO_XL):
        for plan in PLANS:
            # Two ranks make a mesh without parallel data, four the one that is worth trying.
            if FULL or (plan == "mesh" if ranks == 4 else plan != "mesh"):
                found |= checks_of(family, plan, ranks)
    return found


def main() -> None:
    number, ranks, place, *only = sys.argv[1:]
    folder = Path(place)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    results: dict[str, str] = {}
    options: dict[str, Any] = {}
    if int(ranks) > 1:
        options = {"init_method": f"file://{folder}/meet{ranks}", "rank": int(number)}
        options |= {"world_size": int(ranks), "backend": "gloo"}
    with distributed.session(timeout=60, **options):
        assert (rank(), size()) == (int(number), int(ranks))
        todo = checks(size(), folder)
        if "reads" in only:
            todo = {f"reads {n}": lambda n=n: reads(folder / "saved" / n) for n in PLANS}  # type: ignore[misc]
        words = [word for word in only if word not in ("reads", "-v")]
        for name, check in todo.items():
            if not all(word in name for word in words):
                continue
            start = time.perf_counter()
            try:
                check()
                results[name] = ""
            except Exception as error:  # the other ranks go on, as they meet the same error
                results[name] = traceback.format_exc()
                if isinstance(error, RuntimeError):  # of the communication: nobody goes on
                    break
            if "-v" in only:
                line = f"{time.perf_counter() - start:6.2f} {name} {results[name]}\n"
                sys.stdout.write(line)
    (folder / f"results{ranks}-{number}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
