"""Where an optimizer keeps its state, and in which precision."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import random, tree
from fnlm.layers.precision import at_least_float32
from fnlm.train.transformations import Optimizer, OptimizerState
from fnlm.tree import Tree

__all__ = ["OffloadedState", "half_moments", "offload", "round_stochastically"]

_HALF = (torch.float16, torch.bfloat16)


class OffloadedState(NamedTuple):
    """The state of an optimizer that `offload` keeps elsewhere."""

    masters: Tree  # the parameters there, at least float32: what is updated
    inner: OptimizerState  # the state of the optimizer, there


def offload(optimizer: Optimizer, device: torch.device | str = "cpu") -> Optimizer:
    """Return the optimizer with its state, and the weights that it updates, on another device.

    Gradients are copied there and the new parameters back, in their own types: parameters may be
    bfloat16 on a GPU, while float32 master weights and moment estimates stay in the memory of the
    CPU. Of float32 parameters, every update is that of `optimizer`.

    Args:
        optimizer: the optimizer to wrap.
        device: of its state, as for torch.

    Returns:
        the optimizer, whose state is an `OffloadedState`. The master weights decide: parameters
        that were changed elsewhere are overwritten by the next update.

    >>> from fnlm.train import adamw
    >>> optimizer = offload(adamw(1e-3, weight_decay=0.0))
    >>> params = {"w": torch.ones(1, dtype=torch.bfloat16)}
    >>> state = optimizer.init(params)
    >>> for _ in range(3):  # steps of 0.001 would be lost in bfloat16
    ...     params, state = optimizer.update({"w": torch.ones(1)}, state, params)
    >>> state.masters["w"], params["w"]
    (tensor([0.9970]), tensor([0.9961], dtype=torch.bfloat16))

    Source: `--optimize_on_cpu` of pytorch-pretrained-bert 0.6.2.
    """

    def init(params: Tree) -> Any:
        masters = tree.map(
            lambda p: torch.empty_like(at_least_float32(p), device=device).copy_(p), params
        )
        inner = optimizer.init(masters)
        return OffloadedState(masters, inner._replace(step=inner.step.to(device)))

    def update(grads: Tree, state: Any, params: Tree, *, donate: bool = False) -> tuple[Tree, Any]:
        there = tree.map(lambda g, m: g.to(m.device, m.dtype), grads, state.masters)
        masters, inner = optimizer.update(there, state.inner, state.masters, donate=donate)
        if donate:
            with torch.no_grad():
                params = tree.map(lambda p, m: p.copy_(m), params, masters)
        else:
            params = tree.map(lambda p, m: m.to(p.device, p.dtype), params, masters)
        return params, OffloadedState(masters, inner)

    return Optimizer(init, update)


def half_moments(
    optimizer: Optimizer, key: Tensor, dtype: torch.dtype = torch.bfloat16
) -> Optimizer:
    """Return the optimizer with its state in half precision between updates, rounded by a key.

    An update computes in float32 and rounds what it keeps up or down at random, so that the mean is
    right: with a decay rate of 0.999, rounding to the nearest would leave a bfloat16 estimate where
    it is. The key of a rounding is folded with the step, so a run that resumes rounds the same.

    Args:
        optimizer: the optimizer to wrap, such as `adamw(...)`.
        key: [] int64, of the rounding.
        dtype: bfloat16 or float16; the latter holds no second moment below 6e-8.

    Returns:
        the optimizer; its state is an `OptimizerState` with floating-point leaves of that type.

    Raises:
        TypeError: the type is no half precision; or, from `init`, the optimizer is an offloaded
            one, whose master weights are not to be rounded.

    >>> from fnlm.train import adamw
    >>> optimizer, params = half_moments(adamw(0.1), random.key(0)), {"w": torch.ones(2)}
    >>> params, state = optimizer.update(params, optimizer.init(params), params)
    >>> state.links[1].mu["w"].dtype
    torch.bfloat16
    """
    if dtype not in _HALF:
        raise TypeError(f"dtype must be torch.bfloat16 or torch.float16, got {dtype}")

    def init(params: Tree) -> OptimizerState:
        state: Any = optimizer.init(params)
        if isinstance(state, OffloadedState):
            raise TypeError(
                "half_moments(offload(...)) would round the master weights: turn it around, "
                "offload(half_moments(...))"
            )
        return tree.cast(state, dtype)

    def update(
        grads: Tree, state: OptimizerState, params: Tree, *, donate: bool = False
    ) -> tuple[Tree, OptimizerState]:
        wide = tree.map(at_least_float32, state)
        step_key = random.fold_in(key.to(state.step.device), state.step)
        params, new = optimizer.update(grads, wide, params, donate=donate)
        keys = iter(random.split(step_key, len(tree.leaves(state))).unbind(-1))
        rounded = tree.map(lambda x, old: _kept(x, old, next(keys)), new, state)
        if donate:
            tree.map(lambda old, x: old if old is x else old.copy_(x), state, rounded)
            return params, state
        return params, rounded

    return Optimizer(init, update)


def round_stochastically(x: Tensor, dtype: torch.dtype, key: Tensor) -> Tensor:
    """Return numbers of half precision next to `x`, up or down at random, with mean `x`.

    Args:
        x: [...] at least float32.
        dtype: bfloat16 or float16.
        key: [] int64.

    Returns:
        [...] of that type; what it can represent, infinity and NaN stay as they are.

    >>> rounded = round_stochastically(torch.full((10_000,), 1.001), torch.bfloat16, random.key(0))
    >>> rounded.unique().tolist(), round(rounded.double().mean().item(), 3)
    ([1.0, 1.0078125], 1.001)
    """
    nearest = x.to(dtype)
    # The neighbour on the other side of x: one more or less in the bits, as of sign and magnitude.
    outwards = torch.where(x.abs() >= nearest.to(x.dtype).abs(), 1, -1).to(torch.int16)
    other = (nearest.view(torch.int16) + outwards).view(dtype)
    gap, error = (y.to(x.dtype) - nearest.to(x.dtype) for y in (other, x))
    up = random.uniform(key.to(x.device), tuple(x.shape)) < error / gap  # False for NaN
    return torch.where(up, other, nearest)


def _kept(x: Tensor, old: Tensor, key: Tensor) -> Tensor:
    """Return a leaf of the new state in the type of the old one."""
    return round_stochastically(x, old.dtype, key) if old.dtype in _HALF else x
