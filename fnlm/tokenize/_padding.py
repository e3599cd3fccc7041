"""Texts of different lengths as one array."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Row = Sequence[int] | npt.NDArray[np.integer]


def pad(
    batch: Iterable[Row], *, pad: int = 0, left: bool = False, multiple_of: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Return token ids as an array, and the mask of those that are no padding.

    A model that is given the mask does not see the padding, so any id will do for it; the result
    of a row is that of the row alone, on whichever side the padding is.

    Args:
        batch: B sequences of ids, of any lengths, such as `encode_batch` returns.
        pad: the id of the padding.
        left: whether the padding comes first, so that the last column holds the last token of
            every row, after which a causal model goes on.
        multiple_of: what the number of columns is rounded up to a multiple of.

    Returns:
        int64 [B, T] and bool [B, T], T being the length of the longest row; NumPy arrays, from
        which `torch.as_tensor` makes tensors.

    Raises:
        TypeError: `batch` is one sequence of ids, or a row holds something else than integers.
        ValueError: `multiple_of` is below 1.

    >>> pad([[5, 6, 7], [8]])
    (array([[5, 6, 7],
           [8, 0, 0]]), array([[ True,  True,  True],
           [ True, False, False]]))
    """
    if multiple_of < 1:
        raise ValueError(f"multiple_of={multiple_of} must be at least 1")
    rows = [_row(row, at) for at, row in enumerate(batch)]
    longest = max(map(len, rows), default=0)
    width = -(-longest // multiple_of) * multiple_of
    ids = np.full((len(rows), width), pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.bool_)
    for at, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(len(row))
        ids[at, place], mask[at, place] = row, True
    return ids, mask


def _row(row: Row, at: int) -> npt.NDArray[np.int64]:
    """Return the ids of a row, which may have none."""
    if np.ndim(row) == 0:
        raise TypeError(f"batch[{at}]={row!r:.40} is no sequence of ids: for one text, give [ids]")
    ids = np.asarray(row)
    if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
        raise TypeError(
            f"batch[{at}] has shape {[*ids.shape]} and type {ids.dtype}, and must be [T] of "
            "integers: give the lists that encode_batch returns"
        )
    return ids.astype(np.int64)
