"""The site builds without a warning, its links lead somewhere, and docstrings come out as meant."""

import ast
import importlib.util
import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT

SITE = ROOT / "docs" / "site"


def sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rewrite, names = sibling("rewrite"), sibling("names")


class Page(HTMLParser):
    """The anchors of a page of HTML, and what it links to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.targets.append(value)


def broken(folder: Path) -> list[str]:
    """Every link of a folder of pages that leads nowhere in it."""
    pages = {path: Page(path) for path in folder.rglob("*.html") if path.name != "404.html"}
    told = []
    for path, page in pages.items():
        for target in page.targets:
            url = urlsplit(target)
            if url.scheme or url.netloc:
                continue
            found = (path.parent / unquote(url.path)).resolve() if url.path else path
            found = found / "index.html" if found.is_dir() else found
            anchor = unquote(url.fragment)
            if not found.exists():
                told.append(f"{path.name}: {target}")
            elif anchor and found in pages and anchor not in pages[found].ids | {"__top"}:
                told.append(f"{path.name}: no anchor {target}")
    return told


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="needs the extra `site`, as the gate has it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert made.returncode == 0 and not made.stderr, made.stderr
    return folder


def test_every_link_of_the_site_leads_somewhere(built: Path) -> None:
    assert not broken(built)


def test_every_public_name_is_in_the_reference(built: Path) -> None:
    anchors = {i for path in (built / "reference").glob("*.html") for i in Page(path).ids}
    assert not names.known() - anchors


def test_the_reference_shows_what_docstrings_say(built: Path) -> None:
    text = (built / "reference" / "models.html").read_text(encoding="utf-8")
    assert "each 0 &lt;= type &lt; K: 0 for text A" in text  # an argument, with its `<`
    assert 'href="parameters.html#fnlm.params.io.load"' in text  # a name in a docstring
    answer = (built / "migration.html").read_text(encoding="utf-8")
    assert 'href="reference/models.html#fnlm.bert.masked_lm"' in answer  # `bert.masked_lm`
    for path in (built / "reference").glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert not re.search(r"<blockquote>|&gt;&gt;&gt;\s*</p>|>Example:<", page), path.name


def test_notebooks_are_pages_that_end_in_their_picture(built: Path) -> None:
    paths = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    assert paths
    for path in paths:
        page = built / "notebooks" / path.with_suffix(".html").name
        shown = page.read_text(encoding="utf-8").rpartition("<img")[2].partition(">")[0]
        picture = re.search(r'src="([^"]+)"', shown)
        assert picture and (page.parent / picture[1]).read_bytes().startswith(b"\x89PNG"), path.name
        assert Page(page).targets.count(path.name) == 1  # the download


def test_nothing_is_fetched_from_elsewhere(built: Path) -> None:
    for path in built.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img)[^>]+(?:src|href)="(https?:[^"]+)"',
            path.read_text(encoding="utf-8"),
        )
        assert not loaded, f"{path.name}: {loaded}"


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<p id="x"><a href="b.html#y"><a href="#x"><a href="c.html">')
    (tmp_path / "b.html").write_text('<p id="z"><a href="a.html#x"><a href="http://c.org/d.html">')
    assert broken(tmp_path) == ["a.html: no anchor b.html#y", "a.html: c.html"]


def test_every_part_of_the_package_has_a_page() -> None:
    listed = [m for _, _, text in names.pages() for m in re.findall(r"^::: (\S+)$", text, re.M)]
    assert set(listed) == names.known()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Return a * b < c[0].", r"Return a \* b &lt; c\[0\]."),
        ("Return `a * b`, _x_.", r"Return `a * b`, \_x\_."),
        ("See `fnlm.tree.map`, `fnlm.no`.", "See [`fnlm.tree.map`][fnlm.tree.map], `fnlm.no`."),
        ("Add::\n\n    a * b\n\nMore * so.", "Add:\n\n    a * b\n\nMore \\* so."),
        ("Add.\n\n>>> 1 * 2\n2", "Add.\n\nExamples:\n    >>> 1 * 2\n    2"),
        ("Add.\n\nExample:\n    >>> [1]\n    [1]", "Add.\n\nExamples:\n    >>> [1]\n    [1]"),
        (
            "Add.\n\nArgs:\n    x, y: <b>\n        long.\n    *rest: [B].",
            "Add.\n\nArgs:\n    x: &lt;b>\n        long.\n    y: &lt;b>\n        long.\n"
            "    *rest: \\[B\\].",
        ),
        ("Add.\n\nReturns:\n    the sum * 2.", "Add.\n\nReturns:\n    the sum \\* 2."),
        ("Add.\n\nRaises:\n    ValueError: x < 0.", "Add.\n\nRaises:\n    ValueError: x &lt; 0."),
    ],
)
def test_docstrings_become_markdown(text: str, wanted: str) -> None:
    assert rewrite.markdown(text, {"fnlm.tree.map"}) == wanted


def test_no_word_of_a_docstring_is_lost() -> None:
    """Of entries with several names each says their text; all else stands as it stood."""

    def words(text: str) -> list[str]:
        plain = re.sub(r"\\([*\[\]_])", r"\1", text.replace("&lt;", "<"))
        return [word for word in re.findall(r"\w+", plain) if word not in ("Example", "Examples")]

    for path in sorted((ROOT / "fnlm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                before, after = words(text), words(rewrite.markdown(text))
                assert set(before) == set(after), path.name
                assert before == after or re.search(r"^    \*{0,2}\w+, ", text, re.MULTILINE), text


def test_the_comments_on_fields_are_read() -> None:
    from fnlm.files.hub import Source

    found = rewrite.remarks(inspect.getsource(Source))
    assert found["weights"].startswith("a file of weights") and "repository" in found
