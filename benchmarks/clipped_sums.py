"""Claim: norms and clipped sums of per-example gradients cost what the gradient of the batch does.

A BERT classifier of 6 layers of width 384 reads 16 rows of 128 tokens, every other one padded, with
dropout, in float32; the gradients are those of every parameter. All contenders alternate in one
process; a ratio is the median of the ratios of neighbours. Bars: norms in at most 1.35 times the
time of the batch's gradient, clipped sums in 1.5 times, both in 1.1 times its memory, and clipped
sums at 1.15 times the speed of Opacus's ghost clipping (needs opacus; left out without it).

Memory is counted, not measured: the most bytes of tensors allocated at once, from the events of
torch's profiler. What the gradients of all examples take, materialized and then clipped, is shown
beside it.

Arithmetic: the gradient of the batch multiplies each weight by each token three times, norms two
times and T^2 (n + m) times an example for a matrix [n, m]; clipped sums once more. So wide models
pay less: the second table tells.
"""

import argparse
import importlib.util
import statistics
import sys
import warnings
from typing import Any

import torch
from _harness import Call, environment, judge, peak_bytes, ratios, row, take_turns
from torch import Tensor

from fnlm import bert, random, tree
from fnlm.params import _rename
from fnlm.params.names.bert import FAMILY
from fnlm.train import losses
from fnlm.transforms import capture, clipped_grad_sum, grad, per_example_grads, per_example_norms
from fnlm.tree import Tree

BATCH, NORMS, CLIPPED, OPACUS = "gradient of the batch", "norms", "clipped sum", "opacus, ghost"
MATERIALIZED = "gradients, then clipped"
TIME_BARS, MEMORY_BAR, SPEED_BAR = {NORMS: 1.35, CLIPPED: 1.5}, 1.1, 1.15
MAX_NORM = 1.0
HEAD = "sequence_classification"


