"""Products by oneDNN: the numbers of torch's own, under every transform, and where they run."""

from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from fnlm import leaves, random
from fnlm.layers import _products as products
from fnlm.layers import linear

if not torch.backends.mkldnn.is_available():
    pytest.skip("torch was built without oneDNN", allow_module_level=True)

KERNEL = products._kernel


@pytest.fixture(autouse=True)
def calls() -> Iterator[list[tuple[int, ...]]]:
    """oneDNN for products of any size and on any processor, and the shapes it was called with."""
    found: list[tuple[int, ...]] = []

    def kernel(x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        found.append(tuple(x.shape))
        return KERNEL(x, matrix, bias)

    with mock.patch.multiple(products, FASTER=True, ROWS=1, COLUMNS=1, LEAST=1, _kernel=kernel):
        yield found


def draw(*shape: int, seed: int = 0) -> Tensor:
    return random.normal(random.key(seed), shape)


def exact(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """The product in float64."""
    result = x.double() @ matrix.double()
    return result if bias is None else result + bias.double()


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "transposed": lambda x: x.mT.contiguous().mT,
    "columns of a wider one": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "rows of a longer one": lambda x: torch.cat([x, x], -2)[..., x.shape[-2] :, :],
    "columns of a transposed one": lambda x: (
        torch.cat([x, x], -1).mT.contiguous().mT[..., x.shape[-1] :]
    ),
    "every second column": lambda x: x.repeat_interleave(2, -1)[..., ::2],
    "every second row": lambda x: x.repeat_interleave(2, -2)[..., ::2, :],
    "one row for all": lambda x: x[..., :1, :].expand(x.shape),
    "one column for all": lambda x: x[..., :1].expand(x.shape),
    "one number for all": lambda x: x[..., :1, :1].expand(x.shape),
}


@pytest.mark.parametrize("of_matrix", VIEWS)
@pytest.mark.parametrize("of_x", VIEWS)
def test_views(of_x: str, of_matrix: str, calls: list[Any]) -> None:
    x, matrix, bias = VIEWS[of_x](draw(2, 5, 7)), VIEWS[of_matrix](draw(7, 3, seed=1)), draw(6)[::2]

    def loss(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
        return linear(x, matrix, bias).sin().square().sum()

    torch.testing.assert_close(linear(x, matrix, bias).double(), exact(x, matrix, bias), **CLOSE)
    torch.testing.assert_close(linear(x, matrix, None).double(), exact(x, matrix), **CLOSE)
    assert len(calls) == 2
    found = grad(loss, (0, 1, 2))(x, matrix, bias)
    wide = (x.double(), matrix.double(), bias.double())
    for slope, expected in zip(found, grad(loss, (0, 1, 2))(*wide), strict=True):
        torch.testing.assert_close(slope.double(), expected, **CLOSE)
    assert len(calls) == 5  # in float64, products are torch's


@pytest.mark.parametrize("rows", [0, 1, 2, 3])
@pytest.mark.parametrize("of_matrix", VIEWS)
def test_few_rows(rows: int, of_matrix: str, calls: list[Any]) -> None:
    """They gain by matrices that need no copy, and where no transform is active."""
    x, matrix, bias = draw(rows, 7), VIEWS[of_matrix](draw(7, 3, seed=1)), draw(3)
    with mock.patch.multiple(products, LEAST=1 << 24, ROWS=16, LARGE=21):
        found = linear(x, matrix, bias)
        torch.testing.assert_close(found.double(), exact(x, matrix, bias), **CLOSE)
        dense = matrix.is_contiguous() or matrix.mT.is_contiguous()
        # One row alone needs a matrix four times as large.
        assert len(calls) == (rows > 1 and dense)
        found = vmap(lambda row: linear(row, matrix, bias))(x) if rows else found
        grad(lambda x: linear(x, matrix, bias).sum())(x)
        assert len(calls) == (rows > 1 and dense)
        torch.testing.assert_close(found.double(), exact(x, matrix, bias), **CLOSE)
    with mock.patch.multiple(products, LEAST=1 << 24, ROWS=16, LARGE=5):
        calls.clear()
        found = linear(x, matrix, bias)
        torch.testing.assert_close(found.double(), exact(x, matrix, bias), **CLOSE)
        expected = matrix.is_contiguous() if rows == 1 else rows > 1 and dense
        assert len(calls) == expected


@pytest.mark.parametrize("view", VIEWS)
def test_onednn_is_given_dense_matrices(view: str) -> None:
    """With others it is right, and takes a thousand times as long."""
    given: list[Tensor] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.mkldnn._linear_pointwise.default:
                given.append(args[1])
            return func(*args, **(kwargs or {}))

    with Watch():
        KERNEL(draw(5, 7), VIEWS[view](draw(7, 3, seed=1)), None)
    (weight,) = given
    assert weight.is_contiguous() or weight.mT.is_contiguous()


CLOSE: Any = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (0,), (2, 0)])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 5), (5, 1), (17, 33)])
def test_sizes(lead: tuple[int, ...], sizes: tuple[int, int]) -> None:
    x, matrix, bias = draw(*lead, sizes[0]), draw(*sizes, seed=1), draw(sizes[1], seed=2)
    found = linear(x, matrix, bias)
    torch.testing.assert_close(found.double(), exact(x, matrix, bias), **CLOSE)
    assert found.is_contiguous()


