"""Quantized weights: small integers with scales, for inference and under adapters.

A matrix is kept as channels, the rows of a table and the columns of a weight [inputs, outputs], in
integers q::

    8 bits    w = q scale               q from -127 to 127, one scale a channel
    4 bits    w = (q - 8) scale + zero  q from 0 to 15, both for each group of a channel

so no weight is off by more than half a scale, apart from rounding. Products with bfloat16 use
torch's kernels for CPUs where these are faster: for a few vectors at a time, outside of all
transforms. Everything else computes with the weights that the integers stand for, in the type of
the scales. Of a product of one vector with 8 bits `torch.compile` makes a loop of its own.

Dimensions: C channels, K numbers a channel, G groups of a channel.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from fnlm import tree
from fnlm.layers._one_vector import flat, is_compiled
from fnlm.layers.embedding import check_range
from fnlm.layers.precision import at_least_float32
from fnlm.leaves._leaf import Leaf, check_predicate, is_table, none_selected
from fnlm.leaves.low_rank import LowRank, linear_weights
from fnlm.tree import Predicate, Tree, register_leaf

__all__ = ["Int4", "Int8", "Quantized", "quantize"]

FEW = 8  # vectors for which the kernels are faster than a product of matrices in bfloat16
STEP = 64  # the kernel for 8 bits reads K in steps, beyond the end if they do not fill it
BLOCK = 64  # channels that are packed together in 4 bits
GROUPS = (32, 64, 128, 256)  # sizes of a group that the kernel knows


class Quantized(Leaf):
    """The base class of matrices of small integers.

    Their parts are "values", integers that are constants for every transform, and "scale", whose
    type is that of the leaf. Stored are the channels [C, K]; `turned` says that the leaf is their
    transpose [K, C], as a weight [inputs, outputs] is.
    """

    __slots__ = ()
    scale: Any
    turned: bool

    def _stored(self) -> Tensor:
        """Return the channels: [..., C, K]."""
        raise NotImplementedError

    def _product(self, x: Tensor) -> Tensor:
        """Return x times each channel: [..., K] -> [..., C]."""
        raise NotImplementedError

    def _like(self, turned: bool) -> "Quantized":
        """Return the leaf with another `turned`."""
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        return self.scale.dtype

    @property
    def device(self) -> torch.device:
        return self.scale.device

    @property
    def requires_grad(self) -> bool:
        """Whether autograd tracks the scale."""
        return self.scale.requires_grad

    def dense(self) -> Tensor:
        return self._stored().mT if self.turned else self._stored()

    @property
    def mT(self) -> "Quantized":
        return self._like(not self.turned)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if self.turned:
            return F.linear(x, self.dense(), bias)
        y = self._product(x)
        return y if bias is None else y + bias

    def __rmatmul__(self, x: Any) -> Any:
        return self._product(x) if self.turned and self.ndim == 2 else x @ self.dense()

    def __getitem__(self, index: Any) -> Any:
        """Slice: of channels, the integers are kept; everything else is of the dense matrix."""
        parts = index if isinstance(index, tuple) else (index,)
        if self.ndim == 2 and len(parts) <= 2 and all(isinstance(part, slice) for part in parts):
            rows, columns = (*parts, slice(None))[:2]
            channels, inner = (columns, rows) if self.turned else (rows, columns)
            span = range(self.shape[1 if self.turned else 0])[channels]
            if inner == slice(None) and span.step == 1:
                return self._channels(span.start, max(span.stop, span.start))
        return super().__getitem__(index)

    def _channels(self, start: int, stop: int) -> Any:
        """Return the leaf of some channels."""
        raise NotImplementedError


@register_leaf
class Int8(Quantized):
    """A matrix in 8 bits: see the module."""

    __slots__ = ("values", "scale", "turned")

    def __init__(self, values: Any, scale: Any, turned: bool) -> None:
        """Make a leaf.

        Args:
            values: int8 [..., C, K].
            scale: [..., C].
            turned: whether the leaf is their transpose.
        """
        self.values, self.scale, self.turned = values, scale, turned

    def tree_flatten(self) -> tuple[dict[str, Any], bool]:
        return {"values": self.values, "scale": self.scale}, self.turned

    @classmethod
    def tree_unflatten(cls, children: list[Any], frame: bool) -> "Int8":
        values, scale = children
        return cls(values, scale, frame)

    def _like(self, turned: bool) -> "Int8":
        return Int8(self.values, self.scale, turned)

    @property
    def shape(self) -> torch.Size:
        *lead, channels, inner = self.values.shape
        return torch.Size((*lead, *((inner, channels) if self.turned else (channels, inner))))

    def _stored(self) -> Tensor:
        return self.values.to(self.dtype) * self.scale[..., None]

    def _product(self, x: Tensor) -> Tensor:
        if is_compiled(x):
            y = (self.values.float() * flat(x)).sum(-1) * self.scale.float()
            return y.to(self.dtype).view(*x.shape[:-1], -1)
        legal = self.values.shape[-1] % STEP == 0
        if legal and _kernel_is_faster(x, self.values, self.scale):
            few = x.reshape(-1, x.shape[-1]).contiguous()
            y = torch._weight_int8pack_mm(few, self.values.contiguous(), self.scale)
            return y.reshape(*x.shape[:-1], -1)
        if self.dtype == torch.float16:  # the unscaled product might overflow
            return F.linear(x, self._stored())
        return F.linear(x, self.values.to(self.dtype)) * self.scale

    def rows(self, ids: Tensor) -> Tensor:
        if self.turned:
            return F.embedding(ids, self.dense())
        values = F.embedding(ids, self.values)  # which checks the ids
        return values.to(self.dtype) * self.scale[ids][..., None]

    def _channels(self, start: int, stop: int) -> "Int8":
        return Int8(self.values[start:stop], self.scale[start:stop], self.turned)


@register_leaf
class Int4(Quantized):
    """A matrix in 4 bits: see the module.

    In a block of 64 channels, byte j < 32 of a column holds those of channels j (its low bits) and
    j + 32. That is how torch packs them for a CPU with AVX-512; on others the kernel is not used.
    """

    __slots__ = ("values", "scale", "sides", "turned")

    def __init__(self, values: Any, scale: Any, sides: tuple[int, int], turned: bool) -> None:
        """Make a leaf.

        Args:
            values: uint8 [..., C / 64, K, 32], with C padded to blocks and K to groups.
            scale: scale and zero, [..., G, C, 2], with C padded.
            sides: C and K without padding.
            turned: whether the leaf is their transpose.
        """
        self.values, self.scale, self.sides, self.turned = values, scale, sides, turned

    def tree_flatten(self) -> tuple[dict[str, Any], tuple[int, int, bool]]:
        return {"values": self.values, "scale": self.scale}, (*self.sides, self.turned)

    @classmethod
    def tree_unflatten(cls, children: list[Any], frame: tuple[int, int, bool]) -> "Int4":
        (values, scale), (channels, inner, turned) = children, frame
        return cls(values, scale, (channels, inner), turned)

    def _like(self, turned: bool) -> "Int4":
        return Int4(self.values, self.scale, self.sides, turned)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.scale.shape[:-3], *self.sides[:: -1 if self.turned else 1]))

    def _stored(self) -> Tensor:
        channels, inner = self.sides
        numbers = torch.cat([self.values & 15, self.values >> 4], -1).to(self.dtype)
        grouped = numbers.unflatten(-2, (self.scale.shape[-3], -1))  # [..., C / 64, G, K / G, 64]
        scales = self.scale.unflatten(-2, (-1, BLOCK)).transpose(-4, -3)  # [..., C / 64, G, 64, 2]
        factor, zero = (x.contiguous()[..., None, :] for x in scales.unbind(-1))
        blocks = torch.addcmul(zero - 8 * factor, grouped, factor)  # rows of 64: fast on a CPU
        turned = blocks.flatten(-3, -2).movedim(-3, -2).flatten(-2)  # [..., K, C]
        return turned.mT[..., :channels, :inner]

    def _product(self, x: Tensor) -> Tensor:
        channels, inner = self.sides
        padded, groups = self.values.shape[-2], self.scale.shape[-3]
        legal = padded == inner and padded // groups in GROUPS
        if legal and PACKS_ALIKE and _kernel_is_faster(x, self.values, self.scale):
            few, packed = x.reshape(-1, inner).contiguous(), self.values.contiguous()
            y = torch._weight_int4pack_mm_for_cpu(
                few, packed.view(-1, inner // 2), inner // groups, self.scale.contiguous()
            )
            return y[:, :channels].reshape(*x.shape[:-1], channels)
        return F.linear(x, self._stored())

    def rows(self, ids: Tensor) -> Tensor:
        if self.turned:
            return F.embedding(ids, self.dense())
        channels, inner = self.sides
        check_range(ids, channels)
        scale = self.scale.movedim(-3, -2)[ids]  # [..., G, 2]
        in_block = ids % BLOCK
        numbers = self.values[ids // BLOCK, :, in_block % (BLOCK // 2)]  # [..., K]
        numbers = torch.where((in_block < BLOCK // 2)[..., None], numbers & 15, numbers >> 4)
        grouped = numbers.to(self.dtype).unflatten(-1, (scale.shape[-2], -1))  # [..., G, K / G]
        factor, zero = scale.split(1, -1)  # [..., G, 1]
        return torch.addcmul(zero - 8 * factor, grouped, factor).flatten(-2)[..., :inner]

    def _channels(self, start: int, stop: int) -> Any:
        channels, inner = self.sides
        if start % BLOCK or (stop % BLOCK and stop < channels):  # it would cut a block
            x = self._stored()[start:stop]
            return x.mT if self.turned else x
        first, last = start // BLOCK, -(-stop // BLOCK)
        scale = self.scale[:, first * BLOCK : last * BLOCK]
        return Int4(self.values[first:last], scale, (stop - start, inner), self.turned)


def quantize(
    params: Tree, *, bits: int, where: Predicate = linear_weights, group: int = 32
) -> Tree:
    """Return parameters with selected matrices in 8 or 4 bits.

    Args:
        params: of any family; of a weight with adapters, the base is quantized.
        bits: 8, with a scale for each channel, or 4, with one for each `group` of its numbers.
        where: predicate of path and leaf that selects matrices, by default those of the blocks.
        group: 32, 64, 128 or 256.

    Returns:
        a tree with `Int8` or `Int4` leaves. Their integers are no parameters to be trained:
        differentiate by other leaves, which `fnlm.tree.partition` selects.

    Raises:
        ValueError: other bits or groups; nothing is selected, or what is no matrix of floating
            type, is not finite, or is quantized already.

    >>> from fnlm import gpt2, random
    >>> config = gpt2.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params = gpt2.init(config, random.key(0))
    >>> small, ids = quantize(params, bits=8), torch.tensor([3, 1, 4])
    >>> error = gpt2.apply(small, ids)[0] - gpt2.apply(params, ids)[0]
    >>> bool(error.abs().max() < 1e-3)
    True

    Source: the symmetric and the grouped scheme of torch's weight-only kernels.
    """
    if bits not in (8, 4):
        raise ValueError(f"bits must be 8 or 4, got {bits}: these have kernels")
    if group not in GROUPS:
        raise ValueError(f"group must be one of {GROUPS}, got {group}")
    check_predicate(where)
    found = []

    def quantized(path: str, leaf: Any) -> Any:
        if isinstance(leaf, LowRank):
            return LowRank(quantized(path, leaf.base), leaf.factors, leaf.frame)
        if not where(path, leaf):
            return leaf
        found.append(path)
        _check(path, leaf)
        turned = not is_table(path)
        stored = leaf.mT if turned else leaf  # [..., C, K]
        return _int8(stored, turned) if bits == 8 else _int4(stored, turned, group)

    result = tree.map_with_path(quantized, params, whole=Leaf)
    if not found:
        raise ValueError(none_selected(params))
    return result


def _check(path: str, leaf: Any) -> None:
    if isinstance(leaf, Leaf):
        raise ValueError(
            f"{path} is a leaf of type {type(leaf).__name__} already: fnlm.leaves.merge makes a "
            "tensor of it"
        )
    if leaf.ndim < 2 or not leaf.is_floating_point() or not leaf.numel():
        raise ValueError(
            f"{path} has shape {list(leaf.shape)} and type {leaf.dtype}: only matrices of floating "
            "type, with numbers in them, are quantized; let `where` leave it out"
        )
    if _is_plain(leaf) and not bool(leaf.isfinite().all()):
        raise ValueError(f"{path} has a number that is not finite: it has no place among integers")


def _int8(stored: Tensor, turned: bool) -> Int8:
    wide = _wide(stored)
    scale = (wide.abs().amax(-1) / 127).to(stored.dtype)  # [..., C]
    values = _over(wide, scale[..., None]).round().clamp(-127, 127).to(torch.int8)
    return Int8(values.contiguous(), scale, turned)


def _int4(stored: Tensor, turned: bool, group: int) -> Int4:
    channels, inner = stored.shape[-2:]
    wide = F.pad(_wide(stored), (0, -inner % group, 0, -channels % BLOCK))
    grouped = wide.unflatten(-1, (-1, group))  # [..., C, G, K / G]
    low, high = grouped.amin(-1), grouped.amax(-1)  # [..., C, G]
    scale = ((high - low) / 15).to(stored.dtype)
    zero = (low + 8 * scale).to(stored.dtype)
    numbers = _over(grouped - zero[..., None], scale[..., None]) + 8
    numbers = numbers.round().clamp(0, 15).to(torch.uint8).flatten(-2)  # [..., C, K]
    blocks = numbers.unflatten(-2, (-1, BLOCK)).mT  # [..., C / 64, K, 64]
    low_bits, high_bits = blocks.split(BLOCK // 2, -1)
    values = (low_bits | high_bits << 4).contiguous()
    scales = torch.stack([scale, zero], -1).movedim(-3, -2)  # [..., G, C, 2]
    return Int4(values, scales.contiguous(), (channels, inner), turned)


def _wide(x: Tensor) -> Tensor:
    """Return a tensor in at least float32, as a constant."""
    return at_least_float32(x.detach())


def _over(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / scale in the type of x, 0 for a scale of 0: of numbers that are all alike."""
    scale = scale.to(x.dtype)
    return torch.where(scale > 0, x / torch.where(scale > 0, scale, 1), 0)


