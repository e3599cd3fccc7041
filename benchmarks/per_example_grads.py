"""Claim: per-example gradients take at most 1.6 times a batch's, and less than Opacus's hooks do.

GPT-2 with 6 layers of width 384 and the full vocabulary, tied, reads 16 rows of 128 tokens; a BERT
classifier of the same size 8 rows, every other one padded, with dropout; float32, every parameter.

Physical limit: both multiply the same numbers. Per-example gradients write B times the memory of
the parameters, which has to be fresh; the benchmark measures what that costs on this machine by
filling new tensors of these sizes. `per_example_grads` writes each gradient once, where it belongs;
`vmap(grad)`, which gives the same, fills several buffers of B times the size of a tied table.

Against Opacus the gradients are compared first, without dropout. BERT looks its positions up once
for all rows, which the hooks don't see through: they need position ids for each row, which the
benchmark gives. How large the difference is otherwise is printed, too, and whether the hooks can
do masked LM, whose scores use the table of the embeddings a second time.
"""

import argparse
import math
import sys
import warnings
from typing import Any

import torch
from _classifier import HEAD, Batch, loss, make_batch, make_params, make_peer, plain_loss
from _harness import Call, arguments, environment, is_installed, judge, ratios, row, take_turns
from torch import Tensor
from torch.func import grad, vmap

from fnlm import bert, gpt2, random, transforms, tree
from fnlm.params import _rename
from fnlm.params.names.bert import FAMILY
from fnlm.train import losses
from fnlm.transforms import per_example_grads
from fnlm.tree import Tree

BAR, SPEED_BAR = 1.6, 1.0
BATCH, CHUNKS, AT_ONCE = "gradient of the batch", "per-example, in chunks", "per-example, at once"
VMAP, FRESH, PEER = "vmap of grad", "fresh memory for them", "opacus"


def language_model(params: Tree, ids: Tensor) -> Tensor:
    return losses.language_model(gpt2.apply(params, ids)[0], ids)


def masked_lm(params: Tree, *example: Tensor) -> Tensor:
    *given, labels = example
    return losses.cross_entropy(bert.masked_lm(params, *given), labels)


def compare_with_the_batch(args: argparse.Namespace) -> bool:
    config = gpt2.Config(
        vocab_size=args.vocab_size, n_positions=128, n_embd=384, n_layer=6, n_head=6
    )
    params, rows = gpt2.init(config, random.key(0)), args.rows
    count = sum(math.prod(leaf.shape) for leaf in tree.leaves(params))
    print(f"GPT-2: {count / 1e6:.1f} million parameters, {4e-9 * rows * count:.2f} GB of gradients")
    ids = (random.uniform(random.key(1), (rows, 128)) * config.vocab_size).long()
    each: dict[str, Call] = {
        BATCH: lambda: grad(language_model)(params, ids),
        CHUNKS: lambda: per_example_grads(
            language_model, params, ids, chunk_size=max(1, rows // 4)
        ),
        AT_ONCE: lambda: per_example_grads(language_model, params, ids),
        VMAP: lambda: vmap(grad(language_model), (None, 0))(params, ids),
        FRESH: lambda: tree.map(lambda p: torch.ones(rows, *p.shape), params),
    }
    taken = take_turns(each, args.rounds)
    for name, times in taken.items():
        print(row(name, times, "s"))
    judge(f"GPT-2: {FRESH} / the batch", ratios(taken[FRESH], taken[BATCH]))
    judge(f"GPT-2: {VMAP} / the batch", ratios(taken[VMAP], taken[BATCH]))
    met = True
    for name, label in ((AT_ONCE, "at once"), (CHUNKS, "in chunks")):
        found = ratios(taken[name], taken[BATCH])
        met &= judge(f"GPT-2: per-example {label} / the batch", found, BAR, at_most=True)
    return met


def hooks_of(params: Tree, kind: str) -> Any:
    """Return a model of transformers with Opacus's hooks."""
    import opacus

    return opacus.GradSampleModule(make_peer(params, kind))


def theirs(module: Any, batch: Batch, *, positions: bool = True) -> dict[str, Tensor]:
    """Return the gradients by the names of the module."""
    ids, types, mask, labels = batch
    given = {"position_ids": torch.arange(ids.shape[1]).expand(ids.shape)} if positions else {}
    logits = module(input_ids=ids, token_type_ids=types, attention_mask=mask, **given).logits
    with warnings.catch_warnings():  # about its own hooks on the embeddings
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        losses.cross_entropy(logits, labels).backward()
    found = {n.removeprefix("_module."): p.grad_sample for n, p in module.named_parameters()}
    module.zero_grad(set_to_none=True)
    return found


def difference(kind: str, head: str, batch: Batch, *, positions: bool) -> str:
    """Say how far the two are from each other, without dropout."""
    params = make_params(96, 2, 0.0, head)
    ours = per_example_grads(masked_lm if head == "masked_lm" else plain_loss, params, *batch)
    leaves = {name: value for name, value in ours.items() if name != "config"}
    mine = vmap(lambda one: _rename.to_foreign(one, FAMILY.dialects[0]))(leaves)
    try:
        found = theirs(hooks_of(params, kind), batch, positions=positions)
    except RuntimeError as error:
        return f"opacus can't: {error}"
    wrong = [name for name, x in found.items() if x.shape != mine[name].shape]
    rest = max(
        (x - mine[name]).abs().max().item() for name, x in found.items() if name not in wrong
    )
    return f"at most {rest:.0e} apart" + "".join(f", {name} of another shape" for name in wrong)


def compare_with_opacus(args: argparse.Namespace) -> bool:
    batch = make_batch(max(1, args.rows // 2), 128)
    classify = "BertForSequenceClassification"
    print("classes:", difference(classify, HEAD, batch, positions=True))
    print("classes, no position ids:", difference(classify, HEAD, batch, positions=False))
    ids, types, mask, _ = make_batch(2, 9)
    words = ids, types, mask, ids
    print("masked LM:", difference("BertForMaskedLM", "masked_lm", words, positions=True))
    params = make_params(384, 1 if args.quick else 6)
    module, keys = hooks_of(params, classify), random.split(random.key(0), len(batch[0]))
    calls: dict[str, Call] = {
        PEER: lambda: theirs(module, batch),
        CHUNKS: lambda: per_example_grads(loss, params, *batch, keys),
        BATCH: lambda: transforms.grad(loss)(params, *batch, keys),
    }
    taken = take_turns(calls, args.rounds)
    judge("BERT: per-example / the batch", ratios(taken[CHUNKS], taken[BATCH]))
    return judge("BERT: times the speed of opacus", ratios(taken[PEER], taken[CHUNKS]), SPEED_BAR)


def main() -> int:
    parser = arguments(__doc__, rounds=5, quick=1)
    parser.add_argument("--vocab-size", type=int, default=50257)
    parser.add_argument("--rows", type=int, default=16)
    args = parser.parse_args()
    if args.quick:
        args.vocab_size, args.rows = 5000, 4
    print(f"{environment('opacus', 'transformers')}, {args.rounds} rounds")
    met = compare_with_the_batch(args)
    if is_installed("opacus", "transformers"):
        met &= compare_with_opacus(args)
    return not met


if __name__ == "__main__":
    sys.exit(main())
