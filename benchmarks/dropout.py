"""Claim: dropout with a key is at least as fast as `torch.nn.functional.dropout`.

On float32 [16, 128, 768], one key for the whole tensor, rate 0.1. torch draws its mask from the
global generator, number after number; fnlm's mask is a function of the key, computed by hashing a
counter. The two alternate in one process; the ratio is the median of the ratios of neighbours.
For comparison, in the same turns: one key for each of the 16 rows, and the mask alone.

Physical limit: reading the input and writing the output, at the memory bandwidth of this machine
as `a.add_(b)` on large tensors reaches it (what fits a cache may be faster).
"""

import sys

import torch
from _harness import (
    Call,
    Times,
    arguments,
    bytes_per_second,
    environment,
    judge,
    ratios,
    row,
    take_turns,
)
from torch.nn import functional as F

from fnlm import random
from fnlm.layers.dropout import dropout

BAR = 1.0
SHAPE = (16, 128, 768)
PEER, OURS = "torch dropout", "fnlm dropout, one key"


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


def report(taken: Times) -> bool:
    print(f"{environment()}, float32 {list(SHAPE)}, {len(taken[OURS])} rounds")
    for name, times in taken.items():
        print(row(name, times))
    bandwidth = bytes_per_second()
    limit = 8e3 * torch.Size(SHAPE).numel() / bandwidth
    print(f"physical limit {limit:.2f} ms at {bandwidth / 1e9:.0f} GB/s")
    return judge("fnlm / torch", ratios(taken[OURS], taken[PEER]), BAR, at_most=True)


def main() -> int:
    parser = arguments(__doc__, rounds=101, quick=11)
    parser.add_argument("--rate", type=float, default=0.1)
    args = parser.parse_args()
    with torch.no_grad():
        return not report(take_turns(make_calls(args.rate), args.rounds, warm_up=5))


if __name__ == "__main__":
    sys.exit(main())
