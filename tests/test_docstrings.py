"""Every docstring of the package reads as it was written: google style, formulas as literal blocks.

`complaints` reads a docstring block by block, as a page would show it, and says what would come
out as nonsense; `docstring_parser`, which makes the help of the command line, must read the same
names and exceptions. The planted faults below are what has gone wrong before, by re-wrapping.
"""

import ast
import builtins
import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

import docstring_parser
import pytest
from conftest import ROOT

SECTIONS = ("Args", "Returns", "Yields", "Raises", "Example")  # in this order
EXCEPTION = re.compile(r"\w*(Error|Exception)\b")
SWALLOWED = re.compile(r"[.;,] (\w*(Error|Exception)): ")
ASSIGNMENT = re.compile(r"(?<![=<>!])=(?!=)|<-(?!-)")  # of a formula: =, <-
GAP = re.compile(r"(?<=\S) {2,}(?=\S)")  # between the columns of a table
BRACKETS = {")": "(", "]": "[", "}": "{"}


class Block(NamedTuple):
    """Neighbouring lines of one kind, without their common indentation."""

    kind: str  # "prose", "code", "literal", "indented", or the name of a section
    lines: list[str]


def blocks(text: str) -> Iterator[Block]:
    """Cut a docstring, as `ast.get_docstring` cleans it, where its kind of text changes."""
    lines, at, literal = text.split("\n"), 0, False
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        first, line = at, lines[at]
        section = re.fullmatch(r"(\w+):", line)
        inside = section or line.startswith(" ")
        at += 1
        if line.startswith(">>>"):
            while at < len(lines) and lines[at].strip():
                at += 1
            yield Block("code", lines[first:at])
        elif inside:  # up to the next line at the margin
            while at < len(lines) and (not lines[at].strip() or lines[at].startswith(" ")):
                at += 1
            body = [row.removeprefix("    ") for row in lines[first + bool(section) : at]]
            kind = section[1] if section else "literal" if literal else "indented"
            yield Block(kind, body)
        else:
            while at < len(lines) and lines[at].strip() and not is_title(lines, at):
                at += 1
            yield Block("prose", lines[first:at])
        literal = lines[at - 1].endswith("::")


def is_title(lines: list[str], at: int) -> bool:
    following = lines[at + 1] if at + 1 < len(lines) else ""
    return lines[at].removesuffix(":") in SECTIONS and following.startswith(" ")


def complaints(text: str, parameters: set[str] | None = None) -> list[str]:
    """What would be read otherwise than it was meant.

    Args:
        text: a docstring without its indentation.
        parameters: names that `Args` may have; None where there is no signature.
    """
    found = list(blocks(text))
    told = [f"{name!r} is in the text of another entry" for name in swallowed(found)]
    for block, after in itertools.pairwise([*found, Block("prose", [])]):
        if block.kind == "prose":
            told += of_prose(block.lines)
            if block.lines[-1].endswith("::") and after.kind != "literal":
                told.append(f"no literal block follows {block.lines[-1]!r}")
        elif block.kind == "literal":
            told += of_literal([line for line in block.lines if line.strip()])
        elif block.kind == "indented":
            told.append(f"neither a section nor a literal block: {block.lines[0]!r}")
        elif block.kind != "code" and block.kind not in SECTIONS:
            told.append(f"an unknown section: {block.kind!r}")
        if block.kind in ("Args", "Raises"):
            told += of_entries(block)
    order = [SECTIONS.index(block.kind) for block in found if block.kind in SECTIONS]
    if order != sorted(set(order)):
        told.append(f"sections are not in the order {SECTIONS}, each once")
    names = [name for block in found if block.kind == "Args" for name in names_of(block)]
    if strange := set(names) - (set(names) if parameters is None else parameters):
        told.append(f"no parameters: {sorted(strange)}")
    if len(set(names)) < len(names):
        told.append("a parameter is there twice")
    return [*told, *of_parser(text, found)]


def swallowed(found: list[Block]) -> list[str]:
    """Exceptions that are explained within the text of something else."""
    texts = [entry for b in found if b.kind in ("Args", "Raises") for entry in entries(b)]
    texts += [" ".join(b.lines) for b in found if b.kind in ("prose", "Returns", "Yields")]
    return [match[1] for text in texts for match in SWALLOWED.finditer(text)]


def entries(block: Block) -> list[str]:
    """The entries of `Args` or `Raises`, each in one line: what is indented goes on."""
    lines = [line for line in block.lines if line.strip()]
    return re.split(r"\n(?! )", re.sub(r"\n +", " ", "\n".join(lines))) if lines else []


def heads(block: Block) -> list[str]:
    """What stands in front of the colon of each entry, of `Args` or `Raises`."""
    return [entry.partition(":")[0] for entry in entries(block)]


def names_of(block: Block) -> list[str]:
    return [name.strip().lstrip("*") for head in heads(block) for name in head.split(",")]


