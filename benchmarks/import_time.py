"""Claim: importing fnlm takes at most 0.2 s more than importing torch.

Each round is a fresh interpreter that imports torch, then fnlm, then every module of the library
(all but the command line, which a program does not import), and takes the time of each. Files are
in the page cache after the first, discarded, round.

Physical limit: what fnlm's dependencies take (regex, safetensors, einops), printed as the last row.
"""

import argparse
import json
import os
import pkgutil
import platform
import statistics
import subprocess
import sys

BAR_SECONDS = 0.2
TIMED = """
import json, time
times = [time.perf_counter()]
for statement in STATEMENTS:
    exec(statement)
    times.append(time.perf_counter())
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""


def seconds(statements: list[str]) -> list[float]:
    """Seconds that each statement takes in one fresh interpreter."""
    command = [sys.executable, "-c", TIMED.replace("STATEMENTS", repr(statements))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(number) for number in json.loads(done.stdout)]


def row(label: str, times: list[float], peer: list[float]) -> str:
    ratio = statistics.median(a / b for a, b in zip(times, peer, strict=True))
    return (
        f"{label:24} median {statistics.median(times):6.3f} s "
        f"({min(times):.3f} to {max(times):.3f}), {ratio:6.1%} of torch's"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds

    import torch

    import fnlm

    names = [info.name for info in pkgutil.walk_packages(fnlm.__path__, "fnlm.")]
    everything = "import " + ", ".join(name for name in names if name != "fnlm.cli")
    ours, limit = [], []
    for _ in range(rounds + 1):
        ours.append(seconds(["import torch", "import fnlm", everything]))
        limit.append(seconds(["import torch", "import einops, regex, safetensors.torch"]))
    torch_alone, package, library = (list(column) for column in zip(*ours[1:], strict=True))
    library = [a + b for a, b in zip(package, library, strict=True)]

    print(
        f"python {platform.python_version()}, torch {torch.__version__}, fnlm {fnlm.__version__}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {rounds} rounds"
    )
    print(row("torch", torch_alone, torch_alone))
    print(row("then fnlm", package, torch_alone))
    print(row("then fnlm, every module", library, torch_alone))
    print(row("or its dependencies", [r[1] for r in limit[1:]], [r[0] for r in limit[1:]]))
    met = statistics.median(library) <= BAR_SECONDS
    print(f"bar: at most {BAR_SECONDS} s beyond torch: {'met' if met else 'MISSED'}")
    return not met


if __name__ == "__main__":
    sys.exit(main())
