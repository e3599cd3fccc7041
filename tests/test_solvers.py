"""Spectra, traces, diagonals and solutions equal those of dense matrices."""

import warnings

import pytest
import torch
from tiny_families import tiny
from torch import Tensor

from fnlm import random, tree
from fnlm.transforms import (
    SoftmaxCrossEntropy,
    dense,
    diagonal,
    ggn,
    hessian,
    lanczos,
    solve,
    trace,
)
from fnlm.transforms.operator import flatten, unflatten_like
from fnlm.tree import Tree

LIKE = {"a": torch.zeros(3, 2, dtype=torch.float64), "b": (torch.zeros(4, dtype=torch.float64),)}
KEYS = random.split(random.key(0), 4)


def symmetric(size: int = 10) -> Tensor:
    half = random.normal(KEYS[0], (size, size), torch.float64)
    return half + half.mT


def positive(size: int = 10) -> Tensor:
    matrix = symmetric(size)
    return matrix @ matrix / size + 0.1 * torch.eye(size, dtype=matrix.dtype)


def operator(matrix: Tensor, like: Tree = LIKE):
    return lambda v: unflatten_like(like, matrix.to(flatten(v).dtype) @ flatten(v))


def test_dense_is_the_matrix_row_by_row_and_in_chunks() -> None:
    matrix = torch.arange(100, dtype=torch.float64).reshape(10, 10)  # not symmetric: rows, columns
    assert torch.equal(dense(operator(matrix), LIKE), matrix)
    assert torch.equal(dense(operator(matrix), LIKE, chunk_size=3), matrix)


def test_lanczos_with_all_steps_is_the_spectrum() -> None:
    matrix = symmetric()
    found = lanczos(operator(matrix), LIKE, KEYS[1], 10)
    values, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(found.values, values, rtol=1e-10, atol=1e-10)
    assert found.vectors["a"].shape == (10, 3, 2) and found.vectors["b"][0].shape == (10, 4)
    rows = torch.stack([flatten(v) for v in tree.unstack(found.vectors)])
    torch.testing.assert_close((rows @ vectors).abs().diagonal(), torch.ones(10).double())
    assert found.residuals.max() < 1e-10


def test_lanczos_in_few_steps_finds_the_outer_eigenvalues_and_says_how_well() -> None:
    values = torch.cat([torch.linspace(-1, 1, 58).double(), torch.tensor([5.0, -7.0]).double()])
    turn, _ = torch.linalg.qr(random.normal(KEYS[0], (60, 60), torch.float64))
    matrix, like = turn @ values.diag() @ turn.mT, torch.zeros(60, dtype=torch.float64)
    found = lanczos(lambda v: matrix @ v, like, KEYS[1], 12)
    assert len(found.values) == len(found.diagonal) == len(found.off_diagonal) + 1 == 12
    torch.testing.assert_close(found.values[[0, -1]], torch.tensor([-7.0, 5.0]).double())
    for value, vector, residual in zip(found.values, found.vectors, found.residuals, strict=True):
        torch.testing.assert_close(
            (matrix @ vector - value * vector).norm(), residual, rtol=1e-8, atol=1e-10
        )
        assert (values - value).abs().min() <= residual + 1e-10
    basis = found.vectors
    torch.testing.assert_close(basis @ basis.mT, torch.eye(12).double(), rtol=0, atol=1e-12)


def test_lanczos_keeps_its_directions_apart_in_float32() -> None:
    """Without orthogonalisation the large eigenvalue would come back as its own copy."""
    values = torch.cat([torch.tensor([100.0]), torch.linspace(0, 1, 199)])
    found = lanczos(lambda v: values * v, torch.zeros(200), KEYS[1], 60)
    assert (found.values > 1.1).sum() == 1
    basis = found.vectors
    torch.testing.assert_close(basis @ basis.mT, torch.eye(60), rtol=0, atol=1e-4)


def test_lanczos_stops_where_the_space_is_exhausted() -> None:
    found = lanczos(lambda v: 3 * v, torch.zeros(5), KEYS[1], 5)
    torch.testing.assert_close(found.values, torch.tensor([3.0]))
    two = torch.tensor([1.0, 1.0, 2.0, 2.0, 2.0]).double()
    torch.testing.assert_close(
        lanczos(lambda v: two * v, two, KEYS[1], 100).values, torch.tensor([1.0, 2.0]).double()
    )
    assert torch.equal(lanczos(lambda v: 0 * v, torch.zeros(3), KEYS[1], 3).values, torch.zeros(1))


def test_traces_and_diagonals_are_within_their_errors_and_exact_where_they_must_be() -> None:
    matrix = symmetric()
    found = trace(operator(matrix), LIKE, KEYS[2], 400)
    assert abs(found.value - matrix.trace()) < 4 * found.error
    spread = 2 * (matrix.square().sum() - matrix.diagonal().square().sum())
    torch.testing.assert_close(found.error, (spread / 400).sqrt(), rtol=0.2, atol=0)
    guess = diagonal(operator(matrix), LIKE, KEYS[2], 400)
    errors = (flatten(guess.value) - matrix.diagonal()).abs() / flatten(guess.error)
    assert errors.max() < 4 and errors.mean() > 0.2
    exact = diagonal(operator(matrix.diagonal().diag()), LIKE, KEYS[2], 2)
    torch.testing.assert_close(flatten(exact.value), matrix.diagonal())
    assert not flatten(exact.error).any()


