"""Curvature operators equal dense matrices that plain autograd and loops make."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_families import NAMES, Tiny, tiny
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

from fnlm import gpt2, random, tree
from fnlm.transforms import (
    LinearSoftmaxCrossEntropy,
    SoftmaxCrossEntropy,
    dense,
    empirical_fisher,
    fisher,
    ggn,
    hessian,
)
from fnlm.transforms.operator import Operator, flatten, unflatten_like
from fnlm.tree import Tree

each_family = pytest.mark.parametrize("name", NAMES)


def peer_loss(outputs: tuple[Tensor, Tensor]) -> Tensor:
    logits, labels = outputs
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-1)


@lru_cache
def references(name: str) -> dict[str, Tensor]:
    """The Hessian, and the Gauss-Newton matrix from the Jacobian and a loop over positions."""
    case = tiny(name)
    flat = flatten(case.params)

    def of_flat(vector: Tensor) -> tuple[Tensor, Tensor]:
        return case.model(unflatten_like(case.params, vector), *case.batch)

    matrix = torch.autograd.functional.hessian(lambda v: peer_loss(of_flat(v)), flat)
    jacobian = torch.autograd.functional.jacobian(lambda v: of_flat(v)[0], flat)  # [B, T, V, n]
    logits, labels = of_flat(flat)
    gauss_newton = torch.zeros_like(matrix)
    for b, t in (labels != -1).nonzero().tolist():
        p = logits[b, t].softmax(-1)
        gauss_newton += jacobian[b, t].T @ (p.diag() - p.outer(p)) @ jacobian[b, t]
    return {"hessian": matrix, "ggn": gauss_newton / (labels != -1).sum()}


def close(found: Tensor, wanted: Tensor, tol: float = 1e-8) -> None:
    assert wanted.abs().max() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=0, atol=tol * float(wanted.abs().max()))


def loss_of(case: Tiny) -> Callable[..., Tensor]:
    return lambda params, *batch: peer_loss(case.model(params, *batch))


def labelled(*batch: Tensor) -> Tensor:
    return (batch[-1] != -1).sum()


@each_family
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_hessian_is_the_matrix_of_second_derivatives(name: str, chunk_size: int | None) -> None:
    case = tiny(name)
    op = hessian(loss_of(case), case.params, *case.batch, chunk_size=chunk_size, count=labelled)
    close(dense(op, case.params, chunk_size=50), references(name)["hessian"])


def test_both_orders_of_differentiation_agree() -> None:
    case = tiny("gpt2")
    op = hessian(loss_of(case), case.params, *case.batch, reverse=True)
    close(dense(op, case.params, chunk_size=50), references("gpt2")["hessian"])


@each_family
@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy(), peer_loss], ids=["closed", "twice"])
def test_the_gauss_newton_matrix_is_that_of_the_jacobian(name: str, loss: Any) -> None:
    case = tiny(name)
    op = ggn(case.model, loss, case.params, *case.batch)
    found = dense(op, case.params, chunk_size=50)
    close(found, references(name)["ggn"])
    torch.testing.assert_close(found, found.mT, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(found)[0] > -1e-10


def test_chunks_of_examples_give_the_gauss_newton_matrix_of_all() -> None:
    case = tiny("gpt2")
    loss = SoftmaxCrossEntropy()
    for size in (1, 2, 3, 7):
        op = ggn(case.model, loss, case.params, *case.batch, chunk_size=size, count=labelled)
        close(dense(op, case.params, chunk_size=50), references("gpt2")["ggn"])


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 8])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_curvature_of_a_vocabulary_in_chunks(chunk_size: int, has_bias: bool) -> None:
    """The table is tied, and both of its uses have a part."""
    case, loss = tiny("gpt2"), LinearSoftmaxCrossEntropy(chunk_size)
    params = {**case.params, **({"bias": torch.linspace(-1, 1, 7).double()} if has_bias else {})}

    def split(params: Tree, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        bias = (params["bias"],) if has_bias else ()
        return *outputs(params, ids, mask), *bias, labels

    def outputs(params: Tree, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = gpt2.hidden_states(
            {k: v for k, v in params.items() if k != "bias"}, ids, mask=mask
        )
        return hidden[0], params["embed"]["token"]

    def whole(params: Tree, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hidden, table = outputs(params, ids, mask)
        return hidden @ table.mT + params.get("bias", 0.0), labels

    found = ggn(split, loss, params, *case.batch)
    wanted = dense(ggn(whole, peer_loss, params, *case.batch), params, chunk_size=50)
    close(dense(found, params, chunk_size=50), wanted)
    if not has_bias:
        close(wanted, references("gpt2")["ggn"])
    torch.testing.assert_close(
        loss(split(params, *case.batch)), peer_loss(whole(params, *case.batch))
    )


@each_family
def test_the_fisher_information_is_an_expectation_over_what_the_model_predicts(name: str) -> None:
    """g g^T, summed over every token that may come with its probability."""
    case = tiny(name)

    def log_probs(params: Tree) -> Tensor:
        return case.model(params, *case.batch)[0].log_softmax(-1)

    flat = flatten(case.params)
    scores = torch.autograd.functional.jacobian(
        lambda v: log_probs(unflatten_like(case.params, v)), flat
    )  # [B, T, V, n]
    probabilities = log_probs(case.params).exp()
    labels = case.batch[-1]
    wanted = torch.zeros(len(flat), len(flat), dtype=flat.dtype)
    for b, t in (labels != -1).nonzero().tolist():
        for g, p in zip(scores[b, t], probabilities[b, t], strict=True):
            wanted += p * g.outer(g)
    found = fisher(case.model, case.params, *case.batch)
    close(dense(found, case.params, chunk_size=50), wanted / (labels != -1).sum())


def test_the_fisher_information_of_logits_alone_counts_every_position() -> None:
    case = tiny("gpt2")
    ids, mask, labels = case.batch
    found = fisher(lambda p, ids: gpt2.apply(p, ids)[0], case.params, ids)
    wanted = fisher(lambda p, ids: (gpt2.apply(p, ids)[0], ids), case.params, ids)
    close(dense(found, case.params, chunk_size=50), dense(wanted, case.params, chunk_size=50))


@each_family
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_the_empirical_fisher_information_is_the_mean_of_outer_products(
    name: str, chunk_size: int | None
) -> None:
    case = tiny(name)

    def loss(params: Tree, *example: Tensor) -> Tensor:
        logits, labels = case.model(params, *(x[None] for x in example))
        return SoftmaxCrossEntropy()((logits, labels))

    gradients = [flatten(grad(loss)(case.params, *(x[i] for x in case.batch))) for i in range(3)]
    wanted = torch.stack([g.outer(g) for g in gradients]).mean(0)
    op = empirical_fisher(loss, case.params, *case.batch, chunk_size=chunk_size)
    close(dense(op, case.params, chunk_size=50), wanted)


def dropped(params: Tree, ids: Tensor, mask: Tensor, labels: Tensor, keys: Tensor) -> Any:
    """GPT-2 with dropout, each example with its own key."""
    model = vmap(lambda row, m, k: gpt2.apply(params, row, mask=m, key=k)[0])
    return model(ids, mask, keys), labels


def test_dropout_is_held_by_its_keys_in_any_chunks() -> None:
    case = tiny("gpt2")
    batch = (*case.batch, random.split(random.key(2), 3))
    flat = flatten(case.params)

    def loop(vector: Tensor) -> Tensor:
        params = unflatten_like(case.params, vector)
        ids, mask, labels, keys = batch
        rows = [gpt2.apply(params, ids[i], mask=mask[i], key=keys[i])[0] for i in range(3)]
        return peer_loss((torch.stack(rows), labels))

    wanted = torch.autograd.functional.hessian(loop, flat)
    assert (wanted - references("gpt2")["hessian"]).abs().max() > 0.1
    for size in (None, 1, 2):
        op = hessian(
            lambda p, *b: peer_loss(dropped(p, *b)), case.params, *batch,
            chunk_size=size, count=lambda *b: (b[2] != -1).sum(),
        )  # fmt: skip
        close(dense(op, case.params, chunk_size=50), wanted)


def test_frozen_parameters_leave_a_block_of_the_matrix() -> None:
    case = tiny("gpt2")
    trained, frozen = tree.partition(case.params, lambda path, _: path.endswith(("token", "scale")))
    names = [path for path, x in tree.named_leaves(case.params) for _ in range(x.numel())]
    chosen = torch.tensor([name.endswith(("token", "scale")) for name in names])
    for kind, op in {
        "hessian": hessian(
            lambda p, *b: loss_of(case)(tree.merge(p, frozen), *b), trained, *case.batch
        ),
        "ggn": ggn(
            lambda p, *b: case.model(tree.merge(p, frozen), *b), peer_loss, trained, *case.batch
        ),
    }.items():
        close(dense(op, trained, chunk_size=50), references("gpt2")[kind][chosen][:, chosen])


def test_leaves_that_are_not_floats_are_constants() -> None:
    params = {"w": torch.tensor([1.0, 2.0]), "table": torch.tensor([2, 3])}

    def model(params: Tree, x: Tensor) -> Tensor:
        return (params["w"] * params["table"] * x).sum()

    op = ggn(model, torch.square, params, torch.tensor([1.0, 1.0]))
    assert torch.equal(op({"w": torch.tensor([1.0, 0.0])})["w"], torch.tensor([8.0, 12.0]))


def test_a_batch_may_be_a_tree_and_chunks_may_count_nothing() -> None:
    params = {"w": torch.ones(2)}
    batch = {"x": torch.ones(3, 2), "counts": torch.tensor([0, 0, 0])}

    def loss(params: Tree, batch: Tree) -> Tensor:
        return (batch["x"] @ params["w"]).square().mean()

    op = hessian(loss, params, batch, chunk_size=2)
    assert torch.equal(op({"w": torch.tensor([1.0, 0.0])})["w"], torch.full((2,), 2.0))
    none = hessian(loss, params, batch, chunk_size=2, count=lambda batch: batch["counts"].sum())
    assert torch.equal(none({"w": torch.ones(2)})["w"], torch.zeros(2))


def test_a_position_that_does_not_count_may_hold_nan() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [torch.nan] * 3], dtype=torch.float64)
    labels, u = torch.tensor([1, -1]), torch.randn(2, 3, dtype=torch.float64)
    p = logits[0].softmax(-1)
    (found,) = SoftmaxCrossEntropy().curvature_product((logits, labels), (u,))
    torch.testing.assert_close(found[0], (p.diag() - p.outer(p)) @ u[0])
    assert torch.equal(found[1], torch.zeros(3, dtype=torch.float64))
    hidden, table = logits[:, :2], torch.randn(3, 2, dtype=torch.float64)
    parts = LinearSoftmaxCrossEntropy(2).curvature_product(
        (hidden, table, labels), (u[:, :2], table)
    )
    assert not any(part.isnan().any() for part in parts) and not parts[0][1].any()
    (nothing,) = SoftmaxCrossEntropy().curvature_product((logits, torch.tensor([-1, -1])), (u,))
    assert not nothing.any()


def test_operators_add_and_scale() -> None:
    case = tiny("gpt2")
    ids, mask, labels = case.batch
    parts = [
        ggn(case.model, peer_loss, case.params, *(x[rows] for x in case.batch))
        for rows in (slice(0, 1), slice(1, 3))
    ]
    counts = [int((labels[rows] != -1).sum()) for rows in (slice(0, 1), slice(1, 3))]
    op = (counts[0] * parts[0] + parts[1] * counts[1]) * (1 / sum(counts))
    close(dense(op, case.params, chunk_size=50), references("gpt2")["ggn"])


def test_scipy_takes_an_operator() -> None:
    linalg = pytest.importorskip("scipy.sparse.linalg")
    case = tiny("gpt2")
    op = ggn(case.model, SoftmaxCrossEntropy(), case.params, *case.batch)
    matrix = references("gpt2")["ggn"]
    found = linalg.eigsh(op, k=3, return_eigenvectors=False, v0=np.ones(op.shape[0]))
    top = torch.linalg.eigvalsh(matrix)[-3:]
    torch.testing.assert_close(torch.from_numpy(np.sort(found)), top, rtol=1e-8, atol=1e-10)
    damped = op + 0.1 * Operator(lambda v: v, op.like)
    b = random.normal(random.key(3), (op.shape[0],), torch.float64)
    x, info = linalg.cg(damped, b.numpy(), rtol=1e-10)
    exact = torch.linalg.solve(matrix + 0.1 * torch.eye(len(b), dtype=b.dtype), b)
    assert info == 0
    torch.testing.assert_close(torch.from_numpy(x), exact, rtol=1e-7, atol=1e-7)
    columns = linalg.aslinearoperator(op).matmat(np.eye(op.shape[0])[:, :2])
    torch.testing.assert_close(torch.from_numpy(columns), matrix[:, :2], rtol=0, atol=1e-10)


def test_half_precision_has_vectors_of_float32() -> None:
    op = hessian(lambda p: p["w"].square().sum(), {"w": torch.ones(2, dtype=torch.bfloat16)})
    assert op.dtype == np.float32
    assert np.array_equal(op.matvec(np.ones((2, 1))), np.array([2, 2], np.float32))


def test_errors_name_what_is_wrong() -> None:
    params = {"w": torch.ones(2)}
    op = hessian(lambda p: p["w"].square().sum(), params)
    with pytest.raises(ValueError, match=r"missing \['w'\], unexpected \['v'\]"):
        op({"v": torch.ones(2)})
    with pytest.raises(ValueError, match=r"'w' is \(3,\) torch.float32, wanted \(2,\)"):
        op({"w": torch.ones(3)})
    with pytest.raises(ValueError, match="torch.float64, wanted"):
        op({"w": torch.ones(2).double()})
    with pytest.raises(ValueError, match="a vector of 3 elements"):
        op.matvec(np.ones(3))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        hessian(lambda p, x: p["w"].sum(), params, torch.ones(2), chunk_size=0)
    with pytest.raises(ValueError, match=r"batch.0 \[2\], batch.1 \[3\]"):
        hessian(lambda p, x, y: p["w"].sum(), params, torch.ones(2), torch.ones(3), chunk_size=1)
    with pytest.raises(ValueError, match="of no examples"):
        empirical_fisher(lambda p, x: p["w"].sum(), params, torch.ones(0))
    with pytest.raises(ValueError, match="no batch was given"):
        empirical_fisher(lambda p: p["w"].sum(), params)
    with pytest.raises(ValueError, match="the loss needs labels"):
        SoftmaxCrossEntropy()(torch.ones(3))
    with pytest.raises(ValueError, match=r"labels \(3,\), logits \(2, 4\)"):
        SoftmaxCrossEntropy()((torch.ones(2, 4), torch.ones(3).long()))
    with pytest.raises(IndexError, match="less than 3, or -1 where nothing counts. Where -100"):
        SoftmaxCrossEntropy().curvature_product(
            (torch.ones(2, 3), torch.tensor([-100, 1])), (torch.ones(2, 3),)
        )
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        LinearSoftmaxCrossEntropy(0).curvature_product(
            (torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2).long()),
            (torch.ones(2, 3), torch.ones(4, 3)),
        )
