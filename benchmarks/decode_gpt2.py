"""Decoding with a GPT-2 of 124 million parameters on a CPU, against what memory allows and peers.

    python benchmarks/decode_gpt2.py

A token reads every weight once. So for each type the script prints the share of the streaming rate
at which weights are read: their bytes (a table that is there twice counts once) over the time of a
token, beside the rate of a sum over 500 MB in the same round, with the same threads. Beside it run
CTranslate2, where it is installed and has the type, and `transformers`.

    float32      eager, `for_decoding`; with eight texts and for a long prompt packed as well
    bfloat16     eager, `pack(for_decoding(...))`
    8, 4 bits    `torch.compile` of a step over a `FixedCache`; its start-up is printed apart

Set OMP_WAIT_POLICY=active before the start where nothing else runs: threads then do not sleep
between operations. All sides hold random weights of the true sizes.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from _harness import environment, judge, ratios, seconds, take_turns
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.generate import State, advance, start
from fnlm.heads import tied_logits
from fnlm.layers import linear
from fnlm.layers.kv_cache import FixedCache
from fnlm.leaves import pack, quantize
from fnlm.params.layout import for_decoding

SHARES = {"float32": 0.8, "bfloat16": 0.6, "8 bits": 0.5, "4 bits": 0.4}
PEER_TYPES = {"float32": "float32", "bfloat16": "bfloat16", "8 bits": "int8"}
CAPACITY = 960


def matrices(path: str, leaf: Any) -> bool:
    """Select what a token reads: weights and the table of tokens."""
    return leaf.ndim == 2 and path != "embed.position"


def weight_bytes(params: Any) -> int:
    """Return the bytes that a token reads of the parameters."""
    twice = "embed.token.rows"  # of a packed table, whose rows are looked up one at a time
    named = tree.named_leaves(params)
    return sum(x.numel() * x.itemsize for path, x in named if path not in ("embed.position", twice))


def forms(params: Any) -> dict[str, Any]:
    """Return the parameters in each type."""
    half = tree.cast(params, torch.bfloat16)
    return {
        "float32": for_decoding(params),
        "bfloat16": pack(for_decoding(half)),
        "8 bits": quantize(half, bits=8, where=matrices),
        "4 bits": quantize(half, bits=4, where=matrices),
    }


def step(params: Any, state: State, ids: Tensor) -> State:
    """Read one token, in the memory of the state before."""
    return advance(gpt2.apply, params, state, ids, donate=True)


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


def compiled(fast: Any, params: Any, ids: Tensor, tokens: int) -> Callable[[], float]:
    """Return the same for a compiled step over a fixed cache, whose length each run sets back."""
    empty = gpt2.init_cache(params, ids.shape[0], CAPACITY)
    prompt = start(gpt2.apply, params, ids, empty, prefill=gpt2.hidden_states)
    assert isinstance(prompt.cache, FixedCache)
    length, valid = prompt.cache.length.clone(), prompt.cache.valid.clone()

    def run() -> float:
        prompt.cache.length.copy_(length)
        prompt.cache.valid.copy_(valid)
        state, took = prompt, []
        for _ in range(tokens):
            begin = time.perf_counter()
            state = fast(params, state, state.logits.argmax(-1))
            took.append(time.perf_counter() - begin)
        return statistics.median(took)

    return run


def products(params: Any) -> Callable[[], float]:
    """Return a function that makes the matrix products of a token, and returns their seconds."""
    x = {n: torch.ones(1, 1, n) for n in (params["config"].n_embd, 4 * params["config"].n_embd)}
    table = params["embed"]["token"]
    x = {n: values.to(table.dtype) for n, values in x.items()}
    halves = [block[half] for block in params["blocks"] for half in ("attention", "mlp")]
    layers = [layer for half in halves for layer in half.values()]

    def run() -> float:
        begin = time.perf_counter()
        for layer in layers:
            linear(x[layer["weight"].shape[0]], **layer)
        tied_logits(x[table.shape[1]], table)
        return time.perf_counter() - begin

    return run


def hugging_face(params: Any, dtype: torch.dtype, directory: str) -> Any:
    """Return the same weights as a module of `transformers`; they stay in the directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        gpt2.save(params, directory)
        return transformers.GPT2LMHeadModel.from_pretrained(directory, dtype=dtype).eval()


def of_peer(peer: Any, ids: Tensor, tokens: int) -> Callable[[], float]:
    """Return the seconds of a token of `transformers`, by its own forward function and cache."""

    def run() -> float:
        out = peer(ids, use_cache=True, logits_to_keep=1)
        took = []
        for _ in range(tokens):
            begin = time.perf_counter()
            last = out.logits[:, -1:].argmax(-1)
            out = peer(last, past_key_values=out.past_key_values, use_cache=True)
            took.append(time.perf_counter() - begin)
        return statistics.median(took)

    return run


@contextmanager
def ctranslate2_model(directory: str) -> Iterator[str | None]:
    """Yield the folder of a CTranslate2 model of what `transformers` saved; None without it."""
    try:
        from ctranslate2.converters import TransformersConverter
    except ImportError:
        print("CTranslate2 is not installed: its rows are left out (pip install ctranslate2)")
        yield None
        return

    class Words:
        unk_token = bos_token = eos_token = "0"

        def get_vocab(self) -> dict[str, int]:
            return {str(n): n for n in range(50257)}

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = TransformersConverter(directory)
        converter.load_tokenizer = lambda *args, **kwargs: Words()
        converter.convert(folder, force=True)
        yield folder


