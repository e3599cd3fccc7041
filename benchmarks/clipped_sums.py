"""Claim: norms and clipped sums of per-example gradients cost what the gradient of the batch does.

A BERT classifier of 6 layers of width 384 reads 16 rows of 128 tokens, every other one padded, with
dropout, in float32; the gradients are those of every parameter. All contenders alternate in one
process; a ratio is the median of the ratios of neighbours. Bars: norms in at most 1.35 times the
time of the batch's gradient, clipped sums in 1.5 times, both in 1.1 times its memory, and clipped
sums at 1.15 times the speed of Opacus's ghost clipping (needs opacus; left out without it).

Memory is counted, not measured: the most bytes of tensors allocated at once, from the events of
torch's profiler. What the gradients of all examples take, materialized and then clipped, is shown
beside it. For GPT-2 small with 8 rows of 256 tokens it is not tried: it is linear in the rows, so
two counts give it, and the clipped sum is held to half of that, and to the batch's gradient.

Arithmetic: the gradient of the batch multiplies each weight by each token three times, norms two
times and T^2 (n + m) times an example for a matrix [n, m]; clipped sums once more. So wide models
pay less, and short texts: the rows of other widths, lengths and batches, of 2 layers, tell.
"""

import argparse
import sys
import warnings
from functools import partial
from typing import Any

import torch
from _classifier import Batch, loss, make_batch, make_params, make_peer, plain_loss
from _harness import (
    Call,
    arguments,
    environment,
    is_installed,
    judge,
    peak_bytes,
    ratios,
    row,
    take_turns,
)
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.train import losses
from fnlm.transforms import capture, clipped_grad_sum, grad, per_example_grads, per_example_norms
from fnlm.tree import Tree

BATCH, NORMS, CLIPPED, OPACUS = "gradient of the batch", "norms", "clipped sum", "opacus, ghost"
MATERIALIZED = "gradients, then clipped"
TIME_BARS, MEMORY_BAR, SPEED_BAR = {NORMS: 1.35, CLIPPED: 1.5}, 1.1, 1.15
EXACT = {"float64": 1e-9, "float32": 1e-3}  # relative errors of norms
MAX_NORM = 1.0
WIDTH, LENGTH, ROWS = 384, 128, 16
SIZES = {"width": (96, 192, 384, 768), "length": (32, 64, 128, 256), "rows": (2, 4, 8, 16)}


def materialize(loss: Any, params: Tree, *batch: Tensor) -> Tree:
    each = per_example_grads(loss, params, *batch)
    norms = torch.stack([tree.norm(g) for g in tree.unstack(each)])
    factors = (MAX_NORM / norms).clamp(max=1)
    return tree.map(lambda g: torch.einsum("b,b...->...", factors, g), each)


def contenders(params: Tree, batch: Batch) -> dict[str, Call]:
    examples = (*batch, random.split(random.key(0), len(batch[0])))
    return {
        BATCH: lambda: grad(loss)(params, *examples),
        NORMS: lambda: per_example_norms(loss, params, *examples),
        CLIPPED: lambda: clipped_grad_sum(loss, params, *examples, max_norm=MAX_NORM),
        MATERIALIZED: lambda: materialize(loss, params, *examples),
    }


