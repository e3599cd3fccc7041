"""What is computed of a symmetric operator by its products alone: spectrum, trace, solutions.

An operator is any function `op(tree) -> tree`, linear and symmetric, such as those of
`fnlm.transforms.curvature`; `like` is a tree of the shapes and types that it takes. Random numbers
come from keys, so that a call repeats bit for bit. Whether to go on is read from the numbers, so
these functions are not for `vmap` or `compile`; the products inside of them may be.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from fnlm import random, tree
from fnlm.transforms.operator import check_whole, flatten, inner, unflatten_like
from fnlm.tree import Tree

__all__ = ["Estimate", "Lanczos", "Solution", "dense", "diagonal", "lanczos", "solve", "trace"]

Product = Callable[[Tree], Tree]


class Estimate(NamedTuple):
    """The mean of independent samples."""

    value: Tree  # tensors: the mean
    error: Tree  # tensors of the same shapes: its standard error


class Lanczos(NamedTuple):
    """A tridiagonal matrix that an operator is in a Krylov space of K directions, and its spectrum.

    Fewer than the steps that were asked for where the space is exhausted: all is exact then.
    """

    diagonal: Tensor  # [K]
    off_diagonal: Tensor  # [K - 1]
    values: Tensor  # [K] Ritz values, ascending: estimates of eigenvalues, the outer ones first
    vectors: Tree  # Ritz vectors of norm 1, every leaf [K, *shape]
    residuals: Tensor  # [K] |op(vector) - value vector|: an eigenvalue lies within this


class Solution(NamedTuple):
    """What conjugate gradients found."""

    x: Tree  # the solution
    residual: Tensor  # [] |b - (op + damping) x| / |b|, computed from x
    iterations: int
    converged: bool  # residual <= tol


def dense(op: Product, like: Tree, *, chunk_size: int = 1) -> Tensor:
    """Return the matrix [n, n] of an operator, for tiny trees: one product for each column.

    Args:
        op: the operator.
        like: a tree of the shapes and types that it takes.
        chunk_size: number of products at a time, by `vmap`.

    >>> dense(lambda v: {"w": 2 * v["w"]}, {"w": torch.zeros(2)})
    tensor([[2., 0.],
            [0., 2.]])
    """
    unit = torch.eye(tree.count(like), dtype=flatten(like).dtype, device=flatten(like).device)
    if chunk_size == 1:
        return torch.stack([flatten(op(unflatten_like(like, row))) for row in unit], -1)
    product = vmap(lambda row: flatten(op(unflatten_like(like, row))))
    return torch.cat([product(rows) for rows in unit.split(chunk_size)]).mT


def diagonal(op: Product, like: Tree, key: Tensor, samples: int) -> Estimate:
    """Return an estimate of the diagonal: the mean of z op(z) over vectors z of random signs.

    Its variance is the sum of squares beside the diagonal, so it wants many samples where these
    are large; `dense(op, like).diagonal()` is exact, for tiny trees.

    Args:
        op: the operator.
        like: a tree of the shapes and types that it takes.
        key: [] the key of the signs.
        samples: number of products, at least 2.

    Returns:
        the estimate and its standard error, trees like `like`.

    >>> diagonal(lambda v: {"w": 2 * v["w"]}, {"w": torch.zeros(2)}, random.key(0), 3).value
    {'w': tensor([2., 2.])}

    Source: Bekas, Kokiopoulou and Saad 2007.
    """
    return _mean(lambda z: tree.map(torch.mul, z, op(z)), like, key, samples)


def trace(op: Product, like: Tree, key: Tensor, samples: int) -> Estimate:
    """Return an estimate of the trace: the mean of z . op(z) over vectors z of random signs.

    Args:
        op: the operator.
        like: a tree of the shapes and types that it takes.
        key: [] the key of the signs.
        samples: number of products, at least 2.

    Returns:
        the estimate and its standard error, both [], at least float32.

    Raises:
        ValueError: fewer than 2 samples, which have no standard error.

    >>> trace(lambda v: {"w": 2 * v["w"]}, {"w": torch.zeros(2)}, random.key(0), 3)
    Estimate(value=tensor(4.), error=tensor(0.))

    Source: Hutchinson 1990.
    """
    return _mean(lambda z: inner(z, op(z)), like, key, samples)


def lanczos(op: Product, like: Tree, key: Tensor, steps: int) -> Lanczos:
    """Return estimates of the extreme eigenvalues and eigenvectors of a symmetric operator.

    Every new direction is made orthogonal to all before it, twice, so no eigenvalue comes back as
    its own copy. Memory: `steps` trees like `like`, twice.

    Args:
        op: the operator.
        like: a tree of the shapes and types that it takes.
        key: [] the key of the first direction.
        steps: number of products, at least 1; more give more eigenvalues, the outer ones first.

    Raises:
        ValueError: less than 1 step, or a product that is not finite.

    >>> diag = torch.tensor([1.0, 2.0, 5.0])
    >>> lanczos(lambda v: diag * v, torch.zeros(3), random.key(0), 3).values
    tensor([1.0000, 2.0000, 5.0000])

    Source: Lanczos 1950; Paige 1972; orthogonalisation as in Parlett, "The Symmetric Eigenvalue
    Problem", 1980.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    like_vector = flatten(like)
    steps = min(steps, like_vector.numel())
    vector = random.normal(key.to(like_vector.device), tuple(like_vector.shape), like_vector.dtype)
    basis = like_vector.new_empty(steps, like_vector.numel())  # [K, n]
    alphas: list[Tensor] = []
    betas: list[Tensor] = [vector.norm()]
    for step in range(steps):
        basis[step] = vector / betas[-1]
        vector = flatten(op(unflatten_like(like, basis[step])))
        alphas.append(torch.dot(basis[step], vector))
        if not alphas[-1].isfinite():
            raise ValueError(f"product {step} of lanczos() is not finite: {alphas[-1].item()}")
        known = basis[: step + 1]
        for _ in range(2):
            vector = vector - (known @ vector) @ known
        betas.append(vector.norm())
        scale = max(float(torch.stack(alphas).abs().max()), float(torch.stack(betas[1:]).max()))
        if float(betas[-1]) <= 10 * len(alphas) * torch.finfo(vector.dtype).eps * scale:
            break  # the space is exhausted
    return _ritz(torch.stack(alphas), torch.stack(betas[1:]), basis, like)


