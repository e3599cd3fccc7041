"""Every name of pytorch-pretrained-BERT 0.6.2 has its line in docs/migration.md, and that holds."""

import importlib
import inspect
import re
from collections.abc import Iterator

import pytest
import pytorch_pretrained_bert
from conftest import ROOT

import fnlm

PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
OTHER = (ROOT / "docs" / "from_transformers.md").read_text(encoding="utf-8")
NAMES = [
    line.split(" ", 1)[1]
    for line in (ROOT / "tests/fixtures/migration_names.txt")
    .read_text(encoding="utf-8")
    .splitlines()
    if not line.startswith("#")
]
EXPORTED = [
    name
    for name, value in vars(pytorch_pretrained_bert).items()
    if not name.startswith("_") and not inspect.ismodule(value)
]
# Names without an answer, each with the reason; at most five.
EXCEPTIONS: dict[str, str] = {}


def rows(page: str = PAGE) -> Iterator[tuple[str, str]]:
    """Yield both cells of each row of the tables, without their heads."""
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]
        if line.startswith("| ") and cells[0] not in ("There", "---"):
            assert len(cells) == 2, line
            yield cells[0], cells[1]


def answered(page: str = PAGE) -> set[str]:
    """The names in the left cells of rows whose right cell says something."""
    found: set[str] = set()
    for there, here in rows(page):
        if len(here) > 2:
            for code in re.findall(r"`([^`]+)`", there):
                found |= {code, *re.findall(r"[\w~/.-]+", code)}
                found |= {part for name in re.findall(r"[\w.]+", code) for part in name.split(".")}
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_the_readme_has_an_answer(name: str) -> None:
    assert (name in answered()) != (name in EXCEPTIONS)


@pytest.mark.parametrize("name", EXPORTED)
def test_a_name_that_the_package_exports_has_an_answer(name: str) -> None:
    assert name in answered()


def test_the_list_of_names_is_whole_and_has_few_exceptions() -> None:
    assert len(NAMES) == len(set(NAMES)) > 180 and len(EXCEPTIONS) <= 5
    classes = {name for name in EXPORTED if inspect.isclass(getattr(pytorch_pretrained_bert, name))}
    assert classes - set(NAMES) == {"TransfoXLCorpus"}  # which the README does not name


def test_a_row_without_an_answer_does_not_count() -> None:
    assert answered("| `a`, `b(c)` | `x.y` |\n| `d` |  |\n| `e.f` | see |") == {
        "a", "b", "c", "b(c)", "e", "f", "e.f",
    }  # fmt: skip


def dotted() -> list[str]:
    modules = set(dir(fnlm))
    codes = {
        code
        for _, here in rows(PAGE + OTHER)
        for code in re.findall(r"`([a-z_]\w*(?:\.\w+)+)", here)
    }
    return sorted(code for code in codes if code.split(".")[0] in modules)


@pytest.mark.parametrize("name", dotted())
def test_what_an_answer_names_exists(name: str) -> None:
    module, *rest = name.split(".")
    found = importlib.import_module(f"fnlm.{module}")
    for part in rest:
        if not hasattr(found, part):
            found = importlib.import_module(f"{found.__name__}.{part}")
        else:
            found = getattr(found, part)


def test_the_files_and_flags_of_an_answer_exist() -> None:
    folders = [ROOT / "examples", ROOT / "fnlm"]
    sources = [path.read_text(encoding="utf-8") for f in folders for path in f.rglob("*.py")]
    fields = set(re.findall(r"^    (\w+): |\"--(\w+)\"", "\n".join(sources), re.MULTILINE))
    flags = {name for pair in fields for name in pair}
    for there, here in rows():
        for file in re.findall(r"`((?:examples|tests)/[\w/]+\.py)`", here):
            assert (ROOT / file).is_file(), file
        if here.startswith("the same flag"):
            assert set(re.findall(r"`--(\w+)`", there)) <= flags, there


def test_many_answers_are_held() -> None:
    assert len(dotted()) > 70 and len(list(rows())) > 110
