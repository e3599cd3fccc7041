"""Kronecker factors, their eigenvalues and their inverse equal explicit matrices."""

from typing import Any

import pytest
import torch
from tiny_families import NAMES, tiny
from torch import Tensor
from torch.func import grad

from fnlm import random, tree
from fnlm.transforms import SoftmaxCrossEntropy, dense, ekfac, empirical_fisher, kfac, solve
from fnlm.transforms.kronecker import KroneckerOperator, Pair
from fnlm.transforms.operator import flatten
from fnlm.tree import Tree

LIKE = {"w": torch.zeros(3, 2, dtype=torch.float64), "bias": torch.zeros(2, dtype=torch.float64)}
B, T = 4, 5


def kron(a: Tensor, b: Tensor) -> Tensor:
    return torch.kron(a.contiguous(), b.contiguous())


def normal(seed: int, *shape: int) -> Tensor:
    return random.normal(random.key(seed), shape, torch.float64)


def pairs(seed: int = 0, examples: int = B) -> list[Pair]:
    """A layer y = x w + bias whose last position of the first example is padding."""
    x, g = normal(seed, examples, T, 3), normal(seed + 1, examples, T, 2)
    g[0, -1] = 0.0
    bias = g.sum(1, keepdim=True)
    return [Pair("w", x, g), Pair("bias", torch.ones_like(bias[..., :1]), bias)]


def gradients(batch: list[Pair], path: str) -> Tensor:
    """Per-example gradients [B, elements], by a loop."""
    found = []
    for i in range(B):
        total: Any = 0.0
        for pair in batch:
            if pair.path == path:
                rows = pair.rows[i]
                if rows.ndim == 1:
                    rows = torch.nn.functional.one_hot(rows, LIKE[path].shape[0]).double()
                total = total + sum(r.outer(c) for r, c in zip(rows, pair.columns[i], strict=True))
        found.append(total.flatten())
    return torch.stack(found)


def block(op: KroneckerOperator, path: str, like: Tree = LIKE) -> Tensor:
    """The dense matrix of one leaf; what lies between leaves is 0."""
    matrix = dense(op, like)
    names = [name for name, leaf in tree.named_leaves(like) for _ in range(leaf.numel())]
    chosen = torch.tensor([name == path for name in names])
    assert not matrix[chosen][:, ~chosen].any()
    return matrix[chosen][:, chosen]


def test_factors_are_means_and_sums_over_examples_and_positions() -> None:
    batch = pairs()
    rows, columns = batch[0].rows.flatten(0, 1), batch[0].columns.flatten(0, 1)
    real = [n for n in range(B * T) if n != T - 1]
    r = torch.stack([rows[n].outer(rows[n]) for n in real]).sum(0) / len(real)
    c = torch.stack([columns[n].outer(columns[n]) for n in real]).sum(0) / B
    found = kfac([batch], LIKE)
    torch.testing.assert_close(block(found, "w"), kron(r, c), rtol=1e-12, atol=1e-12)
    bias = gradients(batch, "bias")
    torch.testing.assert_close(block(found, "bias"), bias.mT @ bias / B)


def test_batches_may_come_one_after_the_other() -> None:
    one, two = pairs(0), pairs(5)
    both = [Pair(a.path, torch.cat([a.rows, b.rows]), torch.cat([a.columns, b.columns]))
            for a, b in zip(one, two, strict=True)]  # fmt: skip
    for approximation in (kfac, ekfac):
        found, wanted = (dense(approximation(b, LIKE), LIKE) for b in ([one, two], [both]))
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_one_example_of_one_position_is_exact() -> None:
    x, g = normal(0, 1, 1, 3), normal(1, 1, 1, 2)
    wanted = (x[0].mT @ g[0]).flatten()
    for approximation in (kfac, ekfac):
        found = approximation([[Pair("w", x, g)]], {"w": LIKE["w"]})
        torch.testing.assert_close(dense(found, {"w": LIKE["w"]}), wanted.outer(wanted))


@pytest.mark.parametrize("limit", [4096, 2])
def test_ekfac_is_the_best_diagonal_in_its_eigenvectors(limit: int) -> None:
    batch = pairs()
    exact = gradients(batch, "w").mT @ gradients(batch, "w") / B
    found, plain = (f([batch], LIKE, limit=limit) for f in (ekfac, kfac))
    left = found.blocks["w"].left or (torch.eye(3).double(),)
    assert bool(found.blocks["w"].left) == (limit > 2)
    turn = kron(left[0], found.blocks["w"].right[0])
    torch.testing.assert_close(
        found.blocks["w"].values.flatten(), (turn.mT @ exact @ turn).diagonal()
    )
    distance = [(block(op, "w") - exact).norm() for op in (found, plain)]
    assert distance[0] < 0.99 * distance[1]


def test_a_diagonal_factor_is_the_diagonal_of_the_full_one() -> None:
    rows = pairs()[0].rows.flatten(0, 1)
    mean = torch.cat([rows[: T - 1], rows[T:]]).square().mean(0)
    found = kfac([pairs()], LIKE, limit=2)
    columns = kfac([pairs()], LIKE).blocks["w"].values.sum() / rows[:0].new_tensor(1.0)
    assert found.blocks["w"].left == () and len(found.blocks["w"].right) == 1
    torch.testing.assert_close(
        found.blocks["w"].values.sum(1) / found.blocks["w"].values.sum(), mean / mean.sum()
    )
    torch.testing.assert_close(found.blocks["w"].values.sum(), columns)


