"""Docstrings as Markdown: what they mean by their form, said in the signs of another.

A docstring of the package is prose, formulas in literal blocks after `::`, sections in the style of
google, and doctests. Markdown would take a `*` or a `<` in prose for a sign of its own, and a
prompt for a quotation.
"""

import re
from collections.abc import Callable, Collection

_CODE = re.compile(r"(`+)(.+?)\1", re.DOTALL)
_SIGNS = {"<": "&lt;", **{sign: f"\\{sign}" for sign in "*[]_"}}
_ENTRY = re.compile(r"(    )(\*{0,2}\w+(?:, \*{0,2}\w+)*)(: .*)", re.DOTALL)


def escape(text: str, link: Callable[[str], str] = str) -> str:
    """Return prose whose signs stand for themselves.

    Args:
        text: of which code between backticks is left alone.
        link: makes of such code, with its backticks, what stands in its place.
    """
    parts, end = [], 0
    for code in _CODE.finditer(text):
        parts += [_plain(text[end : code.start()]), link(code[0])]
        end = code.end()
    return "".join([*parts, _plain(text[end:])])


def _plain(text: str) -> str:
    return re.sub(r"[<*\[\]_]", lambda sign: _SIGNS[sign[0]], text)


def linked(known: Collection[str]) -> Callable[[str], str]:
    """Return the `link` of `escape` that leads dotted names of the package to the reference."""

    def link(code: str) -> str:
        name = code.strip("`")
        return f"[{code}][{name}]" if name in known else code

    return link


def markdown(text: str, known: Collection[str] = ()) -> str:
    """Return a docstring as Markdown with the sections of google's style.

    Args:
        text: a docstring without its indentation.
        known: dotted names that the reference has.
    """
    blocks = re.split(r"\n(?:[ \t]*\n)+", text.strip("\n"))
    link, out = linked(known), []
    section, literal = "", False
    for block in blocks:
        margin = not block.startswith(" ")
        if title := re.match(r"(\w+):\n ", block):
            section = title[1]
        elif margin:
            section = ""
        if literal and not margin:
            out.append(block)
        elif margin and block.startswith(">>>"):
            out.append("Examples:\n" + _indented(block))
        elif section == "Example":
            out.append(re.sub(r"\AExample:", "Examples:", block))
        elif section in ("Args", "Raises"):
            head, _, rest = block.rpartition(f"{section}:\n")
            out.append(head + (f"{section}:\n" if margin else "") + _entries(rest, link))
        else:
            out.append(escape(block, link))
        if literal := out[-1].endswith("::"):
            out[-1] = out[-1][:-1]
    return "\n\n".join(out)


def _indented(block: str) -> str:
    return "".join(f"    {line}\n" for line in block.split("\n")).rstrip("\n")


def _entries(text: str, link: Callable[[str], str]) -> str:
    """Return entries with one name each: those of `x, y: ...` share their text."""
    out = []
    for entry in re.split(r"\n(?=    \S)", text):
        if match := _ENTRY.fullmatch(entry):
            names = match[2].split(", ")
            out += [match[1] + name + escape(match[3], link) for name in names]
        else:
            out.append(escape(entry, link))
    return "\n".join(out)


def remarks(source: str) -> dict[str, str]:
    r"""Return the comments on the fields of a class: `name: type = default  # comment`.

    >>> remarks("class Batch(NamedTuple):\n    ids: Tensor  # [B, T]\n    rows: int")
    {'ids': '[B, T]'}
    """
    field = re.compile(r"    (\w+): [^#\n]*#[ :]*(.+(?:\n     +#.*)*)")
    found = {match[1]: match[2] for match in field.finditer(source)}
    return {name: re.sub(r"\s*\n\s*#\s*", " ", text).strip() for name, text in found.items()}
