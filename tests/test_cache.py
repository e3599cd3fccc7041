"""The cache is a value: it grows by sharing, and nothing done with a successor shows in it."""

import copy
import math
import shutil
from itertools import pairwise
from typing import Any

import pytest
import torch
from families import GPT2, make_batch, make_params
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from fnlm import gpt2, tree
from fnlm.layers import kv_cache

N = GPT2.config.n_positions


def run(params: Any, ids: Tensor, cuts: list[int], cache: Any = None, mask: Any = None) -> Tensor:
    """Apply to consecutive pieces of ids, carrying the cache; return all logits."""
    pieces = []
    for a, b in pairwise([0, *cuts, ids.shape[-1]]):
        part = None if mask is None else mask[..., a:b]
        logits, cache = gpt2.apply(params, ids[..., a:b], cache, mask=part)
        pieces.append(logits)
    return torch.cat(pieces, -2)


def test_one_token_at_a_time_past_every_size_of_segment() -> None:
    config = gpt2.Config(vocab_size=11, n_positions=400, n_embd=6, n_layer=1, n_head=3)
    params = make_params(GPT2._replace(config=config))
    ids = torch.randint(11, (2, 400))
    with torch.no_grad():
        expected, _ = gpt2.apply(params, ids)
        found = run(params, ids, list(range(1, 400)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_an_old_cache_gives_bit_identical_logits_after_its_successors_moved_on() -> None:
    params = make_params(GPT2)
    ids, mask = make_batch(GPT2, 3, N)
    with torch.no_grad():
        caches = [gpt2.apply(params, ids[:, :5], mask=mask[:, :5])[1]]
        for t in range(5, 12):
            caches.append(gpt2.apply(params, ids[:, t : t + 1], caches[-1])[1])
        copies = copy.deepcopy(tree.map(torch.clone, caches))
        probe = ids[:, 12:15]
        before = [gpt2.apply(params, probe, cache)[0] for cache in caches]
        for cache in caches:  # every one of them forks, twice, and goes on
            for other in (ids[:, 13:14], ids[:, 20:24]):
                _, fork = gpt2.apply(params, other, cache)
                gpt2.apply(params, other, fork)
        after = [gpt2.apply(params, probe, cache)[0] for cache in caches]
    for a, b in zip(before, after, strict=True):
        assert a.equal(b)
    for cache, copied in zip(caches, copies, strict=True):
        for x, y in zip(tree.leaves(cache), tree.leaves(copied), strict=True):
            assert x.equal(y)


def memory(*caches: gpt2.Cache) -> int:
    """Bytes of memory that caches hold together."""
    storages = [x.untyped_storage() for x in tree.leaves([c.segments for c in caches])]
    return sum({x.data_ptr(): x.nbytes() for x in storages}.values())


def token_bytes(rows: int) -> int:
    return 2 * GPT2.config.n_layer * rows * GPT2.config.n_embd * 4  # keys and values, float32


def test_forks_share_the_memory_of_their_prefix() -> None:
    params = make_params(GPT2)
    with torch.no_grad():
        _, prefix = gpt2.apply(params, torch.randint(41, (1, 6)))
        _, prefix = gpt2.apply(params, torch.randint(41, (1, 1)), prefix)
        forks = [gpt2.apply(params, torch.tensor([[i % 41]]), prefix)[1] for i in range(50)]

    def pointers(cache: gpt2.Cache) -> list[int]:
        count = len(prefix.segments)
        return [x.data_ptr() for s in cache.segments[:count] for xs in s for x in xs]

    assert all(pointers(fork) == pointers(prefix) for fork in forks)
    assert len({fork.segments[-1].values[0].data_ptr() for fork in forks[1:]}) == 49
    assert memory(prefix, *forks) == (7 + 50) * token_bytes(1)


@pytest.mark.parametrize("new", [1, 3, 8, 12])
def test_a_prompt_is_shared_until_as_much_has_been_said_after_it(new: int) -> None:
    params = make_params(GPT2)
    with torch.no_grad():
        _, prompt = gpt2.apply(params, torch.randint(41, (2, 12)))
        forks = []
        for _ in range(9):
            fork = prompt
            for _ in range(new):
                _, fork = gpt2.apply(params, torch.randint(41, (2, 1)), fork)
            forks.append(fork)
    assert memory(prompt, *forks) == (12 + 9 * new) * token_bytes(2)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_segments_stay_few_and_tokens_are_copied_seldom(sizes: list[int]) -> None:
    """At most 1 + log2(tokens) segments, and no token copied more often than log2(tokens)."""
    cache: Any = None
    copied: dict[int, int] = {}
    total = 0
    for size in sizes:
        new = torch.arange(total, total + size, dtype=torch.float32).view(1, 1, size, 1)
        before = {x.data_ptr() for x in tree.leaves(cache.segments)} if cache else set()
        old = cache
        cache = kv_cache.append(cache, (new,), (new,), torch.ones(1, size, dtype=torch.bool))
        total += size
        assert torch.cat(kv_cache.past(cache, 0)[0], -2).flatten().tolist() == list(range(total))
        for segment in cache.segments:
            if old is not None and segment.keys[0].data_ptr() not in before | {new.data_ptr()}:
                for token in segment.keys[0].flatten().int().tolist():
                    copied[token] = copied.get(token, 0) + 1
        assert len(cache.segments) <= 1 + math.log2(total)
    assert max(copied.values(), default=0) <= math.log2(total)


@pytest.mark.parametrize("tokens", range(10))
def test_truncate_equals_a_fresh_prefill(tokens: int) -> None:
    params = make_params(GPT2)
    ids, _ = make_batch(GPT2, 2, 12)
    with torch.no_grad():
        _, cache = gpt2.apply(params, ids[:, :6])
        _, cache = gpt2.apply(params, ids[:, 6:9], cache)
        cut = kv_cache.truncate(cache, tokens)
        found, _ = gpt2.apply(params, ids[:, 9:], cut)
        expected, _ = gpt2.apply(params, torch.cat([ids[:, :tokens], ids[:, 9:]], 1))
    torch.testing.assert_close(found, expected[:, tokens:], atol=1e-5, rtol=1e-5)
    assert kv_cache.length(cut) == tokens and kv_cache.length(cache) == 9


def test_truncate_names_the_limit() -> None:
    _, cache = gpt2.apply(make_params(GPT2), torch.zeros(1, 4).long())
    for tokens in (-1, 5):
        with pytest.raises(ValueError, match=f"from 0 to 4.*got {tokens}"):
            kv_cache.truncate(cache, tokens)


def test_take_rows_reorders_hypotheses() -> None:
    params = make_params(GPT2)
    ids, mask = make_batch(GPT2, 3, 9)
    rows = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        _, cache = gpt2.apply(params, ids[:, :5], mask=mask[:, :5])
        _, cache = gpt2.apply(params, ids[:, 5:6], cache)
        found, _ = gpt2.apply(params, ids[rows, 6:], kv_cache.take_rows(cache, rows))
        expected, _ = gpt2.apply(params, ids[:, 6:], cache)
    torch.testing.assert_close(found, expected[rows], atol=1e-5, rtol=1e-5)


def test_a_saved_and_reloaded_cache_goes_on_bit_for_bit(tmp_path: Any) -> None:
    from safetensors.torch import load_file, save_file

    params = make_params(GPT2)
    ids, _ = make_batch(GPT2, 2, 9)
    with torch.no_grad():
        _, cache = gpt2.apply(params, ids[:, :4])
        _, cache = gpt2.apply(params, ids[:, 4:6], cache)
        named = {k: v.contiguous() for k, v in tree.named_leaves(cache)}
        save_file(named, tmp_path / "cache.safetensors")
        tensors = load_file(tmp_path / "cache.safetensors")
        again = tree.map_with_path(lambda path, _: tensors[path], cache)
        torch.save(cache, tmp_path / "cache.pt")
        expected, _ = gpt2.apply(params, ids[:, 6:], cache)
        found, _ = gpt2.apply(params, ids[:, 6:], again)
    assert found.equal(expected)


def test_vmap_over_caches_equals_the_batch() -> None:
    params = make_params(GPT2)
    ids, mask = make_batch(GPT2, 3, 12)
    with torch.no_grad():
        _, cache = gpt2.apply(params, ids[:, :6], mask=mask[:, :6])
        _, cache = gpt2.apply(params, ids[:, 6:8], cache)
        expected, after = gpt2.apply(params, ids[:, 8:9], cache)
        step = vmap(gpt2.apply, in_dims=(None, 0, 0))
        found, mapped = step(params, ids[:, 8:9], cache)
        again, _ = step(params, ids[:, 9:], mapped)
        last, _ = gpt2.apply(params, ids[:, 9:], after)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, last, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fixed", [False, True])
def test_gradient_through_cached_chunks_equals_one_pass(fixed: bool) -> None:
    params = make_params(GPT2)
    ids, _ = make_batch(GPT2, 2, 9)

    def chunked(p: Any) -> Tensor:
        start = gpt2.init_cache(p, 2, 12) if fixed else None
        return run(p, ids, [4, 5], start).sin().mean()

    expected = grad(lambda p: gpt2.apply(p, ids)[0].sin().mean())(params)
    for a, b in zip(tree.leaves(grad(chunked)(params)), tree.leaves(expected), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_ordinary_autograd_through_a_cache() -> None:
    params = tree.map(lambda x: x.requires_grad_(), make_params(GPT2))
    ids, _ = make_batch(GPT2, 2, 9)
    run(params, ids, [3, 4, 5, 6]).sin().mean().backward()
    expected = grad(lambda p: gpt2.apply(p, ids)[0].sin().mean())(tree.map(Tensor.detach, params))
    for a, b in zip(tree.leaves(params), tree.leaves(expected), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b, atol=1e-6, rtol=1e-5)
        else:
            assert not b.any()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on CPU needs g++")
def test_one_compilation_serves_a_whole_decoding() -> None:
    params = make_params(GPT2)
    ids, mask = make_batch(GPT2, 2, N)
    compilations = 0

    def backend(module: Any, inputs: Any) -> Any:
        nonlocal compilations
        compilations += 1
        return torch._inductor.compile(module, inputs)

    step = torch.compile(gpt2.apply, fullgraph=True, backend=backend)
    with torch.no_grad():
        expected, _ = gpt2.apply(params, ids)
        cache, found = gpt2.init_cache(params, 2, N), []
        for t in range(N):
            logits, cache = step(params, ids[:, t : t + 1], cache)
            found.append(logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-5, rtol=1e-5)
    assert compilations == 1


def test_a_full_fixed_cache_says_so() -> None:
    params = make_params(GPT2)
    cache = gpt2.init_cache(params, 1, 4)
    with pytest.raises(ValueError, match="capacity 4"):
        gpt2.apply(params, torch.zeros(1, 5).long(), cache)
    _, cache = gpt2.apply(params, torch.zeros(1, 3).long(), cache)
    with pytest.raises(ValueError, match="capacity 4"):
        gpt2.apply(params, torch.zeros(1, 2).long(), cache)


@pytest.mark.parametrize(
    "change", [{"n_layer": 3}, {"n_head": 4}, {"n_embd": 48}], ids=lambda c: next(iter(c))
)
def test_a_cache_of_another_model_is_refused(change: dict[str, int]) -> None:
    config = gpt2.Config.from_dict(GPT2.config.to_dict() | change)
    other = make_params(GPT2._replace(config=config))
    ids = torch.zeros(2, 3).long()
    _, cache = gpt2.apply(other, ids)
    with pytest.raises(ValueError, match="cache is for"):
        gpt2.apply(make_params(GPT2), ids, cache)


def test_a_cache_of_another_batch_is_refused() -> None:
    params = make_params(GPT2)
    _, cache = gpt2.apply(params, torch.zeros(2, 3).long())
    with pytest.raises(ValueError, match="made for this batch"):
        gpt2.apply(params, torch.zeros(3, 1).long(), cache)


def test_cached_tokens_count_against_the_position_limit() -> None:
    params = make_params(GPT2)
    _, cache = gpt2.apply(params, torch.zeros(1, N).long())
    with pytest.raises(ValueError, match=f"{N + 1} tokens.*n_positions={N}"):
        gpt2.apply(params, torch.zeros(1, 1).long(), cache)