def solve(
    op: Product,
    b: Tree,
    *,
    damping: float = 0.0,
    tol: float = 1e-5,
    max_iterations: int = 1000,
    precondition: Product | None = None,
) -> Solution:
    """Return the solution x of (op + damping) x = b, by conjugate gradients.

    Args:
        op: the operator, positive definite with its damping.
        b: the right-hand side, a tree of floating-point tensors.
        damping: what is added to every eigenvalue.
        tol: the residual to reach, as a part of the norm of b.
        max_iterations: number of products at most (one more is for the residual).
        precondition: an approximate inverse, symmetric and positive definite, such as the `solve`
            of `kfac`.

    Returns:
        the solution, its residual, the number of iterations, and whether it converged. Where it
        did not, there is a RuntimeWarning as well.

    Raises:
        ValueError: `damping` or `tol` is negative; or the operator is not positive definite along
            a direction that came up, or not finite.

    >>> solve(lambda v: 3 * v, torch.tensor([2.0, 4.0]), damping=1.0)
    Solution(x=tensor([0.5000, 1.0000]), residual=tensor(0.), iterations=1, converged=True)

    Source: Hestenes and Stiefel 1952.
    """
    if damping < 0 or tol < 0:
        raise ValueError(f"damping and tol must not be negative, got {damping} and {tol}")

    def damped(v: Tree) -> Tree:
        return tree.map(lambda product, x: product + damping * x, op(v), v)

    size = inner(b, b).sqrt()
    x, iterations = _conjugate_gradients(damped, b, float(tol * size), max_iterations, precondition)
    rest = tree.map(torch.sub, b, damped(x))
    residual = inner(rest, rest).sqrt() / size if size else size
    converged = bool(residual <= max(tol, _rounding(b)))
    if not converged:
        warnings.warn(
            f"solve() left a residual of {float(residual):.1e} after {iterations} iterations, and "
            f"tol is {tol:.1e}: give a larger damping, max_iterations or tol, or a precondition",
            RuntimeWarning,
            stacklevel=2,
        )
    return Solution(x, residual, iterations, converged)


