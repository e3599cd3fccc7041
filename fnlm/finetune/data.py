"""From arrays on disk or in memory to the batch of a step, padded no more than it needs.

Letters: N rows, B rows of a batch, T tokens; `...` any axes between, as that of choices.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from fnlm import random, tree
from fnlm.tree import Tree

__all__ = ["Epochs", "batches", "length_sorted_batches", "predict", "tensors"]

# Ids [N, ..., T], token types and mask of the same shape, then any labels: [N], or [N, ..., T].
Arrays = tuple[npt.NDArray[Any], ...]
Batch = tuple[Tensor, ...]
Device = torch.device | str


class Epochs(NamedTuple):
    """The rows of a run, epoch by epoch."""

    sizes: tuple[int, ...]  # rows to take of each epoch
    arrays: Callable[[int], Arrays]  # the rows of an epoch; two epochs are held at a time

    @classmethod
    def of(cls, arrays: Arrays, count: float) -> Self:
        """Repeat the same rows: 2.5 epochs are two whole ones and a random half.

        Raises:
            ValueError: that is less than one row.

        >>> Epochs.of((np.zeros((6, 4)),), 2.5).sizes
        (6, 6, 3)
        """
        rows = len(arrays[0])
        if round(rows * count) < 1:
            raise ValueError(f"{count} epochs of {rows} rows must be at least one row")
        whole, rest = divmod(round(rows * count), rows)
        return cls((rows,) * whole + ((rest,) if rest else ()), lambda epoch: arrays)


def batches(
    epochs: Epochs, key: Tensor, batch_size: int, device: Device = "cpu"
) -> tuple[int, Callable[[int], Batch]]:
    """Make the function from a step to its batch, each epoch in an order of its own.

    Every batch is full: the epochs follow each other without a gap, and the last batch is filled up
    with the first rows.

    Args:
        epochs: at least one row.
        key: [] int64, of the orders.
        batch_size: B.
        device: where the tensors shall be.

    Returns:
        how many steps the epochs last; the function, to be called with 0, 1, ... in any order.

    Raises:
        ValueError: there are no rows, or B is below 1.

    >>> ids = np.arange(24).reshape(6, 4)
    >>> steps, batch_at = batches(Epochs.of((ids, ids, ids >= 0), 2), random.key(0), 5)
    >>> steps, batch_at(2)[0].shape
    (3, torch.Size([5, 4]))
    """
    borders = np.cumsum([0, *epochs.sizes])
    if borders[-1] < 1 or batch_size < 1:
        raise ValueError(f"{borders[-1]} rows and batch_size={batch_size} must be at least 1")

    @lru_cache(maxsize=2)
    def shuffled(epoch: int) -> tuple[Arrays, npt.NDArray[Any]]:
        arrays = epochs.arrays(epoch)
        places = random.uniform(random.fold_in(key, epoch), (len(arrays[0]),), torch.float64)
        return arrays, places.argsort(stable=True).numpy()

    def batch_at(step: int) -> Batch:
        places = np.arange(step * batch_size, (step + 1) * batch_size) % borders[-1]
        owners = np.searchsorted(borders, places, side="right") - 1
        parts = []
        for epoch in np.unique(owners).tolist():
            arrays, order = shuffled(epoch)
            rows = order[places[owners == epoch] - borders[epoch]]
            parts.append([array[rows] for array in arrays])
        back = np.argsort(np.argsort(owners, kind="stable"))  # parts go by the number of the epoch
        return tensors(
            [np.concatenate(pieces)[back] for pieces in zip(*parts, strict=True)], device
        )

    return -(-int(borders[-1]) // batch_size), batch_at


def length_sorted_batches(
    arrays: Arrays, batch_size: int, device: Device = "cpu"
) -> Iterator[tuple[npt.NDArray[Any], Batch]]:
    """Yield all rows in batches of similar length, the longest first.

    Args:
        arrays: ids, token types, mask and any labels.
        batch_size: B; the last batch may be smaller.
        device: where the tensors shall be.

    Yields:
        the numbers of the rows [B]; their tensors.

    >>> mask = np.arange(8) < np.array([[2], [8], [5]])
    >>> [rows.tolist() for rows, batch in length_sorted_batches((mask, mask, mask), 2)]
    [[1, 2], [0]]
    """
    lengths = arrays[2].reshape(len(arrays[2]), -1).sum(axis=1)
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, tensors([array[rows] for array in arrays], device)


@torch.no_grad()
def predict(
    model: Callable[..., Tensor], params: Tree, arrays: Arrays, batch_size: int, device: Device
) -> npt.NDArray[Any]:
    """Run a model on all rows, without dropout, showing a bar.

    Args:
        model: `model(params, ids, token_types, mask) -> [B, ...]`.
        params: as the model takes them, on any device.
        arrays: ids, token types and mask; further ones are not looked at.
        batch_size: B.
        device: where to compute.

    Returns:
        [N, ...] in the order of the rows; an axis of tokens is as long as in the longest batch, and
        0 where a batch is shorter. What is NaN stays NaN.

    Raises:
        TypeError: the mask is floating.
        ValueError: there are no rows.

    >>> mask = np.arange(16) < np.array([[2], [16], [5]])
    >>> twice = torch.tensor(2)
    >>> predict(lambda p, ids, *_: ids * p, twice, (mask,) * 3, 1, "cpu").sum(axis=1).tolist()
    [4, 32, 10]
    """
    if not len(arrays[0]):
        raise ValueError("arrays have no rows: there is nothing to predict")
    params = tree.to(params, device)
    found = length_sorted_batches(arrays[:3], batch_size, device)
    bar = tqdm(found, "predict", -(-len(arrays[0]) // batch_size))
    parts = [(rows, model(params, *batch).cpu().numpy()) for rows, batch in bar]
    longest = parts[0][1]
    made = np.zeros((len(arrays[0]), *longest.shape[1:]), longest.dtype)
    for rows, part in parts:
        made[(rows, *map(slice, part.shape[1:]))] = part
    return made


def tensors(arrays: Sequence[npt.NDArray[Any]], device: Device = "cpu") -> Batch:
    """Turn the arrays of a batch into tensors without the columns that are padding in all rows.

    Args:
        arrays: ids, token types, mask and any labels; those of more than one axis end in T.
        device: where the tensors shall be.

    Returns:
        a tensor for each array; integers as int64. T is that of the longest row, rounded up to a
        multiple of 8, which vector units like.

    >>> ids, mask = np.ones((2, 32), np.int32), np.arange(32) < np.array([[3], [9]])
    >>> [x.shape[-1] for x in tensors([ids, ids, mask, np.array([0, 1])])]
    [16, 16, 16, 2]
    """
    if arrays[2].dtype.kind not in "biu":
        raise TypeError(
            f"the mask (arrays[2]) must be bool or integers, got {arrays[2].dtype}: of a bias that "
            "is 0 for real tokens make it by `mask = bias == 0`"
        )
    used = np.flatnonzero(arrays[2].any(axis=tuple(range(arrays[2].ndim - 1))))
    length = -(-(int(used[-1]) + 1 if len(used) else 1) // 8) * 8
    made = [torch.from_numpy(a[..., :length] if a.ndim > 1 else a).to(device) for a in arrays]
    return tuple(x.long() if x.dtype == torch.int32 else x for x in made)
