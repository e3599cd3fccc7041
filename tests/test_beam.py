"""Beam search, against `transformers.generate` and against looking at every possible text."""

from itertools import product
from typing import Any

import pytest
import torch
from test_generate import CONFIG, padded, peer_generate, peer_of, prompts, wide_params
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.generate import beam_search, generate

TINY = gpt2.Config(vocab_size=5, n_positions=12, n_ctx=12, n_embd=12, n_layer=2, n_head=3)


def agree(found: tuple[Tensor, Tensor], expected: Any, rows: int, beams: int, prompt: int) -> None:
    """All hypotheses and their scores, in order; the peer's texts are as long as its longest."""
    ids, scores = found
    wanted = expected.sequences[:, prompt:].reshape(rows, beams, -1)
    assert torch.equal(ids[..., : wanted.shape[-1]], wanted)
    assert torch.allclose(
        scores, expected.sequences_scores.reshape(rows, beams), atol=1e-5, rtol=1e-5
    )


def peer_beams(peer: Any, ids: Tensor, mask: Tensor | None, new: int, **kwargs: Any) -> Any:
    beams = kwargs["num_beams"]
    return peer_generate(
        peer, ids, mask, new, num_return_sequences=beams, output_scores=True, **kwargs
    )


@pytest.mark.parametrize(("beams", "penalty"), [(2, 1.0), (3, 0.0), (4, 1.7), (7, -0.6)])
def test_equals_transformers(beams: int, penalty: float, tmp_path: Any) -> None:
    params = wide_params(beams, std=0.2)
    peer = peer_of(params, tmp_path)
    ids = prompts(3, 6, beams)
    expected = peer_beams(peer, ids, None, 12, num_beams=beams, length_penalty=penalty)
    found = beam_search(gpt2.apply, params, ids, 12, num_beams=beams, length_penalty=penalty)
    agree(found, expected, 3, beams, 6)
    greedy = generate(gpt2.apply, params, ids, 12)
    assert not torch.equal(found[0][:, 0], greedy), "a search that finds nothing new shows nothing"


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0, -1.0])
@pytest.mark.parametrize("number_of_ends", [1, 3])
def test_with_end_tokens_equals_transformers(
    penalty: float, number_of_ends: int, tmp_path: Any
) -> None:
    params = wide_params(1, std=0.12)
    peer = peer_of(params, tmp_path)
    ids = prompts(5, 4, 3)
    likely = generate(gpt2.apply, params, ids, 12).flatten().bincount().argsort(descending=True)
    ends = likely[:number_of_ends].tolist()
    expected = peer_beams(
        peer, ids, None, 14, num_beams=3, length_penalty=penalty, eos_token_id=ends, pad_token_id=60
    )
    found = beam_search(
        gpt2.apply, params, ids, 14, num_beams=3, length_penalty=penalty, eos=ends, pad=60
    )
    agree(found, expected, 5, 3, 4)
    if penalty <= 1:
        assert (found[0] == 60).any(), "some hypothesis must end early"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("with_end", [False, True])
def test_padded_batches_equal_transformers(side: str, with_end: bool, tmp_path: Any) -> None:
    params = wide_params(6, std=0.15)
    peer = peer_of(params, tmp_path)
    rows = [prompts(1, n, n)[0] for n in (5, 1, 9, 3)]
    ids, mask = padded(rows, "left")
    end = int(generate(gpt2.apply, params, rows[0], 8).mode().values) if with_end else None
    expected = peer_beams(peer, ids, mask, 10, num_beams=4, eos_token_id=end, pad_token_id=60)
    ids, mask = padded(rows, side, extra=1)
    found = beam_search(gpt2.apply, params, ids, 10, num_beams=4, mask=mask, eos=end, pad=60)
    agree(found, expected, 4, 4, 9)
    for i, row in enumerate(rows):
        alone, score = beam_search(gpt2.apply, params, row, 10, num_beams=4, eos=end, pad=60)
        assert torch.equal(alone, found[0][i])
        assert torch.allclose(score, found[1][i], atol=1e-5)


