"""Writes docs/benchmarks.md from the newest results of each machine in benchmarks/results.

Run as `python docs/benchmarks.py`. Nothing is measured: `make bench` does that.
"""

import json
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_suffix(".md")
RESULTS = PAGE.parent.parent / "benchmarks" / "results"
INTRODUCTION = """# Benchmarks

`make bench` runs the scripts of `benchmarks/`: each makes claims, with a bar, and measures them.
`make bench-quick` runs them with few rounds. Contenders take turns in one process, and a number is
the median of the ratios of neighbours, with the quartiles of these ratios (extremes where there are
fewer than four). A row without a bar is told for comparison. Texts are found in the installation of
Python, weights are random and of the true size. Some runs are
[started by hand](../CONTRIBUTING.md#benchmarks).

The page is written by `docs/benchmarks.py` (`make docs`) from `benchmarks/results`: of each machine
the newest file.
"""
EMPTY = "\nNo results are recorded.\n"
Found = list[dict[str, Any]]


def newest(folder: Path) -> list[Path]:
    """Return the newest file of each machine: a name is the date, then the machine."""
    latest = {path.stem[10:]: path for path in sorted(folder.glob("*.jsonl"))}
    return list(latest.values())


def number(value: float) -> str:
    """Return three digits, or those before the point where there are more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def escaped(text: str) -> str:
    """Return a text for a cell of a table."""
    return text.replace("|", "\\|")


def table(rows: Found) -> list[str]:
    """Return the rows of a script."""
    lines = ["| | Median | Spread | Bar | |", "| --- | ---: | --- | --- | --- |"]
    for row in rows:
        cells = [
            escaped(row["what"]),
            number(row["median"]),
            f"{number(row['low'])} to {number(row['high'])}" if row["rounds"] > 1 else "",
            row["bar"],
            ("met" if row["met"] else "**missed**") if row["bar"] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def script(about: dict[str, Any], found: Found) -> list[str]:
    """Return what the page says of a script."""
    own = [row for row in found if row.get("script") == about["script"]]
    lines = [
        "",
        f"`benchmarks/{about['script']}.py` ({about['seconds']:.0f} s). {about['claim']}",
        "",
    ]
    if rows := [row for row in own if "what" in row]:
        lines += [*table(rows), ""]
    reasons: dict[str, list[str]] = {}  # -> the rows that it holds for
    for row in rows:
        if "because" in row:
            reasons.setdefault(row["because"], []).append(row["what"])
    for because, names in reasons.items():
        lines += [f"Missed, *{'; '.join(names)}*: {because}.", ""]
    if absent := sorted({row["absent"] for row in own if "absent" in row}):
        lines += [f"Not compared, as not installed: {', '.join(absent)}.", ""]
    if about["state"] not in ("met", "missed"):
        lines += [f"It was {escaped(about['state'])}.", ""]
    return lines[:-1]


def machine(about: dict[str, Any], found: Found) -> list[str]:
    """Return the heading of a machine, with what its times depend on."""
    barred = [row for row in found if row.get("bar")]
    met = sum(row["met"] for row in barred)
    peers = [f"{name} {version}" for name, version in about["peers"].items() if version != "absent"]
    minutes = sum(row["seconds"] for row in found if "state" in row) / 60
    return [
        "",
        f"## {about['processor']}, {about['cores']} cores, {about['date']}",
        "",
        f"{about['threads']} threads; {', '.join(about['flags'])}; memory streams at "
        f"{about['gigabytes_per_second']} GB/s. Python {about['python']}, torch {about['torch']}, "
        f"{', '.join(peers)}. {met} of {len(barred)} bars were met, in {minutes:.0f} minutes.",
    ]


def section(path: Path) -> list[str]:
    """Return what the page says of a file of results."""
    about, *found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines, subject = machine(about, found), ""
    for each in (row for row in found if "state" in row):
        if each["subject"] != subject:
            subject = each["subject"]
            lines += ["", f"### {subject}"]
        lines += script(each, found)
    return lines


def page(folder: Path = RESULTS) -> str:
    """Return the page."""
    sections = [line for path in newest(folder) for line in section(path)]
    return INTRODUCTION + ("\n".join(sections) + "\n" if sections else EMPTY)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