def make_opacus(params: Tree) -> Any:
    """A model of transformers with the same weights, and Opacus's loss that clips."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Hooked
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    hooked = Hooked(make_peer(params), max_grad_norm=MAX_NORM, use_ghost_clipping=True)
    sgd = torch.optim.SGD(hooked.parameters(), lr=0.0)
    optimizer = DPOptimizerFastGradientClipping(
        sgd, noise_multiplier=0.0, max_grad_norm=MAX_NORM, expected_batch_size=1
    )
    return hooked, DPLossFastGradientClipping(hooked, optimizer, torch.nn.CrossEntropyLoss())


def run_opacus(model: Any, batch: Batch) -> Tensor:
    """Fill `.grad` with the clipped sum, and return the norms."""
    (hooked, criterion), (ids, types, mask, labels) = model, batch
    # Its hooks need positions for each row, and one memory order.
    positions = torch.arange(ids.shape[1]).expand(ids.shape).contiguous()
    hooked.zero_grad(set_to_none=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        logits = hooked(
            input_ids=ids, token_type_ids=types, attention_mask=mask, position_ids=positions
        ).logits
        criterion(logits, labels).backward()
    return hooked.per_sample_gradient_norms


def show_exactness() -> bool:
    """Compare with materialized gradients in float64, and how far float32 is from that."""
    params = make_params(96, 2)
    batch = (*make_batch(4, 32), random.split(random.key(0), 4))
    wide = tree.cast(params, torch.float64)
    expected = torch.stack(
        [tree.norm(g) for g in tree.unstack(per_example_grads(loss, wide, *batch))]
    )
    met = True
    for name, given in (("float64", wide), ("float32", params)):
        error = (per_example_norms(loss, given, *batch) - expected).abs() / expected
        what = f"norms in {name}: largest relative error"
        met &= judge(what, [float(error.max())], EXACT[name], at_most=True)
    print(f"leaves materialized: {sorted(capture(loss, params, *batch).each)}")
    return met


def compare_norms(batch: Batch) -> None:
    """Say how far the norms of Opacus are from ours without dropout."""
    params = make_params(96, 2, 0.0)
    theirs = run_opacus(make_opacus(params), batch)
    ours = per_example_norms(plain_loss, params, *batch)
    print(f"norms of opacus: {((theirs - ours) / ours).abs().max():.0e} from ours, no dropout")


def measure(params: Tree, batch: Batch, rounds: int, *, opacus: bool, materialized: bool) -> Any:
    """Return the times of all contenders and, but for Opacus, the bytes that they hold at most."""
    calls = contenders(params, batch)
    if not materialized:
        del calls[MATERIALIZED]
    peers: dict[str, Call] = {}
    if opacus:
        made = make_opacus(params)
        peers = {OPACUS: lambda: run_opacus(made, batch)}
    taken = take_turns(calls | peers, rounds, few={MATERIALIZED: 1})
    return taken, {name: peak_bytes(call) for name, call in calls.items()}


def judge_all(what: str, taken: Any, memory: dict[str, int], *, barred: bool) -> bool:
    """Judge times, memory and the speed over Opacus of one size."""
    met = True
    for name, bar in TIME_BARS.items():
        found = ratios(taken[name], taken[BATCH])
        met &= judge(f"{what}: {name}, time", found, bar if barred else None, at_most=True)
        share = [memory[name] / memory[BATCH]]
        limit = MEMORY_BAR if barred else None
        met &= judge(f"{what}: {name}, memory", share, limit, at_most=True)
    if OPACUS in taken:
        found = ratios(taken[OPACUS], taken[CLIPPED])
        met &= judge(f"{what}: speed over opacus", found, SPEED_BAR if barred else None)
    return met


def show_sizes(args: argparse.Namespace, *, opacus: bool) -> None:
    """Tell the same of other widths, lengths and batches."""
    usual = {"width": WIDTH, "length": LENGTH, "rows": ROWS // 2}
    for axis, values in SIZES.items():
        for value in values[:1] if args.quick else values:
            size = usual | {axis: value}
            if value == usual[axis] and axis != "width":
                continue  # shown once
            params = make_params(size["width"], 1 if args.quick else 2)
            batch = make_batch(size["rows"], size["length"])
            taken, memory = measure(
                params, batch, min(2, args.rounds), opacus=opacus, materialized=False
            )
            what = "2 layers of {width}, {rows} rows of {length}".format(**size)
            judge_all(what, taken, memory, barred=False)


def language_model(params: Tree, ids: Tensor) -> Tensor:
    return losses.language_model(gpt2.apply(params, ids)[0], ids)


def judge_large(quick: bool) -> bool:
    """Run the clipped sum of GPT-2 small, and count what materialized gradients would need."""
    rows, length = (4, 32) if quick else (8, 256)
    config = gpt2.Config(n_layer=2, n_embd=384, n_head=6) if quick else gpt2.Config()
    params = gpt2.init(config, random.key(0))
    ids = (random.uniform(random.key(1), (rows, length)) * config.vocab_size).long()
    ours = peak_bytes(lambda: clipped_grad_sum(language_model, params, ids, max_norm=MAX_NORM))
    one, two = (peak_bytes(partial(materialize, language_model, params, ids[:n])) for n in (1, 2))
    needed = one + (rows - 1) * (two - one)
    print(f"GPT-2 small: clipped sum {ours / 1e9:.2f} GB, materialized {needed / 1e9:.2f} GB")
    what = f"GPT-2 small, {rows} rows of {length}: memory / that of materialized gradients"
    judge(what, [ours / needed])
    share = ours / peak_bytes(lambda: grad(language_model)(params, ids))
    what = f"GPT-2 small, {rows} rows of {length}: memory / that of the batch's gradient"
    return judge(what, [share], MEMORY_BAR, at_most=True)


def main() -> int:
    args = arguments(__doc__, rounds=5, quick=1).parse_args()
    rows, length, layers = (4, 32, 2) if args.quick else (ROWS, LENGTH, 6)
    print(f"{environment('opacus')}, {args.rounds} rounds")
    opacus = is_installed("opacus", "transformers")
    met = show_exactness()
    batch = make_batch(rows, length)
    if opacus:
        compare_norms(batch)
    params = make_params(WIDTH, layers)
    taken, memory = measure(params, batch, args.rounds, opacus=opacus, materialized=True)
    for name, times in taken.items():
        note = f", {memory[name] / 1e6:.0f} MB" if name in memory else ""
        print(row(name, times, "s", note))
    what = f"{layers} layers of {WIDTH}, {rows} rows of {length}"
    met &= judge_all(what, taken, memory, barred=True)
    show_sizes(args, opacus=opacus)
    return not (judge_large(args.quick) and met)


if __name__ == "__main__":
    sys.exit(main())
