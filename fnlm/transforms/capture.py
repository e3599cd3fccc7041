"""What a loss does with each leaf of its parameters, example by example.

The gradient of a matrix W in y = x W is sum_t x_t g_t^T, with the inputs x and the derivatives g of
the loss by the outputs y. Both are a fraction of the size of the gradients that they make, one for
each example; and what is asked of those gradients (their norms, a weighted sum, inner products with
a direction) can be had of the factors. `capture` returns these, from one pass back that computes no
gradient of a weight.

Sources: Goodfellow 2015, "Efficient Per-Example Gradient Computations" (arXiv:1510.01799); Li et
al. 2021 (arXiv:2110.05679, ghost clipping); Bu et al. 2023 (arXiv:2210.00038, book-keeping); Ding
et al. 2024 (arXiv:2405.18194, tied embeddings). Deviations: functions instead of modules and hooks;
every use of a leaf counts, with its cross terms; a leaf with a use that is not among the known has
the gradient of each example itself.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp, vmap

from fnlm import tree
from fnlm.transforms import _reductions as reductions
from fnlm.transforms._probe import Output, Probe, Record, Tape, Watch
from fnlm.transforms._reductions import Lookup, Product, Term, Use
from fnlm.transforms.gradient import grad_and_value
from fnlm.tree import Tree

__all__ = ["Capture", "Lookup", "Product", "Term", "capture"]

Loss = Callable[..., Tensor]


class Capture(NamedTuple):
    """The gradients of B examples, as the factors of each use of a leaf."""

    params: Tree  # the floating-point leaves
    losses: Tensor  # [B]
    uses: tuple[Use, ...]  # `Product`, `Lookup` and `Term`, in the order of the calls
    each: dict[str, Tensor]  # gradients [B, *shape] of the leaves with other uses, by path

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

    def kronecker_factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return sum x x^T [n, n] and sum g g^T [m, m], over examples and positions, by path.

        They are those of the leaves that are used once, in a product (see K-FAC, arXiv:1503.05671).
        """
        return reductions.kronecker_factors(self.uses)

    def by_leaf(self) -> dict[str, list[Use]]:
        """Return the uses of each leaf by its path; a leaf without any is absent."""
        found: dict[str, list[Use]] = defaultdict(list)
        for use in self.uses:
            found[use.site.path].append(use)
        for path, grads in self.each.items():
            found[path] = [Term.of_leaf(path, grads)]
        return dict(found)


class Plan(NamedTuple):
    """What a loss does with its parameters, found out on one example."""

    records: tuple[Record, ...]
    outputs: tuple[Output, ...]
    others: frozenset[str]  # paths of the leaves with other uses