def of_ctranslate2(folder: str, name: str, ids: Tensor, tokens: int) -> Callable[[], float] | None:
    """Return the seconds of a token of CTranslate2; None where it lacks the type on this CPU."""
    import ctranslate2

    kind = PEER_TYPES.get(name)
    if kind not in ctranslate2.get_supported_compute_types("cpu"):
        return None
    threads = torch.get_num_threads()
    model = ctranslate2.Generator(folder, compute_type=kind, intra_threads=threads)
    prompt = [[str(n) for n in row] for row in ids.tolist()]

    def run() -> float:
        times: list[float] = []

        def note(result: object) -> bool:
            times.append(time.perf_counter())
            return False

        model.generate_batch(
            prompt, max_length=tokens + 1, min_length=tokens + 1, sampling_topk=1,
            include_prompt_in_result=False, cache_static_prompt=False,
            callback=note,
        )  # fmt: skip
        return statistics.median(b - a for a, b in zip(times, times[1:], strict=False))

    return run


def report(name: str, context: int, size: int, taken: dict[str, list[float]], nbytes: int) -> None:
    """Print the rows of one type and context."""
    streaming = [nbytes / t for t in taken.pop("stream")]
    gb = statistics.median(streaming) / 1e9
    print(f"{name}, {context} tokens of context, {size / 1e6:.0f} MB; streaming {gb:.1f} GB/s")
    for side, times in taken.items():
        print(f"  {side:14} {1e3 * statistics.median(times):.2f} ms a token")
    ours = "compiled" if "bits" in name else "eager"
    shares = [size / t / rate for t, rate in zip(taken[ours], streaming, strict=True)]
    judge(f"{name} context {context}: share of streaming", shares, SHARES[name])
    if "products" in taken:
        shares = [size / t / rate for t, rate in zip(taken["products"], streaming, strict=True)]
        judge(f"{name} context {context}: share of streaming, products alone", shares)
    for peer, bar in (("CTranslate2", 1.0), ("transformers", 1.15 if name == "float32" else 2.0)):
        if peer in taken:
            found = ratios(taken[peer], taken[ours])
            judge(f"{name} context {context}: speed to that of {peer}", found, bar)


def batches(laid: Any, peer: Any, rounds: int, context: int) -> None:
    """Print the rows of eight texts at once, and of reading a long prompt."""
    ids = prompts(8, 32)
    calls = {"fnlm": eager(laid, ids, 8), "transformers": of_peer(peer, ids, 8)}
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
    name: str, params: Any, contexts: list[int], args: argparse.Namespace, peer: Any,
    folder: str | None,
) -> dict[str, list[float]]:  # fmt: skip
    """Print the rows of one type; return the last times."""
    big = torch.ones(args.megabytes * 250_000)
    fast, taken = torch.compile(step, dynamic=False), {}
    for context in contexts:
        ids = prompts(1, context)
        calls = {"stream": lambda: seconds(big.sum), "eager": eager(params, ids, args.tokens)}
        if "bits" in name:
            calls["compiled"] = compiled(fast, params, ids, args.tokens)
            first = seconds(calls["compiled"])
            print(f"{name}, {context} tokens of context: first run, compiled, {first:.0f} s")
        else:
            calls["products"] = products(params)
        if peer is not None:
            calls["transformers"] = of_peer(peer, ids, args.tokens)
        if folder and (other := of_ctranslate2(folder, name, ids, args.tokens)):
            calls["CTranslate2"] = other
        taken = take_turns(calls, args.rounds, timer=lambda call: call())
        report(name, context, weight_bytes(params), dict(taken), big.nbytes)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=12, help="decoded in each round")
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 900])
    parser.add_argument("--types", nargs="+", choices=SHARES, default=[*SHARES])
    parser.add_argument("--quick", action="store_true", help="two blocks, few rounds")
    args = parser.parse_args()
    args.megabytes = 100 if args.quick else 500
    if args.quick:
        args.rounds, args.tokens, args.contexts = 2, 4, args.contexts[:1]

    print(f"{environment('transformers')}, {torch.backends.cpu.get_cpu_capability()}")
    params = gpt2.init(gpt2.Config(n_layer=2 if args.quick else 12), random.key(0))
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    eager_times = {}
    with torch.no_grad(), tempfile.TemporaryDirectory() as directory:
        whole = hugging_face(params, torch.float32, directory)
        with ctranslate2_model(directory) as folder:
            for name, form in forms(params).items():
                if name in args.types:
                    dtype = types.get(name)
                    peer = whole.to(dtype) if dtype else None
                    taken = one_type(name, form, args.contexts, args, peer, folder)
                    eager_times[name] = taken["eager"]
                    if name == "float32":
                        batches(pack(form), whole, args.rounds, 100 if args.quick else 900)
    if {"float32", "bfloat16"} <= eager_times.keys():
        found = ratios(eager_times["float32"], eager_times["bfloat16"])
        judge("bfloat16: speed / float32's", found, 1.0)


if __name__ == "__main__":
    main()
