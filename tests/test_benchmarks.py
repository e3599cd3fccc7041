"""The benchmarks are listed and can be asked for few rounds; their page is that of the results."""

import ast
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from conftest import ROOT

FOLDER = ROOT / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))


def load(path: Path, name: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return load(FOLDER / "_run.py", "benchmarks_runner")


@pytest.fixture
def renderer() -> ModuleType:
    return load(ROOT / "docs" / "benchmarks.py", "benchmarks_page")


def test_every_script_is_listed_once(runner: ModuleType) -> None:
    listed = [*runner.scripts(), *runner.BY_HAND]
    assert sorted(listed) == NAMES, "benchmarks/_run.py lists what is run, and what is not"
    assert not set(runner.SUBJECTS) - set(runner.scripts().values()), "a subject without scripts"


def test_contributing_names_what_is_started_by_hand(runner: ModuleType) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for name in runner.BY_HAND:
        assert f"| `{name}.py` | " in text


@pytest.mark.parametrize("name", NAMES)
def test_a_script_can_be_asked_for_few_rounds(
    name: str,
    runner: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`make bench-quick` runs them; here each is imported, and asked what it takes."""
    if name in runner.BY_HAND:
        return
    path = FOLDER / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    module = load(path, f"benchmarks_{name}")
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 0 and "--quick" in capsys.readouterr().out
    assert runner.claim(path), "the docstring begins with the claim"


@pytest.mark.parametrize("name", NAMES)
def test_a_script_needs_only_fnlm_and_peers(name: str, runner: ModuleType) -> None:
    """What is at its top is of Python, of fnlm, or a peer without which the script is left out."""
    if name in runner.BY_HAND:
        return
    own = {path.stem for path in FOLDER.glob("*.py")}
    peers = {name.replace("-", "_") for name in runner.peers()}
    assert {"opacus", "pytorch_pretrained_bert"} <= peers
    allowed = sys.stdlib_module_names | own | peers | {"fnlm", "torch", "numpy", "tqdm"}
    for node in ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert str(node.module).partition(".")[0] in allowed, node.module


def test_the_page_is_that_of_the_results(renderer: ModuleType) -> None:
    assert renderer.PAGE.read_text(encoding="utf-8") == renderer.page(), "run `make docs`"


def test_no_results_are_a_page(renderer: ModuleType, tmp_path: Path) -> None:
    assert renderer.page(tmp_path).endswith("\nNo results are recorded.\n")


SCRIPT = '''"""Claim: {name} is fast.

And more.
"""
import sys
from _harness import is_installed, judge

is_installed("nobody_has_this")
met = judge("time | a peer's", [1.0, 1.4, 1.2, 1.8, 1.6], {bar}, at_most=True)
judge("told", [2.0], because="nobody asks")
judge("other", [1.0, 1.1], {bar} - 0.4, at_most=True, because="it is slow")
judge("noise", [1.0, 1.4, 1.4], {bar}, at_most=True)
{last}
'''
ABOUT = {
    "date": "2030-01-02", "processor": "A chip", "flags": ["avx2"], "cores": 2, "threads": 1,
    "gigabytes_per_second": 9.5, "python": "3.11", "torch": "2.13",
    "peers": {"opacus": "absent", "tiktoken": "0.9"},
}  # fmt: skip


@pytest.fixture
def fakes(
    runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[str, str]]:
    """Scripts: one meets its bar, one misses it, one raises, and one needs a peer."""
    scripts = {
        "good": ("1.5", "sys.exit(not met)"),
        "slow": ("1.3", "sys.exit(not met)"),
        "broken": ("1.5", "raise ValueError('no such thing')"),
        "lonely": ("1.5", "import a_peer"),
    }
    for name, (bar, last) in scripts.items():
        text = SCRIPT.format(name=name, bar=bar, last=last)
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    monkeypatch.setattr(runner, "FOLDER", tmp_path)
    monkeypatch.setattr(
        runner, "SUBJECTS", {"One": ("good", "absent"), "Two": ("slow", "broken", "lonely")}
    )
    monkeypatch.setattr(runner, "peers", lambda: ["a-peer"])
    return scripts


def test_what_scripts_judge_is_recorded_and_becomes_a_page(
    runner: ModuleType, renderer: ModuleType, fakes: object, tmp_path: Path
) -> None:
    record = tmp_path / "2030-01-02-a-chip.jsonl"
    record.write_text(json.dumps(ABOUT) + "\n", encoding="utf-8")
    assert runner.run_all(list(runner.scripts()), record, quick=False) == ["broken"]
    states = {row["script"]: row["state"] for row in runner.rows(record) if "state" in row}
    assert states["good"] == "met" and states["slow"] == "missed"
    assert states["broken"] == "failed: ValueError: no such thing"
    assert states["lonely"] == "left out: a_peer is not installed"
    row = next(row for row in runner.rows(record) if row.get("script") == "good" and "bar" in row)
    assert row["bar"] == "at most 1.5" and row["met"] is True and row["rounds"] == 5
    assert "because" not in row
    assert row["median"] == pytest.approx(1.4) and row["low"] < row["median"] < row["high"]
    assert "MISSED time | a peer's: 1.4, bar at most 1.3" in runner.summary(runner.rows(record))
    page = renderer.page(tmp_path)
    assert "## A chip, 2 cores, 2030-01-02\n" in page and "9 of 12 bars were met" in page
    assert "\n### One\n" in page and "`benchmarks/good.py`" in page and "good is fast." in page
    assert "| time \\| a peer's | 1.4 | 1.1 to 1.7 | at most 1.3 | **missed** |" in page
    assert "| told | 2 |  |  |  |" in page
    assert "\nMissed, *other*: it is slow.\n" in page and "nobody asks" not in page
    assert "Missed, *time | a peer's; noise*: the bar lies within the spread." in page
    assert "Not compared, as not installed: nobody_has_this." in page
    assert "It was left out: a_peer is not installed." in page


def test_scripts_that_are_run_again_keep_their_place(
    runner: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    first, second, third = list(runner.scripts())[:3]
    runner.keep([ABOUT, *({"script": name, "state": "met"} for name in (first, second, third))])
    runner.keep([ABOUT, {"script": second, "state": "missed"}])
    _, *found = runner.rows(runner.file_of(ABOUT))
    expected = [(first, "met"), (second, "missed"), (third, "met")]
    assert [(row["script"], row["state"]) for row in found] == expected


def test_the_newest_results_of_a_machine_are_shown(renderer: ModuleType, tmp_path: Path) -> None:
    for name in ("2030-01-02-a-chip", "2030-02-01-a-chip", "2029-09-09-another"):
        about = ABOUT | {"date": name[:10], "processor": name[11:]}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(about) + "\n", encoding="utf-8")
    page = renderer.page(tmp_path)
    assert "2030-02-01" in page and "2029-09-09" in page and "2030-01-02" not in page
