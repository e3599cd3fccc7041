"""Claim: right derivatives of every order cost no time at the first one.

`fnlm.layers.norm.layer_norm` calls torch's kernel where one level of derivatives is taken, and
plain arithmetic where levels meet. Here models run with it and with `F.layer_norm`, whose second
derivatives are wrong (docs/torch_func.md), in turns in one process; a ratio is the median of the
ratios of neighbours. Shapes: one block of BERT base, and a whole small BERT of two, both on
[8, 128]. What it costs where levels meet is told, not barred.
"""

import sys
from typing import Any
from unittest import mock

import torch
from _harness import Call, arguments, environment, judge, ratios, seconds, take_turns
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from fnlm import bert, random, transforms, tree
from fnlm.layers.norm import layer_norm

BAR = 1.02
ROWS, TOKENS = 8, 128
SHAPES: dict[str, dict[str, Any]] = {
    "BERT base, one block": {"num_hidden_layers": 1},
    "a whole BERT of width 128": {
        "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 512,
    },
}  # fmt: skip


def kernel(x: Tensor, scale: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """Norm as fnlm did before: torch's kernel at every level."""
    return F.layer_norm(x, (x.shape[-1],), scale, bias, eps)


def calls(shape: dict[str, Any], rows: int) -> dict[str, tuple[Call, bool]]:
    """Make what is timed, and say of each whether the bar holds for it."""
    config = bert.Config(vocab_size=1000, **shape)
    params = bert.init(config, random.key(0))
    tracked = tree.map(lambda x: x.clone().requires_grad_(), params)
    ids = torch.randint(1000, (rows, TOKENS), generator=torch.Generator().manual_seed(0))

    def loss(params: Any, ids: Tensor = ids) -> Tensor:
        return bert.apply(params, ids)[0].square().mean()

    def backward() -> object:
        return torch.autograd.grad(loss(tracked), tree.leaves(tracked), allow_unused=True)

    def forward() -> object:
        with torch.no_grad():
            return loss(params)

    return {
        "forward": (forward, True),
        "backward()": (backward, True),
        "torch.func.grad": (lambda: grad(loss)(params), True),
        "fnlm.transforms.grad": (lambda: transforms.grad(loss)(params), True),
        "per example": (lambda: vmap(grad(loss), (None, 0))(params, ids[:2]), True),
        "jvp": (lambda: jvp(loss, (params,), (params,)), True),
        "jvp of grad": (lambda: jvp(grad(loss), (params,), (params,)), False),
    }


def compare(call: Call, rounds: int) -> list[float]:
    """Time ours and the kernel in turns, and in both orders."""

    def timer(norm: Any) -> float:
        with mock.patch.object(bert, "layer_norm", norm):
            return seconds(call)

    taken = take_turns({"ours": layer_norm, "kernel": kernel}, rounds, timer=timer, order="both")
    return ratios(taken["ours"], taken["kernel"])


def main() -> int:
    args = arguments(__doc__, rounds=31).parse_args()
    rows, rounds = 2 if args.quick else ROWS, args.rounds
    print(
        f"{environment()}, float32 [{rows}, {TOKENS}], {rounds} rounds; "
        "time with layer_norm / with F.layer_norm"
    )
    met = True
    for name, shape in SHAPES.items():
        for what, (call, barred) in calls(shape, rows).items():
            bar = BAR if barred else None
            met &= judge(f"{name}, {what}", compare(call, rounds), bar, at_most=True)
    return not met


if __name__ == "__main__":
    sys.exit(main())
