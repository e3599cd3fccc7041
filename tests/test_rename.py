"""Foreign names: the tables are two-way, and every tensor that crosses is accounted for."""

import re
from functools import cache
from typing import Any

import pytest
import torch
from families import FAMILIES, Family, make_params
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fnlm import tree
from fnlm.families import FAMILIES as RECORDS
from fnlm.params import _rename
from fnlm.params.names import Dialect, Rule
from fnlm.params.names import Family as Names
from fnlm.params.names import bert as bert_names
from fnlm.params.names import gpt2 as gpt2_names

BY_NAME = {family.name: family for family in FAMILIES}
TABLES: dict[str, Names] = {name: record.names for name, record in RECORDS.items()}
EVERY = [(family, dialect) for family in FAMILIES for dialect in TABLES[family.name].dialects]
each = pytest.mark.parametrize(
    ("family", "dialect"), EVERY, ids=[f"{f.name}-{d.name}" for f, d in EVERY]
)
TOY = Dialect(
    name="toy",
    file="toy.safetensors",
    rules=(Rule("layers.*.w", "layer_*.weight", "o i -> i o"), Rule("b", "b.bias")),
    prefix="model.",
    unprefixed=("b.",),
    ties={"copy.weight": "b"},
    buffers=("mask.*",),
)
TOY_FAMILY = Names("toy", (TOY,), {(): "Toy"}, {})


@cache
def flat(family: str) -> dict[str, Tensor]:
    """Every leaf that a config of the family can have."""
    row = BY_NAME[family]
    models = [make_params(row._replace(config=c)) for c in (row.config, *row.others)]
    return {path: leaf for params in models for path, leaf in tree.named_leaves(params)}


def pattern(path: str) -> str:
    """A path with its layer or cluster number replaced by a star."""
    return re.sub(r"[.](cluster_)?\d+[.]", r".\1*.", path)


def drawn(
    data: st.DataObject, family: Family, dialect: Dialect
) -> tuple[Names, Dialect, dict[str, Tensor]]:
    """The tables for one of the heads, and some leaves that they have names for, in any order."""
    head = data.draw(st.sampled_from(family.module.HEADS or [""]))
    table = _rename.untied(_rename.for_heads(TABLES[family.name], [head]))
    (dialect,) = (d for d in table.dialects if d.name == dialect.name)
    leaves = flat(family.name)
    known = sorted(path for path in leaves if _rename.foreign_name(path, dialect))
    paths = data.draw(st.lists(st.sampled_from(known), unique=True, min_size=1))
    return table, dialect, {path: leaves[path] for path in paths}


@each
@settings(max_examples=50)
@given(data=st.data())
def test_from_foreign_undoes_to_foreign(family: Family, dialect: Dialect, data: Any) -> None:
    """For any of the leaves, in any order, with or without prefixes, among what is not ours."""
    table, dialect, some = drawn(data, family, dialect)
    foreign = _rename.to_foreign(_rename.nest(some), dialect)
    assert len(foreign) == len(some)
    for_each = st.sampled_from(["", "module."])
    strip = st.booleans()
    carried = {
        data.draw(for_each) + (name.removeprefix(dialect.prefix) if data.draw(strip) else name): x
        for name, x in foreign.items()
    }
    strangers = data.draw(st.sets(st.sampled_from(["h.x.ln_1.weight", "wtx", "h.1.attn.c"])))
    found, unexpected = _rename.from_foreign(
        carried | {name: torch.zeros(1) for name in strangers}, table, "here"
    )
    assert set(unexpected) == strangers
    assert found.keys() == some.keys()
    assert all(found[path].equal(leaf) for path, leaf in some.items())


@each
@settings(max_examples=50)
@given(data=st.data())
def test_to_foreign_undoes_from_foreign(family: Family, dialect: Dialect, data: Any) -> None:
    table, dialect, some = drawn(data, family, dialect)
    foreign = _rename.to_foreign(_rename.nest(some), dialect)
    found, unexpected = _rename.from_foreign(foreign, table, "here")
    again = _rename.to_foreign(_rename.nest(found), dialect)
    assert not unexpected and again.keys() == foreign.keys()
    assert all(again[name].equal(x) for name, x in foreign.items())


