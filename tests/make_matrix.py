"""Writes docs/matrix.md: every function of every family under every transform, beside transformers.

    python tests/make_matrix.py [processes]

Models of one block with the same parameters, in float64, without padding. Each cell is compared
with plain autograd and loops of fnlm's function (`compositions.reference`). transformers' models
have their defaults, and are called through `torch.func.functional_call`.
"""

import copy
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import make_derivatives as made
import torch
from compositions import Function, compose, dot, error, reference
from conftest import ROOT
from families import FAMILIES, TRANSFO_XL, WRITTEN, Family, scalar, with_heads
from peers import hf, quiet
from test_leaves_transforms import KINDS
from torch import Tensor, nn
from torch.func import functional_call, grad, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fnlm import families, tree
from fnlm.leaves import merge
from fnlm.params import _rename
from fnlm.params.module import as_module
from fnlm.tree import Tree

PAGE = ROOT / "docs" / "matrix.md"
TOLERANCE = 1e-6
COARSE = 0.05  # of bfloat16
EXAMPLE, OTHER = torch.tensor(0), torch.tensor(1)
SIZES: dict[str, dict[str, Any]] = {
    "bert": made.MODELS["BERT, masked LM"].changes, "gpt": made.TINY, "gpt2": made.TINY,
    "transfo_xl": made.MODELS["Transformer-XL"].changes,
}  # fmt: skip
# What a peer's config says besides.
EXTRA: dict[str, dict[str, Any]] = {
    "gpt": {"num_labels": 1}, "gpt2": {"num_labels": 1, "bos_token_id": None, "eos_token_id": None},
}  # fmt: skip
BY_NAME = {family.name: family for family in FAMILIES}
TITLES = {name: record.title for name, record in families.FAMILIES.items()}
# Of torch itself, about its own code.
KNOWN = (
    "`torch.jit.script",
    "Attempted to insert a get_attr Node",
    "isinstance(treespec, LeafSpec)",
)
Forward = Callable[..., Any]  # forward(params, ids [B, T]) -> tensors
HEAD = """# Every function under every transform

What each function of each family gives under each transform of `torch.func` and each of torch's
tracers: `fnlm / transformers`. Models of one block have the same parameters in both, in float64,
and ids without padding; transformers' have their defaults, and are called through
`torch.func.functional_call`. Derivatives are along directions that move every leaf, `vmap` is over
examples, and a cell is compared with plain autograd and loops.

- "right": the same numbers, to 1e-6 (bfloat16: the whole gradient to 5 %), without a warning but
  those of torch about code of its own.
- "slow": right, but `vmap` falls back to a loop, and says so in a warning.
- "off by": without an error or a warning.
- "error": the number of one in the list at the end of the page.

[derivatives.md](derivatives.md) has all pairs of transforms, and attention without fused kernels.
"compile" is the front half of the compiler (`aot_eager`) with `fullgraph=True`; the whole compiler
runs on every function in `tests/test_transforms.py`. "blocks recomputed" is `remat=True`, and
`gradient_checkpointing_enable()` of transformers in training mode, with all dropout rates 0.

Written by `python tests/make_matrix.py`, with VERSIONS; `tests/test_matrix.py` computes what is
fast of it anew.
"""
LEAVES = """## Typed leaves

The last function of each family above, with leaves that are no tensors ([leaves.md](leaves.md)),
differentiated by their floating-point parts. "right" is what the tensors give that they stand for,
in all families of this page; what is traced, in GPT-2. Compiled ones are in
`tests/test_leaves_transforms.py`.
"""
ERRORS = """## Errors
"""


class Case:
    """A function of a model, and its transforms."""

    def __init__(
        self, forward: Forward, params: Tree, along: list[Tree], module: nn.Module,
        remat: Forward | None = None, meta: Forward | None = None, half: Forward | None = None,
    ) -> None:  # fmt: skip
        self.forward, self.params, self.along, self.module = forward, params, along, module
        # The same with blocks recomputed, and for parameters on meta and in bfloat16.
        self.remat, self.meta, self.half = remat or forward, meta or forward, half or forward

    def h(self, p: Tree, i: Tensor) -> Tensor:
        return self.of(self.forward)(p, i)

    @staticmethod
    def of(forward: Forward) -> Function:
        """Take the number of an example; models of transformers want a batch of it alone."""
        return lambda p, i: scalar(forward(p, made.IDS.index_select(0, i[None])))


def composed(*names: str) -> Callable[[Case], Tree]:
    """A composition of transforms, along a direction for each of them."""
    return lambda case: compose(case.h, names, case.along[-len(names) :])(case.params, EXAMPLE)


