"""Zeroing the gradients of embedding rows, as `padding_idx` does."""

from collections.abc import Mapping
from typing import Any

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
        tables = _check(masked, params)
        # Of a table that lies on several processes, the row is in the part of one of them.
        own = {
            path: tables[path].own_row(row) if hasattr(tables[path], "own_row") else row
            for path, row in masked.items()
        }

        def mask(path: str, gradient: Tensor) -> Tensor:
            row = own.get(path)
            if row is None:
                return gradient
            if donate:
                gradient.detach()[row].zero_()  # donated: in place
                return gradient
            index = torch.arange(len(gradient), device=gradient.device)  # [rows]
            keep = (index != row).view(-1, *[1] * (gradient.ndim - 1))  # [rows, 1, ...]
            return torch.where(keep, gradient, 0)

        return optimizer.update(tree.map_with_path(mask, grads), state, params, donate=donate)

    return Optimizer(optimizer.init, update)


def _check(rows: Mapping[str, int], params: Tree) -> dict[str, Any]:
    """Return the leaves by path, typed ones whole; raise unless each path is one with the row."""
    leaves: dict[str, Any] = dict(tree.named_leaves(params)) | dict(tree.typed_leaves(params))
    for path, row in rows.items():
        if path not in leaves:
            raise ValueError(f"rows: params have no leaf {path!r}, but {', '.join(sorted(leaves))}")
        length = leaves[path].shape[0]
        if not 0 <= row < length:
            raise IndexError(
                f"rows: {path!r} has rows from 0 to {length - 1}, there is no row {row}"
            )
    return leaves
