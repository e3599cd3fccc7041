"""A cache is a value for autograd, threads, inference mode, files and every transform."""

import copy
import io
import os
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from families import GPT2, TRANSFO_XL, make_batch, make_params
from torch import Tensor
from torch.func import grad, jvp, linearize, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from fnlm import gpt2, transfo_xl, tree
from fnlm.generate import State
from fnlm.layers import cache as kv

FULL = os.environ.get("FNLM_TEST_FULL", "0") != "0"
PARAMS = make_params(GPT2)
IDS, MASK = make_batch(GPT2, 3, 14)
WAY = make_params(GPT2, seed=5)
AXES: dict[str, Any] = {"cache": 0, "fixed": kv.FixedCache._make(((0, 0), (0, 0), 0, None))}
KINDS = pytest.mark.parametrize("kind", AXES)
TARGETS = "embed", "blocks", "norm"  # parts of the parameters that the logits depend on


def made(kind: str, tokens: int = 6, params: Any = PARAMS) -> Any:
    """A cache of the first tokens, the last of which was read by itself."""
    cache = gpt2.init_cache(params, 3, 14) if kind == "fixed" else None
    for part in (slice(tokens - 1), slice(tokens - 1, tokens)):
        _, cache = gpt2.apply(params, IDS[:, part], cache, mask=MASK[:, part])
    return cache


def score(params: Any, ids: Tensor, cache: Any) -> Tensor:
    return gpt2.apply(params, ids, cache)[0].sin().sum()


def gradients(total: Tensor, learned: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, tree.leaves([learned[name] for name in TARGETS]))


def learnable(params: Any = PARAMS) -> Any:
    return tree.map(lambda x: x.clone().requires_grad_(), params)


def close(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


def memory(*values: Any) -> int:
    """Bytes of memory that trees of tensors hold together."""
    storages = [x.untyped_storage() for x in tree.leaves(values)]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


# What one fork does shows in no other's graph.


@KINDS
@pytest.mark.parametrize("most", [1, 2, 7])
def test_backward_after_siblings_have_grown(kind: str, most: int) -> None:
    learned = learnable()
    with torch.no_grad():
        cache = made(kind)
    expected = gradients(score(learned, IDS[:, 6:9], tree.map(torch.clone, cache)), learned)
    total = score(learned, IDS[:, 6:9], cache)
    with torch.no_grad():
        for size in range(1, most + 1):
            _, fork = gpt2.apply(PARAMS, IDS[:, :size], cache)
            gpt2.apply(PARAMS, IDS[:, :1], fork)
    close(gradients(total, learned), expected)


@KINDS
def test_one_loss_through_forks_of_forks(kind: str) -> None:
    learned = learnable()
    cache = gpt2.init_cache(PARAMS, 3, 14) if kind == "fixed" else None
    parts = []
    for t in range(12):
        logits, grown = gpt2.apply(learned, IDS[:, t : t + 1], cache)
        with torch.no_grad():
            for before in (cache, grown):
                gpt2.apply(PARAMS, IDS[:, :2], before)
        parts.append(logits)
        cache = grown
    expected = gradients(gpt2.apply(learned, IDS[:, :12])[0].sin().sum(), learned)
    close(gradients(torch.cat(parts, 1).sin().sum(), learned), expected, 1e-4)


# Threads.


@contextmanager
def often_switching() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def test_threads_that_fork_one_cache_get_their_own_tokens() -> None:
    """Eight threads append to the same cache, each its own number, and look at what they got."""
    threads, layers, shape = 8, 2, (1, 1, 1, 2)
    rounds = 20_000 if FULL else 400
    real = torch.ones(1, 1, dtype=torch.bool)
    gate, foreign, shared = threading.Barrier(threads), set(), {}

    def tokens(number: int) -> tuple[Tensor, ...]:
        return tuple(torch.full(shape, float(number)) for _ in range(layers))

    def work(number: int) -> None:
        own = tokens(number)
        for n in range(rounds):
            if number == 0:
                begun: Any = kv.append(None, tokens(-1), tokens(-1), real)
                shared["cache"] = kv.append(begun, tokens(-2), tokens(-2), real)
            gate.wait(60)
            fork = kv.append(shared["cache"], own, own, real)
            gate.wait(60)
            seen = [torch.cat(x, -2) for layer in range(layers) for x in kv.past(fork, layer)]
            if not all(x[0, 0, :, 0].tolist() == [-1, -2, number] for x in seen):
                foreign.add(n)

    with often_switching():
        running = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
    assert not gate.broken and not foreign, f"a foreign token in {len(foreign)} of {rounds} rounds"


# Inference mode.

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "gradients": torch.enable_grad,
    "inference": torch.inference_mode,
}


