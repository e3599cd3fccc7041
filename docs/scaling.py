"""Writes the table of docs/scaling.md: what a step costs on many GPUs, under each plan.

Run as `python docs/scaling.py`. The costs are sums over the leaves of a config; `check`, which the
tests run on 2 and 4 processes, holds them to what a small model really sends.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from fnlm import bert, distributed, gpt2, random, tree
from fnlm.distributed import Message
from fnlm.distributed._buckets import BUCKET
from fnlm.distributed.plans import Plan, axis_to_cut, use_copies
from fnlm.leaves._leaf import is_table
from fnlm.transforms import grad

PAGE = Path(__file__).with_name("scaling.md")
MARK = "<!-- the table is written by scaling.py -->\n"
GPUS, NODE = (8, 64, 1024), 8  # a node's GPUs are those of the tensor-parallel group
PLANS = ("replicated", "bucketed", "fully_sharded", "gathered", "tensor_parallel", "mesh")
Shapes = dict[str, tuple[int, ...]]


class Ranks(NamedTuple):
    """How many ranks compute different examples, and how many share the same ones."""

    data: int
    tensor: int


class Step(NamedTuple):
    """The work of one rank: a batch for its tensor-parallel group."""

    examples: int
    length: int  # tokens of an example

    @property
    def tokens(self) -> int:
        """Tokens of the batch."""
        return self.examples * self.length


def shapes_of(module: Any, config: Any) -> Shapes:
    """Return the shapes of what a language model uses, by path."""
    spec = module.spec(config, ("masked_lm",) if module is bert else ())
    named = tree.named_leaves({name: x for name, x in spec.items() if name != "pooler"})
    return {path: leaf.shape for path, leaf in named}


def ranks_of(plan: str, size: int, tensor: int) -> Ranks:
    """Return the groups of a plan."""
    if plan == "tensor_parallel":
        return Ranks(1, size)
    return Ranks(size // tensor, tensor) if plan == "mesh" else Ranks(size, 1)


def is_split(path: str, shape: tuple[int, ...]) -> bool:
    """Return whether `tensor_parallel` splits a leaf."""
    return bool(distributed.tensor_parallel()(path, torch.empty(shape, device="meta")))


def padded(shape: tuple[int, ...], axis: int, ranks: int) -> tuple[int, ...]:
    """Return the shape of a rank's part."""
    part = list(shape)
    part[axis] = math.ceil(part[axis] / ranks)
    return tuple(part)


def messages(shapes: Shapes, plan: str, ranks: Ranks, step: Step, itemsize: int) -> list[Message]:
    """Return what each rank takes part in, in a gradient of a language model with a tied output."""
    found: list[Message] = []
    together = 0  # elements of all parts, where they are gathered at once
    buckets: list[int] = []  # bytes of each, where gradients are summed in them
    for path, shape in shapes.items():
        uses = 2 if path == "embed.token" else 1
        part = shape
        if ranks.tensor > 1 and is_split(path, shape):
            axis = -2 if is_table(path) else -1
            part = padded(shape, axis, ranks.tensor)
            found += products(path, shape, part, ranks.tensor, step, itemsize)
        if ranks.data == 1:
            continue
        if plan == "bucketed":
            nbytes = math.prod(part) * itemsize
            if not buckets or buckets[-1] + nbytes > BUCKET:
                buckets.append(0)
            buckets[-1] += nbytes
            continue
        if plan == "replicated":
            found += uses * [Message("all_reduce", math.prod(part) * itemsize, ranks.data)]
            continue
        own = math.prod(padded(part, axis_to_cut(part, ranks.data), ranks.data))
        together += own
        if plan != "gathered":
            nbytes = own * ranks.data * itemsize
            for kind in ("all_gather", "reduce_scatter"):
                found += uses * [Message(kind, nbytes, ranks.data)]
    found += [Message("all_reduce", nbytes, ranks.data) for nbytes in buckets]
    if plan == "gathered" and ranks.data > 1:
        nbytes = together * ranks.data * itemsize
        found += [Message(kind, nbytes, ranks.data) for kind in ("all_gather", "reduce_scatter")]
    return found


def products(
    path: str, shape: tuple[int, ...], part: tuple[int, ...], ranks: int, step: Step, itemsize: int
) -> list[Message]:
    """Return the messages of the products with a split matrix: results, and gradients of inputs."""
    if is_table(path):  # a lookup, and the product of the tied output
        inputs, outputs = shape[1], part[0] * ranks
        lookup = [Message("all_reduce", step.tokens * shape[1] * itemsize, ranks)]
    else:
        inputs, outputs, lookup = shape[0], part[1] * ranks, []
    return [
        *lookup,
        Message("all_gather", step.tokens * outputs * itemsize, ranks),
        Message("all_reduce", step.tokens * inputs * itemsize, ranks),
    ]


