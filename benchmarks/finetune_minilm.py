r"""Claim: BERT fine-tuned by fnlm scores as when fine-tuned by transformers, in no more time.

The weights are those of MiniLM (6 layers of width 384). fnlm and transformers train side by side,
a step of one after a step of the other on the same batch, from the same weights, the head
included, with the same loss, BertAdam, warm-up and decay. A batch holds rows of like length, as
padding is time lost for both.

Fine-tuned twice with other bits of dropout, a small model differs from itself by some points. So
for the scores dropout draws the same bits on both sides, and what differs is arithmetic. For the
speed each side has its own dropout, and the peer its fused attention, where bits can't be given.

The epochs are what two cores do in some hours. RTE is then little above chance on both sides, and
MRPC not far, where equal scores say less: give `PLANS` more epochs where there is time.

The scores of a task and seed, and the speed at a task, are written to `benchmarks/minilm/`; what is
there is not made again, so several processes may each make some of it.

    python benchmarks/finetune_minilm.py --data shared/data        # make the runs, then the table
    python benchmarks/finetune_minilm.py                           # the table, into table.txt too

Half precision is compared with float32 by fnlm alone: the same steps in each, on MRPC by default,
with float32 weights, which are evaluated in float32. With the epochs and the learning rate of
pytorch-pretrained-bert's example of MRPC in 16 bits:

    python benchmarks/finetune_minilm.py --dtypes float32 bfloat16 float16 --epochs 3 \
        --learning_rate 2e-5
"""

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy.typing as npt
import torch
from _harness import judge
from _minilm import (
    ANSWER,
    CLASSIFY,
    PLANS,
    WARMUP,
    WEIGHT_DECAY,
    Plan,
    Side,
    Work,
    orders,
    ours,
    read,
    start,
    weights,
)
from torch import Tensor
from tqdm import tqdm

from fnlm import bert, random
from fnlm.files._checkpoint import replace as write_whole
from fnlm.finetune.data import predict, tensors
from fnlm.layers import dropout, dropout_keys
from fnlm.params import _rename
from fnlm.params.names.bert import FAMILY

