"""What every family keeps to: a new row of the table gets all of these tests.

Run as a script, it writes the golden files, tests/golden/NAME.json of each family.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from families import (
    CAUSAL,
    FAMILIES,
    FILES,
    FUNCTION_IDS,
    FUNCTIONS,
    IDS,
    VARIANTS,
    Family,
    make_batch,
    make_params,
    run,
    vocabulary,
    with_heads,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import hf, quiet
from safetensors.torch import load_file
from torch import Tensor
from torch.func import grad

from fnlm import random, tree
from fnlm.tree import Tree

GOLDEN = Path(__file__).parent / "golden"
HALVES = (torch.bfloat16, torch.float16)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
each_function = pytest.mark.parametrize(("family", "function"), FUNCTIONS, ids=FUNCTION_IDS)
each_variant = pytest.mark.parametrize(("family", "name"), VARIANTS, ids=IDS)
each_causal_function = pytest.mark.parametrize(
    ("family", "function"),
    [row for row in FUNCTIONS if row[0].starts],
    ids=[name for name, row in zip(FUNCTION_IDS, FUNCTIONS, strict=True) if row[0].starts],
)
STARTS = [(family, start) for family in CAUSAL for start in family.starts]
each_start = pytest.mark.parametrize(
    ("family", "start"), STARTS, ids=[f"{family.name}-{start}" for family, start in STARTS]
)


def close(a: Tree, b: Tree, tolerance: float = 1e-5) -> None:
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, atol=tolerance, rtol=tolerance)


# Who sees whom


HIDDEN = [(f, name) for f, name in FUNCTIONS if name != "apply"]  # which reads a tied table twice


@pytest.mark.parametrize(
    ("family", "function"), HIDDEN, ids=[f"{family.name}-{name}" for family, name in HIDDEN]
)
def test_causal_by_gradient(family: Family, function: str) -> None:
    """A state depends on its own token and, in a causal family, on those before it alone."""
    params, ids = make_params(family), torch.arange(7) + 3  # token types may be rows 0 and 1
    table = dict(tree.named_leaves(params))[family.table]

    def state(table: Tensor, t: int) -> Tensor:
        own = tree.map_with_path(lambda path, x: table if path == family.table else x, params)
        results, _ = run(family, own, ids, function=function)
        return torch.stack([x[t].sin().sum() for x in results]).sum()

    for t in range(7):
        used = grad(state)(table, t).abs().sum(-1).gt(0).nonzero().flatten()
        assert used[used > 2].equal(ids[: t + 1] if family.starts else ids)


@each_causal_function
def test_later_tokens_change_no_earlier_result(family: Family, function: str) -> None:
    params, (ids, _) = make_params(family), make_batch(family)
    other = torch.cat([ids[:, :4], (ids[:, 4:] + 1) % vocabulary(family)], 1)
    found, again = (run(family, params, x, function=function)[0] for x in (ids, other))
    for x, y in zip(found, again, strict=True):
        assert x[:, :4].equal(y[:, :4]) and not x[:, 4:].equal(y[:, 4:])


PADDED = [
    (family, function, side)
    for family, function in FUNCTIONS
    for side in ("right", "left")
    # On the left only where positions count from the first token: they do in causal families.
    if side == "right" or (family.starts and family.takes("mask"))
]


@pytest.mark.parametrize(
    ("family", "function", "side"), PADDED, ids=[f"{f.name}-{n}-{side}" for f, n, side in PADDED]
)
def test_a_padded_row_equals_the_row_alone(family: Family, function: str, side: str) -> None:
    """A family without masks is causal: what comes later is nothing to it."""
    params = make_params(family)
    ids, filler = make_batch(family, 2, 5)[0], make_batch(family, 2, 4, seed=1)[0]
    parts = [(ids, 1), (filler, 0)] if side == "right" else [(filler, 0), (ids, 1)]
    mask = torch.cat([torch.full_like(part, real) for part, real in parts], 1)
    padded, _ = run(family, params, torch.cat([x for x, _ in parts], 1), None, mask,
                    function=function)  # fmt: skip
    alone, _ = run(family, params, ids, function=function)
    for x, y in zip(padded, alone, strict=True):
        each_token = x.shape[:-1] == mask.shape
        close(x[mask.bool()].unflatten(0, ids.shape) if each_token else x, y)


@each_start
@settings(max_examples=20)
@given(cuts=st.lists(st.integers(0, 24), max_size=6).map(sorted), rows=st.integers(1, 3))
def test_cached_pieces_equal_the_whole(
    family: Family, start: str, cuts: list[int], rows: int
) -> None:
    """Uneven ones, empty ones and padded rows too; and the states go on alike."""
    params, (ids, mask) = make_params(family), make_batch(family, rows, 23)
    mask = mask if family.takes("mask") else torch.ones_like(mask)
    with torch.no_grad():
        for function in (name for row, name in FUNCTIONS if row is family):
            state, pieces = family.starts[start](params, rows), []
            for a, b in pairwise([0, *cuts, 23]):
                piece, state = run(
                    family, params, ids[:, a:b], state, mask[:, a:b], function=function
                )
                pieces.append(piece)
            whole, last = run(family, params, ids, None, mask, function=function)
            for x, *parts in zip(whole, *pieces, strict=True):
                close(torch.cat(parts, 1)[mask], x[mask])
            after, _ = run(family, params, ids[:, :1], state, function=function)
            close(after, run(family, params, ids[:, :1], last, function=function)[0])


# Shapes and types


@each_variant
def test_leading_dimensions_are_any(family: Family, name: str) -> None:
    """None, none of them empty, and an empty one, beside a loop over the rows."""
    params, (ids, mask), task = make_params(family), make_batch(family), family.tasks[name]
    rows = tree.stack([task(params, *row) for row in zip(ids, mask, strict=True)])
    for lead in ((3,), (3, 1), (1, 3, 1)):
        found = tree.leaves(task(params, ids.reshape(*lead, 7), mask.reshape(*lead, 7)))
        assert all(x.shape[: len(lead)] == lead for x in found)
        close([x.flatten(0, len(lead) - 1) for x in found], tree.leaves(rows))
    for x, y in zip(tree.leaves(task(params, ids[:0], mask[:0])), tree.leaves(rows), strict=True):
        assert x.shape == (0, *y.shape[1:])


@pytest.mark.parametrize("family", CAUSAL, ids=lambda family: family.name)
def test_a_state_has_the_leading_dimensions_of_the_ids(family: Family) -> None:
    params, ids = make_params(family), make_batch(family, 6)[0].reshape(2, 3, 7)
    _, state = run(family, params, ids)
    for place in ((0, 0), (1, 2)):
        close(tree.map(lambda x, at=place: x[at], state), run(family, params, ids[place])[1])


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@each_variant
def test_half_precision_stays_half_and_close(family: Family, name: str, dtype: torch.dtype) -> None:
    params, (ids, mask) = make_params(family, scale=0.05), make_batch(family)
    found = family.tasks[name](tree.cast(params, dtype), ids, mask)
    expected = family.tasks[name](params, ids, mask)
    for x, y in zip(tree.leaves(found), tree.leaves(expected), strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.float(), y, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@each_start
def test_half_precision_makes_states_of_half_precision(
    family: Family, start: str, dtype: torch.dtype
) -> None:
    params, (ids, _) = tree.cast(make_params(family, scale=0.05), dtype), make_batch(family)
    state = family.starts[start](params, 3)
    for part in (ids[:, :4], ids[:, 4:]):
        results, state = run(family, params, part, state)
        assert {x.dtype for x in results} == {dtype}
        assert {x.dtype for x in tree.leaves(state) if x.is_floating_point()} == {dtype}


# Misuse


@pytest.mark.parametrize("bad", [-1, 41])
@each_variant
def test_ids_out_of_range_are_named(family: Family, name: str, bad: int) -> None:
    params, (ids, mask) = make_params(family), make_batch(family)
    assert vocabulary(family) == 41
    ids[1, 4] = bad
    with pytest.raises(IndexError, match=rf"(?s)ids.*{bad}"):
        family.tasks[name](params, ids, mask)


@each_family
@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, p, i: m.apply(p, i.float()), TypeError, ["ids", "float32", "int64"]),
        (lambda m, p, i: m.apply(p, i.tolist()), TypeError, ["ids", "int64 tensor", "list"]),
        (lambda m, p, i: m.apply(p, i[0, 0]), ValueError, ["ids"]),
        (
            lambda m, p, i: m.apply(p, i, key=torch.zeros(2)),
            TypeError,
            ["key", "float32", "random.key"],
        ),
        (lambda m, p, i: m.init(p["config"], random.key(0), heads=("x",)), ValueError, ["x"]),
        (lambda m, p, i: m.spec(p["config"], ("x",)), ValueError, ["x"]),
    ],
)
def test_misuse_is_named(family: Family, call: Any, error: Any, words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call(family.module, make_params(family), make_batch(family)[0])
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "family", [f for f in FAMILIES if f.takes("mask")], ids=lambda family: family.name
)
def test_a_mask_of_another_shape_is_named(family: Family) -> None:
    params, (ids, mask) = make_params(family), make_batch(family)
    with pytest.raises(ValueError, match=r"mask .*\[3, 6\].*\[3, 7\]"):
        family.module.apply(params, ids, mask=mask[:, :6])


# Names and files


SAVED = [(f, heads, c) for f, heads in FILES for c in (f.config, *f.others)]


@pytest.mark.parametrize(
    ("family", "heads", "config"), SAVED, ids=["-".join([f.name, *heads]) for f, heads, _ in SAVED]
)
def test_transformers_loads_what_is_saved_and_back(
    family: Family, heads: tuple[str, ...], config: Any, tmp_path: Path
) -> None:
    """Every class that it has of a family, name by name, with the heads and parts of that class."""
    names = family.names
    cls = getattr(hf(), names.architectures[heads], None)
    if cls is None:
        pytest.skip(f"transformers has no {names.architectures[heads]}")
    params = with_heads(family._replace(config=config), heads)
    for part, needed_by in names.optional.items():
        if heads and needed_by and not set(heads) & set(needed_by):
            del params[part]
    family.module.save(params, tmp_path / "ours")
    content = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert content["architectures"] == [names.architectures[heads]]
    with quiet():  # a config warns of special ids outside a vocabulary of 41
        module, report = cls.from_pretrained(tmp_path / "ours", output_loading_info=True)
        module.save_pretrained(tmp_path / "theirs")
    assert not any(report.values()), report
    theirs = dict(module.named_parameters(remove_duplicate=False))
    for name, x in load_file(tmp_path / "ours" / "model.safetensors").items():
        assert theirs[name].equal(x), name
    stated = names.stated(config, heads, names.dialects[0].name)
    for place in ("ours", "theirs"):
        loaded = family.module.load(tmp_path / place)
        close(leaves_of(loaded), leaves_of(params), 0)
        described, expected = (family.module.spec(c, heads) for c in (loaded["config"], stated))
        assert tree.named_leaves(described) == tree.named_leaves(expected)


def leaves_of(params: Tree) -> Tree:
    return {name: part for name, part in params.items() if name != "config"}


def golden(family: Family) -> dict[str, Any]:
    """Shape and initializer of every leaf."""
    described = family.module.spec(family.golden, family.module.HEADS)
    return {path: [list(s.shape), s.start, s.std] for path, s in tree.named_leaves(described)}


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.golden], ids=lambda f: f.name)
def test_golden_names_and_shapes(family: Family) -> None:
    """The parameter tree is public: to change it on purpose, run this file as a script."""
    stored = json.loads((GOLDEN / f"{family.name}.json").read_text(encoding="utf-8"))
    assert stored == golden(family), "run `python tests/test_families.py` if this is meant"


def write_golden_files() -> None:
    for family in filter(lambda f: f.golden, FAMILIES):
        text = json.dumps(golden(family), indent=1) + "\n"
        (GOLDEN / f"{family.name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_golden_files()
