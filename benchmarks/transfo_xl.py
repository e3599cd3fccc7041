"""Claim: losses with memories come 1.2 times as fast as in pytorch-pretrained-bert 0.6.2.

    python benchmarks/transfo_xl.py --rounds 5

Claims: losses with memories come at least 1.3 times as fast as pytorch-pretrained-bert's, whose
byte masks are made boolean, from the same random weights; both run in this process, in alternation,
and the ratio is the median of the ratios of neighbours. With `--large`, 100,000 tokens are
evaluated with the adaptive vocabulary of 267,735 words of the WikiText-103 model, below 4 GB of
memory; `--layers` and `--tokens` make that run shorter.
"""

import argparse
import resource
import statistics
import sys
import time
import warnings
from typing import Any
from unittest import mock

import torch
from _harness import arguments, environment, is_installed, judge, ratios, take_turns
from torch import Tensor

from fnlm import random, transfo_xl
from fnlm.params import _rename
from fnlm.params.names.transfo_xl import FAMILY

BAR = 1.3
LARGE_BAR = 4.0  # GB
PEER = "pytorch-pretrained-bert"
SIZES: dict[str, Any] = {
    "n_layer": 6,
    "d_model": 256,
    "d_embed": 256,
    "n_head": 8,
    "d_head": 32,
    "d_inner": 1024,
}


def peer_of(params: Any) -> Any:
    """pytorch-pretrained-bert's model with the same weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_pretrained_bert import modeling_transfo_xl as peer

        config = peer.TransfoXLConfig.from_dict(params["config"].to_dict())
        module = peer.TransfoXLLMHeadModel(config).eval()
    leaves = {name: leaf for name, leaf in params.items() if name != "config"}
    module.load_state_dict(_rename.to_foreign(leaves, FAMILY.dialects[1]), strict=False)
    return module


def ours(params: Any, segments: list[Tensor]) -> float:
    total, mems = 0.0, None
    for words in segments:
        losses, mems = transfo_xl.negative_log_likelihood(
            params, words[:, :-1], words[:, 1:], mems, sparse=True
        )
        total += losses.double().sum().item()
    return total


def theirs(module: Any, segments: list[Tensor]) -> float:
    total, mems = 0.0, None
    with mock.patch.object(torch.Tensor, "byte", torch.Tensor.bool):
        for words in segments:
            ids, targets = words[:, :-1].contiguous(), words[:, 1:].contiguous()
            losses, mems = module(ids, targets, mems)
            total += losses.double().sum().item()
    return total


def compare(args: argparse.Namespace) -> bool:
    config = transfo_xl.Config(
        n_token=20_000, cutoffs=(2_000, 8_000), mem_len=args.memory, clamp_len=400, **SIZES
    )
    params = transfo_xl.init(config, random.key(0))
    module = peer_of(params)
    chances = -torch.arange(2.0, config.n_token + 2).log()  # Zipf
    words = random.categorical(
        random.key(1), chances.expand(args.rows, args.segments * args.length + 1, -1)
    )
    segments = [words[:, i * args.length : (i + 1) * args.length + 1] for i in range(args.segments)]
    results: dict[str, float] = {}

    def note(name: str, run: Any, model: Any) -> None:
        results[name] = run(model, segments)

    taken = take_turns(
        {"fnlm": lambda: note("fnlm", ours, params), PEER: lambda: note(PEER, theirs, module)},
        args.rounds,
    )
    assert abs(results["fnlm"] - results[PEER]) < 1e-5 * abs(results[PEER]), results
    tokens = args.rows * args.segments * args.length
    fast, slow = (tokens / statistics.median(times) for times in taken.values())
    print(f"{fast:.0f} tokens/s, {PEER} {slow:.0f}")
    what = f"batch {args.rows}, segments of {args.length}, memory {args.memory}: speed / {PEER}'s"
    return judge(what, ratios(taken[PEER], taken["fnlm"]), BAR)


def peak() -> float:
    """The most memory this process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def large(args: argparse.Namespace) -> bool:
    """Evaluate in segments, and print the peak as it goes: it must not grow."""
    config = transfo_xl.Config(n_layer=args.layers, mem_len=args.memory)
    params = transfo_xl.init(config, random.key(0))
    print(f"{args.layers} layers, {config.n_token:,} words: {peak():.2f} GB with the weights")
    mems, total, start = None, 0.0, time.perf_counter()
    steps = args.tokens // args.length
    for step in range(steps):
        draws = random.uniform(random.fold_in(random.key(1), step), (1, args.length + 1))
        words = (config.n_token**draws).long() - 1  # log-uniform: every cluster is in use
        losses, mems = transfo_xl.negative_log_likelihood(
            params, words[:, :-1], words[:, 1:], mems, sparse=not args.dense
        )
        total += losses.sum().item()
        if step + 1 in (1, steps // 4, steps // 2, steps):
            done = (step + 1) * args.length
            rate = done / (time.perf_counter() - start)
            print(f"{done:,} tokens: peak {peak():.2f} GB, {rate:.0f} tokens/s", flush=True)
    return judge("peak of the process, in GB", [peak()], LARGE_BAR, at_most=True) and total > 0


def main() -> int:
    parser = arguments(__doc__, rounds=9)
    parser.add_argument("--rows", type=int, default=4, help="batch size")
    parser.add_argument("--length", type=int, default=64, help="tokens of a segment")
    parser.add_argument("--segments", type=int, default=4)
    parser.add_argument("--memory", type=int, default=128)
    parser.add_argument("--large", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--dense", action="store_true", help="use the dense implementation")
    args = parser.parse_args()
    print(environment(PEER))
    if not args.large and not is_installed("pytorch_pretrained_bert"):
        return 0
    with torch.no_grad():
        return not (large if args.large else compare)(args)


if __name__ == "__main__":
    sys.exit(main())
