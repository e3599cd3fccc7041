"""Claim: dropout with a key is at least as fast as `torch.nn.functional.dropout`.

On float32 [16, 128, 768], one key for the whole tensor, rate 0.1. torch draws its mask from the
global generator, number after number; fnlm's mask is a function of the key, computed by hashing a
counter. The two alternate in one process; the ratio is the median of the ratios of neighbours.
For comparison, in the same turns: one key for each of the 16 rows, and the mask alone.

Physical limit: reading the input and writing the output, at the memory bandwidth of this machine
as `a.add_(b)` on large tensors reaches it (what fits a cache may be faster).
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

import fnlm
from fnlm import random
from fnlm.layers.dropout import dropout

BAR = 1.0
SHAPE = (16, 128, 768)
PEER, OURS = "torch dropout", "fnlm dropout, one key"
Call = Callable[[], object]


def make_calls(rate: float) -> dict[str, Call]:
    x, key = torch.randn(SHAPE), random.key(0)
    keys = random.split(key, SHAPE[0])
    return {
        PEER: lambda: F.dropout(x, rate),
        OURS: lambda: dropout(x, rate, key),
        "fnlm dropout, a key a row": lambda: dropout(x, rate, keys),
        "fnlm mask alone": lambda: random.bernoulli(key, 1 - rate, SHAPE),
        "torch mask alone": lambda: torch.empty(SHAPE, dtype=torch.bool).bernoulli_(1 - rate),
    }


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def take_turns(rate: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call; five rounds to warm up are left out."""
    calls = make_calls(rate)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 5):
        for name, call in calls.items():
            took = seconds(call)
            taken[name] += [took] if turn >= 5 else []
    return taken


def bytes_per_second() -> float:
    """Measure the memory bandwidth of two reads and a write of what fits no cache."""
    a, b = torch.zeros(60_000_000), torch.ones(60_000_000)
    return 3 * a.nbytes / min(seconds(lambda: a.add_(b)) for _ in range(9))


def report(taken: dict[str, list[float]]) -> float:
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, fnlm {fnlm.__version__}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, float32 {list(SHAPE)}, "
        f"{len(taken[OURS])} rounds"
    )
    for name, times in taken.items():
        low, middle, high = statistics.quantiles(times, n=4)
        print(
            f"{name:26} median {1e3 * middle:6.2f} ms (quartiles {1e3 * low:.2f} to "
            f"{1e3 * high:.2f}, fastest {1e3 * min(times):.2f})"
        )
    bandwidth = bytes_per_second()
    limit = 8e3 * torch.Size(SHAPE).numel() / bandwidth
    print(f"physical limit             {limit:13.2f} ms at {bandwidth / 1e9:.0f} GB/s")
    ratios = [a / b for a, b in zip(taken[OURS], taken[PEER], strict=True)]
    low, ratio, high = statistics.quantiles(ratios, n=4)
    print(
        f"ratio fnlm / torch: median {ratio:.2f} (quartiles {low:.2f} to {high:.2f}), "
        f"of the fastest {min(taken[OURS]) / min(taken[PEER]):.2f}; "
        f"bar: at most {BAR}: {'met' if ratio <= BAR else 'MISSED'}"
    )
    return ratio


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=101)
    args = parser.parse_args()
    with torch.no_grad():
        return report(take_turns(args.rate, args.rounds)) > BAR


if __name__ == "__main__":
    sys.exit(main())
