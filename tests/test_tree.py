"""Trees: each operation against plain recursion, on random dicts, tuples, lists and NamedTuples."""

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from families import BERT, GPT2, make_batch, make_params
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, vmap
from torch.utils.flop_counter import FlopCounterMode

from fnlm import bert, gpt2, random, transforms, tree

Tree = Any


class Pair(NamedTuple):
    left: Tree
    right: Tree


@tree.register_constant
@dataclasses.dataclass(frozen=True)
class Label:
    text: str


names = st.text("abcw_", min_size=1, max_size=4)
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = shapes.map(lambda shape: torch.randn(shape))
constants = st.builds(Label, st.sampled_from(["x", "y"]))


def nodes(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return (
        st.dictionaries(names, inner, max_size=3)
        | st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Pair, inner, inner)
    )


trees = st.recursive(tensors | constants, nodes, max_leaves=8)


def walk(node: Tree, path: str = "") -> list[tuple[str, Any]]:
    """The leaves with their paths, by plain recursion."""
    if isinstance(node, Label):
        return []
    if isinstance(node, Pair):
        children = list(zip(Pair._fields, node, strict=True))
    elif isinstance(node, dict):
        children = list(node.items())
    elif isinstance(node, tuple | list):
        children = [(str(i), child) for i, child in enumerate(node)]
    else:
        return [(path, node)]
    return [
        pair
        for name, child in children
        for pair in walk(child, f"{path}.{name}" if path else str(name))
    ]


