"""Examples of what runs on many processes, in one."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from calls.common import IDS, PARAMS, SMALL, Example, Make, on
from calls.leaves import leaf_rows
from fnlm import distributed
from fnlm.distributed import plans

EVERYTHING = distributed.fully_sharded()
PLACED = distributed.shard(PARAMS, EVERYTHING)
MATRIX = torch.ones(4, 12)


def part(kind: str) -> Any:
    return distributed.shard({"w": MATRIX}, lambda path, x: (plans.Placement(kind),))["w"]


def placements(plan: plans.Plan) -> Any:
    """What a plan says of a table, a matrix and a vector."""
    given = {"embed.token": MATRIX, "blocks.0.mlp.up.weight": MATRIX, "norm.scale": MATRIX[0]}
    return [plan(path, leaf) for path, leaf in given.items()]


def in_block(function: Callable[..., Any], *args: Any) -> Example:
    """What a context yields."""

    def entered() -> Any:
        with function(*args) as found:
            return distributed.rank(), found

    return on(entered)


def state_there(folder: Path) -> Path:
    distributed.save_state(SMALL, folder / "state")
    return folder / "state"


def saved_anew() -> Any:
    """What is read of a state, which a directory holds one of."""
    with tempfile.TemporaryDirectory() as place:
        distributed.save_state(SMALL, place)
        return distributed.load_state(place, SMALL)


def loss(params: Any, ids: Any) -> Any:
    return params["norm"]["scale"].sum() * ids.sum()


RANKS: dict[str, Make] = {
    "data_parallel": lambda _: on(distributed.data_parallel(loss), PLACED, IDS),
    "messages": lambda _: in_block(distributed.messages),
    "session": lambda _: in_block(distributed.session),
    "fully_sharded": lambda _: on(distributed.fully_sharded, seen=placements),
    "replicated": lambda _: on(distributed.replicated, seen=placements),
    "tensor_parallel": lambda _: on(distributed.tensor_parallel, None, EVERYTHING, seen=placements),
    "where": lambda _: on(distributed.where, lambda p, x: False, EVERYTHING, EVERYTHING,
                          seen=placements),
    "shard": lambda _: on(distributed.shard, PARAMS, EVERYTHING),
    "save_state": lambda _: on(saved_anew),
    "load_state": lambda folder: on(distributed.load_state, state_there(folder), SMALL),
    "Message.sent": lambda _: on(lambda m: m.sent, distributed.Message("all_reduce", 8, 2)),
    **leaf_rows(distributed.Placed, part("shard")),
    **leaf_rows(distributed.Replicated, part("replicate")),
    **leaf_rows(distributed.Sharded, part("shard")),
    **leaf_rows(distributed.Split, part("split")),
}  # fmt: skip
