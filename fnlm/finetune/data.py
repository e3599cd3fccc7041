"""Batches of tensors from arrays on disk or in memory, trimmed to their longest row.

Letters: N rows, B batch size, T tokens; `...` any axes between, such as choices.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice, zip_longest
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from fnlm import distributed, random, tree
from fnlm.train.device import choose_device
from fnlm.tree import Tree

__all__ = ["Epochs", "batches", "length_sorted_batches", "over_ranks", "predict", "tensors"]

# Ids [N, ..., T], token types and mask of the same shape, then any labels: [N], or [N, ..., T].
Arrays = tuple[npt.NDArray[Any], ...]
Batch = tuple[Tensor, ...]
Device = torch.device | str


class Epochs(NamedTuple):
    """The data of a run, epoch by epoch."""

    sizes: tuple[int, ...]  # number of rows to take from each epoch
    arrays: Callable[[int], Arrays]  # epoch -> its rows; at most two epochs are in memory

    @classmethod
    def of(cls, arrays: Arrays, count: float) -> Self:
        """Repeat the same rows: 2.5 epochs are two whole ones and a random half.

        Raises:
            ValueError: the epochs are less than one row.

        >>> Epochs.of((np.zeros((6, 4)),), 2.5).sizes
        (6, 6, 3)
        """
        rows = len(arrays[0])
        if round(rows * count) < 1:
            raise ValueError(f"{count} epochs of {rows} rows must be at least one row")
        whole, remainder = divmod(round(rows * count), rows)
        sizes = (rows,) * whole + ((remainder,) if remainder else ())
        return cls(sizes, lambda epoch: arrays)


def batches(
    epochs: Epochs, key: Tensor, batch_size: int, device: Device = "cpu"
) -> tuple[int, Callable[[int], Batch]]:
    """Return the number of steps and the function from a step to its batch, shuffled by epoch.

    Every batch is full: batches run across the ends of epochs, and the last one is filled up with
    the first rows.

    Args:
        epochs: the data, at least one row.
        key: [] int64, of the shuffling.
        batch_size: B.
        device: of the tensors, as for `fnlm.train.choose_device`.

    Returns:
        the number of steps; the function, which may be called with 0, 1, ... in any order.

    Raises:
        ValueError: there are no rows, or B is below 1.

    >>> ids = np.arange(24).reshape(6, 4)
    >>> steps, batch_at = batches(Epochs.of((ids, ids, ids >= 0), 2), random.key(0), 5)
    >>> steps, batch_at(2)[0].shape
    (3, torch.Size([5, 4]))
    """
    starts = np.cumsum([0, *epochs.sizes])  # of each epoch; the last is the total
    if starts[-1] < 1 or batch_size < 1:
        raise ValueError(f"{starts[-1]} rows and batch_size={batch_size} must be at least 1")

    @lru_cache(maxsize=2)
    def shuffled(epoch: int) -> tuple[Arrays, npt.NDArray[Any]]:
        arrays = epochs.arrays(epoch)
        # Sorting random numbers gives a random permutation.
        scores = random.uniform(random.fold_in(key, epoch), (len(arrays[0]),), torch.float64)
        return arrays, scores.argsort(stable=True).numpy()

    def batch_at(step: int) -> Batch:
        index = np.arange(step * batch_size, (step + 1) * batch_size) % starts[-1]  # [B]
        epoch_of = np.searchsorted(starts, index, side="right") - 1  # [B]
        parts = []  # the rows of each epoch in the batch, by the number of the epoch
        for epoch in np.unique(epoch_of).tolist():
            arrays, order = shuffled(epoch)
            rows = order[index[epoch_of == epoch] - starts[epoch]]
            parts.append([array[rows] for array in arrays])
        # Undo the sorting by epoch: the last batch may wrap around to epoch 0.
        inverse = np.argsort(np.argsort(epoch_of, kind="stable"))
        columns = [np.concatenate(pieces)[inverse] for pieces in zip(*parts, strict=True)]
        return tensors(columns, device)

    return -(-int(starts[-1]) // batch_size), batch_at  # rounded up


def length_sorted_batches(
    arrays: Arrays, batch_size: int, device: Device = "cpu"
) -> Iterator[tuple[npt.NDArray[Any], Batch]]:
    """Yield all rows in batches of similar length, the longest first.

    Args:
        arrays: ids, token types, mask and any labels.
        batch_size: B; the last batch may be smaller.
        device: of the tensors, as for `fnlm.train.choose_device`.

    Yields:
        the indices of the rows [B]; their tensors.

    >>> mask = np.arange(8) < np.array([[2], [8], [5]])
    >>> [rows.tolist() for rows, batch in length_sorted_batches((mask, mask, mask), 2)]
    [[1, 2], [0]]
    """
    lengths = arrays[2].reshape(len(arrays[2]), -1).sum(axis=1)  # [N] real tokens per row
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, tensors([array[rows] for array in arrays], device)


@torch.no_grad()
def predict(
    model: Callable[..., Tensor], params: Tree, arrays: Arrays, batch_size: int, device: Device
) -> npt.NDArray[Any]:
    """Return a model's outputs for all rows, without dropout, with a progress bar.

    On many processes, all of which call it, each computes some of the batches.

    Args:
        model: `model(params, ids, token_types, mask) -> [B, ...]`.
        params: the whole parameters of the model, on any device.
        arrays: ids, token types and mask; further arrays are ignored.
        batch_size: B.
        device: of the computation, as for `fnlm.train.choose_device`.

    Returns:
        [N, ...] in the order of the rows; an axis of tokens is as long as in the longest batch, and
        padded with 0 where a batch is shorter. NaN outputs stay NaN.

    Raises:
        TypeError: the mask is floating point.
        ValueError: there are no rows.

    >>> mask = np.arange(16) < np.array([[2], [16], [5]])
    >>> twice = torch.tensor(2)
    >>> predict(lambda p, ids, *_: ids * p, twice, (mask,) * 3, 1, "cpu").sum(axis=1).tolist()
    [4, 32, 10]
    """
    if not len(arrays[0]):
        raise ValueError("arrays have no rows: there is nothing to predict")
    params = tree.to(params, choose_device(device))
    pairs = length_sorted_batches(arrays[:3], batch_size, device)
    total = -(-len(arrays[0]) // batch_size)
    hidden = True if distributed.rank() else None
    outputs = over_ranks(
        lambda pair: (pair[0], model(params, *pair[1]).cpu().numpy()),
        lambda own: tqdm(own, "predict", -(-total // distributed.size()), disable=hidden),
        pairs,
    )
    longest = outputs[0][1]  # batches come longest first
    result = np.zeros((len(arrays[0]), *longest.shape[1:]), longest.dtype)  # [N, ...]
    for rows, output in outputs:
        result[(rows, *map(slice, output.shape[1:]))] = output
    return result


def over_ranks(
    work: Callable[[Any], Any], shown: Callable[[Iterator[Any]], Iterable[Any]], xs: Iterable[Any]
) -> list[Any]:
    """Return `[work(x) for x in xs]` on every process; each does its share, in turns.

    Args:
        work: what it returns can be pickled.
        shown: from an iterator over this process's share to an iterable, such as a progress bar.
        xs: the same on every process.

    >>> over_ranks(abs, iter, [1, -2, 3])
    [1, 2, 3]
    """
    own = islice(iter(xs), distributed.rank(), None, distributed.size())
    shares = distributed.every([work(x) for x in shown(own)])
    missing = object()
    turns = zip_longest(*shares, fillvalue=missing)
    return [x for turn in turns for x in turn if x is not missing]


def tensors(arrays: Sequence[npt.NDArray[Any]], device: Device = "cpu") -> Batch:
    """Convert the arrays of a batch to tensors, without the columns that are padding in all rows.

    Args:
        arrays: ids, token types, mask and any labels; those of more than one axis end in T.
        device: of the tensors, as for `fnlm.train.choose_device`.

    Returns:
        a tensor for each array; int32 becomes int64. T is the length of the longest row; on
        accelerators rounded up to a multiple of 8, which their matrix units want.

    Raises:
        TypeError: the mask is floating point.

    >>> ids, mask = np.ones((2, 32), np.int32), np.arange(32) < np.array([[3], [9]])
    >>> [x.shape[-1] for x in tensors([ids, ids, mask, np.array([0, 1])])]
    [9, 9, 9, 2]
    """
    if arrays[2].dtype.kind not in "biu":
        raise TypeError(
            f"the mask (arrays[2]) must be bool or integers, got {arrays[2].dtype}: of a bias that "
            "is 0 for real tokens make it by `mask = bias == 0`"
        )
    columns = np.flatnonzero(arrays[2].any(axis=tuple(range(arrays[2].ndim - 1))))  # with a token
    place = choose_device(device)
    length = int(columns[-1]) + 1 if len(columns) else 1  # at least one column
    length = length if place.type == "cpu" else -(-length // 8) * 8
    trimmed = [torch.from_numpy(a[..., :length] if a.ndim > 1 else a).to(place) for a in arrays]
    return tuple(x.long() if x.dtype == torch.int32 else x for x in trimmed)
