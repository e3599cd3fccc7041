"""The notebooks as pages of the site: their text, code and stored outputs, in order."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def pages() -> Iterator[tuple[str, str, str, dict[str, bytes]]]:
    """Yield the place in the site, title, Markdown and pictures by place of each notebook."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).partition("\n")[0].removeprefix("# ")
        text, pictures = rendered(cells, path.stem)
        yield f"notebooks/{path.stem}.md", title, text, pictures


def rendered(cells: list[dict[str, Any]], name: str) -> tuple[str, dict[str, bytes]]:
    """Return the cells of the notebook `name` as Markdown, and its pictures by place."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else _block(source, "python"))
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                picture = f"{name}_{len(pictures)}.png"
                pictures[f"notebooks/{picture}"] = base64.b64decode("".join(png))
                parts.append(f"![Picture drawn by the cell above]({picture})")
            elif output["output_type"] == "stream":
                parts.append(_block("".join(output["text"]), "text"))
    # In HTML, as links to notebooks lead to these pages.
    download = f'<a href="{name}.ipynb" download>Download this notebook</a>'
    return "\n\n".join([parts[0], download, *parts[1:]]) + "\n", pictures


def _block(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"
