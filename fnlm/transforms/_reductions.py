"""What is computed from the factors of per-example gradients: these, norms, sums, inner products.

Dimensions: B examples, T positions (tokens) of a use, n inputs, m outputs.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm import tree
from fnlm.layers.linear import linear
from fnlm.transforms import _products as products
from fnlm.transforms._probe import Record
from fnlm.transforms._products import Factor, OuterProducts
from fnlm.transforms._views import View
from fnlm.tree import Tree

__all__ = [
    "Factors",
    "Lookup",
    "Product",
    "Site",
    "Term",
    "Use",
    "dot",
    "norms",
    "term_of_leaf",
    "weighted_sum",
    "write_gradients",
]

ELEMENTS = 2**22  # of gradients in memory at once, where norms need them; at least one example's
TRAFFIC = 10  # multiplications that take the time of writing a number and reading it again
_HALF = (torch.float16, torch.bfloat16)
ByLeaf = dict[str, list["Use"]]
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


@tree.register_constant
@dataclass(frozen=True)
class Site:
    """Where a use stands: the path of the leaf, and what of the leaf was used."""

    path: str
    view: View


class Product(NamedTuple):
    """Inputs times a matrix: its gradient is sum_t inputs_t grads_t^T."""

    site: Site  # its view is a matrix [n, m]
    inputs: Tensor  # [B, T, n]
    grads: Tensor  # [B, T, m], of the loss by the outputs


class Lookup(NamedTuple):
    """Rows of a table: its gradient has grads_t added to row ids_t, for each t."""

    site: Site  # its view has N rows
    ids: Tensor  # int64 [B, T], each 0 <= id < N
    grads: Tensor  # [B, T, *shape of a row], of the loss by the rows


class Term(NamedTuple):
    """A use whose gradient is no larger than the activations, as of biases and scales."""

    site: Site
    grads: Tensor  # [B, *shape of the view]


Use = Product | Lookup | Term


class Factors:
    """Turns what a tape noted into uses: first for one example, then for the batch."""

    def __init__(self, records: Sequence[Record]):
        self.records = records
        # An input that several matrices share is kept once.
        shared = [(r.kind, r.input) for r in records if r.kind in ("product", "lookup")]
        self._numbers = {key: number for number, key in enumerate(dict.fromkeys(shared))}

    def reduced(
        self, grads: dict[int, Tensor], inputs: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the distinct inputs and the gradients of the uses of one example.

        Args:
            grads: of each output, by its number; the dict is emptied.
            inputs: of the tape.
        """
        last = {record.output: number for number, record in enumerate(self.records)}
        widths = {(r.kind, r.input): r.view.shape[0] for r in self.records if r.kind == "product"}
        kept = [
            inputs[i].reshape(-1, widths[kind, i]) if kind == "product" else inputs[i].reshape(-1)
            for kind, i in self._numbers
            if i is not None
        ]  # [T, n] or [T] each
        found = []
        for number, record in enumerate(self.records):
            x = None if record.input is None else inputs[record.input]
            found.append(_reduced(record, grads[record.output], x))
            if last[record.output] == number:
                del grads[record.output]
        return kept, found

    def assembled(self, inputs: Sequence[Tensor], grads: Sequence[Tensor]) -> tuple[Use, ...]:
        """Return the uses of a batch: what `reduced` returned, with an axis B in front."""
        uses: list[Use] = []
        for record, g in zip(self.records, grads, strict=True):
            site = Site(record.path, record.view)
            if record.kind == "product":
                uses.append(Product(site, inputs[self._numbers["product", record.input]], g))
            elif record.kind == "lookup":
                uses.append(Lookup(site, inputs[self._numbers["lookup", record.input]], g))
            else:
                uses.append(Term(site, g))
        return tuple(uses)


def _reduced(record: Record, g: Tensor, x: Tensor | None) -> Tensor:
    """Return the gradient of one use: by the outputs [T, m], or of the view itself."""
    shape = record.view.shape
    if record.kind == "product":
        return g.reshape(-1, shape[1])
    if record.kind == "add":
        return g.sum_to_size(shape)
    assert x is not None  # the others have an input
    if record.kind == "lookup":
        return g.reshape(x.numel(), *shape[1:])
    if record.kind == "scale":
        return (x * g).sum_to_size(shape)
    return (_standardized(x, record.eps) * g).sum_to_size(shape)


