"""Claim: a cross entropy over chunks of tokens costs little time and saves most of the memory.

`fnlm.train.losses.linear_cross_entropy` beside `cross_entropy` of all logits, in turns in one
process: the gradient by hidden states and table, and a Hessian-vector product. A ratio of times is
the median of the ratios of neighbours; memory is what tensors hold at most, by counted allocations.
"""

import argparse
import os
import platform
import statistics
import sys
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp
from torch.utils._python_dispatch import TorchDispatchMode

import fnlm
from fnlm import random, transforms, tree
from fnlm.train.losses import cross_entropy, linear_cross_entropy

SIZES = {"GPT-2's vocabulary": (1024, 256, 50257), "BERT's": (1024, 256, 30522)}
SMALL = {"a vocabulary of 1,000": (1024, 256, 1000)}
BAR_BYTES, BAR_SMALL = 0.45, 1.05  # memory of the chunks; time where one chunk holds all
Call = Callable[[], object]


class Counter(TorchDispatchMode):
    """Counts the bytes of storages from when operations make them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> \
            Any:  # fmt: skip
        made = function(*args, **(kwargs or {}))
        for x in tree.leaves(made):
            if isinstance(x, Tensor) and x.untyped_storage()._cdata not in self.sizes:
                storage = x.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self.peak = max(self.peak, sum(self.sizes.values()))
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
        return made


def peak(call: Call) -> int:
    with Counter() as counter:
        call()
    return counter.peak


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def calls(tokens: int, width: int, vocabulary: int) -> dict[str, tuple[Call, Call]]:
    """Each derivative, by chunks and at once."""
    leaves = random.normal(random.key(0), (tokens, width)), random.normal(
        random.key(1), (vocabulary, width)
    ) / 50  # fmt: skip
    labels = torch.arange(tokens) * 131 % vocabulary
    slopes = [
        transforms.grad(loss)
        for loss in (
            lambda x: linear_cross_entropy(x[0], x[1], labels),
            lambda x: cross_entropy(x[0] @ x[1].mT, labels),
        )
    ]
    chunked, whole = slopes
    return {
        "gradient": (partial(chunked, leaves), partial(whole, leaves)),
        "jvp of gradient": (
            partial(jvp, chunked, (leaves,), (leaves,)),
            partial(jvp, whole, (leaves,), (leaves,)),
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    print(
        f"python {platform.python_version()}, torch {torch.__version__}, fnlm {fnlm.__version__}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, float32; in chunks / at once"
    )
    met = True
    for name, size in {**SIZES, **SMALL}.items():
        print(f"{name}: tokens, width, vocabulary {size}")
        for what, (chunked, whole) in calls(*size).items():
            ratio = statistics.median(
                [seconds(chunked) / seconds(whole) for _ in range(rounds + 1)][1:]
            )
            ours, theirs = peak(chunked), peak(whole)
            bar = ratio <= BAR_SMALL if name in SMALL else ours <= BAR_BYTES * theirs
            met &= bar
            print(
                f"  {what:16} time {ratio:.2f}, memory {ours / 1e6:.0f} / {theirs / 1e6:.0f} MB "
                f"= {ours / theirs:.2f}{'' if bar else ', MISSED'}",
                flush=True,
            )
    print(f"bars: memory {BAR_BYTES}, time where one chunk holds all {BAR_SMALL}")
    return not met


if __name__ == "__main__":
    sys.exit(main())
