"""Losses: their values, what they leave out, and that every transform goes through them."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jvp, vjp, vmap

from fnlm import random
from fnlm.train.losses import (
    cross_entropy,
    language_model,
    multiple_choice,
    pretraining,
    regression,
    span,
    token_classification,
)

# torch's own table of forward-mode formulas is built by a function that torch has deprecated.
forward_mode = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning:torch")


def make(
    shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Logits [*shape], and labels [*shape[:-1]] of which about a third are -1."""
    keys = random.split(random.key(seed), 3)
    logits = 3 * random.normal(keys[0], shape, dtype)
    labels = (random.uniform(keys[1], shape[:-1]) * shape[-1]).long()
    return logits, torch.where(random.bernoulli(keys[2], 0.3, shape[:-1]), -1, labels)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 7), (4, 1), (3, 2, 2, 5)])
def test_cross_entropy_equals_torch(shape: tuple[int, ...]) -> None:
    logits, labels = make(shape)
    labels.view(-1)[0] = -1
    flat = (logits.reshape(-1, shape[-1]), labels.reshape(-1))
    expected = F.cross_entropy(*flat, ignore_index=-1)
    torch.testing.assert_close(cross_entropy(logits, labels), expected, rtol=1e-14, atol=1e-14)
    gradient = grad(cross_entropy)(logits, labels)
    expected = grad(partial(F.cross_entropy, ignore_index=-1))(*flat).reshape(shape)
    torch.testing.assert_close(gradient, expected, rtol=1e-13, atol=1e-15)


def test_another_ignore_index() -> None:
    logits, labels = make((6, 4))
    other = torch.where(labels == -1, 2, labels)
    expected = cross_entropy(logits, torch.where(other == 2, -1, other))
    assert torch.equal(cross_entropy(logits, other, ignore_index=2), expected)


def test_no_counted_label_gives_zero_and_no_gradient() -> None:
    logits = torch.randn(2, 3, 5) * 50
    labels = torch.full((2, 3), -1)
    assert cross_entropy(logits, labels) == 0
    assert torch.equal(grad(cross_entropy)(logits, labels), torch.zeros_like(logits))
    assert cross_entropy(logits[:0], labels[:0]) == 0


