"""Runs docs/notebooks/*.ipynb, and writes what their cells print and draw into them.

    python docs/run_notebooks.py            # those whose code is not the code that last ran
    python docs/run_notebooks.py --all
    python docs/run_notebooks.py docs/notebooks/private_training.ipynb

Needs matplotlib and no Jupyter. Cells are plain Python: what they print, and the figures of pyplot
that are open when they end, are their outputs. The tests run the same cells by `run`.
"""

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws to a file, on machines without a screen too
from matplotlib import pyplot as plt  # noqa: E402 (after the choice of the backend)

FOLDER = Path(__file__).with_name("notebooks")
DPI = 80


def read(path: Path) -> Any:
    """Return a notebook as the JSON that it is."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: Any) -> list[Any]:
    """Return the cells that hold code, in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def digest(notebook: Any) -> str:
    """Return a hash of all code of a notebook: its outputs are those of this code."""
    sources = ["".join(cell["source"]) for cell in code_cells(notebook)]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def run(path: Path, folder: Path) -> list[list[dict[str, Any]]]:
    """Return the outputs of each code cell of a notebook, as a notebook holds them.

    All cells share one namespace. They run in `folder`, into which the data beside the notebook are
    copied; standard output and the working directory are as before afterwards.
    """
    for data in (*path.parent.glob("*.tsv"), *path.parent.glob("*.npz")):
        shutil.copy(data, folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, before, outputs = code_cells(read(path)), Path.cwd(), []
    os.chdir(folder)
    try:
        for number, cell in enumerate(cells, 1):
            program = compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(program, names)
            outputs.append(_stream(printed.getvalue()) + _figures())
    finally:
        plt.close("all")
        os.chdir(before)
    return outputs


def _stream(text: str) -> list[dict[str, Any]]:
    lines = text.splitlines(keepends=True)
    return [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []


def _figures() -> list[dict[str, Any]]:
    """Return the open figures as outputs, and close them."""
    found = []
    for number in plt.get_fignums():
        figure, picture = plt.figure(number), io.BytesIO()
        figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
        plt.close(figure)
        data = {
            "image/png": base64.b64encode(picture.getvalue()).decode(),
            "text/plain": ["<Figure>"],
        }
        found.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return found


def write(path: Path) -> None:
    """Run a notebook, and write the outputs into it."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = run(path, Path(folder))
    notebook = read(path)
    for number, (cell, output) in enumerate(zip(code_cells(notebook), outputs, strict=True), 1):
        cell["execution_count"], cell["outputs"] = number, output
    notebook["metadata"]["ran"] = digest(notebook)
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Run the notebooks that are named, or those that have changed."""
    parser = argparse.ArgumentParser(description="Run the notebooks of the docs.")
    parser.add_argument("notebooks", nargs="*", type=Path, help="by default all that have changed")
    parser.add_argument("--all", action="store_true", help="those that have not, as well")
    given = parser.parse_args()
    for path in given.notebooks or sorted(FOLDER.glob("*.ipynb")):
        notebook = read(path)
        if given.all or given.notebooks or notebook["metadata"].get("ran") != digest(notebook):
            sys.stderr.write(f"{path.name}\n")
            write(path)


if __name__ == "__main__":
    main()
