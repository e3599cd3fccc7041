"""Text to GPT-2 ids, against `tokenizers` and `tiktoken`, all in one thread.

    python benchmarks/tokenize_gpt2.py --vocab DIRECTORY --text FILE --rounds 9

The claim: on WikiText's raw test set, ids are found at least 3 times as fast as by `tokenizers`
once the words have been seen (warm), and at least as fast by a tokenizer that has seen nothing
(cold). The programs take turns in one process; a ratio is that of neighbours, and its median and
range are printed. `fast` is the peer's way without offsets. The physical limit given is that of
this interpreter: to split the text at spaces, look each piece up and copy the ids found.
"""

import argparse
import gzip
import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from _harness import quartiles, ratios, seconds, take_turns

from fnlm.tokenize import gpt2

Encode = Callable[[str], list[int]]
Maker = Callable[[], Encode]

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
WHOLE, LINES = "whole text", "line by line"


def makers(directory: Path) -> dict[str, Maker]:
    """Return for each program a function that makes a fresh encoder."""
    import tiktoken
    import tokenizers
    from tiktoken_ext import openai_public  # type: ignore[import-untyped]
    from tokenizers import decoders, models, pre_tokenizers

    tokenizer = gpt2.load(directory)
    vocab, merges = dict(tokenizer.vocab), list(tokenizer.merges)

    def fresh() -> tokenizers.Tokenizer:
        peer = tokenizers.Tokenizer(models.BPE(vocab, merges))
        peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        peer.decoder = decoders.ByteLevel()
        return peer

    def make_tokenizers() -> Encode:
        peer = fresh()
        return lambda text: list(peer.encode(text).ids)

    def make_fast() -> Encode:
        peer = fresh()
        return lambda text: list(peer.encode_batch_fast([text])[0].ids)

    special = {name: tokenizer.tokens_to_ids([name])[0] for name in tokenizer.special}
    ordinary = [at for at in range(tokenizer.vocab_size) if at not in special.values()]
    ranks = {tokenizer.decode_bytes([at]): at for at in ordinary}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=openai_public.r50k_pat_str, mergeable_ranks=ranks, special_tokens=special
    )
    return {
        "fnlm": lambda: gpt2.Tokenizer(vocab, merges).encode,
        "tokenizers": make_tokenizers,
        "tokenizers fast": make_fast,
        "tiktoken": lambda: encoding.encode_ordinary,
    }


class Took(NamedTuple):
    """Seconds."""

    clock: float
    processor: float


def encode_all(encode: Encode, texts: list[str]) -> list[int]:
    return list(chain.from_iterable([encode(text) for text in texts]))


def measure(programs: dict[str, Maker], texts: list[str], rounds: int, *, warm: bool) -> None:
    """Let the programs take turns, check that their ids agree, print speeds and ratios."""
    size = sum(len(text.encode()) for text in texts)
    encoders = {name: make() for name, make in programs.items()}
    expected = {name: encode_all(encode, texts) for name, encode in encoders.items()}
    agree = all(ids == expected["fnlm"] for ids in expected.values())

    def timer(name: str) -> Took:
        encode = encoders[name] if warm else programs[name]()
        start, processor = time.perf_counter(), time.process_time()
        encode_all(encode, texts)
        return Took(time.perf_counter() - start, time.process_time() - processor)

    taken = take_turns({name: name for name in programs}, rounds, warm_up=0, timer=timer)
    print(f"  ids agree: {agree} ({len(expected['fnlm'])} ids)")
    for name, times in taken.items():
        found = ratios((t.clock for t in times), (t.clock for t in taken["fnlm"]))
        speed = size / statistics.median(t.clock for t in times) / 1e6
        busy = statistics.median(t.processor / t.clock for t in times)
        others = "" if name == "fnlm" else f"; fnlm is {quartiles(found)} times as fast"
        print(f"  {name:16} {speed:6.2f} MB/s, {busy:.2f} processors{others}")


def floor(text: str, rounds: int) -> float:
    """Return the least seconds of a processor to split, look up and copy, whatever the ids."""
    cache = dict.fromkeys(text.split(" "), (0,))

    def once() -> object:
        return list(chain.from_iterable(map(cache.__getitem__, text.split(" "))))

    return min(seconds(once, time.process_time) for _ in range(rounds))


def read(path: Path) -> str:
    """Return the text of a file, unpacked if its name ends with .gz."""
    raw = path.read_bytes()
    return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else "")
    parser.add_argument("--vocab", type=Path, default=DATA / "vocab" / "gpt2")
    parser.add_argument("--text", type=Path, default=DATA / "wikitext" / "wiki.test.raw.gz")
    parser.add_argument("--rounds", type=int, default=9)
    flags = parser.parse_args()
    # Both are read when the library starts its threads, so before it is imported.
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    text = read(flags.text)
    names = ("tokenizers", "tiktoken", "regex")
    print(f"Python {platform.python_version()},", *(f"{name} {version(name)}," for name in names))
    print(f"1 thread, {os.cpu_count()} processors; {flags.text.name}, {len(text.encode())} bytes")
    limit = len(text.encode()) / floor(text, flags.rounds) / 1e6
    print(
        f"physical limit of the interpreter (split, look up, copy): "
        f"{limit:.1f} MB a second of processor time"
    )
    programs = makers(flags.vocab)
    for name, texts in {WHOLE: [text], LINES: text.splitlines(keepends=True)}.items():
        for warm in (True, False):
            print(f"{name}, {'warm' if warm else 'cold'}, median of {flags.rounds} rounds:")
            measure(programs, texts, flags.rounds, warm=warm)


if __name__ == "__main__":
    main()
