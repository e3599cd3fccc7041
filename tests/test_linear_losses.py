"""Losses of hidden states: the numbers of the losses of logits, without the logits."""

import random as draws
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from allocations import peak_bytes
from compositions import ORDER, PAIRED, TRANSFORMS, compose, error, reference
from families import BERT, make_batch, make_params
from torch import Tensor
from torch.func import grad, jvp, vmap

from fnlm import bert, heads, random, transforms, tree
from fnlm.layers import linear
from fnlm.train.losses import (
    cross_entropy,
    language_model,
    linear_cross_entropy,
    linear_language_model,
    pretraining,
)
from fnlm.tree import Tree

HIDDEN, TABLE, BIAS = (
    random.normal(random.key(n), shape, torch.float64)
    for n, shape in enumerate([(2, 7, 3), (11, 3), (11,)])
)
LABELS = torch.tensor([[0, 10, -1, 3, 3, -1, 7], [5, -1, 1, 2, 9, 9, -1]])
CHUNKS = [1, 2, 5, 13, 14, 100, None]


def logits(hidden: Tensor, table: Tensor, bias: Tensor | None = None) -> Tensor:
    found = heads.tied_logits(hidden, table)
    return found if bias is None else found + bias


@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
def test_equals_the_cross_entropy_of_the_logits(
    chunk_size: int | None, bias: Tensor | None
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        leaves = tree.cast([HIDDEN, TABLE, *([] if bias is None else [bias])], dtype)

        def ours(leaves: Any) -> Tensor:
            hidden, table, *rest = leaves
            return linear_cross_entropy(hidden, table, LABELS, *rest, chunk_size=chunk_size)

        found, value = transforms.grad_and_value(ours)(leaves)
        expected, plain = transforms.grad_and_value(lambda x: cross_entropy(logits(*x), LABELS))(
            leaves
        )
        assert value.dtype == dtype and error(value, plain) < tolerance
        assert error(found, expected) < tolerance


def test_another_ignored_label_and_leading_axes() -> None:
    other = torch.where(LABELS == -1, -100, LABELS)
    found = linear_cross_entropy(HIDDEN, TABLE, other, ignore_index=-100, chunk_size=3)
    assert error(found, cross_entropy(logits(HIDDEN, TABLE), LABELS)) < 1e-12
    one = linear_cross_entropy(HIDDEN[0, 0], TABLE, LABELS[0, 0])  # no axis but D
    assert error(one, cross_entropy(logits(HIDDEN[0, 0], TABLE), LABELS[0, 0])) < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(dtype: torch.dtype) -> None:
    hidden, table = HIDDEN.to(dtype), TABLE.to(dtype)
    found = linear_cross_entropy(hidden, table, LABELS, chunk_size=3)
    assert found.dtype == torch.float32
    assert error(found, cross_entropy(logits(hidden, table), LABELS)) < 1e-6
    assert grad(linear_cross_entropy, 1)(hidden, table, LABELS, chunk_size=3).dtype == dtype


def test_nothing_counts_and_nothing_is_there() -> None:
    nothing = torch.full_like(LABELS, -1)
    value, slope = (
        f(HIDDEN, TABLE, nothing, chunk_size=4)
        for f in (linear_cross_entropy, grad(linear_cross_entropy))
    )
    assert value == 0 and not slope.any()
    empty = linear_cross_entropy(HIDDEN[:0], TABLE, LABELS[:0], chunk_size=4)
    assert empty == 0 and empty.dtype == torch.float64


def test_nan_where_it_counts_alone() -> None:
    hidden = HIDDEN.clone()
    hidden[0, 2] = torch.nan  # ignored
    assert linear_cross_entropy(hidden, TABLE, LABELS, chunk_size=4).isfinite()
    hidden[0, 3] = torch.nan
    assert linear_cross_entropy(hidden, TABLE, LABELS, chunk_size=4).isnan()


@pytest.mark.parametrize("chunk_size", CHUNKS)
def test_next_tokens(chunk_size: int | None) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0]])
    for given in ((LABELS,), (LABELS, mask), (LABELS, mask.bool())):
        found = linear_language_model(HIDDEN, TABLE, *given, chunk_size=chunk_size)
        assert error(found, language_model(logits(HIDDEN, TABLE), *given)) < 1e-12


MISTAKES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "hidden of integers": ({"hidden": LABELS[..., None]}, TypeError, "hidden must be floating"),
    "labels of numbers": ({"labels": LABELS.double()}, TypeError, "labels must be a tensor of int"),
    "labels of another shape": (
        {"labels": LABELS[0]}, ValueError, r"labels \(7,\), hidden \(2, 7, 3\)",
    ),
    "a table on its side": ({"table": TABLE.mT}, ValueError, r"table must be \[V, 3\].*\(3, 11\)"),
    "a bias of another size": ({"bias": BIAS[:4]}, ValueError, r"\[11\], got \(4,\)"),
    "no positions at a time": ({"chunk_size": 0}, ValueError, "at least 1 position, or None"),
    "a label out of range": ({"labels": LABELS + 1}, IndexError, "less than 11.*from 0 to 11"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name: str) -> None:
    changes, kind, words = MISTAKES[name]
    given = {"hidden": HIDDEN, "table": TABLE, "labels": LABELS} | changes
    with pytest.raises(kind, match=words):
        linear_cross_entropy(**given)
    if "chunk_size" not in changes:
        with pytest.raises(kind, match=words.partition(".*from")[0]):
            linear_cross_entropy(**given, chunk_size=20)


