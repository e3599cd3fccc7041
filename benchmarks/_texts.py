"""Texts for the benchmarks of tokenizers, and what those have in common.

Nothing is downloaded: the prose is the language reference that comes with Python, the vocabularies
are those of the test data where there are some, or else made of that prose.
"""

import argparse
import os
import pydoc_data.topics
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _harness import judge, ratios, row, take_turns

BECAUSE = (
    "the other process starts and makes its tables, each meets every word for the first time, and "
    "lists of ids are sent and made again; tried: arrays in their place, more and smaller parts"
)

Encode = Callable[[str], list[int]]
Maker = Callable[[], Encode]

DATA = Path(os.environ.get("FNLM_TEST_DATA", Path(__file__).resolve().parents[2] / "shared/data"))


def flags(doc: str | None) -> argparse.Namespace:
    # Both are read when the library of that name starts its threads, so before it is imported.
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--text", type=Path, help="a file to encode instead of Python's reference")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shorter texts")
    return parser.parse_args()


def prose() -> str:
    """Return some 700 kB of English about Python."""
    return "\n\n".join(pydoc_data.topics.topics.values())


def words_of_many_scripts(size: int, seed: int = 0) -> str:
    """Return words, hardly any of them twice, of letters of ten scripts."""
    draw, starts = random.Random(seed), (0x61, 0x3B1, 0x430, 0x5D0, 0x627, 0x905, 0xE01, 0x3041)
    scripts = [[chr(code) for code in range(at, at + 24)] for at in (*starts, 0x4E00, 0xAC00)]
    words: list[str] = []
    while size > 0:
        word = "".join(draw.choices(draw.choice(scripts), k=draw.randint(2, 9)))
        words.append(word)
        size -= len(word) + 1
    return " ".join(words)


def hostile(size: int) -> list[str]:
    """Return texts of about `size` characters each that no cache of words is made for."""
    draw = random.Random(0)

    def any_of(alphabet: str) -> str:
        return "".join(draw.choices(alphabet, k=size))

    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    faces = "".join(map(chr, range(0x1F600, 0x1F650))) + "\u200d\ufe0f"
    return [
        *("a" * size, " " * size, "!" * size, "\n" * size),
        any_of("ACGT"),
        any_of(f"{letters}0123456789+/"),
        "".join(prose()[: size * 5 // 4].split()),
        any_of("".join(map(chr, range(0x4E00, 0x5E00)))),
        any_of(faces),
        any_of("".join(map(chr, range(1, 33))) + "\x7f\u200b a"),
        words_of_many_scripts(size),
    ]


def kinds(text: str, *, quick: bool) -> dict[str, list[str]]:
    """Return name -> texts to be encoded one by one."""
    text = text[:200_000] if quick else text
    return {
        "long file": [text],
        "short lines": text.splitlines(keepends=True),
        "hostile text": hostile(2_000 if quick else 20_000),
    }


def seconds_of(texts: list[str], make: Maker) -> float:
    """Return the seconds of a processor that an encoder takes, once it is made."""
    encode = make()
    start = time.process_time()
    for text in texts:
        encode(text)
    return time.process_time() - start


def compare(
    programs: dict[str, Maker], peer: str, texts: dict[str, list[str]], rounds: int,
    bars: dict[str, float],
) -> bool:  # fmt: skip
    """Compare the seconds of a processor of "fnlm" with those of a peer, cold and warm.

    Args:
        programs: name -> a function that makes an encoder that has seen nothing.
        peer: the one of them that the bars are about.
        texts: what to encode, by its name.
        rounds: how many.
        bars: "cold" and "warm": how many times as fast fnlm shall be, at least.
    """
    met = True
    for name, parts in texts.items():
        known = {program: make() for program, make in programs.items()}
        found = {program: [encode(x) for x in parts] for program, encode in known.items()}
        assert all(ids == found["fnlm"] for ids in found.values()), f"{name}: ids differ"
        size = sum(len(part.encode()) for part in parts)
        for state, bar in bars.items():
            contenders = (
                programs if state == "cold" else {n: lambda e=e: e for n, e in known.items()}
            )
            timer = partial(seconds_of, parts)
            taken = take_turns(contenders, rounds, warm_up=0, timer=timer, order="both")
            for program, times in taken.items():
                speed = size / statistics.median(times) / 1e6
                print(row(f"{name}, {state}: {program}", times, note=f", {speed:.1f} MB/s"))
            for program in (name for name in programs if name != peer):
                ours = "fnlm's" if program == "fnlm" else f"that of {program}"
                found_ratios = ratios(taken[peer], taken[program])
                limit = bar if program == "fnlm" else None
                met &= judge(f"{name}, {state}: {peer}'s time over {ours}", found_ratios, limit)
    return met


def compare_processes(encode_batch: Callable[..., object], rounds: int, *, quick: bool) -> bool:
    """Compare the seconds by the clock of one process and two, on a text of many lines."""
    count = 2 if quick else 20
    texts = [words_of_many_scripts(500_000, seed).split(" ") for seed in range(count)]
    lines = [" ".join(words[i : i + 40]) for words in texts for i in range(0, len(words), 40)]
    lines += prose().splitlines() * count
    calls = {str(n): lambda n=n: encode_batch(lines, workers=n) for n in (1, 2)}
    taken = take_turns(calls, 1 if quick else max(2, rounds // 3), warm_up=0)
    for name, times in taken.items():
        print(row(f"{len(lines)} lines, processes: {name}", times, "s"))
    found = ratios(taken["1"], taken["2"])
    return judge("one process's time over that of two", found, 1.8, because=BECAUSE)
