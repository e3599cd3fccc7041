"""Runs the benchmarks one after the other, and records what each one judges.

    python benchmarks/_run.py                     # all, as `make bench`
    python benchmarks/_run.py --quick             # all, as `make bench-quick`: nothing is kept
    python benchmarks/_run.py adam dropout        # some: the results of others stay as they are

Results are written to benchmarks/results/<date>-<machine>.jsonl: first a line about the machine,
then a line for each script and for each number that it judges. The status is 1 if a bar was missed
or a script failed; with --quick, where few rounds say little of bars, if one failed.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

from _harness import RECORD, bytes_per_second, version

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
# What belongs together on the page of the results.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "Training": ("train_gpt2", "compiled", "bert_base", "padded", "fit_overhead", "adam"),
    "Per-example gradients": ("clipped_sums", "per_example_grads"),
    "Second order and attribution": ("curvature", "attribution"),
    "Decoding": ("decode_gpt2", "speculative"),
    "Transformer-XL": ("transfo_xl",),
    "Layers, losses, sites": (
        "attention", "layer_norm", "dropout", "cross_entropy", "products", "taps",
    ),
    "Text": (
        "tokenize_bert", "tokenize_gpt2", "tokenize_gpt", "tokenize_transfo_xl", "squad_features",
    ),
    "Start": ("start", "open_checkpoint"),
    "Growth": ("growth",),
}  # fmt: skip
# Long runs that ask for a corpus, and what is not about time: started by hand.
BY_HAND = ("finetune_minilm", "kills", "memory_length", "padding_row", "private_glue")
SECONDS = {True: 120, False: 600}  # after which a script is stopped, quick or not
TRACEBACK = "Traceback (most recent call last)"
ABSENT = re.compile(r"ModuleNotFoundError: No module named '(\w+)")


def processor() -> tuple[str, list[str]]:
    """Return the model of the processor, and which kernels it has for few bits."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine(), []
    model = re.search(r"model name\s*: (.+)", text)
    flags = re.search(r"flags\s*: (.+)", text)
    words = flags[1].split() if flags else []
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    return model[1] if model else platform.machine(), [name for name in wanted if name in words]


def peers() -> list[str]:
    """Return the packages that benchmarks compare with: the extra `bench` of pyproject.toml."""
    text = (FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")
    named = tomllib.loads(text)["project"]["optional-dependencies"]["bench"]
    return [re.split(r"[^\w-]", name)[0] for name in named]


def machine() -> dict[str, Any]:
    """Return what all times of a run depend on."""
    import torch

    model, flags = processor()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": model,
        "flags": flags,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gigabytes_per_second": round(bytes_per_second() / 1e9, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "peers": {name: version(name) for name in peers()},
    }


def scripts() -> dict[str, str]:
    """Return the subject of each script that is there, in the order of the page."""
    pairs = [(name, subject) for subject, names in SUBJECTS.items() for name in names]
    return {name: subject for name, subject in pairs if (FOLDER / f"{name}.py").exists()}


def claim(path: Path) -> str:
    """Return the first paragraph of a script's docstring."""
    text = re.search(r'"""(.+?)(\n\n|""")', path.read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(text[1].split()) if text else ""


def run(path: Path, record: Path, *flags: str, limit: float = 600.0) -> str:
    """Run a script whose rows go to a file, and return how it went.

    That is "met", "missed", "left out: " and the peer that it cannot do without, or "failed: " and
    why.
    """
    environment = os.environ | {RECORD: str(record), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(path), *flags]
    begin = len(rows(record))
    try:
        done = subprocess.run(
            command, env=environment, timeout=limit, stderr=subprocess.PIPE, text=True
        )
    except subprocess.TimeoutExpired:
        return f"failed: stopped after {limit:.0f} s"
    print(done.stderr, end="", file=sys.stderr)
    absent = ABSENT.search(done.stderr)
    if done.returncode and absent and absent[1].replace("_", "-") in peers():
        return f"left out: {absent[1]} is not installed"
    if done.returncode not in (0, 1) or TRACEBACK in done.stderr:
        return f"failed: {(done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}"
    missed = done.returncode or not all(found.get("met", True) for found in rows(record)[begin:])
    return "missed" if missed else "met"


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file of results."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run_all(names: list[str], record: Path, *, quick: bool) -> list[str]:
    """Run scripts one after the other, and return those that failed."""
    failed, subjects = [], scripts()
    for name in names:
        path = FOLDER / f"{name}.py"
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        state = run(path, record, *(["--quick"] if quick else []), limit=SECONDS[quick])
        seconds = round(time.perf_counter() - start, 1)
        print(f"== {name}: {state}, {seconds} s", flush=True)
        found = {"claim": claim(path), "subject": subjects[name], "state": state}
        with record.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"script": name, **found, "seconds": seconds}) + "\n")
        failed += [name] if state.startswith("failed") else []
    return failed


def summary(found: list[dict[str, Any]]) -> str:
    """Return a line for each script, and one for each bar that was missed."""
    lines = []
    for script in (each for each in found if "state" in each):
        own = [each for each in found if each.get("script") == script["script"]]
        barred = [each for each in own if each.get("bar")]
        met = sum(each["met"] for each in barred)
        lines.append(
            f"{script['script']:20} {met} of {len(barred)} bars met, {script['seconds']:.0f} s"
            + ("" if script["state"] in ("met", "missed") else f", {script['state']}")
        )
        lines += [
            f"    MISSED {each['what']}: {each['median']:.3g}, bar {each['bar']}"
            for each in barred
            if not each["met"]
        ]
    seconds = sum(each["seconds"] for each in found if "state" in each)
    return "\n".join([*lines, f"{seconds / 60:.1f} minutes"])


def file_of(about: dict[str, Any]) -> Path:
    """Return where the results of a machine and a day are kept."""
    name = re.sub(r"\W+", "-", f"{about['processor']}-{about['cores']}-cores".lower()).strip("-")
    return RESULTS / f"{about['date']}-{name}.jsonl"


def keep(found: list[dict[str, Any]]) -> None:
    """Write results to the file of the machine and day, where rows of other scripts stay.

    Scripts are in the order of `scripts()`, whichever was run last.
    """
    about, *new = found
    path, names = file_of(about), {each["script"] for each in new}
    others = [each for each in rows(path)[1:] if each["script"] not in names]
    order = {name: place for place, name in enumerate(scripts())}
    found = sorted((*others, *new), key=lambda each: order.get(each["script"], len(order)))
    RESULTS.mkdir(exist_ok=True)
    lines = [json.dumps(each) + "\n" for each in (about, *found)]
    path.write_text("".join(lines), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = list(scripts())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="few rounds: does everything run?")
    flags = parser.parse_args()
    if strange := set(flags.names) - {*known}:
        parser.error(f"there is no benchmark {', '.join(sorted(strange))}, only {', '.join(known)}")
    about = machine()
    print(json.dumps(about, indent=1))
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "results.jsonl")
        record.write_text(json.dumps(about) + "\n", encoding="utf-8")
        failed = run_all(flags.names or known, record, quick=flags.quick)
        found = rows(record)
        if not flags.quick:
            keep(found)
    print("\n" + summary(found))
    return bool(failed) or not (flags.quick or all(each.get("met", True) for each in found))


if __name__ == "__main__":
    sys.exit(main())
