"""Kronecker-factored curvature: an approximate Fisher information with a cheap inverse.

The gradient G of a matrix W [a, b] for an example is a sum of outer products, over positions t and
uses of the leaf; of y = x W, r is x, and c the derivative of the loss by y. The Fisher information
F of the leaf is approximated by a Kronecker product::

    G = sum_t r_t c_t^T
    F = mean over examples of vec(G) vec(G)^T
    R = mean over examples and positions of r r^T
    C = mean over examples of sum_t c_t c_t^T

F is taken for R kron C. With eigenvectors Q of R, P of C, and their eigenvalues s and u, a product
with a leaf V is then::

    F V = Q ((s u^T) * (Q^T V P)) P^T

K-FAC takes s u^T; EK-FAC keeps the eigenvectors and takes for each pair of them the mean of
(Q^T G P)^2, which is exact, and the best that these eigenvectors allow. What has more rows (or
columns) than `limit` keeps these as its eigenvectors, with a diagonal factor.

Of the gradients of labels that the model itself draws, all this is of the Fisher information; of
those of the data, of the empirical one. Letters: a, b rows and columns of a leaf; B examples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import tree
from fnlm.transforms.operator import Operator, check_like
from fnlm.tree import Tree

__all__ = ["Block", "KroneckerOperator", "Pair", "ekfac", "kfac"]


class Pair(NamedTuple):
    """One use of a leaf in a batch: each example's gradient is sum_t rows_t columns_t^T.

    A leaf that is no matrix is one row of all its elements, and so is one whose gradient is given
    as it is: rows are ones [B, 1, 1] and columns the gradients [B, 1, elements].
    """

    path: str
    rows: Tensor  # [B, T, a], or int64 [B, T]: the row that a lookup read
    columns: Tensor  # [B, T, b]


class Block(NamedTuple):
    """The approximation for one leaf, seen as a matrix [a, b]."""

    left: tuple[Tensor, ...]  # eigenvectors [a, a] in columns; () for the rows themselves
    right: tuple[Tensor, ...]  # eigenvectors [b, b] in columns; () for the columns themselves
    values: Tensor  # [a, b] an eigenvalue for each pair of eigenvectors

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """Return Q (scale * (Q^T x P)) P^T: [a, b] -> [a, b]."""
        for q in self.left:
            x = q.mT @ x
        for p in self.right:
            x = x @ p
        x = scale * x
        for q in self.left:
            x = q @ x
        for p in self.right:
            x = x @ p.mT
        return x


@dataclass(frozen=True, eq=False)
class KroneckerOperator(Operator):
    """An `Operator` with a block for each leaf, and the inverse of it.

    >>> ones = torch.ones(1, 1, 1)
    >>> op = kfac([[Pair("w", 2 * ones, ones)]], {"w": torch.zeros(1, 1)})
    >>> op({"w": ones[0]}), op.solve({"w": ones[0]}, damping=1.0)
    ({'w': tensor([[4.]])}, {'w': tensor([[0.2000]])})
    """

    blocks: dict[str, Block]  # by path; a leaf without one has the curvature 0

    def solve(self, b: Tree, *, damping: float) -> Tree:
        """Return the solution x of (op + damping) x = b, exactly.

        Args:
            b: the right-hand side, a tree like the parameters.
            damping: what is added to every eigenvalue.

        Raises:
            ValueError: an eigenvalue is 0 or negative, with its damping.
        """
        check_like(b, self.like)
        smallest = min((float(block.values.min()) for block in self.blocks.values()), default=0.0)
        if len(self.blocks) < len(tree.leaves(self.like)):
            smallest = min(smallest, 0.0)
        if not smallest + damping > 0:
            raise ValueError(
                f"the smallest eigenvalue is {smallest:.3e}, with a damping of {damping}: give a "
                "larger damping"
            )
        other = 1 / damping if damping else 0.0
        return _map_blocks(self.blocks, b, lambda values: 1 / (values + damping), other)


def kfac(batches: Iterable[Any], params: Tree, *, limit: int = 4096) -> KroneckerOperator:
    """Return the K-FAC approximation of the mean of g g^T over examples, as an operator.

    Args:
        batches: for each batch its uses: the value of `fnlm.transforms.capture`, or `Pair`s; the
            same uses in every batch.
        params: a tree of the shapes and types that the operator takes.
        limit: rows or columns up to which a factor is a full matrix; it is diagonal above.

    Returns:
        an operator with a block for each leaf, and `solve`. Positions at which the gradient is 0,
        such as padding, do not count. Of a leaf with several uses (a tie) the factors are those
        with the partial traces of the sum of the products of each use.

    Raises:
        KeyError: a path that `params` do not have.
        ValueError: shapes that do not fit to a leaf, or no batch.

    >>> x, g = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]])  # one example, one position
    >>> op = kfac([[Pair("w", x, g)]], {"w": torch.zeros(2, 1)})
    >>> op({"w": torch.tensor([[1.0], [0.0]])})
    {'w': tensor([[ 9.0000], [18.0000]])}

    Source: Martens and Grosse 2015; positions as in Grosse and Martens 2016 (KFC) and Eschenhagen
    et al. 2023 (K-FAC-expand). Deviations: damping is added to eigenvalues, not split between the
    factors; ties.
    """
    return _operator(_kfac_blocks(batches, params, limit), params)


def ekfac(batches: Sequence[Any], params: Tree, *, limit: int = 4096) -> KroneckerOperator:
    """Return the EK-FAC approximation of the mean of g g^T over examples, as an operator.

    Args:
        batches: as for `kfac`; they are read twice.
        params: a tree of the shapes and types that the operator takes.
        limit: as for `kfac`.

    Returns:
        an operator with a block for each leaf, and `solve`. Every use of a leaf counts in its
        eigenvalues, with what they have in common.

    Raises:
        KeyError: a path that `params` do not have.
        ValueError: shapes that do not fit to a leaf, or no batch.

    >>> x, g = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[3.0]]])
    >>> op = ekfac([[Pair("w", x, g)]], {"w": torch.zeros(2, 1)})
    >>> op({"w": torch.tensor([[1.0], [0.0]])})
    {'w': tensor([[ 9.0000], [18.0000]])}

    Source: George et al. 2018; Grosse et al. 2023.
    """
    blocks = _kfac_blocks(batches, params, limit)
    sums = {path: torch.zeros_like(block.values) for path, block in blocks.items()}
    examples = 0
    for batch in batches:
        by_path = _by_path(batch)
        examples += _examples(by_path)
        for path, pairs in by_path.items():
            for i in range(len(pairs[0].columns)):
                sums[path] += _projected(blocks[path], pairs, i).square()
    blocks = {path: block._replace(values=sums[path] / examples) for path, block in blocks.items()}
    return _operator(blocks, params)


class _Factors(NamedTuple):
    """Sums over examples and positions of one use."""

    rows: Tensor  # [a, a], or [a] where it is diagonal
    columns: Tensor  # [b, b], or [b]
    positions: int  # with a gradient


def _kfac_blocks(batches: Iterable[Any], params: Tree, limit: int) -> dict[str, Block]:
    leaves = dict(tree.named_leaves(params))
    total: dict[str, list[_Factors]] = {}
    examples = 0
    for batch in batches:
        by_path = _by_path(batch)
        examples += _examples(by_path)
        for path, pairs in by_path.items():
            found = [_factors(pair, leaves[path], limit) for pair in pairs]
            before = total.get(path)
            total[path] = (
                found
                if before is None
                else [
                    _Factors(a.rows + b.rows, a.columns + b.columns, a.positions + b.positions)
                    for a, b in zip(before, found, strict=True)
                ]
            )
    if not examples:
        raise ValueError("no examples were given, of which to take a mean")
    return {path: _block(uses, examples) for path, uses in total.items()}


def _factors(pair: Pair, leaf: Tensor, limit: int) -> _Factors:
    """Return the sums of one use in one batch."""
    columns = _wide(pair.columns)
    ones = pair.rows.ndim == 3 and pair.rows.shape[-1] == 1
    a, b = (1, leaf.numel()) if ones or leaf.ndim != 2 else leaf.shape
    fits = columns.ndim == 3 and columns.shape[-1] == b and pair.rows.shape[:2] == columns.shape[:2]
    if not fits or (pair.rows.ndim == 3 and pair.rows.shape[-1] != a):
        raise ValueError(
            f"rows {tuple(pair.rows.shape)} and columns {tuple(columns.shape)} do not make "
            f"gradients of {pair.path!r}, which is {tuple(leaf.shape)}"
        )
    counted = columns.ne(0).any(-1)  # [B, T]; NaN counts
    columns = columns[counted]  # [N, b]
    if pair.rows.ndim == 2:
        rows = torch.bincount(pair.rows[counted], minlength=a).to(columns.dtype)
        rows = rows.diag() if a <= limit else rows
    else:
        rows = _gram(_wide(pair.rows)[counted], limit)
    return _Factors(rows, _gram(columns, limit), len(columns))


def _gram(x: Tensor, limit: int) -> Tensor:
    """Return sum x x^T [n, n], or its diagonal [n] where n is above the limit: of [N, n]."""
    return x.mT @ x if x.shape[-1] <= limit else x.square().sum(0)


def _block(uses: list[_Factors], examples: int) -> Block:
    """Return the block of a leaf: factors with the partial traces of the sum over uses."""
    means = [(use.rows / max(use.positions, 1), use.columns / examples) for use in uses]
    if len(means) == 1:
        rows, columns = means[0]
    else:
        traces = [(_trace(r), _trace(c)) for r, c in means]
        total = torch.stack([r * c for r, c in traces]).sum()
        rows = torch.stack([r * t for (r, _), (_, t) in zip(means, traces, strict=True)]).sum(0)
        columns = torch.stack([c * t for (_, c), (t, _) in zip(means, traces, strict=True)]).sum(0)
        columns = columns / torch.where(total > 0, total, 1.0)
    (left, s), (right, u) = _eigen(rows), _eigen(columns)
    return Block(left, right, s.outer(u))


def _trace(factor: Tensor) -> Tensor:
    return factor.sum() if factor.ndim == 1 else factor.trace()


def _eigen(factor: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return eigenvectors in columns, () where the factor is diagonal, and eigenvalues."""
    if factor.ndim == 1:
        return (), factor
    values, vectors = torch.linalg.eigh(factor)
    return (vectors,), values.clamp_min(0.0)  # rounding alone makes one negative


