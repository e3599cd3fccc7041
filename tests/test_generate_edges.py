"""Decoding where numbers end: logits that are none, low temperatures, no rows, odd arguments."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from families import GPT, GPT2, TRANSFO_XL, make_params
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap

from fnlm import generate as decoding
from fnlm import gpt, gpt2, random, transfo_xl
from fnlm.generate import beam_search, generate, sample, scan, start, stream

NAN, INF, KEY = float("nan"), float("inf"), random.key(0)
Run = Callable[..., Any]


def beams(*args: Any, **kwargs: Any) -> Tensor:
    return beam_search(*args, num_beams=2, **kwargs)[0][..., 0, :]


def streamed(*args: Any, **kwargs: Any) -> Tensor:
    return torch.stack(list(stream(*args, **kwargs)), -1)


def sampled(*args: Any, **kwargs: Any) -> Tensor:
    return generate(*args, key=KEY, temperature=1e-3, **kwargs)


def scanned(apply: Any, params: Any, ids: Tensor, steps: int, **kwargs: Any) -> Tensor:
    return scan(apply, params, start(apply, params, ids), steps, **kwargs)[1]


RUNS: dict[str, Run] = {
    "generate": generate,
    "sampled": sampled,
    "stream": streamed,
    "beam_search": beams,
}
each_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def counts(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Tensor]:
    """A model that counts to 20."""
    return 9 * torch.nn.functional.one_hot((ids + 1) % 20, 20).float(), ids


def breaking(what: str, at: int, row: int) -> Any:
    """A model that counts until one row comes to a number: then its logits are none."""

    def apply(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Tensor]:
        logits, _ = counts(params, ids)
        wrong = (ids == at).unsqueeze(-1) & (torch.arange(20) < (20 if what == "-inf" else 1))
        value = {"NaN": NAN, "infinity": INF, "-inf": -INF}[what]
        return logits.masked_fill(wrong, value), ids

    return apply


PROMPT = torch.tensor([[1], [9]])


@each_run
@pytest.mark.parametrize("what", ["NaN", "infinity", "-inf"])
@pytest.mark.parametrize("step", [0, 3])
def test_logits_without_a_distribution_are_named(run: Run, what: str, step: int) -> None:
    apply = breaking(what, at=9 + step, row=1)
    message = rf"of new token {step} .* rows \[1\].*{what}.*tree\.named_leaves"
    if run is beams and what == "-inf":
        message = r"rows \[1\] have no continuation" if step == 0 else "^$"
    if run is beams and what == "-inf" and step:
        run(apply, {}, PROMPT, 5)  # the other beam goes on
        return
    with pytest.raises(ValueError, match=message):
        run(apply, {}, PROMPT, 5)
    assert torch.equal(run(apply, {}, PROMPT[:1], 5), torch.arange(2, 7)[None])


@each_run
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_diverged_model_writes_nothing(run: Run, dtype: torch.dtype) -> None:
    params = make_params(GPT2, dtype=dtype)
    params["embed"]["token"][3] = NAN  # the tied output: one word of each row
    with pytest.raises(ValueError, match=r"of new token 0 .* rows \[0, 1\], where they hold NaN"):
        run(gpt2.apply, params, torch.tensor([[1, 2], [2, 4]]), 3)


def test_where_no_value_can_be_read_there_is_no_token() -> None:
    """-1, and no token after it: eager, in vmap, in grad, compiled, and drawn by hand."""
    logits = torch.zeros(4, 5)
    logits[1, 3], logits[2, 0], logits[3] = NAN, INF, -INF
    keys = random.split(KEY, 4)
    for key in (None, keys):
        expected = [False, True, True, True]
        assert (sample(logits, key) == -1).tolist() == expected
        if key is not None:
            drawn = sample(logits, key, temperature=0.5, top_k=2, top_p=0.9)
            assert (drawn == -1).tolist() == expected
        dims = (0, None if key is None else 0)
        assert (vmap(sample, dims)(logits, key) == -1).tolist() == expected
        compiled: Any = torch.compile(sample, fullgraph=True, backend="eager")
        assert (compiled(logits, key) == -1).tolist() == expected
    assert (random.categorical(keys, logits) == -1).tolist() == expected
    assert (random.categorical(keys, logits.double() * 1e300 * 1e9) == -1)[1:].all()

    apply, ids = breaking("NaN", at=11, row=1), torch.tensor([[1], [9]])
    for key in (None, keys[:2]):
        # 10, 11, then nothing; the first row counts on.
        found = scanned(apply, {}, ids, 5, key=key)
        assert found.tolist() == [[2, 3, 4, 5, 6], [10, 11, -1, -1, -1]]
        rows = vmap(
            lambda row, key: scanned(apply, {}, row, 5, key=key), (0, None if key is None else 0)
        )
        assert torch.equal(rows(ids, key), found)


def test_scan_of_a_real_model_that_diverges() -> None:
    params = make_params(GPT2)
    params["embed"]["token"][3] = NAN
    ids = torch.tensor([[1, 2], [2, 4]])
    assert (scanned(gpt2.apply, params, ids, 3) == -1).all()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    temperature=st.sampled_from([1e-45, 1e-38, 1e-20, 1e-5, 1e-3, 1e-2, 0.5, 1.0, 3.0, 1e4]),
    top_k=st.sampled_from([0, 1, 3]),
    top_p=st.sampled_from([1.0, 0.5, 1e-9]),
    shift=st.sampled_from([0.0, -100.0, 3e4, -6e4]),
)
def test_half_precision_logits_are_sampled_as_the_same_numbers_in_float64(
    seed: int, dtype: torch.dtype, temperature: float, top_k: int, top_p: float, shift: float
) -> None:
    logits = (4 * random.normal(random.key(seed), (8, 12)) + shift).to(dtype)
    keys = random.split(random.key(seed + 1), 8)
    chosen: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    found = sample(logits, keys, **chosen)
    # What differs in the last bit may fall on either side of a draw: rarely.
    agree = found == sample(logits.double(), keys, **chosen)
    assert agree.all() or (dtype == torch.float32 and agree.sum() >= 7)
    assert torch.equal(found, sample(logits.float(), keys, **chosen))
    if temperature <= 1e-5:  # next to nothing but the highest, or one of several as high
        best = logits.amax(-1)
        assert torch.equal(logits.gather(-1, found[:, None])[:, 0], best)


def test_functions_of_half_precision_logits_do_not_overflow() -> None:
    logits = torch.tensor([-101.0, -100.0, -99.5, 6e4]).half()
    for fn in (
        lambda x: decoding.temperature(x, 1e-3),
        lambda x: decoding.temperature(x, 1.0),
        lambda x: decoding.repetition_penalty(x, x < 0, 1e4),
        lambda x: decoding.repetition_penalty(x, x < 0, 1.0),
    ):
        assert fn(logits).dtype == torch.float32
        torch.testing.assert_close(fn(logits).double(), fn(logits.double()), rtol=1e-6, atol=0.0)


OFF: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 0.0},
    {"temperature": 1, "top_k": 0, "top_p": 1},
]
NEED_A_KEY: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"temperature": 1.5},
    {"top_k": 4},
    {"top_k": 1},
    {"top_p": 0.9},
    {"temperature": 0.0, "top_k": 4},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9},
]
GREEDY: dict[str, Run] = {"generate": generate, "stream": streamed, "scan": scanned}


@pytest.mark.parametrize("options", NEED_A_KEY, ids=str)
def test_to_sample_takes_a_key(options: dict[str, Any]) -> None:
    for run in GREEDY.values():
        with pytest.raises(ValueError, match=rf"{next(iter(options))}.*|needs a key.*key=random"):
            run(counts, {}, PROMPT, 2, **options)
        assert (
            run(counts, {}, PROMPT, 2, **options | {"temperature": 0.5}, key=random.split(KEY))
            is not None
        )
    with pytest.raises(ValueError, match=r"needs a key to sample with: give key=random\.key"):
        sample(torch.zeros(1, 5), **options)


@pytest.mark.parametrize("options", OFF, ids=str)
def test_greedy_options_need_no_key(options: dict[str, Any]) -> None:
    for run in GREEDY.values():
        assert run(counts, {}, PROMPT, 2, **options).tolist() == [[2, 3], [10, 11]]
    assert sample(counts({}, PROMPT)[0], **options).tolist() == [[2], [10]]


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"temperature": NAN}, ValueError, "temperature must be more than 0 and finite, got nan"),
    ({"temperature": INF}, ValueError, "temperature must be more than 0 and finite, got inf"),
    ({"temperature": -1.0}, ValueError, "temperature must be more than 0"),
    ({"top_k": -1}, ValueError, "top_k must be at least 0"),
    ({"top_k": 2.5}, TypeError, "top_k must be a whole number, got 2.5"),
    ({"top_k": NAN}, TypeError, "top_k must be a whole number, got nan"),
    ({"top_p": NAN}, ValueError, "top_p must be more than 0 and at most 1"),
    ({"top_p": -0.1}, ValueError, "top_p must be more than 0"),
    ({"repetition_penalty": NAN}, ValueError, "repetition_penalty must be more than 0 and finite"),
    ({"repetition_penalty": INF}, ValueError, "repetition_penalty must be more than 0 and finite"),
    ({"eos": 3.0}, TypeError, "eos must be a whole number, got 3.0"),
    ({"eos": "3"}, TypeError, "eos must be a whole number, got '3'"),
    ({"eos": [3, None]}, TypeError, "eos must be a whole number, got None"),
    ({"pad": 1.5}, TypeError, "pad must be a whole number, got 1.5"),
    ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens must be a whole number, got 2.0"),
    ({"ids": [[1]]}, TypeError, "ids must be a tensor of integers .*got list"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG, ids=lambda x: str(x)[:30])
def test_odd_settings_are_named(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"ids": PROMPT, "max_new_tokens": 2} | change
    ids, new = arguments.pop("ids"), arguments.pop("max_new_tokens")
    for run in (generate, stream):
        with pytest.raises(error, match=message):
            run(counts, {}, ids, new, key=KEY, **arguments)
    if not {"temperature", "top_k", "top_p", "repetition_penalty"} & change.keys():
        with pytest.raises(error, match=message):
            beam_search(counts, {}, ids, new, num_beams=2, **arguments)


def test_odd_settings_of_beams_are_named() -> None:
    with pytest.raises(ValueError, match="length_penalty must be a finite number, got nan"):
        beam_search(counts, {}, PROMPT, 2, num_beams=2, length_penalty=NAN)
    with pytest.raises(TypeError, match=r"num_beams must be a whole number, got 2\.5"):
        beam_search(counts, {}, PROMPT, 2, num_beams=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="and apply takes no mask"):
        generate(counts, {}, torch.tensor([[0, 1], [1, 2]]), 2, mask=torch.tensor([[0, 1], [1, 1]]))
    params = make_params(TRANSFO_XL)
    with pytest.raises(TypeError, match="and apply takes no mask"):
        generate(
            transfo_xl.apply,
            params,
            torch.ones(2, 2).long(),
            2,
            mask=torch.tensor([[0, 1], [1, 1]]),
        )


@each_run
def test_ids_of_end_and_pad_may_be_whole_numbers_of_any_type(run: Run) -> None:
    expected = run(counts, {}, PROMPT, 4, eos=11, pad=7)
    assert expected.tolist()[1] == [10, 11, 7, 7][: expected.shape[1]]
    ends: list[Any] = [np.int64(11), np.int32(11), torch.tensor(11), [11], (np.int64(11),)]
    ends += [torch.tensor([11, 19]), np.array([11, 19]), np.array(11), {11, 19}, iter([11])]
    for end in ends:
        assert torch.equal(run(counts, {}, PROMPT, 4, eos=end, pad=np.int64(7)), expected)
    for pad in (np.int32(7), torch.tensor(7), torch.tensor([7])):
        assert torch.equal(run(counts, {}, PROMPT, np.int64(4), eos=11, pad=pad), expected)
    assert torch.equal(run(counts, {}, PROMPT, 4, eos=[]), run(counts, {}, PROMPT, 4))


@each_run
def test_prompts_may_hold_the_special_tokens_that_follow_the_vocabulary(run: Run) -> None:
    """What counts are the rows of the table, as for `apply`."""
    params = gpt.extend_vocabulary(make_params(GPT), 3, KEY)
    ids = torch.tensor([[41, 1, 43], [2, 42, 5]])
    found = run(gpt.apply, params, ids, 4)
    whole = torch.cat([ids, found], 1)
    if run is not beams:
        expected = gpt.apply(params, whole)[0][:, 2:-1].argmax(-1)
        assert torch.equal(found, expected)
    with pytest.raises(IndexError, match="less than 44; got values from 1 to 44"):
        run(gpt.apply, params, torch.tensor([[44, 1]]), 2)


@pytest.mark.parametrize("prefill", [None, gpt2.hidden_states], ids=["apply", "prefill"])
@pytest.mark.parametrize("lead", [(0,), (2, 0)], ids=str)
def test_no_row_gives_no_row(lead: tuple[int, ...], prefill: Any) -> None:
    params, ids = make_params(GPT2), torch.zeros(*lead, 5, dtype=torch.int64)
    for mask in (None, torch.ones(*lead, 5, dtype=torch.bool)):
        for end in (None, 3):
            for key in (None, KEY):
                found = generate(
                    gpt2.apply, params, ids, 3, key=key, eos=end, mask=mask, prefill=prefill
                )
                assert found.shape == (*lead, 3) and found.dtype == torch.int64
            texts, scores = beam_search(
                gpt2.apply, params, ids, 3, num_beams=2, eos=end, mask=mask, prefill=prefill
            )
            assert texts.shape == (*lead, 2, 3) and texts.dtype == torch.int64
            assert scores.shape == (*lead, 2) and scores.dtype == torch.float32
    assert generate(gpt2.apply, params, ids, 0).shape == (*lead, 0)
    assert scanned(gpt2.apply, params, ids, 2).shape == (*lead, 2)


def test_beams_leave_out_what_the_model_excludes() -> None:
    """A hypothesis all of whose continuations are -inf is dropped; the others are found exactly."""

    def only(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Tensor]:
        """1 or 2 first (2 is likelier); after 2 there is nothing, after 1 come 3 and 4."""
        logits = torch.full((*ids.shape, 6), -INF)
        for last, nexts in {0: {1: 0.0, 2: 2.0}, 1: {3: 0.0}, 3: {4: 0.0}, 4: {5: 0.0}}.items():
            for token, logit in nexts.items():
                logits[..., token] = torch.where(ids == last, logit, logits[..., token])
        return logits, ids

    for num_beams in (2, 3):
        texts, scores = beam_search(only, {}, torch.tensor([[0]]), 4, num_beams=num_beams)
        assert texts[0, 0].tolist() == [1, 3, 4, 5]
        expected = torch.tensor([0.0, 2.0]).log_softmax(0)[0] / 4
        torch.testing.assert_close(scores[0, 0], expected)
        assert (scores[0, 1:] == -INF).all()
    with pytest.raises(ValueError, match=r"rows \[1\] have no continuation"):
        beam_search(only, {}, torch.tensor([[0], [5]]), 3, num_beams=2)


def test_the_derivative_of_what_is_sampled_is_not_asked_for_in_vain() -> None:
    """Choosing has no derivative, and the check of the logits adds none that is NaN."""

    def loss(logits: Tensor) -> Tensor:
        token = sample(logits, KEY.expand(2), temperature=0.5, top_k=3)
        return logits.log_softmax(-1).gather(-1, token[:, None]).sum()

    assert grad(loss)(random.normal(KEY, (2, 7))).isfinite().all()