RESULTS = Path(__file__).parent / "minilm"
BAR_SPEED = 1.0
BAR_POINTS = 1.0  # by which half precision may differ from float32
SPEED_STEPS = 20
SEEDS = 3
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def same_bits(key: Tensor, layers: int) -> Callable[..., Tensor]:
    """Make torch's dropout one that takes its keys as fnlm's BERT does, one after the other."""
    embed_key, *block_keys = dropout_keys(key, 1 + layers)
    within = [part for block_key in block_keys for part in dropout_keys(block_key, 3)]
    keys = iter((embed_key, *within, random.fold_in(key, 0)))

    def drop(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return dropout(x, p, next(keys))

    return drop


def peer_model(params: bert.Params, work: Work, attention: str) -> Any:
    """Make the model of transformers with our parameters."""
    import transformers

    transformers.logging.set_verbosity_error()
    kind = {
        CLASSIFY: transformers.BertForSequenceClassification,
        ANSWER: transformers.BertForQuestionAnswering,
    }[work.head]
    model = kind(
        transformers.BertConfig.from_pretrained(
            weights(), num_labels=work.outputs, attn_implementation=attention
        )
    )
    leaves = {name: value for name, value in params.items() if name != "config"}
    foreign = _rename.to_foreign(leaves, FAMILY.dialects[0])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(foreign[name])
    return model.train()


def theirs(
    params: bert.Params, work: Work, plan: Plan, steps: int, shared_key: Tensor | None
) -> Side:
    from pytorch_pretrained_bert.optimization import BertAdam

    model = peer_model(params, work, "sdpa" if shared_key is None else "eager")
    groups: dict[float, list[Any]] = {0.0: [], WEIGHT_DECAY: []}
    for name, parameter in model.named_parameters():
        plain = "bias" in name or "LayerNorm" in name
        groups[0.0 if plain else WEIGHT_DECAY].append(parameter)
    optimizer = BertAdam(
        [{"params": owned, "weight_decay": decay} for decay, owned in groups.items()],
        lr=plan.learning_rate, warmup=WARMUP, t_total=steps,
    )  # fmt: skip
    done = itertools.count()

    def outputs(ids: Tensor, types: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return model(ids, token_type_ids=types, attention_mask=mask).to_tuple()

    def step(*batch: Tensor) -> None:
        with ExitStack() as stack:
            if shared_key is not None:
                key = random.fold_in(shared_key, torch.tensor(next(done)))
                drop = same_bits(key, params["config"].num_hidden_layers)
                stack.enter_context(mock.patch.object(torch.nn.functional, "dropout", drop))
            loss = work.loss(*outputs(*batch[:3]), *batch[3:])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def score(*batch: Tensor) -> tuple[Tensor, ...]:
        model.eval()
        return outputs(*batch)

    return Side(step, score)


def train_both(
    work: Work, plan: Plan, steps: Sequence[npt.NDArray[Any]], seed: int, *, shared: bool
) -> tuple[dict[str, Side], list[float]]:
    """Make the steps on both sides; return these, and how many times faster each step of fnlm was.

    Args:
        steps: the rows of each.
        shared: whether dropout draws the same bits on both.
    """
    params = start(work, seed)
    key = random.key(seed)
    sides = {
        "fnlm": ours(params, work, plan, len(steps), key),
        "transformers": theirs(params, work, plan, len(steps), key if shared else None),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number, rows in enumerate(tqdm(steps, f"seed {seed}")):
        batch = tensors([array[rows] for array in work.train])
        for name, side in list(sides.items())[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            side.step(*batch)
            seconds[name].append(time.perf_counter() - began)
    pairs = zip(seconds["fnlm"], seconds["transformers"], strict=True)
    return sides, [theirs / ours for ours, theirs in pairs]


def scores(task: str, seed: int, data: Path) -> dict[str, Any]:
    """Fine-tune both on a task, and evaluate them."""
    work, plan = read(task, data), PLANS[task]
    steps = orders(work.train[2].sum(axis=1), plan, seed)
    sides, _ = train_both(work, plan, steps, seed, shared=True)
    result: dict[str, Any] = {"steps": len(steps)}
    return result | {name: evaluate(work, side) for name, side in sides.items()}


def evaluate(work: Work, side: Side) -> dict[str, float]:
    """Return the metrics of what was learned."""
    return work.metrics(
        predict(lambda _, *x: torch.stack(side.outputs(*x), -1), {}, work.dev, 64, "cpu")
    )


def score_in(dtype: str, task: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune by fnlm alone, computing in a dtype, and evaluate."""
    work, plan = read(task, given.data or DATA), PLANS[task]
    rate = given.learning_rate or plan.learning_rate
    plan = plan._replace(epochs=given.epochs or plan.epochs, learning_rate=rate)
    steps = orders(work.train[2].sum(axis=1), plan, seed)[: given.steps]
    side = ours(start(work, seed), work, plan, len(steps), random.key(seed), dtype=dtype)
    for rows in tqdm(steps, f"{task}, {dtype}, seed {seed}"):
        side.step(*tensors([array[rows] for array in work.train]))
    return {"steps": len(steps), "fnlm": evaluate(work, side)}


def compare_dtypes(given: argparse.Namespace) -> bool:
    """Return whether no dtype scores further from the first one than the bar allows."""
    holds, tasks = True, given.tasks or ["MRPC"]
    for task in tasks:
        if not (
            folder := (given.data or DATA) / ("squad" if task == "SQuAD" else f"glue/{task}")
        ).exists():
            print(f"{folder} is not there, so {task} is left out: give --data")
            continue
        found: dict[str, list[dict[str, float]]] = {}
        for dtype, seed in itertools.product(given.dtypes, range(given.seeds)):
            scored = score_in(dtype, task, seed, given)
            found.setdefault(dtype, []).append(scored["fnlm"])
            print(f"{task}, {dtype}, seed {seed}: {scored}", flush=True)
        first, *others = given.dtypes
        scale = 1 if task == "SQuAD" else 100
        for dtype, metric in itertools.product(others, found[first][0]):
            means = [scale * statistics.mean(x[metric] for x in found[d]) for d in (first, dtype)]
            what = (
                f"{task}, {metric}: points between {dtype} {means[1]:.2f}, {first} {means[0]:.2f}"
            )
            holds &= judge(what, [abs(means[1] - means[0])], BAR_POINTS, at_most=True)
    return holds


def speed(task: str, data: Path) -> dict[str, Any]:
    """Make some steps of both, and tell how they compare in time."""
    work, plan = read(task, data), PLANS[task]
    steps = orders(work.train[2].sum(axis=1), plan, 0)[: SPEED_STEPS + 1]
    low, median, high = statistics.quantiles(
        train_both(work, plan, steps, 0, shared=False)[1][1:], n=4
    )
    return {"quartiles": [low, median, high], "threads": torch.get_num_threads()}


def table() -> tuple[str, bool]:
    """Tell the means over the seeds of what was run, and whether the claim holds."""
    lines = [f"{'task':7}{'metric':12}{'fnlm':>7}{'peer':>7}{'points':>7}  by seed"]
    holds = complete = True
    for task, plan in PLANS.items():
        runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{task}-[0-9]*"))]
        complete &= len(runs) == SEEDS and (RESULTS / f"{task}-speed.json").exists()
        scale = 1 if task == "SQuAD" else 100
        for metric in runs[0]["fnlm"] if runs else ():
            a, b = ([scale * r[side][metric] for r in runs] for side in ("fnlm", "transformers"))
            points = statistics.mean(a) - statistics.mean(b)
            holds &= abs(points) <= plan.points or metric == "exact_match"
            each = " ".join(f"{x - y:+.2f}" for x, y in zip(a, b, strict=True))
            lines.append(
                f"{task:7}{metric:12}{statistics.mean(a):7.2f}{statistics.mean(b):7.2f}"
                f"{points:+7.2f}  {each}"
            )
    for path in sorted(RESULTS.glob("*-speed.json")):
        found = json.loads(path.read_text())
        low, median, high = found["quartiles"]
        holds &= median >= BAR_SPEED
        lines.append(
            f"{path.stem.removesuffix('-speed'):7}{median:.2f} times the peer's steps a second "
            f"({low:.2f} to {high:.2f}), {found['threads']} threads"
        )
    verdict = "claim fails" if not holds else "claim holds" if complete else "runs are missing"
    return "\n".join([*lines, verdict]) + "\n", holds and complete


def keep(name: str, make: Callable[[], dict[str, Any]]) -> None:
    """Write what `make` returns, unless it was written before."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        print(name, file=sys.stderr)
        text = json.dumps(make(), indent=1) + "\n"
        write_whole(path, partial(Path.write_text, data=text))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with glue/ and squad/")
    parser.add_argument("--tasks", nargs="+", choices=list(PLANS), help="by default all")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many")
    parser.add_argument("--dtypes", nargs="+", help="to compare with the first of them")
    parser.add_argument("--epochs", type=int, help="of --dtypes, in place of those of the task")
    parser.add_argument("--learning_rate", type=float, help="of --dtypes, likewise")
    parser.add_argument("--steps", type=int, help="of --dtypes, at most")
    given = parser.parse_args()
    if given.dtypes:
        return not compare_dtypes(given)
    tasks = given.tasks or list(PLANS)
    warnings.filterwarnings("ignore", module="pytorch_pretrained_bert")
    if given.data:
        RESULTS.mkdir(exist_ok=True)
        for seed, task in itertools.product(range(given.seeds), tasks):
            keep(f"{task}-{seed}", partial(scores, task, seed, given.data))
        for task in tasks:
            keep(f"{task}-speed", partial(speed, task, given.data))
    text, holds = table()
    print(text, end="")
    if RESULTS.exists():
        (RESULTS / "table.txt").write_text(text)
    return not holds


if __name__ == "__main__":
    sys.exit(main())
