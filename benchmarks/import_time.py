"""Claim: importing fnlm takes at most 0.2 s more than importing torch.

Each measurement is a fresh interpreter. The peer, `import torch`, alternates with `import fnlm`
and with the import of every module of fnlm, so that all see the same machine. Files are in the
page cache after the first, discarded, round.

Physical limit: the modules' own code, a few milliseconds; the rest is their dependencies.
"""

import argparse
import os
import pkgutil
import platform
import statistics
import subprocess
import sys

BAR_SECONDS = 0.2
TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def seconds(statement: str) -> float:
    """Seconds that a statement takes in a fresh interpreter."""
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=11)
    rounds = parser.parse_args().rounds

    import torch

    import fnlm

    names = [info.name for info in pkgutil.walk_packages(fnlm.__path__, "fnlm.")]
    statements = {
        "import torch": "import torch",
        "import torch, fnlm": "import torch, fnlm",
        "import torch, all of fnlm": "import torch, fnlm, " + ", ".join(names),
    }
    taken: dict[str, list[float]] = {label: [] for label in statements}
    for turn in range(rounds + 1):
        for label, statement in statements.items():
            took = seconds(statement)
            if turn:
                taken[label].append(took)

    print(
        f"python {platform.python_version()}, torch {torch.__version__}, fnlm {fnlm.__version__}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {rounds} rounds"
    )
    peer = taken["import torch"]
    worst = 0.0
    for label, times in taken.items():
        extra = statistics.median(a - b for a, b in zip(times, peer, strict=True))
        worst = max(worst, extra)
        print(
            f"{label:26} median {statistics.median(times):.3f} s "
            f"({min(times):.3f} to {max(times):.3f}), beyond torch {extra:+.3f} s"
        )
    print(
        f"bar: at most {BAR_SECONDS} s beyond torch: {'met' if worst <= BAR_SECONDS else 'MISSED'}"
    )
    return worst > BAR_SECONDS


if __name__ == "__main__":
    sys.exit(main())
