"""Writes tests/fixtures/migration_names.txt: the names that the README of 0.6.2 tells its users.

Run as `python tests/make_migration_names.py README`, with the README.md of pytorch-pretrained-BERT
at v0.6.2. Each line of the file is a kind and a name; `tests/test_migration.py` reads it.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

TARGET = Path(__file__).with_name("fixtures") / "migration_names.txt"
HEAD = "# The names in the README of pytorch-pretrained-BERT 0.6.2, by make_migration_names.py.\n"
# Words that are none of its names: those of Python, torch and its launcher, pip, other packages,
# and of the reader's own program in its examples.
ELSEWHERE = set(
    """
    argmax basicConfig cuda eval format hasattr item join list load no_grad size tensor to transpose
    args config device hidden_states_1 int level model module object replace save self str
    --arg1 --arg2 --arg3 --editable --master_addr --master_port --nnodes --node_rank
    --nproc_per_node
    AWS CLF GLUE_DIR README SQUAD_DIR SpaCy apex cls end_span examples ftfy notebooks pytest
    start_span
    """.split()
)
KINDS = ("model", "command", "flag", "file", "class", "function", "argument")  # the first that fits
IDENTIFIER = r"[a-z_]\w*"


def blocks(text: str, *languages: str) -> str:
    """The blocks of code of a page in some languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join(block for language, block in found if language in languages)


def spans(text: str) -> list[str]:
    """The code in the prose of a page."""
    prose = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [span.strip().strip("'\"").rstrip(" :") for span in re.findall(r"`([^`\n]+)`", prose)]


def candidates(text: str) -> Iterator[tuple[str, str]]:
    """Yield kind and name of what may be a name."""
    code, shell = blocks(text, "python"), blocks(text, "shell", "bash")
    for name in re.findall(r"pytorch_pretrained_bert (convert_\w+)", shell):
        yield "command", name
    for flag in re.findall(r"--[a-z]\w+", shell):
        yield "flag", flag
    for file in re.findall(r"[\w.-]+\.(?:py|ipynb)\b|'\w+\.txt'|~/\.\w+", text):
        yield "file", file.strip("'")
    for line in re.findall(r"from pytorch_pretrained_bert import (.*)", code):
        for name in line.split(","):
            yield "class", name.strip()
    for method in re.findall(r"\.([a-z_]+)\(", code):
        yield "function", method
    for name in re.findall(r"\bconfig\.([a-z_]+)\b", text):
        yield "argument", name
    for call in re.findall(r"\w\((.*)\)", code):
        for argument in re.findall(rf"\b({IDENTIFIER}) ?= ?[^=\s]", call):
            yield "argument", argument
    for span in spans(text):
        yield from of_span(span)


def of_span(span: str) -> Iterator[tuple[str, str]]:
    """Yield what a piece of code in the prose may name."""
    if re.fullmatch(r"(bert|openai|transfo)-[\w-]+|gpt2", span):
        yield "model", span
    elif re.fullmatch(r"--\w+.*", span):
        yield "flag", span.split()[0]
    elif re.fullmatch(r"\w+\.(json|bin|ckpt|txt)", span):
        yield "file", span
    elif re.fullmatch(r"_?[A-Z]\w*[A-Z]\w*", span):
        yield "class", span
    elif call := re.fullmatch(rf"({IDENTIFIER})\((.*)\)", span):
        yield "function", call[1]
        for argument in call[2].split(","):
            yield "argument", argument.partition("=")[0].strip()
    elif re.fullmatch(IDENTIFIER, span):
        yield "argument", span
    elif setting := re.fullmatch(rf"({IDENTIFIER})=.*", span):
        yield "argument", setting[1]


def names(text: str) -> dict[str, str]:
    """Kind of each name that a reader may look for."""
    found: dict[str, str] = {}
    for kind, name in sorted(candidates(text), key=lambda pair: KINDS.index(pair[0])):
        if name and name not in ELSEWHERE and f"--{name}" not in found:
            found.setdefault(name, kind)
    return found


if __name__ == "__main__":
    rows = sorted((kind, name) for name, kind in names(Path(sys.argv[1]).read_text()).items())
    TARGET.write_text(HEAD + "".join(f"{kind} {name}\n" for kind, name in rows), encoding="utf-8")
