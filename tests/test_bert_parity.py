"""BERT equals transformers 5.x and pytorch-pretrained-bert 0.6.2: outputs and gradients."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from bert_peers import (
    CLASSES,
    PEERS,
    PRECISION,
    compare,
    inputs,
    make,
    make_config,
    make_peer,
    run_ours,
    weighted,
)  # fmt: skip
from families import BERT, make_params
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import ppb
from torch import Tensor
from torch.func import grad, jvp

from fnlm import bert, random, train, tree
from fnlm.layers.activation import ACTIVATIONS
from fnlm.layers.attention import SLICE
from fnlm.train import losses

CONFIGS: dict[str, dict[str, Any]] = {
    "three heads": {},
    "one head, narrow": {
        "hidden_size": 5, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 3,
    },
    "deep, three types, one label": {
        "hidden_size": 8, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 32,
        "type_vocab_size": 3, "num_labels": 1,
    },
}  # fmt: skip
precisions = pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)


@precisions
@pytest.mark.parametrize("variant", CLASSES)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("library", PEERS)
def test_outputs_and_gradients_equal_the_peer(
    library: str, name: str, variant: str, dtype: torch.dtype, tolerance: float
) -> None:
    """With token types and padding on either side."""
    config = make_config(**CONFIGS[name])
    compare(library, variant, config, dtype, tolerance, *inputs(config, variant))


@precisions
@pytest.mark.parametrize("library", PEERS)
def test_texts_of_several_slices_equal_the_peer(
    library: str, dtype: torch.dtype, tolerance: float
) -> None:
    length = 2 * SLICE + 17
    config = make_config(max_position_embeddings=length)
    x = inputs(config, "question_answering", length=length)
    compare(library, "question_answering", config, dtype, tolerance, *x)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[str, str, bert.Config, list[Tensor]]:
    """A peer, a model, and a configuration, shape and padding as awkward as they come."""

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    library, heads = draw(st.sampled_from(PEERS)), number(1, 5)
    activations = ("gelu", "relu", "swish") if library != "transformers" else tuple(ACTIVATIONS)
    config = make_config(
        vocab_size=number(2, 60), hidden_size=heads * number(-(-6 // heads), 9),
        num_attention_heads=heads,
        num_hidden_layers=number(1, 3), intermediate_size=number(1, 40), num_labels=number(1, 6),
        type_vocab_size=number(1, 4), hidden_act=draw(st.sampled_from(activations)),
        max_position_embeddings=number(13, 24),
    )  # fmt: skip
    variant = draw(st.sampled_from(sorted(CLASSES)))
    shape = [number(1, 4), number(1, 13)]
    shape[1:1] = [2] if variant == "multiple_choice" else []
    own = random.split(random.key(number(0, 2**32)), 3)
    limits = (config.vocab_size, config.type_vocab_size, 3)
    ids, types, mask = (
        (random.uniform(key, tuple(shape)) * limit).long()
        for key, limit in zip(own, limits, strict=True)
    )
    mask[..., 0] = 1
    return library, variant, config, [ids, types, mask > 0]


@settings(max_examples=40)
@given(drawn())
def test_random_configurations_equal_the_peer(
    case: tuple[str, str, bert.Config, list[Tensor]],
) -> None:
    """With padding anywhere, in the middle too."""
    library, variant, config, x = case
    for dtype, tolerance in PRECISION:
        compare(library, variant, config, dtype, tolerance, *x)


@pytest.mark.parametrize("library", PEERS)
def test_the_derivative_by_the_padding_word_is_the_true_one(library: str) -> None:
    """The peers' is 0 where the word is read; everything else is theirs."""
    config = make_config()
    params = make(config, "layers", torch.float64)
    ids, types, mask = inputs(config, "layers")
    ids[:, 3] = 0

    def number(params: Any) -> Tensor:
        return weighted(bert.layers(params, ids, types, mask))

    gradient = grad(number)(params)
    direction = tree.map(torch.zeros_like, params)
    direction["embed"]["token"][0] = torch.arange(config.hidden_size)
    moved = [tree.map(lambda x, d, t=t: x + t * d, params, direction) for t in (1e-6, -1e-6)]
    difference = (number(moved[0]) - number(moved[1])) / 2e-6
    along = jvp(number, (params,), (direction,))[1]
    assert abs(difference) > 1e-3
    torch.testing.assert_close(along, difference, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close((gradient["embed"]["token"][0] * torch.arange(36)).sum(), along)
    peer = make_peer(library, "layers", config, torch.float64, stops_padding=True)
    theirs = grad(lambda p: weighted(peer.run(p, ids, types, mask)))(peer.params(params))
    found = peer.named(theirs)["embed.token"]
    assert not found[0].any()
    torch.testing.assert_close(gradient["embed"]["token"][1:], found[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", CLASSES)
@pytest.mark.parametrize("library", PEERS)
def test_defaults_are_those_of_the_peer(library: str, variant: str) -> None:
    """No types and no mask; one row, of an odd and of the greatest length."""
    config = make_config()
    for length in (1, 24):
        ids, *_ = inputs(config, variant, rows=1, length=length)
        compare(library, variant, config, torch.float64, 1e-9, ids, None, None)


@precisions
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("variant", ["apply", "masked_lm"])
def test_every_activation_equals_the_peer(
    variant: str, activation: str, dtype: torch.dtype, tolerance: float
) -> None:
    """In the blocks and in the head; pytorch-pretrained-bert knows three of them."""
    config = make_config(hidden_act=activation)
    x = inputs(config, variant)
    compare("transformers", variant, config, dtype, tolerance, *x)
    if activation in ("gelu", "relu", "swish"):
        compare("pytorch-pretrained-bert", variant, config, dtype, tolerance, *x)


@precisions
@pytest.mark.parametrize("variant", [name for name in CLASSES if name not in ("apply", "layers")])
def test_losses_equal_pytorch_pretrained_bert(variant: str, dtype: torch.dtype, tolerance: float) -> None:
    config = make_config(num_labels=2)
    params = make(config, variant, dtype)
    peer = make_peer("pytorch-pretrained-bert", variant, config, dtype)
    ids, types, mask = inputs(config, variant)
    words, row = torch.where(ids % 3 == 0, ids, -1), torch.tensor([1, 0, 1])
    outputs = run_ours(variant, params, ids, types, mask)
    cases: dict[str, tuple[tuple[Tensor, ...], Callable[..., Tensor]]] = {
        "pretraining": ((words, row), losses.pretraining),
        "masked_lm": ((words,), losses.cross_entropy),
        "next_sentence_prediction": ((row,), losses.cross_entropy),
        "sequence_classification": ((row,), losses.cross_entropy),
        "multiple_choice": ((row,), losses.multiple_choice),
        "token_classification": ((ids % 2, mask), losses.token_classification),
        "question_answering": ((torch.tensor([3, 99, 0]), torch.tensor([6, 7, 4])), losses.span),
    }
    labels, loss = cases[variant]
    theirs = [x.clone() for x in labels if x is not mask]  # pytorch-pretrained-bert writes into some
    expected = peer.apply(peer.params(params), ids, types, mask, *theirs)
    torch.testing.assert_close(loss(*outputs, *labels), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("variant", ["sequence_classification", "question_answering"])
@pytest.mark.parametrize("library", PEERS)
def test_fine_tuning_without_dropout_matches_the_peer(library: str, variant: str) -> None:
    """Five steps of the peer's model under pytorch-pretrained-bert's BertAdam, warm-up and decay included."""
    config = make_config()
    params, peer = (
        make(config, variant, torch.float64),
        make_peer(library, variant, config, torch.float64, stops_padding=True),
    )
    theirs = tree.map(lambda x: x.detach().clone().requires_grad_(), peer.params(params))
    rates: dict[str, Any] = {"warmup": 0.4, "t_total": 5}
    plain = [x for path, x in tree.named_leaves(theirs) if "bias" in path or "LayerNorm" in path]
    others = [x for x in tree.leaves(theirs) if all(x is not y for y in plain)]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.05}]
    adam = ppb().optimization.BertAdam(groups, lr=0.01, **rates)

    def loss(params: Any, *data: Tensor, key: Tensor | None = None) -> Tensor:
        return weighted(run_ours(variant, params, *data))

    decay = train.except_bias_and_norm
    optimizer = train.bert_adam(0.01, weight_decay=0.05, decay=decay, **rates)
    optimizer = train.mask_rows(optimizer, {"embed.token": config.pad_token_id})
    step = train.train_step(loss, optimizer)
    state = train.init_state(params, optimizer, random.key(0))
    for number in range(5):
        x = [part.roll(number, -1) for part in inputs(config, variant)]
        state, metrics = step(state, *x)
        adam.zero_grad()
        expected = weighted(peer.run(theirs, *x))
        expected.backward()
        adam.step()
        torch.testing.assert_close(metrics.loss, expected.detach(), atol=1e-9, rtol=1e-9)
    found, before = dict(tree.named_leaves(state.params)), dict(tree.named_leaves(params))
    for path, leaf in peer.named(theirs).items():
        if variant == "question_answering" and path.startswith("pooler"):
            continue  # not used: BertAdam does not see it, and ours lets it decay
        torch.testing.assert_close(found[path], leaf.detach(), atol=1e-9, rtol=1e-9, msg=path)
        assert not torch.equal(found[path], before[path]), path


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 0.1])
def test_the_epsilon_of_the_config_counts(eps: float) -> None:
    config = make_config(layer_norm_eps=eps)
    x = inputs(config, "pretraining")
    compare("transformers", "pretraining", config, torch.float64, 1e-9, *x)