def _projected(block: Block, pairs: list[Pair], example: int) -> Tensor:
    """Return Q^T G P of one example's gradient G: [a, b]."""
    total = torch.zeros_like(block.values)
    for pair in pairs:
        columns, rows = _wide(pair.columns[example]), pair.rows[example]
        for p in block.right:
            columns = columns @ p
        if rows.ndim == 1 and not block.left:
            total = total.index_add(0, rows, columns)
            continue
        for q in block.left:
            rows = q[rows] if rows.ndim == 1 else _wide(rows) @ q
        total = total + _wide(rows).mT @ columns
    return total


def _operator(blocks: dict[str, Block], params: Tree) -> KroneckerOperator:
    floats = tree.select(params, lambda _, leaf: leaf.is_floating_point())
    every = all(leaf.is_floating_point() for leaf in tree.leaves(params))
    return KroneckerOperator(
        lambda v: _map_blocks(blocks, v, lambda values: values, 0.0),
        params if every else floats,
        blocks,
    )


def _map_blocks(blocks: dict[str, Block], v: Tree, scale: Any, other: float) -> Tree:
    """Scale every leaf in the eigenvectors of its block; one without a block by `other`."""

    def leaf(path: str, x: Tensor) -> Tensor:
        if path not in blocks:
            return other * x
        block = blocks[path]
        matrix = x.reshape(block.values.shape).to(block.values.dtype)
        return block.scaled(matrix, scale(block.values)).reshape(x.shape).to(x.dtype)

    return tree.map_with_path(leaf, v)


