"""GPT-2 equals transformers 5.x and pytorch-pretrained-bert 0.6.2: outputs and gradients."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from families import GPT2, make_params
from peers import hf, ppb_gpt2
from torch.func import grad

from fnlm import gpt2, tree
from fnlm.layers.attention import SLICE
from fnlm.params import _rename
from fnlm.params.module import from_module
from fnlm.params.names.gpt2 import FAMILY

CONFIGS = {
    "three heads": {},
    "one head, narrow": {"n_head": 1, "n_embd": 5, "n_layer": 1},
    "inner width, other eps": {"n_inner": 17, "layer_norm_epsilon": 0.1, "n_embd": 12},
    "relu": {"activation_function": "relu", "n_head": 4, "n_embd": 8, "n_layer": 3},
}
PEERS = [
    *(("transformers", name) for name in CONFIGS),
    ("pytorch-pretrained-bert", "three heads"),
    ("pytorch-pretrained-bert", "one head, narrow"),
]
CLASSES = {
    "hidden_states": "GPT2Model",
    "apply": "GPT2LMHeadModel",
    "double_heads": "GPT2DoubleHeadsModel",
}
PRECISION = [(torch.float32, 1e-5), (torch.float64, 1e-9)]


def make_config(name: str) -> gpt2.Config:
    return gpt2.Config.from_dict(GPT2.config.to_dict() | CONFIGS[name])


def make_peer(peer: str, variant: str, config: gpt2.Config, params: Any) -> tuple[Any, Any]:
    """The peer's function, and our parameters under its names, as a tree."""
    if peer == "transformers":
        content = config.to_dict() | {"bos_token_id": None, "eos_token_id": None}
        module = getattr(hf(), CLASSES[variant])(hf().GPT2Config(**content))
        dialect = FAMILY.dialects[0]
    else:
        module = ppb_gpt2(config.to_dict(), CLASSES[variant])
        dialect = FAMILY.dialects[1]
    module = module.to(tree.leaves(params)[0].dtype).eval()
    leaves = {k: v for k, v in params.items() if k != "config"}
    names = _rename.to_foreign(leaves, dialect)
    apply, theirs = from_module(module)
    wanted = [name for name, _ in tree.named_leaves(theirs)]
    ours = {name.removeprefix("transformer.") if variant == "hidden_states" else name: x
            for name, x in names.items()}  # fmt: skip
    return apply, _rename.nest({name: ours[name] for name in wanted})


def inputs(config: gpt2.Config, variant: str, length: int = 9) -> dict[str, torch.Tensor]:
    lead = (2, 3) if variant == "double_heads" else (3,)
    return {
        "ids": torch.randint(config.vocab_size, (*lead, length)),
        "token_types": torch.randint(config.vocab_size, (*lead, length)),
        "choice_positions": torch.randint(length, lead),
        "weights": torch.randn(3, *lead, length, 1),
    }


def ours_of(params: Any, variant: str, x: dict[str, torch.Tensor], **options: Any) -> tuple:
    ids = x["ids"]
    if variant == "double_heads":
        return gpt2.double_heads(params, ids, x["choice_positions"], **options)[:2]
    return (getattr(gpt2, variant)(params, ids, **options)[0],)


def theirs_of(
    peer: str, apply: Any, params: Any, variant: str, x: dict[str, torch.Tensor], **options: Any
) -> tuple:
    if variant == "double_heads":
        options["mc_token_ids"] = x["choice_positions"]
    result = apply(params, x["ids"], **options)
    if peer != "transformers":
        return tuple(result)[: 2 if variant == "double_heads" else 1]
    if variant == "hidden_states":
        return (result.last_hidden_state,)
    return (result.logits, result.mc_logits) if variant == "double_heads" else (result.logits,)


