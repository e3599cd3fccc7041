"""Speculative decoding: the tokens of `generate`, whatever the draft; and so its distribution."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from families import GPT, GPT2, TRANSFO_XL, make_params
from scipy import integrate, stats
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.generate import generate, sample, speculative, speculative_stream
from fnlm.layers.kv_cache import FixedCache

KEY = random.key(0)
speculate: Any = speculative  # called with tuples of arguments
rounds_of: Any = speculative_stream
SETTINGS: list[dict[str, Any]] = [
    {},
    {"key": KEY},
    {"key": KEY, "temperature": 0.7, "top_k": 9, "top_p": 0.9},
    {"key": KEY, "temperature": 1.3, "min_p": 0.05, "typical": 0.9},
]
FAMILIES = {"gpt": GPT, "gpt2": GPT2, "transfo_xl": TRANSFO_XL}


def models(name: str, noise: float = 0.3, std: float = 0.25) -> tuple[Any, Any, Any]:
    """Module, parameters far from ties, and a draft's: the same with noise, so often right."""
    family = FAMILIES[name]
    config = dataclasses.replace(
        family.config, **({"mem_len": 9} if name == "transfo_xl" else {"n_positions": 40})
    )
    params = family.module.init(config, random.key(3))
    wide = {path for path, x in tree.named_leaves(params) if x.ndim == 2}
    params = tree.map_with_path(lambda path, x: x * (std / 0.02) if path in wide else x, params)
    keys = iter(random.split(random.key(4), 999))
    draft = tree.map(lambda x: x + noise * x.std() * random.normal(next(keys), x.shape), params)
    return family.module, params, draft


def prompts(rows: int, length: int, vocab: int = 40) -> Tensor:
    return (random.uniform(random.key(rows), (rows, length)) * vocab).long()


@pytest.mark.parametrize("draft_tokens", [1, 2, 5, 30])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: ",".join(s) or "greedy")
@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_tokens_are_those_of_generate(
    name: str, settings: dict[str, Any], draft_tokens: int
) -> None:
    family, params, draft = models(name)
    ids = prompts(5, 6)
    wanted = generate(family.apply, params, ids, 20, **settings)
    both = (family.apply, params, family.apply, draft, ids, 20)
    assert torch.equal(speculate(*both, draft_tokens=draft_tokens, **settings), wanted)
    rounds = list(rounds_of(*both, draft_tokens=draft_tokens, **settings))
    accepted = torch.stack([each.accepted for each in rounds]).sum(0)  # [B]
    gained = torch.stack([each.gained for each in rounds])
    assert gained.sum(0).tolist() == [20] * 5
    assert 0 < accepted.min() and accepted.max() < 20, "the draft is right now and then"
    assert draft_tokens == 1 or len(set(accepted.tolist())) > 1, "rows go on at their own pace"
    assert (gained.sum(0) - accepted == (gained > 0).sum(0)).all(), "a round gains one of its own"


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=lambda s: ",".join(s) or "greedy")
@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("batch", [(1,), (3,), (), (2, 2)], ids=str)
def test_a_memory_is_taken_back_row_by_row(
    settings: dict[str, Any], length: int, batch: tuple[int, ...]
) -> None:
    family, params, draft = models("transfo_xl", noise=0.1)
    ids = prompts(math.prod(batch), length).reshape(*batch, length)
    wanted = generate(family.apply, params, ids, 17, **settings)
    both = (family.apply, params, family.apply, draft, ids, 17)
    for draft_tokens in (1, 4, 8):
        assert torch.equal(speculate(*both, draft_tokens=draft_tokens, **settings), wanted)
    rounds = list(rounds_of(*both, **settings))
    assert sum(each.accepted.sum() for each in rounds) > 0


