"""Zeroing the gradients of embedding rows, as `padding_idx` does."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fnlm import tree
from fnlm.train.transformations import Optimizer, OptimizerState
from fnlm.tree import Tree

__all__ = ["mask_rows"]


def mask_rows(optimizer: Optimizer, rows: Mapping[str, int | None]) -> Optimizer:
    """Wrap an optimizer so that it sees zero gradients for the given rows.

    This is the effect of `padding_idx` of `torch.nn.Embedding` on training: the moment estimates of
    the row stay 0, gradient clipping does not count it, and only weight decay changes it.

    Args:
        optimizer: the optimizer to wrap; its state is unchanged.
        rows: path of a table in the parameters -> index of the row, or None for no row.

    Returns:
        the optimizer; its `update` raises ValueError if a path is not a leaf, IndexError if a
        table has no such row.

    >>> from fnlm.train import adamw
    >>> optimizer = mask_rows(adamw(0.1, weight_decay=0.0), {"embed.token": 0})
    >>> params = {"embed": {"token": torch.ones(2, 3)}}
    >>> optimizer.update(params, optimizer.init(params), params)[0]
    {'embed': {'token': tensor([[1.0000, 1.0000, 1.0000],
            [0.9000, 0.9000, 0.9000]])}}
    """
    masked = {path: row for path, row in rows.items() if row is not None}

    def update(
        grads: Tree, state: OptimizerState, params: Tree, *, donate: bool = False
    ) -> tuple[Tree, OptimizerState]:
        _check(masked, params)

        def mask(path: str, gradient: Tensor) -> Tensor:
            if path not in masked:
                return gradient
            if donate:
                gradient.detach()[masked[path]].zero_()  # donated: in place
                return gradient
            index = torch.arange(len(gradient), device=gradient.device)  # [rows]
            keep = (index != masked[path]).view(-1, *[1] * (gradient.ndim - 1))  # [rows, 1, ...]
            return torch.where(keep, gradient, 0)

        return optimizer.update(tree.map_with_path(mask, grads), state, params, donate=donate)

    return Optimizer(optimizer.init, update)


def _check(rows: Mapping[str, int], params: Tree) -> None:
    """Raise unless every path is a leaf that has the row."""
    leaves = dict(tree.named_leaves(params))
    for path, row in rows.items():
        if path not in leaves:
            raise ValueError(f"rows: params have no leaf {path!r}, but {', '.join(sorted(leaves))}")
        if not 0 <= row < len(leaves[path]):
            raise IndexError(
                f"rows: {path!r} has rows from 0 to {len(leaves[path]) - 1}, there is no row {row}"
            )
