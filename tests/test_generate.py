"""Greedy decoding and sampling, against `transformers`, the reference distribution, themselves."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers import hf, quiet
from scipy import stats
from torch import Tensor
from torch.func import vmap

from fnlm import generate as decoding
from fnlm import gpt2, random, tree
from fnlm.generate import generate, sample, scan, start, stream

CONFIG = gpt2.Config(vocab_size=61, n_positions=40, n_ctx=40, n_embd=36, n_layer=2, n_head=3)


def wide_params(seed: int, config: gpt2.Config = CONFIG, std: float = 0.3) -> Any:
    """Random weights so large that no two words come near a tie."""
    params = gpt2.init(config, random.key(seed))
    return tree.map(lambda x: x * (std / config.initializer_range) if x.ndim == 2 else x, params)


def peer_of(params: Any, directory: Any) -> Any:
    gpt2.save(params, directory)
    with quiet():
        return hf().GPT2LMHeadModel.from_pretrained(directory).eval()


def peer_generate(peer: Any, ids: Tensor, mask: Tensor | None, new: int, **kwargs: Any) -> Any:
    with quiet():
        return peer.generate(
            ids,
            attention_mask=torch.ones_like(ids) if mask is None else mask,
            max_new_tokens=new,
            return_dict_in_generate=True,
            **{"pad_token_id": 0, "eos_token_id": None, "do_sample": False} | kwargs,
        )


def prompts(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(CONFIG.vocab_size, (rows, length), generator=generator)


def padded(rows: list[Tensor], side: str, extra: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one batch and its mask; the padding is a word like any other."""
    width = max(len(row) for row in rows) + extra
    ids = torch.full((len(rows), width), 7)
    mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, where], mask[i, where] = row, 1
    return ids, mask


@pytest.mark.parametrize("seed", range(3))
def test_greedy_equals_transformers(seed: int, tmp_path: Any) -> None:
    params = wide_params(seed)
    peer = peer_of(params, tmp_path)
    ids = prompts(3, 7, seed)
    expected = peer_generate(peer, ids, None, 25).sequences[:, 7:]
    found = generate(gpt2.apply, params, ids, 25)
    assert torch.equal(found, expected)
    assert len(set(found.flatten().tolist())) > 10, "the text must not be one repeated word"
    assert torch.equal(generate(gpt2.apply, params, ids, 25, prefill=gpt2.hidden_states), expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_greedy_on_padded_batches_equals_transformers(side: str, tmp_path: Any) -> None:
    params = wide_params(3)
    peer = peer_of(params, tmp_path)
    rows = [prompts(1, n, n)[0] for n in (5, 1, 9)]
    ids, mask = padded(rows, "left")
    expected = peer_generate(peer, ids, mask, 20).sequences[:, ids.shape[1] :]
    ids, mask = padded(rows, side, extra=2)
    assert torch.equal(generate(gpt2.apply, params, ids, 20, mask=mask), expected)
    by_prefill = generate(gpt2.apply, params, ids, 20, mask=mask, prefill=gpt2.hidden_states)
    assert torch.equal(by_prefill, expected)


def test_end_tokens_and_penalty_equal_transformers(tmp_path: Any) -> None:
    params = wide_params(5)
    peer = peer_of(params, tmp_path)
    ids = prompts(4, 6)
    free = generate(gpt2.apply, params, ids, 20)
    ends = [int(free[0, 3]), int(free[1, 8])]
    expected = peer_generate(peer, ids, None, 20, eos_token_id=ends, pad_token_id=9).sequences
    found = generate(gpt2.apply, params, ids, 20, eos=ends, pad=9)
    width = expected.shape[1] - 6
    assert torch.equal(found[:, :width], expected[:, 6:])
    assert (found[:, width:] == 9).all()
    for row in found[:2].tolist():
        last = min(row.index(end) for end in ends if end in row)
        assert last < 9 and row[last + 1 :] == [9] * (19 - last)
    expected = peer_generate(peer, ids, None, 20, repetition_penalty=1.7).sequences[:, 6:]
    found = generate(gpt2.apply, params, ids, 20, repetition_penalty=1.7)
    assert torch.equal(found, expected)
    assert not torch.equal(found, free)


def test_all_rows_ended_stops_and_fills() -> None:
    calls = []

    def counts(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Tensor]:
        calls.append(ids.shape)
        return torch.nn.functional.one_hot((ids + 1) % 6, 6).float(), ids

    ids = torch.tensor([[3], [1]])
    assert generate(counts, {}, ids, 50, eos=4).tolist() == [[4] * 50, [2, 3] + [4] * 48]
    assert len(calls) == 3, "the model runs until the last row has ended"
    steps = list(stream(counts, {}, ids, 50, eos=4, pad=-1))
    assert torch.stack(steps, 1).tolist() == [[4, -1, -1], [2, 3, 4]]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 5},
    {"top_p": 0.8},
    {"temperature": 1.4, "top_k": 9, "top_p": 0.7, "repetition_penalty": 1.2},
]


