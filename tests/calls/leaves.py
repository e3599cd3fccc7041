"""Examples of typed leaves."""

from pathlib import Path
from typing import Any

import torch
from families import GPT2

from calls.common import KEY, KEYS, LINEAR, PARAMS, SMALL, Make, X, on, writes
from fnlm import gpt2, leaves, tree
from fnlm.params import peft

ADAPTED = leaves.lora(PARAMS, KEY, rank=2)
ABSTRACT = ("dense", "shape", "dtype", "device", "tree_flatten", "tree_unflatten")
LEAF_ARGS: dict[str, tuple[Any, ...]] = {
    "linear": (X, None),
    "rows": (torch.tensor([2, 0]),),
    "new_zeros": ((2, 3),),
    "own_row": (1,),
}


def leaf_rows(cls: type, leaf: leaves.Leaf) -> dict[str, Make]:
    """Return a row for each public method and property of a class of leaves."""
    children, frame = leaf.tree_flatten()
    rows: dict[str, Make] = {}
    for name, member in vars(cls).items():
        function = getattr(member, "fget", getattr(member, "__func__", member))
        abstract = cls is leaves.Leaf and name in ABSTRACT
        if name.startswith("_") or not hasattr(function, "__code__") or abstract:
            continue
        args: tuple[Any, ...] = (leaf, *LEAF_ARGS.get(name, ()))
        if name == "tree_unflatten":
            args = type(leaf), list(children.values()), frame
        key = f"{cls.__name__}.{name}"
        rows[key] = lambda _, f=function, a=args: on(f, *a)  # type: ignore[misc]
    return rows


LOW_RANK = leaves.attach(torch.ones(4, 12), (torch.ones(4, 2), torch.ones(2, 12)), path="w")
IN_8, IN_4 = (leaves.quantize(LINEAR, bits=n, where=lambda p, x: x.ndim == 2) for n in (8, 4))
LEAVES: dict[str, Make] = {
    "lora": lambda _: on(leaves.lora, PARAMS, KEY, rank=2, alpha=3, name="x"),
    "quantize": lambda _: on(leaves.quantize, PARAMS, bits=4, group=64),
    "merge": lambda _: on(leaves.merge, ADAPTED),
    "base": lambda _: on(leaves.base, ADAPTED),
    "attach": lambda _: on(
        leaves.attach, LOW_RANK, (torch.ones(4, 1), torch.ones(1, 12)), path="w", name="x"
    ),
    "is_adapter": lambda _: on(leaves.is_adapter, "w.a"),
    "linear_weights": lambda _: on(leaves.linear_weights, "blocks.0.w", torch.ones(2, 2)),
    **leaf_rows(leaves.Leaf, LOW_RANK),
    **leaf_rows(leaves.LowRank, LOW_RANK),
    **leaf_rows(leaves.Quantized, IN_8["weight"].mT),
    **leaf_rows(leaves.Int8, IN_8["weight"].mT),
    **leaf_rows(leaves.Int4, IN_4["weight"].mT),
}


def adapters_there(folder: Path) -> Path:
    peft.save(ADAPTED, folder / "adapter")
    return folder / "adapter"


PEFT: dict[str, Make] = {
    "peft.save": writes(peft.save, ADAPTED),
    "peft.load": lambda folder: on(peft.load, PARAMS, adapters_there(folder)),
}
TYPED: dict[str, Make] = {
    "typed_leaves": lambda _: on(tree.typed_leaves, ADAPTED),
    "describe": lambda _: on(tree.describe, ADAPTED),
    "dot": lambda _: on(tree.dot, SMALL, SMALL),
    "combine": lambda _: on(tree.combine, [SMALL, SMALL], [0.25, torch.tensor(2.0)]),
    "init_many": lambda _: on(tree.init_many, gpt2.init, GPT2.config, KEYS),
}
