"""Low-rank adapters: a frozen weight plus the product of two thin matrices.

The weight of adapters 1, 2, ... on a base W [..., inputs, outputs] is::

    W + scale_1 a_1 b_1 + scale_2 a_2 b_2 + ...

with a [..., inputs, rank] and b [..., rank, outputs]. It is never made: a product with it is one
with W and two thin ones. Adapters of a wider type than W are cast where they are used.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv:2106.09685).
Deviations: a tied table is one leaf, so its adapter acts wherever the table is used; an adapter
computes in the type of its base.
"""

import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm import _former, random, tree
from fnlm.leaves._leaf import Leaf, check_predicate, is_table, none_selected
from fnlm.tree import Predicate, Tree, register_leaf

__all__ = ["LowRank", "attach", "base", "is_adapter", "linear_weights", "lora", "merge"]

Frame = tuple[tuple[str, float], ...]


@register_leaf
class LowRank(Leaf):
    """A base and its adapters: the paths of its parts are "base", "a", "b".

    An adapter with a name has it in front: "french.a", "french.b".
    """

    __slots__ = ("base", "factors", "frame")

    def __init__(self, base: Any, factors: Sequence[tuple[Any, Any]], frame: Frame) -> None:
        """Make a leaf.

        Args:
            base: [..., inputs, outputs], a tensor or another leaf.
            factors: a [..., inputs, rank] and b [..., rank, outputs] of each adapter.
            frame: name and scale of each adapter.
        """
        self.base, self.factors, self.frame = base, tuple(factors), frame

    def tree_flatten(self) -> tuple[dict[str, Any], Frame]:
        children = {"base": self.base}
        for (name, _), (a, b) in zip(self.frame, self.factors, strict=True):
            front = f"{name}." if name else ""
            children[f"{front}a"], children[f"{front}b"] = a, b
        return children, self.frame

    @classmethod
    def tree_unflatten(cls, children: list[Any], frame: Frame) -> "LowRank":
        first, *rest = children
        return cls(first, tuple(zip(rest[::2], rest[1::2], strict=True)), frame)

    def _whole_base(self) -> Any:
        if isinstance(self.base, dict):
            raise ValueError(
                "an adapter without its base is half of a leaf: join it with the other half by "
                "fnlm.tree.merge(adapters, rest)"
            )
        return self.base

    def _check_factors(self) -> None:
        """Raise ValueError unless all factors are there, and fit the base."""
        inputs, outputs = self.shape[-2:]
        for a, b in self.factors:
            if isinstance(a, dict) or isinstance(b, dict):
                raise ValueError(
                    "a base without its adapter is half of a leaf: join it with the other half by "
                    "fnlm.tree.merge(adapters, rest), or leave it by fnlm.leaves.base"
                )
            if a.shape[-2] != inputs or b.shape[-1] != outputs:
                raise ValueError(
                    f"an adapter of a {list(a.shape)} and b {list(b.shape)} does not fit its base "
                    f"{list(self.shape)}: merge it with the parameters that it was made for"
                )

    def _with(self, base: Any, factors: Sequence[tuple[Any, Any]]) -> "LowRank":
        return LowRank(base, factors, self.frame)

    def _scaled(self) -> list[tuple[Any, Any, float]]:
        """Return a, b and scale of each adapter, in the type of the base."""
        self._check_factors()
        pairs = [(a.to(self.dtype), b.to(self.dtype)) for a, b in self.factors]
        return [(a, b, scale) for (a, b), (_, scale) in zip(pairs, self.frame, strict=True)]

    @property
    def shape(self) -> torch.Size:
        return self._whole_base().shape

    @property
    def dtype(self) -> torch.dtype:
        return self._whole_base().dtype

    @property
    def device(self) -> torch.device:
        return self._whole_base().device

    @property
    def requires_grad(self) -> bool:
        """Whether autograd tracks a part of it."""
        return any(x.requires_grad for x in tree.leaves(self))

    def dense(self) -> Tensor:
        weight = self._whole_base()
        for a, b, scale in self._scaled():
            weight = weight + _times(a @ b, scale)
        return weight.dense() if isinstance(weight, Leaf) else weight

    @property
    def mT(self) -> "LowRank":
        return self._with(self._whole_base().mT, [(b.mT, a.mT) for a, b in self.factors])

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y = F.linear(x, self._whole_base(), bias)
        for a, b, scale in self._scaled():
            y = y + _times(x @ b.mT, scale) @ a.mT  # [..., inputs] -> rank -> outputs
        return y

    def rows(self, ids: Tensor) -> Tensor:
        x = F.embedding(ids, self._whole_base())
        for a, b, scale in self._scaled():
            x = x + _times(F.embedding(ids, a), scale) @ b  # [...] -> rank -> D
        return x

    def __rmatmul__(self, x: Any) -> Any:
        y = x @ self._whole_base()
        for a, b, scale in self._scaled():
            y = y + _times(x @ a, scale) @ b
        return y

    def __matmul__(self, x: Any) -> Any:
        y = self._whole_base() @ x
        for a, b, scale in self._scaled():
            y = y + a @ _times(b @ x, scale)
        return y

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if self.ndim == 2 and all(isinstance(part, slice) for part in parts) and len(parts) <= 2:
            rows, columns = (*parts, slice(None))[:2]
            factors = [(a[rows], b[:, columns]) for a, b in self.factors]
            return self._with(self._whole_base()[rows, columns], factors)
        if self.ndim == 2 and isinstance(index, int | Tensor):  # rows, by number, ids or mask
            x = self._whole_base()[index]
            for a, b, scale in self._scaled():
                x = x + _times(a[index], scale) @ b
            return x
        return super().__getitem__(index)

    def _kind(self) -> str:
        sizes = [
            f"{name} {a.shape[-1]}".strip()
            for (name, _), (a, _) in zip(self.frame, self.factors, strict=True)
        ]
        return f"rank {', '.join(sizes)}, "


