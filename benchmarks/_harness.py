"""What the benchmarks share: turns in one process, ratios of neighbours, and verdicts on bars.

Whatever else a machine does slows down neighbours alike, so contenders take turns, and a claim is
about the median of the ratios of those of one round. Where the environment variable `RECORD` names
a file, each such number is appended to it, a JSON object a line: `make bench` names one.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

Call = Callable[[], object]
Times = dict[str, list[float]]
UNITS = {"s": 1.0, "ms": 1e3}
RECORD = "FNLM_BENCH_RECORD"


def arguments(doc: str | None, *, rounds: int, quick: int = 2) -> argparse.ArgumentParser:
    """Return a parser that knows --rounds, and --quick, which makes `quick` rounds the default."""
    made = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    made.add_argument("--quick", action="store_true", help="the same rows in some seconds")
    default = quick if "--quick" in sys.argv else rounds
    made.add_argument("--rounds", type=int, default=default, help=f"of turns, here {default}")
    return made


def record(**found: object) -> None:
    """Append what was found to the file of results, if there is one."""
    if path := os.environ.get(RECORD):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"script": Path(sys.argv[0]).stem, **found}) + "\n")


def is_installed(*packages: str) -> bool:
    """Return whether peers can be imported, and print and record which cannot."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    for name in absent:
        print(f"{name} is not installed: not compared", flush=True)
        record(absent=name)
    return not absent


def seconds(call: Call, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes; freeing what it returns is not timed."""
    start = clock()
    result = call()
    took = clock() - start
    del result
    return took


def take_turns(
    calls: Mapping[str, Any],
    rounds: int,
    *,
    warm_up: int = 1,
    timer: Callable[[Any], Any] = seconds,
    prepare: Mapping[str, Call] | None = None,
    few: Mapping[str, int] | None = None,
    order: Literal["same", "both", "random"] = "same",
) -> dict[str, list[Any]]:
    """Let contenders take turns, and return what the timer says of each call.

    Args:
        calls: name -> what is timed.
        rounds: in each of which every contender has one turn.
        warm_up: rounds before these, which are left out.
        timer: from a contender to what is noted, by default its seconds by the clock.
        prepare: name -> what is done before each call and not timed.
        few: name -> rounds of contenders that take part in the first ones only.
        order: of a round: that of `calls`, this and the reverse by turns, or random.
    """
    taken: dict[str, list[Any]] = {name: [] for name in calls}
    for turn in range(rounds + warm_up):
        names = list(calls)
        if order == "random":
            random.shuffle(names)
        elif order == "both" and turn % 2:
            names.reverse()
        for name in names:
            if turn < warm_up + (few or {}).get(name, rounds):
                (prepare or {}).get(name, lambda: None)()
                took = timer(calls[name])
                taken[name] += [took] if turn >= warm_up else []
    return taken


def peak_bytes(call: Call) -> int:
    """Return the most bytes that a call has allocated at once, over those at its start.

    They are counted, by the events of torch's profiler: what the C library keeps does not matter.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # silent
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = call()
    del result
    now = most = 0
    assert record.profiler is not None and record.profiler.kineto_results is not None
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def bytes_per_second() -> float:
    """Return the memory bandwidth of two reads and a write of what fits no cache."""
    import torch

    a, b = torch.zeros(60_000_000), torch.ones(60_000_000)
    return 3 * a.nbytes / min(seconds(lambda: a.add_(b)) for _ in range(9))


def version(package: str) -> str:
    """Return the version of a package, or that there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def environment(*packages: str) -> str:
    """Return what a time depends on: versions, cores and threads."""
    import torch

    import fnlm

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"fnlm": fnlm.__version__} | {name: version(name) for name in packages}
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{named}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def ratios(above: Iterable[float], below: Iterable[float]) -> list[float]:
    """Return the ratios of neighbours: of the times of one round."""
    return [a / b for a, b in zip(above, below, strict=False)]


def digits(value: float) -> str:
    """Return a number with three digits, or all of those before the point."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the quartiles, or the extremes where there are few values."""
    if len(values) < 4:
        return min(values), max(values)
    low, _, high = statistics.quantiles(values, n=4)
    return low, high


def quartiles(values: Sequence[float]) -> str:
    """Return the median with its spread, in words."""
    low, high = spread(values)
    what = "quartiles " if len(values) >= 4 else ""
    return f"{digits(statistics.median(values))} ({what}{digits(low)} to {digits(high)})"


def row(name: str, times: Sequence[float], unit: str = "ms", note: str = "") -> str:
    """Return a line about the times of a contender."""
    scaled = [UNITS[unit] * took for took in times]
    return f"{name:26} median {quartiles(scaled)} {unit}, fastest {digits(min(scaled))}{note}"


def judge(
    what: str,
    found: Sequence[float],
    bar: float | None = None,
    *,
    at_most: bool = False,
    because: str = "",
) -> bool:
    """Print and record the median of ratios beside its bar, and return whether the bar is met.

    Args:
        what: the name of the row.
        found: the ratios.
        bar: without one, the ratio is told for comparison.
        at_most: the bar is an upper one.
        because: what a profile says holds the ratio back, told where the bar is missed; by default
            that the bar lies within the spread, where it does.
    """
    ratio, (low, high) = statistics.median(found), spread(found)
    met = bar is None or (ratio <= bar if at_most else ratio >= bar)
    limit = "" if bar is None else f"{'at most' if at_most else 'at least'} {bar:g}"
    verdict = f"; bar: {limit}: {'met' if met else 'MISSED'}" if limit else ""
    if not because and bar is not None and low <= bar <= high:
        because = "the bar lies within the spread"
    told = {} if met or not because else {"because": because}
    print(f"{what}: median {quartiles(found)}{verdict}", *told.values(), sep="\n  ", flush=True)
    record(
        what=what, median=ratio, low=low, high=high, rounds=len(found), bar=limit, met=met, **told
    )
    return met
