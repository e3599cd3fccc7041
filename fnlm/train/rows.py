"""Rows of tables that training leaves alone."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fnlm import tree
from fnlm.train.transformations import Optimizer, OptimizerState
from fnlm.tree import Tree

__all__ = ["mask_rows"]


def mask_rows(optimizer: Optimizer, rows: Mapping[str, int | None]) -> Optimizer:
    """Make an optimizer that takes the gradient of some rows as 0, and is the same otherwise.

    It is what `padding_idx` of `torch.nn.Embedding` does to training: the row's moments stay 0, no
    norm that gradients are clipped by counts it, and weight decay alone moves it.

    Args:
        optimizer: the one to wrap; its state is as without rows.
        rows: a row for each table, by the path of the table in the parameters; None for no row.

    Returns:
        the optimizer; its `update` raises ValueError where a path is no leaf, IndexError where a
        table has no such row.

    >>> from fnlm.train import adamw
    >>> optimizer = mask_rows(adamw(0.1, weight_decay=0.0), {"embed.token": 0})
    >>> params = {"embed": {"token": torch.ones(2, 3)}}
    >>> optimizer.update(params, optimizer.init(params), params)[0]
    {'embed': {'token': tensor([[1.0000, 1.0000, 1.0000],
            [0.9000, 0.9000, 0.9000]])}}
    """
    wanted = {path: row for path, row in rows.items() if row is not None}

    def update(
        grads: Tree, state: OptimizerState, params: Tree, *, donate: bool = False
    ) -> tuple[Tree, OptimizerState]:
        _check(wanted, params)

        def mask(path: str, gradient: Tensor) -> Tensor:
            if path not in wanted:
                return gradient
            if donate:
                gradient.detach()[wanted[path]].zero_()
                return gradient
            numbers = torch.arange(len(gradient), device=gradient.device)
            kept = (numbers != wanted[path]).view(-1, *[1] * (gradient.ndim - 1))
            return torch.where(kept, gradient, 0)

        return optimizer.update(tree.map_with_path(mask, grads), state, params, donate=donate)

    return Optimizer(optimizer.init, update)


def _check(rows: Mapping[str, int], params: Tree) -> None:
    """Refuse rows that are not there."""
    leaves = dict(tree.named_leaves(params))
    for path, row in rows.items():
        if path not in leaves:
            raise ValueError(f"rows: params have no leaf {path!r}, but {', '.join(sorted(leaves))}")
        if not 0 <= row < len(leaves[path]):
            raise IndexError(
                f"rows: {path!r} has rows from 0 to {len(leaves[path]) - 1}, there is no row {row}"
            )