def _standardized(x: Tensor, eps: float) -> Tensor:
    """Return (x - mean) / std over the last axis, differentiable to any order."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    batched = torch._C._functorch.TransformType.Vmap
    if not x.requires_grad and all(transform.key() == batched for transform in stack):
        return F.layer_norm(x, x.shape[-1:], eps=eps)
    centered = x - x.mean(-1, keepdim=True)
    return centered * ((centered * centered).mean(-1, keepdim=True) + eps).rsqrt()


def term_of_leaf(path: str, grads: Tensor) -> Term:
    """Return the term of a whole leaf: grads [B, *shape]."""
    return Term(Site(path, View.whole(grads.shape[1:])), grads)


# Norms.


def norms(by_leaf: ByLeaf, losses: Tensor, params: Tree) -> Tensor:
    """Return the norms of the gradients [B], at least in float32."""
    dtype = reduce(torch.promote_types, (x.dtype for x in tree.leaves(params)), torch.float32)
    total = torch.zeros_like(losses, dtype=dtype)
    shared: dict[int, list[Product]] = defaultdict(list)  # products of one input
    for uses in by_leaf.values():
        use = uses[0]
        if len(uses) == 1 and isinstance(use, Product) and _ghost_pays(uses):
            shared[id(use.inputs)].append(use)
        else:
            total = total + _squares(uses)
    for group in shared.values():
        total = total + _squares_of_products(group)
    none = total <= 0  # or below it, by rounding; the root has no derivative there
    return torch.where(none, 0, torch.where(none, 1, total).sqrt())


def _squares(uses: list[Use]) -> Tensor:
    """Return the squared norms [B] of the sum of the uses of one leaf."""
    if len(uses) == 1 and isinstance(uses[0], Term):
        return _flat(_wide(uses[0].grads)).square().sum(1)
    if not _ghost_pays(uses):
        return _squares_of_gradients(uses)
    outer = [_outer_products(use) for use in uses]
    total: Any = 0
    for i, first in enumerate(outer):
        assert first is not None
        total = total + products.inner(first, first)
        for second in outer[:i]:
            assert second is not None
            total = total + 2 * products.inner(first, second)
    return total


def _ghost_pays(uses: list[Use]) -> bool:
    """Whether inner products of the factors are possible, and cheaper than the gradients."""
    outer = []
    for use in uses:
        factors = _outer_products(use)
        if factors is None:
            return False
        outer.append(factors)
    pairs = [(a, b) for i, a in enumerate(outer) for b in outer[: i + 1]]
    ghost = sum(products.inner_cost(a, b) for a, b in pairs)
    rows, columns = uses[0].site.view.leaf
    return ghost <= TRAFFIC * rows * columns + sum(
        use.inputs.shape[1] * use.inputs.shape[2] * use.grads.shape[2]
        for use in uses
        if isinstance(use, Product)
    )


def _outer_products(use: Use) -> OuterProducts | None:
    """Return the factors of a use over rows and columns of its leaf; None if it is no matrix."""
    box = use.site.view.box
    if box is None:
        return None
    n, m = use.site.view.shape
    starts = (box.column, box.row) if box.transposed else (box.row, box.column)
    grads = Factor(_wide(use.grads), starts[1], m)
    if isinstance(use, Product):
        first = _wide(use.inputs)
    elif isinstance(use, Lookup):
        first = use.ids
    else:  # all rows, one after the other
        first = torch.arange(n, device=use.grads.device).expand(use.grads.shape[0], n)
    both = OuterProducts(Factor(first, starts[0], n), grads)
    return OuterProducts(both.columns, both.rows) if box.transposed else both


def _squares_of_products(group: list[Product]) -> Tensor:
    """Return the squared norms [B] of all products of one input together."""
    return products.inner_shared(_wide(group[0].inputs), [_wide(use.grads) for use in group])


def _squares_of_gradients(uses: list[Use]) -> Tensor:
    """Return the squared norms [B] from the gradients, some examples at a time."""
    size = max(1, ELEMENTS // max(1, torch.Size(uses[0].site.view.leaf).numel()))
    parts = []
    for start in range(0, uses[0].grads.shape[0], size):
        parts_of = [_gradient(use, slice(start, start + size)) for use in uses]
        parts.append(_flat(reduce(torch.add, parts_of)).square().sum(1))
    return torch.cat(parts)


def _gradient(use: Use, span: slice) -> Tensor:
    """Return the gradients of some examples: [b, *leaf]."""
    grads, view = _wide(use.grads[span]), use.site.view
    if isinstance(use, Product):
        return view.place(_wide(use.inputs[span]).mT @ grads, batched=True)
    if isinstance(use, Term):
        return view.place(grads, batched=True)
    examples, rows = grads.shape[0], view.shape[0]
    table = grads.new_zeros(examples * rows, *view.shape[1:])
    table = table.index_add(0, _places(use.ids[span], view), grads.flatten(0, 1))
    return view.place(table.unflatten(0, (examples, rows)), batched=True)


def _places(ids: Tensor, view: View) -> Tensor:
    """Return the rows of all examples' tables, one below the other, that are looked up: [b T]."""
    first = view.shape[0] * torch.arange(ids.shape[0], device=ids.device)
    return (ids + first[:, None]).flatten()


def write_gradients(by_leaf: ByLeaf, result: Tree) -> None:
    """Write the gradients of all examples to a tree like params of leaves [B, *shape].

    Each product, which is most of the gradient, is written once, where it belongs. `by_leaf` is
    emptied on the way; nothing of it or of `result` may be wrapped or tracked by autograd.
    """
    for path, into in tree.named_leaves(result):
        uses = sorted(by_leaf.pop(path, []), key=lambda use: not isinstance(use, Product))
        for number, use in enumerate(uses):
            _write(use, into, add=number > 0)
        if not uses:
            into.zero_()


