"""Continuous batching: each request has the tokens that `generate` gives it by itself."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from families import GPT, GPT2, TRANSFO_XL, make_params
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.generate import Pool, Request, admit, generate, serve, step
from fnlm.layers import kv_cache

KEY = random.key(5)
FAMILIES = {"gpt": GPT, "gpt2": GPT2, "transfo_xl": TRANSFO_XL}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"key": KEY},
    {"key": KEY, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical": 0.99},
]


def wide(name: str, seed: int = 3, std: float = 0.25) -> tuple[Any, Any]:
    """Module, and parameters far from ties."""
    family = FAMILIES[name]
    params = family.module.init(family.config, random.key(seed))
    matrices = {path for path, x in tree.named_leaves(params) if x.ndim == 2}
    return family.module, tree.map_with_path(
        lambda path, x: x * (std / 0.02) if path in matrices else x, params
    )


def requests(sizes: list[tuple[int, int]]) -> list[Request]:
    """Requests of prompts and texts of these lengths."""
    ids = [(random.uniform(random.key(i), (n,)) * 40).long() for i, (n, _) in enumerate(sizes)]
    return [Request(x, new) for x, (_, new) in zip(ids, sizes, strict=True)]


SIZES = [(5, 9), (1, 3), (11, 13), (2, 1), (7, 0), (3, 17), (1, 1), (4, 8), (23, 1), (6, 6)]


def alone(apply: Any, params: Any, asked: list[Request], **settings: Any) -> list[list[int]]:
    """The tokens of each request by itself, up to eos."""
    texts = []
    key, ends = settings.pop("key", None), settings.pop("eos", [])
    for number, (ids, new) in enumerate(asked):
        each = None if key is None else random.fold_in(key, number)
        text = generate(apply, params, ids, new, key=each, **settings).tolist()
        stop = [n for n, token in enumerate(text) if token in ends]
        texts.append(text[: stop[0] + 1] if stop else text)
    return texts


@pytest.mark.parametrize("rows", [1, 2, 4, 99])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(s) or "greedy")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_request_has_the_tokens_it_has_alone(
    name: str, settings: dict[str, Any], rows: int
) -> None:
    family, params = wide(name)
    asked = requests(SIZES)
    wanted = alone(family.apply, params, asked, **settings)
    assert len({tuple(text) for text in wanted}) >= 8
    for ends in ([], [wanted[0][2], wanted[5][6]]):
        cut = alone(family.apply, params, asked, eos=ends, **settings)
        found = list(serve(family.apply, params, asked, rows=rows, eos=ends, **settings))
        assert sorted(number for number, _ in found) == list(range(len(asked)))
        assert all(tokens.tolist() == cut[number] for number, tokens in found)
        assert rows == 1 or [number for number, _ in found] != sorted(n for n, _ in found)


def test_rows_of_a_batch_of_generate_are_the_requests() -> None:
    family, params = wide("gpt2")
    ids = (random.uniform(random.key(1), (4, 6)) * 40).long()
    whole = generate(family.apply, params, ids, 7, key=KEY)
    texts = serve(family.apply, params, [Request(row, 7) for row in ids], rows=3, key=KEY)
    assert torch.equal(torch.stack([tokens for _, tokens in sorted(texts)]), whole)


def test_neighbours_change_no_bit_where_the_model_changes_none() -> None:
    """Of a table's rows, which no company changes: equal logits are equal draws."""
    logits = random.normal(KEY, (30, 30)) * 2

    def apply(params: Tensor, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        return params[ids], None

    asked = [Request(torch.tensor([i]), 5 + i) for i in range(12)]
    for settings in SETTINGS:
        wanted = alone(apply, logits, asked, **settings)
        for rows in (1, 3, 12):
            found = serve(apply, logits, asked, rows=rows, **settings)
            assert {number: x.tolist() for number, x in found} == dict(enumerate(wanted))


def test_a_pool_is_a_value_and_its_cache_as_long_as_its_longest_row() -> None:
    family, params = wide("gpt2")
    asked = requests([(9, 3), (2, 9), (4, 7)])
    pool: Pool | None = None
    for number, request in enumerate(asked):
        before = pool, tree.map(torch.clone, pool) if pool else None
        pool = admit(family.apply, params, pool, request, number, prefill=family.hidden_states)
        for a, b in zip(tree.leaves(before[0]), tree.leaves(before[1]), strict=True):
            assert a is b or torch.equal(a, b), "the earlier pool stays"
    assert pool is not None
    lengths, kept, old = [], tree.map(torch.clone, pool), pool
    while len(pool.numbers):
        lengths.append(kv_cache.length(pool.state.cache))
        pool, _ = step(family.apply, params, pool, key=KEY)
    assert lengths == [9, 10, 11, 7, 8, 9, 10, 9, 10]
    for a, b in zip(tree.leaves(kept), tree.leaves(old), strict=True):
        assert torch.equal(a, b)
    again, twice = step(family.apply, params, old), step(family.apply, params, old)
    assert torch.equal(again[0].tokens, twice[0].tokens)
    empty, completions = step(family.apply, params, pool)
    assert not len(empty.numbers) and completions == ()


def test_requests_are_taken_when_a_row_is_free() -> None:
    family, params = wide("gpt2")
    taken: list[int] = []

    def endless() -> Iterator[Request]:
        while True:
            taken.append(len(taken))
            yield Request(torch.tensor([len(taken)]), 2 + len(taken) % 3)

    texts = serve(family.apply, params, endless(), rows=3)
    for count in range(1, 8):
        number, tokens = next(texts)
        assert torch.is_grad_enabled()
        assert len(tokens) == 2 + (number + 1) % 3
        assert count + 2 <= len(taken) <= count + 5


def test_mistakes_name_the_request() -> None:
    family, params = wide("gpt2")
    good = Request(torch.tensor([1, 2]), 3)
    cases: list[tuple[Any, type[Exception], str]] = [
        (Request(torch.tensor([1, 41]), 3), IndexError, "request 1: .*41"),
        (Request(torch.tensor([1.0]), 3), TypeError, "request 1: ids must be .*integers"),
        (Request(torch.tensor([[1], [2]]), 3), ValueError, r"request 1: ids .* got \[2, 1\]"),
        (Request(torch.zeros(0).long(), 3), ValueError, "request 1: the prompt is empty"),
        (Request(torch.tensor([1, 2]), 23), ValueError, "request 1: .*n_positions=24"),
        (Request(torch.tensor([1]), -1), ValueError, "request 1: max_new_tokens"),
        ((torch.tensor([1]), 4), TypeError, "request 1: a request must be a Request"),
    ]
    for request, error, message in cases:
        with pytest.raises(error, match=message):
            list(serve(family.apply, params, [good, request], rows=2))
    settings: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"rows": 0}, ValueError, "rows must be at least 1, got 0"),
        ({"temperature": 0.5}, ValueError, "needs a key"),
        ({"key": random.split(KEY)}, ValueError, r"\[2\]: give one"),
        ({"key": KEY, "top_p": 2.0}, ValueError, "top_p must be"),
        ({"eos": "x"}, TypeError, "eos must be a whole number"),
    ]
    for change, error, message in settings:
        with pytest.raises(error, match=message):
            serve(family.apply, params, [good], **{"rows": 2} | change)
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1 to enter"):
        admit(family.apply, params, None, Request(torch.tensor([1]), 0), 0)

    def fixed(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        return gpt2.apply(params, ids, cache or gpt2.init_cache(params, len(ids), 24))

    with pytest.raises(TypeError, match="rows of a FixedCache have one length"):
        list(serve(fixed, params, [good, good], rows=2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_without_a_distribution_name_the_request(value: float) -> None:
    def counts(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        logits = 9 * torch.nn.functional.one_hot((ids + 1) % 20, 20).float()
        wrong = (ids == 12).unsqueeze(-1) & (torch.arange(20) < (20 if value < 0 else 1))
        return logits.masked_fill(wrong, value), None

    asked = [Request(torch.tensor([n]), 4) for n in (0, 1, 9, 2)]
    with pytest.raises(ValueError, match=r"of new token 3 .* rows \[2\]"):
        list(serve(counts, {}, asked, rows=3))


def test_a_diverged_model_writes_nothing() -> None:
    params = make_params(GPT2)
    params["embed"]["token"][3] = float("nan")
    with pytest.raises(ValueError, match=r"of new token 0 .* rows \[0, 1\], where they hold NaN"):
        list(serve(gpt2.apply, params, requests([(3, 2), (4, 2)]), rows=2))