def recomputed(case: Case) -> Tensor:
    return dot(grad(case.of(case.remat))(case.params, EXAMPLE), case.along[-1])


def ensemble(case: Case) -> Tensor:
    members = tree.stack([case.params, tree.map(lambda x: 0.9 * x, case.params)])
    return vmap(case.h, (0, None))(members, EXAMPLE)


def distance_in_bfloat16(case: Case) -> Tensor:
    """How far a gradient in bfloat16 is from the same in float64, all leaves together."""
    exact, half = case.params, tree.cast(case.params, torch.bfloat16)
    found = grad(case.of(case.half))(half, EXAMPLE)
    expected = grad(case.h)(exact, EXAMPLE)
    difference = tree.map(lambda x, y: x.double() - y, found, expected)
    return tree.norm(difference) / tree.norm(expected)


def on_meta(case: Case) -> list[int]:
    found = case.meta(tree.to(case.params, "meta"), made.IDS.to("meta"))
    assert all(x.device.type == "meta" for x in tree.leaves(found))
    return [x.numel() for x in tree.leaves(found)]


def linearized(case: Case) -> Tensor:
    flat, structure = tree.leaves(case.params), tree.structure(case.params)

    def by_leaves(*leaves: Tensor) -> Tensor:
        return case.h(tree.unflatten(structure, leaves), EXAMPLE)

    return linearize(by_leaves, *flat)[1](*tree.leaves(case.along[-1]))


def recorded(case: Case) -> Tensor:
    """The graph of a gradient, at other parameters and another example than it was made of."""
    twice = tree.map(lambda x: 2 * x, case.params)

    def gradient(p: Tree, i: Tensor) -> Tree:
        return grad(case.h)(p, i)

    graph = make_fx(gradient)(twice, OTHER)
    return dot(graph(case.params, EXAMPLE), case.along[-1])


def exported(case: Case) -> Any:
    program = torch.export.export(case.module, (made.IDS,))
    return scalar(tree.leaves(program.module()(made.IDS)))


def compiled(case: Case) -> Any:
    torch.compiler.reset()
    run = torch.compile(case.forward, fullgraph=True, backend="aot_eager")
    return scalar(run(case.params, made.IDS))


def compiled_per_example(case: Case) -> Tree:
    torch.compiler.reset()
    run = torch.compile(vmap(grad(case.h), (None, 0)), fullgraph=True, backend="aot_eager")
    found = run(case.params, torch.arange(2))
    return dot(tree.map(lambda x: x[EXAMPLE], found), case.along[-1])


SLOPE, CURVE = ("grad",), ("grad", "grad")
THIRD = ("grad", "grad", "grad")


class Row(NamedTuple):
    """What a transform gives, and which composition of plain autograd and loops gives the same."""

    run: Callable[[Case], Any]
    expected: Any  # kinds of `reference`, or a function of the case; None for what is a distance
    tolerance: float = TOLERANCE
    slow: bool = False  # traced, which takes seconds


def whole(case: Case) -> Tensor:
    return scalar(case.forward(case.params, made.IDS))


def sizes(case: Case) -> list[int]:
    return [x.numel() for x in tree.leaves(case.forward(case.params, made.IDS))]


def loop_of_members(case: Case) -> Tensor:
    members = [case.params, tree.map(lambda x: 0.9 * x, case.params)]
    return torch.stack([case.h(member, EXAMPLE) for member in members])


ROWS: dict[str, Row] = {
    "value": Row(whole, whole),
    "grad": Row(composed("grad"), SLOPE),
    "vjp": Row(composed("vjp"), SLOPE),
    "jvp": Row(composed("jvp"), SLOPE),
    "vmap": Row(composed("vmap"), ("vmap",)),
    "jacrev": Row(composed("jacrev"), SLOPE),
    "jacfwd": Row(composed("jacfwd"), SLOPE),
    "hessian": Row(composed("hessian"), ("hessian",)),
    "vmap of grad": Row(composed("vmap", "grad"), ("vmap", "grad")),
    "jvp of grad": Row(composed("jvp", "grad"), CURVE),
    "grad of grad": Row(composed("grad", "grad"), CURVE),
    "grad of jvp": Row(composed("grad", "jvp"), CURVE),
    "jvp of jvp": Row(composed("jvp", "jvp"), CURVE),
    "vmap of jvp of grad": Row(composed("vmap", "jvp", "grad"), ("vmap", "grad", "grad")),
    "grad of vmap of grad": Row(composed("grad", "vmap", "grad"), ("grad", "vmap", "grad")),
    "jvp of jvp of grad": Row(composed("jvp", "jvp", "grad"), THIRD),
    "grad of grad of grad": Row(composed("grad", "grad", "grad"), THIRD),
    "linearize": Row(linearized, SLOPE, slow=True),
    "vmap over models": Row(ensemble, loop_of_members),
    "grad, blocks recomputed": Row(recomputed, SLOPE),
    "grad in bfloat16": Row(distance_in_bfloat16, None, COARSE),
    "meta tensors": Row(on_meta, sizes),
    "make_fx of grad": Row(recorded, SLOPE, slow=True),
    "export": Row(exported, whole, slow=True),
    "compile": Row(compiled, whole, slow=True),
    "compile of vmap of grad": Row(compiled_per_example, SLOPE, slow=True),
}  # fmt: skip