def test_ignored_logits_may_be_anything_finite() -> None:
    logits, labels = make((9, 4), dtype=torch.float32)
    wild = torch.where((labels == -1)[:, None], 1e30, logits)
    torch.testing.assert_close(cross_entropy(wild, labels), cross_entropy(logits, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    logits, labels = make((7, 1000), dtype=torch.float32)
    half = logits.to(dtype)
    value = cross_entropy(half, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value, cross_entropy(half.double(), labels).float(), rtol=1e-6, atol=0.0
    )
    assert grad(cross_entropy)(half, labels).dtype == dtype


def test_language_model_predicts_each_token_from_those_before() -> None:
    logits, ids = make((2, 6, 5))
    ids = ids.clamp_min(0)
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, 5), ids[:, 1:].reshape(-1))
    torch.testing.assert_close(language_model(logits, ids), expected, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(
        language_model(logits[0], ids[0]),
        F.cross_entropy(logits[0, :-1], ids[0, 1:]),
        rtol=1e-14,
        atol=0.0,
    )


@pytest.mark.parametrize("left", [0, 1, 2])
def test_language_model_of_padded_rows_is_that_of_the_rows_alone(left: int) -> None:
    """Padding on either side adds nothing to the sum, and no gradient at the padded positions."""
    logits, ids = make((1, 7, 5))
    ids, mask = ids.clamp_min(0), torch.zeros(1, 7, dtype=torch.bool)
    mask[:, left : left + 4] = True
    alone = language_model(logits[:, left : left + 4], ids[:, left : left + 4])
    torch.testing.assert_close(language_model(logits, ids, mask), alone, rtol=1e-14, atol=0.0)
    assert torch.equal(language_model(logits, ids, mask.long()), language_model(logits, ids, mask))
    gradient = grad(language_model)(logits, ids, mask)
    used = torch.zeros(7, dtype=torch.bool)
    used[left : left + 3] = True
    assert (gradient[0, used] != 0).all() and (gradient[0, ~used] == 0).all()


def test_language_model_skips_ids_that_are_minus_one() -> None:
    logits, ids = make((3, 8, 5), seed=2)
    expected = F.cross_entropy(
        logits[:, :-1].reshape(-1, 5), ids[:, 1:].reshape(-1), ignore_index=-1
    )
    torch.testing.assert_close(language_model(logits, ids), expected, rtol=1e-14, atol=0.0)


def test_a_single_token_predicts_nothing() -> None:
    assert language_model(torch.randn(2, 1, 5), torch.zeros(2, 1, dtype=torch.long)) == 0


def test_multiple_choice() -> None:
    logits, labels = make((6, 4))
    expected = F.cross_entropy(logits, labels, ignore_index=-1)
    torch.testing.assert_close(multiple_choice(logits, labels), expected, rtol=1e-14, atol=0.0)


def test_pretraining_is_the_sum_of_two_losses() -> None:
    (words, word_labels), (follows, follow_labels) = make((4, 6, 7)), make((4, 2), seed=1)
    both = pretraining(words, follows, word_labels, follow_labels)
    expected = F.cross_entropy(words.flatten(0, 1), word_labels.flatten(), ignore_index=-1)
    expected = expected + F.cross_entropy(follows, follow_labels, ignore_index=-1)
    torch.testing.assert_close(both, expected, rtol=1e-14, atol=0.0)
    nothing = torch.full_like(word_labels, -1)
    alone = pretraining(words, follows, nothing, follow_labels)
    assert alone == cross_entropy(follows, follow_labels)


def test_token_classification_counts_real_tokens() -> None:
    logits, labels = make((3, 6, 4))
    mask = torch.arange(6) < torch.tensor([[6], [2], [3]])
    other = torch.where(mask, labels, 3)  # what stands at padding has no say
    expected = F.cross_entropy(logits[mask], labels[mask], ignore_index=-1)
    for kind in (mask, mask.long()):
        found = token_classification(logits, other, kind)
        torch.testing.assert_close(found, expected, rtol=1e-14, atol=0.0)
    assert token_classification(logits, labels) == cross_entropy(logits, labels)


def test_span_leaves_out_what_is_outside_of_the_window() -> None:
    (start, _), (end, _) = make((5, 7)), make((5, 7), seed=1)
    starts, ends = torch.tensor([0, 6, 7, 3, 90]), torch.tensor([6, 7, 8, 3, -4])
    expected = F.cross_entropy(start[[0, 1, 3]], starts[[0, 1, 3]])
    expected = (expected + F.cross_entropy(end[[0, 3, 4]], torch.tensor([6, 3, 0]))) / 2
    torch.testing.assert_close(span(start, end, starts, ends), expected, rtol=1e-14, atol=0.0)
    assert starts.tolist() == [0, 6, 7, 3, 90] and ends.tolist() == [6, 7, 8, 3, -4]
    outside = torch.full((5,), 7)
    assert span(start, end, outside, outside) == 0
    assert grad(span)(start, end, outside, outside).eq(0).all()


def test_regression_is_the_mean_squared_error() -> None:
    (logits, _), (targets, _) = make((3, 5, 1)), make((3, 5), seed=1)
    expected = F.mse_loss(logits.squeeze(-1), targets)
    torch.testing.assert_close(regression(logits, targets), expected, rtol=1e-14, atol=0.0)
    assert regression(logits.bfloat16(), targets.bfloat16()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"logits \(3, 5, 1\), targets \(15,\)"):
        regression(logits, targets.flatten())  # torch would broadcast


# Each as a function of logits [..., T, C] and labels [..., T].
LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": cross_entropy,
    "language_model": language_model,
    "multiple_choice": multiple_choice,
    "pretraining": lambda x, y: pretraining(x, x[..., 0, :2], y, y[..., 1].clamp(-1, 1)),
    "regression": lambda x, y: regression(x[..., :1], y.double()),
    "span": lambda x, y: span(x[..., 0], x[..., 1], y[..., 0], 3 + y[..., 1]),
    "token_classification": lambda x, y: token_classification(x, y, y % 2),
}
each_loss = pytest.mark.parametrize("name", LOSSES)


@each_loss
def test_vmap_over_examples_equals_the_loop(name: str) -> None:
    logits, labels = make((4, 6, 5))
    loss = LOSSES[name]
    for fn in (loss, grad(loss)):
        together = vmap(fn)(logits, labels)
        alone = torch.stack([fn(*row) for row in zip(logits, labels, strict=True)])
        torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-15)