def flops(shapes: Shapes, ranks: Ranks, step: Step) -> float:
    """Return the floating-point operations of a rank's gradient: of products, and of attention."""
    total = 0.0
    for path, shape in shapes.items():
        if path == "embed.token" or (len(shape) == 2 and not is_table(path)):
            share = ranks.tensor if is_split(path, shape) else 1
            total += 6 * step.tokens * math.prod(shape) / share
    width = shapes["embed.token"][1]
    layers = len({path.split(".")[1] for path in shapes if path.startswith("blocks.")})
    return total + 12 * step.tokens * step.length * width * layers  # scores and values, each thrice


def held(shapes: Shapes, plan: str, ranks: Ranks) -> int:
    """Return the elements of a rank's parameters."""
    total = 0
    for path, shape in shapes.items():
        part = shape
        if ranks.tensor > 1 and is_split(path, shape):
            part = padded(shape, -2 if is_table(path) else -1, ranks.tensor)
        if plan not in ("replicated", "bucketed") and ranks.data > 1:
            part = padded(part, axis_to_cut(part, ranks.data), ranks.data)
        total += math.prod(part)
    return total


def plan_of(plan: str, tensor: int) -> tuple[Plan, Any]:
    """Return the plan, and the group that the batch is spread over; None for the same examples."""
    if plan in ("replicated", "bucketed"):
        return distributed.replicated(), ""
    if plan == "tensor_parallel":
        return distributed.tensor_parallel(), None
    if plan != "mesh":
        return distributed.fully_sharded(), ""
    size = distributed.size() // tensor, tensor
    mesh = init_device_mesh("cpu", size, mesh_dim_names=("data", "tensor"))
    inner = distributed.fully_sharded(mesh["data"])
    return distributed.tensor_parallel(mesh["tensor"], inner), mesh["data"]


def check(module: Any, config: Any, plan: str) -> None:
    """Raise AssertionError unless a gradient sends what `messages` says, on 2 ranks or more."""
    ranks, step = ranks_of(plan, distributed.size(), 2), Step(2, 5)
    shapes = shapes_of(module, config)
    placing, data = plan_of(plan, 2)
    params = module.init(config, random.key(0), heads=("masked_lm",) if module is bert else ())
    placed = distributed.shard({k: v for k, v in params.items() if k != "pooler"}, placing)
    ids = random.categorical(random.key(1), torch.zeros(step.examples, step.length, 7))

    def loss(params: Any) -> Tensor:
        params = distributed.gather(params) if plan == "gathered" else params
        params = use_copies(params) if plan == "bucketed" else params
        logits = bert.masked_lm(params, ids) if module is bert else gpt2.apply(params, ids)[0]
        return logits.square().mean()

    with distributed.messages() as sent:
        grad(loss)(placed)
    wanted = messages(shapes, plan, ranks, step, itemsize=4)
    assert sorted(sent) == sorted(wanted), (plan, sorted(sent), sorted(wanted))
    assert tree.count(placed) == held(shapes, plan, ranks)


def rows() -> list[list[str]]:
    """Return the rows of the table."""
    models = {
        "BERT-large": (bert, bert.Config(
            hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        ), Step(8, 512)),
        "GPT-2 XL": (gpt2, gpt2.Config(n_embd=1600, n_layer=48, n_head=25), Step(8, 1024)),
    }  # fmt: skip
    found = []
    for name, (module, config, step) in models.items():
        shapes = shapes_of(module, config)
        for size in GPUS:
            for plan in PLANS:
                if plan == "tensor_parallel" and size > NODE or plan == "mesh" and size == NODE:
                    continue
                ranks = ranks_of(plan, size, NODE)
                sent = messages(shapes, plan, ranks, step, itemsize=4)
                found.append([
                    name, str(size), plan, f"{held(shapes, plan, ranks) * 16 / 1e9:.2f}",
                    f"{sum(m.sent for m in sent) / 1e9:.2f}", str(len(sent)),
                    f"{flops(shapes, ranks, step) / 1e12:.1f}",
                ])  # fmt: skip
    return found


def page() -> str:
    """Return the page with a new table."""
    head = ["model", "GPUs", "plan", "GB held", "GB sent", "collectives", "TFLOP"]
    lines = [head, ["---"] * 3 + ["---:"] * 4, *rows()]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    before, _, after = PAGE.read_text(encoding="utf-8").split(MARK)
    return f"{before}{MARK}{table}{MARK}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
