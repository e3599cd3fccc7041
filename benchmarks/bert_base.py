"""Claim: BERT base on [8, 128] is no slower than `transformers`, and 1.05 times with gradients.

Both run the same weights in float32, without dropout, on rows of which every other one is padded.
Gradients are those of one number with respect to all parameters, dropped at once: the peer's by
`backward()` and `zero_grad()`, ours by `fnlm.transforms.grad_and_value`, and for comparison by
`torch.func.grad_and_value`, which keeps what second derivatives would need. A ratio is the median
of the ratios of neighbours.

Every contender runs in a process of its own, as in a program that does nothing else, and they take
turns in random order; the numbers that they compute must agree. How often an allocator asks the
system for memory anew differs between processes that do the same, and is time, so all of them start
again a few times. Under `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184` it never asks, and
what is compared is arithmetic.

Physical limit: the matrix products of the layers alone, as torch does them. Bare kernels are these
and what else no gradient can do without, called on tensors that are there already: what a program
made of torch's operations could reach at the very most.
"""

import argparse
import math
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers
from _harness import Times, environment, judge, quartiles, ratios, row, seconds, take_turns
from torch import Tensor

from fnlm import bert, transforms
from fnlm.params import io
from fnlm.params.names.bert import FAMILY

aten = torch.ops.aten
FORWARD_BAR, GRADIENT_BAR = 1.0, 1.05
PEER, OURS, LIMIT = "transformers forward", "fnlm forward", "products forward"
PEER_GRADIENT, OURS_GRADIENT = "transformers, gradients", "fnlm, gradients"
FUNC_GRADIENT, LIMIT_GRADIENT = "fnlm, torch.func", "products, gradients"
KERNELS = "bare kernels, gradients"
Call = Callable[[], Tensor]


def number(hidden: Tensor, pooled: Tensor) -> Tensor:
    return hidden.square().mean() + pooled.square().mean()