def _write(use: Use, into: Tensor, *, add: bool) -> None:
    """Write the gradients of one use to `into` [B, *leaf], or add them to what is there."""
    view, alike = use.site.view, use.grads.dtype == into.dtype
    if isinstance(use, Product) and alike and not add and _covers(view):
        assert view.box is not None
        rows, columns = use.inputs, use.grads
        if view.box.transposed:
            rows, columns = columns, rows
        torch.bmm(rows.mT, columns, out=into)
    elif isinstance(use, Lookup) and alike and view.is_whole and into.dtype not in _HALF:
        table = into if add else into.zero_()
        table.flatten(0, 1).index_add_(0, _places(use.ids, view), use.grads.flatten(0, 1))
    else:
        gradient = _gradient(use, slice(None))
        _ = into.add_(gradient) if add else into.copy_(gradient)


def _covers(view: View) -> bool:
    """Whether the view is the whole leaf, or that transposed."""
    return view.is_whole or view.then(lambda x: x.mT).is_whole


# Sums and inner products.


def weighted_sum(by_leaf: ByLeaf, params: Tree, weights: Tensor) -> Tree:
    """Return the sum of the gradients times weights [B]; `by_leaf` is emptied on the way."""
    absent = weights == 0
    unread = torch.compiler.is_compiling() or _is_wrapped(absent)  # values cannot be read
    clear = unread or bool(absent.any())

    def of_leaf(path: str, leaf: Tensor) -> Tensor:
        uses = by_leaf.pop(path, [])
        # Of a leaf that was cast, the factors are of another dtype.
        dtype = reduce(torch.promote_types, (use.grads.dtype for use in uses), leaf.dtype)
        own = weights.to(dtype)
        lookups = [use for use in uses if isinstance(use, Lookup)]
        others = (use for use in uses if not isinstance(use, Lookup))
        found = (_weighted(use, own, absent if clear else None) for use in others)
        if len(lookups) < len(uses):
            total = reduce(torch.add, found)
        else:
            total = torch.zeros_like(leaf, dtype=dtype)
        for use in lookups:
            total = _add_rows(total, use, own, absent if clear else None)
        return total.to(leaf.dtype)

    return tree.map_with_path(of_leaf, params)


def _weighted(use: Product | Term, weights: Tensor, absent: Tensor | None) -> Tensor:
    """Return the sum over the examples of weight times gradient: [*leaf]."""
    view, grads = use.site.view, _cleared(use.grads, absent).to(weights.dtype)
    if isinstance(use, Term):
        return view.place((weights @ _flat(grads)).reshape(view.shape), batched=False)
    inputs = _cleared(use.inputs, absent).to(weights.dtype)
    if inputs.shape[2] <= grads.shape[2]:  # the narrower one is scaled
        inputs = inputs * _like(weights, inputs)
    else:
        grads = grads * _like(weights, grads)
    total = linear(inputs.flatten(0, 1).mT, grads.flatten(0, 1), None)
    return view.place(total, batched=False)


def _add_rows(total: Tensor, use: Lookup, weights: Tensor, absent: Tensor | None) -> Tensor:
    """Return total [*leaf], which is written to where it can be, plus the sum of a lookup."""
    view, ids = use.site.view, use.ids.flatten()
    rows = _cleared(use.grads, absent).to(weights.dtype)
    rows = (rows * _like(weights, rows)).flatten(0, 1)
    if not view.is_whole:
        table = rows.new_zeros(view.shape).index_add(0, ids, rows)
        return total + view.place(table, batched=False)
    if torch.compiler.is_compiling() or any(map(_is_wrapped, (total, ids, rows))):
        return total.index_add(0, ids, rows)
    return total.index_add_(0, ids, rows)


def dot(by_leaf: ByLeaf, direction: dict[str, Tensor], losses: Tensor) -> Tensor:
    """Return the inner products [B] of the gradients with the leaves of a direction."""
    dtype = reduce(torch.promote_types, (x.dtype for x in direction.values()), torch.float32)
    total = torch.zeros_like(losses, dtype=dtype)
    for path, uses in by_leaf.items():
        for use in uses:
            along = use.site.view.read(_wide(direction[path]))
            grads = use.grads.to(along.dtype)
            if isinstance(use, Product):
                along = use.inputs.to(along.dtype) @ along  # [B, T, m]
            elif isinstance(use, Lookup):
                along = along[use.ids]
            total = total + _flat(grads * along).sum(1)
    return total


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


def _flat(x: Tensor) -> Tensor:
    return x[:, None].flatten(1)  # [B, *shape] -> [B, elements]


def _like(weights: Tensor, x: Tensor) -> Tensor:
    return weights.reshape(-1, *(1,) * (x.ndim - 1))


def _cleared(x: Tensor, absent: Tensor | None) -> Tensor:
    """Return x with zeros for the absent examples, as 0 times NaN is NaN."""
    return x if absent is None else torch.where(_like(absent, x), 0, x)
