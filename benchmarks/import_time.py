"""Claim: importing fnlm takes at most 0.2 s more than importing torch.

Each round is a fresh interpreter that imports torch, then fnlm, then every module of the library
(all but the command line and its programs, which nothing else imports), and takes the time of each.
Files are in the page cache after the first, discarded, round.

Physical limit: what fnlm's dependencies take (regex, safetensors, einops), printed as the last row.
"""

import json
import pkgutil
import statistics
import subprocess
import sys

from _harness import arguments, environment, judge, ratios, row

BAR_SECONDS = 0.2
TIMED = """
import json, time
times = [time.perf_counter()]
for statement in STATEMENTS:
    exec(statement)
    times.append(time.perf_counter())
print(json.dumps([after - before for before, after in zip(times, times[1:])]))
"""


def fresh(statements: list[str]) -> list[float]:
    """Seconds that each statement takes in one fresh interpreter."""
    command = [sys.executable, "-c", TIMED.replace("STATEMENTS", repr(statements))]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(number) for number in json.loads(done.stdout)]


def line(label: str, times: list[float], torch_alone: list[float]) -> str:
    ratio = statistics.median(ratios(times, torch_alone))
    return row(label, times, "s", f", {ratio:.1%} of torch's")


def main() -> int:
    rounds = arguments(__doc__, rounds=11, quick=1).parse_args().rounds

    import fnlm

    names = [info.name for info in pkgutil.walk_packages(fnlm.__path__, "fnlm.")]
    commands = ("fnlm.__main__", "fnlm.cli", "fnlm.programs")
    everything = "import " + ", ".join(name for name in names if not name.startswith(commands))
    ours, limit = [], []
    for _ in range(rounds + 1):
        ours.append(fresh(["import torch", "import fnlm", everything]))
        limit.append(fresh(["import torch", "import einops, regex, safetensors.torch"]))
    torch_alone, package, library = (list(column) for column in zip(*ours[1:], strict=True))
    library = [a + b for a, b in zip(package, library, strict=True)]

    print(f"{environment()}, {rounds} rounds")
    print(line("torch", torch_alone, torch_alone))
    print(line("then fnlm", package, torch_alone))
    print(line("then fnlm, every module", library, torch_alone))
    print(line("or its dependencies", [r[1] for r in limit[1:]], [r[0] for r in limit[1:]]))
    return not judge("seconds of every module, beyond torch", library, BAR_SECONDS, at_most=True)


if __name__ == "__main__":
    sys.exit(main())
