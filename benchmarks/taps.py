"""Claim: sites that nobody reads cost less than 1% of a decoding step, a site that is read 10 us.

The step is that of the model inside the package, one token after 64, where little is computed
beside what sites cost. Unread sites: their number times the time of one, over the time of the step.
Read sites: a step that reads all sites alternates with one that reads none, in one process; their
difference over the number of sites. For comparison, a step with a written site.
"""

import statistics
import sys
import timeit
from typing import Any

import torch
from _harness import Call, Times, arguments, environment, judge, ratios, row, take_turns

from fnlm import gpt2, taps, tree
from fnlm.layers._tap import tap

SHARE, MICROSECONDS = 0.01, 10.0
PLAIN, READ = "decoding step", "reading every site"
LOOPS = 100_000


def make_calls(sites: tuple[str, ...]) -> dict[str, Call]:
    params = tree.cast(gpt2.load("tiny"), torch.float32)
    _, cache = gpt2.apply(params, torch.arange(64)[None])
    token = torch.tensor([[5]])
    read = taps.read(gpt2.apply, *sites)
    write = taps.write(gpt2.apply, {"blocks.3.out": torch.zeros(1, 1, 128)})
    return {
        PLAIN: lambda: gpt2.apply(params, token, cache),
        READ: lambda: read(params, token, cache),
        "reading every site by **": lambda: taps.read(gpt2.apply, "**")(params, token, cache),
        "writing one site": lambda: write(params, token, cache),
    }


def unread() -> float:
    """Return the seconds that a site takes where nobody reads."""
    block: dict[str, Any] = {"norm": 0}
    x = torch.zeros(1)
    return min(timeit.repeat(lambda: tap(x, block.get("taps"), "out"), number=LOOPS)) / LOOPS


def report(taken: Times, sites: int) -> bool:
    print(f"{environment()}, {sites} sites, {len(taken[PLAIN])} rounds")
    for name, times in taken.items():
        print(row(name, times))
    once = unread()
    print(f"a site that nobody reads: {1e9 * once:.0f} ns")
    shares = ratios([sites * once] * len(taken[PLAIN]), taken[PLAIN])
    met = judge("unread sites / step", shares, SHARE, at_most=True)
    pairs = zip(taken[READ], taken[PLAIN], strict=True)
    each = [1e6 * (read - plain) / sites for read, plain in pairs]
    print(f"a site that is read: {statistics.median(each):.1f} us")
    return judge("us for a site that is read", each, MICROSECONDS, at_most=True) and met


def main() -> int:
    args = arguments(__doc__, rounds=301, quick=21).parse_args()
    names = taps.sites(gpt2, gpt2.load("tiny")["config"])
    reached = tuple(name for name in names if not name.startswith("heads."))
    with torch.no_grad():
        taken = take_turns(make_calls(reached), args.rounds, warm_up=10, order="both")
        return not report(taken, len(reached))


if __name__ == "__main__":
    sys.exit(main())