@each
def test_the_table_names_every_leaf_once(family: Family, dialect: Dialect) -> None:
    """Heads of which a file holds one may share a name: for each of them, names are unique."""
    ours = [r.ours for r in dialect.rules]
    owners = [
        (r.theirs, r.ours.split(".")[1] if r.ours[:6] == "heads." else "") for r in dialect.rules
    ]
    assert len(set(ours)) == len(ours) and len(set(owners)) == len(owners)
    below = [name for name, head in owners if not head]
    assert not {name for name, head in owners if head} & set(below)
    assert all(r.ours.count("*") == r.theirs.count("*") <= 1 for r in dialect.rules)
    used = {pattern(path) for path in flat(family.name)}
    if not dialect.file:  # a release: it has no names for our heads, nor for what is always tied
        ties = {*TABLES[family.name].ties, "output.table"}
        used = {p for p in used if p in ours or not (p.startswith("heads.") or p in ties)}
    if dialect.name.startswith("pytorch-pretrained-bert"):  # which ties the outputs of all models
        used -= {"output.table"}
    named = {pattern(path) for path in ours}
    assert used == named, "a leaf without a rule, or a rule without a leaf"
    assert set(dialect.ties.values()) <= set(ours)


def test_a_name_that_heads_share_belongs_to_the_one_named() -> None:
    table, bias = bert_names.FAMILY, torch.ones(1)
    for head in ("sequence_classification", "multiple_choice", "token_classification"):
        found, unexpected = _rename.from_foreign(
            {"classifier.bias": bias}, _rename.for_heads(table, [head, "masked_lm"]), "here"
        )
        assert list(found) == [f"heads.{head}.bias"] and not unexpected
    for heads in ((), ("masked_lm",), ("multiple_choice", "token_classification")):
        found, unexpected = _rename.from_foreign(
            {"classifier.bias": bias}, _rename.for_heads(table, heads), "here"
        )
        assert not found and unexpected == ["classifier.bias"]
    both = {"heads": {"multiple_choice": {"bias": bias}, "token_classification": {"bias": bias}}}
    with pytest.raises(ValueError, match="heads.token_classification.bias and .* classifier.bias"):
        _rename.to_foreign(both, table.dialects[0])


def test_layer_numbers_of_several_digits_are_whole() -> None:
    leaves = {f"layers.{i}.w": torch.full((2, 3), float(i)) for i in range(12)}
    foreign = _rename.to_foreign(_rename.nest(leaves), TOY)
    assert foreign["model.layer_11.weight"].equal(torch.full((3, 2), 11.0))
    assert _rename.from_foreign(foreign, TOY_FAMILY, "here")[0]["layers.11.w"][0, 0] == 11


def test_prefixes_are_those_of_the_dialect() -> None:
    foreign = _rename.to_foreign({"b": torch.ones(1), "layers": ({"w": torch.ones(2, 3)},)}, TOY)
    assert sorted(foreign) == ["b.bias", "model.layer_0.weight"]


def test_a_prefix_may_hold_the_name_of_a_wrapper() -> None:
    """As "model.decoder." does: wrappers leave "model." in front of other names."""
    toy = TOY._replace(prefix="model.decoder.")
    family, x = TOY_FAMILY._replace(dialects=(toy,)), torch.ones(3, 2)
    written = _rename.to_foreign({"layers": ({"w": x.mT},)}, toy)
    assert list(written) == ["model.decoder.layer_0.weight"]
    for name in (*written, "decoder.layer_0.weight", "module.model.decoder.layer_0.weight"):
        found, unexpected = _rename.from_foreign({name: x}, family, "here")
        assert list(found) == ["layers.0.w"] and not unexpected
    assert _rename.classify("encoder.layer_0.weight", family).kind == "unknown"


def test_the_prefix_may_go_where_there_is_no_head() -> None:
    toy = TOY._replace(bare=True)
    leaves = {"layers": ({"w": torch.ones(2, 3)},)}
    assert list(_rename.to_foreign(leaves, toy)) == ["layer_0.weight"]
    head = toy._replace(rules=(*toy.rules, Rule("heads.h.w", "b.w")))
    both = _rename.to_foreign(leaves | {"heads": {"h": {"w": torch.ones(1)}}}, head)
    assert sorted(both) == ["b.w", "model.layer_0.weight"]


