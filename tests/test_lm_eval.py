"""The scores for lm-evaluation-harness are those of its own model; its tasks, if it is there."""

import json
from typing import Any

import pytest
import torch
from make_lm_eval import FIXTURE, LONG, PAIRS, REQUESTS, TASKS, TEXTS, evaluate
from tiny_families import tiny

from fnlm import pipeline
from fnlm.bridges import lm_eval as bridge
from fnlm.families import FAMILIES
from fnlm.pipeline import Pipeline
from fnlm.tokenize import transfo_xl as words

GIVEN = json.loads(FIXTURE.read_text(encoding="utf-8"))  # by the harness's `hf`, in float64


@pytest.fixture(scope="module")
def model() -> Pipeline:
    return pipeline.load("tiny", dtype="float64")


@pytest.mark.parametrize("batch_size", [1, 3])
def test_scores_are_those_of_the_harness(model: Pipeline, batch_size: int) -> None:
    pairs = [(context, continuation) for context, continuation in PAIRS]
    scores = bridge.loglikelihood(model, pairs, batch_size=batch_size)
    assert [list(score) for score in scores] == [
        [pytest.approx(value, abs=1e-6), greedy] for value, greedy in GIVEN["loglikelihood"]
    ]
    whole = bridge.loglikelihood_rolling(model, TEXTS, batch_size=batch_size)
    assert whole.pop(TEXTS.index("")) == 0
    assert whole == pytest.approx(GIVEN["loglikelihood_rolling"], abs=1e-6)


def test_scores_in_float32(model: Pipeline) -> None:
    single = pipeline.load("tiny")
    pairs = [(context, continuation) for context, continuation in PAIRS]
    values = [value for value, _ in bridge.loglikelihood(single, pairs)]
    assert values == pytest.approx([value for value, _ in GIVEN["loglikelihood"]], rel=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_texts_are_those_of_the_harness(model: Pipeline, batch_size: int) -> None:
    requests = [(prompt, settings) for prompt, settings in REQUESTS]
    assert bridge.generate_until(model, requests, batch_size=batch_size) == GIVEN["generate_until"]


def test_a_score_is_the_sum_of_the_tokens_of_one_pass(model: Pipeline) -> None:
    ids = torch.tensor([model.encode("Once upon a time there was a king")])
    logits, _ = model.apply(model.params, ids)
    log_probs = logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    context = len(model.encode("Once upon a time"))
    ((score, greedy),) = bridge.loglikelihood(model, [("Once upon a time", " there was a king")])
    assert score == pytest.approx(float(log_probs[context - 1 :].sum()), abs=1e-9)
    assert not greedy


def test_each_token_of_a_long_text_is_predicted_once() -> None:
    ids = list(range(1, 24))
    windows = list(bridge._windows([0], ids, 10))
    assert [i for _, continuation in windows for i in continuation] == ids
    for context, continuation in windows:
        assert context and len(context) + len(continuation) <= 11
        assert context[-1] == continuation[0] - 1
    assert list(bridge._windows([0], ids, None)) == [([0], ids)]
    assert list(bridge._windows([0], [], 10)) == []


def test_greedy_continuations_are_known_as_such(model: Pipeline) -> None:
    ((_, greedy),) = bridge.loglikelihood(model, [("The king", " was so much")])
    assert greedy
    text = bridge.generate_until(model, [("The king", {"max_gen_toks": 3})])
    assert text == [" was so much"]


def test_what_is_empty(model: Pipeline) -> None:
    assert bridge.loglikelihood(model, []) == []
    assert bridge.loglikelihood(model, [("", ""), ("a", "")]) == [(0.0, True), (0.0, True)]
    assert bridge.loglikelihood_rolling(model, []) == []
    assert bridge.generate_until(model, []) == []


def test_a_sampled_text_depends_on_its_request_alone(model: Pipeline) -> None:
    settings = {"do_sample": True, "temperature": 0.9, "top_k": 20, "max_gen_toks": 8}
    requests = [(prompt, settings) for prompt in ("The king", "The old man and his", "Once")]
    together = bridge.generate_until(model, requests, seed=3)
    assert bridge.generate_until(model, requests, seed=3, batch_size=1) == together
    assert bridge.generate_until(model, requests, seed=4) != together


def test_settings_that_are_unknown_or_leave_no_room(model: Pipeline) -> None:
    with pytest.raises(ValueError, match=r"num_beams: no setting .* known are until, do_sample"):
        bridge.generate_until(model, [("a", {"num_beams": 2})])
    with pytest.raises(ValueError, match=r"max_gen_toks=256 .* 256 positions .* at most 255"):
        bridge.generate_until(model, [("a", {})])


def test_a_family_without_mask_or_limit() -> None:
    """Transformer-XL: rows of one length together, and any length of text in one window."""
    record = FAMILIES["transfo_xl"]
    tokenizer = words.train(["a b c d e f"], special=["<eos>"])
    model = Pipeline(record, tiny("transfo_xl").params, tokenizer, 0, None)
    pairs = [("a b", " c"), ("a", " b c a"), ("", "c a")]
    each = [bridge.loglikelihood(model, [pair])[0][0] for pair in pairs]
    assert [s for s, _ in bridge.loglikelihood(model, pairs)] == pytest.approx(each, abs=1e-6)
    requests = [("a b", {"max_gen_toks": 3}), ("a", {"max_gen_toks": 3})]
    alone = [bridge.generate_until(model, [request])[0] for request in requests]
    assert bridge.generate_until(model, requests) == alone


def test_the_harness_itself(model: Pipeline, tmp_path: Any, monkeypatch: Any) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    found = evaluate(bridge.harness_model(model), tmp_path)
    assert found.keys() == TASKS.keys()
    for name, metrics in GIVEN["tasks"].items():
        assert found[name] == pytest.approx(metrics, abs=1e-6)


def test_the_texts_fill_more_than_a_window(model: Pipeline) -> None:
    assert len(model.encode(LONG)) > 2 * model.params["config"].n_positions
