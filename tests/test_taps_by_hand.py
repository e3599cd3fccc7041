"""What is read at every site, computed again by hand from the parameters and from other sites.

Each quantity follows from those before it in plain loops and numbers, in float64; nothing of fnlm's
layers is used.
"""

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from families import BERT, GPT, GPT2, TRANSFO_XL, Family, make_batch, make_params
from torch import Tensor

from fnlm import taps

HEADS, EPS = 3, 1e-3
Params = Any
Found = dict[str, Tensor]


def close(found: Tensor, expected: Tensor, site: str) -> None:
    assert found.shape == expected.shape, site
    torch.testing.assert_close(
        found, expected, rtol=1e-10, atol=1e-10, msg=lambda m: f"{site}\n{m}"
    )


def normed(x: Tensor, norm: Params) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * norm["scale"] + norm["bias"]


def affine(x: Tensor, layer: Params) -> Tensor:
    return torch.einsum("...i,io->...o", x, layer["weight"]) + layer["bias"]


def gelu_tanh(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_erf(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def split(x: Tensor) -> list[Tensor]:
    """The parts of the last axis that belong to each head."""
    return list(x.unflatten(-1, (HEADS, -1)).unbind(-2))


def joined(heads: Tensor) -> Tensor:
    """[B, H, T, Dh] -> [B, T, H Dh]."""
    return torch.cat(list(heads.unbind(1)), -1)


def check_weights(found: Found, block: str, allowed: Tensor, scores: Tensor | None = None) -> None:
    """Attention of each head and query alone; allowed [B, T, S] says to which keys."""
    q, k, v, weights, heads = (
        found[f"{block}.attention.{name}"] for name in ("q", "k", "v", "weights", "heads")
    )
    if scores is None:
        scores = torch.einsum("bhtd,bhsd->bhts", q, k) / math.sqrt(q.shape[-1])
    expected = torch.zeros_like(weights)
    for b, h, t in itertools.product(*map(range, weights.shape[:3])):
        seen = allowed[b, t]
        row = scores[b, h, t][seen].exp()
        # A query that may attend to nothing, which is padding, attends to all keys alike.
        expected[b, h, t, seen] = row / row.sum()
        expected[b, h, t] += 0.0 if seen.any() else 1 / len(seen)
    close(weights, expected, f"{block}.attention.weights")
    close(heads, torch.einsum("bhts,bhsd->bhtd", weights, v), f"{block}.attention.heads")


def check_qkv(found: Found, block: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, x in zip("qkv", (q, k, v), strict=True):
        close(found[f"{block}.attention.{name}"], torch.stack(split(x), 1), name)


def check_mlp(found: Found, block: str, x: Tensor, weights: Params, activation: Any) -> None:
    hidden = found[f"{block}.mlp.hidden"]
    close(hidden, activation(affine(x, weights["up"])), f"{block}.mlp.hidden")
    close(found[f"{block}.mlp.out"], affine(hidden, weights["down"]), f"{block}.mlp.out")


def check_residual(found: Found, params: Params, *, pre: bool, layer: int) -> None:
    """The residual stream of a block, from what both halves add to it."""
    block, weights = f"blocks.{layer}", params["blocks"][layer]
    into, mid = found[f"{block}.in"], found[f"{block}.mid"]
    mid_sum, out_sum = into + found[f"{block}.attention.out"], mid + found[f"{block}.mlp.out"]
    close(mid, mid_sum if pre else normed(mid_sum, weights["norm_1"]), f"{block}.mid")
    out = out_sum if pre else normed(out_sum, weights["norm_2"])
    close(found[f"{block}.out"], out, f"{block}.out")
    if layer:
        assert found[f"{block}.in"].equal(found[f"blocks.{layer - 1}.out"])


@pytest.mark.parametrize("family", [GPT, GPT2], ids=["gpt", "gpt2"])
def test_gpt_and_gpt2(family: Family) -> None:
    params, (ids, mask) = make_params(family, dtype=torch.float64), make_batch(family)
    pre = family is GPT2
    (logits, _), found = taps.read(family.module.apply, "**")(params, ids, mask=mask)
    close(found["embed.token"], params["embed"]["token"][ids], "embed.token")
    positions = (mask.long().cumsum(-1) - 1).clamp(min=0)
    into = found["embed.token"] + params["embed"]["position"][positions]
    close(found["blocks.0.in"], into, "blocks.0.in")
    allowed = mask[:, None, :] & torch.ones(7, 7, dtype=torch.bool).tril()  # [B, T, T]
    for layer, weights in enumerate(params["blocks"]):
        block, into = f"blocks.{layer}", found[f"blocks.{layer}.in"]
        x = normed(into, weights["norm_1"]) if pre else into
        check_qkv(found, block, *affine(x, weights["attention"]["qkv"]).chunk(3, -1))
        check_weights(found, block, allowed)
        out = affine(joined(found[f"{block}.attention.heads"]), weights["attention"]["out"])
        close(found[f"{block}.attention.out"], out, f"{block}.attention.out")
        mid = found[f"{block}.mid"]
        x = normed(mid, weights["norm_2"]) if pre else mid
        check_mlp(found, block, x, weights["mlp"], gelu_tanh)
        check_residual(found, params, pre=pre, layer=layer)
    hidden = normed(found["blocks.1.out"], params["norm"]) if pre else found["blocks.1.out"]
    close(found["hidden"], hidden, "hidden")
    close(found["logits"], hidden @ params["embed"]["token"].T, "logits")
    assert found["logits"].equal(logits)
    assert len(found) == 1 + 2 * 11 + 2, "a site is not checked here"


def test_bert() -> None:
    params, (ids, mask) = make_params(BERT, dtype=torch.float64), make_batch(BERT)
    embed, types = params["embed"], ids % 2
    (_, pooled), found = taps.read(BERT.module.apply, "**")(params, ids, types, mask)
    close(found["embed.token"], embed["token"][ids], "embed.token")
    total = found["embed.token"] + embed["position"][:7] + embed["token_type"][types]
    close(found["blocks.0.in"], normed(total, embed["norm"]), "blocks.0.in")
    for layer, weights in enumerate(params["blocks"]):
        block, x, attention = f"blocks.{layer}", found[f"blocks.{layer}.in"], weights["attention"]
        q, k, v = (affine(x, attention[name]) for name in "qkv")
        check_qkv(found, block, q, k, v)
        check_weights(found, block, mask[:, None, :].expand(-1, 7, -1))
        out = affine(joined(found[f"{block}.attention.heads"]), attention["out"])
        close(found[f"{block}.attention.out"], out, f"{block}.attention.out")
        check_mlp(found, block, found[f"{block}.mid"], weights["mlp"], gelu_erf)
        check_residual(found, params, pre=False, layer=layer)
    assert found["hidden"].equal(found["blocks.1.out"])
    close(found["pooled"], affine(found["hidden"][:, 0], params["pooler"]).tanh(), "pooled")
    assert found["pooled"].equal(pooled)
    assert len(found) == 1 + 2 * 11 + 2, "a site is not checked here"


@pytest.mark.parametrize("pre", [False, True], ids=["post-norm", "pre-norm"])
def test_transfo_xl(pre: bool) -> None:
    """The second segment of a text, which attends to the memory of the first."""
    config = dataclasses.replace(TRANSFO_XL.config, pre_lnorm=pre)
    params = make_params(TRANSFO_XL._replace(config=config), dtype=torch.float64)
    ids, _ = make_batch(TRANSFO_XL, length=11)
    _, mems = TRANSFO_XL.module.apply(params, ids[:, :4])
    ids = ids[:, 4:]
    (logits, _), found = taps.read(TRANSFO_XL.module.apply, "**")(params, ids, mems)
    edges = (0, 11, 24, 41)
    for b, t in itertools.product(range(3), range(7)):
        number = sum(int(ids[b, t]) >= edge for edge in edges[1:3])
        cluster = params["embed"][f"cluster_{number}"]
        row = cluster["table"][int(ids[b, t]) - edges[number]] @ cluster["projection"]
        close(found["embed.token"][b, t], row, "embed.token")
    close(found["blocks.0.in"], 6 * found["embed.token"], "blocks.0.in")  # sqrt(36)
    past = mems.valid.shape[-1]
    distance = past + torch.arange(7)[:, None] - torch.arange(past + 7)  # [T, S]
    allowed = ((distance >= 0) & (distance < 5)).expand(3, -1, -1)  # of mem_len keys
    frequencies = 1 / 10000 ** (torch.arange(0, 36, 2) / 36)  # in float32, as published
    angles = distance.clamp(0, 4).double()[..., None] * frequencies.double()
    sinusoid = torch.cat([angles.sin(), angles.cos()], -1)  # [T, S, D]
    for layer, weights in enumerate(params["blocks"]):
        block, attention = f"blocks.{layer}", weights["attention"]
        into = torch.cat([mems.hidden[layer], found[f"{block}.in"]], 1)  # [B, S, D]
        x = normed(into, weights["norm_1"]) if pre else into
        q, k, v = (x @ attention["qkv"]).chunk(3, -1)
        check_qkv(found, block, q[:, past:], k, v)
        q, k = (found[f"{block}.attention.{name}"] for name in "qk")
        r = torch.stack(split(sinusoid @ attention["relative"]))  # [H, T, S, Dh]
        scores = torch.einsum("bhtd,bhsd->bhts", q + attention["content_bias"][:, None], k)
        scores += torch.einsum("bhtd,htsd->bhts", q + attention["position_bias"][:, None], r)
        check_weights(found, block, allowed, scores / math.sqrt(10))
        out = joined(found[f"{block}.attention.heads"]) @ attention["out"]
        close(found[f"{block}.attention.out"], out, f"{block}.attention.out")
        mid = found[f"{block}.mid"]
        x = normed(mid, weights["norm_2"]) if pre else mid
        check_mlp(found, block, x, weights["mlp"], torch.relu)
        check_residual(found, params, pre=pre, layer=layer)
    assert found["hidden"].equal(found["blocks.1.out"])
    assert found["logits"].equal(logits)
    close(logits.exp().sum(-1), torch.ones(3, 7, dtype=torch.float64), "logits")
    assert len(found) == 1 + 2 * 11 + 2, "a site is not checked here"


def test_heads_of_bert() -> None:
    params, (ids, mask) = make_params(BERT, dtype=torch.float64), make_batch(BERT)
    for name, head in params["heads"].items():
        function, site = getattr(BERT.module, name), f"heads.{name}.logits"
        rows, masks = (ids, mask) if name != "multiple_choice" else (ids[None], mask[None])
        result, found = taps.read(function, site, "hidden")(params, rows, rows % 2, masks)
        hidden = found["hidden"]
        if name == "masked_lm":
            x = normed(gelu_erf(affine(hidden, head["transform"])), head["norm"])
            expected = x @ params["embed"]["token"].T + head["bias"]
        else:
            of_tokens = name in ("token_classification", "question_answering")
            x = hidden if of_tokens else affine(hidden[..., 0, :], params["pooler"]).tanh()
            expected = affine(x, head)
        close(found[site], expected, site)
        result = torch.stack(result, -1) if isinstance(result, tuple) else result
        assert found[site].equal(result if name != "multiple_choice" else result[..., None])


@pytest.mark.parametrize("family", [GPT, GPT2], ids=["gpt", "gpt2"])
def test_the_head_of_gpt_and_gpt2(family: Family) -> None:
    params, (ids, mask) = make_params(family, dtype=torch.float64), make_batch(family)
    at, site = torch.tensor([1, 6, 4]), "heads.multiple_choice.logits"
    (lm, choices, _), found = taps.read(family.module.double_heads, "logits", site, "hidden")(
        params, ids, at, mask=mask
    )
    chosen = found["hidden"][torch.arange(3), at]
    close(found[site], affine(chosen, params["heads"]["multiple_choice"])[..., 0], site)
    assert found[site].equal(choices) and found["logits"].equal(lm)
