"""min-p, typical sampling, contrasts of logits and contrastive search, against references."""

from typing import Any

import pytest
import torch
from families import GPT, GPT2, TRANSFO_XL, make_params
from peers import quiet
from torch import Tensor

from fnlm import generate as decoding
from fnlm import gpt2, random, taps, tree
from fnlm.generate import contrastive_search, generate, sample, scan, start, stream

KEY = random.key(0)
READING = taps.read(gpt2.apply, "hidden")


def wide(family: Any = GPT2, std: float = 0.2) -> Any:
    """Parameters far from ties."""
    params = family.module.init(family.config, random.key(3))
    matrices = {path for path, x in tree.named_leaves(params) if x.ndim == 2}
    return tree.map_with_path(lambda path, x: x * (std / 0.02) if path in matrices else x, params)


def prompts(rows: int, length: int) -> Tensor:
    return (random.uniform(random.key(rows), (rows, length)) * 40).long()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.9, 0.99])
def test_filters_equal_those_of_transformers(p: float, dtype: torch.dtype) -> None:
    with quiet():
        from transformers.generation import logits_process as peers
    for seed in range(40):
        logits = random.normal(random.key(seed), (3, 37)).to(dtype) * (1 + seed % 7)
        logits[0, : seed % 5] = -torch.inf
        found = decoding.min_p(logits, p)
        assert torch.equal(found, peers.MinPLogitsWarper(p)(None, logits))
        assert torch.equal(decoding.min_p(logits[1], p), found[1])
        found = decoding.typical(logits, p)
        assert torch.equal(found, peers.TypicalLogitsWarper(p)(None, logits))
        assert torch.equal(decoding.typical(logits.reshape(1, 3, 1, 37), p)[0, :, 0], found)


def test_filters_by_hand() -> None:
    p = torch.tensor([0.05, 0.3, 0.25, 0.4])
    assert decoding.min_p(p.log(), 0.7).isfinite().tolist() == [False, True, False, True]
    assert decoding.min_p(p.log(), 1.0).isfinite().tolist() == [False, False, False, True]
    # Surprises 3.00, 1.20, 1.39, 0.92 beside an entropy of 1.22.
    for share, kept in ((0.29, [1]), (0.31, [1, 2]), (0.56, [1, 2, 3]), (0.96, [0, 1, 2, 3])):
        found = decoding.typical(p.log(), share).isfinite().nonzero().flatten().tolist()
        assert found == kept, share
    for fn in (decoding.min_p, decoding.typical):
        assert fn(p.log().half(), 0.5).dtype == torch.float16
        nan = torch.tensor([0.0, float("nan"), 1.0])
        assert fn(nan, 0.5).isnan()[1]
    assert torch.equal(decoding.min_p(p, 0), p) and torch.equal(decoding.typical(p, 1), p)


def test_they_are_settings_of_all_that_samples() -> None:
    params, ids = wide(), prompts(3, 5)
    keys = random.split(KEY, 3)
    settings: dict[str, Any] = {"temperature": 1.5, "top_k": 30, "min_p": 0.05, "typical": 0.8}
    whole = generate(gpt2.apply, params, ids, 7, key=keys, **settings)
    free = generate(gpt2.apply, params, ids, 7, key=keys, temperature=1.5, top_k=30)
    assert not torch.equal(whole, free)
    steps = list(stream(gpt2.apply, params, ids, 7, key=keys, **settings))
    assert torch.equal(torch.stack(steps, 1), whole)
    state = start(gpt2.apply, params, ids)
    assert torch.equal(scan(gpt2.apply, params, state, 7, key=keys, **settings)[1], whole)
    logits = decoding.top_k(decoding.temperature(state.logits, 1.5), 30)
    logits = decoding.typical(decoding.min_p(logits, 0.05), 0.8)
    assert torch.equal(random.categorical(random.fold_in(keys, 0), logits), whole[:, 0])
    unkeyed: list[dict[str, Any]] = [{"min_p": 0.1}, {"typical": 0.1}]
    for change in unkeyed:
        message = f"{next(iter(change))}=0.1 needs a key"
        with pytest.raises(ValueError, match=message):
            sample(state.logits, **change)
        with pytest.raises(ValueError, match=message):
            generate(gpt2.apply, params, ids, 2, **change)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"min_p": -0.1}, ValueError, "min_p must be from 0 .* got -0.1"),
        ({"min_p": 1.1}, ValueError, "min_p must be from 0 .* got 1.1"),
        ({"min_p": float("nan")}, ValueError, "min_p must be from 0 .* got nan"),
        ({"typical": 0.0}, ValueError, "typical must be more than 0 .* got 0.0"),
        ({"typical": 1.5}, ValueError, "typical must be more than 0 .* got 1.5"),
        ({"typical": "1"}, TypeError, "typical must be a number, got '1'"),
        ({"min_p": None}, TypeError, "min_p must be a number, got None"),
    ]
    for change, error, message in wrong:
        with pytest.raises(error, match=message):
            generate(gpt2.apply, params, ids, 2, key=KEY, **change)


def test_contrast_of_two_models() -> None:
    expert, amateur = random.normal(KEY, (2, 5, 19)).double().unbind(0)
    p, q = expert.softmax(-1), amateur.softmax(-1)
    for share in (0.0, 0.1, 0.6, 1.0):
        found = decoding.contrast(expert, amateur, share)
        for row in range(5):
            for token in range(19):
                kept = p[row, token] >= share * p[row].max()
                wanted = (p[row, token] / q[row, token]).log() if kept else -torch.inf
                assert torch.isclose(found[row, token], torch.as_tensor(wanted).double())
    expert[0, 3] = float("nan")
    assert decoding.contrast(expert, amateur)[0].isnan().all()
    with pytest.raises(ValueError, match=r"expert has shape \[5, 19\], amateur \[5, 18\]"):
        decoding.contrast(expert, amateur[:, 1:])
    with pytest.raises(ValueError, match="share must be from 0 .* got 2"):
        decoding.contrast(expert, amateur, 2)


