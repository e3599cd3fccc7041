"""Examples of curvature and attribution."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from calls.common import KEY, LINEAR, LOGITS, SMALL, Make, X, on
from fnlm import transforms
from fnlm.transforms import operator, softmax

LABELS = torch.tensor([3, -1, 6])
PEAK: dict[str, Tensor] = {"w": torch.tensor([1.0, -2.0, 0.5])}
BENT = operator.Operator(lambda v: {"w": v["w"] * torch.tensor([1.0, 2.0, 3.0])}, PEAK)
TABLED = softmax.LinearSoftmaxCrossEntropy(3)
PAIRS = [
    transforms.Pair("weight", X, X[..., :4]),
    transforms.Pair("bias", X[:, :1, :1], X[:, :1, :4]),
]
FACTORED = transforms.ekfac([PAIRS], LINEAR)


def bend(params: Any, x: Tensor) -> Tensor:
    return (params["w"] * x).sum().sin()


def times(op: Any) -> Any:
    return op(op.like)


def descend(state: Tensor, weights: Tensor, i: int) -> Tensor:
    return state - 0.1 * weights[i] * state.sin()


CURVATURE: dict[str, Make] = {
    "Operator.shape": lambda _: on(lambda op: op.shape, BENT),
    "Operator.dtype": lambda _: on(lambda op: op.dtype, BENT),
    "Operator.matvec": lambda _: on(operator.Operator.matvec, BENT, np.arange(3.0)),
    "Operator.rmatvec": lambda _: on(operator.Operator.rmatvec, BENT, np.arange(3.0)),
    "operator.flatten": lambda _: on(operator.flatten, SMALL),
    "operator.unflatten_like": lambda _: on(
        operator.unflatten_like, PEAK, torch.arange(6.0).view(2, 3)
    ),
    "hessian": lambda _: on(transforms.hessian, bend, PEAK, X[0, 0, :3], seen=times),
    "ggn": lambda _: on(transforms.ggn, bend, torch.square, PEAK, X[0, 0, :3], seen=times),
    "fisher": lambda _: on(
        transforms.fisher, lambda p, x: p["w"] * x, PEAK, X[0, :, :3], chunk_size=2, seen=times
    ),
    "empirical_fisher": lambda _: on(
        transforms.empirical_fisher, bend, PEAK, X[0, :, :3], seen=times
    ),
    "SoftmaxCrossEntropy.curvature_product": lambda _: on(
        softmax.SoftmaxCrossEntropy().curvature_product, (LOGITS, LABELS), (LOGITS.flip(0),)
    ),
    "LinearSoftmaxCrossEntropy.curvature_product": lambda _: on(
        TABLED.curvature_product,
        (X[0], X[1], LABELS[[0, 1, 2, 0, 0]] % 5),
        (X[1], X[2]),
    ),
    "dense": lambda _: on(transforms.dense, BENT, PEAK),
    "diagonal": lambda _: on(transforms.diagonal, BENT, PEAK, KEY, 3),
    "trace": lambda _: on(transforms.trace, BENT, PEAK, KEY, 3),
    "lanczos": lambda _: on(transforms.lanczos, BENT, PEAK, KEY, 2),
    "solve": lambda _: on(transforms.solve, BENT, PEAK, damping=0.5),
    "influence": lambda _: on(
        transforms.influence, BENT, lambda p: p["w"].sum(), bend, PEAK, X[0, :, :3]
    ),
    "attribute": lambda _: on(
        transforms.attribute, descend, torch.sum, X[0], torch.ones(2), [(0,), (1,), (0,)]
    ),
    "kfac": lambda _: on(transforms.kfac, [PAIRS], LINEAR, seen=times),
    "ekfac": lambda _: on(transforms.ekfac, [PAIRS], LINEAR, seen=times),
    "KroneckerOperator.solve": lambda _: on(FACTORED.solve, LINEAR, damping=0.5),
    "kronecker.Block.scaled": lambda _: on(
        FACTORED.blocks["weight"].scaled, LINEAR["weight"], LINEAR["weight"]
    ),
}