def make_config(width: int, layers: int, dropout: float = 0.1) -> bert.Config:
    return bert.Config(
        hidden_size=width, num_hidden_layers=layers, intermediate_size=4 * width,
        num_attention_heads=max(1, width // 32),
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip


def make_batch(rows: int, length: int) -> tuple[Tensor, ...]:
    """Ids, token types, mask and labels."""
    ids = torch.randint(bert.Config().vocab_size, (rows, length))
    mask = torch.ones_like(ids)
    mask[::2, length * 3 // 4 :] = 0
    return ids, torch.zeros_like(ids), mask, torch.randint(2, (rows,))


def loss(params: Tree, *example: Tensor) -> Tensor:
    *given, label, key = example
    return losses.cross_entropy(bert.sequence_classification(params, *given, key=key), label)


def plain_loss(params: Tree, *example: Tensor) -> Tensor:
    *given, label = example
    return losses.cross_entropy(bert.sequence_classification(params, *given), label)


def materialize(params: Tree, *batch: Tensor) -> Tree:
    each = per_example_grads(loss, params, *batch)
    norms = torch.stack([tree.norm(g) for g in tree.unstack(each)])
    factors = (MAX_NORM / norms).clamp(max=1)
    return tree.map(lambda g: torch.einsum("b,b...->...", factors, g), each)


def contenders(params: Tree, batch: tuple[Tensor, ...]) -> dict[str, Call]:
    examples = (*batch, random.split(random.key(0), len(batch[0])))
    return {
        BATCH: lambda: grad(loss)(params, *examples),
        NORMS: lambda: per_example_norms(loss, params, *examples),
        CLIPPED: lambda: clipped_grad_sum(loss, params, *examples, max_norm=MAX_NORM),
        MATERIALIZED: lambda: materialize(params, *examples),
    }


def make_opacus(params: Tree) -> Any:
    """A model of transformers with the same weights, and Opacus's loss that clips."""
    import transformers
    from opacus.grad_sample import GradSampleModuleFastGradientClipping as Hooked
    from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    config = params["config"]
    module = transformers.BertForSequenceClassification(transformers.BertConfig(**config.to_dict()))
    leaves = {name: leaf for name, leaf in params.items() if name != "config"}
    state = _rename.to_foreign(leaves, FAMILY.dialects[0])
    missing = module.load_state_dict(state, strict=False)
    assert not missing.missing_keys, missing
    hooked = Hooked(module.train(), max_grad_norm=MAX_NORM, use_ghost_clipping=True)
    sgd = torch.optim.SGD(hooked.parameters(), lr=0.0)
    optimizer = DPOptimizerFastGradientClipping(
        sgd, noise_multiplier=0.0, max_grad_norm=MAX_NORM, expected_batch_size=1
    )
    return hooked, DPLossFastGradientClipping(hooked, optimizer, torch.nn.CrossEntropyLoss())


def run_opacus(model: Any, batch: tuple[Tensor, ...]) -> Tensor:
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


def show_exactness() -> None:
    """Compare with materialized gradients in float64, and how far float32 is from that."""
    params = bert.init(make_config(96, 2), random.key(0), heads=(HEAD,))
    batch = (*make_batch(4, 32), random.split(random.key(0), 4))
    wide = tree.cast(params, torch.float64)
    expected = torch.stack(
        [tree.norm(g) for g in tree.unstack(per_example_grads(loss, wide, *batch))]
    )
    for name, given in (("float64", wide), ("float32", params)):
        found = per_example_norms(loss, given, *batch)
        print(f"norms in {name}: {((found - expected) / expected).abs().max():.0e} off")
    print(f"leaves materialized: {sorted(capture(loss, params, *batch).each)}")


def compare_with_opacus(batch: tuple[Tensor, ...], args: argparse.Namespace) -> bool:
    """Time clipped sums of both, and compare their norms without dropout."""
    params = bert.init(make_config(96, 2, 0.0), random.key(0), heads=(HEAD,))
    theirs = run_opacus(make_opacus(params), batch)
    ours = per_example_norms(plain_loss, params, *batch)
    print(f"norms of opacus: {((theirs - ours) / ours).abs().max():.0e} from ours, no dropout")
    params = bert.init(make_config(args.width, args.layers), random.key(0), heads=(HEAD,))
    made = make_opacus(params)
    calls = {
        OPACUS: lambda: run_opacus(made, batch),
        CLIPPED: contenders(params, batch)[CLIPPED],
    }
    taken = take_turns(calls, args.rounds)
    print(row(OPACUS, taken[OPACUS], "s"))
    return judge("speed over opacus", ratios(taken[OPACUS], taken[CLIPPED]), SPEED_BAR)


def show_widths(args: argparse.Namespace, batch: tuple[Tensor, ...]) -> None:
    print("width  norms  clipped sum  memory  (2 layers, of the batch's gradient)")
    for width in args.widths:
        params = bert.init(make_config(width, 2), random.key(0), heads=(HEAD,))
        calls = contenders(params, batch)
        del calls[MATERIALIZED]
        taken = take_turns(calls, args.rounds)
        memory = peak_bytes(calls[CLIPPED]) / peak_bytes(calls[BATCH])
        norms, clipped = (
            statistics.median(ratios(taken[name], taken[BATCH])) for name in (NORMS, CLIPPED)
        )
        print(f"{width:5}  {norms:5.2f}  {clipped:11.2f}  {memory:6.2f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--widths", type=int, nargs="*", default=[96, 192, 384, 768])
    args = parser.parse_args()
    print(
        f"{environment()}, {args.rows} rows of {args.length} tokens, {args.layers} layers of width "
        f"{args.width}, {args.rounds} rounds"
    )
    show_exactness()
    batch = make_batch(args.rows, args.length)
    params = bert.init(make_config(args.width, args.layers), random.key(0), heads=(HEAD,))
    calls = contenders(params, batch)
    taken = take_turns(calls, args.rounds)
    memory = {name: peak_bytes(call) for name, call in calls.items()}
    for name, times in taken.items():
        print(row(name, times, "s", f", {memory[name] / 1e6:.0f} MB"))
    met = []
    for name, bar in TIME_BARS.items():
        met.append(judge(f"{name}, time", ratios(taken[name], taken[BATCH]), bar, at_most=True))
        share = memory[name] / memory[BATCH]
        met.append(judge(f"{name}, memory", [share], MEMORY_BAR, at_most=True))
    show_widths(args, batch)
    if importlib.util.find_spec("opacus") is None:
        print("opacus is not installed: not compared")
    else:
        met.append(compare_with_opacus(batch, args))
    return not all(met)


if __name__ == "__main__":
    sys.exit(main())