@pytest.mark.parametrize("settings", SETTINGS[:3], ids=lambda s: ",".join(s) or "greedy")
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_prompts_and_eos(side: str, settings: dict[str, Any]) -> None:
    family, params, draft = models("gpt2")
    lengths = [5, 1, 11, 2]
    mask = torch.arange(13) < torch.tensor(lengths)[:, None]
    mask = mask.flip(-1) if side == "left" else mask
    ids = prompts(4, 13)
    free = generate(family.apply, params, ids, 20, mask=mask, **settings)
    ends = [int(free[0, 4]), int(free[2, 9])]
    hows: list[dict[str, Any]] = [{}, {"eos": ends}, {"eos": ends[0], "pad": 7}]
    for new in (20, 29):  # 11 and 29 make all 40 positions
        for how in hows:
            given = settings | how | {"mask": mask}
            wanted = generate(family.apply, params, ids, new, **given)
            both = (family.apply, params, family.apply, draft, ids, new)
            assert torch.equal(speculate(*both, **given), wanted)
            prefills = dict.fromkeys(("prefill", "draft_prefill"), family.hidden_states)
            assert torch.equal(speculate(*both, **given, **prefills), wanted)
            rounds = list(rounds_of(*both, **given))
            for row in range(4):
                tokens = [t for each in rounds for t in each.tokens[row, : each.gained[row]]]
                assert wanted[row, : len(tokens)].tolist() == [int(t) for t in tokens]
                rest = wanted[row, len(tokens) :]
                assert (rest == (how.get("pad", ends[0]))).all() and (not len(rest) or "eos" in how)


def test_no_row_no_token_one_token() -> None:
    family, params, draft = models("gpt2")
    both = (family.apply, params, family.apply, draft)
    for lead in ((0,), (2, 0)):
        ids = torch.zeros(*lead, 5, dtype=torch.int64)
        assert speculate(*both, ids, 3).shape == (*lead, 3)
    assert speculate(*both, prompts(2, 3), 0).shape == (2, 0)
    for ids in (prompts(1, 1), prompts(2, 4), prompts(1, 3)[0]):
        for new in (1, 2):
            found = speculate(*both, ids, new, key=KEY)
            assert torch.equal(found, generate(family.apply, params, ids, new, key=KEY))


def test_ids_of_end_and_pad_may_be_whole_numbers_of_any_type() -> None:
    family, params, draft = models("gpt2")
    both = (family.apply, params, family.apply, draft, prompts(2, 4))
    free = generate(family.apply, params, prompts(2, 4), 9)
    end = int(free[1, 3])
    wanted = generate(family.apply, params, prompts(2, 4), 9, eos=end, pad=7)
    assert not torch.equal(wanted, free)
    for ends in (torch.tensor(end), [end], iter([end]), np.array([end, 40]), {end}):
        assert torch.equal(speculate(*both, np.int64(9), eos=ends, pad=np.int32(7)), wanted)


@pytest.mark.parametrize("name", ["gpt2", "transfo_xl"])
def test_a_model_without_blocks_or_in_half_precision(name: str) -> None:
    family, params, draft = models(name)
    for change in (lambda x: {**x, "blocks": ()}, lambda x: tree.cast(x, torch.bfloat16)):
        both = (family.apply, change(params), family.apply, change(draft))
        found = speculate(*both, prompts(3, 5), 20, key=KEY)
        again = speculate(*both, prompts(3, 5), 20, key=KEY)
        assert torch.equal(found, again) and found.shape == (3, 20)
        if not both[1]["blocks"]:
            wanted = generate(family.apply, both[1], prompts(3, 5), 20, key=KEY)
            assert torch.equal(found, wanted)


def test_the_model_is_called_less_often_and_a_perfect_draft_is_always_right() -> None:
    family, params, _ = models("gpt2")
    calls: list[int] = []

    def counted(params: Any, ids: Tensor, cache: Any = None, mask: Any = None) -> Any:
        calls.append(ids.shape[-1])
        return gpt2.apply(params, ids, cache, mask)

    out = speculate(counted, params, gpt2.apply, params, prompts(2, 4), 20, draft_tokens=4)
    assert torch.equal(out, generate(gpt2.apply, params, prompts(2, 4), 20))
    assert calls == [3, 5, 5, 5, 5]