def reference(logits: Tensor, temperature: float = 1, top_k: int = 0, top_p: float = 1) -> Tensor:
    """The distribution by hand, word by word in float64: [V]."""
    p = (logits.double() / temperature).softmax(0).tolist()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    order = order[: top_k or None]
    total, kept = sum(p[i] for i in order), 0.0
    result = torch.zeros(len(p), dtype=torch.float64)
    for i in order:
        if kept >= top_p:
            break
        kept += p[i] / total
        result[i] = p[i]
    return result / result.sum()


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=str)
def test_frequencies_follow_the_distribution(settings: dict[str, Any]) -> None:
    draws, words = 20_000, 12
    logits = torch.linspace(-1.2, 1.2, words)[torch.arange(words) * 5 % words]
    expected = reference(logits, **settings) * draws
    drawn = sample(
        logits.expand(draws, words), random.split(random.key(1), draws), **settings
    ).bincount(minlength=words)
    possible = expected > 0
    assert drawn[~possible].sum() == 0
    assert expected[possible].min() > 20, "the test needs counts in every bin"
    assert stats.chisquare(drawn[possible], expected[possible]).pvalue > 1e-3


def test_frequencies_of_a_model_follow_the_distribution() -> None:
    """The second new token, given the first, over many rows with one key."""
    params = wide_params(2, std=0.12)
    draws = 6000
    out = generate(gpt2.apply, params, prompts(1, 4).expand(draws, 4), 2, key=random.key(3))
    first = int(out[:, 0].mode().values)
    given = out[out[:, 0] == first, 1]
    ids = torch.cat([prompts(1, 4), torch.tensor([[first]])], 1)
    p = gpt2.apply(params, ids)[0][0, -1].double().softmax(0)
    common = p * len(given) >= 10
    observed = given.bincount(minlength=CONFIG.vocab_size)
    counts = torch.cat([observed[common], observed[~common].sum()[None]])
    expected = torch.cat([p[common], p[~common].sum()[None]]) * len(given)
    assert len(given) > 200 and common.sum() > 4
    assert stats.chisquare(counts, expected).pvalue > 1e-3


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_rows_depend_on_nothing_but_themselves(settings: dict[str, Any]) -> None:
    """The same tokens alone, unbatched, in batches of any company, order and padding."""
    params = wide_params(4, std=0.15)
    rows = [prompts(1, n, n)[0] for n in (6, 1, 11, 4)]
    keys = random.split(random.key(8), len(rows))
    alone = [
        generate(gpt2.apply, params, row[None], 12, key=keys[i, None], **settings)[0]
        for i, row in enumerate(rows)
    ]
    assert len({tuple(row.tolist()) for row in alone}) == len(rows)
    for i, row in enumerate(rows):
        assert torch.equal(generate(gpt2.apply, params, row, 12, key=keys[i], **settings), alone[i])
    for side in ("left", "right"):
        for company in ([0, 1, 2, 3], [2, 0], [3, 1, 1]):
            ids, mask = padded([rows[i] for i in company], side, extra=3)
            out = generate(gpt2.apply, params, ids, 12, key=keys[company], mask=mask, **settings)
            assert torch.equal(out, torch.stack([alone[i] for i in company])), (side, company)


def test_given_equal_logits_rows_are_equal_bit_for_bit() -> None:
    """No matter how many rows: what is drawn is a function of the row's key and logits."""
    logits = random.normal(random.key(0), (64, 301))
    keys = random.split(random.key(1), 64)
    together = sample(logits, keys, temperature=0.9, top_k=40, top_p=0.9)
    for i in (0, 17, 63):
        assert sample(logits[i], keys[i], temperature=0.9, top_k=40, top_p=0.9) == together[i]


def test_one_key_gives_every_row_its_own() -> None:
    params = wide_params(4, std=0.15)
    ids, key = prompts(1, 5).expand(4, 5), random.key(2)
    out = generate(gpt2.apply, params, ids, 10, key=key)
    assert len({tuple(row.tolist()) for row in out}) == 4
    assert torch.equal(generate(gpt2.apply, params, ids[:2], 10, key=key), out[:2])
    keys = random.fold_in(key, torch.arange(4))
    assert torch.equal(generate(gpt2.apply, params, ids[2:], 10, key=keys[2:]), out[2:])
    assert not torch.equal(generate(gpt2.apply, params, ids, 10, key=random.key(3)), out)


