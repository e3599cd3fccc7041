"""The memory of Transformer-XL: segments, rows, resets, gradients; its config and its errors."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TRANSFO_XL, make_params
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jvp, vmap

from fnlm import random, transfo_xl, tree
from fnlm.layers import memory
from fnlm.layers.relative_attention import (
    attend_relative,
    attention_bias,
    causal_window_mask,
    sinusoids,
)
from fnlm.params import _rename, io, spec
from fnlm.params.names.transfo_xl import FAMILY
from fnlm.transfo_xl import Mems, apply, init_mems, negative_log_likelihood, reset_mems

PARAMS = make_params(TRANSFO_XL)


def changed(params: Any = PARAMS, **changes: Any) -> Any:
    return params | {"config": dataclasses.replace(params["config"], **changes)}


def close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


def in_segments(
    params: Any, ids: Tensor, lengths: Sequence[int], mems: Mems | None = None, **options: Any
) -> tuple[Tensor, Mems | None]:
    parts = []
    for part in ids.split(list(lengths), -1):
        scores, mems = apply(params, part, mems, **options)
        parts.append(scores)
    return torch.cat(parts, -2), mems


cuts = st.lists(st.integers(1, 7), min_size=2, max_size=6)


@settings(max_examples=25)
@given(cuts, st.sampled_from([True, False]), st.sampled_from([-1, 4]))
def test_segments_of_any_lengths_equal_one_pass_if_the_memory_covers_it(
    lengths: list[int], same_length: bool, clamp_len: int
) -> None:
    params = changed(mem_len=sum(lengths) + 2, same_length=same_length, clamp_len=clamp_len)
    ids = torch.randint(41, (2, sum(lengths)))
    start = init_mems(params, 2, empty=True)
    close(in_segments(params, ids, lengths, start), apply(params, ids, start))


def test_an_empty_memory_is_no_memory() -> None:
    params, none = changed(same_length=False), changed(same_length=False, mem_len=0)
    ids = torch.randint(41, (2, 6))
    close(apply(params, ids, init_mems(params, 2, empty=True))[0], apply(none, ids)[0])
    assert (apply(params, ids)[0] - apply(none, ids)[0]).abs().max() > 1e-2, "blanks are seen"


def test_no_memory_given_stands_for_a_blank_one() -> None:
    ids = torch.randint(41, (2, 6))
    close(apply(PARAMS, ids), apply(PARAMS, ids, init_mems(PARAMS, 2)), 0)


def test_probabilities_sum_to_one() -> None:
    scores, _ = in_segments(PARAMS, torch.randint(41, (2, 9)), (4, 5))
    torch.testing.assert_close(scores.exp().sum(-1), torch.ones(2, 9))


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("same_length", [False, True])
def test_a_row_that_is_reset_starts_afresh_and_changes_no_other(
    empty: bool, same_length: bool
) -> None:
    params = changed(same_length=same_length)
    ids, rows = torch.randint(41, (3, 9)), torch.tensor([False, True, False])
    start = init_mems(params, 3, empty=empty)
    _, mems = apply(params, ids[:, :4], start)
    kept, _ = in_segments(params, ids[:, 4:], (2, 3), mems)
    found, after = in_segments(params, ids[:, 4:], (2, 3), reset_mems(mems, rows, empty=empty))
    fresh, _ = in_segments(params, ids[1:2, 4:], (2, 3), init_mems(params, 1, empty=empty))
    assert found[0].equal(kept[0]) and found[2].equal(kept[2])
    close(found[1:2], fresh)
    assert (found[1] - kept[1]).abs().max() > 1e-2
    assert after is not None and after.valid[[0, 2]].all()


def test_the_memory_holds_the_last_tokens_but_those_of_the_extended_context() -> None:
    """ext_len: the last tokens of a segment come again with the next, so they wait."""
    mems = init_mems(changed(mem_len=0), 1)
    seen: list[int] = []
    for new in (4, 1, 0, 5):
        seen += list(range(len(seen), len(seen) + new))
        now = torch.tensor(seen[-new:] if new else [], dtype=torch.float32).view(1, -1, 1)
        past = mems.hidden[0][..., :1]
        joined = Mems((torch.cat([past, now], 1),), torch.ones(1, past.shape[1] + new).bool())
        mems = memory.update_mems(joined, new, 6, ext_len=2)
        stop = past.shape[1] + max(0, new - 2)  # the formula of the paper's code
        expected = joined.hidden[0][:, max(0, stop - 6) : stop]
        assert mems.hidden[0].equal(expected) and mems.valid.shape == (1, expected.shape[1])


def test_changing_the_length_of_the_memory_cuts_or_grows_it() -> None:
    ids = torch.randint(41, (2, 6))
    _, mems = apply(PARAMS, ids)
    layers = zip(mems.hidden, apply(changed(mem_len=30), ids, mems)[1].hidden, strict=True)
    whole = [torch.cat([past, joined[:, 5:]], 1) for past, joined in layers]
    for length in (0, 2, 5, 9, 30):
        _, new = apply(changed(same_length=False, mem_len=length), ids, mems)
        assert new.valid.shape[-1] == min(length, 5 + 6)
        assert new.hidden[0].equal(whole[0][:, max(0, 11 - length) :])


def test_memories_are_detached_unless_asked() -> None:
    ids = torch.randint(41, (2, 9))

    def loss(params: Any, detach: bool) -> Tensor:
        _, mems = apply(params, ids[:, :4], detach=detach)
        return apply(params, ids[:, 4:], mems)[0][..., 0].sum()

    def whole(params: Any) -> Tensor:
        return apply(params, ids)[0][:, 4:, 0].sum()

    close(grad(loss)(PARAMS, False), grad(whole)(PARAMS), 1e-4)
    differs = tree.map(lambda a, b: a - b, grad(loss)(PARAMS, True), grad(whole)(PARAMS))
    assert max(x.abs().max() for x in tree.leaves(differs)) > 1e-2
    first = grad(lambda p: apply(p, ids)[1].hidden[1].sum())(PARAMS)
    assert all(x.eq(0).all() for x in tree.leaves(first))
    tangent = tree.map(torch.ones_like, PARAMS)
    moved = jvp(lambda p: apply(p, ids)[1].hidden[1], (PARAMS,), (tangent,))[1]
    assert moved.eq(0).all()


def test_the_gradient_reaches_the_memory_given() -> None:
    ids = torch.randint(41, (2, 4))
    _, mems = apply(PARAMS, ids)

    def loss(hidden: tuple[Tensor, ...]) -> Tensor:
        return apply(PARAMS, ids, mems._replace(hidden=hidden))[0].sin().sum()

    for gradient in grad(loss)(mems.hidden):
        used = gradient.abs().sum(-1).gt(0)
        assert (
            used[:, 1:].all() and not used[:, 0].any()
        )  # the oldest is out of every causal_window_mask


def test_a_token_attends_to_the_memory_and_no_further_by_gradient() -> None:
    params = changed(mem_len=3, n_layer=1) | {"blocks": PARAMS["blocks"][:1]}
    ids, table = torch.arange(7) + 3, params["embed"]["cluster_0"]["table"]

    def score(table: Tensor, t: int) -> Tensor:
        embed = params["embed"] | {"cluster_0": params["embed"]["cluster_0"] | {"table": table}}
        return transfo_xl.hidden_states(params | {"embed": embed}, ids)[0][t].sin().sum()

    for t in range(7):
        used = grad(score)(table, t).abs().sum(-1).gt(0).nonzero().flatten()
        assert used.tolist() == [id for id in range(t + 1, t + 4) if id >= 3]


def test_vmap_over_memories_and_stacked_parameters() -> None:
    ids = torch.randint(41, (3, 8))
    _, mems = apply(PARAMS, ids[:, :4])
    scores, new = apply(PARAMS, ids[:, 4:], mems)
    close(vmap(lambda i, m: apply(PARAMS, i, m))(ids[:, 4:], mems), (scores, new))
    members = [make_params(TRANSFO_XL, seed=s) for s in range(2)]
    stacked = vmap(lambda p: apply(p, ids[:, 4:], mems))(tree.stack(members))
    for row, member in zip(tree.unstack(stacked), members, strict=True):
        close(row, apply(member, ids[:, 4:], mems))


def test_a_key_for_each_row_is_what_vmap_gives() -> None:
    ids, keys = torch.randint(41, (3, 2, 6)), random.split(random.key(2), 3)
    params = tree.cast(PARAMS, torch.float64)
    found = apply(params, ids, key=keys)
    close(found, vmap(lambda i, k: apply(params, i, key=k))(ids, keys), 1e-12)
    assert (found[0] - apply(params, ids)[0]).abs().max() > 1e-2


def test_scores_follow_the_formula() -> None:
    """Each score from its own distance, without any shift."""
    heads, new, total, width = 2, 3, 5, 4
    q = random.normal(random.key(0), (heads, new, width), torch.float64)
    k, v = random.normal(random.key(1), (2, heads, total, width), torch.float64)
    r = random.normal(random.key(3), (heads, total + 1, width), torch.float64)
    a, b = random.normal(random.key(4), (2, heads, width), torch.float64)
    mask = causal_window_mask(new, total, window=4)
    added = attention_bias(mask, torch.float64)
    found = attend_relative(q, k, v, r, added, content_bias=a, position_bias=b)
    for h in range(heads):
        for t in range(new):
            now = total - new + t
            seen = [j for j in range(total) if 0 <= now - j < 4]
            by_content = [(q[h, t] + a[h]) @ k[h, j] for j in seen]
            by_distance = [(q[h, t] + b[h]) @ r[h, total - (now - j)] for j in seen]
            scores = torch.stack(by_content) + torch.stack(by_distance)
            weights = (scores / width**0.5).softmax(0)
            torch.testing.assert_close(found[h, t], weights @ v[h, seen])
    assert mask.int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]


def test_distances_beyond_the_clamp_look_alike() -> None:
    table = sinusoids(7, 6, clamp=3)
    assert table[:4].eq(table[3]).all() and not table[4].equal(table[3])
    close(table[3:], sinusoids(4, 6), 0)
    assert sinusoids(7, 6, clamp=-1).unique(dim=0).shape[0] == 7


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: apply(PARAMS, torch.zeros(2, 3).long(), init_mems(PARAMS, 3)),
            ValueError,
            ["mems", "[3, 5, 36]", "[2, 5, 36]"],
        ),
        (
            lambda: apply(PARAMS, torch.zeros(2, 3).long(), init_mems(changed(d_model=8), 2)),
            ValueError,
            ["[2, 5, 8]", "[2, 5, 36]"],
        ),
        (
            lambda: negative_log_likelihood(
                PARAMS, torch.zeros(2, 3).long(), torch.zeros(2, 4).long()
            ),
            ValueError,
            ["targets", "[2, 4]", "[2, 3]"],
        ),
        (
            lambda: reset_mems(init_mems(PARAMS, 3), torch.tensor([1, 0, 1])),
            ValueError,
            ["rows", "bool [3]", "int64"],
        ),
        (
            lambda: apply(changed(mem_len=0), torch.zeros(2, 3).long()),
            ValueError,
            ["same_length", "mem_len=0"],
        ),
        (lambda: changed(attn_type=2), ValueError, ["attn_type=2", "memory"]),
        (lambda: changed(d_model=7), ValueError, ["d_model", "7", "even"]),
        (lambda: changed(mem_len=-1), ValueError, ["mem_len"]),
        (lambda: changed(n_head=0), ValueError, ["n_head", "0"]),
        (lambda: changed(init="xavier"), ValueError, ["init", "xavier"]),
    ],
)
def test_misuse_is_named(call: Callable[[], Any], error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_configs_of_every_origin_are_read() -> None:
    published = {
        "adaptive": True, "attn_type": 0, "clamp_len": 1000, "cutoffs": [20000, 40000, 200000],
        "d_embed": 1024, "d_head": 64, "d_inner": 4096, "d_model": 1024, "div_val": 4,
        "dropatt": 0.0, "dropout": 0.1, "ext_len": 0, "init": "normal", "init_range": 0.01,
        "init_std": 0.02, "mem_len": 1600, "n_head": 16, "n_layer": 18, "n_token": 267735,
        "pre_lnorm": False, "proj_init_std": 0.01, "same_length": True, "sample_softmax": -1,
        "tgt_len": 128, "tie_projs": [False, True, True, True], "tie_weight": True,
        "untie_r": True,
    }  # fmt: skip
    config = transfo_xl.Config.from_dict(published)
    assert config == transfo_xl.Config() and hash(config) == hash(transfo_xl.Config())
    assert published.items() <= config.to_dict().items()
    assert transfo_xl.Config.from_dict({"vocab_size": 267735}) == config
    assert transfo_xl.Config.from_dict({"vocab_size_or_config_json_file": 267735}) == config
    assert transfo_xl.Config.from_dict(config.to_dict() | {"new": [1]}).to_dict()["new"] == [1]
    separate = dataclasses.replace(config, proj_share_all_but_first=False)
    assert separate.to_dict()["tie_projs"] == [False] * 4
    assert transfo_xl.Config.from_dict(separate.to_dict()) == separate
    odd = dataclasses.replace(config, tie_projs=(True, False, True, False))
    assert transfo_xl.Config.from_dict(json.loads(odd.to_json_string())) == odd


def test_published_size() -> None:
    """The model of the WikiText-103 checkpoint, counted without its memory."""
    millions = spec.size(transfo_xl.spec(transfo_xl.Config())) / 1e6
    assert round(millions) == 285


def test_uniform_init_keeps_to_its_range() -> None:
    params = transfo_xl.init(dataclasses.replace(PARAMS["config"], init="uniform"), random.key(0))
    for path, x in tree.named_leaves(params):
        if path.endswith("table"):
            assert 0.008 < x.abs().max() <= 0.01, path


def test_stacked_biases_are_cut_into_layers() -> None:
    """The release for TensorFlow has one tensor for the biases of all layers."""
    pairs = {"transformer/r_w_bias": "content_bias", "transformer/r_r_bias": "position_bias"}
    flat = tree.named_leaves({name: leaf for name, leaf in PARAMS.items() if name != "config"})
    others = {path: x for path, x in flat if not path.endswith(tuple(pairs.values()))}
    tensors = _rename.to_foreign(_rename.nest(others), FAMILY.dialects[2])
    for name, leaf in pairs.items():
        tensors[name] = torch.stack([block["attention"][leaf] for block in PARAMS["blocks"]])
    tensors["global_step"] = torch.tensor(7)
    again = io.assemble(tensors, PARAMS["config"], FAMILY, transfo_xl.spec)
    close(again, PARAMS, 0)
    short = tensors | {"transformer/r_w_bias": tensors["transformer/r_w_bias"][:1]}
    with pytest.raises(ValueError, match="content_bias"):
        io.assemble(short, PARAMS["config"], FAMILY, transfo_xl.spec)


def test_a_vocabulary_unlike_the_models_is_named(tmp_path: Path) -> None:
    transfo_xl.save(PARAMS, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_type"] == "transfo-xl" and content["cutoffs"] == [11, 24]
    (tmp_path / "config.json").write_text(json.dumps(content | {"n_token": 42}))
    with pytest.raises(ValueError, match=r"emb_layers\.2\.weight .* \[17, 5\], expected \[18, 5\]"):
        transfo_xl.load(tmp_path)


def test_clusters_go_by_their_names_not_by_the_order_of_the_dict() -> None:
    """Merging the halves of a partition, for one, may change that order."""
    ids = torch.tensor([[1, 12, 30, 40]])
    turned = {name: dict(reversed(part.items())) if name in ("embed", "softmax") else part
              for name, part in PARAMS.items()}  # fmt: skip
    assert transfo_xl.apply(turned, ids)[0].equal(transfo_xl.apply(PARAMS, ids)[0])
