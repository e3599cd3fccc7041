"""Claim: from nothing to a first token in 1.2 times what importing torch takes, or less.

Three rows, each contender a fresh process with one thread, in turns, files in the page cache:

- `fnlm generate tiny` with one new token, against `python -c "import torch"`;
- torch and every module of fnlm (but the command line), against the same;
- a GPT-2 of 124 million parameters in float32 (500 MB, random): imports, loading, first token, at
  least 1.5 times as fast as `transformers` does so from the same model.safetensors, of a prompt of
  eight tokens. A last row has the same without the imports, in one process, where most of the time
  is the model's arithmetic, the same for both.

All rows compare the seconds of processors that a process takes, its own and the kernel's,
which other work on the machine changes less than the clock's; the clock's are printed as well.

Physical limit: importing torch, which is the most of it.
"""

import argparse
import os
import pkgutil
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from _harness import environment, judge, ratios, row, seconds, take_turns

ROOT = Path(__file__).resolve().parents[1]
OURS = """
import torch
from fnlm import gpt2
def first(folder):
    logits, _ = gpt2.apply(gpt2.load(folder), torch.arange(400, 408)[None])
    return int(logits[0, -1].argmax())
"""
THEIRS = """
import torch, transformers
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
def first(folder):
    model = transformers.GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        return int(model(torch.arange(400, 408)[None]).logits[0, -1].argmax())
"""


class Took(NamedTuple):
    """Seconds of a process."""

    clock: float
    processor: float


def process(words: Sequence[str], env: dict[str, str]) -> Took:
    """Run a process, and return what it took."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, capture_output=True, env=env)
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(clock, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)


def turns(calls: dict[str, Sequence[str]], rounds: int, cache: str) -> dict[str, list[float]]:
    """Let processes take turns; print what they took, and return the seconds of processors.

    Args:
        calls: name -> arguments of Python.
        rounds: in each of which every process runs once.
        cache: folder of compiled modules, which a first run of each fills as an installation does;
            "" for those beside the sources, without such a run.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPYCACHEPREFIX": cache, "PYTHONPATH": str(ROOT)}
    env |= {"HF_HUB_OFFLINE": "1"}
    taken = take_turns(
        calls, rounds, warm_up=1 if cache else 0, order="both",
        timer=lambda words: process([sys.executable, *words], env),
    )  # fmt: skip
    for name, times in taken.items():
        print(row(f"{name}, clock", [took.clock for took in times], "s"))
        print(row(f"{name}, processor", [took.processor for took in times], "s"))
    return {name: [took.processor for took in times] for name, times in taken.items()}


def save(folder: str, layers: int) -> None:
    """Save a GPT-2 with random weights, for both libraries."""
    from fnlm import gpt2, random

    gpt2.save(gpt2.init(gpt2.Config(n_layer=layers), random.key(0)), folder)


def in_one_process(folder: str, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of loading and a first token."""
    import torch

    torch.set_num_threads(1)
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    exec(OURS, ours)
    exec(THEIRS, theirs)
    assert ours["first"](folder) == theirs["first"](folder), "the first tokens differ"
    calls = {"fnlm": ours["first"], "transformers": theirs["first"]}
    taken = take_turns(
        {name: partial(call, folder) for name, call in calls.items()}, rounds,
        timer=partial(seconds, clock=time.process_time),
    )  # fmt: skip
    for name, times in taken.items():
        print(row(f"{name}, in one process", times))
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, a smaller model")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds

    import fnlm

    print(f"{environment('transformers')}; one is used, {rounds} rounds")
    names = [info.name for info in pkgutil.walk_packages(fnlm.__path__, "fnlm.")]
    commands = ("fnlm.__main__", "fnlm.cli", "fnlm.programs")
    everything = ", ".join(name for name in names if not name.startswith(commands))
    generate = "-m fnlm generate tiny --prompt The --max_new_tokens 1".split()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as own:
        cache = "" if args.quick else own
        small = turns(
            {
                "import torch": ["-c", "import torch"],
                "fnlm generate tiny": generate,
                "all of fnlm": ["-c", f"import torch, {everything}"],
            },
            rounds, cache,
        )  # fmt: skip
        torch_alone = small["import torch"]
        what = "processor: fnlm generate tiny, one token, over import torch"
        met = judge(what, ratios(small["fnlm generate tiny"], torch_alone), 1.2, at_most=True)
        what = "processor: import torch and all of fnlm, over import torch"
        met &= judge(what, ratios(small["all of fnlm"], torch_alone), 1.2, at_most=True)
        save(folder, 2 if args.quick else 12)
        large = turns(
            {
                name: ["-c", f"{code}\nfirst({folder!r})"]
                for name, code in {"fnlm": OURS, "transformers": THEIRS}.items()
            },
            -(-rounds // 3), cache,
        )  # fmt: skip
        what = "processor: process, checkpoint and first token, transformers over fnlm"
        met &= judge(what, ratios(large["transformers"], large["fnlm"]), 1.5)
        inside = in_one_process(folder, rounds)
        what = "processor: checkpoint and first token, transformers over fnlm"
        met &= judge(what, ratios(inside["transformers"], inside["fnlm"]), 1.5)
    return not met


if __name__ == "__main__":
    sys.exit(main())
