"""Decoding with a GPT-2 of 124 million parameters on a CPU, against what memory allows and peers.

    python benchmarks/decode_gpt2.py

A token reads every weight once. So for each type the script prints the share of the streaming rate
at which weights are read: their bytes over the time of a token, beside the rate of a sum over 500
MB in the same round, with the same threads. Keys and values are read too and do not count: 66 MB at
900 tokens in float32. Beside it run CTranslate2 and ggml (of `ctransformers`), where they are
installed and have the type, and `transformers`.

    compiled    `torch.compile` of `scan` over a `FixedCache`, two tokens a call; the share of
                streaming is its, and so is the comparison with CTranslate2. The first call, which
                compiles, is printed apart.
    eager       token by token, of `pack(for_decoding(...))` in bfloat16, `for_decoding(...)` in
                float32 (with eight texts and for a long prompt packed as well): compared with
                `transformers`, which is not compiled either.

Set OMP_WAIT_POLICY=active before the start where nothing else runs: threads then do not sleep
between operations. All sides hold random weights of the true sizes.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _decode_peers import Peers, all_peers, of_module
from _harness import environment, judge, ratios, seconds, take_turns
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.generate import advance, scan, start
from fnlm.layers.kv_cache import FixedCache
from fnlm.leaves import pack, quantize
from fnlm.params.layout import for_decoding

SHARES = {"float32": 0.8, "bfloat16": 0.6, "8 bits": 0.5, "4 bits": 0.4}
BECAUSE = (
    "keys and values are read beside the weights (the next row counts them), and a call's own cost "
    "and the operations between the products are part of a token; tried: more tokens a call, which "
    "compile a minute longer for little, and sums in place of attention's products"
)
UNPACKING = "; to unpack 4 bits takes arithmetic, so that torch's kernel is slower than memory"
WIDE = (
    "an eager token is hundreds of small operations, which both sides have; compiled, most are gone"
)
EAGER = {"float32": 1.15, "bfloat16": 2.0}  # times the speed of `transformers`


def matrices(path: str, leaf: Any) -> bool:
    """Select what a token reads: weights and the table of tokens."""
    return leaf.ndim == 2 and path != "embed.position"


def weight_bytes(params: Any) -> int:
    """Return the bytes that a token reads of the parameters."""
    named = tree.named_leaves(params)
    return sum(x.numel() * x.itemsize for path, x in named if path != "embed.position")


def forms(params: Any) -> dict[str, Any]:
    """Return the parameters in each type, laid out for decoding."""
    half = tree.cast(params, torch.bfloat16)
    return {
        "float32": for_decoding(params),
        "bfloat16": for_decoding(half),
        "8 bits": quantize(half, bits=8, where=matrices),
        "4 bits": quantize(half, bits=4, where=matrices),
    }


def eager(params: Any, ids: Tensor, tokens: int) -> Callable[[], float]:
    """Return a function that decodes from a prompt, and returns the seconds of a token."""
    prompt = start(gpt2.apply, params, ids, prefill=gpt2.hidden_states)

    def run() -> float:
        state, took = prompt, []
        for _ in range(tokens):
            begin = time.perf_counter()
            state = advance(gpt2.apply, params, state, state.logits.argmax(-1))
            took.append(time.perf_counter() - begin)
        return statistics.median(took)

    return run


def compiled(fast: Any, params: Any, ids: Tensor, tokens: int, call: int) -> Callable[[], float]:
    """Return the same for a compiled `scan`, of some tokens a call, over a fixed cache."""
    tokens += -tokens % call
    capacity = -(-(ids.shape[1] + tokens) // 64) * 64
    empty = gpt2.init_cache(params, ids.shape[0], capacity)
    prompt = start(gpt2.apply, params, ids, empty, prefill=gpt2.hidden_states)
    cache = prompt.cache
    assert isinstance(cache, FixedCache)
    for x, axis in ((cache.valid, 1), *((x, 2) for x in (*cache.keys, *cache.values))):
        torch._dynamo.mark_dynamic(x, axis)  # the capacity: one graph for all contexts
    length, valid = cache.length.clone(), cache.valid.clone()

    def run() -> float:
        cache.length.copy_(length)  # back to the prompt
        cache.valid.copy_(valid)
        state, took = prompt, []
        for _ in range(tokens // call):
            begin = time.perf_counter()
            state, _ = fast(params, state)
            took.append((time.perf_counter() - begin) / call)
        return statistics.median(took)

    return run


def report(
    name: str, context: int, params: Any, taken: dict[str, list[float]], nbytes: int
) -> None:
    """Print the rows of one type and context."""
    streaming = [nbytes / t for t in taken.pop("stream")]
    size, gb = weight_bytes(params), statistics.median(streaming) / 1e9
    config, width = params["config"], params["embed"]["position"].itemsize
    cached = 2 * config.n_layer * context * config.n_embd * width  # bytes of keys and values
    print(f"{name}, {context} tokens of context, {size / 1e6:.0f} MB; streaming {gb:.1f} GB/s")
    for side, times in taken.items():
        print(f"  {side:14} {1e3 * statistics.median(times):.2f} ms a token")
    what, because = f"{name} context {context}", BECAUSE + UNPACKING * (name == "4 bits")
    for side, bar, read, counted in (
        ("compiled", SHARES[name], size, ""),
        ("compiled", None, size + cached, ", with keys and values"),
        ("eager", None, size, ""),
    ):
        shares = [read / t / rate for t, rate in zip(taken[side], streaming, strict=True)]
        judge(f"{what}: share of streaming, {side}{counted}", shares, bar, because=because)
    if "CTranslate2" in taken:
        found = ratios(taken["CTranslate2"], taken["compiled"])
        judge(f"{what}: compiled, speed to that of CTranslate2", found, 1.0)
    if "ggml" in taken:
        judge(f"{what}: compiled, speed to that of ggml", ratios(taken["ggml"], taken["compiled"]))
    if "transformers" in taken:
        found, bar = ratios(taken["transformers"], taken["eager"]), EAGER[name]
        judge(f"{what}: eager, speed to that of transformers", found, bar, because=WIDE)


def batches(laid: Any, peer: Any, rounds: int, context: int) -> None:
    """Print the rows of eight texts at once, and of reading a long prompt."""
    ids = prompts(8, 32)
    calls = {"fnlm": eager(laid, ids, 8), "transformers": of_module(peer, ids, 8)}
    taken = take_turns(calls, rounds, timer=lambda call: call())
    found = ratios(taken["transformers"], taken["fnlm"])
    judge("float32 batch 8: speed to that of transformers", found, 1.3)
    ids = prompts(1, context)
    reads: dict[str, Callable[[], object]] = {
        "fnlm": lambda: start(gpt2.apply, laid, ids, prefill=gpt2.hidden_states),
        "transformers": lambda: peer(ids, use_cache=True, logits_to_keep=1),
    }
    taken = take_turns(reads, rounds)
    found = ratios(taken["transformers"], taken["fnlm"])
    judge(f"float32 prompt of {context} tokens: speed to that of transformers", found, 1.2)


def prompts(rows: int, length: int) -> Tensor:
    """Return random ids [rows, length]."""
    return (random.uniform(random.key(1), (rows, length)) * 50257).long()


def one_type(
    name: str, params: Any, args: argparse.Namespace, peers: Peers
) -> dict[str, list[float]]:
    """Print the rows of one type; return the last times."""
    big = torch.ones(args.megabytes * 250_000)
    decode = partial(scan, gpt2.apply, steps=args.call, donate=True)
    fast, taken = torch.compile(decode), {}
    laid = pack(params) if name == "bfloat16" else params
    for context in args.contexts:
        ids = prompts(1, context)
        calls = {
            "stream": lambda: statistics.median(seconds(big.sum) for _ in range(args.tokens)),
            "eager": eager(laid, ids, args.tokens),
            "compiled": compiled(fast, params, ids, args.tokens, args.call),
        }
        first = seconds(calls["compiled"])
        print(f"{name}, {context} tokens of context: first run, compiled, {first:.0f} s")
        calls |= peers.calls(name, ids, args.tokens)
        # Until no thread of the one before waits actively.
        rest = dict.fromkeys(calls, partial(time.sleep, args.rest))
        taken = take_turns(calls, args.rounds, timer=lambda call: call(), prepare=rest)
        report(name, context, params, dict(taken), big.nbytes)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=12, help="decoded in each round")
    parser.add_argument("--call", type=int, default=2, help="of these, by a compiled call")
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 900])
    parser.add_argument("--types", nargs="+", choices=SHARES, default=[*SHARES])
    parser.add_argument("--quick", action="store_true", help="one block, two types, few rounds")
    args = parser.parse_args()
    args.megabytes, args.rest = (100, 0.0) if args.quick else (500, 0.3)
    if args.quick:
        args.rounds, args.tokens, args.call, args.contexts = 2, 4, 1, args.contexts[:1]
        args.types = [name for name in args.types if name in ("float32", "8 bits")]

    print(f"{environment('transformers')}, {torch.backends.cpu.get_cpu_capability()}")
    params = gpt2.init(gpt2.Config(n_layer=1 if args.quick else 12), random.key(0))
    eager_times = {}
    with torch.no_grad(), all_peers(params) as peers:
        for name, form in forms(params).items():
            if name in args.types:
                eager_times[name] = one_type(name, form, args, peers)["eager"]
                if name == "float32":
                    length = 100 if args.quick else 900
                    batches(pack(form), peers.module, args.rounds, length)
    if {"float32", "bfloat16"} <= eager_times.keys():
        found = ratios(eager_times["float32"], eager_times["bfloat16"])
        judge("bfloat16: speed / float32's", found, 1.0)


if __name__ == "__main__":
    main()
