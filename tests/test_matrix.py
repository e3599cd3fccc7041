"""The page of every function under every transform: it is whole, right, and still true."""

import warnings
from typing import Any

import make_matrix as made
import pytest
from families import WRITTEN, Family
from test_leaves_transforms import KINDS
from torch import Tensor

from fnlm.tree import Tree

PAGE = made.PAGE.read_text(encoding="utf-8")
MADE_ANEW = "run `python tests/make_matrix.py`"
# What torch does not let fnlm do, and why: (row, function) -> the reason. Five at most.
IMPOSSIBLE: dict[tuple[str, str], str] = {}
FAST = [name for name, row in made.ROWS.items() if not row.slow]
over_families = pytest.mark.parametrize("family", WRITTEN, ids=lambda family: family.name)
# The peer's words are those of the versions on the page.
SAME_VERSIONS = made.versions() in PAGE


def table(title: str) -> dict[str, dict[str, str]]:
    """The cells of a table by its row and column."""
    _, _, text = PAGE.partition(f"\n| {title} |" if title else "\n| |")
    header, _, *lines = text.partition("\n\n")[0].splitlines()
    columns = header.strip(" |").split(" | ")
    rows = [[part.strip() for part in line.strip("| ").split(" | ")] for line in lines]
    return {row[0]: dict(zip(columns, row[1:], strict=True)) for row in rows}


def listed() -> list[str]:
    """The errors at the end of the page."""
    _, _, text = PAGE.partition("## Errors\n\n")
    return [line.partition(". ")[2].strip("`") for line in text.splitlines()]


@over_families
def test_the_page_has_every_function_and_nothing_of_fnlm_is_off(family: Family) -> None:
    found = table(made.TITLES[family.name])
    assert list(found) == list(made.ROWS), MADE_ANEW
    for row, cells in found.items():
        assert list(cells) == list(family.tasks), MADE_ANEW
        for task, words in cells.items():
            if (row, f"{family.name}.{task}") not in IMPOSSIBLE:
                assert words.split(" / ")[0] == "right", f"{family.name}.{task}: {row}"


def test_what_is_impossible_is_little_and_has_a_reason() -> None:
    assert len(IMPOSSIBLE) <= 5
    for (row, function), reason in IMPOSSIBLE.items():
        name, task = function.split(".")
        assert table(made.TITLES[name])[row][task].startswith("error"), "it is possible now"
        assert "torch" in reason


def test_typed_leaves_are_right_everywhere() -> None:
    found = table("")
    assert list(found) == [name for name in made.ROWS if not name.startswith("compile")], MADE_ANEW
    for row, cells in found.items():
        assert list(cells) == list(KINDS), MADE_ANEW
        assert all(words == "right" for words in cells.values()), row


@over_families
def test_what_is_fast_is_as_the_page_says(family: Family) -> None:
    """All rows that are not traced; those of the peer in one function of a family."""
    found, errors = table(made.TITLES[family.name]), listed()
    for number, task in enumerate(family.tasks):
        wanted = made.ours(family.name, task)
        for row in FAST:
            ours, *theirs = found[row][task].split(" / ")
            assert made.cell(row, wanted, wanted) == ours, f"{family.name}.{task}: {row}"
            if theirs and number == 1 and SAME_VERSIONS:
                said = made.cell(row, made.theirs(family.name, task), wanted)
                assert made.numbered(said, errors) == theirs[0], (
                    f"{task} of transformers: {row}; {MADE_ANEW}"
                )


@pytest.mark.parametrize("kind", KINDS)
def test_typed_leaves_are_as_the_page_says(kind: str) -> None:
    """A row in four for each family, other rows for others."""
    for turn, family in enumerate(WRITTEN):
        for row in FAST[turn::4]:
            assert made.leaves_cell(row, kind, [family.name]) == "right", (family.name, row)


def test_a_wrong_number_a_warning_and_an_error_are_seen() -> None:
    wanted = made.ours("gpt2", "apply")

    def cell_of(forward: made.Forward) -> str:
        case = made.Case(forward, wanted.params, wanted.along, wanted.module)
        return made.cell("grad", case, wanted)

    def warned(params: Tree, ids: Tensor) -> Any:
        warnings.warn("performance drop", stacklevel=1)
        return wanted.forward(params, ids)

    def raised(params: Tree, ids: Tensor) -> Any:
        raise ValueError("no. And why")

    assert cell_of(wanted.forward) == "right"
    assert "off by" in cell_of(lambda p, ids: wanted.forward(p, ids).sin())
    assert cell_of(lambda p, ids: wanted.forward(p, ids) * float("nan")) == "**off by inf %**"
    assert cell_of(warned) == "slow"
    assert cell_of(raised) == "error: ValueError: no"
    assert made.numbered("error: ValueError: no", ["another"]) == "error 2"