def _conjugate_gradients(
    op: Product, b: Tree, target: float, max_iterations: int, precondition: Product | None
) -> tuple[Tree, int]:
    """Iterate until the residual is `target` by its recurrence; return x and the iterations."""
    apply = precondition or (lambda r: r)
    x = tree.map(torch.zeros_like, b)
    r = b
    z = p = apply(r)
    rz = inner(r, z)
    for iteration in range(max_iterations):
        if float(inner(r, r).sqrt()) <= target:
            return x, iteration
        product = op(p)
        curvature = float(inner(p, product))
        if not curvature > 0:  # NaN too
            raise ValueError(
                f"the operator is not positive definite: p . op(p) is {curvature:.3e} in iteration "
                f"{iteration}. Take the Gauss-Newton matrix for the Hessian, or a larger damping"
            )
        step = float(rz) / curvature
        x = tree.map(lambda x, p, step=step: x + step * p, x, p)
        r = tree.map(lambda r, q, step=step: r - step * q, r, product)
        z = apply(r)
        new = inner(r, z)
        p = tree.map(lambda z, p, ratio=float(new) / float(rz): z + ratio * p, z, p)
        rz = new
        if not math.isfinite(float(rz)):
            raise ValueError(f"the residual is not finite in iteration {iteration}: {float(rz)}")
    return x, max_iterations


def _rounding(b: Tree) -> float:
    """Return what rounding alone may leave as a residual."""
    return 4 * max(torch.finfo(leaf.dtype).eps for leaf in tree.leaves(b))


def _ritz(alphas: Tensor, betas: Tensor, basis: Tensor, like: Tree) -> Lanczos:
    """Return eigenvalues and eigenvectors of the tridiagonal matrix, and what they are in trees."""
    between = betas[:-1]
    matrix = alphas.diag() + between.diag(1) + between.diag(-1)  # [K, K]
    values, turns = torch.linalg.eigh(matrix)
    vectors = turns.mT @ basis[: len(alphas)]  # [K, n]
    residuals = betas[-1] * turns[-1].abs()
    return Lanczos(alphas, between, values, unflatten_like(like, vectors), residuals)


def _mean(fn: Callable[[Tree], Tree], like: Tree, key: Tensor, samples: int) -> Estimate:
    """Return mean and standard error of a function of random signs."""
    if samples < 2:
        raise ValueError(f"samples must be at least 2, for a standard error, got {samples}")
    mean: Tree = None
    squares: Tree = None
    for i, sample_key in enumerate(random.split(key, samples)):
        new = fn(_signs(like, sample_key))
        if i == 0:
            mean, squares = new, tree.map(torch.zeros_like, new)
            continue
        # Welford's recurrence: the differences are small where the samples are large.
        next_mean = tree.map(lambda m, x, i=i: m + (x - m) / (i + 1), mean, new)
        squares = tree.map(lambda s, x, m, n: s + (x - m) * (x - n), squares, new, mean, next_mean)
        mean = next_mean
    error = tree.map(lambda s: (s / (samples - 1) / samples).sqrt(), squares)
    return Estimate(mean, error)


def _signs(like: Tree, key: Tensor) -> Tree:
    """Return a tree of random signs, +1 and -1."""
    check_whole(like)
    leaves = tree.leaves(like)
    signs = [
        random.bernoulli(leaf_key.to(leaf.device), 0.5, tuple(leaf.shape)).to(leaf.dtype) * 2 - 1
        for leaf, leaf_key in zip(leaves, random.split(key, len(leaves)), strict=True)
    ]
    return tree.unflatten(tree.structure(like), signs)
