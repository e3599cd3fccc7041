"""How results depend on training data: influence functions, and derivatives through training.

Both give the derivative of a query (a number that a trained model has, such as its loss on a text)
by the weights of training examples: by the implicit function theorem at an optimum, or through the
very steps that were made. Minus the derivative is, to first order, what leaving the example out
adds to the query.
"""

import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from fnlm import tree
from fnlm.transforms._examples import check_batch, chunks, rows
from fnlm.transforms.gradient import grad, grad_and_value
from fnlm.transforms.operator import inner, split_floats
from fnlm.transforms.solvers import Solution, solve
from fnlm.tree import Tree

__all__ = ["Attribution", "Influence", "attribute", "influence"]


class Influence(NamedTuple):
    """The derivatives of a query at an optimum by the weights of training examples."""

    scores: Tensor  # [B]
    solution: Solution  # (op + damping) x = gradient of the query; it serves further examples


class Attribution(NamedTuple):
    """The derivatives of a query through steps of training."""

    value: Tensor  # [] the query after the last step
    weights: Tree  # its derivatives by the weights, a tree like the weights
    start: Tree  # its derivatives by the floating-point leaves of the state before the first step
    state: Tree  # the state after the last step


def influence(
    op: Callable[[Tree], Tree],
    query: Callable[[Tree], Tensor],
    loss: Callable[..., Tensor],
    params: Tree,
    *batch: Any,
    damping: float = 0.0,
    tol: float = 1e-5,
    max_iterations: int = 1000,
    precondition: Callable[[Tree], Tree] | None = None,
    chunk_size: int | None = None,
) -> Influence:
    """Return the derivatives of a query by the weights of examples, at an optimum of training.

    The objective is the mean of weighted losses, whose optimum moves with a weight w_i (all are 1);
    q is the query::

        p(w)    = argmin_p (1 / B) sum_i w_i loss_i(p) + regularizer(p)
        dq/dw_i = -(1 / B) dq/dp . op^-1 . dloss_i/dp

    Args:
        op: the Hessian of the objective at `params`, regularizer included, or an approximation of
            it, as from `ggn`: an operator over the floating-point leaves.
        query: `query(params) -> []`.
        loss: `loss(params, *example) -> []`, where an example has no batch axis.
        params: the optimum; leaves that are not floating point are constants.
        *batch: the training examples, all B of them: tensors, or trees of tensors, with a first
            axis of examples.
        damping, tol, max_iterations, precondition: as for `solve`, whose right-hand side is the
            gradient of the query.
        chunk_size: number of examples at a time; None for all.

    Returns:
        the derivatives [B] and the solution. No gradient of a single example is made.

    Raises:
        ValueError: as from `solve`; or there is no batch, or its first axes differ.

    >>> x = torch.tensor([1.0, 3.0])  # the optimum of the mean of (p - x)^2 / 2 is the mean of x
    >>> influence(lambda v: v, lambda p: p, lambda p, x: (p - x) ** 2 / 2, x.mean(), x).scores
    tensor([-0.5000,  0.5000])

    Source: Koh and Liang 2017, with the sign of a weight, not of an example left out.
    """
    check_batch(batch)
    size = rows(batch)
    floats, whole = split_floats(params)
    gradient = grad(lambda p: query(whole(p)))(floats)
    solution = solve(
        op,
        gradient,
        damping=damping,
        tol=tol,
        max_iterations=max_iterations,
        precondition=precondition,
    )
    every = vmap(lambda p, *example: loss(whole(p), *example), (None, *(0 for _ in batch)))
    slopes = [
        jvp(lambda p, part=part: every(p, *part), (floats,), (solution.x,))[1]
        for part in chunks(batch, max(size, 1) if chunk_size is None else chunk_size)
    ]
    scores = torch.cat(slopes) if slopes else tree.leaves(floats)[0].new_zeros(0)
    return Influence(-scores / max(size, 1), solution)