def linear_weights(path: str, leaf: Any) -> bool:
    """Select the matrices of the blocks: of attention and MLPs, not the tables and the heads.

    >>> linear_weights("blocks.0.mlp.up.weight", torch.ones(2, 3))
    True
    """
    return path.startswith("blocks.") and leaf.ndim >= 2 and not path.endswith("bias")


def is_adapter(path: str, leaf: Any = None) -> bool:
    """Select the parts of adapters, for `fnlm.tree.partition` and `fnlm.tree.select`.

    >>> is_adapter("blocks.0.mlp.up.weight.a"), is_adapter("blocks.0.mlp.up.weight.base")
    (True, False)
    """
    del leaf  # the last name of the path decides
    return path.rpartition(".")[2] in ("a", "b")


@_former.answering
def lora(
    params: Tree,
    key: Tensor,
    *,
    rank: int,
    where: Predicate = linear_weights,
    alpha: float | None = None,
    name: str = "",
) -> Tree:
    """Return parameters with a low-rank adapter on each selected weight.

    They compute the same numbers at first, as b is 0. a is uniform, with the bound 1 / sqrt(inputs)
    of `peft`; for a table, of which one row is read at a time, the bound is 1.

    Args:
        params: of any family; they may have adapters of other names, and quantized weights.
        key: the key of each adapter is folded from it and the path of the weight.
        rank: of the adapters.
        where: predicate of path and leaf that selects weights [..., inputs, outputs].
        alpha: the product a b is scaled by alpha / rank; None is a scale of 1.
        name: of the adapter, in front of its parts in their paths.

    Returns:
        a tree with `LowRank` leaves, which hold the selected leaves of `params` themselves.

    Raises:
        ValueError: a rank below 1; nothing is selected, or what is no matrix of floating type, or
            what has an adapter of that name; a name with a dot.

    >>> from fnlm import gpt2
    >>> config = gpt2.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = gpt2.init(config, random.key(0))
    >>> adapted = lora(params, random.key(1), rank=2)
    >>> adapters, frozen = tree.partition(adapted, is_adapter)
    >>> tree.count(adapters)
    768
    >>> ids = torch.tensor([3, 1, 4])
    >>> torch.equal(gpt2.apply(adapted, ids)[0], gpt2.apply(params, ids)[0])
    True
    """
    if not isinstance(rank, int) or rank < 1:
        raise ValueError(f"rank must be a whole number of at least 1, got {rank}: such as 8")
    check_predicate(where)
    if "." in name or name == "base":
        raise ValueError(f"name={name!r} must have no dot, and not be 'base'")
    scale = 1.0 if alpha is None else alpha / rank
    found = []

    def adapted(path: str, leaf: Any) -> Any:
        if not where(path, leaf):
            return leaf
        found.append(path)
        if leaf.ndim < 2 or not leaf.is_floating_point():
            raise ValueError(
                f"{path} has shape {list(leaf.shape)} and type {leaf.dtype}: adapters are for "
                "matrices of floating type; let `where` leave it out"
            )
        pair = _new_factors(path, leaf, random.fold_in(key, zlib.crc32(path.encode())), rank)
        return attach(leaf, pair, path=path, name=name, scale=scale)

    result = tree.map_with_path(adapted, params, whole=Leaf)
    if not found:
        raise ValueError(none_selected(params))
    return result