def on_examples(loss: Callable[..., Tensor]) -> Callable[[Tree, Tensor], Tensor]:
    """Both hidden states and the table depend on a table, as where the output is tied."""

    def h(p: Tree, i: Tensor) -> Tensor:
        hidden, labels = (x.index_select(0, i[None])[0] for x in (p["hidden"], LABELS))
        hidden = (hidden + p["table"][labels.clamp_min(0)]).sin()
        return loss(hidden, p["table"], labels, p["bias"])

    return h


ours = on_examples(partial(linear_cross_entropy, chunk_size=3))
plain = on_examples(lambda x, w, y, b: cross_entropy(logits(x, w, b), y))
PARAMS = {"hidden": HIDDEN, "table": TABLE, "bias": BIAS}
ALONG = [
    tree.map(lambda x, n=n: random.normal(random.key(9 + n), tuple(x.shape), x.dtype), PARAMS)
    for n in range(3)
]
INNER = [name for name in TRANSFORMS if name != "autograd"]


@pytest.mark.parametrize("outer", TRANSFORMS)
def test_pairs_of_transforms(outer: str) -> None:
    for inner in INNER:
        found, expected = (
            compose(h, (outer, inner), ALONG[1:])(PARAMS, torch.tensor(1)) for h in (ours, plain)
        )
        assert error(found, expected) < 1e-10, (outer, inner)
        if {outer, inner} <= {*PAIRED, "autograd"}:  # and plain autograd in loops
            kinds = tuple("vmap" if name == "vmap" else "grad" for name in (outer, inner))
            loops = reference(plain, kinds, ALONG[1:])(PARAMS, torch.tensor(1))
            assert error(found, loops) < 1e-10, (outer, inner)


@pytest.mark.parametrize("seed", range(15))
def test_triples_of_transforms(seed: int) -> None:
    draw = draws.Random(seed)
    names: tuple[str, ...] = ()
    while not 2 <= sum(ORDER.get(name, 1) for name in names) <= 3:
        names = (draw.choice(list(TRANSFORMS)), draw.choice(INNER), draw.choice(INNER))
    found, expected = (compose(h, names, ALONG)(PARAMS, torch.tensor(0)) for h in (ours, plain))
    assert error(found, expected) < 1e-10, names


def test_per_example_gradients_and_ensembles() -> None:
    trees = PARAMS, ALONG[0]
    members = tree.stack(trees)
    for h in (ours, plain):
        rows = vmap(grad(h), (None, 0))(PARAMS, torch.arange(2))
        loop = tree.stack([grad(plain)(PARAMS, i) for i in torch.arange(2)])
        assert error(rows, loop) < 1e-12
        both = vmap(grad(h))(members, torch.arange(2))
        loop = tree.stack([grad(plain)(p, torch.tensor(i)) for i, p in enumerate(trees)])
        assert error(both, loop) < 1e-12


def test_the_pretraining_of_bert_needs_no_logits() -> None:
    params = make_params(BERT, dtype=torch.float64)
    ids, mask = make_batch(BERT)
    words, follows = torch.where(ids % 3 == 0, ids, -1), torch.tensor([0, 1, -1])

    def whole(params: Tree) -> Tensor:
        return pretraining(*bert.pretraining(params, ids, ids % 2, mask), words, follows)

    def chunked(params: Tree) -> Tensor:
        hidden, pooled = bert.apply(params, ids, ids % 2, mask)
        states, head = heads.masked_lm_states(params, hidden), params["heads"]
        bias, table = head["masked_lm"]["bias"], params["embed"]["token"]
        masked = linear_cross_entropy(states, table, words, bias, chunk_size=4)
        return masked + cross_entropy(linear(pooled, **head["next_sentence_prediction"]), follows)

    (found, value), (expected, plain) = (
        transforms.grad_and_value(f)(params) for f in (chunked, whole)
    )
    assert error(value, plain) < 1e-12 and error(found, expected) < 1e-9


def test_compiles_without_a_break() -> None:
    loss = partial(linear_cross_entropy, chunk_size=4)
    compiled = torch.compile(grad(loss), fullgraph=True, backend="aot_eager")
    assert error(compiled(HIDDEN, TABLE, LABELS), grad(loss)(HIDDEN, TABLE, LABELS)) < 1e-12
    torch.compiler.reset()


V, N, D = 50257, 384, 16
DERIVATIVES: dict[str, tuple[Callable[[Any], Any], float]] = {
    "gradient": (transforms.grad, 5),
    "Hessian-vector product": (lambda f: lambda x: jvp(transforms.grad(f), (x,), (x,)), 5),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_memory_at_the_vocabulary_of_gpt2(name: str) -> None:
    """The whole logits are 77 MB; a chunk of 64 positions a sixth of that."""
    derivative, factor = DERIVATIVES[name]
    leaves = random.normal(random.key(0), (N, D)), random.normal(random.key(1), (V, D)) / 50
    labels = torch.arange(N) * 131 % V

    def chunked(x: Any) -> Tensor:
        return linear_cross_entropy(x[0], x[1], labels, chunk_size=64)

    def whole(x: Any) -> Tensor:
        return cross_entropy(logits(*x), labels)

    assert error(derivative(chunked)(leaves), derivative(whole)(leaves)) < 1e-4
    found, plain = (peak_bytes(partial(derivative(f), leaves)) for f in (chunked, whole))
    assert found * factor < plain, (found, plain)