@pytest.mark.parametrize("limit", [4096, 2])
def test_a_tied_table_is_looked_up_and_multiplied_by(limit: int) -> None:
    """Eigenvalues of EK-FAC are of both uses together; factors have the partial traces of both."""
    ids = torch.tensor([[0, 1, 1], [2, 0, 2], [1, 1, 1], [0, 2, 1]])
    look = Pair("w", ids, normal(0, B, 3, 2))
    multiply = Pair("w", normal(1, B, T, 3), normal(2, B, T, 2))
    like = {"w": LIKE["w"]}
    found = ekfac([[look, multiply]], like, limit=limit)
    exact = gradients([look, multiply], "w").mT @ gradients([look, multiply], "w") / B
    turn = kron(*(q[0] if q else torch.eye(3).double() for q in found.blocks["w"][:2]))
    torch.testing.assert_close(
        found.blocks["w"].values.flatten(), (turn.mT @ exact @ turn).diagonal()
    )
    if limit > 3:
        both = dense(kfac([[look, multiply]], like), like).view(3, 2, 3, 2)
        parts = [dense(kfac([[one]], like), like) for one in (look, multiply)]
        each = (parts[0] + parts[1]).view(3, 2, 3, 2)
        for partial in ("abcb->ac", "abac->bc"):
            torch.testing.assert_close(torch.einsum(partial, both), torch.einsum(partial, each))


@pytest.mark.parametrize("approximation", [kfac, ekfac])
def test_the_inverse_is_that_of_the_matrix(approximation: Any) -> None:
    found = approximation([pairs()], LIKE)
    b = {"w": normal(7, 3, 2), "bias": normal(8, 2)}
    matrix = dense(found, LIKE) + 0.3 * torch.eye(8, dtype=torch.float64)
    wanted = torch.linalg.solve(matrix, flatten(b))
    torch.testing.assert_close(flatten(found.solve(b, damping=0.3)), wanted)
    assert solve(found, b, damping=0.3, precondition=lambda v: found.solve(v, damping=0.3),
                 tol=1e-10).iterations <= 2  # fmt: skip


def test_leaves_without_a_gradient_have_the_curvature_0() -> None:
    found = kfac([pairs()[:1]], {**LIKE, "ids": torch.arange(3)})
    assert [path for path, _ in tree.named_leaves(found.like)] == ["w", "bias"]
    assert not found(LIKE | {"bias": torch.ones(2).double()})["bias"].any()
    b = tree.map(torch.ones_like, LIKE)
    assert torch.equal(found.solve(b, damping=0.5)["bias"], torch.full((2,), 2.0).double())
    with pytest.raises(ValueError, match="smallest eigenvalue is 0.000e.00, with a damping of 0.0"):
        found.solve(b, damping=0.0)


def test_half_precision_is_computed_in_float32() -> None:
    like = tree.cast(LIKE, torch.bfloat16)
    batch = [p._replace(rows=p.rows.bfloat16(), columns=p.columns.bfloat16()) for p in pairs()]
    found = ekfac([batch], like)
    assert found.blocks["w"].values.dtype == torch.float32
    assert found(like)["w"].dtype == torch.bfloat16


def test_errors_name_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"rows \(4, 5, 3\) and columns \(4, 5, 3\) .* 'w'"):
        kfac([[Pair("w", normal(0, B, T, 3), normal(1, B, T, 3))]], LIKE)
    with pytest.raises(KeyError, match="v"):
        kfac([[Pair("v", normal(0, B, T, 3), normal(1, B, T, 2))]], LIKE)
    with pytest.raises(ValueError, match="no examples"):
        kfac([], LIKE)
    with pytest.raises(ValueError, match=r"one number of examples, got \[4, 5\]"):
        kfac([[*pairs(), *pairs(examples=5)]], LIKE)


@pytest.mark.parametrize("name", NAMES)
def test_the_uses_of_every_family_have_the_eigenvalues_of_the_fisher_information(name: str) -> None:
    """On the diagonal of each block, in its eigenvectors: ties, lookups, slices and biases."""
    capture = pytest.importorskip("fnlm.transforms.capture").capture
    case = tiny(name)

    def loss(params: Tree, *example: Tensor) -> Tensor:
        logits, labels = case.model(params, *(x[None] for x in example))
        return SoftmaxCrossEntropy()((logits, labels))

    exact = dense(empirical_fisher(loss, case.params, *case.batch), case.params, chunk_size=50)
    found = ekfac([capture(loss, case.params, *case.batch)], case.params)
    start, factored = 0, 0
    for path, leaf in tree.named_leaves(case.params):
        part = exact[start : start + leaf.numel(), start : start + leaf.numel()]
        start += leaf.numel()
        if path not in found.blocks:
            assert not part.any()
            continue
        block = found.blocks[path]
        factored += block.values.shape[0] > 1
        turn = kron(*(q[0] for q in (block.left, block.right)))
        torch.testing.assert_close(
            block.values.flatten(), (turn.mT @ part @ turn).diagonal(), rtol=1e-8, atol=1e-12
        )
    assert factored >= 4
    assert grad(loss)(case.params, *(x[0] for x in case.batch))["config"] == case.params["config"]
