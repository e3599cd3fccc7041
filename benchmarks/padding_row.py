"""Claim: fine-tuned on SQuAD with the embedding of [PAD] learned or held, BERT scores alike.

The loss of SQuAD is a softmax over all tokens of a row, padding included, so its gradient reaches
the embedding of [PAD], which pytorch-pretrained-BERT and transformers hold constant. Here MiniLM is
fine-tuned three times from each seed, with the same batches and bits of dropout:

    held     the gradient of that row is set to 0, as in both peers
    learned  it is left as it is
    nudged   held, from weights changed by a factor of 1 + 1e-5 times a normal number

What learning costs is the difference of the first two; what chance makes of a change that means
nothing is that of the first and the last. Scores are those of the 166 questions with which
`finetune_minilm.py` judges, of 585 others, and of both. One seed says no more than that a cost of
several points would have shown: give --seeds more where there is time.

At each step the gradient is the true one, and of the table of tokens it is noted how much of its
norm is the row's, and by how much the row changes the factor with which BertAdam clips the table.
Batches are those of `finetune_minilm.py`; matrices are multiplied in bfloat16, which takes a third
of the time. The runs are kept in `benchmarks/padding_row/` and not made again.

    python benchmarks/padding_row.py --data shared/data        # make the runs, then the table
    python benchmarks/padding_row.py                           # the table, into table.txt too
"""

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from _minilm import ANSWER, PLANS, WARMUP, WEIGHT_DECAY, Work, orders, start, weights
from torch import Tensor
from tqdm import tqdm

from fnlm import bert, random, train, transforms, tree
from fnlm.files._checkpoint import replace as write_whole
from fnlm.finetune.data import predict, tensors
from fnlm.tasks import squad
from fnlm.tasks.squad_answers import recover
from fnlm.tasks.squad_metrics import evaluate_v1
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

RESULTS = Path(__file__).parent / "padding_row"
VARIANTS = ("held", "learned", "nudged")
PAD = 0  # the id
NUDGE = 1e-5
ALL = "f1_of_751"
MEASURES = ("f1_of_166", "f1_of_585", ALL, "dev_loss")  # the first two are parts of the third
OUT = -1e4  # the logit of what is left out of a softmax


def read(data: Path) -> Work:
    """Read the training questions of `finetune_minilm.py`; of the dev set, its and some more."""
    tokenizer = tokenize.load(weights(), lower_case=True)
    taught = squad.read(data / "squad/train-v1.1-12articles.json.gz", training=True)
    few = squad.read(data / "squad/dev-v1.1-mini.json")
    names = {example.id for example in few}
    more = squad.read(data / "squad/dev-v1.1.json.gz")[::18]
    asked = (*few, *(example for example in more if example.id not in names))
    windows = squad.features(asked, tokenizer)

    def metrics(logits: npt.NDArray[Any]) -> dict[str, float]:  # [N, T, 2]
        texts = recover(asked, windows, *logits.transpose(2, 0, 1)).texts
        parts = (few, asked[len(few) :], asked)
        return {f"f1_of_{len(part)}": evaluate_v1(part, texts)["f1"] for part in parts}

    learned = squad.features(taught, tokenizer)
    return Work(ANSWER, 2, losses.span, learned[:5], windows[:5], metrics)


def nudged(params: bert.Params) -> bert.Params:
    """Multiply every weight by 1 + NUDGE times a normal number of its own."""
    generator = torch.Generator().manual_seed(0)
    return tree.map(lambda p: p * (1 + NUDGE * torch.randn(p.shape, generator=generator)), params)


