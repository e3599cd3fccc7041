"""Draws docs/schedules.png: the multiplier of every schedule over a run and beyond its end.

Run as `python docs/plot_schedules.py`; needs matplotlib, which the extra `docs` installs.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws to a file, on machines without a screen too
from matplotlib import pyplot as plt  # noqa: E402 (after the choice of the backend)

from fnlm.train import schedules  # noqa: E402

PICTURE = Path(__file__).with_name("schedules.png")
T_TOTAL, WARMUP = 1000, 0.1
PANELS: dict[str, Callable[..., schedules.Schedule]] = {
    "constant": schedules.constant,
    "warmup_constant": schedules.warmup_constant,
    "warmup_linear": schedules.warmup_linear,
    "warmup_cosine": schedules.warmup_cosine,
    "warmup_cosine_with_hard_restarts\ncycles=3": partial(
        schedules.warmup_cosine_with_hard_restarts, cycles=3
    ),
    "warmup_cosine_with_warmup_restarts\ncycles=3": partial(
        schedules.warmup_cosine_with_warmup_restarts, cycles=3
    ),
}


def draw() -> None:
    """Write the picture: six panels of one schedule each."""
    steps = range(1201)
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.4), sharex=True, sharey=True)
    for axis, (name, factory) in zip(axes.flat, PANELS.items(), strict=True):
        schedule = factory(WARMUP, T_TOTAL)
        axis.axvspan(T_TOTAL, steps[-1], color="0.92", linewidth=0)
        axis.plot(steps, [schedule(step) for step in steps], color="#205080", linewidth=1.4)
        axis.set_title(name, fontsize=8, family="monospace")
        axis.set(xlim=(0, steps[-1]), ylim=(-0.04, 1.08), xticks=(0, 500, 1000), yticks=(0, 0.5, 1))
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.supxlabel(f"step (warmup={WARMUP}, t_total={T_TOTAL}; grey: beyond it)", fontsize=9)
    figure.supylabel("multiplier of the learning rate", fontsize=9)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=130)


if __name__ == "__main__":
    draw()
