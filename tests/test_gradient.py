"""Gradients that keep nothing for a second derivative, wherever they stand among transforms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, make_batch, make_params
from torch import Tensor, func
from torch.func import jacfwd, jacrev, jvp, vmap

from fnlm import random, transforms, tree
from fnlm.tree import Tree

Gradient = Callable[..., Any]  # transforms.grad or torch.func.grad
KEYS = random.split(random.key(0), 4)
PARAMS = {"w": random.normal(KEYS[0], (4, 5), torch.float64)}
ALONG = {"w": random.normal(KEYS[1], (4, 5), torch.float64)}
X = random.normal(KEYS[2], (3, 4), torch.float64)
SCALE = torch.tensor(2.0, dtype=torch.float64)


def loss(params: Tree, x: Tensor, scale: Tensor = SCALE) -> Tensor:
    return (torch.tanh(x @ params["w"]) * scale).pow(3).sum()


def size(grad: Gradient) -> Callable[..., Tensor]:
    """Return a function whose derivatives are second derivatives of the loss."""
    return lambda params, x, scale=SCALE: grad(loss)(params, x, scale)["w"].pow(3).sum()


def sizes(grad: Gradient) -> Callable[..., Tensor]:
    return lambda params, x: vmap(grad(loss), (None, 0))(params, x)["w"].pow(3).sum()


def by_autograd(grad: Gradient) -> Tensor:
    """Differentiate a gradient by plain autograd, with respect to what its loss closes over."""
    scale = SCALE.clone().requires_grad_()
    return torch.autograd.grad(size(grad)(PARAMS, X, scale), scale)[0]


def by_closure(grad: Gradient) -> Tensor:
    return func.grad(lambda scale: grad(lambda p: loss(p, X, scale))(PARAMS)["w"].sum())(SCALE)


PLACES: dict[str, Callable[[Gradient], Any]] = {
    "alone": lambda grad: grad(loss)(PARAMS, X),
    "under vmap": lambda grad: vmap(grad(loss), (None, 0))(PARAMS, X),
    "in a gradient": lambda grad: func.grad(size(grad))(PARAMS, X),
    "in a gradient by data": lambda grad: func.grad(size(grad), 1)(PARAMS, X),
    "in itself": lambda grad: grad(size(grad))(PARAMS, X),
    "in a gradient in a gradient": lambda grad: func.grad(
        lambda p: func.grad(size(grad))(p, X)["w"].square().sum()
    )(PARAMS),
    "in a gradient under vmap": lambda grad: vmap(func.grad(size(grad), 1), (None, 0))(PARAMS, X),
    "under vmap in a gradient": lambda grad: func.grad(sizes(grad))(PARAMS, X),
    "under vmap in itself": lambda grad: grad(sizes(grad))(PARAMS, X),
    "in plain autograd": by_autograd,
    "in a gradient of what it closes over": by_closure,
    "in jvp": lambda grad: jvp(lambda p: grad(loss)(p, X), (PARAMS,), (ALONG,)),
    "in jacfwd": lambda grad: jacfwd(grad(loss))(PARAMS, X),
    "in jacrev": lambda grad: jacrev(grad(loss))(PARAMS, X),
    "without grad mode": lambda grad: torch.no_grad()(grad(loss))(PARAMS, X),
}


@pytest.mark.parametrize("place", PLACES)
def test_equals_torchs_gradient_wherever_it_stands(place: str) -> None:
    found, wanted = (tree.leaves(PLACES[place](grad)) for grad in (transforms.grad, func.grad))
    for a, b in zip(found, wanted, strict=True):
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_models_have_the_same_gradients_bit_for_bit(family: Family) -> None:
    params, (ids, mask) = make_params(family), make_batch(family)
    for name, task in family.tasks.items():

        def loss(params: Tree, task: Any = task) -> Tensor:
            outputs = tree.leaves(task(params, ids, mask, key=KEYS[3]))
            return sum((x.square().mean() for x in outputs), torch.zeros(()))

        found, value = transforms.grad_and_value(loss)(params)
        wanted, expected = func.grad_and_value(loss)(params)
        assert torch.equal(value, expected), name
        for a, b in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
            assert torch.equal(a, b), name


def test_hands_back_what_the_loss_has_besides() -> None:
    def with_aux(params: Tree, x: Tensor) -> tuple[Tensor, Tree]:
        return loss(params, x), {"inputs": x}

    grads, (value, aux) = transforms.grad_and_value(with_aux, has_aux=True)(PARAMS, X)
    assert torch.equal(grads["w"], transforms.grad(loss)(PARAMS, X)["w"])
    assert torch.equal(value, loss(PARAMS, X)) and torch.equal(aux["inputs"], X)
    assert torch.equal(transforms.grad(with_aux, has_aux=True)(PARAMS, X)[1]["inputs"], X)


def test_records_the_backward_pass_only_for_a_second_derivative() -> None:
    recorded = []

    class Seen(torch.autograd.Function):
        """The identity; its backward reports whether it is being recorded."""

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor) -> Tensor:
            recorded.append(torch.is_grad_enabled())
            return cotangents[0]

    def seen(params: Tree) -> Tensor:
        return loss({"w": Seen.apply(params["w"])}, X)

    transforms.grad(seen)(PARAMS)
    func.grad(seen)(PARAMS)
    func.grad(lambda params: transforms.grad(seen)(params)["w"].sum())(PARAMS)
    assert recorded[:3] == [False, True, True]


def test_a_loss_of_many_numbers_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"one number, a tensor of shape \[\], got \[3, 4\]"):
        transforms.grad(lambda params, x: x)(PARAMS, X)
    with pytest.raises(ValueError, match="got tuple"):
        transforms.grad(lambda params, x: (x.sum(), x))(PARAMS, X)