def test_estimates_are_the_plain_mean_and_standard_error_of_their_samples() -> None:
    samples: list[float] = []

    def op(v: Tensor) -> Tensor:
        assert set(v.unique().tolist()) == {-1.0, 1.0}
        samples.append(1000.0 + len(samples) ** 2)
        return samples[-1] * v / len(v)

    found = trace(op, torch.zeros(50, dtype=torch.float64), KEYS[2], 7)
    wide = torch.tensor(samples, dtype=torch.float64)
    torch.testing.assert_close(found.value, wide.mean())
    torch.testing.assert_close(found.error, wide.std() / 7**0.5)


def test_the_same_key_gives_the_same_bits_and_another_key_others() -> None:
    op = operator(symmetric())
    for run in (lambda key: trace(op, LIKE, key, 3), lambda key: lanczos(op, LIKE, key, 3)):
        first, second, other = run(KEYS[1]), run(KEYS[1]), run(KEYS[2])
        pairs = list(zip(tree.leaves(first), tree.leaves(second), strict=True))
        assert all(torch.equal(a, b) for a, b in pairs)
        assert not torch.equal(tree.leaves(first)[0], tree.leaves(other)[0])


@pytest.mark.parametrize("damping", [0.0, 0.5])
def test_solutions_are_those_of_the_matrix(damping: float) -> None:
    matrix = positive()
    b = unflatten_like(LIKE, random.normal(KEYS[3], (10,), torch.float64))
    found = solve(operator(matrix), b, damping=damping, tol=1e-12)
    damped = matrix + damping * torch.eye(10, dtype=matrix.dtype)
    wanted = torch.linalg.solve(damped, flatten(b))
    torch.testing.assert_close(flatten(found.x), wanted, rtol=1e-9, atol=1e-9)
    rest = (flatten(b) - damped @ flatten(found.x)).norm() / flatten(b).norm()
    torch.testing.assert_close(found.residual, rest, rtol=1e-3, atol=1e-15)
    assert found.converged and found.iterations <= 12


def test_a_precondition_saves_iterations_and_gives_the_same() -> None:
    scales = torch.logspace(0, 3, 200, dtype=torch.float64)
    b = random.normal(KEYS[3], (200,), torch.float64)
    near = solve(lambda v: scales * v, b, tol=1e-8, precondition=lambda v: v / (scales + 1e-3))
    far = solve(lambda v: scales * v, b, tol=1e-8)
    assert near.iterations < far.iterations / 10
    torch.testing.assert_close(near.x, far.x, rtol=1e-4, atol=1e-6)


def test_what_did_not_converge_says_so() -> None:
    scales = torch.logspace(0, 8, 300, dtype=torch.float64)
    b = torch.ones(300, dtype=torch.float64)
    with pytest.warns(
        RuntimeWarning, match="residual of .* after 5 iterations, and tol is 1.0e-10"
    ):
        found = solve(lambda v: scales * v, b, tol=1e-10, max_iterations=5)
    assert not found.converged and found.iterations == 5
    torch.testing.assert_close(found.residual, (b - scales * found.x).norm() / b.norm())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = solve(lambda v: scales * v, 0 * b)
    assert nothing.converged and nothing.iterations == 0 and not nothing.x.any()


def test_the_gauss_newton_matrix_of_a_language_model_is_solved() -> None:
    case = tiny("gpt2")
    op = ggn(case.model, SoftmaxCrossEntropy(), case.params, *case.batch)
    b = tree.map(torch.ones_like, case.params)
    found = solve(op, b, damping=0.1, tol=1e-9)
    matrix = dense(op, case.params, chunk_size=50)
    matrix += 0.1 * torch.eye(len(matrix), dtype=matrix.dtype)
    wanted = torch.linalg.solve(matrix, flatten(b))
    torch.testing.assert_close(flatten(found.x), wanted, rtol=1e-6, atol=1e-6)


def test_an_indefinite_matrix_is_an_error_and_so_is_nan() -> None:
    signs = torch.tensor([1.0, -1.0])
    with pytest.raises(ValueError, match="not positive definite: p . op.p. is .* in iteration 0"):
        solve(lambda v: signs * v, torch.tensor([0.1, 1.0]))
    assert solve(lambda v: signs * v, torch.tensor([0.1, 1.0]), damping=2.0).converged
    with pytest.raises(ValueError, match="is nan in iteration 0"):
        solve(lambda v: v * torch.nan, torch.ones(2))
    with pytest.raises(ValueError, match=r"not finite"):
        lanczos(lambda v: v * torch.nan, torch.ones(2), KEYS[0], 2)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        lanczos(lambda v: v, torch.ones(2), KEYS[0], 0)
    with pytest.raises(ValueError, match="samples must be at least 2, for a standard error, got 1"):
        trace(lambda v: v, torch.ones(2), KEYS[0], 1)
    with pytest.raises(ValueError, match="must not be negative, got -1.0"):
        solve(lambda v: v, torch.ones(2), damping=-1.0)


def test_changes_no_argument() -> None:
    case = tiny("gpt2")
    b = tree.map(torch.ones_like, case.params)
    leaves = tree.leaves((case.params, case.batch, b))
    versions = [leaf._version for leaf in leaves]
    op = hessian(
        lambda p, *batch: SoftmaxCrossEntropy()(case.model(p, *batch)), case.params, *case.batch
    )
    lanczos(op, case.params, KEYS[0], 2), trace(op, case.params, KEYS[0], 2)
    solve(op, b, damping=100.0)
    assert [leaf._version for leaf in leaves] == versions
    assert not any(leaf.requires_grad for leaf in leaves)