def plain(module: Any, params: Any, prompt: Tensor, new: int, top_k: int, alpha: float) -> Any:
    """Contrastive search of one text, each candidate read with the whole text: no cache."""
    text = prompt.tolist()
    for _ in range(new):
        logits = module.apply(params, torch.tensor([text]))[0][0, -1]
        p = logits.double().softmax(-1)
        scores = {}
        for v in p.topk(top_k).indices.tolist():
            h = module.hidden_states(params, torch.tensor([[*text, v]]))[0][0].double()
            h = h / h.norm(dim=-1, keepdim=True)
            scores[v] = (1 - alpha) * float(p[v]) - alpha * float((h[:-1] @ h[-1]).max())
        text.append(max(scores, key=lambda v: scores[v]))
    return text[len(prompt) :]


@pytest.mark.parametrize(("top_k", "alpha"), [(1, 0.6), (4, 0.0), (4, 0.6), (7, 0.3), (41, 1.0)])
@pytest.mark.parametrize("family", [GPT, GPT2, TRANSFO_XL], ids=lambda f: f.name)
def test_contrastive_search_equals_the_plain_loop(family: Any, top_k: int, alpha: float) -> None:
    params, ids = wide(family), prompts(2, 5)
    module, reading = family.module, taps.read(family.module.apply, "hidden")
    wanted = [plain(module, params, row, 9, top_k, alpha) for row in ids]
    found = contrastive_search(reading, params, ids, 9, top_k=top_k, alpha=alpha)
    assert found.tolist() == wanted
    greedy = generate(module.apply, params, ids, 9)
    assert torch.equal(found, greedy) == (top_k == 1 or alpha == 0)
    one = contrastive_search(reading, params, ids[0], 9, top_k=top_k, alpha=alpha)
    assert one.tolist() == wanted[0]


@pytest.mark.parametrize("side", ["left", "right"])
def test_contrastive_search_of_padded_prompts_and_eos(side: str) -> None:
    params, lengths = wide(), [3, 1, 8]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    mask = mask.flip(-1) if side == "left" else mask
    ids = prompts(3, 9)
    wanted = [
        contrastive_search(READING, params, row[real], 12).tolist()
        for row, real in zip(ids, mask, strict=True)
    ]
    assert contrastive_search(READING, params, ids, 12, mask=mask).tolist() == wanted
    ends = [wanted[0][3], wanted[2][6]]
    for pad in (None, 9):
        found = contrastive_search(READING, params, ids, 12, mask=mask, eos=iter(ends), pad=pad)
        for row, text in zip(found.tolist(), wanted, strict=True):
            stop = min((text.index(end) for end in ends if end in text), default=11)
            filler = ends[0] if pad is None else pad
            assert row == text[: stop + 1] + [filler] * (11 - stop)


def test_contrastive_search_at_its_edges() -> None:
    params, ids = wide(), prompts(2, 5)
    before, seed = tree.map(torch.clone, params), torch.get_rng_state()
    for lead in ((0,), (2, 0)):
        none = torch.zeros(*lead, 5, dtype=torch.int64)
        assert contrastive_search(READING, params, none, 3).shape == (*lead, 3)
    assert contrastive_search(READING, params, ids, 0).shape == (2, 0)
    assert contrastive_search(READING, params, ids, 19).shape == (2, 19)
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"top_k": 0}, ValueError, "top_k must be at least 1"),
        ({"top_k": 1.5}, TypeError, "top_k must be a whole number"),
        ({"alpha": 1.5}, ValueError, "alpha must be from 0"),
        ({"alpha": float("nan")}, ValueError, "alpha must be from 0"),
        ({"max_new_tokens": 20}, ValueError, "n_positions=24"),
        ({"apply": gpt2.apply}, TypeError, r"apply must return its hidden states.*taps\.read"),
        ({"mask": torch.ones(2, 5)}, TypeError, "mask"),
    ]
    for change, error, message in cases:
        given = {"apply": READING, "params": params, "ids": ids, "max_new_tokens": 3} | change
        with pytest.raises(error, match=message):
            contrastive_search(**given)
    for (path, a), b in zip(tree.named_leaves(before), tree.leaves(params), strict=True):
        assert torch.equal(a, b), path
    assert torch.equal(seed, torch.get_rng_state())
    broken = make_params(GPT2)
    broken["embed"]["token"][3] = float("nan")
    with pytest.raises(ValueError, match=r"of new token 0 .* rows \[0, 1\], where they hold NaN"):
        contrastive_search(READING, broken, ids.clamp_min(4), 3)


def test_what_the_model_excludes_is_no_candidate() -> None:
    """Two tokens are possible, of ten candidates; a state without tensors will do."""

    def apply(params: Any, ids: Tensor, cache: Any = None) -> Any:
        logits = torch.full((*ids.shape, 10), -torch.inf)
        logits[..., 3], logits[..., 4] = 1.0, 0.0
        hidden = torch.nn.functional.one_hot(ids, 10).float()
        return (logits, None), {"hidden": hidden}

    found = contrastive_search(apply, {}, torch.tensor([[0], [3]]), 3, top_k=10)
    assert set(found.flatten().tolist()) == {3, 4}
