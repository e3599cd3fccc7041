"""Claim: the fused kernel is not slower than plain operations, and holds no scores.

`fnlm.layers.attention.attend` as it is and with plain operations alone, in turns in one process,
on one layer of GPT-2 (a causal mask) and of BERT (padding): forward, the gradient of fnlm and
per-example gradients. A ratio is the median of the ratios of neighbours; below the size at which
the kernel begins, both are the same code, and the ratio is what deciding costs.
"""

import sys
from typing import Any
from unittest import mock

import torch
from _harness import Call, arguments, environment, judge, ratios, seconds, take_turns
from torch import Tensor
from torch.func import vmap

from fnlm import transforms
from fnlm.layers import _fused_attention as fused
from fnlm.layers.attention import attend, causal_mask, padding_bias

HEADS, WIDTH, TOKENS = 12, 64, 2048
QUERIES = (1, 16, 32, 64, 128, 384, 1024)
PAST = 512  # cached tokens of a decoding step
BAR = 1.05


def calls(queries: int, causal: bool, tokens: int) -> dict[str, Call]:
    """Each thing that is timed, for about so many tokens in all."""
    batch = max(1, tokens // max(queries, 128))
    keys = PAST if queries == 1 else queries
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> Tensor:
        return torch.randn(batch, HEADS, tokens, WIDTH, generator=generator)

    q, k, v = draw(queries), draw(keys), draw(keys)
    real = torch.arange(keys) >= torch.arange(batch)[:, None] % 3  # some rows are padded
    mask = causal_mask(real, queries) if causal else padding_bias(real, q.dtype)

    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return attend(q, (k,), (v,), mask, causal=causal)

    def loss(qkv: tuple[Tensor, Tensor, Tensor], mask: Tensor) -> Tensor:
        return forward(qkv[0], qkv[1], qkv[2], mask).square().sum()

    gradient = transforms.grad(loss)
    found: dict[str, Call] = {"forward": lambda: forward(q, k, v, mask)}
    if queries > 1:
        found["gradient"] = lambda: gradient((q, k, v), mask)
        found["per example"] = lambda: vmap(gradient)((q, k, v), mask)
    return found


def compare(call: Call, rounds: int) -> list[float]:
    """Time both in turns, and in both orders."""
    repeat = max(1, int(0.01 / (min(seconds(call) for _ in range(3)) + 1e-9)))

    def repeated() -> None:
        for _ in range(repeat):
            call()

    def timer(can_attend: Any) -> float:
        with mock.patch.object(fused, "can_attend", can_attend):
            return seconds(repeated)

    both = {"ours": fused.can_attend, "plain": lambda *given: False}
    taken = take_turns(both, rounds, warm_up=0, timer=timer, order="both")
    return ratios(taken["ours"], taken["plain"])


def main() -> int:
    parser = arguments(__doc__, rounds=20)
    parser.add_argument("--smallest", type=int, help="queries and keys from which to fuse")
    flags = parser.parse_args()
    smallest = flags.smallest or fused.QUERIES
    tokens = 256 if flags.quick else TOKENS
    print(
        f"{environment()}, float32, {HEADS} heads of {WIDTH}, about {tokens} tokens, "
        f"{flags.rounds} rounds; time as it is / in plain ones"
    )
    met = True
    for name, causal in (("GPT-2, causal", True), ("BERT, padded", False)):
        for queries in QUERIES:
            for what, call in calls(queries, causal, tokens).items():
                with mock.patch.multiple(fused, QUERIES=smallest, KEYS=smallest):
                    found = compare(call, flags.rounds)
                met &= judge(f"{name}, T {queries}, {what}", found, BAR, at_most=True)
    return not met


if __name__ == "__main__":
    sys.exit(main())