def model(w: Tensor, x: Tensor) -> Tensor:
    """A number of w [5, 4] and x [3, 5]; w is used twice, and transposed."""
    hidden = linear(x, w, w[0]).tanh()  # [3, 4]
    return (linear(hidden, w.mT, None) * x).sin().square().sum()


def along(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda w, x: jvp(lambda w: f(w, x), (w,), (draw(5, 4, seed=8).to(w.dtype),))[1]


def pulled(f: Callable[..., Any]) -> Callable[..., Any]:
    """The gradient, taken when the level that recorded it is gone."""

    def call(w: Tensor, x: Tensor) -> Tensor:
        value, pull, *_ = vjp(lambda w: f(w, x), w)
        return pull(torch.ones_like(value))[0]

    return call


def summed(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda w, x: f(w, x).sin().sum()


def mapped(f: Callable[..., Any], dims: tuple[int | None, int | None]) -> Callable[..., Any]:
    def call(w: Tensor, x: Tensor) -> Tensor:
        w, x = (
            t if dim is None else torch.stack([t, 2 * t], dim)
            for t, dim in zip((w, x), dims, strict=True)
        )
        return vmap(f, dims)(w, x)

    return call


def recorded(f: Callable[..., Any]) -> Callable[..., Any]:
    """A second derivative by plain autograd."""

    def call(w: Tensor, x: Tensor) -> Tensor:
        w = w.detach().requires_grad_()
        (first,) = torch.autograd.grad(f(w, x), w, create_graph=True)
        return torch.autograd.grad(first.sin().sum(), w)[0]

    return call


DERIVATIVES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "none": lambda f: f,
    "grad": grad,
    "vjp": pulled,
    "grad of grad": lambda f: grad(summed(grad(f))),
    "third": lambda f: grad(summed(grad(summed(grad(f))))),
    "jvp": along,
    "jvp of grad": lambda f: along(grad(f)),
    "grad of jvp": lambda f: grad(along(f)),
    "jvp of vjp": lambda f: along(pulled(f)),
    "jvp of jvp": lambda f: along(along(f)),
    "hessian": hessian,
    "jacrev of jacrev": lambda f: jacrev(jacrev(f)),
    "autograd": recorded,
    "vmap of rows": lambda f: mapped(f, (None, 1)),
    "vmap of matrices": lambda f: mapped(f, (2, None)),
    "vmap of both": lambda f: mapped(f, (0, 2)),
    "vmap of grad": lambda f: mapped(grad(f), (None, 0)),
    "vmap of grad, of matrices": lambda f: mapped(grad(f), (1, None)),
    "vmap of grad of grad": lambda f: mapped(grad(summed(grad(f))), (0, 0)),
    "grad of vmap": lambda f: grad(summed(mapped(f, (None, 0)))),
    "grad of vmap of grad": lambda f: grad(summed(mapped(grad(f), (None, 0)))),
    "vmap of vmap of grad": lambda f: mapped(mapped(grad(f), (None, 0)), (0, None)),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives(name: str, calls: list[Any]) -> None:
    f, w, x = DERIVATIVES[name](model), draw(5, 4), draw(3, 5, seed=1)
    found = f(w, x)
    assert calls or "jvp" in name or name == "hessian"  # forward mode is plain
    expected = f(w.double(), x.double())
    torch.testing.assert_close(
        found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
    )


COMPILED = ("none", "grad", "grad of grad", "jvp of grad", "vmap of grad", "vmap of matrices")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    f, w, x = DERIVATIVES[name](model), draw(5, 4), draw(3, 5, seed=1)
    found = torch.compile(f, fullgraph=True, backend="aot_eager")(w, x)
    torch.testing.assert_close(found, f(w, x), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_compiled_graphs_hold_the_operation() -> None:
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch._aot_autograd.utils import make_boxed_func

    def inner(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    w, x = draw(5, 4), draw(3, 5, seed=1)
    torch.compile(grad(model), fullgraph=True, backend=aot_autograd(fw_compiler=inner))(w, x)
    (graph,) = graphs
    names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert names.count("fnlm.multiply.default") == 5  # x is given
    assert not any("mm" in name for name in names)


def test_exported_and_traced_graphs_are_plain(calls: list[Any]) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    w, x = draw(5, 4), draw(3, 5, seed=1)
    traced = make_fx(model)(w, x)
    torch.testing.assert_close(grad(traced)(w, x), grad(model)(w, x), **CLOSE)

    class Module(torch.nn.Module):
        def forward(self, w: Tensor, x: Tensor) -> Tensor:
            return model(w, x)

    exported = torch.export.export(Module(), (w, x))
    for graph in (traced.graph, exported.graph):
        assert not any(
            "multiply" in str(node.target) or "mkldnn" in str(node.target) for node in graph.nodes
        )


def test_autocast_and_other_types_are_torchs(calls: list[Any]) -> None:
    x, w, b = draw(3, 5), draw(5, 4), draw(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, w, b).dtype == linear(x, w, None).dtype == torch.bfloat16
    for dtype in (torch.float64, torch.bfloat16):
        assert linear(*(t.to(dtype) for t in (x, w, b))).dtype == dtype
    assert linear(x.to("meta"), w.to("meta"), b.to("meta")).device.type == "meta"
    assert not calls


def test_typed_leaves_answer_for_themselves(calls: list[Any]) -> None:
    params = leaves.lora({"w": draw(5, 4)}, random.key(3), rank=2, where=lambda path, leaf: True)
    leaf, x = params["w"], draw(3, 5)
    torch.testing.assert_close(linear(x, leaf, None), x @ leaf)
    assert not any(shape == (3, 5) for shape in calls)


def test_errors_are_torchs(calls: list[Any]) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(draw(3, 5), draw(6, 4), draw(4))
    with pytest.raises(RuntimeError):
        linear(draw(3, 5), draw(5, 4), draw(3))
    assert not calls


def test_numbers_that_are_none_stay_so() -> None:
    x = draw(20, 40)
    x[3, 5], x[7, 1] = torch.nan, torch.inf
    found, expected = linear(x, draw(40, 30), None), x @ draw(40, 30)
    assert found.isnan().equal(expected.isnan()) and found.isinf().equal(expected.isinf())


def test_small_products_and_other_processors_are_torchs(calls: list[Any]) -> None:
    x, w = draw(16, 64), draw(64, 32)
    for changed in ({"LEAST": 16 * 64 * 32 + 1}, {"ROWS": 17}, {"COLUMNS": 33}, {"FASTER": False}):
        with mock.patch.multiple(products, **changed):
            linear(x, w, None)
    assert not calls
    with mock.patch.multiple(products, LEAST=16 * 64 * 32, ROWS=16):
        linear(x, w, None)
    assert calls


@pytest.mark.parametrize("with_bias", [False, True])
def test_products_in_float16_are_those_of_float32_rounded(with_bias: bool) -> None:
    """So are the derivatives, where the processor has no instructions for the type."""
    wide = [draw(2, 5, 7), draw(7, 3, seed=1), *([draw(3, seed=2)] if with_bias else [])]
    x, matrix, *bias = (t.half() for t in wide)

    def loss(*given: Tensor) -> Tensor:
        x, matrix, *bias = given
        return (linear(x, matrix, bias[0] if bias else None) * seed.to(x.dtype)).sum()

    seed = draw(2, 5, 3, seed=3).half()
    with mock.patch.object(products, "HAS_FLOAT16", False):
        found = linear(x, matrix, bias[0] if bias else None)
        slopes = grad(loss, tuple(range(len(wide))))(x, matrix, *bias)
    expected = exact(x, matrix, bias[0] if bias else None)
    assert found.dtype == torch.float16 and found.equal(expected.half())
    of_double = grad(loss, tuple(range(len(wide))))(*(t.double() for t in (x, matrix, *bias)))
    for a, b in zip(slopes, of_double, strict=True):
        assert a.dtype == torch.float16
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)
