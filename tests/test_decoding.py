"""Products of one vector: each kernel equals the dense product, and no transform sees it."""

import copy
import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from fnlm import gpt2, random, tree
from fnlm.generate import State, advance, generate, scan, start
from fnlm.layers import linear
from fnlm.layers.attention import attend
from fnlm.leaves import Packed, lora, merge, pack, quantize
from fnlm.params.layout import for_decoding

CONFIG = gpt2.Config(vocab_size=71, n_positions=24, n_embd=36, n_layer=2, n_head=3)
SHAPES = [(1, 1), (7, 3), (5, 32), (9, 33), (36, 71), (64, 130)]
EPS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
EVERY: dict[str, Any] = {"where": lambda path, leaf: True}


def matrix(shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> Tensor:
    return random.normal(random.key(1), shape).to(dtype)


def vector(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return random.normal(random.key(2), shape).to(dtype)


def check(found: Tensor, x: Tensor, w: Tensor, bias: Tensor | None = None) -> None:
    """Hold a product to the one in float64, to a multiple of what rounding allows."""
    expected = x.double() @ w.double() + (0 if bias is None else bias.double())
    bound = EPS[found.dtype] * (x.double().abs() @ w.double().abs() + 1)
    assert found.shape == expected.shape and found.dtype == x.dtype
    assert ((found.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("order", ["rows", "columns"])
@pytest.mark.parametrize("lead", [(), (1,), (1, 1), (0,), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_linear_is_the_product(
    dtype: torch.dtype, shape: tuple[int, int], lead: tuple[int, ...], order: str
) -> None:
    w, x = matrix(shape, dtype), vector(*lead, shape[0], dtype=dtype)
    w, bias = w if order == "rows" else w.mT.contiguous().mT, vector(shape[1], dtype=dtype)
    check(linear(x, w, bias), x, w, bias)
    check(linear(x, w, None), x, w)
    check(linear(x[..., ::1].clone().expand(x.shape), w, None), x, w)


def test_one_vector_takes_the_batched_product_outside_of_transforms_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, kernel = [], torch.bmm

    def counting(*args: Tensor) -> Tensor:
        calls.append(1)
        return kernel(*args)

    monkeypatch.setattr(torch, "bmm", counting)
    w, x, bias = matrix((36, 71)).mT.contiguous().mT, vector(1, 36), vector(71)
    linear(x, w, bias)
    assert len(calls) == 1
    linear(x.expand(2, -1), w, bias)
    linear(x, w.contiguous(), bias)
    linear(x.double(), w.double(), None)
    tracked = linear(x, w.clone(memory_format=torch.preserve_format).requires_grad_(), bias)
    assert tracked.requires_grad and len(calls) == 1
    found = grad(lambda w: linear(x, w, bias).sin().sum())(w)
    torch.testing.assert_close(found, (x[0, :, None] * linear(x, w, bias).cos()))
    assert len(calls) == 2  # that of the reference
    each: Any = vmap(linear, in_dims=(0, None, None))(vector(4, 1, 36), w, bias)
    torch.testing.assert_close(each, F.linear(vector(4, 1, 36), w.mT, bias))
    tangent = jvp(partial(linear, weight=w, bias=bias), (x,), (2 * x,))[1]
    torch.testing.assert_close(tangent, 2 * x @ w)

    def loss(x: Tensor) -> Tensor:
        return linear(x, w, bias).sin().sum()

    hessian = jvp(grad(loss), (x,), (x,))[1]
    y = F.linear(x, w.mT, bias)
    torch.testing.assert_close(hessian, -((y.sin() * (x @ w)) @ w.mT), rtol=1e-4, atol=1e-4)
    assert len(calls) == 2


@pytest.mark.parametrize("lead", [(), (1, 1), (0,), (2, 3)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_a_packed_matrix_multiplies_as_the_tensor_does(
    dtype: torch.dtype, shape: tuple[int, int], lead: tuple[int, ...]
) -> None:
    w, x = matrix(shape, dtype), vector(*lead, shape[0], dtype=dtype)
    packed = pack({"w": w}, **EVERY)["w"]
    assert packed.shape == w.shape and packed.dtype == dtype
    assert torch.equal(merge({"w": packed})["w"], w)
    bias = vector(shape[1], dtype=dtype)
    check(linear(x, packed, bias), x, w, bias)
    check(x @ packed, x, w)
    check(vmap(lambda b: linear(x, packed, b))(bias[None])[0], x, w, bias)


def test_packed_weights_are_constants_of_every_transform() -> None:
    w, x = matrix((5, 33)), vector(2, 5)
    packed = pack({"w": w}, **EVERY)["w"]
    if not isinstance(packed, Packed):
        pytest.skip("this CPU has no kernel for packed weights")

    def loss(x: Tensor, w: Any) -> Tensor:
        return linear(x, w, None).sin().sum()

    torch.testing.assert_close(grad(loss)(x, packed), grad(loss)(x, w))
    by_packed, by_tensor = partial(loss, w=packed), partial(loss, w=w)
    for found, expected in ((by_packed, by_tensor), (grad(by_packed), grad(by_tensor))):
        torch.testing.assert_close(jvp(found, (x,), (x,))[1], jvp(expected, (x,), (x,))[1])
    tracked = x.clone().requires_grad_()
    (by_x,) = torch.autograd.grad(loss(tracked, packed), tracked)
    torch.testing.assert_close(by_x, grad(loss)(x, w))
    with pytest.raises(TypeError, match="packed weights are constants"):
        grad(loss, argnums=1)(x, packed)


@pytest.mark.parametrize("dtype", EPS, ids=str)
def test_packed_models_say_the_same(dtype: torch.dtype) -> None:
    params = tree.cast(gpt2.init(CONFIG, random.key(0)), dtype)
    fast, ids = pack(for_decoding(params)), torch.tensor([[3, 70, 0, 5, 5]])
    torch.testing.assert_close(
        gpt2.apply(fast, ids)[0], gpt2.apply(params, ids)[0], rtol=3e-2, atol=EPS[dtype]
    )
    if dtype == torch.float32:
        assert torch.equal(generate(gpt2.apply, fast, ids, 6), generate(gpt2.apply, params, ids, 6))
        adapted = lora(fast, random.key(3), rank=2)
        torch.testing.assert_close(gpt2.apply(adapted, ids)[0], gpt2.apply(fast, ids)[0])


def through_torch(x: Any) -> Any:
    torch.save(x, file := io.BytesIO())
    return torch.load(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("has_kernel", [True, False], ids=["this CPU", "one without the kernel"])
@pytest.mark.parametrize(
    "again",
    [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy, through_torch],
    ids=["pickle", "copy", "torch"],
)
def test_packed_weights_are_packed_again(
    again: Callable[[Any], Any], has_kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"w": torch.randn(24, 36), "output": {"table": torch.randn(50, 24)}}
    fast = pack(params, **EVERY)
    if not has_kernel:
        monkeypatch.setattr("fnlm.leaves.packed._has_kernel", lambda leaf: False)
    found = again(fast)
    assert tree.structure(found) == tree.structure(fast if has_kernel else params)
    for a, b in zip(tree.leaves(merge(found)), tree.leaves(params), strict=True):
        assert torch.equal(a, b)


def test_what_packed_weights_cannot_do_is_named() -> None:
    fast = pack({"w": torch.randn(24, 36)}, **EVERY)
    if not isinstance(fast["w"], Packed):
        pytest.skip("this CPU has no kernel for packed weights")
    for call in (
        lambda: tree.cast(fast, torch.float64),
        lambda: tree.to(fast, "meta"),
        lambda: tree.stack([fast, fast]),
    ):
        with pytest.raises(TypeError, match=r"packed weights .*: give fnlm.leaves.merge\(params\)"):
            call()


def test_wrong_requests_to_pack_are_named() -> None:
    with pytest.raises(ValueError, match="selects no leaf"):
        pack({"w": torch.ones(2, 3)}, where=lambda path, leaf: False)
    same = {"w": torch.ones(2, 3).double(), "v": torch.ones(3), "e": torch.ones(0, 2)}
    assert all(
        a is b for a, b in zip(tree.leaves(pack(same, **EVERY)), tree.leaves(same), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("heads", [1, 3])
def test_one_query_attends_as_many_do(heads: int, dtype: torch.dtype) -> None:
    q, k, v = (vector(2, heads, n, 5, dtype=dtype) for n in (1, 7, 7))
    mask = torch.tensor([True, True, False, True, True, True, True])
    parts = ((k[..., :3, :], k[..., 3:, :]), (v[..., :3, :], v[..., 3:, :]))
    wide = (q.double() @ k.double().mT / 5**0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    for keys, values in (parts, ((k,), (v,))):
        found = attend(q, keys, values, mask)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wide @ v.double(), rtol=2e-2, atol=1e-2)
    bias = torch.where(mask, 0.0, -1e4).to(dtype)
    torch.testing.assert_close(attend(q, (k,), (v,), bias), attend(q, *parts, mask))


# Fixed caches


def test_a_donated_cache_holds_what_a_new_one_would() -> None:
    params = gpt2.init(CONFIG, random.key(0))
    ids, token = torch.tensor([[3, 70, 0]]), torch.tensor([5])
    empty = gpt2.init_cache(params, 1, 9)
    with torch.no_grad():
        state = start(gpt2.apply, params, ids, empty)
        expected = advance(gpt2.apply, params, state, token)
        found = advance(gpt2.apply, params, state, token, donate=True)
    torch.testing.assert_close(found, expected)
    for old, new in zip(tree.leaves(state.cache), tree.leaves(found.cache), strict=True):
        assert old.data_ptr() == new.data_ptr()
    growing = start(gpt2.apply, params, ids)
    with pytest.raises(TypeError, match="only a FixedCache.*can be donated"):
        advance(gpt2.apply, params, growing, token, donate=True)


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_a_compiled_step_says_what_the_eager_one_does(bits: int) -> None:
    config = gpt2.Config(vocab_size=71, n_positions=24, n_embd=64, n_layer=1, n_head=2)
    params = tree.cast(gpt2.init(config, random.key(0)), torch.bfloat16 if bits else torch.float32)
    if bits:
        params = quantize(params, bits=bits, where=lambda path, x: x.ndim == 2)
    params = params if bits else for_decoding(params)

    @torch.compile(dynamic=False, backend="aot_eager")
    def step(params: Any, state: State, ids: Tensor) -> State:
        return advance(gpt2.apply, params, state, ids, donate=True)

    with torch.no_grad():
        state = start(gpt2.apply, params, torch.tensor([[3, 70]]), gpt2.init_cache(params, 1, 8))
        for token in (torch.tensor([5]), torch.tensor([6])):
            expected = advance(gpt2.apply, params, state, token)
            state = step(params, state, token)
            torch.testing.assert_close(state.logits, expected.logits, rtol=2e-2, atol=2e-2)
            torch.testing.assert_close(state.cache.length, expected.cache.length)


@pytest.mark.parametrize("bits", [0, 8])
def test_compiled_calls_of_some_tokens_go_on_as_generate_does(bits: int) -> None:
    torch.compiler.reset()
    config = gpt2.Config(vocab_size=71, n_positions=24, n_embd=64, n_layer=2, n_head=2)
    params = for_decoding(tree.map(lambda x: 4 * x, gpt2.init(config, random.key(0))))
    if bits:
        params = quantize(params, bits=bits, where=lambda path, x: x.ndim == 2)
    decode = partial(scan, gpt2.apply, steps=3, donate=True)
    compiled = torch.compile(decode, backend="aot_eager", fullgraph=True)
    ids, found = torch.tensor([[3, 70], [0, 9]]), []
    whole = generate(gpt2.apply, params, ids, 6)
    with torch.no_grad():
        state = start(gpt2.apply, params, ids, gpt2.init_cache(params, 2, 9))
        for _ in range(2):
            state, tokens = compiled(params, state)
            found.append(tokens)
    assert torch.equal(torch.cat(found, -1), whole)
    assert int(state.cache.length) == 8
    assert len(whole.unique()) > 2
