"""The Python code of the README and of every page of the docs runs as it stands, offline."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def code(text: str) -> str:
    """The Python blocks of a page as one program, each line where it stands in the page."""
    lines = [""] * len(text.splitlines())
    for match in FENCE.finditer(text):
        if match[1] == "python":
            first = text[: match.start(2)].count("\n")
            block = match[2].splitlines()
            lines[first : first + len(block)] = block
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = code(page.read_text(encoding="utf-8"))
    if not program.strip():
        return
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec(compile(program, str(page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_fences_say_their_language(page: Path) -> None:
    """A block without a language would neither be highlighted nor run."""
    fences = re.findall(r"^```.*$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0, "a fence is not closed"
    assert all(len(fence) > 3 for fence in fences[::2]), "a fence names no language"


def test_the_tests_that_pages_name_exist() -> None:
    for page in PAGES:
        for file, name in re.findall(
            r"`(tests/\w+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")
        ):
            source = ROOT / file
            assert source.exists(), f"{page.name}: {file}"
            found = re.search(rf"^def {name}\(", source.read_text(encoding="utf-8"), re.MULTILINE)
            assert not name or found, f"{page.name}: no {name} in {file}"


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        prose = re.sub(r"`[^`]*`", "", FENCE.sub("", page.read_text(encoding="utf-8")))
        for target in re.findall(r"(?<!\\)\]\(([^)#\s]+)[^)]*\)", prose):
            if not target.startswith(("http:", "https:", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_reader_of_pages_keeps_line_numbers() -> None:
    text = "a\n```python\nx = 1\n```\nb\n```text\nno code\n```\n```python\ny = x\n```\n"
    assert code(text).split("\n") == ["", "", "x = 1", "", "", "", "", "", "", "y = x", ""]
