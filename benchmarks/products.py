"""Claim: float32 products by oneDNN are faster than torch's own where fnlm takes them.

x @ W + b for x [1024, K], in the sizes of BERT base, and the gradients by x, W and b, as
`fnlm.layers.linear` computes them and by `torch.nn.functional.linear`; with W in both memory
orders. On processors where fnlm leaves products to torch, there is nothing to compare. A ratio is
the median of those of neighbours, in one process.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial

import torch
from _harness import Call, environment, judge, ratios, row, take_turns
from torch import Tensor
from torch.nn import functional as F

from fnlm import transforms
from fnlm.layers import _products as products
from fnlm.layers import linear

BAR = 1.0
SIZES = ((768, 768), (768, 3072), (3072, 768))


def calls(rows: int, inputs: int, outputs: int, *, columns_first: bool) -> dict[str, Call]:
    x, bias = torch.randn(rows, inputs), torch.randn(outputs)
    weight = torch.randn(outputs, inputs).mT if columns_first else torch.randn(inputs, outputs)
    along = torch.randn(rows, outputs)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(x, weight.mT, bias)

    found: dict[str, Call] = {}
    given = (x, weight, bias)
    for name, product in (("torch", plain), ("fnlm", linear)):
        gradient = transforms.grad(partial(total, product, along))
        found[name] = partial(product, *given)
        found[f"{name}, gradients"] = partial(gradient, given)
    return found


def total(product: Callable[..., Tensor], along: Tensor, given: tuple[Tensor, ...]) -> Tensor:
    return (product(*given) * along).sum()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--quick", action="store_true", help="256 rows and 5 rounds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.rows = 5, 256
    print(f"{environment()}, float32, {args.rows} rows, {args.rounds} rounds")
    if not products.FASTER:
        print("not a processor on which fnlm multiplies by oneDNN: nothing to compare")
        return 0
    met = True
    for inputs, outputs in SIZES:
        for columns_first in (True, False):
            order = "columns" if columns_first else "rows"
            made = calls(args.rows, inputs, outputs, columns_first=columns_first)
            taken = take_turns(made, args.rounds, warm_up=2, order="both")
            for name, times in taken.items():
                print(row(name, times))
            for kind in ("", ", gradients"):
                what = f"[{inputs}, {outputs}] in order of {order}{kind}: fnlm / torch's speed"
                met &= judge(what, ratios(taken[f"torch{kind}"], taken[f"fnlm{kind}"]), BAR)
    return not met


if __name__ == "__main__":
    sys.exit(main())
