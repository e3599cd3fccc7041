"""The field's words: what was replaced does not come back, and the glossary is true.

Names are looked for among the identifiers of fnlm/, phrases in its docstrings and comments and on
the pages. `docs/glossary.md` is the reference.
"""

import ast
import importlib
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

# Identifiers, whole and as they are written -> the identifier to write instead.
NAMES = {
    "Link": "GradientTransformation",
    "Writer": "Pipeline",
    "check_run": "claim_run_directory",
    "clip_global": "clip_by_global_norm",
    "epsilon": "eps",
    "global_norm": "norm",
    "in_order": "length_sorted_batches",
    "keys_of_sites": "dropout_keys",
    "likeliest": "most_likely",
    "mask_of": "attention_bias",
    "recognises": "can_read",
    "word_logits": "mlm_logits",
}
# Phrases of prose, in any case -> what to write instead.
PHRASES = {
    "likeliest": "most likely",
    "recognises": "can read, knows",
    "road": "path, implementation",
    "roads": "paths, implementations",
    "the ancestor": "pytorch-pretrained-bert",
}

SOURCES = sorted((ROOT / "fnlm").rglob("*.py"))
PROGRAMS = [
    path
    for folder in ("tests", "examples", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if path.name != "test_words.py"
]
# api.md is made of the docstrings.
PAGES = [path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "api.md"]
PAGES += [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of everything that a program names."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                yield line, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield line, name
            case ast.AsyncFunctionDef(name=name) | ast.MatchAs(name=str(name)):
                yield line, name
            case ast.keyword(arg=str(name)) | ast.ExceptHandler(name=str(name)):
                yield line, name
            case ast.alias(name=name, asname=other):
                yield from ((line, part) for part in name.split("."))
                yield line, other or name


def prose(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring and comment; a phrase may go on in the next line of one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            if text is not None:
                yield node.body[0].lineno, text
    block, first, last = "", 0, 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield first, block
                block, first = "", token.start[0]
            block, last = f"{block}\n{token.string.lstrip('#')}", token.start[0]
    yield first, block


def misnamed(source: str, names: dict[str, str] = NAMES) -> list[str]:
    """One line for each identifier of a program that has a better name."""
    return [
        f"line {line}: the name {name}, write {names[name]}"
        for line, name in identifiers(ast.parse(source))
        if name in names
    ]


def misworded(text: str, phrases: dict[str, str] = PHRASES) -> list[str]:
    """One line for each phrase of a text that has a better one; any white space parts its words."""
    found = []
    for phrase, instead in phrases.items():
        pattern = r"\s+".join(phrase.split())
        for match in re.finditer(rf"\b{pattern}\b", text, re.IGNORECASE):
            found.append(f"{match[0]!r}, write {instead}")
    return found


def faults(source: str) -> list[str]:
    """What a program names and says that it should not."""
    said = [
        f"from line {line}: {fault}" for line, text in prose(source) for fault in misworded(text)
    ]
    return misnamed(source) + said


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_code_uses_the_fields_words(path: Path) -> None:
    assert not faults(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_programs_and_tests_use_the_fields_words(path: Path) -> None:
    """In prose; peers and files of others bring names of their own."""
    source = path.read_text(encoding="utf-8")
    assert not [fault for _, text in prose(source) for fault in misworded(text)]
    assert not [name for _, name in identifiers(ast.parse(source)) if "ancestor" in name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_use_the_fields_words(page: Path) -> None:
    assert not misworded(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "program",
    [
        "{0} = 1",
        "x = y.{0}",
        "def f({0}): ...",
        "def {0}(): ...",
        "class {0}: ...",
        "f({0}=1)",
        "from m import {0}",
        "import m.{0}",
        "import m as {0}",
    ],
)
def test_a_name_is_found_wherever_it_stands(program: str, name: str) -> None:
    assert faults(program.format(name))
    assert not faults(program.format(NAMES[name]))
    assert not faults(f"x = 'in data, {name} may stand'")


@pytest.mark.parametrize("phrase", PHRASES)
@pytest.mark.parametrize(
    "program",
    ['"""{0}."""', 'def f():\n    """A {0} B."""', "x = 1  # {0}\n", "# a\n# {0}, b\nx = 1\n"],
)
def test_a_phrase_is_found_wherever_it_stands(program: str, phrase: str) -> None:
    assert faults(program.format(phrase))
    assert faults(program.format(phrase.capitalize()))
    assert not faults(program.format(f"un{phrase}d"))


def test_a_phrase_is_found_across_lines() -> None:
    assert misworded("as in the\n    ancestor, x")


def rows() -> list[tuple[str, str]]:
    """Word and place of each entry of the glossary."""
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [(cells[0], cells[-1]) for cells in lines if cells[0] not in ("Word", "---")]


@pytest.mark.parametrize(("word", "place"), rows(), ids=[word for word, _ in rows()])
def test_what_the_glossary_names_exists(word: str, place: str) -> None:
    """A place is a dotted name: a module, and what is found in it."""
    dotted = re.findall(r"`(fnlm[\w.]*)`", place)
    assert dotted, f"{word}: no name of fnlm"
    for name in dotted:
        pieces = name.split(".")
        for end in range(len(pieces), 0, -1):
            try:
                found: object = importlib.import_module(".".join(pieces[:end]))
            except ModuleNotFoundError:
                continue
            for piece in pieces[end:]:
                found = getattr(found, piece)
            break


def test_the_glossary_is_in_order() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    for section in text.split("\n## ")[1:]:
        words = re.findall(r"^\| `?(\w[^|`]*)", section, re.MULTILINE)[1:]
        assert words == sorted(words, key=str.lower), section.splitlines()[0]