def capture(loss: Loss, params: Tree, *batch: Any) -> Capture:
    """Return the factors of the gradient of the loss for each example.

    The loss is called twice, on one example to find the uses of every leaf, then vectorized.

    Args:
        loss: `loss(params, *example) -> []`, where an example has no batch axis; a function of its
            arguments, which uses a leaf in the same way whatever the example.
        params: the parameters; leaves that are not floating point are constants.
        *batch: tensors, or trees of tensors, all with a first axis of length B (dropout keys too).

    Returns:
        The losses, inputs and output gradients of each use. Known are products `x @ W` and
        `F.linear`, lookups, additions, scales and layer norms, of leaves and of their slices and
        transposes, in any number; of a leaf with another use, the gradients [B, *shape].

    Raises:
        ValueError: there is no batch, or its first axes differ.
        RuntimeError: an input was changed in place after its use, or two calls differ.

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
    of_floats = merged(loss, constants)
    return run(find(of_floats, floats, batch), of_floats, floats, batch)


def find(loss: Loss, floats: Tree, batch: tuple[Any, ...]) -> Plan:
    """Return the plan of a loss of floating-point leaves, found on the first example."""
    paths = [path for path, _ in tree.named_leaves(floats)]
    others = {path for path, leaf in tree.named_leaves(floats) if not leaf.numel()}
    if not rows(batch):
        return Plan((), (), frozenset())
    if torch.compiler.is_compiling():  # it follows no probes
        return Plan((), (), frozenset(paths))
    first = tree.map(lambda x: x[:1], batch)
    while True:
        try:
            tape, more = _learn(loss, floats, first, others)
        except Exception:  # an error of the loss comes again, from a call that needs no probes
            return Plan((), (), frozenset(paths))
        if not more:
            return Plan(tuple(tape.records), tuple(tape.outputs), frozenset(others))
        others |= more


def _learn(
    loss: Loss, floats: Tree, first: tuple[Any, ...], others: set[str]
) -> tuple[Tape, set[str]]:
    """Call the loss on one example; return the tape, and leaves that autograd reaches besides."""
    tapes: list[Tape] = []
    more: set[str] = set()

    def call(floats: Tree) -> Tensor:
        def one(*example: Any) -> Tensor:
            tapes.append(Tape())
            return loss(_probed(tapes[0], floats, others), *example)

        with Watch() as watch:
            value = vmap(one)(*first).sum()
        named = [(path, leaf) for path, leaf in tree.named_leaves(floats) if path not in others]
        if watch.found:
            more.update(path for path, _ in named)
        elif value.requires_grad and named:
            leaves = [leaf for _, leaf in named]
            reached = torch.autograd.grad(value, leaves, allow_unused=True, retain_graph=True)
            more.update(p for (p, _), x in zip(named, reached, strict=True) if x is not None)
        return value

    vjp(call, floats)
    return tapes[0], more


def run(plan: Plan, loss: Loss, floats: Tree, batch: tuple[Any, ...]) -> Capture:
    """Return the capture of a batch by a plan."""
    if not rows(batch):
        return Capture(floats, tree.leaves(floats)[0].new_zeros(0), (), {})
    in_dims = (None, *(0 for _ in batch))  # parameters are shared
    if len(plan.others) == len(tree.leaves(floats)):
        grads, losses = vmap(grad_and_value(loss), in_dims)(floats, *batch)
        return Capture(floats, losses, (), dict(tree.named_leaves(grads)))
    zeros = tuple(output.zero() for output in plan.outputs)
    others = {path: x for path, x in tree.named_leaves(floats) if path in plan.others}
    uses = reductions.Uses(plan.records)

    def one(added: tuple[Any, ...], *example: Any) -> Any:
        def probed(added: tuple[Any, ...]) -> tuple[Tensor, list[Tensor]]:
            tape = Tape(added[0])
            value = loss(_probed(tape, floats, plan.others, added[1]), *example)
            tape.check()
            if tuple(tape.records) != plan.records:
                raise RuntimeError(
                    "the loss used its parameters in another way than for the first example: it "
                    "must be a function of its arguments, without state"
                )
            return value, tape.inputs

        (grads, each), (value, inputs) = grad_and_value(probed, has_aux=True)(added)
        grads = list(grads)  # emptied, to free their memory
        return value, uses.reduced(grads, inputs), each

    losses, reduced, each = vmap(one, in_dims=in_dims)((zeros, others), *batch)
    return Capture(floats, losses, uses.assembled(*reduced), each)


def _probed(
    tape: Tape, floats: Tree, others: Any, replaced: dict[str, Tensor] | None = None
) -> Tree:
    """Return the tree with probes for leaves, but for `others`."""

    def leaf(path: str, x: Tensor) -> Tensor | Probe:
        if path in others:
            return x if replaced is None else replaced[path]
        return tape.probe(path, x)

    return tree.map_with_path(leaf, floats)


def merged(loss: Loss, constants: Tree | None) -> Loss:
    """Return the loss as a function of the floating-point leaves alone."""

    def of_floats(floats: Tree, *example: Any) -> Tensor:
        return loss(floats if constants is None else tree.merge(floats, constants), *example)

    return of_floats


def rows(batch: tuple[Any, ...]) -> int:
    """Return B."""
    return int(tree.leaves(batch)[0].shape[0])


def differentiable(params: Tree) -> tuple[Tree, Tree | None]:
    """Split into floating-point leaves and constants (None if there are no constants)."""
    if all(torch.is_floating_point(leaf) for leaf in tree.leaves(params)):
        return params, None
    return tree.partition(params, lambda path, leaf: torch.is_floating_point(leaf))


def check_batch(batch: tuple[Any, ...], chunk_size: int | None = None) -> None:
    """Validate the examples: raise ValueError unless all have one first axis."""
    sizes = {f"batch.{path}": tuple(leaf.shape[:1]) for path, leaf in tree.named_leaves(batch)}
    if not sizes:
        raise ValueError(
            "no batch was given; examples are positional arguments with a first axis of examples"
        )
    if len(set(sizes.values())) > 1 or () in sizes.values():
        raise ValueError(f"all of batch need one first axis of examples, got the lengths {sizes}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(
            f"chunk_size must be at least 1, got {chunk_size}; leave it out for all at once"
        )