def test_texts_are_distributed_as_the_model_says() -> None:
    """All 81 texts of 4 tokens of a vocabulary of 3: bits of `generate`, and a chi-square test."""
    vocab, new, rows = 3, 4, 30_000
    logits = random.normal(random.key(1), (vocab, vocab)) * 0.7
    rough = logits + random.normal(random.key(2), (vocab, vocab))

    def apply(params: Tensor, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        return params[ids], None

    ids = torch.zeros(rows, 1, dtype=torch.int64)
    found = speculate(apply, logits, apply, rough, ids, new, key=KEY, draft_tokens=2)
    assert torch.equal(found, generate(apply, logits, ids, new, key=KEY))
    p = logits.double().softmax(-1)
    expected = []
    for text in itertools.product(range(vocab), repeat=new):
        expected.append(math.prod(float(p[a, b]) for a, b in itertools.pairwise((0, *text))))
    counts = (found @ torch.tensor([27, 9, 3, 1])).bincount(minlength=81)
    assert min(expected) * rows > 5 and math.isclose(sum(expected), 1)
    assert stats.chisquare(counts, torch.tensor(expected) * rows).pvalue > 1e-3


def joint(p: Tensor, q: Tensor) -> Tensor:
    """P(the draft draws i, the model j) where both take the highest of log-probability plus noise.

    Gumbel noise is -log of exponential variables: i is drawn if E_i / q_i is the lowest, and j if
    E_j / p_j is. With E_i = x and E_j = t x the others are above x max(q_v / q_i, t p_v / p_j),
    which has probability exp(-x sum of these); the integral over x is elementary.
    """
    size = len(p)
    table = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size):
        table[i, i] = 1 / sum(max(p[v] / p[i], q[v] / q[i]) for v in range(size))
        for j in range(size):
            if i == j or (low := float(q[j] / q[i])) >= (high := float(p[j] / p[i])):
                continue
            others = [v for v in range(size) if v not in (i, j)]

            def density(t: float, i: int = i, j: int = j, others: list[int] = others) -> float:
                above = sum(max(float(q[v] / q[i]), t * float(p[v] / p[j])) for v in others)
                return (1 + t + above) ** -2

            kinks = [float(q[v] / q[i] * p[j] / p[v]) for v in others]
            edges = sorted({low, high, *(t for t in kinks if low < t < high)})
            table[i, j] = sum(
                integrate.quad(density, a, b)[0] for a, b in itertools.pairwise(edges)
            )
    return table


def test_the_acceptance_rule_exactly() -> None:
    """What is emitted has the model's probabilities to 1e-9, and how often a guess stands."""
    for seed in range(5):
        p, q = (random.normal(random.key(2 * seed + k), (4,)).double().softmax(-1) for k in (0, 1))
        exact = joint(p, q)
        emitted = torch.zeros(4, dtype=torch.float64)
        for i, j in itertools.product(range(4), repeat=2):
            emitted[i if i == j else j] += exact[i, j]  # the guess if it stands, else the model's
        torch.testing.assert_close(emitted, p, rtol=0, atol=1e-9)
        torch.testing.assert_close(exact.sum(1), q, rtol=0, atol=1e-9)
        distance = float((p - q).abs().sum() / 2)
        accepted = float(exact.diagonal().sum())
        assert (1 - distance) / (1 + distance) <= accepted <= 1 - distance + 1e-12

        rows = 20_000
        keys = random.split(random.key(seed + 50), rows)
        guess, drawn = (sample(x.log().float().expand(rows, 4), keys) for x in (q, p))
        counts = (4 * guess + drawn).bincount(minlength=16)
        possible = exact.flatten() * rows > 5
        assert counts[exact.flatten() == 0].sum() == 0
        rest = [counts[~possible].sum()[None], (1 - exact.flatten()[possible].sum())[None] * rows]
        observed, expected = counts[possible], exact.flatten()[possible] * rows
        if rest[1] > 1:
            observed, expected = torch.cat([observed, rest[0]]), torch.cat([expected, rest[1]])
        assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


NAN, INF = float("nan"), float("inf")