def score(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the logits of ids, token types and mask: [B, T, 2] float32."""
    return torch.stack(bert.question_answering(params, *batch, key=key), dim=-1).float()


def loss(params: bert.Params, *batch: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch, and which part of the probability falls on padding."""
    logits = score(params, *batch[:3], key=key)
    chances = logits.detach().softmax(dim=1).mean(dim=-1)
    return losses.span(*logits.unbind(-1), *batch[3:]), (chances * (batch[2] == 0)).sum(1).mean()


def clip(norm: float) -> float:
    """Return the factor with which BertAdam clips a tensor of this norm."""
    return min(1.0, 1.0 / (norm + 1e-6))


def steps(work: Work, params: bert.Params, seed: int, *, held: bool) -> Iterator[dict[str, float]]:
    """Train, writing into `params`, and yield what each step shows of the row."""
    plan, key = PLANS["SQuAD"], random.key(seed)
    batches = orders(work.train[2].sum(axis=1), plan, seed)
    optimizer = train.bert_adam(
        plan.learning_rate, warmup=WARMUP, t_total=len(batches),
        weight_decay=WEIGHT_DECAY, decay=train.except_bias_and_norm,
    )  # fmt: skip
    if held:
        optimizer = train.mask_rows(optimizer, {"embed.token": PAD})
    state = optimizer.init(params)
    differentiate = transforms.grad_and_value(loss, has_aux=True)
    for number, rows in enumerate(tqdm(batches)):
        batch = tensors([array[rows] for array in work.train])
        own = random.fold_in(key, torch.tensor(number))
        grads, (_, on_padding) = differentiate(params, *batch, key=own)
        table = grads["embed"]["token"]
        row, rest = float(table[PAD].norm()), float(table[PAD + 1 :].norm())
        whole = (row**2 + rest**2) ** 0.5
        yield {
            "padding": float((batch[2] == 0).float().mean()),
            "on_padding": float(on_padding),
            "share": row / whole,
            "clip": 1 - clip(whole) / clip(rest),
        }
        params, state = optimizer.update(grads, state, params, donate=True)


def measure(work: Work, variant: str, seed: int) -> dict[str, Any]:
    """Fine-tune, and evaluate."""
    params = tree.map(torch.clone, start(work, seed))
    if variant == "nudged":
        params = nudged(params)
    before = params["embed"]["token"][PAD].clone()
    with torch.autocast("cpu", torch.bfloat16):
        shown = list(steps(work, params, seed, held=variant != "learned"))
        logits = np.zeros((*work.dev[0].shape, 2), np.float32)
        found = predict(score, params, work.dev, 32, "cpu")
    logits[:, : found.shape[1]] = found
    real = torch.where(torch.tensor(work.dev[2])[..., None], torch.tensor(logits), OUT)
    columns = {name: [step[name] for step in shown] for name in shown[0]}
    return {
        **work.metrics(logits),
        "dev_loss": float(losses.span(*real.unbind(-1), *map(torch.tensor, work.dev[3:]))),
        "steps": len(shown),
        "drift": float((params["embed"]["token"][PAD] - before).norm() / before.norm()),
        **{f"mean_{name}": statistics.mean(column) for name, column in columns.items()},
        **{f"most_{name}": max(column) for name, column in columns.items()},
    }


def reach() -> float:
    """Return how much any logit of a real token changes when the row of [PAD] does."""
    work = Work(ANSWER, 2, losses.span, (), (), lambda found: {})
    params = start(work, 0)
    mask = (torch.arange(96) < torch.tensor([[96], [60], [7]])).long()
    ids = torch.where(mask != 0, torch.arange(1000, 1096), PAD)
    other = tree.map(torch.clone, params)
    other["embed"]["token"][PAD] += 1
    kinds = torch.zeros_like(ids)
    changes = (score(params, ids, kinds, mask) - score(other, ids, kinds, mask)).abs()
    return float((changes * mask[..., None]).max())


def table() -> tuple[str, bool]:
    """Tell what the runs show, and whether the claim holds."""
    found: dict[int, dict[str, Any]] = {}
    for path in sorted(RESULTS.glob("*-*.json")):
        variant, _, seed = path.stem.partition("-")
        found.setdefault(int(seed), {})[variant] = json.loads(path.read_text())
    lines = [f"{'seed':6}{'measure':12}" + "".join(f"{name:>9}" for name in VARIANTS)]
    for (seed, runs), measure in itertools.product(sorted(found.items()), MEASURES):
        values = [f"{runs[name][measure]:9.3f}" if name in runs else " -" for name in VARIANTS]
        lines.append(f"{seed:<6}{measure:12}" + "".join(f"{value:>9}" for value in values))
    both = [runs for runs in found.values() if {"held", "learned"} <= runs.keys()]
    if not both:
        return "\n".join([*lines, "runs are missing"]) + "\n", False
    points = statistics.mean(runs["learned"][ALL] - runs["held"][ALL] for runs in both)
    holds = abs(points) <= PLANS["SQuAD"].points
    lines += facts([runs["learned"] for runs in both])
    lines.append(f"learned less held, mean of {ALL}: {points:+.2f} points")
    return "\n".join([*lines, "claim holds" if holds else "claim fails"]) + "\n", holds


def facts(runs: list[dict[str, Any]]) -> list[str]:
    """Tell what the runs that learned the row show of it."""
    names = {
        "padding": "positions that are padding",
        "on_padding": "probability that falls on padding",
        "share": "norm of the row's gradient over that of the table's",
        "clip": "what the row takes off the factor that clips the table",
    }
    lines = [f"{'learned, all steps':56}{'mean':>9}{'most':>9}"]
    for name, words in names.items():
        mean = statistics.mean(run[f"mean_{name}"] for run in runs)
        lines.append(f"{words:56}{mean:9.1e}{max(run[f'most_{name}'] for run in runs):9.1e}")
    return [*lines, f"the row moved by {max(run['drift'] for run in runs):.2f} of its length"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with squad/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    given = parser.parse_args()
    work = read(given.data) if given.data else None
    for seed, variant in itertools.product(given.seeds, given.variants):
        path = RESULTS / f"{variant}-{seed}.json"
        if work is not None and not path.exists():
            print(path.stem, file=sys.stderr)
            text = json.dumps(measure(work, variant, seed), indent=1) + "\n"
            RESULTS.mkdir(exist_ok=True)
            write_whole(path, partial(Path.write_text, data=text))
    text, holds = table()
    text += f"a logit of a real token changes with the row by at most {reach()}\n"
    print(text, end="")
    (RESULTS / "table.txt").write_text(text)
    return not holds


if __name__ == "__main__":
    sys.exit(main())