def weighted(outputs: tuple, weights: torch.Tensor) -> torch.Tensor:
    """A scalar of random weights, so that no gradient cancels."""
    total = (outputs[0] * weights[0].to(outputs[0].dtype)).mean()
    return total + sum((y * weights[1, ..., 0, 0].to(y.dtype)).sum() for y in outputs[1:])


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("variant", CLASSES)
@pytest.mark.parametrize(("peer", "name"), PEERS)
def test_outputs_and_gradients_equal_the_peer(
    peer: str, name: str, variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    config = make_config(name)
    params = make_params(GPT2._replace(config=config), dtype=dtype)
    apply, theirs = make_peer(peer, variant, config, params)
    x = inputs(config, variant)
    for token_types in (None, x["token_types"]):
        types = {} if token_types is None else {"token_types": token_types}
        peer_types = {} if token_types is None else {"token_type_ids": token_types}
        expected = theirs_of(peer, apply, theirs, variant, x, **peer_types)
        for a, b in zip(ours_of(params, variant, x, **types), expected, strict=True):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    ours_grad = grad(lambda p: weighted(ours_of(p, variant, x), x["weights"]))(params)
    theirs_grad = grad(lambda p: weighted(theirs_of(peer, apply, p, variant, x), x["weights"]))(
        theirs
    )
    found, unexpected = _rename.from_foreign(dict(tree.named_leaves(theirs_grad)), FAMILY, peer)
    assert not unexpected
    mine = dict(tree.named_leaves(ours_grad))
    assert set(found) == {k for k in mine if variant == "double_heads" or "heads." not in k}
    for path, gradient in found.items():
        torch.testing.assert_close(mine[path], gradient, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("variant", ["hidden_states", "apply"])
@pytest.mark.parametrize("length", [9, 2 * SLICE + 17])
def test_padded_rows_equal_the_peer(
    length: int, variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    config = replace(make_config("three heads"), n_positions=length)
    params = make_params(GPT2._replace(config=config), dtype=dtype)
    apply, theirs = make_peer("transformers", variant, config, params)
    x = inputs(config, variant, length)
    mask = torch.ones_like(x["ids"])
    mask[1, :4] = 0
    mask[2, -3:] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    options = {"attention_mask": mask, "position_ids": positions}

    def ours(p: Any) -> torch.Tensor:
        return ours_of(p, variant, x, mask=mask)[0][mask.bool()]

    def peer(p: Any) -> torch.Tensor:
        return theirs_of("transformers", apply, p, variant, x, **options)[0][mask.bool()]

    torch.testing.assert_close(ours(params), peer(theirs), atol=tolerance, rtol=tolerance)
    mine = dict(tree.named_leaves(grad(lambda p: ours(p).sin().mean())(params)))
    found, _ = _rename.from_foreign(
        dict(tree.named_leaves(grad(lambda p: peer(p).sin().mean())(theirs))), FAMILY, "peer"
    )
    for path, gradient in found.items():
        torch.testing.assert_close(mine[path], gradient, atol=tolerance, rtol=tolerance)


def test_a_fully_padded_row_is_finite_and_gives_no_gradient_to_the_others() -> None:
    params = make_params(GPT2)
    ids = torch.randint(41, (2, 6))
    mask = torch.tensor([[1] * 6, [0] * 6])

    def loss(p: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits, _ = gpt2.apply(p, ids, mask=mask)
        return (logits.logsumexp(-1) * mask).sum()

    logits, _ = gpt2.apply(params, ids, mask=mask)
    assert logits.isfinite().all()
    both, alone = grad(loss)(params, ids, mask), grad(loss)(params, ids[:1], mask[:1])
    for a, b in zip(tree.leaves(both), tree.leaves(alone), strict=True):
        assert a.isfinite().all()
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: gpt2.apply(p, torch.zeros(2, 25).long()), ValueError, ["25", "n_positions=24"]),
        (
            lambda p: gpt2.apply(p, torch.zeros(3).long(), positions=torch.tensor([0, 1, 24])),
            IndexError,
            ["positions", "24"],
        ),
        (
            lambda p: gpt2.double_heads(
                {k: v for k, v in p.items() if k != "heads"},
                torch.zeros(1, 2, 3).long(),
                torch.zeros(1, 2).long(),
            ),
            KeyError,
            ["multiple_choice", "load", "key"],
        ),
        (lambda p: gpt2.Config(n_embd=10, n_head=3), ValueError, ["n_embd=10", "n_head=3"]),
        (lambda p: gpt2.init_cache(p, 1, 25), ValueError, ["capacity", "n_positions=24", "25"]),
    ],
)
def test_misuse_is_named(call: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call(make_params(GPT2))
    for word in words:
        assert word in str(caught.value)
