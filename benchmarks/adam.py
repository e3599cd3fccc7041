"""Claim: a donated `bert_adam` step takes at most 1.3 times torch's fused AdamW step.

Both step the 110 million parameters of BERT base (199 tensors of its shapes). `bert_adam` clips
every gradient tensor, which reads the gradients once more; AdamW does not clip at all. A quarter
of the gradients exceed the norm. The two alternate in one process; the ratio is the median of the
ratios of neighbours. A pure step, which makes new parameters and averages, takes at most 3 times
the donated one: what it takes more is the memory that the system hands out page by page. For
comparison, in the same turns: AdamW by foreach, and torchopt's where it is installed.

Physical limit: reading parameters, gradients and two averages and writing all but the gradients,
at the memory bandwidth of this machine as `a.add_(b)` on large tensors reaches it.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from _harness import Times, bytes_per_second, environment, judge, ratios, row, take_turns
from torch import Tensor

from fnlm.train import bert_adam, except_bias_and_norm
from fnlm.train._fused import clip_divisors

BAR, PURE_BAR = 1.3, 3.0
CLIPPING = (
    "gradients are read once more, for their norms (the next row), and those that are clipped are "
    "written; tried: norms and step of a few leaves at a time, which a cache holds, by more calls "
    "of the kernel, no faster"
)
FRESH = "its memory is fresh, which the system hands out page by page, more slowly at times"
PEER, OURS, PURE = "torch AdamW fused", "fnlm bert_adam, donated", "fnlm bert_adam, pure"
NORMS = "norms of the gradients"
Step = Callable[[], object]
Shape = tuple[int, ...]


def bert_base_shapes(width: int = 768, layers: int = 12, vocabulary: int = 30522) -> list[Shape]:
    norm: list[Shape] = [(width,), (width,)]
    square: list[Shape] = [(width, width), (width,)]
    inner: list[Shape] = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    block = [*square * 4, *norm, *inner, *norm]
    return [(vocabulary, width), (512, width), (2, width), *norm, *block * layers, *square]


def make_params() -> dict[str, Tensor]:
    """Name leaves so that about the usual ones decay."""
    names = {1: "bias", 2: "weight"}
    return {
        f"{i}.{names[len(shape)]}": torch.full(shape, 0.02)
        for i, shape in enumerate(bert_base_shapes())
    }


def make_grads(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give every fourth gradient the norm 2, the others 0.5."""
    return {
        name: torch.full_like(p, (0.5 if i % 4 else 2.0) / p.numel() ** 0.5)
        for i, (name, p) in enumerate(params.items())
    }


class Contender(NamedTuple):
    """Something that takes steps."""

    step: Step
    prepare: Step  # not timed


def fnlm_step(*, donate: bool) -> Contender:
    params = make_params()
    wanted, grads = make_grads(params), make_grads(params)
    optimizer = bert_adam(1e-5, decay=except_bias_and_norm)
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        params, state = optimizer.update(grads, state, params, donate=donate)

    def prepare() -> None:
        """Write the gradients again, as a donated update consumes them."""
        torch._foreach_copy_(list(grads.values()), list(wanted.values()))

    return Contender(step, prepare)


def torch_step(**kwargs: Any) -> Contender:
    params = make_params()
    leaves = [torch.nn.Parameter(p) for p in params.values()]
    for leaf, grad in zip(leaves, make_grads(params).values(), strict=True):
        leaf.grad = grad
    return Contender(torch.optim.AdamW(leaves, lr=1e-5, **kwargs).step, lambda: None)


def torchopt_step() -> Contender | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torchopt = import_module("torchopt")
    except ImportError:
        return None
    params = make_params()
    grads = make_grads(params)
    optimizer = torchopt.adamw(1e-5)
    state = optimizer.init(params)

    def step() -> None:
        nonlocal params, state
        updates, state = optimizer.update(grads, state, params=params, inplace=False)
        params = torchopt.apply_updates(params, updates, inplace=False)

    return Contender(step, lambda: None)


def make_contenders() -> dict[str, Contender]:
    contenders = {
        PEER: torch_step(fused=True),
        OURS: fnlm_step(donate=True),
        "torch AdamW foreach": torch_step(foreach=True),
        PURE: fnlm_step(donate=False),
    }
    grads = [*make_grads(make_params()).values()]
    contenders[NORMS] = Contender(lambda: clip_divisors(grads, 1.0, per_tensor=True), lambda: None)
    torchopt = torchopt_step()
    return contenders | ({"torchopt adamw, pure": torchopt} if torchopt else {})


def measure(rounds: int, slow_rounds: int) -> Times:
    """Seconds of each step; two rounds to warm up are left out."""
    contenders = make_contenders()
    return take_turns(
        {name: contender.step for name, contender in contenders.items()},
        rounds,
        warm_up=2,
        prepare={name: contender.prepare for name, contender in contenders.items()},
        few={name: slow_rounds for name in contenders if name not in (PEER, OURS, NORMS)},
    )


def report(taken: Times) -> bool:
    numbers = sum(p.numel() for p in make_params().values())
    print(
        f"{environment()}, {numbers / 1e6:.0f} million parameters in float32, "
        f"{len(taken[OURS])} rounds"
    )
    for name, times in taken.items():
        print(row(name, times))
    bandwidth = bytes_per_second()
    limit = 4e3 * numbers / bandwidth
    print(
        f"physical limit {7 * limit:.0f} ms at {bandwidth / 1e9:.0f} GB/s, "
        f"{8 * limit:.0f} ms with clipping"
    )
    found = ratios(taken[OURS], taken[PEER])
    met = judge("donated / fused", found, BAR, at_most=True, because=CLIPPING)
    judge("norms of the gradients / fused", ratios(taken[NORMS], taken[PEER]))
    pure = ratios(taken[PURE], taken[OURS])
    return met & judge("pure / donated", pure, PURE_BAR, at_most=True, because=FRESH)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--slow-rounds", type=int, default=3, help="of all but the claimed two")
    parser.add_argument("--quick", action="store_true", help="few rounds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.slow_rounds = 1, 1
    return not report(measure(args.rounds, args.slow_rounds))


if __name__ == "__main__":
    sys.exit(main())
