"""The register of families is whole and cheap, and tools look nowhere else."""

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_type_hints

import pytest
from conftest import ROOT
from vocabularies import GPT2_TOKENS, XL_SYMBOLS

import fnlm
from fnlm import checkpoints, cli, families
from fnlm.families import FAMILIES, Record
from fnlm.params import spec as describe
from fnlm.params.config import Rate
from fnlm.params.names import Family as Names

each = pytest.mark.parametrize("record", FAMILIES.values(), ids=FAMILIES)


@each
def test_a_family_has_all_its_files(record: Record) -> None:
    parts = [f"fnlm/{record.name}.py", f"fnlm/params/names/{record.name}.py"]
    parts += [f"fnlm/tokenize/{record.tokenizer}.py"] if record.tokenizer else []
    parts += [f"tests/golden/{record.name}.json"]
    assert not [part for part in parts if not (ROOT / part).is_file()]
    assert isinstance(record.names, Names)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"| {record.title} | `fnlm.{record.name}` |" in readme, "a row of the table of models"


def test_every_table_of_names_is_of_a_family() -> None:
    tables = (ROOT / "fnlm" / "params" / "names").glob("[a-z]*.py")
    assert {path.stem for path in tables} == set(FAMILIES)


@each
def test_the_small_config_is_small_and_has_every_dropout(record: Record) -> None:
    config = record.module.Config(**record.small)
    assert describe.size(record.module.spec(config, record.module.HEADS)) < 2**18
    types = get_type_hints(type(config), include_extras=True)
    rates = [name for name, kind in types.items() if kind == Rate]
    assert rates and all(record.small.get(name, 1) > 0 for name in rates)
    depth = getattr(config, config.depth)
    assert 1 < depth < 4, "more than one block, and few"
    assert getattr(config, record.vocab_size) == 41


def test_the_tokens_of_a_record_are_tokens() -> None:
    for name, known in (("gpt2", GPT2_TOKENS), ("transfo_xl", XL_SYMBOLS)):
        record = FAMILIES[name]
        assert {record.begin, record.eos, record.newline} - {None} <= set(known)


def test_the_package_offers_every_family() -> None:
    assert set(FAMILIES) <= set(dir(fnlm))
    for name, record in FAMILIES.items():
        assert getattr(fnlm, name) is record.module
        assert record.module.__name__ == f"fnlm.{name}"


def test_reading_the_register_imports_no_torch() -> None:
    heavy = "{'torch', 'numpy'} & {*sys.modules}"
    code = f"import sys, fnlm.families as f; print(len(f.FAMILIES), {heavy})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(len(FAMILIES)), "set()"]


def test_importing_the_package_imports_no_module_of_it() -> None:
    code = "import sys, fnlm; print([name for name in sys.modules if name.startswith('fnlm.')])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("tool", ["__init__", "checkpoints", "pipeline"])
def test_a_tool_knows_no_family_by_name(tool: str) -> None:
    parsed = ast.parse((ROOT / "fnlm" / f"{tool}.py").read_text(encoding="utf-8"))
    named = {node.value for node in ast.walk(parsed) if isinstance(node, ast.Constant)}
    assert not named & set(FAMILIES)


def test_the_commands_list_the_families(capsys: pytest.CaptureFixture[str]) -> None:
    for command, words in {
        "convert": list(FAMILIES),
        "generate": [record.title for record in families.causal()],
    }.items():
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        shown = " ".join(capsys.readouterr().out.split())
        assert ", ".join(words) in shown


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [(None, "gpt2 has no tokenizer in fnlm.tokenize"), ("none", "No module named 'fnlm.tokenize")],
)
def test_a_missing_tokenizer_is_one_line(
    tokenizer: str | None,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record = replace(FAMILIES["gpt2"], tokenizer=tokenizer)
    monkeypatch.setattr(families, "find", lambda name: record)
    assert cli.main(["generate", "tiny"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("fnlm generate: ") and shown.err.count("\n") == 1
    assert words in shown.err and not shown.out


def test_a_dialect_is_named_as_it_was_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the flag in the command, by the argument in Python, before a tensor is read."""
    with pytest.raises(ValueError, match=r"^dialect='fnlm' is not one of transformers, pytorch"):
        list(checkpoints.convert("tiny", tmp_path / "a", dialect="fnlm"))
    assert cli.main(["convert", "tiny", f"{tmp_path}/a", "--to", "fnlm"]) == 2
    assert "fnlm convert: --to fnlm is not one of transformers, pytorch" in capsys.readouterr().err
