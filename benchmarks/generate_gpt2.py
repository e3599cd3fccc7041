"""Greedy decoding of a GPT-2 of 124 million parameters at batch 1, against `transformers.generate`.

    python benchmarks/generate_gpt2.py --rounds 7

Claims: tokens come at least 1.15 times as fast in float32 and 2 times as fast in bfloat16, after 32
and after 900 tokens of context. Both sides hold the same random weights and run in this process, in
alternation; the ratio is the median of the ratios of neighbours. A call's time a token is the
median of the times between its tokens, so reading the prompt, which is shown apart, does not count.
The weights of fnlm went through `fnlm.params.layout.for_decoding`.

The physical limit: each token reads every weight once, so memory that gives b bytes a second allows
b / (bytes of the weights) tokens a second.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from itertools import pairwise
from typing import Any

import torch
from _harness import environment, is_installed, judge, ratios, seconds, take_turns
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.generate import stream
from fnlm.params.layout import for_decoding

TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Paces = dict[str, list[tuple[float, float]]]
BARS = {"float32": 1.15, "bfloat16": 2.0}


class Clock:
    """Notes when each token comes; what `transformers` calls a streamer."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        """Take the prompt, then each new token."""
        self.times.append(time.perf_counter())
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """Take the end of the text."""


def bandwidth(repeats: int = 9) -> float:
    """Bytes a second of reading memory that fits no cache."""
    x = torch.ones(64_000_000)
    return x.nbytes / min(seconds(x.sum) for _ in range(repeats))


def peer_of(params: Any, dtype: torch.dtype) -> Any:
    """The same weights as a module of `transformers`."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as directory:
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        gpt2.save(params, directory)
        return transformers.GPT2LMHeadModel.from_pretrained(directory, dtype=dtype).eval()


def ours(params: Any, ids: Tensor, new: int) -> Clock:
    clock = Clock()
    for token in stream(gpt2.apply, params, ids, new, prefill=gpt2.hidden_states):
        clock.put(token)
    return clock


def theirs(peer: Any, ids: Tensor, new: int) -> Clock:
    clock = Clock()
    peer.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
        streamer=clock,
    )
    del clock.tokens[: ids.shape[1]], clock.times[1]  # the prompt
    return clock


def paces(clock: Clock) -> tuple[float, float]:
    """Return the seconds of a token, and of the prompt."""
    between = [b - a for a, b in pairwise(clock.times)]
    return statistics.median(between[1:]), between[0]


def measure(params: Any, peer: Any, ids: Tensor, tokens: int, rounds: int) -> Paces:
    calls = {
        "fnlm": lambda: ours(params, ids, tokens),
        "transformers": lambda: theirs(peer, ids, tokens),
    }
    return take_turns(calls, rounds, warm_up=0, timer=lambda call: paces(call()))


def report(name: str, context: int, taken: Paces, limit: float) -> None:
    for side, found in taken.items():
        token, prompt = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"  {side:12} {1 / token:.1f} tokens/s, prompt {prompt:.2f} s")
    print(f"  limit of memory {limit:.1f} tokens/s")
    slow, fast = ([token for token, _ in taken[side]] for side in ("transformers", "fnlm"))
    judge(f"{name} context {context}: speed / transformers'", ratios(slow, fast), BARS[name])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=32, help="decoded and timed in each round")
    parser.add_argument("--contexts", type=int, nargs="+", default=[32, 900])
    parser.add_argument("--dtypes", nargs="+", choices=TYPES, default=[*TYPES])
    parser.add_argument("--quick", action="store_true", help="the same rows in some seconds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.tokens = 1, 6
    if not is_installed("transformers"):
        return

    print(f"{environment('transformers')}, {torch.backends.cpu.get_cpu_capability()}")
    rate = bandwidth()
    print(f"memory is read at {rate / 1e9:.1f} GB/s")
    params = gpt2.init(gpt2.Config(n_layer=2 if args.quick else 12), random.key(0))
    for name in args.dtypes:
        peer = peer_of(params, TYPES[name])
        laid = for_decoding(tree.cast(params, TYPES[name]))
        size = sum(x.nbytes for path, x in tree.named_leaves(laid) if path != "embed.position")
        for context in args.contexts:
            ids = (random.uniform(random.key(1), (1, context)) * 50257).long()
            if name == "float32":
                same = ours(laid, ids, 6).tokens == theirs(peer, ids, 6).tokens
                assert same, "both must decode the same text"
            taken = measure(laid, peer, ids, args.tokens, args.rounds)
            report(name, context, taken, rate / size)


if __name__ == "__main__":
    main()