@forward_mode
@each_loss
def test_derivatives_of_all_orders_agree(name: str) -> None:
    """jvp equals the vjp's dot product; both second-order products equal the dense Hessian's."""
    logits, labels = make((3, 4))
    direction, _ = make((3, 4), seed=1)

    def f(x: Tensor) -> Tensor:
        return LOSSES[name](x, labels)

    forward = jvp(f, (logits,), (direction,))
    assert torch.equal(forward[0], f(logits))
    torch.testing.assert_close(forward[1], (grad(f)(logits) * direction).sum())
    dense = torch.einsum("abcd,cd->ab", hessian(f)(logits), direction)
    forward_over_reverse = jvp(grad(f), (logits,), (direction,))[1]
    reverse_over_reverse = vjp(grad(f), logits)[1](direction)[0]
    torch.testing.assert_close(forward_over_reverse, dense, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(reverse_over_reverse, dense, rtol=1e-12, atol=1e-14)


def test_compiles_without_a_break() -> None:
    logits, ids = make((2, 6, 5))
    compiled = torch.compile(language_model, fullgraph=True, backend="eager")
    mask = torch.ones_like(ids)
    torch.testing.assert_close(compiled(logits, ids, mask), language_model(logits, ids, mask))


def test_changes_no_argument() -> None:
    logits, ids = make((2, 6, 5))
    mask = torch.ones_like(ids)
    language_model(logits, ids, mask)
    cross_entropy(logits, ids)
    for loss in LOSSES.values():
        loss(logits, ids)
    assert [x._version for x in (logits, ids, mask)] == [0, 0, 0]


def test_errors_name_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"labels \(2,\), logits \(3, 4\)"):
        cross_entropy(torch.zeros(3, 4), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"mask \(1, 4\), ids \(2, 4\)"):
        ids = torch.zeros(2, 4, dtype=torch.long)
        language_model(torch.zeros(2, 4, 5), ids, torch.ones(1, 4).bool())


@each_loss
def test_labels_are_integers(name: str) -> None:
    """A float would be cut to a class. A score (regression) is a float, and only it."""
    logits, labels = make((3, 4))
    if name == "regression":
        assert torch.equal(
            regression(logits[:, :1], labels), regression(logits[:, :1], labels * 1.0)
        )
        return
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        for call in (LOSSES[name], vmap(lambda x, y: LOSSES[name](x, y))):
            with pytest.raises(TypeError, match=rf"must be a tensor of integers, got {dtype}"):
                call(logits[None], labels[None].to(dtype))
    with pytest.raises(TypeError, match="got list"):
        cross_entropy(logits, [1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="logits must be floating point, got torch.int64"):
        cross_entropy(labels[:, None], labels)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8, torch.bool])
def test_labels_of_every_integer_type_count_by_value(dtype: torch.dtype) -> None:
    """255 is a class of its own, though -1 in a uint8 would be 255."""
    logits = random.normal(random.key(0), (2, 256), torch.float64)
    labels = torch.tensor([1, 255]).to(dtype)
    expected = F.cross_entropy(logits, labels.long(), ignore_index=-1)
    torch.testing.assert_close(cross_entropy(logits, labels), expected, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("label", [-100, -2, 5, 2**40])
def test_labels_out_of_range_are_named_in_batches_of_vmap_too(label: int) -> None:
    logits, labels = torch.zeros(2, 5), torch.tensor([1, label])
    low, high = labels.min().item(), labels.max().item()
    with pytest.raises(IndexError, match=rf"labels .*less than 5.*from {low} to {high}.*-100"):
        cross_entropy(logits, labels)
    with pytest.raises(IndexError, match=rf"from {low} to {high}"):
        grad(cross_entropy)(logits, labels)
    for fn in (cross_entropy, grad(cross_entropy)):
        with pytest.raises(IndexError, match=r"labels .*less than 5, or -1 .*one of them is not"):
            vmap(fn)(logits, labels)
    assert cross_entropy(logits, labels, ignore_index=label) == cross_entropy(
        logits[:1], labels[:1]
    )
    assert cross_entropy(logits, labels.masked_fill(labels == label, -1)) == torch.tensor(5.0).log()


@each_loss
def test_nan_stays_nan_and_no_row_gives_zero(name: str) -> None:
    """In value and gradient; nothing that counts is left out because it is no number."""
    logits, labels = make((3, 4))
    labels = torch.ones_like(labels)
    value, gradient = LOSSES[name], grad(LOSSES[name])
    assert value(logits * torch.nan, labels).isnan()
    assert gradient(logits * torch.nan, labels).isnan().any()
    one = torch.zeros(3, 4, dtype=torch.bool)
    one[0, 0] = True
    assert value(logits.masked_fill(one, torch.nan), labels).isnan()
    if name in ("language_model", "span", "pretraining"):
        logits, labels = logits[None], labels[None]  # their rows are sequences
    assert value(logits[:0], labels[:0]) == 0
    assert gradient(logits[:0], labels[:0]).shape == (0, *logits.shape[1:])


def test_a_target_that_is_nan_makes_the_loss_nan() -> None:
    assert regression(torch.zeros(2, 1), torch.tensor([1.0, torch.nan])).isnan()
