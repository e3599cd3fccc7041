"""Claim: per-example gradients of GPT-2 take at most 1.6 times the gradient of the batch.

GPT-2 with 6 layers of width 384, 16 rows of 128 tokens, float32, every parameter, the tied token
table included. The two alternate in one process; the ratio is the median of the ratios of
neighbours, in seconds of the clock and, as other programs on the machine disturb it less, in
seconds of the processor.

Physical limit: both multiply the same numbers. Per-example gradients write B times the memory of
the parameters, which has to be fresh; the benchmark measures what that costs on this machine by
filling new tensors of these sizes.

Taken a few examples at a time, the memory of one part serves the next; all at a time, a tied table
needs three buffers of B times its size at once, and fresh memory can cost more than arithmetic
(most on a virtual machine). Both are printed, and the claim is about the first.
"""

import argparse
import math
import resource
import statistics
import sys
import time
from typing import NamedTuple

import torch
from _harness import Call, environment, judge, quartiles, ratios, take_turns
from torch import Tensor
from torch.func import grad

from fnlm import gpt2, random, tree
from fnlm.train.losses import language_model
from fnlm.transforms import per_example_grads
from fnlm.tree import Tree

BAR = 1.6
PEER, OURS = "gradient of the batch", "per-example, in chunks"


class Took(NamedTuple):
    """Seconds."""

    clock: float
    processor: float


def took(fn: Call) -> Took:
    clock, processor = time.perf_counter(), time.process_time()
    result = fn()
    spent = Took(time.perf_counter() - clock, time.process_time() - processor)
    del result  # not timed
    return spent


def loss(params: Tree, ids: Tensor) -> Tensor:
    return language_model(gpt2.apply(params, ids)[0], ids)


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def summary(times: list[Took]) -> str:
    clock, processor = ([t[i] for t in times] for i in range(2))
    return f"median {quartiles(clock)} s, processor {statistics.median(processor):.3g} s"


def measure(config: gpt2.Config, rows: int, rounds: int, chunk_size: int) -> dict[str, list[Took]]:
    """Seconds of each contender."""
    params = gpt2.init(config, random.key(0))
    ids = (random.uniform(random.key(1), (rows, 128)) * config.vocab_size).long()
    contenders: dict[str, Call] = {
        PEER: lambda: grad(loss)(params, ids),
        OURS: lambda: per_example_grads(loss, params, ids, chunk_size=chunk_size),
        "per-example, all at once": lambda: per_example_grads(loss, params, ids),
        "fresh memory for them": lambda: tree.map(lambda p: torch.ones(rows, *p.shape), params),
    }
    return take_turns(contenders, rounds, timer=took)


def report(taken: dict[str, list[Took]]) -> bool:
    for name, times in taken.items():
        print(f"{name:26} {summary(times)}")
    print(f"peak memory of the process {peak_gigabytes():.1f} GB")
    clock, processor = (
        ratios((t[i] for t in taken[OURS]), (t[i] for t in taken[PEER])) for i in range(2)
    )
    print(f"per-example / batch, of processor time: median {quartiles(processor)}")
    return judge("per-example / batch", clock, BAR, at_most=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--vocab-size", type=int, default=50257)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--chunk-size", type=int, default=4)
    args = parser.parse_args()
    config = gpt2.Config(
        vocab_size=args.vocab_size, n_positions=128, n_embd=384, n_layer=6, n_head=6
    )
    count = sum(math.prod(leaf.shape) for leaf in tree.leaves(gpt2.spec(config)))
    print(
        f"{environment()}, {count / 1e6:.1f} million parameters, "
        f"vocabulary {config.vocab_size}, {args.rows} rows of 128 tokens, "
        f"{args.chunk_size} at a time, {args.rounds} rounds; "
        f"per-example gradients are {4e-9 * args.rows * count:.2f} GB"
    )
    return not report(measure(config, args.rows, args.rounds, args.chunk_size))


if __name__ == "__main__":
    sys.exit(main())
