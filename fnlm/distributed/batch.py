"""Batches that are spread over ranks, and the losses of them."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch import Tensor

from fnlm import tree
from fnlm.distributed import collectives
from fnlm.distributed.groups import Group, name_of, rank, size
from fnlm.distributed.plans import use_copies
from fnlm.train import _means
from fnlm.tree import Tree

__all__ = ["data_parallel", "own_rows"]


def own_rows(batch: Tree, group: Group = None) -> Tree:
    """Return this rank's rows of a batch: an equal part of the first axis, in order.

    Keys of dropout are rows as well: one for each example, so that no draw depends on the number of
    processes.

    Args:
        batch: tensors, or trees of tensors, with a first axis of the length of the whole batch.
        group: the ranks that the batch is spread over.

    Raises:
        ValueError: an axis does not divide by the number of ranks.

    >>> import torch
    >>> own_rows({"ids": torch.arange(4)})
    {'ids': tensor([0, 1, 2, 3])}
    """
    ranks = size(group)

    def rows(path: str, x: Tensor) -> Tensor:
        if not x.ndim or x.shape[0] % ranks:
            raise ValueError(
                f"batch.{path} has shape {list(x.shape)}, whose first axis does not divide by "
                f"{ranks} ranks: fill the batch with rows whose labels don't count"
            )
        return x.unflatten(0, (ranks, -1))[rank(group)]

    return tree.map_with_path(rows, batch)


def data_parallel(loss: Callable[..., Any], group: Group = None) -> Callable[..., Any]:
    """Return the loss of a batch that is spread over ranks, the same number on each.

    Means of `fnlm.train.losses`, its `mean` included, are over all ranks' rows, however many each
    of them counts. Everything else, such as `x.mean()` or a penalty on weights, is the mean over
    ranks. Gradients are those of this loss, where params are placed by `shard`; those of leaves
    that each rank has whole are summed in buckets of 25 MB.

    Args:
        loss: `loss(params, *batch, **kwargs) -> []`, of this rank's rows; or `-> ([], aux)`.
        group: the ranks that the batch is spread over.

    Returns:
        the loss, of the same arguments; what it returns beside, aux, stays that of this rank.
        `fnlm.train.train_step` and `carry_step` take it as it is.

    >>> import torch
    >>> from fnlm.train.losses import mean
    >>> loss = data_parallel(lambda params, x: mean(params["w"] * x))
    >>> loss({"w": torch.tensor(2.0)}, torch.tensor([1.0, 2.0]))
    tensor(3.)
    """
    name = name_of(group)

    @wraps(loss)
    def whole(params: Tree, *args: Any, **kwargs: Any) -> Any:
        ranks = size(name)
        if ranks == 1:
            return loss(params, *args, **kwargs)
        with _means.over_ranks(_means.Ranks(ranks, lambda x: collectives.sum(x, name))):
            value: Any = loss(use_copies(params), *args, **kwargs)
        if isinstance(value, tuple):
            return collectives.sum(value[0] / ranks, name), *value[1:]
        return collectives.sum(value / ranks, name)

    return whole