def same(a: Tree, b: Tree) -> bool:
    """Equal containers, constants, order of entries and tensors."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and a.equal(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(trees)
def test_leaves_come_in_order_with_dotted_paths(t: Tree) -> None:
    expected = walk(t)
    found = tree.named_leaves(t)
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (_, a), (_, b), c in zip(found, expected, tree.leaves(t), strict=True):
        assert a is b and c is b


@pytest.mark.parametrize(
    "ambiguous",
    [{"a.b": 1.0, "a": {"b": 2.0}}, {1: 1.0, "1": 2.0}, {"": {"": 1.0}, ".": 2.0}],
    ids=["a dot", "a number", "nothing"],
)
def test_two_leaves_of_one_path_are_refused(ambiguous: Tree) -> None:
    """What goes by paths would take one for the other: norms of examples did."""
    with pytest.raises(ValueError, match=r"two leaves have the path '.*', .*: give"):
        tree.named_leaves(ambiguous)
    with pytest.raises(ValueError, match="two leaves have the path"):
        tree.map_with_path(lambda path, x: x, ambiguous)
    assert tree.leaves(tree.map(lambda x: 2 * x, ambiguous)) == [2.0, 4.0]  # by place, not by path


def test_no_transform_mixes_leaves_of_one_path() -> None:
    params = {"a.b": torch.ones(3, 2), "a": {"b": torch.ones(3, 2)}}

    def loss(params: Tree, x: Tensor) -> Tensor:
        return ((x @ params["a.b"]) * (x @ params["a"]["b"])).sum()

    for transform in (transforms.per_example_grads, transforms.per_example_norms):
        with pytest.raises(ValueError, match="two leaves have the path 'a.b'"):
            transform(loss, params, torch.ones(2, 3))


@given(trees)
def test_unflatten_undoes_leaves(t: Tree) -> None:
    again = tree.unflatten(tree.structure(t), tree.leaves(t))
    assert same(again, t)
    assert tree.structure(again) == tree.structure(t)


@given(trees)
def test_map_reaches_every_leaf_and_keeps_everything_else(t: Tree) -> None:
    doubled = tree.map(lambda x, y: x + y, t, t)
    assert tree.structure(doubled) == tree.structure(t)
    for (_, a), (_, b) in zip(walk(doubled), walk(t), strict=True):
        assert a.equal(2 * b)
    paths = tree.map_with_path(lambda path, x, y: (path, x is y), t, t)
    expected = [value for path, _ in walk(t) for value in (path, True)]
    assert tree.leaves(paths) == expected  # the pairs are tuples, hence nodes


@given(trees, st.sets(st.integers(0, 7)))
def test_partition_chooses_by_predicate_and_merge_undoes_it(t: Tree, chosen: set[int]) -> None:
    everything = walk(t)
    paths = {path for i, (path, _) in enumerate(everything) if i in chosen}
    seen: list[str] = []

    def predicate(path: str, leaf: Any) -> bool:
        seen.append(path)
        return path in paths

    first, rest = tree.partition(t, predicate)
    assert set(seen) == {path for path, _ in everything}
    assert {path for path, _ in tree.named_leaves(first)} == paths
    assert {p for p, _ in tree.named_leaves(rest)} == {p for p, _ in everything} - paths
    assert same(tree.select(t, lambda path, leaf: path in paths), first)
    for whole in (tree.merge(first, rest), tree.merge(rest, first)):
        found = dict(tree.named_leaves(whole))
        assert found.keys() == {path for path, _ in everything}
        assert all(found[path] is leaf for path, leaf in everything)


def test_partition_of_parameters_keeps_the_config_with_the_rest() -> None:
    params = make_params(GPT2)
    biases, rest = tree.partition(params, lambda path, leaf: path.endswith("bias"))
    assert "config" not in biases and rest["config"] == params["config"]
    whole = tree.merge(biases, rest)
    assert whole["config"] is params["config"]
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    assert gpt2.apply(whole, ids)[0].equal(gpt2.apply(params, ids)[0])

    def loss(biases: Tree) -> Tensor:
        return gpt2.apply(tree.merge(biases, rest), ids)[0].square().mean()

    gradients = grad(loss)(biases)
    assert tree.structure(gradients) == tree.structure(biases)
    used = [g for path, g in tree.named_leaves(gradients) if not path.startswith("heads.")]
    assert all(g.abs().max() > 0 for g in used)


def test_merge_of_two_leaves_at_one_place_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"both trees at 'a\.1\.w'"):
        tree.merge({"a": ({}, {"w": 1})}, {"a": ({"v": 2}, {"w": 3})})
    with pytest.raises(ValueError, match=r"both trees at 'right'"):
        tree.merge(Pair({}, 1), Pair(2, 3))
    with pytest.raises(ValueError, match=r"both trees at 'a'"):
        tree.merge({"a": (1, 2)}, {"a": (1, 2, 3)})


def test_count_adds_the_numbers_of_every_leaf_once() -> None:
    params = gpt2.init(GPT2.config, torch.tensor(0))
    d, layers = 36, 2
    block = 2 * 2 * d + (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d)
    assert tree.count(params) == (41 + 24) * d + layers * block + 2 * d
    assert tree.count({"config": Label("x")}) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_cast_leaves_integers_booleans_and_constants(dtype: torch.dtype) -> None:
    t = {"w": torch.ones(2), "step": torch.tensor(3), "on": torch.tensor([True]), "c": Label("x")}
    out = tree.cast(t, dtype)
    assert [x.dtype for x in tree.leaves(out)] == [dtype, torch.int64, torch.bool]
    assert out["c"] == Label("x")
    assert tree.cast(t, torch.float32)["w"] is t["w"]  # nothing to do: no copy


def test_to_meta_and_back_keeps_shapes_and_types() -> None:
    params = tree.cast(make_params(GPT2), torch.float16)
    shapes = tree.to(params, "meta")
    for a, b in zip(tree.leaves(shapes), tree.leaves(params), strict=True):
        assert a.is_meta and a.shape == b.shape and a.dtype == b.dtype
    assert shapes["config"] is params["config"]


@given(trees.filter(lambda t: bool(walk(t))), st.integers(1, 3))
def test_unstack_undoes_stack(t: Tree, members: int) -> None:
    ensemble = [tree.map(lambda x, i=i: x + i, t) for i in range(members)]
    stacked = tree.stack(ensemble)
    for (_, a), (_, b) in zip(walk(stacked), walk(t), strict=True):
        assert a.shape == (members, *b.shape)
    for a, b in zip(tree.unstack(stacked), ensemble, strict=True):
        assert same(a, b)


def test_stack_and_unstack_name_what_they_need() -> None:
    with pytest.raises(ValueError, match="at least one tree"):
        tree.stack([])
    with pytest.raises(ValueError, match=r"one size of first axis, got \[2, 3\]"):
        tree.unstack({"a": torch.zeros(2), "b": torch.zeros(3)})


def test_a_constant_has_no_leaves_passes_transforms_and_is_part_of_the_structure() -> None:
    t = {"config": Label("x"), "w": torch.ones(3)}
    assert len(tree.leaves(t)) == 1
    assert tree.structure(t) == tree.structure({"config": Label("x"), "w": 0})
    assert tree.structure(t) != tree.structure({"config": Label("y"), "w": 0})
    gradient = vmap(grad(lambda t, x: (t["w"] * x).sum()), in_dims=(None, 0))(t, torch.eye(3))
    assert gradient["config"] == Label("x") and gradient["w"].equal(torch.eye(3))
    with pytest.raises(ValueError):  # members of an ensemble must have one config
        tree.stack([t, {"config": Label("y"), "w": torch.ones(3)}])


def test_dot_is_the_inner_product_in_wide_types() -> None:
    a, b = {"x": torch.randn(3, 2), "y": (torch.randn(4),)}, {"x": torch.randn(3, 2)}
    b["y"] = (torch.randn(4),)  # type: ignore[assignment]
    flat = [torch.cat([x.flatten() for x in tree.leaves(t)]) for t in (a, b)]
    torch.testing.assert_close(tree.dot(a, b), flat[0] @ flat[1])
    torch.testing.assert_close(tree.dot(a, a), tree.norm(a) ** 2)
    half = {"x": torch.full((2**12,), 1.0, dtype=torch.bfloat16)}
    assert tree.dot(half, half).dtype == torch.float32 and tree.dot(half, half) == 2**12
    with pytest.raises(ValueError, match="at least one leaf"):
        tree.dot({}, {})


def test_combine_is_the_weighted_sum_and_is_differentiable_by_the_weights() -> None:
    trees = [{"w": torch.randn(3), "v": (torch.randn(2),)} for _ in range(3)]
    found = tree.combine(iter(trees), [2.0, -1.0, torch.tensor(0.5)])
    torch.testing.assert_close(found, tree.map(lambda a, b, c: 2 * a - b + 0.5 * c, *trees))
    weights = torch.tensor([0.2, 0.3, 0.5])
    slope = grad(lambda w: tree.dot(tree.combine(trees, w.unbind()), trees[0]))(weights)
    torch.testing.assert_close(slope, torch.stack([tree.dot(t, trees[0]) for t in trees]))
    with pytest.raises(ValueError, match="got 3 trees and 2 weights"):
        tree.combine(trees, [1.0, 2.0])
    with pytest.raises(ValueError, match="got 0 trees and 0 weights"):
        tree.combine([], [])
    with pytest.raises(ValueError, match="step has type torch.int64"):
        tree.combine([{"step": torch.tensor(1)}], [1.0])


def test_init_many_is_the_ensemble_of_the_loop() -> None:
    keys = random.split(random.key(0), 3)
    ensemble = tree.init_many(gpt2.init, GPT2.config, keys, heads=["multiple_choice"])
    members = [gpt2.init(GPT2.config, key, heads=["multiple_choice"]) for key in keys]
    assert ensemble["config"] == GPT2.config
    for a, b in zip(tree.leaves(ensemble), tree.leaves(tree.stack(members)), strict=True):
        assert torch.equal(a, b)


def test_describe_counts_what_is_there() -> None:
    params = make_params(GPT2)
    lines = tree.describe(params).splitlines()
    assert lines[-1].split() == ["in", "all", f"{tree.count(params):,}"]
    row = next(line for line in lines if line.startswith("blocks.*.mlp.up.weight"))
    assert row.split() == [
        "blocks.*.mlp.up.weight", "x2", "[36,", "144]", "float32", f"{2 * 36 * 144:,}",
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1  # a table
    assert tree.describe({}).split() == ["in", "all", "0"]


def test_a_shared_trunk_runs_once() -> None:
    """Members that differ in their heads alone cost one model and the heads."""
    members = [make_params(BERT, seed=seed) for seed in range(4)]
    ids, mask = make_batch(BERT)

    def is_head(path: str, leaf: Tensor) -> bool:
        return path.startswith("heads.")

    heads = tree.stack(tree.select(member, is_head) for member in members)
    _, trunk = tree.partition(members[0], is_head)

    def classify(heads: Tree) -> Tensor:
        return bert.sequence_classification(tree.merge(heads, trunk), ids, None, mask)

    def flops(call: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    found = vmap(classify)(heads)
    assert found.shape == (4, 3, BERT.config.num_labels)
    for number, member in enumerate(members):
        alone = classify(tree.select(member, is_head))
        torch.testing.assert_close(found[number], alone, rtol=1e-5, atol=1e-5)
    one = flops(lambda: classify(tree.select(members[0], is_head)))
    four = flops(lambda: vmap(classify)(heads))
    own = 2 * 3 * BERT.config.hidden_size * BERT.config.num_labels  # of a head
    assert one > 100 * own and four == one + 3 * own
