"""Recomputation in the backward pass, legal under every transform."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.func import jvp, vjp

from fnlm import tree
from fnlm.layers._levels import is_traced, is_tracked, levels
from fnlm.layers._tap import is_read
from fnlm.transforms.gradient import is_recorded

__all__ = ["remat"]

Tensors = tuple[Tensor, ...]


def remat(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that keeps only its arguments for the backward pass, and computes again.

    Values and derivatives are those of `fn`, of every order and under every transform. A gradient
    then holds the arguments and results of the function, and not what lies between: see
    docs/training.md for what that saves.

    Args:
        fn: a pure function of trees of tensors (other leaves, configs too, are constants); random
            draws are by keys. It must not close over tensors that are differentiated.

    Returns:
        the same function. While `torch.compile`, `torch.export` or `make_fx` records, under two
        levels of forward mode, in a `forward_ad.dual_level`, and while `fnlm.taps.read` reads
        inside, it is `fn` itself, which recomputes nothing.

    Raises:
        TypeError: it is no function.
        ValueError: from the returned function, if the result depends on a tensor that is being
            differentiated and is no argument.

    >>> import torch
    >>> from torch.func import grad
    >>> block = remat(lambda x, weight: (x @ weight).tanh())
    >>> grad(lambda weight: block(torch.ones(2), weight).sum())(torch.zeros(2, 1))
    tensor([[1.],
            [1.]])
    """
    if not callable(fn):
        raise TypeError(
            f"fn must be a function, got {type(fn).__name__}: remat(fn)(x), and not remat(fn(x))"
        )

    @wraps(fn)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        # What `fnlm.taps.read` finds inside leaves fn beside its result, and keeps its derivatives.
        if is_traced() or is_read(*args, *kwargs.values()):
            return fn(*args, **kwargs)
        structure, leaves = tree.structure((args, kwargs)), tree.leaves((args, kwargs))
        floats = [leaf for leaf in leaves if _has_derivative(leaf)]
        active = levels(*floats)
        # jvp of jvp of a Function that has its own jvp is 0 in silence (docs/torch_func.md).
        if not floats or not active.order or active.forward > 1 or active.dual:
            return fn(*args, **kwargs)

        def call(inputs: Sequence[Any]) -> Any:
            args, kwargs = tree.unflatten(structure, inputs)
            return fn(*args, **kwargs)

        return _recompute(call, leaves)

    return recomputed


def _recompute(call: Callable[[Sequence[Any]], Any], leaves: list[Any]) -> Any:
    """Return call(leaves), whose derivatives call it again."""
    # Without levels around its arguments the function records nothing.
    result = call([x.detach() if isinstance(x, Tensor) else x for x in leaves])
    outputs = tree.leaves(result)
    places = [i for i, output in enumerate(outputs) if _has_derivative(output)]
    if any(is_tracked(outputs[i]) for i in places):
        raise ValueError(
            "the function given to remat closes over a tensor that is being differentiated, whose "
            "derivative would be lost: give it as an argument"
        )
    if not places:
        return result
    tensors = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def run(inputs: Tensors) -> Tensors:
        """The differentiable results as a function of the tensors alone."""
        found = tree.leaves(call(_replace(constants, tensors, inputs)))
        return tuple(found[i] for i in places)

    linked = _Link.apply(
        run, len(tensors), *(leaves[i] for i in tensors), *(outputs[i] for i in places)
    )
    return tree.unflatten(tree.structure(result), _replace(outputs, places, linked))


class _Link(torch.autograd.Function):
    """Returns values that are known already, as run(inputs), with its derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(run: Any, count: int, *tensors: Tensor) -> Tensors:
        return tensors[count:]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.run, ctx.count = inputs[:2]
        ctx.save_for_backward(*inputs[2 : 2 + ctx.count])
        ctx.save_for_forward(*inputs[2 : 2 + ctx.count])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [i for i in range(ctx.count) if ctx.needs_input_grad[2 + i]]
        inputs = tuple(map(unwrap_if_dead, ctx.saved_tensors))  # a pull may outlive its level
        # Again recomputed: torch.func.grad records the backward pass.
        found = remat(partial(_pull, ctx.run, wanted))(inputs, cotangents)
        nothing = [None] * (2 + ctx.count + len(cotangents))
        return tuple(_replace(nothing, [2 + i for i in wanted], found))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensors:
        inputs = ctx.saved_tensors
        wanted = [i for i in range(ctx.count) if tangents[2 + i] is not None]
        run = partial(_of, ctx.run, inputs, wanted)
        moved = tuple(inputs[i] for i in wanted), tuple(tangents[2 + i] for i in wanted)
        return jvp(run, *moved)[1]


def _of(run: Callable[[Tensors], Tensors], inputs: Tensors, wanted: list[int], *some: Any) -> \
        Tensors:  # fmt: skip
    """Return run(inputs) as a function of some of the inputs."""
    return run(tuple(_replace(inputs, wanted, some)))


def _pull(
    run: Callable[[Tensors], Tensors], wanted: list[int], inputs: Tensors, cotangents: Tensors
) -> Tensors:
    """Return the gradients of run by some of its inputs, from those of its results."""
    value, pull, *_ = vjp(partial(_of, run, inputs, wanted), *(inputs[i] for i in wanted))
    create_graph = any(map(is_recorded, (*value, *cotangents)))
    return pull(cotangents, retain_graph=create_graph, create_graph=create_graph)


def _replace(leaves: Sequence[Any], places: Sequence[int], new: Sequence[Any]) -> list[Any]:
    replaced = list(leaves)
    for place, leaf in zip(places, new, strict=True):
        replaced[place] = leaf
    return replaced


def _has_derivative(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
