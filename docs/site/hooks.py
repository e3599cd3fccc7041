"""Pages that mkdocs finds in no Markdown of docs/: reference, notebooks, what lies at the root."""

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import names
import notebooks
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# Page of the site -> file of the repository.
FILES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "bundled_model.md": "fnlm/weights/tiny/README.md",
}
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^- `(\w+)(\(.*?\))?`: ", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the reference and the notebooks to the navigation."""
    pages = {
        "Reference": [{title: file} for file, title, _ in names.pages()],
        "Notebooks": [{title: file} for file, title, *_ in notebooks.pages()],
    }
    for entry in config.nav or []:
        for title in entry.keys() & pages.keys():
            entry[title] = [*entry[title][:1], *pages[title]]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the reference, of the notebooks, and of files at the root."""
    for page, file in FILES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        if page == "index.md":
            text = f"---\nhide: [navigation]\n---\n\n{text}"
        files.append(File.generated(config, page, content=moved(text, (ROOT / file).parent, page)))
    for page, _, text in names.pages():
        files.append(File.generated(config, page, content=text))
    for page, _, text, pictures in notebooks.pages():
        for place, content in {page: text, **pictures}.items():
            files.append(File.generated(config, place, content=content))
    return files


def moved(text: str, folder: Path, page: str) -> str:
    """Return the text of a file with its links as they are from a page of the site.

    Args:
        text: Markdown.
        folder: of the file.
        page: its place in the site.
    """
    pages = {ROOT / file: place for place, file in FILES.items()}

    def link(match: re.Match[str]) -> str:
        path, hash_, anchor = match[1].partition("#")
        target = (folder / path).resolve()
        if target.is_relative_to(DOCS):
            place = target.relative_to(DOCS).as_posix().replace(".ipynb", ".md")
        elif target in pages:
            place = pages[target]
        else:
            return match[0]
        return f"]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{hash_}{anchor})"

    return re.sub(r"\]\((?!https?:|#|mailto:)([^)\s]+)\)", link, text)


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Let the dotted names of a page lead to the reference."""
    file = page.file.src_uri
    if file.startswith("reference/"):
        return markdown
    if file == "api.md":
        return _index(markdown)
    if file not in FILES:
        markdown = moved(markdown, (DOCS / file).parent, file)
    return outside_fences(markdown, _link_names)


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Return a page with its prose changed, and its blocks of code as they are."""
    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [change(text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(text[end:])])


def _link_names(text: str) -> str:
    """Link `fnlm.gpt2.load`, and `gpt2.load`, to the reference."""

    def link(code: re.Match[str]) -> str:
        name = f"fnlm.{code[1].removeprefix('fnlm.')}"
        return f"[{code[0]}][{name}]" if name in names.known() else code[0]

    return re.sub(r"(?<![\[`])`([a-z_]\w*(?:\.\w+)+)`(?![\]`])", link, text)


def _index(text: str) -> str:
    """Let each line of the list of public names lead to the reference."""
    out = []
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        module = section.partition("\n")[0].removeprefix("## ")
        row = rf"- [`\1\2`][{module}.\1]: "
        out.append(_ROW.sub(row, section) if module in names.homes() else section)
    return "".join(out).replace("\\<", "&lt;")
