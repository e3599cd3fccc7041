"""Claim: per-example gradients of BERT come faster than by the hooks of Opacus.

A classifier of 6 layers of width 384 reads 8 rows of 128 tokens, every other one padded, in
float32; the gradients are those of every parameter. Both sides have the same weights and their own
dropout, and alternate in one process; the ratio is the median of the ratios of neighbours. The
gradient of the batch is shown beside them: no per-example gradient takes less.

First the gradients are compared, without dropout. BERT looks its positions up once for all rows,
which the hooks don't see through: they need position ids for each row, which the benchmark gives.
How large the difference is otherwise is printed, too, and whether the hooks can do masked LM,
whose scores use the table of the embeddings a second time.
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import Any

import opacus
import torch
import transformers
from _harness import Call, Times, environment, judge, ratios, row, take_turns
from torch import Tensor
from torch.func import vmap

from fnlm import bert, random, transforms
from fnlm.params import _rename, io
from fnlm.params.names.bert import FAMILY
from fnlm.train import losses
from fnlm.transforms import per_example_grads
from fnlm.tree import Tree

BAR = 1.0
PEER, OURS = "opacus", "fnlm"
CLASSIFY, MASKED_LM = "sequence_classification", "masked_lm"
MODULES = {
    CLASSIFY: transformers.BertForSequenceClassification,
    MASKED_LM: transformers.BertForMaskedLM,
}
Batch = tuple[Tensor, ...]  # ids, token types, mask, labels


def make_models(head: str, layers: int, dropout: float) -> tuple[Any, Tree]:
    """A model of transformers with the hooks, and its weights as our parameters."""
    config = bert.Config(
        hidden_size=384, num_hidden_layers=layers, intermediate_size=1536,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    module = MODULES[head](transformers.BertConfig(**config.to_dict())).train()
    state = {name: x.detach().clone() for name, x in module.state_dict().items()}
    params = io.assemble(state, config, FAMILY, bert.spec, heads=[head])
    return opacus.GradSampleModule(module), params


def make_batch(head: str, rows: int, length: int) -> Batch:
    ids = torch.randint(bert.Config().vocab_size, (rows, length))
    mask = torch.ones_like(ids)
    mask[::2, length * 3 // 4 :] = 0
    labels = torch.randint(2, (rows,)) if head == CLASSIFY else ids
    return ids, torch.zeros_like(ids), mask, labels


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


def loss_of(head: str) -> Callable[..., Tensor]:
    def loss(params: Tree, *example: Tensor, key: Tensor | None = None) -> Tensor:
        *given, labels = example
        return losses.cross_entropy(getattr(bert, head)(params, *given, key=key), labels)

    return loss


def difference(head: str, batch: Batch, *, positions: bool) -> str:
    """Say how far the two are from each other, without dropout."""
    module, params = make_models(head, 2, 0.0)
    ours = per_example_grads(loss_of(head), params, *batch)
    leaves = {name: value for name, value in ours.items() if name != "config"}
    mine = vmap(lambda one: _rename.to_foreign(one, FAMILY.dialects[0]))(leaves)
    try:
        found = theirs(module, batch, positions=positions)
    except RuntimeError as error:
        return f"opacus can't: {error}"
    wrong = [name for name, x in found.items() if x.shape != mine[name].shape]
    rest = max(
        (x - mine[name]).abs().max().item() for name, x in found.items() if name not in wrong
    )
    return f"at most {rest:.0e} apart" + "".join(f", {name} of another shape" for name in wrong)


def measure(batch: Batch, layers: int, rounds: int) -> Times:
    """Seconds of each contender."""
    module, params = make_models(CLASSIFY, layers, 0.1)
    loss, keys = loss_of(CLASSIFY), random.split(random.key(0), len(batch[0]))

    def example(params: Tree, *given: Tensor) -> Tensor:
        return loss(params, *given[:-1], key=given[-1])

    contenders: dict[str, Call] = {
        PEER: lambda: theirs(module, batch),
        OURS: lambda: per_example_grads(example, params, *batch, keys),
        "fnlm, the batch": lambda: transforms.grad(example)(params, *batch, keys),
    }
    return take_turns(contenders, rounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    print(
        f"{environment('opacus', 'transformers')}, {args.rows} rows of {args.length} tokens, "
        f"{args.layers} layers, {args.rounds} rounds"
    )
    batch = make_batch(CLASSIFY, args.rows, args.length)
    print("classes:", difference(CLASSIFY, batch, positions=True))
    print("classes, no position ids:", difference(CLASSIFY, batch, positions=False))
    words = make_batch(MASKED_LM, 2, 9)
    print("masked LM:", difference(MASKED_LM, words, positions=True))
    taken = measure(batch, args.layers, args.rounds)
    for name, times in taken.items():
        print(row(name, times, "s"))
    found = ratios(taken[PEER], taken[OURS])
    return not judge("times the speed of opacus", found, BAR)


if __name__ == "__main__":
    sys.exit(main())