def _kernel_is_faster(x: Tensor, *parts: Tensor) -> bool:
    """Return whether torch's kernels are legal here, and faster than a product of matrices.

    They have no derivatives and no rules of vmap, and are slow for any type but bfloat16.
    """
    if x.dtype != torch.bfloat16:
        return False
    if torch.compiler.is_compiling():
        return is_compiled(x) and parts[-1].dtype == x.dtype and x.is_cpu
    tensors = (x, *parts)
    if x.numel() > FEW * x.shape[-1] or not x.numel() or not all(map(_is_plain, tensors)):
        return False
    tracked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return parts[-1].dtype == x.dtype and not tracked and forward_ad._current_level < 0


def _is_plain(x: Tensor) -> bool:
    """Return whether a tensor is on the CPU, and no transform and no tracing goes on."""
    modes = torch._C._TorchDispatchModeKey
    traced = torch.compiler.is_compiling() or any(
        torch._C._get_dispatch_mode(mode) is not None for mode in (modes.PROXY, modes.FAKE)
    )
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    return x.device.type == "cpu" and not traced and not wrapped


def _packs_alike() -> bool:
    """Return whether torch packs 4 bits on this CPU as `Int4` does."""
    numbers = (torch.arange(2 * BLOCK * 32) * 7 // 3 % 16).view(2 * BLOCK, 32)
    blocks = numbers.to(torch.uint8).view(2, BLOCK, 32).mT
    ours = blocks[..., : BLOCK // 2] | blocks[..., BLOCK // 2 :] << 4
    theirs = torch._convert_weight_to_int4pack_for_cpu(numbers.to(torch.int32), 1)
    return torch.equal(ours.flatten(), theirs.flatten())


PACKS_ALIKE = _packs_alike()
