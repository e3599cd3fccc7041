"""Layer norm's derivatives of every order, by every way that torch has to take them.

Beside the formula in plain arithmetic, which plain autograd differentiates.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, functional
from torch.autograd.gradcheck import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacrev, jvp, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from fnlm import random
from fnlm.layers import norm
from fnlm.layers.norm import layer_norm

EPSILON = 1e-3
X, WEIGHT = (random.normal(random.key(s), (5, 5), torch.float64) for s in (0, 1))
P, ALONG = random.normal(random.key(2), (2, 2, 5), torch.float64)  # scales and biases
Norm = Callable[..., Tensor]


def formula(x: Tensor, scale: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * scale + bias


def make(norm: Norm) -> Callable[..., Tensor]:
    """Two norms, the second of what the first gives, so that each leaf is in both."""

    def number(p: Tensor, x: Tensor = X) -> Tensor:
        y = norm(x * p[0], p[0], p[1], eps=EPSILON)
        return norm((y @ WEIGHT).tanh() + p[1], p[1], p[0], eps=EPSILON).sin().pow(2).sum()

    return number


def tracked() -> Tensor:
    return P.clone().requires_grad_()


def slope(y: Tensor, p: Tensor) -> Tensor:
    return torch.autograd.grad(y, p, create_graph=True)[0]


def by_autograd(f: Any, order: int) -> Tensor:
    p = tracked()
    y = f(p)
    for _ in range(order):
        y = (slope(y, p) * ALONG).sum()
    return y


def by_dual(f: Any, gradient_first: bool) -> Tensor:
    p = tracked()
    with forward_ad.dual_level():
        y = f(forward_ad.make_dual(p, ALONG))
        y = (slope(y, p) * ALONG).sum() if gradient_first else y
        tangent = forward_ad.unpack_dual(y).tangent
        return tangent if gradient_first else slope(tangent, p)


def outside(transformed: Callable[[Tensor], Tensor]) -> Tensor:
    """The second derivative by plain autograd of what a transform gives."""
    p = tracked()
    return slope((slope(transformed(p).sin().sum(), p) * ALONG).sum(), p)


def jit_traced(f: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return torch.jit.trace(lambda p: f(p), (P,))


def linearized(f: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch speaks of its own constants
        return linearize(f, P)[1]


class Module(torch.nn.Module):
    def __init__(self, f: Any) -> None:
        super().__init__()
        self.f = f

    def forward(self, p: Tensor) -> Tensor:
        return self.f(p)


def exported(f: Any) -> Any:
    return torch.export.export(Module(f), (P,)).module()


def compiled(f: Any) -> Any:
    return torch.compile(f, backend="aot_eager", fullgraph=True)


WAYS: dict[str, Callable[[Any], Any]] = {
    "value": lambda f: f(P),
    **{f"autograd, order {n}": partial(by_autograd, order=n) for n in (1, 2, 3, 4)},
    "torch.func.grad, autograd inside": lambda f: grad(lambda p: (slope(f(p), p) * ALONG).sum())(P),
    "hessian": lambda f: hessian(f)(P),
    "third derivatives": lambda f: jacrev(hessian(f))(P),
    "norms of per-example gradients": lambda f: grad(
        lambda p: vmap(grad(f), (None, 0))(p, X[:, None]).square().sum()
    )(P),
    "autograd of hessian": lambda f: outside(hessian(f)),
    "autograd of jvp": lambda f: outside(lambda p: jvp(f, (p,), (ALONG,))[1]),
    "autograd of vmap": lambda f: outside(lambda p: vmap(lambda x: f(p, x))(X[:, None])),
    "autograd of vmap of grad": lambda f: outside(
        lambda p: vmap(grad(f), (None, 0))(p, X[:, None])
    ),
    "gradient of a dual": lambda f: by_dual(f, gradient_first=False),
    "dual of a gradient": lambda f: by_dual(f, gradient_first=True),
    "linearize": lambda f: linearized(lambda p: f(p))(ALONG),
    "linearize of grad": lambda f: linearized(lambda p: grad(f)(p))(ALONG),
    "functional.hessian": lambda f: functional.hessian(f, P),
    "functional.hessian, vectorized": lambda f: functional.hessian(f, P, vectorize=True),
    "functional.hessian, forward": lambda f: functional.hessian(
        f, P, vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "functional.hvp": lambda f: functional.hvp(f, P, ALONG)[1],
    "checkpoint": lambda f: outside(lambda p: checkpoint(f, p, use_reentrant=False)),
    "many gradients at once": lambda f: outside(
        lambda p: functional.jacobian(
            lambda q: f(q) * q[0], p, create_graph=True, vectorize=True
        )
    ),
    "hessian of make_fx": lambda f: hessian(make_fx(lambda p: f(p))(P))(P),
    "hessian of export": lambda f: hessian(exported(f))(P),
    "hessian of jit.trace": lambda f: functional.hessian(jit_traced(f), P),
    "compiled hessian": lambda f: compiled(hessian(f))(P),
    "hessian of compiled": lambda f: hessian(torch.compile(f, backend="aot_eager"))(P),
}  # fmt: skip


@pytest.fixture
def fresh_compiler() -> None:
    """Forget what was compiled: the ways share code."""
    torch.compiler.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("way", WAYS)
def test_derivatives_equal_those_of_the_formula(way: str) -> None:
    plain = "hessian" if way.startswith(("hessian of", "compiled")) else way
    found, expected = WAYS[way](make(layer_norm)), WAYS[plain](make(formula))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_derivatives_equal_differences() -> None:
    x, scale, bias = (
        random.normal(random.key(seed), shape, torch.float64).requires_grad_()
        for seed, shape in enumerate([(2, 3, 5), (5,), (5,)])
    )

    def run(*leaves: Tensor) -> Tensor:
        return layer_norm(*leaves, eps=EPSILON)

    assert gradcheck(run, (x, scale, bias), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(
        run, (x, scale, bias), check_fwd_over_rev=True, check_batched_grad=True
    )  # fmt: skip
    for leaf in (x, scale, bias):  # one alone, with and without a record
        only = [other if other is leaf else other.detach() for other in (x, scale, bias)]
        value = run(*only).sin().sum()
        recorded = torch.autograd.grad(value, leaf, create_graph=True)[0]
        torch.testing.assert_close(torch.autograd.grad(value, leaf)[0], recorded.detach())


def first_dual(f: Any, p: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(p, ALONG.to(p.dtype)))).tangent


FIRST: dict[str, Callable[[Any, Tensor], Any]] = {
    "value": lambda f, p: f(p),
    "grad": lambda f, p: grad(f)(p),
    "grad beside a record that is off": lambda f, p: torch.no_grad()(grad(f))(p.requires_grad_()),
    "jvp": lambda f, p: jvp(f, (p,), (ALONG.to(p.dtype),))[1],
    "per example": lambda f, p: vmap(grad(f), (None, 0))(p, X[:, None].to(p.dtype)),
    "autograd": lambda f, p: torch.autograd.grad(f(p.requires_grad_()), p)[0],
    "dual": lambda f, p: first_dual(f, p),
}


@pytest.mark.parametrize("way", FIRST)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_first_derivatives_are_those_of_torchs_kernel(way: str, dtype: torch.dtype) -> None:
    """Bit for bit, and so as fast: plain arithmetic is not asked."""

    def kernel(x: Tensor, scale: Tensor, bias: Tensor, *, eps: float) -> Tensor:
        return torch.nn.functional.layer_norm(x, (x.shape[-1],), scale, bias, eps)

    def run(one: Norm) -> Tensor:
        x, weight = X.to(dtype), WEIGHT.to(dtype)

        def number(p: Tensor, x: Tensor = x) -> Tensor:
            y = one(x * p[0], p[0], p[1], eps=EPSILON)
            return one((y @ weight).tanh(), p[1], p[0], eps=EPSILON).sin().sum()

        return FIRST[way](number, P.to(dtype, copy=True))

    with mock.patch.object(norm, "_plain", side_effect=AssertionError("plain arithmetic")):
        assert run(layer_norm).equal(run(kernel))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wide", [False, True], ids=["half leaves", "float32 leaves"])
def test_half_types_are_normalised_in_float32(dtype: torch.dtype, wide: bool) -> None:
    """At every level of derivatives; the leaves of the norm may be wider than its input."""
    x = (3 * random.normal(random.key(0), (7, 64)) + 5).to(dtype)
    leaves = [
        random.normal(random.key(s), (64,)).to(torch.float32 if wide else dtype) for s in (1, 2)
    ]
    exact = formula(x.double(), *(leaf.double() for leaf in leaves), eps=EPSILON)
    kernel, plain = (one(x, *leaves, eps=EPSILON) for one in (layer_norm, norm._plain))
    for found in (kernel, plain):
        assert found.dtype == dtype
        torch.testing.assert_close(found, exact.to(dtype))

    def loss(x: Tensor, *leaves: Tensor) -> Tensor:
        return layer_norm(x, *leaves, eps=EPSILON).float().sin().sum()

    tangents = tuple(map(torch.ones_like, (x, *leaves)))
    by_hand = grad(lambda *p: (formula(*p, eps=EPSILON)).sin().sum(), (0, 1, 2))
    exact_slopes = by_hand(x.double(), *(leaf.double() for leaf in leaves))
    tracked = [leaf.clone().requires_grad_() for leaf in (x, *leaves)]
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    for found_slopes in (
        grad(loss, (0, 1, 2))(x, *leaves),
        jvp(grad(loss, (0, 1, 2)), (x, *leaves), tangents)[0],
        torch.autograd.grad(loss(*tracked), tracked),
        torch.autograd.grad(loss(*tracked), tracked, create_graph=True),
    ):
        for a, b, leaf in zip(found_slopes, exact_slopes, (x, *leaves), strict=True):
            assert a.dtype == leaf.dtype
            torch.testing.assert_close(
                a.detach().double(), b, atol=tolerance * float(b.abs().max()), rtol=tolerance
            )
