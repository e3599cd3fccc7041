"""The memory of Transformer-XL: a value that holds what each layer read at the last tokens."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm.tree import register_value

__all__ = ["Mems", "zero_mems", "check", "update_mems", "reset_mems"]


@register_value
class Mems(NamedTuple):
    """What each layer read at the last M tokens, oldest first."""

    hidden: tuple[Tensor, ...]  # for each layer [..., M, D]
    valid: Tensor  # bool [..., M], False for what attention does not see


def zero_mems(like: Tensor, layers: int, shape: Sequence[int], *, empty: bool = False) -> Mems:
    """Make a memory of zeros.

    Args:
        like: gives type and device.
        layers: L.
        shape: [..., M, D].
        empty: whether attention does not see the zeros.

    >>> zero_mems(torch.zeros(()), 2, (3, 6, 8)).valid.shape
    torch.Size([3, 6])
    """
    hidden = tuple(like.new_zeros(*shape) for _ in range(layers))
    return Mems(hidden, torch.full(shape[:-1], not empty, dtype=torch.bool, device=like.device))


def check(mems: Any, like: Tensor, layers: int, lead: Sequence[int], width: int) -> None:
    """Refuse what is no memory, or one that does not fit; no value is read.

    Args:
        mems: what was given as a memory.
        like: a parameter, of whose type and on whose device it must be.
        layers: L, as it must be, like the rest.
        lead: the leading axes.
        width: D.

    Raises:
        TypeError: it is no memory, or its numbers are of another type.
        ValueError: it is of other sizes, or on another device.

    >>> zero = torch.zeros(())
    >>> check(zero_mems(zero, 2, (3, 6, 8)), zero, 2, (3,), 8)
    """
    if not isinstance(mems, Mems):
        kind = f"a tuple of {len(mems)}" if type(mems) is tuple else type(mems).__name__
        raise TypeError(
            "mems must be the Mems that an earlier call returned beside its result, or those of "
            f"init_mems, got {kind}: pass the Mems alone"
        )
    short = [*lead, mems.valid.shape[-1]]
    wanted = [*[[*short, width]] * layers, short]
    found = [list(x.shape) for x in (*mems.hidden, mems.valid)]
    if found != wanted:
        raise ValueError(
            f"mems hold {len(mems.hidden)} layers of {found[0]} with valid {found[-1]}, the model "
            f"and ids need {layers} of {[*short, width]} with valid {short}: use mems that this "
            "model made for this batch"
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


def update_mems(seen: Mems, new: int, most: int, *, ext_len: int = 0, detach: bool = True) -> Mems:
    """Return the memory of the last tokens, those held back left out.

    Args:
        seen: the former memory and the T new tokens, together S tokens.
        new: T.
        most: how many tokens it may hold.
        ext_len: how many of the new tokens are not remembered yet, at most T.
        detach: whether no gradient flows through the result.

    >>> tokens = torch.arange(6.0).view(1, 6, 1)
    >>> seen = Mems((tokens,), torch.ones(1, 6, dtype=torch.bool))
    >>> update_mems(seen, new=2, most=3, ext_len=1).hidden[0].flatten()
    tensor([2., 3., 4.])
    """
    stop = seen.valid.shape[-1] - min(new, ext_len)
    kept = slice(max(0, stop - most), stop)
    hidden = tuple((x.detach() if detach else x)[..., kept, :] for x in seen.hidden)
    return Mems(hidden, seen.valid[..., kept])


def reset_mems(mems: Mems, rows: Tensor, *, empty: bool = False) -> Mems:
    """Let the texts of some rows begin anew; the others keep their memory.

    Args:
        mems: tensors [..., M, D] and [..., M].
        rows: bool [...], which rows.
        empty: whether attention does not see the zeros of a text that begins: the same as when
            the memory was made.

    Raises:
        ValueError: rows are of another type or shape.

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