def products(config: bert.Config, rows: int, length: int, times: int) -> Call:
    """The matrix products of all blocks; a gradient needs three times as many."""
    width, inner = config.hidden_size, config.intermediate_size
    x, h = torch.randn(rows * length, width), torch.randn(rows * length, inner)
    square, up, down = (torch.randn(s) for s in ((width, width), (width, inner), (inner, width)))
    heads = config.num_attention_heads
    values = torch.randn(rows * heads, length, width // heads)
    weights = torch.randn(rows * heads, length, length)

    def call() -> Tensor:
        for _ in range(times * config.num_hidden_layers):
            for _ in range(4):
                torch.mm(x, square)
            torch.bmm(values, values.mT)
            torch.bmm(weights, values)
            torch.mm(x, up)
            torch.mm(h, down)
        return torch.tensor(math.nan)

    return call


def kernels(config: bert.Config, rows: int, length: int) -> Call:
    """The products of a gradient, and what comes between them."""
    multiply = products(config, rows, length, 3)
    count, width, inner = rows * length, config.hidden_size, config.intermediate_size
    x, h = torch.randn(count, width), torch.randn(count, inner)
    scores = torch.randn(rows * config.num_attention_heads, length, length)
    scale, shift = torch.ones(width), torch.zeros(width)
    table = torch.empty(config.vocab_size, width)

    def call() -> Tensor:
        nothing = multiply()
        table.zero_()
        for _ in range(config.num_hidden_layers):
            aten.gelu_backward(h, aten.gelu(h))
            aten._softmax_backward_data(scores, aten._softmax(scores, -1, False), -1, x.dtype)
            for _ in range(2):  # norms, each after a sum, whose gradient is another
                x + x
                _, mean, deviation = aten.native_layer_norm(x, [width], scale, shift, 1e-12)
                aten.native_layer_norm_backward(
                    x, x, [width], mean, deviation, scale, shift, [True, True, True]
                )
                x + x
            for y in (x, x, x, x, h, x):  # gradients of biases
                y.sum(0)
        return nothing

    return call


def make_call(name: str, rows: int, length: int, layers: int) -> Call:
    """Build one contender, with weights and ids that are the same in every process."""
    torch.manual_seed(0)
    config = bert.Config(num_hidden_layers=layers)
    if name in (LIMIT, LIMIT_GRADIENT):
        return products(config, rows, length, 1 if name == LIMIT else 3)
    if name == KERNELS:
        return kernels(config, rows, length)
    module = transformers.BertModel(transformers.BertConfig(**config.to_dict())).eval()
    ids = torch.randint(config.vocab_size, (rows, length))
    types, mask = torch.zeros_like(ids), torch.ones_like(ids)
    mask[::2, length * 3 // 4 :] = 0

    def peer() -> Tensor:
        result = module(ids, attention_mask=mask, token_type_ids=types)
        return number(result.last_hidden_state, result.pooler_output)

    def peer_gradient() -> Tensor:
        result = peer()
        result.backward()
        module.zero_grad(set_to_none=True)
        return result.detach()

    if name in (PEER, PEER_GRADIENT):
        return torch.no_grad()(peer) if name == PEER else peer_gradient
    state = {key: x.detach() for key, x in module.state_dict().items()}
    params = io.assemble(state, config, FAMILY, bert.spec)

    def loss(params: Any) -> Tensor:
        return number(*bert.apply(params, ids, types, mask))

    if name == OURS:
        return torch.no_grad()(lambda: loss(params))
    derive = transforms.grad_and_value if name == OURS_GRADIENT else torch.func.grad_and_value
    return lambda: derive(loss)(params)[1]


def serve(pipe: Connection, name: str, sizes: list[int]) -> None:
    """Be a contender: say what it computes, then how long it takes whenever asked."""
    call = make_call(name, *sizes)
    call()
    pipe.send(float(call()))
    for _ in iter(pipe.recv, None):
        pipe.send(seconds(call))


def ask(pipe: Connection) -> float:
    """Return the seconds of a call in the process at the other end."""
    pipe.send(True)
    return float(pipe.recv())


def start_all(names: list[str], sizes: list[int], rounds: int) -> Times:
    """Start the contenders, and return the seconds of each call."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in names:
        pipes[name], there = spawn.Pipe()
        spawn.Process(target=serve, args=(there, name, sizes), daemon=True).start()
    made = [found for pipe in pipes.values() if not math.isnan(found := pipe.recv())]
    if not all(math.isclose(found, made[0], rel_tol=1e-5) for found in made):
        raise ValueError(f"the contenders compute different numbers: {made}")
    taken = take_turns(pipes, rounds, warm_up=0, timer=ask, order="random")
    for pipe in pipes.values():
        pipe.send(None)
    return taken


def start_again(names: list[str], sizes: list[int], starts: int, rounds: int) -> Times:
    every = [start_all(names, sizes, rounds) for _ in range(starts)]
    return {name: [took for taken in every for took in taken[name]] for name in names}


def compare(taken: Times, peer: str, ours: str, bar: float | None = None) -> bool:
    found = ratios(taken[peer], taken[ours])
    if bar is None:
        print(f"{ours} / the peer's speed: median {quartiles(found)}")
        return False
    return judge(f"{ours} / the peer's speed", found, bar)


def show(taken: Times, limit: str) -> None:
    for name, times in taken.items():
        share = statistics.median(ratios(taken[limit], times))
        print(row(name, times, note=f", {share:.3f} of the limit"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--starts", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5, help="of every start")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    args = parser.parse_args()
    print(
        f"{environment('transformers')}, float32 [{args.rows}, {args.length}], "
        f"{args.starts} starts of {args.rounds} rounds"
    )
    sizes, turns = [args.rows, args.length, args.layers], (args.starts, args.rounds)
    forward = start_again([PEER, OURS, LIMIT], sizes, *turns)
    show(forward, LIMIT)
    fast = compare(forward, PEER, OURS, FORWARD_BAR)
    names = [PEER_GRADIENT, OURS_GRADIENT, FUNC_GRADIENT, LIMIT_GRADIENT, KERNELS]
    gradient = start_again(names, sizes, *turns)
    show(gradient, LIMIT_GRADIENT)
    fast &= compare(gradient, PEER_GRADIENT, OURS_GRADIENT, GRADIENT_BAR)
    compare(gradient, PEER_GRADIENT, FUNC_GRADIENT)
    compare(gradient, PEER_GRADIENT, KERNELS)
    return not fast


if __name__ == "__main__":
    sys.exit(main())
