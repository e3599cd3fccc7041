"""What a loss does with each leaf of its parameters, example by example.

The gradient of a matrix W in y = x W is sum_t x_t g_t^T, with the inputs x and the derivatives g of
the loss by the outputs y. Both are a fraction of the size of the gradients that they make, one for
each example; and what is asked of those gradients (their norms, a weighted sum, inner products with
a direction) can be had of the factors. `capture` returns these, from one pass back that computes no
gradient of a weight.

Sources: Goodfellow 2015, "Efficient Per-Example Gradient Computations" (arXiv:1510.01799); Li et
al. 2021 (arXiv:2110.05679, ghost clipping); Bu et al. 2023 (arXiv:2210.00038, book-keeping); Ding
et al. 2024 (arXiv:2405.18194, tied embeddings). Deviations: functions instead of modules and hooks;
every use of a leaf counts, with its cross terms, and uses that are not known have gradients.
"""

import contextlib
from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import debug_unwrap, vjp

from fnlm import tree
from fnlm.transforms import _reductions as reductions
from fnlm.transforms._examples import (
    Loss,
    check_batch,
    differentiable,
    merged,
    over_examples,
    rows,
)
from fnlm.transforms._probe import Tape, Watch
from fnlm.transforms._reductions import Factors, Lookup, Product, Term, Use
from fnlm.transforms.gradient import grad_and_value, is_recorded
from fnlm.tree import Tree

__all__ = ["Capture", "Lookup", "Product", "Term", "capture"]


class Capture(NamedTuple):
    """The gradients of B examples, as the factors of each use of a leaf."""

    params: Tree  # the floating-point leaves
    losses: Tensor  # [B]
    uses: tuple[Use, ...]  # `Product`, `Lookup` and `Term`, in the order of the calls
    each: dict[str, Tensor]  # by path, the gradients [B, *shape] that come of other uses

    def norms(self) -> Tensor:
        """Return the Euclidean norm of each example's gradient: [B], at least float32."""
        return reductions.norms(self.by_leaf(), self.losses, self.params)

    def weighted_sum(self, weights: Tensor) -> Tree:
        """Return the sum of the gradients times `weights` [B]: a tree like `params`.

        An example of weight 0 contributes exactly 0, whatever its gradient.
        """
        return reductions.weighted_sum(self.by_leaf(), self.params, weights)

    def dot(self, direction: Tree) -> Tensor:
        """Return the inner product of each example's gradient with a tree like `params`: [B]."""
        if tree.structure(direction) != tree.structure(self.params):
            raise ValueError(
                f"direction must be a tree like params, {tree.structure(self.params)}, got "
                f"{tree.structure(direction)}"
            )
        return reductions.dot(self.by_leaf(), dict(tree.named_leaves(direction)), self.losses)

    def by_leaf(self) -> dict[str, list[Use]]:
        """Return the uses of each leaf by its path; a leaf without any is absent."""
        found: dict[str, list[Use]] = defaultdict(list)
        for use in self.uses:
            found[use.site.path].append(use)
        for path, grads in self.each.items():
            found[path].append(reductions.term_of_leaf(path, grads))
        return dict(found)


def capture(loss: Loss, params: Tree, *batch: Any) -> Capture:
    """Return the factors of the gradient of the loss for each example.

    Args:
        loss: `loss(params, *example) -> []`, where an example has no batch axis.
        params: the parameters; leaves that are not floating point are constants.
        *batch: tensors, or trees of tensors, all with a first axis of length B (dropout keys too).

    Returns:
        The losses, inputs and output gradients of each use. Known are products `x @ W` and
        `F.linear`, lookups, additions, scales and layer norms, of leaves and of their slices,
        transposes and casts, in any number. What comes of other uses of a leaf is kept as gradients
        [B, *shape]; all leaves have these where nothing else is known to be right: while
        `torch.compile` traces, and for a loss that writes to the input of a layer or
        differentiates by plain autograd.

    Raises:
        ValueError: there is no batch, or its first axes differ.

    >>> params = {"w": torch.tensor([[1.0], [2.0]])}
    >>> found = capture(lambda p, x: (x @ p["w"]).sum() ** 2, params, torch.eye(2))
    >>> found.uses[0].inputs, found.uses[0].grads.flatten()
    (tensor([[[1., 0.]],
            [[0., 1.]]]), tensor([2., 4.]))
    >>> found.norms(), found.dot({"w": torch.ones(2, 1)})
    (tensor([2., 4.]), tensor([2., 4.]))
    >>> found.weighted_sum(torch.tensor([0.5, 1.0]))["w"].mT
    tensor([[1., 4.]])
    """
    check_batch(batch)
    floats, constants = differentiable(params)
    return run(merged(loss, constants), floats, batch)


def run(loss: Loss, floats: Tree, batch: tuple[Any, ...]) -> Capture:
    """Return the capture of a loss of floating-point leaves alone."""
    if not rows(batch):
        return Capture(floats, tree.leaves(floats)[0].new_zeros(0), (), {})
    if not torch.compiler.is_compiling():  # it follows no probes
        with contextlib.suppress(Exception):  # an error of the loss comes again, from below
            return _probed(loss, floats, batch)
    grads, losses = over_examples(grad_and_value(loss), batch)(floats, *batch)
    return Capture(floats, losses, (), dict(tree.named_leaves(grads)))


def _probed(loss: Loss, floats: Tree, batch: tuple[Any, ...]) -> Capture:
    """Return the capture by probes."""
    names = tree.map_with_path(lambda path, _: path, floats)
    factors: list[Factors] = []

    def one(floats: Tree, *example: Any) -> Any:
        tapes: list[Tape] = []

        def probed(leaves: Tree, seed: Tensor) -> tuple[Tensor, Any]:
            tape = Tape(seed)
            with Watch() as watch:
                value = loss(tree.map(tape.probe, names, leaves, floats), *example)
            if watch.found:
                raise RuntimeError("the loss differentiates by plain autograd")
            tape.check()
            tapes.append(tape)
            leaves = dict(zip(tree.leaves(names), tree.leaves(leaves), strict=True))
            return value, (*_gradients(value, tape, leaves), tape.inputs)

        seed = tree.leaves(floats)[0].new_zeros(())
        value, _, aux = vjp(probed, floats, seed, has_aux=True)  # type: ignore[misc]
        grads, each, inputs = aux
        factors.append(Factors([r for r in tapes[0].records if r.output in grads]))
        del tapes[0]  # it holds the outputs
        return value, factors[0].reduced(grads, inputs), each

    losses, reduced, each = over_examples(one, batch)(floats, *batch)
    return Capture(floats, losses, factors[0].assembled(*reduced), each)


def _gradients(
    value: Tensor, tape: Tape, leaves: dict[str, Tensor]
) -> tuple[dict[int, Tensor], dict[str, Tensor]]:
    """Return the gradients by outputs and by leaves that autograd reaches."""
    if value.ndim:
        raise ValueError("the loss is no number")
    if not tape.tracks(value):
        return {}, {}
    wanted: dict[Any, Any] = {**leaves}
    wanted |= {number: x for number, x in enumerate(tape.outputs) if x is not None}
    again = is_recorded(debug_unwrap(value, recurse=False))  # for a second derivative
    found = torch.autograd.grad(
        value, [*wanted.values()], allow_unused=True, retain_graph=again, create_graph=again
    )
    reached = {key: g for key, g in zip(wanted, found, strict=True) if g is not None}
    outputs = {key: g for key, g in reached.items() if isinstance(key, int)}
    return outputs, {key: g for key, g in reached.items() if isinstance(key, str)}
