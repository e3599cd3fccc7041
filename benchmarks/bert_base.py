"""Claim: BERT base on [8, 128] is faster than `transformers`, forward and with gradients.

Both run the same weights on rows of which every other one is padded, in turns in one process:
forward, gradients of one number by all parameters, and the same with dropout; in float32, and under
torch's autocast to bfloat16. The peer's gradients are those of `backward()` and `zero_grad()`, ours
of `fnlm.transforms.grad_and_value`. Besides, fnlm with parameters in bfloat16 against fnlm in
float32, where the processor multiplies bfloat16. A ratio is the median of those of neighbours; the
numbers that are computed must agree.

Physical limit: the matrix products of the layers alone, by torch and by oneDNN, in float32.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from _harness import environment, judge, ratios, row, take_turns
from torch import Tensor

from fnlm import bert, random, transforms, tree
from fnlm.params import io
from fnlm.params.names.bert import FAMILY

Call = Callable[[], Tensor]
BARS = {"forward": 1.05, "gradients": 1.0, "gradients with dropout": 1.0}
AUTOCAST_BAR, HALF_BAR = 1.0, 2.0
BECAUSE = "the products alone (a row of their own) gain no more, as those in float32 are oneDNN's"


def number(hidden: Tensor, pooled: Tensor) -> Tensor:
    return hidden.float().square().mean() + pooled.float().square().mean()


def cast(call: Call) -> Call:
    """Run under autocast."""

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return call()

    return run


def contenders(rows: int, length: int, layers: int) -> dict[str, dict[str, Call]]:
    """Return what each side computes, by what it is called."""
    torch.manual_seed(0)
    config = bert.Config(num_hidden_layers=layers)
    module = transformers.BertModel(transformers.BertConfig(**config.to_dict())).eval()
    ids = torch.randint(config.vocab_size, (rows, length))
    types, mask = torch.zeros_like(ids), torch.ones_like(ids)
    mask[::2, length * 3 // 4 :] = 0
    params = io.assemble(module.state_dict(), config, FAMILY, bert.spec)
    half = tree.cast(params, torch.bfloat16)

    def peer() -> Tensor:
        result = module(ids, attention_mask=mask, token_type_ids=types)
        return number(result.last_hidden_state, result.pooler_output)

    def peer_gradients(*, train: bool = False) -> Tensor:
        module.train(train)
        result = peer()
        result.backward()
        module.zero_grad(set_to_none=True)
        module.eval()
        return result.detach()

    def loss(params: Any, key: Tensor | None = None) -> Tensor:
        return number(*bert.apply(params, ids, types, mask, key=key))

    gradients, key = transforms.grad_and_value(loss), random.key(1)

    def ours(params: Any) -> dict[str, Call]:
        return {
            "forward": torch.no_grad()(lambda: loss(params)),
            "gradients": lambda: gradients(params)[1],
            "gradients with dropout": lambda: gradients(params, key)[1],
        }

    theirs: dict[str, Call] = {
        "forward": torch.no_grad()(peer),
        "gradients": peer_gradients,
        "gradients with dropout": lambda: peer_gradients(train=True),
    }
    return {
        "transformers": theirs,
        "fnlm": ours(params),
        "transformers, autocast": {name: cast(call) for name, call in theirs.items()},
        "fnlm, autocast": {name: cast(call) for name, call in ours(params).items()},
        "fnlm, bfloat16": ours(half),
    }


def products(
    config: bert.Config, tokens: int, multiply: Any, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """Return the products with the weights of all layers."""
    width, inner = config.hidden_size, config.intermediate_size
    x, h = torch.randn(tokens, width).to(dtype), torch.randn(tokens, inner).to(dtype)
    shapes = (width, width), (inner, width), (width, inner)
    square, up, down = (torch.randn(shape).to(dtype) for shape in shapes)

    def call() -> None:
        for _ in range(config.num_hidden_layers):
            for _ in range(4):
                multiply(x, square)
            multiply(x, up)
            multiply(h, down)

    return call


def limits(args: argparse.Namespace) -> dict[str, Callable[[], None]]:
    config, tokens = bert.Config(num_hidden_layers=args.layers), args.rows * args.length
    linear = torch.nn.functional.linear
    found = {
        "products by torch": products(config, tokens, linear),
        "products in bfloat16": products(config, tokens, linear, torch.bfloat16),
    }
    if torch.backends.mkldnn.is_available():
        by_onednn = torch.ops.mkldnn._linear_pointwise
        found["products by oneDNN"] = products(
            config, tokens, lambda x, w: by_onednn(x, w, None, "none", [], "")
        )
    return found


def agree(sides: dict[str, dict[str, Call]]) -> None:
    """Raise ValueError unless all compute the same number without dropout."""
    for name, calls in sides.items():
        near = 1e-5 if name in ("transformers", "fnlm") else 1e-2
        for what in ("forward", "gradients"):
            found, expected = float(calls[what]()), float(sides["transformers"]["forward"]())
            if not math.isclose(found, expected, rel_tol=near):
                raise ValueError(f"{name}, {what}: {found} is not {expected}")


def multiplies_bfloat16() -> bool:
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="2 layers and 2 rounds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.layers = 2, 2
    print(
        f"{environment('transformers')}, [{args.rows}, {args.length}], {args.layers} layers, "
        f"{args.rounds} rounds"
    )
    sides = contenders(args.rows, args.length, args.layers)
    agree(sides)
    met = True
    for what, bar in BARS.items():
        calls: dict[str, Any] = {name: side[what] for name, side in sides.items()}
        calls |= limits(args) if what == "forward" else {}
        taken = take_turns(calls, args.rounds, order="both")
        for name, times in taken.items():
            print(row(f"{name}, {what}", times))
        for kind, least in (("", bar), (", autocast", AUTOCAST_BAR)):
            found = ratios(taken[f"transformers{kind}"], taken[f"fnlm{kind}"])
            met &= judge(f"{what}{kind}: fnlm / the peer's speed", found, least)
        if multiplies_bfloat16():
            found = ratios(taken["fnlm"], taken["fnlm, bfloat16"])
            met &= judge(f"{what}: bfloat16 / float32's speed", found, HALF_BAR, because=BECAUSE)
        if "products by oneDNN" in taken:
            share = statistics.median(ratios(taken["products by oneDNN"], taken["fnlm"]))
            print(f"fnlm, {what}: {share:.2f} of the time are products by oneDNN")
            if multiplies_bfloat16():
                found = ratios(taken["products by oneDNN"], taken["products in bfloat16"])
                judge("products alone: bfloat16 / float32's speed", found)
    return not met


if __name__ == "__main__":
    sys.exit(main())
