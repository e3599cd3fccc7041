"""Claim: a cross entropy over chunks of tokens costs little time and saves most of the memory.

`fnlm.train.losses.linear_cross_entropy` beside `cross_entropy` of all logits, in turns in one
process: the gradient by hidden states and table, and a Hessian-vector product. A ratio of times is
the median of the ratios of neighbours; memory is the most bytes allocated at once.
"""

import sys
from functools import partial

import torch
from _harness import Call, arguments, environment, judge, peak_bytes, ratios, take_turns
from torch.func import jvp

from fnlm import random, transforms
from fnlm.train.losses import cross_entropy, linear_cross_entropy

SIZES = {"GPT-2's vocabulary": (1024, 256, 50257), "BERT's": (1024, 256, 30522)}
SMALL = {"a vocabulary of 1,000": (1024, 256, 1000)}
BECAUSE = (
    "the table's gradient and its tangent are of both peaks, and are more of that of a smaller "
    "vocabulary"
)
BAR_BYTES, BAR_SMALL = 0.45, 1.05  # memory of the chunks; time where one chunk holds all


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
    args = arguments(__doc__, rounds=5, quick=1).parse_args()
    print(f"{environment()}, float32; in chunks / at once")
    met = True
    for name, (tokens, width, vocabulary) in {**SIZES, **SMALL}.items():
        size = (tokens // 2, 16, vocabulary) if args.quick else (tokens, width, vocabulary)
        print(f"{name}: tokens, width, vocabulary {size}")
        for what, (chunked, whole) in calls(*size).items():
            taken = take_turns({"chunked": chunked, "whole": whole}, args.rounds)
            found = ratios(taken["chunked"], taken["whole"])
            time_bar, memory_bar = (BAR_SMALL, None) if name in SMALL else (None, BAR_BYTES)
            met &= judge(f"{name}, {what}: time", found, time_bar, at_most=True)
            memory = [peak_bytes(chunked) / peak_bytes(whole)]
            met &= judge(
                f"{name}, {what}: memory", memory, memory_bar, at_most=True, because=BECAUSE
            )
    return not met


if __name__ == "__main__":
    sys.exit(main())
