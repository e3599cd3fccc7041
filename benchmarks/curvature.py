"""Claim: a Gauss-Newton product at a vocabulary of 50,257 peaks below 3 times a gradient's memory.

GPT-2 with 2 layers of width 64, float32, token table tied. Memory is what the allocator gave and
did not get back, over the start of the call (the profiler counts it), so what the C library keeps
does not matter. Paths to the same product: `LinearSoftmaxCrossEntropy`, in chunks of the
vocabulary and without logits; `SoftmaxCrossEntropy`, of logits and in closed form; and the same
loss differentiated twice. Times are told, not barred: median seconds of calls in turns.
"""

import sys
from functools import partial

import torch
from _harness import Call, arguments, environment, judge, peak_bytes, ratios, take_turns
from torch import Tensor
from torch.nn import functional as F

from fnlm import gpt2, random, tree
from fnlm.heads import output_table
from fnlm.transforms import (
    LinearSoftmaxCrossEntropy,
    SoftmaxCrossEntropy,
    ggn,
    grad,
    hessian,
)
from fnlm.tree import Tree

BAR = 3.0
GRADIENT = "gradient"
BARRED = ("Gauss-Newton, vocabulary in chunks", "Gauss-Newton, closed form")


def model(params: Tree, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return gpt2.apply(params, ids)[0], labels


def headless(params: Tree, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return gpt2.hidden_states(params, ids)[0], output_table(params), labels


def twice(outputs: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(outputs[0].flatten(0, -2), outputs[1].flatten())


def calls(config: gpt2.Config, rows: int, tokens: int) -> dict[str, Call]:
    params = gpt2.init(config, random.key(0))
    ids = (random.uniform(random.key(1), (rows, tokens)) * config.vocab_size).long()
    data = params, ids, ids.roll(-1, -1)
    v = tree.map(torch.ones_like, params)
    ops = {
        BARRED[0]: ggn(headless, LinearSoftmaxCrossEntropy(), *data),
        BARRED[1]: ggn(model, SoftmaxCrossEntropy(), *data),
        "Gauss-Newton, differentiated twice": ggn(model, twice, *data),
        "Hessian": hessian(lambda *d: twice(model(*d)), *data),
    }
    products: dict[str, Call] = {name: partial(op, v) for name, op in ops.items()}
    return {GRADIENT: lambda: grad(lambda *d: twice(model(*d)))(*data), **products}


def main() -> int:
    parser = arguments(__doc__, rounds=5, quick=1)
    args = parser.parse_args()
    rows, tokens = (1, 64) if args.quick else (4, 128)
    config = gpt2.Config(n_positions=tokens, n_ctx=tokens, n_embd=64, n_layer=2, n_head=2)
    print(
        f"{environment()}, vocabulary {config.vocab_size}, [{rows}, "
        f"{tokens}] tokens, {args.rounds} rounds"
    )
    made = calls(config, rows, tokens)
    times = take_turns(made, args.rounds)
    peaks = {name: peak_bytes(call) for name, call in made.items()}
    whole = peaks.pop(GRADIENT)
    print(f"a gradient peaks at {whole / 1e6:.1f} MB")
    met = True
    for name, peak in peaks.items():
        bar = BAR if name in BARRED else None
        met &= judge(f"{name}: peak / a gradient's", [peak / whole], bar, at_most=True)
        judge(f"{name}: time / a gradient's", ratios(times[name], times[GRADIENT]))
    return not met


if __name__ == "__main__":
    sys.exit(main())
