"""Examples of what runs on many processes, in one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calls.common import IDS, PARAMS, SMALL, Example, Make, on
from calls.leaves import leaf_rows
from fnlm import distributed
from fnlm.distributed import collectives, plans

EVERYTHING = distributed.fully_sharded()
PLACED = distributed.shard(PARAMS, EVERYTHING)
MATRIX = torch.ones(4, 12)


def placed(kind: Any, path: str, x: Any) -> tuple[plans.Placement, ...]:
    return (plans.Placement(kind),)


PARTS = {
    kind: distributed.shard({"w": MATRIX}, partial(placed, kind))["w"]
    for kind in ("replicate", "shard", "split")
}


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


def saved_anew(folder: Path) -> Any:
    """What is read of a state, which a directory holds one of."""
    place = folder / str(len(list(folder.iterdir())))
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
    "save_state": lambda folder: on(saved_anew, folder),
    "load_state": lambda folder: on(distributed.load_state, state_there(folder), SMALL),
    "Message.sent": lambda _: on(
        vars(collectives.Message)["sent"].fget, distributed.Message("", 8, 2)
    ),
    **leaf_rows(distributed.Placed, PARTS["shard"]),
    **leaf_rows(distributed.Replicated, PARTS["replicate"]),
    **leaf_rows(distributed.Sharded, PARTS["shard"]),
    **leaf_rows(distributed.Split, PARTS["split"]),
}  # fmt: skip