def counting(stop: int, value: float) -> Any:
    """A model of 20 tokens that counts, and has no distribution after one of them."""

    def apply(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        logits = 9 * torch.nn.functional.one_hot((ids + 1) % 20, 20).float()
        wrong = (ids == stop).unsqueeze(-1) & (torch.arange(20) < (20 if value == -INF else 1))
        return logits.masked_fill(wrong, value), None

    return apply


@pytest.mark.parametrize("what", ["NaN", "infinity", "-inf"])
def test_logits_without_a_distribution_are_named(what: str) -> None:
    value, good = {"NaN": NAN, "infinity": INF, "-inf": -INF}[what], counting(-1, 0.0)
    ids = torch.tensor([[1], [9]])
    for settings in SETTINGS[:3]:
        bad = counting(12, value)
        message = rf"of new token 3 .* rows \[1\].*{what}.*tree\.named_leaves"
        for draft in (good, counting(11, -INF)):
            with pytest.raises(ValueError, match=message):
                speculate(bad, {}, draft, {}, ids, 5, **settings)
        if what != "-inf":
            with pytest.raises(ValueError, match=r"draft's logits hold NaN .*draft_params"):
                speculate(good, {}, bad, {}, ids, 5, **settings)
    # What a draft excludes is no guess, and what follows a wrong guess does not matter.
    wanted = torch.stack([torch.arange(2, 7), torch.arange(10, 15)])
    assert torch.equal(speculate(good, {}, counting(12, -INF), {}, ids, 5), wanted)

    def wrong(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        return 9 * torch.nn.functional.one_hot(ids * 0 + 19, 20).float(), None

    bad = counting(19, value)
    assert torch.equal(speculate(bad, {}, wrong, {}, ids, 5), wanted)


def test_mistakes_are_named() -> None:
    family, params, draft = models("gpt2")
    both, ids = (family.apply, params, family.apply, draft), prompts(2, 5)
    short = family.init(dataclasses.replace(params["config"], n_positions=9), KEY)
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (both, {"draft_tokens": 0}, ValueError, "draft_tokens must be at least 1, got 0"),
        (both, {"draft_tokens": 1.5}, TypeError, "draft_tokens must be a whole number"),
        (both, {"temperature": 0.7}, ValueError, "needs a key"),
        (both, {"min_p": 0.7}, ValueError, "min_p=0.7 needs a key"),
        (both, {"key": KEY, "typical": 0.0}, ValueError, "typical must be more than 0"),
        (both, {"key": random.split(KEY, 3)}, ValueError, r"\[3\]: give one, or one a row"),
        ((*both[:3], short), {}, ValueError, "of the draft: a prompt of 5 .*n_positions=9"),
        ((both[0], short, *both[2:]), {}, ValueError, "^a prompt of 5 .*n_positions=9"),
        (both, {"repetition_penalty": 1.2}, TypeError, "no argument 'repetition_penalty'"),
    ]
    for models_, given, error, message in cases:
        with pytest.raises(error, match=message):
            speculate(*models_, ids, 8, **given)
    larger = family.init(dataclasses.replace(params["config"], vocab_size=99), KEY)
    with pytest.raises(ValueError, match="logits of 99 tokens, the model knows 41"):
        speculate(*both[:3], larger, ids, 8)


def test_states_that_cannot_be_taken_back_are_refused() -> None:
    ids = prompts(2, 5)
    for change in ({"same_length": False}, {"ext_len": 2}, {"mem_len": 3}):
        params = make_params(TRANSFO_XL)
        config = dataclasses.replace(params["config"], **{"mem_len": 9} | change)
        both = (TRANSFO_XL.module.apply, {**params, "config": config})
        name, value = next(iter(change.items()))
        for models_, word in ((both * 2, "params"), ((gpt2.apply, make_params(GPT2), *both), "dr")):
            with pytest.raises(ValueError, match=rf"^{word}.*{name}={value}.*dataclasses"):
                speculate(*models_, ids, 8)

    params = make_params(GPT2)

    def fixed(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, FixedCache]:
        return gpt2.apply(params, ids, cache or gpt2.init_cache(params, len(ids), 24))

    with pytest.raises(TypeError, match="from a Cache or Mems.*got FixedCache"):
        speculate(fixed, params, gpt2.apply, params, ids, 8)


def test_nothing_is_changed() -> None:
    family, params, draft = models("gpt2")
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    inputs = {"params": params, "draft": draft, "ids": prompts(2, 4), "mask": mask, "key": KEY}
    before, seed = tree.map(torch.clone, inputs), torch.get_rng_state()
    both = (family.apply, params, family.apply, draft, inputs["ids"], 9)
    for each in rounds_of(*both, mask=mask, key=KEY):
        assert torch.is_grad_enabled(), "nothing is switched off between the rounds"
        assert each.tokens.dtype == each.gained.dtype == each.accepted.dtype == torch.int64
    for (path, a), b in zip(tree.named_leaves(before), tree.leaves(inputs), strict=True):
        assert torch.equal(a, b), path
    assert torch.equal(seed, torch.get_rng_state())