@pytest.mark.parametrize("key", [None, random.key(6)], ids=["greedy", "sampled"])
def test_stream_equals_generate_and_longer_runs_extend_shorter_ones(key: Tensor | None) -> None:
    params, ids = wide_params(1, std=0.2), prompts(2, 5)
    whole = generate(gpt2.apply, params, ids, 15, key=key)
    steps = []
    for step in stream(gpt2.apply, params, ids, 15, key=key):
        assert torch.is_grad_enabled(), "nothing is switched off between the tokens"
        steps.append(step)
    assert torch.equal(torch.stack(steps, -1), whole)
    assert torch.equal(generate(gpt2.apply, params, ids, 6, key=key), whole[:, :6])
    assert generate(gpt2.apply, params, ids, 0, key=key).shape == (2, 0)


def test_scan_equals_generate_and_goes_through_vmap() -> None:
    params, ids = wide_params(1, std=0.2), prompts(3, 5)
    keys = random.split(random.key(6), 3)
    whole = generate(gpt2.apply, params, ids, 7, key=keys, top_k=9)

    def one(row: Tensor, key: Tensor) -> Tensor:
        return scan(gpt2.apply, params, start(gpt2.apply, params, row), 7, key=key, top_k=9)[1]

    assert torch.equal(vmap(one)(ids, keys), whole)
    state, tokens = scan(gpt2.apply, params, start(gpt2.apply, params, ids), 7, key=keys, top_k=9)
    assert torch.equal(tokens, whole)
    more = gpt2.apply(params, torch.cat([ids, whole], 1))[0][:, -1]
    assert torch.allclose(state.logits, more, atol=1e-4)


def test_nothing_is_changed() -> None:
    params, (ids, mask) = wide_params(1), padded([prompts(1, 4)[0], prompts(1, 2)[0]], "right")
    key = random.key(1)
    inputs = {"params": params, "ids": ids, "mask": mask, "key": key}
    before, seed = tree.map(torch.clone, inputs), torch.get_rng_state()
    generate(gpt2.apply, params, ids, 5, mask=mask, key=key, repetition_penalty=1.3, eos=3)
    state = start(gpt2.apply, params, ids)
    kept = tree.map(torch.clone, state)
    scan(gpt2.apply, params, state, 3)
    logits = random.normal(key, (2, 9))
    copy = logits.clone()
    sample(logits, key[None].expand(2), temperature=0.5, top_k=3, top_p=0.5)
    decoding.repetition_penalty(logits, logits > 0, 2.0)
    assert torch.equal(logits, copy)
    for old, new in ((before, inputs), (kept, state)):
        for (path, a), b in zip(tree.named_leaves(old), tree.leaves(new), strict=True):
            assert torch.equal(a, b), path
    assert torch.equal(seed, torch.get_rng_state())


def test_filters_equal_the_reference_word_by_word() -> None:
    logits = random.normal(random.key(9), (5, 3, 23)).double()
    for k in (1, 4, 22, 23, 99):
        found = decoding.top_k(logits, k).softmax(-1)
        wanted = torch.stack([reference(row, top_k=k) for row in logits.reshape(-1, 23)])
        assert torch.allclose(found.reshape(-1, 23), wanted)
    for p in (1e-9, 0.3, 0.95, 1.0):
        found = decoding.top_p(logits, p).softmax(-1)
        wanted = torch.stack([reference(row, top_p=p) for row in logits.reshape(-1, 23)])
        assert torch.allclose(found.reshape(-1, 23), wanted)
    seen = torch.zeros(5, 3, 23, dtype=torch.bool)
    seen[1, 2, 4] = True
    changed = decoding.repetition_penalty(logits, seen, 1.5) != logits
    assert changed.nonzero().tolist() == [[1, 2, 4]]


