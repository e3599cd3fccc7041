"""Claim: opening a 500 MB checkpoint takes less than 0.1 s, because nothing but its header is read.

A GPT-2 of 124 million parameters in float32 is saved to a temporary directory and opened by
`fnlm.gpt2.load`, which checks every name and shape, in turns with `safetensors.torch.load_file`
(tensors without a model) and `transformers`' `from_pretrained` (a model). The file is in the page
cache. Opening is compared first; then, in a fresh process each, how the resident memory grows when
the file is opened, when one matrix of 2.4 MB is read, and when everything is.

Physical limit: reading the header alone.
"""

import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from _harness import Times, arguments, environment, is_installed, judge, ratios, row, take_turns

from fnlm import gpt2, random, tree

BAR_SECONDS = 0.1
OURS = "fnlm gpt2.load"
MATRIX = "transformer.h.5.attn.c_proj.weight"
Opener = Callable[[Path], Any]


@lru_cache
def transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = import_module("transformers")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


def open_fnlm(directory: Path) -> list[torch.Tensor]:
    params = gpt2.load(directory)
    return [params["blocks"][5]["attention"]["out"]["weight"], *tree.leaves(params)]


def open_safetensors(directory: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    tensors = load_file(directory / "model.safetensors")
    return [tensors[MATRIX], *tensors.values()]


def open_transformers(directory: Path) -> list[torch.Tensor]:
    module = transformers().GPT2LMHeadModel.from_pretrained(directory)
    parameters = dict(module.named_parameters())
    return [parameters[MATRIX], *parameters.values()]


def read_header(directory: Path) -> dict[str, Any]:
    with (directory / "model.safetensors").open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size))


PEER = "transformers"
OPENERS: dict[str, Opener] = {
    OURS: open_fnlm,
    "safetensors load_file": open_safetensors,
    PEER: open_transformers,
}


def measure(directory: Path, rounds: int) -> Times:
    """Seconds of each opening."""
    calls = OPENERS | {"the header alone": read_header}
    if not is_installed(PEER):
        del calls[PEER]
    return take_turns({name: partial(call, directory) for name, call in calls.items()}, rounds)


def resident() -> float:
    """Megabytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(name: str, directory: Path) -> list[float]:
    """Megabytes gained by opening, by reading one matrix, by reading all."""
    if name == PEER:
        transformers()
    OPENERS[name](directory)  # imports, and what libraries set up once
    before = resident()
    first, *tensors = OPENERS[name](directory)
    opened = resident()
    first.sum()
    one = resident()
    for tensor in tensors:
        tensor.sum()
    return [opened - before, one - opened, resident() - before]


def growth_elsewhere(name: str, directory: Path) -> list[float]:
    command = [sys.executable, __file__, "--measure", name, str(directory)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(number) for number in json.loads(done.stdout.splitlines()[-1])]


def report(directory: Path, rounds: int) -> bool:
    size = (directory / "model.safetensors").stat().st_size
    print(f"{environment('safetensors', 'transformers')}, {size / 1e6:.0f} MB, {rounds} rounds")
    taken = measure(directory, rounds)
    for name, times in taken.items():
        ratio = statistics.median(ratios(times, taken[OURS]))
        print(row(name, times, note=f", {ratio:.2f} of fnlm's"))
    for name in OPENERS.keys() & taken.keys():
        opened, one, everything = growth_elsewhere(name, directory)
        print(
            f"{name:22} resident memory: opened +{opened:.0f} MB, one matrix read +{one:.1f} MB, "
            f"all read +{everything:.0f} MB"
        )
    return judge("seconds of opening", taken[OURS], BAR_SECONDS, at_most=True)


def main() -> int:
    parser = arguments(__doc__, rounds=11, quick=2)
    parser.add_argument("--measure", nargs=2, metavar=("NAME", "DIRECTORY"), help="used by itself")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(growth(args.measure[0], Path(args.measure[1]))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        config = gpt2.Config(n_layer=6) if args.quick else gpt2.Config()  # with block 5
        gpt2.save(gpt2.init(config, random.key(0)), folder)
        return not report(Path(folder), args.rounds)


if __name__ == "__main__":
    sys.exit(main())