def off(found: Any, expected: Any) -> float:
    """Return the largest error of any leaf."""
    if expected is None:  # what was found is a distance
        return float(found)
    if isinstance(expected, list):
        return 0.0 if found == expected else float("inf")
    return error(found, expected)


def cell(name: str, case: Case, wanted: Case) -> str:
    """Say what a transform gives: "right", by how much it is off, "slow", or which error."""
    row = ROWS[name]
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            found = row.run(case)
    except Exception as problem:
        return f"error: {in_short(problem)}"
    said = [str(w.message) for w in heard if not any(known in str(w.message) for known in KNOWN)]
    distance = off(found, expected(name, wanted))
    if not distance < row.tolerance:
        return f"**off by {100 * distance:{'.0f' if distance > 0.1 else '.2g'}} %**"
    if any("performance drop" in words for words in said):
        return "slow"
    return "a warning" if said else "right"


def expected(name: str, case: Case) -> Any:
    """What a row should give, made once for each case."""
    if (made_of := ROWS[name].expected) is None:
        return None
    known = case.__dict__.setdefault("known", {})
    if made_of not in known:
        if callable(made_of):
            known[made_of] = made_of(case)
        else:
            found = reference(case.h, made_of, case.along[-len(made_of) :])
            known[made_of] = found(case.params, EXAMPLE).detach()
    return known[made_of]