def of_entries(block: Block) -> Iterator[str]:
    """An entry begins at the margin of its section, what goes on is indented."""
    for line in block.lines:
        if line.strip() and not line.startswith(" "):
            head, colon, rest = line.partition(": ")
            if not colon or not rest or not re.fullmatch(r"\*{0,2}\w+(, \*{0,2}\w+)*", head):
                yield f"no entry of {block.kind}: {line!r}"
            elif block.kind == "Raises" and not is_exception(head):
                yield f"no exception: {head!r}"
        elif line.strip() and not line.startswith("    "):
            yield f"indented by neither 0 nor 4: {line!r}"
    if not heads(block):
        yield f"{block.kind} is empty"


def is_exception(name: str) -> bool:
    kind = getattr(builtins, name, None)
    return isinstance(kind, type) and issubclass(kind, Exception)


def of_prose(lines: list[str]) -> Iterator[str]:
    """Prose may be wrapped anew at any time, so nothing in it may depend on its lines."""
    bare = re.sub(r"(`+).*?\1", "code", "\n".join(lines), flags=re.DOTALL)
    if "`" in bare:
        yield f"a backtick without its partner in {lines[0]!r} ..."
    for line in bare.split("\n"):
        if len(ASSIGNMENT.findall(line)) > 1:
            yield f"a formula in prose: {line!r}"
        if ">>>" in line:
            yield f"an example in prose: {line!r}"


def of_literal(lines: list[str]) -> Iterator[str]:
    """The lines of formulas and of tables keep to their columns."""
    places = [[match.end() for match in ASSIGNMENT.finditer(line)] for line in lines]
    gaps = [match.end() if (match := GAP.search(line)) else None for line in lines]
    for line, here in zip(lines, places, strict=True):
        if not is_balanced(line):
            yield f"brackets do not match in {line!r}"
        if len(here) > 1:
            yield f"two formulas in one line: {line!r}"
        if here and here[0] == len(line):
            yield f"a formula goes on in the next line: {line!r}"
    if any(places):
        column = next(here[0] for here in places if here) + 1
        rows = [here[0] + 1 if here else None for here in places]
    elif sum(gap is not None for gap in gaps) > 1:
        column, rows = next(gap for gap in gaps if gap), gaps
    else:
        return
    for line, row in zip(lines, rows, strict=True):
        start = len(line) - len(line.lstrip())
        if row != column if row else start < column:
            yield f"not in the columns of the lines above: {line!r}"


def is_balanced(line: str) -> bool:
    opened: list[str] = []
    for sign in line:
        if sign in BRACKETS.values():
            opened.append(sign)
        elif sign in BRACKETS and (not opened or opened.pop() != BRACKETS[sign]):
            return False
    return not opened


def of_parser(text: str, found: list[Block]) -> Iterator[str]:
    """What the parser of the command line's help reads is what stands there."""
    try:
        seen = docstring_parser.parse(text, docstring_parser.DocstringStyle.GOOGLE)
    except docstring_parser.ParseError as error:
        yield f"not read at all: {error}"
        return
    wanted = {kind: [h for b in found if b.kind == kind for h in heads(b)] for kind in SECTIONS}
    if [parameter.arg_name for parameter in seen.params] != wanted["Args"]:
        yield f"read as arguments: {[parameter.arg_name for parameter in seen.params]}"
    if [error.type_name for error in seen.raises] != wanted["Raises"]:
        yield f"read as exceptions: {[error.type_name for error in seen.raises]}"


# The package.

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def parameters_of(node: Documented) -> set[str] | None:
    """The parameters of a function, or of the constructor that a class has or is given."""
    if isinstance(node, ast.Module):
        return None
    if isinstance(node, ast.ClassDef):
        fields = [n.target.id for n in node.body
                  if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]  # fmt: skip
        made = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        return set(fields).union(*(parameters_of(n) or () for n in made))
    a = node.args
    extra = [star for star in (a.vararg, a.kwarg) if star is not None]
    return {arg.arg for arg in (*a.posonlyargs, *a.args, *a.kwonlyargs, *extra)}


def documented(node: Documented, name: str) -> Iterator[tuple[str, Documented]]:
    yield name, node
    for child in ast.walk(node):
        if child is not node and isinstance(child, Documented):
            yield f"{name}:{child.lineno}:{child.name}", child  # type: ignore[union-attr]


