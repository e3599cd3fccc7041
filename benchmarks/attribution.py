"""Claim: derivatives through 50 steps of AdamW equal differences to 1e-6, in memory of sqrt(N).

GPT-2 with one layer of width 24 and 3 heads, float64, dropout on, 4 examples a step, each of 20
seen in 10 of the 50 steps. Differences move the weight of one example by 1e-7 in each direction and
train from the start. Memory is what the allocator gave and did not get back (the profiler counts
it), over the start of the call, in sizes of the state; time of the processor is told, in times of
plain training.
"""

import sys
import time
from functools import partial
from typing import Any

import torch
from _harness import arguments, environment, judge, peak_bytes, ratios, seconds, take_turns
from torch import Tensor
from torch.func import vmap
from torch.nn import functional as F

from fnlm import gpt2, random, train, tree
from fnlm.transforms import attribute
from fnlm.tree import Tree

BAR = 1e-6
STEP = 10  # in states, what a differentiated step may hold beside 2 sqrt(N) of them
EXAMPLES, ROWS, H = 20, 4, 1e-7  # as the first steps of Adam bend sharply where gradients are small
CONFIG = gpt2.Config(vocab_size=61, n_positions=16, n_ctx=16, n_embd=24, n_layer=1, n_head=3)
KEYS = random.split(random.key(0), 5)
IDS = (random.uniform(KEYS[1], (EXAMPLES + 2, 12)) * CONFIG.vocab_size).long()


def losses(params: Tree, ids: Tensor, keys: Tensor) -> Tensor:
    logits = vmap(lambda row, key: gpt2.apply(params, row[:-1], key=key)[0])(ids, keys)
    return F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").mean(-1)


def loss(params: Tree, ids: Tensor, weights: Tensor, key: Tensor) -> Tensor:
    return (weights * losses(params, ids, random.split(key, len(ids)))).mean()


OPTIMIZER = train.adamw(1e-2)
TRAIN_STEP = train.train_step(loss, OPTIMIZER)


def step(state: Tree, weights: Tensor, which: Tensor) -> Tree:
    return TRAIN_STEP(state, IDS[which], weights[which])[0]


def query(state: Tree) -> Tensor:
    logits = gpt2.apply(state.params, IDS[EXAMPLES:, :-1])[0]
    return F.cross_entropy(logits.mT, IDS[EXAMPLES:, 1:])


def order(steps: int) -> list[tuple[Any, ...]]:
    return [(torch.arange(ROWS * i, ROWS * (i + 1)) % EXAMPLES,) for i in range(steps)]


def trained(state: Tree, weights: Tensor, batches: list[tuple[Any, ...]]) -> Tree:
    for batch in batches:
        state = step(state, weights, *batch)
    return state


def worst_difference(start: Tree, ones: Tensor, steps: int, examples: int) -> float:
    """Return the largest relative distance from differences, of the scores of some examples."""
    found = attribute(step, query, start, ones, order(steps))
    worst = 0.0
    for i in torch.arange(0, EXAMPLES, max(1, EXAMPLES // examples)).tolist():
        move = torch.zeros_like(ones)
        move[i] = H
        up, down = (query(trained(start, ones + s * move, order(steps))) for s in (1, -1))
        difference = (up - down) / (2 * H)
        off = float((found.weights[i] - difference).abs() / difference.abs())
        print(f"  example {i:2}: {found.weights[i]:+.9f}, difference {difference:+.9f}, {off:.1e}")
        worst = max(worst, off)
    return worst


def main() -> int:
    parser = arguments(__doc__, rounds=3, quick=1)
    parser.add_argument("--steps", type=int, help="default: 50")
    parser.add_argument("--examples", type=int, help="of which differences are taken, default: 5")
    args = parser.parse_args()
    args.examples = args.examples or (2 if args.quick else 5)
    args.steps = args.steps or (8 if args.quick else 50)
    params = tree.cast(gpt2.init(CONFIG, KEYS[0]), torch.float64)
    start = train.init_state(params, OPTIMIZER, KEYS[2])
    ones = torch.ones(EXAMPLES, dtype=torch.float64)
    size = sum(leaf.nbytes for leaf in tree.leaves(start))
    print(
        f"{environment()}, {tree.count(params)} parameters, a state of {size / 1e6:.2f} MB, "
        f"{args.steps} steps"
    )
    worst = worst_difference(start, ones, args.steps, args.examples)
    met = judge("largest relative distance from differences", [worst], BAR, at_most=True)
    for steps, every in ((args.steps // 2, None), (args.steps, None), (args.steps, 1)):
        run = partial(attribute, step, query, start, ones, order(steps), every=every)
        what = f"{steps} steps, {'every state' if every else 'sqrt(N) states'} kept"
        states = [peak_bytes(run) / size]
        met &= judge(
            f"{what}: peak, in states",
            states,
            None if every else 2 * steps**0.5 + STEP,
            at_most=True,
        )
        calls = {"attribute": run, "train": partial(trained, start, ones, order(steps))}
        clock = partial(seconds, clock=time.process_time)
        taken = take_turns(calls, args.rounds, warm_up=0, timer=clock)
        judge(f"{what}: time / plain training", ratios(taken["attribute"], taken["train"]))
    return not met


if __name__ == "__main__":
    sys.exit(main())