def all_texts(params: Any, prompt: Tensor, length: int, end: int | None) -> dict[tuple, float]:
    """The log-probability of every text of that length, or ending earlier."""
    texts: dict[tuple, float] = {}
    for text in product(range(TINY.vocab_size), repeat=length):
        whole = torch.tensor([*prompt.tolist(), *text])
        likely = gpt2.apply(params, whole)[0].double().log_softmax(-1)
        size = text.index(end) + 1 if end in text else length
        steps = likely[len(prompt) - 1 : len(prompt) - 1 + size]
        texts[text[:size]] = (
            steps.gather(1, whole[len(prompt) : len(prompt) + size, None]).sum().item()
        )
    return texts


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize(("end", "penalty"), [(None, 1.0), (None, -2.0), (3, 0.0)])
def test_equals_the_exhaustive_search(length: int, end: int | None, penalty: float) -> None:
    """With a beam for every text but its last word nothing is left out."""
    params = tree.map(lambda x: x * 10 if x.ndim == 2 else x, gpt2.init(TINY, random.key(length)))
    beams = 5 ** (length - 1)
    for first in range(3):
        prompt = torch.tensor([first, 4])
        texts = all_texts(params, prompt, length, end)
        scores = {text: p / len(text) ** penalty for text, p in texts.items()}
        best = max(scores, key=lambda text: scores[text])
        ids, found = beam_search(
            gpt2.apply,
            params,
            prompt,
            length,
            num_beams=beams,
            eos=end,
            pad=-1,
            length_penalty=penalty,
        )
        assert [i for i in ids[0].tolist() if i >= 0] == list(best)
        assert abs(found[0].item() - scores[best]) < 1e-5
        for text, score in zip(ids.tolist(), found.tolist(), strict=True):
            assert abs(score - scores[tuple(i for i in text if i >= 0)]) < 1e-5
        assert (found.diff() <= 0).all()


def test_one_beam_is_greedy_decoding() -> None:
    params, ids = wide_params(2), prompts(3, 5)
    found, scores = beam_search(gpt2.apply, params, ids, 15, num_beams=1)
    assert torch.equal(found[:, 0], generate(gpt2.apply, params, ids, 15))
    likely = gpt2.apply(params, torch.cat([ids, found[:, 0]], 1))[0].log_softmax(-1)[:, 4:-1]
    total = likely.gather(-1, found[:, 0, :, None]).sum((1, 2))
    assert torch.allclose(scores[:, 0], total / 15, atol=1e-5)


def test_more_beams_than_texts_leaves_places_empty() -> None:
    params = gpt2.init(TINY, random.key(0))
    ids, scores = beam_search(gpt2.apply, params, torch.tensor([[1]]), 1, num_beams=8)
    assert sorted(ids[0, :5, 0].tolist()) == [0, 1, 2, 3, 4]
    assert scores[0, :5].isfinite().all() and scores[0, 5:].eq(-torch.inf).all()
    assert torch.allclose(scores[0, :5].exp().sum(), torch.tensor(1.0))


def test_any_leading_axes_and_any_state() -> None:
    def counts(params: Any, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Likes the next number most, then the same one; remembers all words and their count."""
        seen = {"all": ids if state is None else torch.cat([state["all"], ids], -1)}
        hot = torch.nn.functional.one_hot
        logits = 3.0 * hot((ids + 1) % 7, 7) + hot(seen["all"][..., -1:], 7)
        return logits, seen | {"count": torch.tensor(seen["all"].shape[-1])}

    ids = torch.arange(6).reshape(3, 2, 1)
    found, scores = beam_search(counts, {}, ids, 3, num_beams=2)
    assert found.shape == (3, 2, 2, 3) and scores.shape == (3, 2, 2)
    assert torch.equal(found[..., 0, :], (ids + torch.tensor([1, 2, 3])) % 7)


def test_nothing_is_changed() -> None:
    params, (ids, mask) = wide_params(1), padded([prompts(1, 4)[0], prompts(1, 2)[0]], "right")
    inputs = {"params": params, "ids": ids, "mask": mask}
    before, seed = tree.map(torch.clone, inputs), torch.get_rng_state()
    beam_search(gpt2.apply, params, ids, 6, num_beams=3, mask=mask, eos=4)
    for (path, a), b in zip(tree.named_leaves(before), tree.leaves(inputs), strict=True):
        assert torch.equal(a, b), path
    assert torch.equal(seed, torch.get_rng_state())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_beams": 0}, ["num_beams", "0"]),
        ({"max_new_tokens": 0}, ["max_new_tokens", "0"]),
        ({"max_new_tokens": 36}, ["max_new_tokens=36", "n_positions=40"]),
        ({"ids": torch.zeros(1, 0, dtype=torch.int64)}, ["empty"]),
        ({"mask": torch.zeros(2, 5).bool()}, ["empty", "rows [0, 1]"]),
    ],
    ids=["beams", "tokens", "positions", "empty", "padding"],
)
def test_errors_come_before_the_model_runs(change: dict[str, Any], words: list[str]) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the model ran")

    arguments: dict[str, Any] = {"ids": prompts(2, 5), "max_new_tokens": 3, "num_beams": 2} | change
    with pytest.raises(ValueError, match="at least|more than|empty") as caught:
        beam_search(never, {"config": CONFIG}, **arguments)
    for word in words:
        assert word in str(caught.value)