SOURCES = sorted((ROOT / "fnlm").rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_docstrings_are_read_as_they_are_meant(path: str) -> None:
    told = []
    source = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for name, node in documented(source, (ROOT / path).relative_to(ROOT).as_posix()):
        text = ast.get_docstring(node)
        told += [f"{name}: {what}" for what in complaints(text or "", parameters_of(node))]
    assert not told, "\n".join(told)


def test_docstrings_of_all_kinds_are_there() -> None:
    """The test above would pass where nothing is read: count what it reads."""
    kinds = dict.fromkeys(("literal", "code", *SECTIONS), 0)
    for path in SOURCES:
        for _, node in documented(ast.parse(path.read_text(encoding="utf-8")), path.name):
            for block in blocks(ast.get_docstring(node) or ""):
                if block.kind in kinds:
                    kinds[block.kind] += 1
    assert kinds["Args"] > 150 and kinds["Raises"] > 100 and kinds["code"] > 100, kinds
    assert kinds["literal"] > 9 and min(kinds.values()) > 3, kinds


# Faults, each with what is said of it. The first ones stood in this package.

ADAM = """Divide an average of the gradients by the root of an average of their squares.

    mu <- b1 mu + (1 - b1) g        nu <- b2 nu + (1 - b2) g^2        update = mu / (sqrt(nu) +
    e)
"""
LITERAL_ADAM = ADAM.replace("squares.", "squares::")
DECAYED = """Make the Adam of OpenAI GPT::

    p <- p - rate sqrt(1 - b2^t) / (1 - b1^t) mu / (sqrt(nu) + e),   rate = lr schedule(t),   t
    = count + 1 p <- p - rate weight_decay p
"""
TABLE = """Optimizers as sentences of links::

    bert_adam    clip each tensor, Adam without bias correction, decay, learning rate at the step
    before openai_adam  clip each tensor, Adam, bias correction with e outside, learning rate at the
    step after,
                 decay of the updated weights
"""
RAISED = """Refuse what a model could not read.

Raises:
    ValueError: no token in some row, a mask of another shape, more tokens than there are
    positions. IndexError: an id out of range.
"""
HANGING = """Look rows up.

Raises:
    IndexError: an id is out of range (on CPU; elsewhere call `check_range` first, it waits for
    the device).
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(ADAM, "neither a section nor a literal block", id="formula without colons"),
        pytest.param(LITERAL_ADAM, "two formulas in one line", id="joined"),
        pytest.param(LITERAL_ADAM, "brackets do not match", id="cut"),
        pytest.param(DECAYED, "two formulas in one line", id="two formulas"),
        pytest.param(TABLE, "not in the columns", id="table"),
        pytest.param(RAISED, "'IndexError' is in the text of another entry", id="swallowed"),
        pytest.param(RAISED, "no entry of Raises: 'positions. IndexError", id="not hanging"),
        pytest.param(HANGING, "no entry of Raises: 'the device).'", id="no entry"),
        pytest.param(HANGING.replace("    the", "      the"), "neither 0 nor 4", id="half"),
        pytest.param(HANGING.replace("IndexError", "Mistake"), "no exception: 'Mist", id="unknown"),
        pytest.param("A.\n\nRaises:\n    OSError: a, KeyError: b.", "'KeyError' is", id="comma"),
        pytest.param("Add.\n\nArgs:\n    x: one.\n    z: two.", "no parameters: ['z']", id="name"),
        pytest.param("Add.\n\nArgs:\n    x: one.\n    x: two.", "there twice", id="twice"),
        pytest.param("Add.\n\nArgs:\n    x: one.\n    or two.", "no entry of Args", id="argument"),
        pytest.param("Add.\n\nReturn:\n    x.", "unknown section: 'Return'", id="section"),
        pytest.param("Add.\n\nReturns:\n    y.\n\nArgs:\n    x: one.", "order", id="order"),
        pytest.param("Add.\n\nA sum::\n\nThe end.", "no literal block follows", id="nothing"),
        pytest.param("Add.\n\nx = 1 and y = 2\ngo on.", "a formula in prose", id="prose"),
        pytest.param("Add.\n\nThus >>> 1 + 1\n2", "an example in prose", id="example"),
        pytest.param("Add `x and y.", "a backtick without its partner", id="backtick"),
        pytest.param("Add::\n\n    a  = 1 +\n    b = 2", "not in the columns", id="alignment"),
        pytest.param("Add::\n\n    a =\n        b + 1", "goes on in the next", id="broken off"),
    ],
)  # fmt: skip
def test_garbled_docstrings_are_found(text: str, message: str) -> None:
    told = complaints(text, {"x", "y"})
    assert any(message in what for what in told), told


def test_what_is_well_formed_is_left_alone() -> None:
    text = """Add two numbers, as the field does.

    `x = 1` and `y = 2` are code, and so is ``a <- b`` here; one z = 3 is a remark::

        t    = count + 1
        rate = lr schedule(t),
               as is said above
        p   <- p - rate (mu / (sqrt(nu) + e))

    Args:
        x, y: the numbers, of which
            the second is longer.
        *rest: more.

    Returns:
        the sum.

    Raises:
        ValueError: it is too large; or
            too small.
        OSError: a disk.

    >>> 1 + 1
    2

    Source: nobody. Deviation: none.
    """
    clean = ast.get_docstring(ast.parse(f'"""{text}"""'))
    assert complaints(clean or "", {"x", "y", "rest"}) == []
