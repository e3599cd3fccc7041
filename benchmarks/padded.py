"""Claim: encoding rows of all lengths costs what their real tokens cost.

BERT base encodes rows of 8 to 128 tokens, short ones more often, padded to 128:

    real     the cost of the real tokens: what full rows take, by their number of tokens
    sorted   `fnlm.finetune.predict`: sorted by length, each batch cut to its longest row
    as read  batches in the order of the rows, each cut to its longest row
    padded   batches in the order of the rows, as they are

All run in turns in one process; a ratio is the median of those of neighbours. Every row must come
out as it does alone, and in its place; some are tried.
"""

import argparse
import sys
from typing import Any

import numpy as np
import torch
from _harness import Call, environment, judge, ratios, row, take_turns
from torch import Tensor

from fnlm import bert, finetune, random

BAR, LENGTH = 1.15, 128


def rows(count: int) -> tuple[Any, Any, Any]:
    """Return ids, token types and mask [N, 128] of rows of all lengths."""
    draw = np.random.default_rng(0)
    lengths = np.exp(draw.uniform(np.log(8), np.log(LENGTH), count)).astype(int)
    mask = np.arange(LENGTH) < lengths[:, None]
    ids = np.where(mask, draw.integers(1000, 30000, mask.shape), 0)
    return ids, np.zeros_like(ids), mask


def model(params: bert.Params, *batch: Tensor) -> Tensor:
    return bert.apply(params, *batch)[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="1 layer, 128 rows and 3 rounds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.layers, args.rows = 3, 1, 128
    config, size = bert.Config(num_hidden_layers=args.layers), args.batch_size
    params = bert.init(config, random.key(0))
    arrays = rows(args.rows)
    tokens = int(arrays[2].sum())
    full = torch.randint(1000, 30000, (size, LENGTH))
    parts = [[x[i : i + size] for x in arrays] for i in range(0, args.rows, size)]

    def padded() -> Tensor:
        return torch.cat([model(params, *map(torch.from_numpy, part)) for part in parts])

    def sorted_rows() -> Any:
        return finetune.predict(model, params, arrays, size, "cpu")

    calls: dict[str, Call] = {
        "full rows": lambda: model(params, full),
        "sorted": sorted_rows,
        "as read": lambda: [model(params, *finetune.tensors(part)) for part in parts],
        "padded": padded,
    }
    some = range(0, args.rows, 16)
    alone = [model(params, *finetune.tensors([x[[i]] for x in arrays])) for i in some]
    found = torch.from_numpy(sorted_rows())[::16]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=0)
    taken = take_turns(calls, args.rounds, order="both")
    share = tokens / full.numel()
    taken["real"] = [took * share for took in taken.pop("full rows")]
    print(
        f"{environment()}, {args.rows} rows of 8 to {LENGTH} tokens, {tokens / args.rows:.0f} on "
        f"average, {args.layers} layers, {args.rounds} rounds"
    )
    for name, times in taken.items():
        print(row(name, times))
    for name in ("as read", "padded"):
        judge(f"{name} / sorted", ratios(taken[name], taken["sorted"]), 1.0)
    return not judge("sorted / real", ratios(taken["sorted"], taken["real"]), BAR, at_most=True)


if __name__ == "__main__":
    with torch.no_grad():
        sys.exit(main())