def per_example(params: Any, kind: str, cache: Any) -> Any:
    return vmap(grad(score), (None, 0, AXES[kind]))(params, IDS[:, 6:9], cache)


USES: dict[str, Callable[[str, Any], Any]] = {
    "apply": lambda kind, cache: gpt2.apply(PARAMS, IDS[:, 6:9], cache)[0],
    "grow": lambda kind, cache: gpt2.apply(
        PARAMS, IDS[:, 7:9], gpt2.apply(PARAMS, IDS[:, 6:7], cache)[1]
    )[0],
    "grad": lambda kind, cache: grad(score)(PARAMS, IDS[:, 6:9], cache),
    "jvp": lambda kind, cache: jvp(lambda p: score(p, IDS[:, 6:9], cache), (PARAMS,), (WAY,)),
    "jvp of grad": lambda kind, cache: jvp(
        lambda p: grad(score)(p, IDS[:, 6:9], cache), (PARAMS,), (WAY,)
    ),
    "vmap of grad": lambda kind, cache: per_example(PARAMS, kind, cache),
    "grad by the cache": lambda kind, cache: grad(
        lambda values: score(PARAMS, IDS[:, 6:9], cache._replace(**{cache._fields[0]: values}))
    )(cache[0]),
}


@KINDS
@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("mode", MODES)
def test_a_cache_of_inference_mode_is_a_cache(mode: str, use: str, kind: str) -> None:
    with torch.inference_mode():
        cache = made(kind)
    assert cache.valid.is_inference()
    expected = USES[use](kind, made(kind))
    with MODES[mode]():
        close(USES[use](kind, cache), expected)


@KINDS
def test_backward_beside_a_cache_of_inference_mode(kind: str) -> None:
    learned = learnable()
    with torch.inference_mode():
        cache = made(kind)
    close(
        gradients(score(learned, IDS[:, 6:9], cache), learned),
        gradients(score(learned, IDS[:, 6:9], made(kind)), learned),
    )


def test_mems_of_inference_mode_are_mems() -> None:
    params = make_params(TRANSFO_XL)
    learned = learnable(params)
    with torch.inference_mode():
        _, mems = transfo_xl.apply(params, IDS[:, :6])
    _, plain = transfo_xl.apply(params, IDS[:, :6])
    found, expected = (
        torch.autograd.grad(
            transfo_xl.apply(learned, IDS[:, 6:], m)[0].sin().sum(), tree.leaves(learned["blocks"])
        )
        for m in (mems, plain)
    )
    close(found, expected)


# Files and copies hold what is seen, and nothing else.


def forked() -> Any:
    cache = made("cache")
    gpt2.apply(PARAMS, IDS[:, 9:11], cache)
    return cache


def mems_of(tokens: int) -> transfo_xl.Mems:
    return transfo_xl.apply(make_params(TRANSFO_XL), IDS[:, :tokens])[1]