def in_short(problem: Exception) -> str:
    """The kind of an error and its first sentence."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0].partition('. ')[0][:160] if lines else ''}"


def heads_of(family: Family, task: str) -> tuple[str, ...]:
    """The heads that a function of the table needs."""
    own = {"pretraining": family.module.HEADS[:2], "double_heads": family.module.HEADS}
    return tuple(own.get(task, (task,) if task in family.module.HEADS else ()))


def small(family: Family) -> Family:
    return family._replace(config=replace(family.config, **SIZES.get(family.name, {})))


@cache
def ours(family: str, task: str) -> Case:
    row = small(BY_NAME[family])
    params, forward = with_heads(row, heads_of(row, task), torch.float64), row.tasks[task]
    return Case(
        forward, params, made.directions(params), as_module(forward, params),
        remat=partial(forward, remat=True),
    )  # fmt: skip


class Task(nn.Module):
    """A model of transformers with the arguments and results of a function of the table."""

    def __init__(self, family: str, task: str, model: Any) -> None:
        super().__init__()
        self.family, self.task, self.model = family, task, model

    def forward(self, ids: Tensor) -> Any:
        task, options = self.task, {}
        if task in ("double_heads", "multiple_choice"):
            ids = torch.stack([ids, ids.roll(1, -1)], -2)
        if self.family == "bert":
            options["token_type_ids"] = ids % 2
        if task == "double_heads":
            options["mc_token_ids"] = torch.full_like(ids[..., 0], ids.shape[-1] - 2)
        if task in ("layers", "hidden_states"):
            states = self.model(ids, output_hidden_states=True, **options).hidden_states
            return states[1:] if task == "layers" else states[-1]
        found = self.model(ids, **options)
        if task == "double_heads":
            return found.logits, found.mc_logits
        return tuple(found.values()) if self.family == "bert" else found.logits


@cache
def theirs(family: str, task: str) -> Case:
    """The same function of transformers, under its own names."""
    row, same = small(BY_NAME[family]), ours(family, task)
    heads, config = heads_of(row, task), same.params["config"]
    if family == "gpt":  # its peer counts words and special tokens together
        config = replace(config, vocab_size=config.total_tokens_embeddings)
    cls = getattr(hf(), row.names.architectures[heads])
    with quiet():
        model = cls(cls.config_class(**config.to_dict() | EXTRA.get(family, {}))).double().eval()
    module, dialect = Task(family, task, model), _rename.for_heads(row.names, heads).dialects[0]
    wanted = [name for name, _ in module.named_parameters()]

    def renamed(values: Tree) -> Tree:
        leaves = {name: leaf for name, leaf in values.items() if name != "config"}
        foreign = _rename.to_foreign(leaves, dialect)
        return {name: foreign[name.removeprefix("model.")] for name in wanted}

    params = renamed(same.params)
    module.load_state_dict(params, strict=False)

    def forward(p: Tree, ids: Tensor, of: nn.Module = module) -> Any:
        return functional_call(of, p, (ids,))

    def remat(p: Tree, ids: Tensor) -> Any:
        """Recompute blocks, which these models do in training mode, here without dropout."""
        again: Any = copy.deepcopy(module).train()
        for part in again.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        with quiet():
            again.model.gradient_checkpointing_enable()
        return forward(p, ids, again)

    return Case(
        forward, params, [renamed(d) for d in same.along], module,
        remat=remat, meta=partial(forward, of=copy.deepcopy(module).to("meta")),
        half=partial(forward, of=copy.deepcopy(module).bfloat16()),
    )  # fmt: skip


@cache
def with_leaves(family: str, kind: str) -> tuple[Case, Case]:
    """The last function of a family with typed leaves, by its floating half; and with tensors."""
    row = small(BY_NAME[family])
    params, task = KINDS[kind](row, dtype=torch.float64), list(row.tasks.values())[-1]
    floats, rest = tree.partition(params, lambda path, leaf: leaf.is_floating_point())

    def forward(p: Tree, ids: Tensor, **how: Any) -> Any:
        return task(tree.merge(p, rest), ids, **how)

    def on_meta(p: Tree, ids: Tensor) -> Any:
        return task(tree.to(tree.merge(p, rest), "meta"), ids)

    def dense(p: Tree, ids: Tensor) -> Any:
        return task(merge(tree.merge(p, rest)), ids)

    along, module = made.directions(floats), as_module(forward, floats)
    case = Case(forward, floats, along, module, partial(forward, remat=True), on_meta)
    return case, Case(dense, floats, along, module)


Column = dict[str, list[str]]  # the cells of each row, one or two


def column(family: str, task: str) -> Column:
    """What a function gives, in fnlm and in its peer."""
    wanted = ours(family, task)
    cases = [wanted] if BY_NAME[family] is TRANSFO_XL else [wanted, theirs(family, task)]
    return {name: [cell(name, case, wanted) for case in cases] for name in ROWS}


def column_of_leaves(kind: str) -> Column:
    """What typed leaves give, in all families; what is traced, in one."""
    names = [family.name for family in WRITTEN]
    return {
        name: [leaves_cell(name, kind, names[:1] if row.slow else names)]
        for name, row in ROWS.items()
        if not name.startswith("compile")
    }


def leaves_cell(name: str, kind: str, families: list[str]) -> str:
    found = {family: cell(name, *with_leaves(family, kind)) for family in families}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{family}: {words}" for family, words in found.items())


def table(title: str, columns: dict[str, Column], errors: list[str]) -> str:
    """The lines of a table; errors are numbered as they come."""
    lines = [f"| {title} | " + " | ".join(columns) + " |", "| --- " * (1 + len(columns)) + "|"]
    for name in next(iter(columns.values())):
        cells = [" / ".join(numbered(words, errors) for words in c[name]) for c in columns.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines).replace("|  |", "| |")


def numbered(words: str, errors: list[str]) -> str:
    """Give an error its number in the list."""
    if not words.startswith("error: "):
        return words
    if (message := words.removeprefix("error: ")) not in errors:
        errors.append(message)
    return f"error {errors.index(message) + 1}"


def versions() -> str:
    return f"torch {torch.__version__.split('+')[0]}, transformers {hf().__version__}"


def page(workers: int) -> str:
    """The text of docs/matrix.md."""
    errors: list[str] = []
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        made_of_leaves = {kind: pool.submit(column_of_leaves, kind) for kind in KINDS}
        made_of = {
            family.name: {task: pool.submit(column, family.name, task) for task in family.tasks}
            for family in WRITTEN
        }
        tables = [
            table(TITLES[name], {task: cells.result() for task, cells in columns.items()}, errors)
            for name, columns in made_of.items()
        ]
        leaves = table("", {kind: cells.result() for kind, cells in made_of_leaves.items()}, errors)
    listed = "\n".join(f"{number}. `{words}`" for number, words in enumerate(errors, 1))
    parts = [HEAD.replace("VERSIONS", versions()), *tables, LEAVES, leaves, ERRORS, listed]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


if __name__ == "__main__":
    sys.stdout.write(found := page(int(sys.argv[1]) if sys.argv[1:] else 2))
    PAGE.write_text(found, encoding="utf-8")