Call = Callable[..., Any]
IDS = prompts(2, 5)
WRONG: list[tuple[str, type[Exception], dict[str, Any], list[str]]] = [
    ("positions", ValueError, {"max_new_tokens": 36}, ["max_new_tokens=36", "5", "n_positions=40"]),
    ("id too large", IndexError, {"ids": torch.tensor([[3, 61]])}, ["ids", "61"]),
    ("id negative", IndexError, {"ids": torch.tensor([[3, -1]])}, ["ids", "-1"]),
    ("ids of floats", TypeError, {"ids": torch.ones(1, 2)}, ["ids", "float32"]),
    ("no tokens", ValueError, {"ids": torch.zeros(2, 0, dtype=torch.int64)}, ["empty", "[2, 0]"]),
    ("all padding", ValueError, {"mask": torch.tensor([[1] * 5, [0] * 5])}, ["empty", "rows [1]"]),
    ("mask shape", ValueError, {"mask": torch.ones(2, 4).bool()}, ["[2, 4]", "[2, 5]"]),
    ("tokens", ValueError, {"max_new_tokens": -1}, ["max_new_tokens", "-1"]),
    ("temperature", ValueError, {"temperature": 0.0}, ["temperature", "0.0"]),
    ("top_k", ValueError, {"top_k": -2}, ["top_k", "-2"]),
    ("top_p low", ValueError, {"top_p": 0.0}, ["top_p", "0.0"]),
    ("top_p high", ValueError, {"top_p": 1.5}, ["top_p", "1.5"]),
    ("penalty", ValueError, {"repetition_penalty": 0.0}, ["repetition_penalty", "0.0"]),
    ("keys", ValueError, {"key": random.split(random.key(0), 3)}, ["[3]", "[2]"]),
    ("no key", TypeError, {"key": 5}, ["key", "5"]),
]


@pytest.mark.parametrize("run", [generate, stream], ids=["generate", "stream"])
@pytest.mark.parametrize(
    ("error", "change", "words"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG]
)
def test_errors_come_before_the_model_runs(
    error: type[Exception], change: dict[str, Any], words: list[str], run: Call
) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model ran")

    arguments: dict[str, Any] = {"ids": IDS, "max_new_tokens": 4, "key": random.key(0)} | change
    params = {"config": CONFIG}
    ids, new = arguments.pop("ids"), arguments.pop("max_new_tokens")
    with pytest.raises(error) as caught:
        run(never, params, ids, new, **arguments)
    for word in words:
        assert word in str(caught.value)


def test_the_whole_room_is_used_and_padding_takes_none() -> None:
    params = wide_params(0)
    out = generate(gpt2.apply, params, IDS, 35)
    assert out.shape == (2, 35)
    ids = torch.nn.functional.pad(IDS, (30, 30))
    mask = torch.nn.functional.pad(torch.ones_like(IDS), (30, 30))
    assert torch.equal(generate(gpt2.apply, params, ids, 35, mask=mask), out)


def test_a_cache_of_another_model_is_refused() -> None:
    small = gpt2.Config(vocab_size=61, n_positions=40, n_embd=24, n_layer=2, n_head=3)
    state = start(gpt2.apply, wide_params(0), IDS)
    with pytest.raises(ValueError, match=r"cache is for .* \(2, 2, 3, 12\)"):
        decoding.advance(gpt2.apply, gpt2.init(small, random.key(0)), state, IDS[:, 0])


@pytest.mark.parametrize("prefill", [None, gpt2.hidden_states])
def test_prompts_may_share_the_cache_of_a_prefix(prefill: Any) -> None:
    params, ids = wide_params(1), prompts(2, 9)
    _, prefix = gpt2.apply(params, ids[:, :6])
    for last in (ids[:, 6:], ids[:, 6:7]):
        state = start(gpt2.apply, params, last, prefix, prefill=prefill)
        _, tokens = scan(gpt2.apply, params, state, 5)
        whole = torch.cat([ids[:, :6], last], 1)
        assert torch.equal(tokens, generate(gpt2.apply, params, whole, 5))


def test_models_without_config_or_mask_and_any_leading_axes() -> None:
    def counts(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.one_hot((ids + params) % 9, 9).float(), ids

    ids = torch.arange(8).reshape(2, 2, 2)
    out = generate(counts, torch.tensor(2), ids, 3)
    assert torch.equal(out, (ids[..., -1:] + torch.tensor([2, 4, 6])) % 9)
    params = wide_params(1)
    assert torch.equal(
        generate(gpt2.apply, params, ids, 4).reshape(4, 4),
        generate(gpt2.apply, params, ids.reshape(4, 2), 4),
    )


def test_half_precision_decodes() -> None:
    params = tree.cast(wide_params(1), torch.bfloat16)
    out = generate(gpt2.apply, params, IDS, 6, key=random.key(0), top_p=0.9)
    assert out.shape == (2, 6) and out.dtype == torch.int64
    assert math.isclose(float(decoding.top_p(torch.zeros(4).bfloat16(), 0.5).isinf().sum()), 2)
