"""Packed weights: matrices in the blocked order of oneDNN, by which few vectors multiply fastest.

The numbers are the same, bit for bit. A product outside of all transforms takes oneDNN's kernel;
everything else computes with the tensor that the leaf stands for, made anew. Packed weights are
constants: nothing differentiates by them.

Dimensions: C channels, K numbers a channel.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.nn import functional as F

from fnlm import tree
from fnlm.layers._levels import is_traced, levels
from fnlm.leaves._leaf import Leaf, check_predicate, is_table, none_selected
from fnlm.leaves.low_rank import linear_weights
from fnlm.tree import Predicate, Tree, register_leaf

__all__ = ["Packed", "pack"]


@register_leaf
class Packed(Leaf):
    """A matrix in the blocked order: see the module."""

    __slots__ = ("packed", "table", "turned")

    def __init__(self, packed: Any, table: Any, turned: bool) -> None:
        """Make a leaf.

        Args:
            packed: the channels [C, K], of the layout `torch._mkldnn`.
            table: a tuple of the same as a tensor, whose rows are looked up; () for a weight.
            turned: whether the leaf is their transpose [K, C], as a weight [inputs, outputs] is.
        """
        self.packed, self.table, self.turned = packed, table, turned

    def tree_flatten(self) -> tuple[dict[str, Any], bool]:
        rows = {"rows": self.table[0]} if self.table else {}
        return {"packed": self.packed, **rows}, self.turned

    @classmethod
    def tree_unflatten(cls, children: list[Any], frame: bool) -> "Packed":
        packed, *table = children
        return cls(packed, tuple(table), frame)

    @property
    def shape(self) -> torch.Size:
        return self.packed.shape[::-1] if self.turned else self.packed.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.packed.dtype

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def requires_grad(self) -> bool:
        """False: packed weights are constants."""
        return False

    @property
    def mT(self) -> "Packed":
        return Packed(self.packed, self.table, not self.turned)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the tensor, which is packed again, where there is the kernel."""
        return _packed, (self._channels(), bool(self.table), self.turned)

    def _channels(self) -> Tensor:
        """Return the tensor [C, K], a constant of every transform."""
        packed, wrapped = self.packed, True
        while wrapped:  # grad wraps all arguments, and tracks those that it differentiates by
            wrapped = _functorch.is_functorch_wrapped_tensor(packed)
            if packed.requires_grad or _functorch.is_batchedtensor(packed):
                raise TypeError(
                    "packed weights are constants, for inference: differentiate by, or map over, "
                    "the tensors that fnlm.leaves.merge makes of them"
                )
            packed = _functorch.get_unwrapped(packed) if wrapped else packed
        with ExitStack() as outside:  # to_dense knows no transform
            while _functorch.peek_interpreter_stack() is not None:
                outside.enter_context(temporarily_pop_interpreter_stack())
            return packed.to_dense()

    def dense(self) -> Tensor:
        channels = self._channels()
        return channels.mT if self.turned else channels

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.turned or not _takes_kernel(x, self.packed, bias):
            return F.linear(x, self.dense(), bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, bias, "none", [], "")

    def __rmatmul__(self, x: Any) -> Any:
        return self.mT.linear(x, None) if self.turned else super().__rmatmul__(x)

    def rows(self, ids: Tensor) -> Tensor:
        if self.turned or not self.table:
            return super().rows(ids)
        return F.embedding(ids, self.table[0])


def _packable(path: str, leaf: Any) -> bool:
    """Return whether `pack` selects a leaf by default: weights of blocks, and tables of tokens."""
    return linear_weights(path, leaf) or path in ("embed.token", "output.table")


def pack(params: Tree, *, where: Predicate = _packable) -> Tree:
    """Return parameters with selected matrices in the blocked order of oneDNN, for decoding.

    A product with one or a few vectors then runs at the speed at which memory is read, most of all
    in bfloat16. The tensors of the weights are not kept; a table is, as its rows are looked up, so
    it takes memory twice.

    Args:
        params: of any family.
        where: predicate of path and leaf. What it selects is packed where this CPU has the kernel:
            matrices in float32, and in bfloat16 with AVX-512. Others are returned as they are.

    Returns:
        a tree with `Packed` leaves: constants, which no checkpoint holds. A pickle holds the
        tensors, and packs them again where it is read.

    Raises:
        ValueError: nothing is selected.

    >>> from fnlm import gpt2, random, tree
    >>> config = gpt2.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = tree.cast(gpt2.init(config, random.key(0)), torch.bfloat16)
    >>> fast, ids = pack(params), torch.tensor([3, 1, 4])
    >>> difference = gpt2.apply(fast, ids)[0] - gpt2.apply(params, ids)[0]
    >>> bool(difference.abs().max() < 1e-2)
    True
    """
    check_predicate(where)
    found = []

    def packed(path: str, leaf: Any) -> Any:
        if not where(path, leaf):
            return leaf
        found.append(path)
        if not isinstance(leaf, Tensor) or not _has_kernel(leaf):
            return leaf
        table = is_table(path)
        return _packed(leaf if table else leaf.mT, table, not table)

    result = tree.map_with_path(packed, params, whole=Leaf)
    if not found:
        raise ValueError(none_selected(params))
    return result


def _loadable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function, which `torch.load` may call from now on; usable as a decorator."""
    torch.serialization.add_safe_globals([function])
    return function


@_loadable
def _packed(channels: Tensor, table: bool, turned: bool) -> Packed | Tensor:
    """Return channels [C, K] as a leaf, or as the tensor for which it stands if there is no kernel.

    Args:
        channels: the matrix.
        table: whether it is kept as well, for its rows.
        turned: whether the leaf is the transpose.
    """
    if not _has_kernel(channels):
        return channels.mT if turned else channels
    blocked = torch.ops.mkldnn._reorder_linear_weight(channels.detach().contiguous(), 1)
    return Packed(blocked, (channels,) if table else (), turned)


def _has_kernel(leaf: Tensor) -> bool:
    """Return whether oneDNN multiplies by such a matrix on this CPU."""
    if leaf.ndim != 2 or not leaf.is_cpu or not leaf.numel():
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    if leaf.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return leaf.dtype == torch.float32


def _takes_kernel(x: Tensor, packed: Tensor, bias: Tensor | None) -> bool:
    """Return whether the kernel is legal: it has no derivatives and no rules of vmap."""
    if x.dtype != packed.dtype or not x.is_cpu or is_traced() or not x.numel():
        return False
    if _functorch.is_functorch_wrapped_tensor(packed):
        return False
    tensors = (x,) if bias is None else (x, bias)
    active = levels(*tensors)
    return not active.order and not active.transforms and all(t.dtype == x.dtype for t in tensors)