@pytest.mark.parametrize("variant", CLASSES)
def test_a_fully_padded_row_equals_pytorch_pretrained_bert(variant: str) -> None:
    """The mask adds -1e4 to the scores: where all have it, none is masked."""
    config = make_config()
    ids, types, mask = inputs(config, variant)
    mask[0] = False
    x = (ids, types, mask)
    compare("pytorch-pretrained-bert", variant, config, torch.float64, 1e-9, *x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("variant", CLASSES)
def test_a_fully_padded_row_is_finite_and_has_zero_gradient(
    variant: str, dtype: torch.dtype
) -> None:
    """A loss that leaves the row out has the gradient of the other rows, and no NaN."""
    config = make_config()
    params = make(config, variant, dtype)
    ids, types, mask = inputs(config, variant)
    mask[2] = False

    def loss(p: Any, counted: list[int], rows: slice) -> Tensor:
        outputs = run_ours(variant, p, ids[rows], types[rows], mask[rows])
        assert all(y.isfinite().all() for y in outputs)
        means = [y.float().sin().flatten(1).mean(1) for y in outputs]
        return (torch.stack(means) * torch.tensor(counted)).sum()

    every, two = slice(3), slice(2)
    assert all(leaf.eq(0).all() for leaf in tree.leaves(grad(loss)(params, [0, 0, 0], every)))
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    whole, alone = grad(loss)(params, [1, 1, 0], every), grad(loss)(params, [1, 1], two)
    for a, b in zip(tree.leaves(whole), tree.leaves(alone), strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("variant", CLASSES)
def test_leading_dimensions_are_any(variant: str) -> None:
    """None, and three of them, beside a loop over the rows."""
    config = make_config()
    params = make(config, variant, torch.float32)
    ids, types, mask = (x.unsqueeze(1) for x in inputs(config, variant))
    rows = [run_ours(variant, params, *(x[i, 0] for x in (ids, types, mask))) for i in range(3)]
    for lead in ((3, 1), (1, 3, 1)):
        shaped = [x.reshape(*lead, *x.shape[2:]) for x in (ids, types, mask)]
        for y, *loop in zip(run_ours(variant, params, *shaped), *rows, strict=True):
            assert y.shape[: len(lead)] == lead
            torch.testing.assert_close(y.flatten(0, len(lead) - 1), torch.stack(loop))


@pytest.mark.parametrize("side", ["left", "right"])
def test_ids_of_padding_change_nothing(side: str) -> None:
    """The ids and types of padding change nothing, bit for bit."""
    config = make_config()
    params = make(config, "apply", torch.float32)
    ids, types, mask = inputs(config, "apply", rows=2)
    mask[:] = True
    padding = slice(2) if side == "left" else slice(-2, None)
    mask[:, padding] = False
    hidden, _ = bert.apply(params, ids, types, mask)
    other, kinds = ids.clone(), types.clone()
    other[:, padding], kinds[:, padding] = 5, 1
    assert bert.apply(params, other, kinds, mask)[0][mask].equal(hidden[mask])
    assert not bert.apply(params, other, kinds)[0][mask].equal(hidden[mask])


def test_a_padded_row_equals_the_row_alone() -> None:
    config = make_config()
    params = make(config, "apply", torch.float32)
    ids, types, _ = inputs(config, "apply", rows=2)
    alone = bert.apply(params, ids[:, :4], types[:, :4])
    padded = bert.apply(params, ids, types, torch.arange(7).lt(4).expand(2, 7))
    torch.testing.assert_close(padded[0][:, :4], alone[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(padded[1], alone[1], atol=1e-5, rtol=1e-5)


def test_masks_may_be_of_any_integer_type() -> None:
    config = make_config()
    params = make(config, "apply", torch.float32)
    ids, types, mask = inputs(config, "apply")
    expected, _ = bert.apply(params, ids, types, mask)
    for other in (mask.long(), mask.to(torch.uint8), 7 * mask.int()):
        assert bert.apply(params, ids, types, other)[0].equal(expected)


def test_half_precision_stays_half_and_close() -> None:
    params = tree.map(lambda x: x * 0.5, make(make_config(), "pretraining", torch.float32))
    x = inputs(make_config(), "pretraining")
    for dtype in (torch.bfloat16, torch.float16):
        half = bert.pretraining(tree.cast(params, dtype), *x)
        for a, b in zip(half, bert.pretraining(params, *x), strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.float(), b, atol=0.1, rtol=0.1)


def test_dropout_before_the_heads_has_a_rate_of_its_own() -> None:
    """With all other rates 0, only the outputs of classifiers move; None means the hidden rate."""
    key, quiet_rates = random.key(2), {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
    for rate, moves in ((0.5, True), (0.0, False), (None, False)):
        config = make_config(**quiet_rates, classifier_dropout=rate)
        for variant in CLASSES:
            params, x = make(config, variant, torch.float32), inputs(config, variant)
            kept = getattr(bert, variant)(params, *x)
            dropped = getattr(bert, variant)(params, *x, key=key)
            same = all(
                a.equal(b) for a, b in zip(tree.leaves(kept), tree.leaves(dropped), strict=True)
            )
            classifies = variant.endswith("classification") or variant == "multiple_choice"
            assert same == (not (moves and classifies)), variant


IDS = torch.tensor([[3, 1, 4]])


def test_only_layers_holds_the_state_after_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients; a block takes one state and makes another."""
    config = make_config(num_hidden_layers=5)
    params = make(config, "apply", torch.float32)
    made: list[weakref.ref[Tensor]] = []
    held: list[int] = []
    block = bert._block

    def watched(*args: Any) -> Tensor:
        held.append(sum(state() is not None for state in made))
        x = block(*args)
        made.append(weakref.ref(x))
        return x

    monkeypatch.setattr(bert, "_block", watched)
    ids = inputs(config, "apply")[0]
    with torch.no_grad():
        bert.apply(params, ids)
        assert held == [0, 1, 1, 1, 1]
        bert.layers(params, ids)
    assert held[-1] == 4


GOLDEN = Path(__file__).parent / "golden" / "bert.json"


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: bert.apply(p, torch.tensor([[3, 41]])), IndexError, ["ids", "41"]),
        (lambda p: bert.apply(p, torch.tensor([[-1, 4]])), IndexError, ["ids", "-1", "41"]),
        (lambda p: bert.apply(p, IDS, IDS), IndexError, ["token_types", "2", "4"]),
        (lambda p: bert.apply(p, IDS, IDS[0] * 0), ValueError, ["token_types", "[3]", "[1, 3]"]),
        (lambda p: bert.apply(p, IDS, None, IDS[:, :2]), ValueError, ["mask", "[1, 2]", "[1, 3]"]),
        (lambda p: bert.apply(p, torch.zeros(2, 25).long()), ValueError, ["25", "embeddings=24"]),
        (lambda p: bert.apply(p, torch.zeros(2, 0).long()), ValueError, ["0 tokens", "1"]),
        (lambda p: bert.apply(p, torch.zeros(2, 5)), TypeError, ["ids", "float32", "int64"]),
        (lambda p: bert.apply(p, cast(Any, [3, 4])), TypeError, ["int64 tensor", "list"]),
        (lambda p: bert.init(BERT.config, random.key(0), heads=("x",)), ValueError, ["'x'"]),
        (
            lambda p: bert.Config(hidden_size=10, num_attention_heads=3),
            ValueError,
            ["hidden_size=10", "num_attention_heads=3"],
        ),
        (lambda p: bert.Config(num_labels=0), ValueError, ["num_labels", "0"]),
        (lambda p: bert.Config(hidden_act="sine"), ValueError, ["hidden_act", "'sine'", "gelu"]),
        (
            lambda p: bert.Config(pad_token_id=30522),
            ValueError,
            ["pad_token_id=30522", "vocab_size"],
        ),
        (
            lambda p: bert.apply(p, IDS, key=torch.zeros(2)),
            TypeError,
            ["key", "float32", "random.key"],
        ),
        (
            lambda p: bert.apply({k: v for k, v in p.items() if k != "pooler"}, IDS),
            KeyError,
            ["pooler", "layers", "load"],
        ),
        *(
            (
                lambda p, head=head: getattr(bert, head)(
                    {k: v for k, v in p.items() if k != "heads"}, IDS
                ),
                KeyError,
                [head, "init", "load", "key"],
            )
            for head in bert.HEADS
        ),
    ],
)
def test_misuse_is_named(call: Any, error: type[Exception], words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call(make_params(BERT))
    for word in words:
        assert word in str(caught.value)


def test_golden_names_and_shapes() -> None:
    """The parameter tree is public: to change it on purpose, run this file as a script."""
    assert json.loads(GOLDEN.read_text()) == golden(), "run `python tests/test_bert_parity.py`"


def golden() -> dict[str, Any]:
    spec = bert.spec(bert.Config(num_hidden_layers=2, num_labels=3), bert.HEADS)
    return {path: [list(s.shape), s.start, s.std] for path, s in tree.named_leaves(spec)}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")