def _by_path(batch: Any) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    for pair in _of_capture(batch) if hasattr(batch, "by_leaf") else batch:
        found.setdefault(pair.path, []).append(pair)
    return found


def _examples(by_path: dict[str, list[Pair]]) -> int:
    sizes = {len(pair.columns) for pairs in by_path.values() for pair in pairs}
    if len(sizes) > 1:
        raise ValueError(f"all uses in a batch need one number of examples, got {sorted(sizes)}")
    return sizes.pop() if sizes else 0


def _of_capture(capture: Any) -> Iterator[Pair]:
    """Yield the pairs of a capture: factors of whole matrices, gradients of anything else."""
    for path, uses in capture.by_leaf().items():
        pairs = [_of_use(path, use) for use in uses]
        if all(pairs):
            yield from (pair for pair in pairs if pair is not None)
            continue
        grads = torch.stack([_gradients(use) for use in uses]).sum(0)
        flat = grads.flatten(1).unsqueeze(1)  # [B, 1, elements]
        yield Pair(path, torch.ones_like(flat[..., :1]), flat)


def _of_use(path: str, use: Any) -> Pair | None:
    """Return the pair of a use of a whole matrix, else None."""
    view = use.site.view
    if len(view.leaf) != 2:
        return None
    if hasattr(use, "ids"):
        return Pair(path, use.ids, use.grads) if view.is_whole else None
    if not hasattr(use, "inputs"):
        return None
    if view.is_whole:
        return Pair(path, use.inputs, use.grads)
    turned = view.then(lambda x: x.mT).is_whole
    return Pair(path, use.grads, use.inputs) if turned else None


def _gradients(use: Any) -> Tensor:
    """Return the gradients of a leaf that one use makes: [B, *shape]."""
    if hasattr(use, "ids"):
        shape = (len(use.ids), *use.site.view.shape)
        rows = use.grads.new_zeros(shape)
        at = use.ids.reshape(*use.ids.shape, *(1,) * (len(shape) - 2)).expand_as(use.grads)
        grads = rows.scatter_add(1, at, use.grads)
    else:
        grads = use.inputs.mT @ use.grads if hasattr(use, "inputs") else use.grads
    return use.site.view.place(grads, batched=True)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
