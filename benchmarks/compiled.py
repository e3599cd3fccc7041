"""Claim: compiled, a step of BERT is no slower than the peer's, and faster than it is uncompiled.

A step is the loss of sequence classification on [8, 128] and its gradients by all parameters,
without dropout, from the same random weights of BERT base. fnlm's is `torch.compile` of
`grad_and_value`, in one graph; the peer's, `backward()` through the compiled module of
`transformers`. All run in turns in one process; a ratio is the median of those of neighbours, and
the losses must agree. A further batch of the same shape must compile nothing again.
"""

import argparse
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from _harness import environment, judge, ratios, row, take_turns
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fnlm import bert, transforms
from fnlm.params import io
from fnlm.params.names.bert import FAMILY
from fnlm.train import losses

PEER_BAR, EAGER_BAR = 1.0, 1.15
BECAUSE = (
    "what the compiled step does in the same way takes most of the eager one (the next rows); its "
    "attention, in products with a softmax between, takes about as long as the eager kernels do"
)
# By what torch's profiler calls it: the parts of an eager step that compiling does not change.
SAME = {
    "products by oneDNN": ("mkldnn::_linear_pointwise",),
    "copies for them, zeros of the tables' gradients": (
        "aten::copy_",
        "aten::fill_",
        "aten::zero_",
    ),
    "attention's kernels": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
}
COMPILED = {"attention's products": ("aten::bmm", "aten::baddbmm")}


def contenders(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    config = bert.Config(num_hidden_layers=args.layers, num_labels=3)
    sizes = transformers.BertConfig(**config.to_dict())
    module = transformers.BertForSequenceClassification(sizes).eval()
    state = {name: x.detach() for name, x in module.state_dict().items()}
    heads = ("sequence_classification",)
    params = io.assemble(state, config, FAMILY, bert.spec, heads=heads)
    ids = torch.randint(config.vocab_size, (args.rows, args.length))
    types, mask, labels = torch.zeros_like(ids), torch.ones_like(ids), torch.arange(args.rows) % 3
    mask[::2, args.length * 3 // 4 :] = 0

    def loss(params: bert.Params, *batch: Tensor) -> Tensor:
        return losses.cross_entropy(bert.sequence_classification(params, *batch[:3]), batch[3])

    gradients = transforms.grad_and_value(loss)
    compiled, peer_compiled = torch.compile(gradients, fullgraph=True), torch.compile(module)

    def ours(step: Any) -> Any:
        return lambda: float(step(params, ids, types, mask, labels)[1])

    def theirs(model: Any) -> Any:
        def step() -> float:
            given = {"attention_mask": mask, "token_type_ids": types, "labels": labels}
            result = model(ids, **given).loss
            result.backward()
            module.zero_grad(set_to_none=True)
            return float(result.detach())

        return step

    return {
        "transformers": theirs(module),
        "transformers, compiled": theirs(peer_compiled),
        "fnlm": ours(gradients),
        "fnlm, compiled": ours(compiled),
    }


def judge_shares(name: str, step: Any, parts: Mapping[str, tuple[str, ...]]) -> None:
    """Print the shares of a step's time that some parts take, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        step()
    took = {each.key: each.self_cpu_time_total for each in found.key_averages()}
    whole = sum(took.values())
    for part, keys in parts.items():
        judge(f"{name}: share of {part}", [sum(took.get(key, 0) for key in keys) / whole])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4, help="compiling takes time by layer")
    parser.add_argument("--quick", action="store_true", help="1 layer and 3 rounds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.layers = 3, 1
    print(
        f"{environment('transformers')}, [{args.rows}, {args.length}], {args.layers} layers, "
        f"{args.rounds} rounds"
    )
    calls = contenders(args)
    losses_of = {name: call() for name, call in calls.items()}
    if not all(math.isclose(x, losses_of["fnlm"], rel_tol=1e-5) for x in losses_of.values()):
        raise ValueError(f"the contenders compute different losses: {losses_of}")
    with torch.compiler.set_stance("fail_on_recompile"):
        taken = take_turns(calls, args.rounds, order="both")
    for name, times in taken.items():
        print(row(name, times))
    compiled = taken["fnlm, compiled"]
    to_peer = ratios(taken["transformers, compiled"], compiled)
    met = judge("compiled: fnlm / the peer's speed", to_peer, PEER_BAR)
    found = ratios(taken["fnlm"], compiled)
    met &= judge("fnlm: compiled / eager speed", found, EAGER_BAR, because=BECAUSE)
    judge_shares("fnlm, eager", calls["fnlm"], SAME)
    judge_shares("fnlm, compiled", calls["fnlm, compiled"], COMPILED)
    return not met


if __name__ == "__main__":
    sys.exit(main())