def test_an_axis_that_is_not_there_is_named() -> None:
    for shape in ((3,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"here: layer_0.weight has shape .* axes \(o, i\)"):
            _rename.from_foreign({"layer_0.weight": torch.ones(shape)}, TOY_FAMILY, "here")
    one = gpt2_names.FAMILY
    with pytest.raises(ValueError, match=r"has shape \[2, 3, 4\], expected axes \(1, i, o\)"):
        _rename.from_foreign({"model/h0/attn/c_attn/w": torch.ones(2, 3, 4)}, one, "here")


def test_what_a_trainer_stored_is_known_and_not_read() -> None:
    for name in ("global_step", "model/wte/Adam", "model/wte/adam_v", "beta1_power", "x/Adam_1"):
        assert _rename.classify(name, gpt2_names.FAMILY).kind == "training"
    assert _rename.classify("model/adam", gpt2_names.FAMILY).kind == "unknown"


def test_a_dialect_is_known_by_its_names() -> None:
    for dialect in gpt2_names.FAMILY.dialects:
        leaves = {k: v for k, v in make_params(BY_NAME["gpt2"]).items() if k != "config"}
        leaves = {k: v for k, v in leaves.items() if dialect.file or k != "heads"}
        names = _rename.to_foreign(leaves, dialect)
        assert _rename.dialect_of(names, gpt2_names.FAMILY).rules == dialect.rules


def test_a_leaf_without_a_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"no rule of toy names the leaf layers\.0\.v"):
        _rename.to_foreign({"layers": ({"v": torch.ones(1)},)}, TOY)


def test_buffers_are_dropped_and_nothing_like_them() -> None:
    found, unexpected = _rename.from_foreign(
        {"mask.7": torch.ones(1), "mask.x": torch.ones(1), "model.mask.7.x": torch.ones(1)},
        TOY_FAMILY,
        "here",
    )
    assert not found and unexpected == ["mask.x", "model.mask.7.x"]


def test_a_tied_copy_must_be_equal_and_may_stand_alone() -> None:
    b = torch.arange(3.0)
    for tensors in ({"b.bias": b, "copy.weight": b.clone()}, {"copy.weight": b}):
        found, unexpected = _rename.from_foreign(tensors, TOY_FAMILY, "here")
        assert found.keys() == {"b"} and found["b"].equal(b) and not unexpected
    for other in (b + 1, torch.arange(4.0)):
        with pytest.raises(ValueError, match="copy.weight is tied to b.bias, but the two differ"):
            _rename.from_foreign({"copy.weight": other, "b.bias": b}, TOY_FAMILY, "here")


def test_two_names_for_one_leaf_are_an_error() -> None:
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="both model.layer_0.weight and layer_0.weight name the"):
        _rename.from_foreign({"model.layer_0.weight": x, "layer_0.weight": x}, TOY_FAMILY, "here")


def test_names_match_whole() -> None:
    """Dots are dots, and a name that only contains another one is a stranger."""
    names = ["layer_0xweight", "layer_0.weight.x", "x.layer_0.weight", "layer_.weight", "bxbias"]
    found, unexpected = _rename.from_foreign(
        {name: torch.ones(1) for name in names}, TOY_FAMILY, "here"
    )
    assert not found and unexpected == names


# A node without children has no path, so it cannot come back.
keys = st.text("abc_", min_size=1, max_size=3)
nested = st.recursive(
    st.integers(),
    lambda inner: (
        st.dictionaries(keys, inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=12).map(tuple)
    ),
    max_leaves=20,
).filter(lambda t: not isinstance(t, int))


@given(nested, st.randoms())
def test_nest_undoes_named_leaves_in_any_order(t: Any, order: Any) -> None:
    pairs = tree.named_leaves(t)
    assert _rename.nest(dict(pairs)) == t
    order.shuffle(pairs)
    assert _rename.nest(dict(pairs)) == t


def test_nest_makes_tuples_of_whole_runs_of_numbers_only() -> None:
    x, y = torch.ones(1), torch.zeros(1)
    assert _rename.nest({}) == {}
    assert _rename.nest({"a.1": x}) == {"a": {"1": x}}
    assert _rename.nest({"a.1": y, "a.0": x}) == {"a": (x, y)}
    assert _rename.nest({"a.00": x}) == {"a": {"00": x}}
    assert isinstance(_rename.nest(flat("gpt2"))["blocks"], tuple)


def test_the_nearest_name_is_offered_only_if_it_is_near() -> None:
    assert _rename.nearest("h.0.ln_1.wieght", ["h.0.ln_1.weight", "wte.weight"]) == (
        " (nearest: h.0.ln_1.weight)"
    )
    assert _rename.nearest("zzz", ["h.0.ln_1.weight"]) == ""