VALUES: dict[str, Callable[[], Any]] = {
    "cache": forked,
    "cache of one row and token": lambda: gpt2.apply(PARAMS, IDS[:1, :1])[1],
    "cache cut in a segment": lambda: kv.truncate(forked(), 3),
    "chosen rows": lambda: kv.take_rows(forked(), torch.tensor([1])),
    "a slice of rows": lambda: tree.map(lambda x: x[:1], forked()),
    "segment": lambda: kv.truncate(forked(), 3).segments[0],
    "cache without tokens": lambda: kv.truncate(forked(), 0),
    "fixed cache": lambda: made("fixed"),
    "mems": lambda: mems_of(13),
    "state": lambda: State(kv.truncate(forked(), 3), gpt2.apply(PARAMS, IDS)[0][:, -1]),
}


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("name", VALUES)
def test_files_and_copies_hold_the_visible_values_only(name: str) -> None:
    with torch.no_grad():
        value = VALUES[name]()
    clone = tree.map(lambda x: x.clone(memory_format=torch.contiguous_format), value)
    content = saved(value)
    assert abs(len(content) - len(saved(clone))) <= 64 * len(tree.leaves(value))
    assert len(pickle.dumps(value)) <= len(pickle.dumps(clone)) + 16 * len(tree.leaves(value))
    again = torch.load(io.BytesIO(content))  # weights_only, as by default
    for back in (again, pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert type(back) is type(value) and memory(back) == memory(clone)
        assert all(a.equal(b) for a, b in zip(tree.leaves(back), tree.leaves(value), strict=True))


@pytest.mark.parametrize("tokens", [1, 2, 5, 13])
def test_a_grown_cache_owns_its_memory_exactly(tokens: int) -> None:
    """So even a list of its tensors, saved, holds neither tokens of forks nor spare memory."""
    with torch.no_grad():
        _, cache = gpt2.apply(PARAMS, IDS[:1, :1])
        for t in range(1, tokens):
            gpt2.apply(PARAMS, IDS[:1, :3], cache)
            _, cache = gpt2.apply(PARAMS, IDS[:1, t : t + 1], cache)
    assert all(x.untyped_storage().nbytes() == x.nbytes for x in tree.leaves(cache))


def test_forks_saved_together_stay_one_memory() -> None:
    with torch.no_grad():
        cache = made("cache", 12)
        forks = [gpt2.apply(PARAMS, IDS[:, :1], cache)[1] for _ in range(4)]
    again = torch.load(io.BytesIO(saved(forks)))
    assert memory(again) == memory(forks) < 2 * memory(forks[0])


# Transforms.


@KINDS
def test_decoding_is_differentiated_like_one_pass(kind: str) -> None:
    """In forward mode, forward over reverse, and with the cache as what leaves the transform."""

    def chunked(params: Any) -> tuple[Tensor, Any]:
        cache: Any = gpt2.init_cache(params, 3, 14) if kind == "fixed" else None
        parts = []
        for start, stop in ((0, 4), (4, 5), (5, 6), (6, 10)):
            logits, cache = gpt2.apply(params, IDS[:, start:stop], cache)
            parts.append(logits)
        return torch.cat(parts, 1).sin().sum(), cache

    def whole(params: Any) -> tuple[Tensor, Any]:
        logits, cache = gpt2.apply(params, IDS[:, :10])
        return logits.sin().sum(), cache

    def both(fn: Any) -> Any:
        return jvp(lambda p: grad(fn, has_aux=True)(p)[0], (PARAMS,), (WAY,))

    forward = [jvp(lambda p, fn=fn: fn(p)[0], (PARAMS,), (WAY,)) for fn in (chunked, whole)]
    close(forward[0], forward[1])
    close(both(chunked), both(whole), 1e-3)
    _, cache = grad(chunked, has_aux=True)(PARAMS)
    _, other = grad(whole, has_aux=True)(PARAMS)
    after = [gpt2.apply(PARAMS, IDS[:, 10:], c)[0] for c in (cache, other)]
    close(after[0], after[1])


@KINDS
def test_vmap_over_forks_equals_the_loop(kind: str) -> None:
    cache = made(kind)
    words = torch.arange(5)
    forks = vmap(lambda word: gpt2.apply(PARAMS, word.expand(3, 1), cache))(words)
    for n, word in enumerate(words):
        logits, fork = gpt2.apply(PARAMS, word.expand(3, 1), cache)
        close(tree.map(lambda x, n=n: x[n], forks[0]), logits)
        own = tree.map(lambda x, n=n: x[n], forks[1])
        following = [gpt2.apply(PARAMS, IDS[:, 7:9], c)[0] for c in (own, fork)]
        close(following[0], following[1])


@KINDS
# What torch's linearize says of any constant tensor in the function that it traces.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
def test_a_call_with_a_cache_is_linearized(kind: str) -> None:
    cache = made(kind)

    def run(params: Any) -> Tensor:
        return gpt2.apply(params, IDS[:, 6:9], cache)[0]

    close(linearize(run, PARAMS)[1](WAY), jvp(run, (PARAMS,), (WAY,))[1])


@KINDS
@pytest.mark.parametrize("by", ["parameters", "cache"])
def test_a_call_with_a_cache_is_traced(by: str, kind: str) -> None:
    cache = made(kind)
    place = PARAMS if by == "parameters" else cache
    like = tree.structure(place)

    def run(*leaves: Tensor) -> Any:
        given = tree.unflatten(like, leaves)
        pair = (given, cache) if by == "parameters" else (PARAMS, given)
        return tree.leaves(gpt2.apply(pair[0], IDS[:, 6:9], pair[1]))

    traced: Any = make_fx(run)(*tree.leaves(place))
    close(traced(*tree.leaves(place)), run(*tree.leaves(place)))


@KINDS
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of torch 2.12's load
def test_a_program_that_takes_and_gives_a_cache_is_exported(kind: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, ids: Tensor, cache: Any) -> Any:
            return gpt2.apply(PARAMS, ids, cache)

    cache, file = made(kind), io.BytesIO()
    torch.export.save(torch.export.export(Model(), (IDS[:, 6:9], cache)), file)
    file.seek(0)
    logits, grown = torch.export.load(file).module()(IDS[:, 6:9], cache)
    expected, after = gpt2.apply(PARAMS, IDS[:, 6:9], cache)
    assert type(grown) is type(after)
    close((logits, grown), (expected, after))
