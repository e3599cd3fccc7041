"""Runs on one process or on many: where parameters lie, and which rows each process computes."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from fnlm import distributed, random, tree
from fnlm.distributed import Placed, Placement
from fnlm.tree import Tree

__all__ = ["Plan", "Spread"]

Plan = Literal["replicate", "shard", "tensor"]
BatchAt = Callable[[int], tuple[Any, ...]]
_PLANS: dict[str, Callable[[], distributed.plans.Plan]] = {
    "replicate": distributed.replicated,
    "shard": distributed.fully_sharded,
    "tensor": distributed.tensor_parallel,
}


class Spread(NamedTuple):
    """How a run lies on the processes of a `torchrun`; in one process nothing is placed.

    Each row of a batch has a dropout key of its own, made of the step and the number of the row:
    what is dropped depends neither on the number of processes nor on micro-batches.
    """

    plan: str = "replicate"  # or "shard", "tensor"

    @property
    def parts(self) -> int:
        """Number of parts of a batch: of processes, or 1 where all compute the same rows."""
        return 1 if self.plan == "tensor" else distributed.size()

    def check(self, rows: int, micro_batches: int = 1) -> None:
        """Raise ValueError unless a batch divides into equal parts of equal micro-batches."""
        if self.plan not in _PLANS:
            raise ValueError(f"plan must be one of {', '.join(_PLANS)}, got {self.plan!r}")
        if rows % (self.parts * micro_batches):
            each = (
                f", times gradient_accumulation_steps={micro_batches}" if micro_batches > 1 else ""
            )
            raise ValueError(
                f"a batch of {rows} rows must be a multiple of {self.parts} processes{each}: give "
                "another size, or start fewer processes"
            )

    def place(self, params: Tree) -> Tree:
        """Return parameters with this process's part of each leaf.

        >>> Spread("shard").place({"w": torch.ones(1)})
        {'w': tensor([1.])}
        """
        return params if distributed.size() == 1 else distributed.shard(params, _PLANS[self.plan]())

    def place_rows(self, state: Tree) -> Tree:
        """Return this process's rows of what a model carries from batch to batch."""
        if self.parts == 1:
            return state
        return distributed.shard(state, lambda path, x: (Placement("shard", -x.ndim),))

    def batches(self, batch_at: BatchAt, key: Tensor) -> BatchAt:
        """Return the function from a step to this process's rows, with a dropout key for each.

        Args:
            batch_at: from a step to the whole batch, a tuple of tensors [B, ...].
            key: [] int64, of dropout.
        """

        def own(step: int) -> tuple[Any, ...]:
            batch = batch_at(step)
            rows = torch.arange(len(batch[0]), device=batch[0].device)  # [B]
            keys = random.fold_in(random.fold_in(key.to(rows.device), step), rows)
            return distributed.own_rows((*batch, keys)) if self.parts > 1 else (*batch, keys)

        return own

    def loss(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """Return the loss of such a batch, the same number on each process.

        Args:
            loss: `loss(params, *batch, key=keys) -> []`, with a key for each row [B].
        """

        def keyed(params: Tree, *batch: Any, key: Tensor) -> Any:
            *data, keys = batch
            return loss(params, *data, key=keys)

        return distributed.data_parallel(keyed) if self.parts > 1 else keyed

    def carry_loss(self, loss: Callable[..., Any]) -> Callable[..., Any]:
        """Return the loss for `fnlm.train.carry_step`, of a state from `place_rows`.

        Args:
            loss: `loss(params, state, *batch, key=keys) -> ([], state)`.
        """

        def carried(params: Tree, state: Tree, *batch: Any, key: Tensor) -> Any:
            value, new = loss(params, _parts(state), *batch, key=key)
            return value, tree.unflatten(tree.structure(state), tree.leaves(new))

        return self.loss(carried)


def _parts(state: Tree) -> Tree:
    """Return the tensors of this process."""
    return tree.map_with_path(
        lambda path, x: x.part if isinstance(x, Placed) else x, state, whole=Placed
    )
