"""The memory of Transformer-XL: the cached inputs of each layer, as an immutable value.

Dimensions: L layers, M cached positions, T new tokens, S = M + T, D width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm.tree import register_value

__all__ = ["Mems", "zero_mems", "check_mems", "update_mems", "reset_mems"]


@register_value
class Mems(NamedTuple):
    """The input of each layer at the last M positions, oldest first."""

    hidden: tuple[Tensor, ...]  # for each layer [..., M, D]
    valid: Tensor  # bool [..., M], False where attention is masked


def zero_mems(like: Tensor, layers: int, shape: Sequence[int], *, empty: bool = False) -> Mems:
    """Return a memory of zeros.

    Args:
        like: a tensor of the dtype and on the device.
        layers: L.
        shape: [..., M, D].
        empty: mask the zeros from attention.

    >>> zero_mems(torch.zeros(()), 2, (3, 6, 8)).valid.shape
    torch.Size([3, 6])
    """
    hidden = tuple(like.new_zeros(*shape) for _ in range(layers))
    return Mems(hidden, torch.full(shape[:-1], not empty, dtype=torch.bool, device=like.device))


def check_mems(mems: Any, like: Tensor, layers: int, lead: Sequence[int], width: int) -> None:
    """Validate the type, shapes, dtype and device of a memory; no value is read.

    Args:
        mems: the argument to check.
        like: a parameter, whose dtype and device are expected.
        layers: expected L.
        lead: expected leading axes.
        width: expected D.

    Raises:
        TypeError: not a `Mems`, or of another dtype.
        ValueError: of other shapes, or on another device.

    >>> zero = torch.zeros(())
    >>> check_mems(zero_mems(zero, 2, (3, 6, 8)), zero, 2, (3,), 8)
    """
    if not isinstance(mems, Mems):
        kind = f"a tuple of {len(mems)}" if type(mems) is tuple else type(mems).__name__
        raise TypeError(
            "mems must be the Mems that an earlier call returned beside its result, or those of "
            f"init_mems, got {kind}: pass the Mems alone"
        )
    short = [*lead, mems.valid.shape[-1]]
    expected = [*[[*short, width]] * layers, short]
    shapes = [list(x.shape) for x in (*mems.hidden, mems.valid)]
    if shapes != expected:
        raise ValueError(
            f"mems hold {len(mems.hidden)} layers of {shapes[0]} with valid {shapes[-1]}, the "
            f"model and ids need {layers} of {[*short, width]} with valid {short}: use mems that "
            "this model made for this batch"
        )
    if mems.valid.dtype != torch.bool:
        raise TypeError(f"mems.valid must be torch.bool, got {mems.valid.dtype}")
    for x in (*mems.hidden, mems.valid):
        if x.is_floating_point() and x.dtype != like.dtype:
            raise TypeError(
                f"mems hold {x.dtype}, the parameters {like.dtype}: use "
                f"fnlm.tree.cast(mems, {like.dtype}), or the parameters that made them"
            )
        if x.device != like.device:
            raise ValueError(
                f"mems are on {x.device}, the parameters on {like.device}: use "
                f"fnlm.tree.to(mems, {str(like.device)!r})"
            )


def update_mems(
    mems: Mems, new_len: int, mem_len: int, *, ext_len: int = 0, detach: bool = True
) -> Mems:
    """Return the last `mem_len` positions, without the last `ext_len` new ones.

    Args:
        mems: the former memory and the T new tokens, S positions in all.
        new_len: T.
        mem_len: positions to keep, at most.
        ext_len: number of new tokens that do not enter the memory yet, at most T.
        detach: stop gradients through the result.

    >>> tokens = torch.arange(6.0).view(1, 6, 1)
    >>> mems = Mems((tokens,), torch.ones(1, 6, dtype=torch.bool))
    >>> update_mems(mems, new_len=2, mem_len=3, ext_len=1).hidden[0].flatten()
    tensor([2., 3., 4.])
    """
    stop = mems.valid.shape[-1] - min(new_len, ext_len)
    span = slice(max(0, stop - mem_len), stop)
    hidden = tuple((x.detach() if detach else x)[..., span, :] for x in mems.hidden)  # [..., M, D]
    return Mems(hidden, mems.valid[..., span])


def reset_mems(mems: Mems, rows: Tensor, *, empty: bool = False) -> Mems:
    """Return the memory with some rows reset to zeros, as when their text ends.

    Args:
        mems: tensors [..., M, D] and [..., M].
        rows: bool [...], True for rows to reset.
        empty: mask the zeros of those rows from attention, as in `init_mems`.

    Raises:
        ValueError: rows of another dtype or shape.

    >>> mems = Mems((torch.ones(2, 3, 4),), torch.ones(2, 3, dtype=torch.bool))
    >>> reset_mems(mems, torch.tensor([True, False])).hidden[0].sum((1, 2))
    tensor([ 0., 12.])
    """
    if rows.dtype != torch.bool or rows.shape != mems.valid.shape[:-1]:
        raise ValueError(
            f"rows must be bool {list(mems.valid.shape[:-1])}, one for each row of mems, got "
            f"{rows.dtype} {list(rows.shape)}"
        )
    hidden = tuple(torch.where(rows[..., None, None], 0, x) for x in mems.hidden)
    return Mems(hidden, torch.where(rows[..., None], not empty, mems.valid))