def attribute(
    step: Callable[..., Tree],
    query: Callable[[Tree], Tensor],
    state: Tree,
    weights: Tree,
    batches: Sequence[tuple[Any, ...]],
    *,
    every: int | None = None,
    store: MutableMapping[int, Tree] | None = None,
) -> Attribution:
    """Return the derivatives of a query through steps of training, by weights and by the start.

    Training is run and every `every`-th state kept; then stretches of steps are run again from the
    last to the first, each differentiated in reverse. As steps are pure and randomness is a key,
    the second run is the first, bit for bit. With the square root of N steps between kept states,
    memory is that of 2 sqrt(N) states and one differentiated step, and time that of running N steps
    twice and differentiating each once.

    Args:
        step: `step(state, weights, *batch) -> state`, a pure function; of a step of
            `fnlm.train.train_step`, whose loss takes its examples' weights as data,
            `lambda state, w, i, ids: train_step(state, ids, w[i])[0]`.
        query: `query(state) -> []`, of the last state.
        state: the state before the first step; leaves that are not floating point are constants.
        weights: what every step may read, and the derivatives are by: a weight for each example, or
            any other tree of floating-point tensors, such as learning rates.
        batches: the data of each step, N of them: indices of examples, keys.
        every: number of steps from one kept state to the next; None for the square root of N.
        store: where states are kept, by the number of the step before which they were: a dict
            unless given; one that writes to files keeps them on disk. It is changed.

    Returns:
        value, derivatives and the last state.

    Raises:
        ValueError: `every` is less than 1, or weights are not floating point; or the step is not
            pure, as it changed its state in place (`donate=True`) or gave another one when run
            again (dropout of a global generator).

    >>> def step(state, weights, i):  # gradient descent on weights[i] (state - i)^2 / 2
    ...     return state - 0.5 * weights[i] * (state - i)
    >>> start, ones, order = torch.tensor(4.0), torch.ones(2), [(0,), (1,), (0,)]
    >>> attribute(step, lambda state: state, start, ones, order)
    Attribution(value=tensor(0.7500), weights=tensor([-1.2500, -0.2500]), start=tensor(0.1250),
        state=tensor(0.7500))

    Source: Maclaurin et al. 2015; checkpoints as in Chen et al. 2016. Deviation: states are kept,
    not computed backwards, so the second run is exact.
    """
    if every is not None and every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    if any(not leaf.is_floating_point() for leaf in tree.leaves(weights)):
        raise ValueError("weights must be floating-point tensors, as derivatives are by them")
    every = every or max(1, math.isqrt(len(batches)))
    kept: MutableMapping[int, Tree] = {} if store is None else store
    state = tree.map(torch.Tensor.detach, state)
    for i, batch in enumerate(batches):
        if i % every == 0:
            kept[i] = state
        state = _run(step, state, weights, batch)
    last = after = state
    floats, whole = split_floats(last)
    by_state, value = grad_and_value(lambda floats: query(whole(floats)))(floats)
    by_weights = tree.map(torch.zeros_like, weights)
    for first in reversed(range(0, len(batches), every)):
        stretch = batches[first : first + every]
        states = [kept.pop(first) if store is None else kept[first]]
        for batch in stretch[:-1]:
            states.append(_run(step, states[-1], weights, batch))
        for batch in reversed(stretch):
            before = states.pop()
            again, by_state, more = _pull_back(step, before, weights, batch, by_state)
            _check_again(first, before, again, after)
            by_weights, after = tree.map(torch.add, by_weights, more), before
    return Attribution(value, by_weights, by_state, last)


def _run(step: Callable[..., Tree], state: Tree, weights: Tree, batch: tuple[Any, ...]) -> Tree:
    """Return the state after a step, without a graph."""
    leaves = [leaf for leaf in tree.leaves(state) if not leaf.is_inference()]
    versions = [leaf._version for leaf in leaves]
    after = tree.map(torch.Tensor.detach, step(state, weights, *batch))
    if [leaf._version for leaf in leaves] != versions:
        raise ValueError(
            "step changed its state in place, and could not be run again: make it without "
            "donate=True"
        )
    return after


def _pull_back(
    step: Callable[..., Tree], state: Tree, weights: Tree, batch: tuple[Any, ...], by_after: Tree
) -> tuple[Tree, Tree, Tree]:
    """Return the state after a step, and derivatives by the state before it and by weights."""
    floats, whole = split_floats(state)

    def smooth(floats: Tree, weights: Tree) -> Tree:
        return split_floats(step(whole(floats), weights, *batch))[0]

    # Not unpacked in one line: mypy does not know the extra arguments of the function.
    after, pull = vjp(smooth, floats, weights)[:2]
    keep: Any = pull
    return after, *keep(by_after, retain_graph=False, create_graph=False)


def _check_again(step: int, before: Tree, again: Tree, after: Tree) -> None:
    """Raise if a step run again goes elsewhere: rounding may differ, the direction may not."""
    first, second = split_floats(before)[0], split_floats(after)[0]
    moved = tree.map(torch.sub, second, first)
    off = tree.map(torch.sub, again, second)
    if inner(off, off) > 0.25 * inner(moved, moved):
        raise ValueError(
            f"step is not a pure function: run again after step {step} or later, it gave another "
            "state. Take randomness from keys, in the state or in batches"
        )