def attach(
    leaf: Any, factors: tuple[Tensor, Tensor], *, path: str, name: str = "", scale: float = 1.0
) -> LowRank:
    """Return a leaf with one more adapter.

    Args:
        leaf: [..., inputs, outputs], a tensor or a leaf, with or without adapters.
        factors: a [..., inputs, rank] and b [..., rank, outputs].
        path: of the leaf, for the error.
        name: of the adapter.
        scale: of a b.

    Raises:
        ValueError: the leaf has an adapter of that name.

    >>> attach(torch.ones(2, 3), (torch.ones(2, 1), torch.ones(1, 3)), path="w")
    LowRank([2, 3], rank 1, torch.float32)
    """
    if not isinstance(leaf, LowRank):
        return LowRank(leaf, [factors], ((name, scale),))
    if name in dict(leaf.frame):
        raise ValueError(f"{path} has an adapter {name!r} already: give this one another name=")
    return LowRank(leaf.base, (*leaf.factors, factors), (*leaf.frame, (name, scale)))


def _new_factors(path: str, leaf: Any, key: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return a, at random, and b, of zeros."""
    *lead, inputs, outputs = leaf.shape
    bound = 1.0 if is_table(path) else 1 / math.sqrt(max(inputs, 1))
    a = (random.uniform(key, (*lead, inputs, rank)) * 2 - 1) * bound
    return a.to(leaf.device, leaf.dtype), leaf.new_zeros((*lead, rank, outputs))


def merge(params: Tree) -> Tree:
    """Return parameters with a tensor for every typed leaf: adapters added, integers scaled back.

    >>> w = torch.ones(2, 3)
    >>> adapted = lora({"w": w}, random.key(0), rank=1, where=lambda path, leaf: True)
    >>> torch.equal(merge(adapted)["w"], w)
    True
    """
    return tree.map_with_path(
        lambda path, leaf: leaf.dense() if isinstance(leaf, Leaf) else leaf, params, whole=Leaf
    )


def base(params: Tree) -> Tree:
    """Return parameters without adapters: the very leaves that `lora` was given.

    >>> params = {"w": torch.ones(2, 3)}
    >>> base(lora(params, random.key(0), rank=1, where=lambda path, leaf: True))["w"] is params["w"]
    True
    """
    return tree.map_with_path(
        lambda path, leaf: leaf.base if isinstance(leaf, LowRank) else leaf, params, whole=LowRank
    )


def _times(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale
