"""GPT equals transformers 5.x and pytorch-pretrained-bert 0.6.2: outputs, losses, gradients."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_path
from families import GPT, make_params
from peers import hf, ppb_gpt, quiet
from torch import Tensor
from torch.func import grad

from fnlm import generate, gpt, random, tree
from fnlm.params import _rename
from fnlm.params.io import assemble
from fnlm.params.module import from_module
from fnlm.params.names.gpt import FAMILY
from fnlm.train import losses

CONFIGS: dict[str, dict[str, Any]] = {
    "three heads, special tokens": {"n_special": 3},
    "one head, narrow": {"n_head": 1, "n_embd": 5, "n_layer": 1, "layer_norm_epsilon": 0.1},
    "relu": {"afn": "relu", "n_head": 4, "n_embd": 8, "n_layer": 3, "n_special": 1},
    "swish, one word": {"afn": "swish", "vocab_size": 1, "n_special": 1, "n_positions": 9},
}
# pytorch-pretrained-bert gives its "relu" the class in place of the function, and fails.
PEERS = [
    (peer, name)
    for peer in ("transformers", "pytorch-pretrained-bert")
    for name in CONFIGS
    if (peer, name) != ("pytorch-pretrained-bert", "relu")
]
CLASSES = {
    "hidden_states": "OpenAIGPTModel",
    "apply": "OpenAIGPTLMHeadModel",
    "double_heads": "OpenAIGPTDoubleHeadsModel",
}
DIALECTS = {dialect.name: dialect for dialect in FAMILY.dialects}
PRECISION = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
HEAD = ("multiple_choice",)


def make_config(name: str) -> gpt.Config:
    return gpt.Config.from_dict(GPT.config.to_dict() | CONFIGS[name])


def leaves_of(params: Any) -> Any:
    return {k: v for k, v in params.items() if k != "config"}


def make_peer(peer: str, variant: str, config: gpt.Config, params: Any) -> tuple[Any, Any]:
    """The peer's function, and our parameters under its names, as a tree."""
    content = config.to_dict()
    if peer == "transformers":
        content |= {"vocab_size": config.total_tokens_embeddings, "num_labels": 1}
        with quiet():
            module = getattr(hf(), CLASSES[variant])(hf().OpenAIGPTConfig(**content))
    else:
        module = ppb_gpt(content, CLASSES[variant])
    module = module.to(tree.leaves(params)[0].dtype).eval()
    names = _rename.to_foreign(leaves_of(params), DIALECTS[peer])
    apply, theirs = from_module(module)
    if variant == "hidden_states":
        names = {name.removeprefix("transformer."): x for name, x in names.items()}
    return apply, _rename.nest({name: names[name] for name, _ in tree.named_leaves(theirs)})


def inputs(config: gpt.Config, variant: str, length: int = 9) -> dict[str, Tensor]:
    lead = (2, 3) if variant == "double_heads" else (3,)
    rows = config.total_tokens_embeddings
    return {
        "ids": torch.randint(rows, (*lead, length)),
        "token_types": torch.randint(rows, (*lead, length)),
        "positions": torch.randint(config.n_positions, (*lead, length)),
        "choice_positions": torch.randint(length, lead),
        "weights": torch.randn(2, *lead, length, 1),
    }


def ours_of(params: Any, variant: str, x: dict[str, Tensor], **options: Any) -> tuple[Tensor, ...]:
    if variant == "double_heads":
        return gpt.double_heads(params, x["ids"], x["choice_positions"], **options)[:2]
    return (getattr(gpt, variant)(params, x["ids"], **options)[0],)


def theirs_of(
    peer: str, apply: Any, params: Any, variant: str, x: dict[str, Tensor], **options: Any
) -> tuple[Tensor, ...]:
    if variant == "double_heads":
        options["mc_token_ids"] = x["choice_positions"]
    if peer == "transformers" and "position_ids" in options:  # it takes them flat alone
        options["position_ids"] = options["position_ids"].flatten(0, -2)
    with quiet():  # pytorch-pretrained-bert's Dropout2d warns of its input
        result = apply(params, x["ids"], **options)
    if isinstance(result, Tensor):
        return (result,)
    if peer != "transformers":
        return tuple(result)
    if variant == "hidden_states":
        return (result.last_hidden_state,)
    return (result.logits, result.mc_logits) if variant == "double_heads" else (result.logits,)


def weighted(outputs: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    """A scalar of random weights, so that no gradient cancels."""
    total = (outputs[0] * weights[0].to(outputs[0].dtype)).mean()
    return total + sum((y * weights[1, ..., 0, 0].to(y.dtype)).sum() for y in outputs[1:])


def compare_gradients(mine: Any, theirs: Any, tolerance: float) -> int:
    """Compare trees of gradients, theirs under their names; say how many leaves they share."""
    found, unexpected = _rename.from_foreign(dict(tree.named_leaves(theirs)), FAMILY, "peer")
    assert not unexpected
    ours = dict(tree.named_leaves(mine))
    for path, gradient in found.items():
        torch.testing.assert_close(ours[path], gradient, atol=tolerance, rtol=tolerance)
    return len(found)


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("variant", CLASSES)
@pytest.mark.parametrize(("peer", "name"), PEERS)
def test_outputs_and_gradients_equal_the_peer(
    peer: str, name: str, variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    config = make_config(name)
    params = make_params(GPT._replace(config=config), dtype=dtype)
    apply, theirs = make_peer(peer, variant, config, params)
    x = inputs(config, variant)
    some: tuple[set[str], ...] = (set(), {"token_types"}, {"positions", "token_types"})
    for given in some:
        names = {"token_types": "token_type_ids", "positions": "position_ids"}
        ours = ours_of(params, variant, x, **{n: x[n] for n in given})
        expected = theirs_of(peer, apply, theirs, variant, x, **{names[n]: x[n] for n in given})
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    mine = grad(lambda p: weighted(ours_of(p, variant, x), x["weights"]))(params)
    other = grad(lambda p: weighted(theirs_of(peer, apply, p, variant, x), x["weights"]))(theirs)
    shared = compare_gradients(mine, other, tolerance)
    assert shared == len(tree.leaves(mine)) - 2 * (variant != "double_heads")


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)
@pytest.mark.parametrize("variant", ["apply", "double_heads"])
def test_losses_equal_pytorch_pretrained_bert(
    variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    config = make_config("three heads, special tokens")
    params = make_params(GPT._replace(config=config), dtype=dtype)
    apply, theirs = make_peer("pytorch-pretrained-bert", variant, config, params)
    x = inputs(config, variant)
    labels = x["ids"].clone()
    labels[..., -2:] = -1
    right = torch.tensor([2, 0])

    def ours(p: Any) -> tuple[Tensor, ...]:
        outputs = ours_of(p, variant, x)
        found = (losses.language_model(outputs[0], labels),)
        return found + tuple(losses.multiple_choice(y, right) for y in outputs[1:])

    def peer(p: Any) -> tuple[Tensor, ...]:
        if variant == "apply":
            return (apply(p, x["ids"], lm_labels=labels),)
        with quiet():
            found = apply(p, x["ids"], x["choice_positions"], lm_labels=labels, mc_labels=right)
        return tuple(found)

    for a, b in zip(ours(params), peer(theirs), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
    assert compare_gradients(
        grad(lambda p: sum(ours(p)))(params), grad(lambda p: sum(peer(p)))(theirs), tolerance
    )


def test_generate_continues_as_the_peer_does() -> None:
    params = make_params(GPT)
    apply, theirs = make_peer("transformers", "apply", GPT.config, params)
    ids = torch.randint(41, (3, 4))
    expected = ids
    for _ in range(8):
        following = apply(theirs, expected).logits[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat([expected, following], 1)
    assert generate.generate(gpt.apply, params, ids, 8).equal(expected[:, 4:])


def test_special_tokens_extend_the_table_at_its_end() -> None:
    params = make_params(GPT)
    before = tree.map(torch.clone, leaves_of(params))
    more = gpt.extend_vocabulary(params, 3, random.key(1))
    assert all(a.equal(b) for a, b in zip(tree.leaves(before), tree.leaves(params), strict=True))
    assert more["config"].total_tokens_embeddings == 44 == len(more["embed"]["token"])
    ids = torch.randint(41, (2, 6))
    torch.testing.assert_close(gpt.apply(more, ids)[0][..., :41], gpt.apply(params, ids)[0])
    assert gpt.apply(more, torch.tensor([41, 43]))[0].shape == (2, 44)
    with pytest.raises(IndexError, match="44"):
        gpt.apply(more, torch.tensor([44]))
    five = gpt.extend_vocabulary(more, 5, random.key(2))
    assert five["embed"]["token"][:44].equal(more["embed"]["token"])
    assert gpt.extend_vocabulary(five, 3, random.key(3))["embed"]["token"].equal(
        more["embed"]["token"]
    )
    same = gpt.extend_vocabulary(params, 3, random.key(1))["embed"]["token"]
    assert same.equal(more["embed"]["token"])


def test_extended_rows_start_as_the_config_says() -> None:
    config = gpt.Config(vocab_size=2, n_embd=64, n_head=1, n_layer=1, initializer_range=0.05)
    more = gpt.extend_vocabulary(gpt.init(config, random.key(0)), 2000, random.key(1))
    assert abs(more["embed"]["token"][2:].std().item() - 0.05) < 1e-3


def equal(a: Any, b: Any) -> None:
    assert tree.structure(leaves_of(a)) == tree.structure(leaves_of(b))
    for (path, x), y in zip(tree.named_leaves(leaves_of(a)), tree.leaves(b), strict=True):
        assert x.equal(y), path


@pytest.mark.parametrize("variant", CLASSES)
def test_pytorch_pretrained_bert_loads_what_is_saved_and_back(variant: str, tmp_path: Path) -> None:
    config = make_config("three heads, special tokens")
    params = make_params(GPT._replace(config=config))
    if variant != "double_heads":
        params = {k: v for k, v in params.items() if k != "heads"}
    gpt.save(params, tmp_path, dialect="pytorch-pretrained-bert")
    state = torch.load(tmp_path / "pytorch_model.bin", weights_only=True)
    module = ppb_gpt(config.to_dict(), CLASSES[variant])
    start = module if variant == "double_heads" else getattr(module, "transformer", module)
    report = start.load_state_dict(state, strict=False)
    assert not report.unexpected_keys
    assert all("attn.bias" in k or "lm_head" in k for k in report.missing_keys)
    loaded = gpt.load(tmp_path)
    equal(loaded, params)
    assert loaded["config"] == config
    back = {f"module.{k}": v for k, v in module.state_dict().items()}  # with copies and buffers
    equal(assemble(back, config, FAMILY, gpt.spec), params)


def test_names_of_the_first_published_file() -> None:
    params = make_params(GPT)
    first = _rename.to_foreign(leaves_of(params), DIALECTS["pytorch-pretrained-bert 0.3"])
    assert "transformer.h.1.attn.c_attn.w" in first and "transformer.h.0.ln_2.g" in first
    equal(assemble(first, GPT.config, FAMILY, gpt.spec), params)


def test_arrays_of_openais_release() -> None:
    """The numbers of the release's arrays, with the shapes that it states."""
    shapes = json.loads(data_path("vocab/openai-gpt/params_shapes.json").read_text())
    tensors = {f"params.{n}": torch.empty(shape, device="meta") for n, shape in enumerate(shapes)}
    found, unexpected = _rename.from_foreign(tensors, FAMILY, "release")
    assert not unexpected and len(found) == 146
    wanted = {path: s.shape for path, s in tree.named_leaves(gpt.spec(gpt.Config()))}
    assert {path: tuple(x.shape) for path, x in found.items()} == wanted


def test_numbered_arrays_both_ways() -> None:
    params = {k: v for k, v in make_params(GPT).items() if k != "heads"}
    numbered = _rename.to_foreign(leaves_of(params), DIALECTS["openai"])
    assert numbered["params.2"].shape == (1, 36, 108)
    assert numbered["params.0"].equal(params["embed"]["position"])
    assert numbered["params.18"].equal(params["blocks"][1]["norm_1"]["scale"])
    equal(assemble(numbered, GPT.config, FAMILY, gpt.spec), params)


def test_a_release_of_ten_arrays_loads(tmp_path: Path) -> None:
    """Written as OpenAI wrote its own: one row of numbers, cut in ten without regard to tensors."""
    params = {k: v for k, v in make_params(GPT).items() if k != "heads"}
    numbered = _rename.to_foreign(leaves_of(params), DIALECTS["openai"])
    arrays = [numbered[f"params.{number}"].numpy() for number in range(len(numbered))]
    (tmp_path / "params_shapes.json").write_text(json.dumps([list(a.shape) for a in arrays]))
    flat = np.concatenate([array.ravel() for array in arrays])
    for number, part in enumerate(np.array_split(flat, 10)):
        np.save(tmp_path / f"params_{number}.npy", part)
    GPT.config.to_json_file(tmp_path / "config.json")
    equal(gpt.load(tmp_path), params)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: gpt.apply(p, torch.zeros(2, 25).long()), ValueError, ["25", "n_positions=24"]),
        (lambda p: gpt.Config(n_embd=10, n_head=3), ValueError, ["n_embd=10", "n_head=3"]),
        (lambda p: gpt.Config(afn="gelu_new"), ValueError, ["afn='gelu_new'", "swish"]),
        (lambda p: gpt.extend_vocabulary(p, -1, random.key(0)), ValueError, ["n_special", "-1"]),
        (lambda p: gpt.init_cache(p, 1, 25), ValueError, ["capacity", "n_positions=24", "25"]),
        (
            lambda p: gpt.double_heads(
                {k: v for k, v in p.items() if k != "heads"},
                torch.zeros(1, 2, 3).long(),
                torch.zeros(1, 2).long(),
            ),
            KeyError,
            ["multiple_choice", "load", "key"],
        ),
    ],
)
def test_misuse_is_named(call: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call(make_params(GPT))
    for word in words:
        assert word in str(caught.value)


def test_the_choice_dropout_spares_or_zeroes_a_feature_in_all_choices() -> None:
    params = make_params(GPT)
    ids = torch.randint(41, (1, 5)).expand(3, 2, 5)  # two equal choices
    rates = {"embd_pdrop": 0, "attn_pdrop": 0, "resid_pdrop": 0.5}
    config = gpt.Config.from_dict(GPT.config.to_dict() | rates)
    blocks = tuple(  # that pass on what they are given: only the head's dropout changes anything
        block | {part: tree.map(torch.zeros_like, block[part]) for part in ("attention", "mlp")}
        for block in params["blocks"]
    )
    still = params | {"config": config, "blocks": blocks}
    at = torch.full((3, 2), 4)
    choice = gpt.double_heads(still, ids, at, key=random.key(5))[1]
    torch.testing.assert_close(choice[:, 0], choice[:, 1])
    assert (choice - gpt.double_heads(still, ids, at)[1]).abs().min() > 1e-2
