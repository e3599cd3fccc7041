"""Claim: a training step of GPT-2 on [4, 256] is at least 1.05 times as fast as `transformers`'.

A step is the mean loss of the next tokens and its gradients by all parameters, without dropout,
from the same random weights of the smallest GPT-2, in float32 and under torch's autocast to
bfloat16. The peer's gradients are those of `backward()` and `zero_grad()`. Both run in turns in one
process; a ratio is the median of those of neighbours, and the losses must agree.
"""

import argparse
import math
import sys
from typing import Any

import torch
import transformers
from _harness import Call, environment, judge, ratios, row, take_turns
from torch import Tensor

from fnlm import gpt2, transforms
from fnlm.params import io
from fnlm.params.names.gpt2 import FAMILY
from fnlm.train import losses

BAR, AUTOCAST_BAR = 1.05, 1.0


def contenders(rows: int, length: int, layers: int) -> dict[str, Any]:
    torch.manual_seed(0)
    config = gpt2.Config(n_layer=layers)
    module = transformers.GPT2LMHeadModel(transformers.GPT2Config(**config.to_dict())).eval()
    state = {
        name: x.detach() for name, x in module.state_dict().items() if name != "lm_head.weight"
    }
    params = io.assemble(state, config, FAMILY, gpt2.spec)
    ids = torch.randint(config.vocab_size, (rows, length))

    labels = torch.cat([ids[:, 1:], torch.full((rows, 1), losses.IGNORE)], dim=1)

    def loss(params: gpt2.Params) -> Tensor:
        return losses.cross_entropy(gpt2.apply(params, ids)[0].float(), labels)

    def peer() -> float:
        result = module(ids, labels=ids, use_cache=False).loss
        result.backward()
        module.zero_grad(set_to_none=True)
        return float(result.detach())

    gradients = transforms.grad_and_value(loss)
    return {"transformers": peer, "fnlm": lambda: float(gradients(params)[1])}


def cast(call: Call) -> Call:
    """Run under autocast."""

    def run() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return call()

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="2 layers, 2 rows and 2 rounds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.layers, args.rows = 2, 2, 2
    print(
        f"{environment('transformers')}, [{args.rows}, {args.length}], {args.layers} layers, "
        f"{args.rounds} rounds"
    )
    plain = contenders(args.rows, args.length, args.layers)
    if not math.isclose(plain["fnlm"](), plain["transformers"](), rel_tol=1e-5):
        raise ValueError("the contenders compute different losses")
    calls = plain | {f"{name}, autocast": cast(call) for name, call in plain.items()}
    taken = take_turns(calls, args.rounds, order="both")
    for name, times in taken.items():
        print(row(name, times))
    met = True
    for kind, bar in (("", BAR), (", autocast", AUTOCAST_BAR)):
        found = ratios(taken[f"transformers{kind}"], taken[f"fnlm{kind}"])
        met &= judge(f"GPT-2 training{kind}: fnlm / the peer's speed", found, bar)
    return not met


if __name__ == "__main__":
    sys.exit(main())
