"""What `fit` costs beside its steps: signals, log, progress and the check of what was computed.

    python benchmarks/fit_overhead.py

A small GPT-2 whose step takes some 50 ms is trained by `fnlm.train.fit` and by a loop of the bare
step, by turns in one process, in processor time of one thread. A turn knows what its steps took by
themselves: what its loop took, from the first step to the last, over that is the claim. The
checkpoint at the end is not in it, and is shown by itself.
"""

import argparse
import sys
import tempfile
import time
from typing import Any, NamedTuple

import torch
from _harness import environment, judge, ratios, row, take_turns
from torch import Tensor

from fnlm import gpt2, heads, random, train, tree
from fnlm.train import losses

SIZE, WIDTH, LAYERS, STEPS, BAR = (4, 64), 192, 4, 20, 1.01


class Turn(NamedTuple):
    """Processor seconds of a turn."""

    loop: float  # from the begin of the first step to the end of the last one
    steps: float  # in the steps
    after: float  # from there on: evaluation and checkpoint


class Timed:
    """A step that notes when it begins and ends."""

    def __init__(self, step: Any) -> None:
        """Take the step."""
        self.step, self.times = step, list[tuple[float, float]]()

    def __call__(self, state: Any, ids: Tensor) -> Any:
        """Do the step."""
        begin = time.process_time()
        result = self.step(state, ids)
        self.times.append((begin, time.process_time()))
        return result

    def turn(self) -> Turn:
        """Return what all steps took."""
        loop = self.times[-1][1] - self.times[0][0]
        steps = sum(end - begin for begin, end in self.times)
        return Turn(loop, steps, time.process_time() - self.times[-1][1])


def loss(params: gpt2.Params, ids: Tensor, key: Tensor) -> Tensor:
    """Return the mean loss of each token given those before it."""
    hidden, _ = gpt2.hidden_states(params, ids, key=key)
    return losses.linear_language_model(hidden, heads.output_table(params), ids)


def main() -> int:
    """Compare both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="the same rows in some seconds")
    default = 2 if "--quick" in sys.argv else 12
    parser.add_argument("--rounds", type=int, default=default, help=f"of turns, here {default}")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    config = gpt2.Config(
        vocab_size=512, n_positions=SIZE[1], n_embd=WIDTH, n_layer=LAYERS, n_head=4
    )
    params = gpt2.init(config, random.key(0))
    batches = [random.categorical(random.key(i), torch.zeros(*SIZE, 512)) for i in range(4)]
    optimizer = train.adamw(1e-3, max_grad_norm=1.0)
    step = train.train_step(loss, optimizer, donate=True)

    def batch_at(at: int) -> tuple[Tensor, ...]:
        return (batches[at % 4],)

    def begin() -> train.TrainState:
        return train.init_state(tree.map(torch.clone, params), optimizer, random.key(1))

    def bare() -> Turn:
        timed, state = Timed(step), begin()
        for at in range(STEPS):
            state, _ = timed(state, *batch_at(at))
        return timed.turn()

    def fitted() -> Turn:
        timed = Timed(step)
        settings: dict[str, Any] = {"steps": STEPS, "evaluate_every": STEPS}
        with tempfile.TemporaryDirectory() as folder:
            train.fit(timed, begin(), batch_at, directory=folder, **settings)
        return timed.turn()

    calls = {"bare": bare, "fit": fitted}
    found = take_turns(calls, rounds, timer=lambda call: call(), order="both")
    print(environment())
    for name, turns in found.items():
        print(row(f"{name}, a step", [turn.loop / STEPS for turn in turns]))
    print(row("checkpoint", [turn.after for turn in found["fit"]]))
    print(row("fit beside a step", [(t.loop - t.steps) / STEPS for t in found["fit"]]))
    shares = [ratios((t.loop for t in turns), (t.steps for t in turns)) for turns in found.values()]
    judge("bare loop / its steps", shares[0], BAR, at_most=True)
    return not judge("fit / its steps", shares[1], BAR, at_most=True)


if __name__ == "__main__":
    sys.exit(main())
