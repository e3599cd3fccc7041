"""Fine-tune BERT on a task of GLUE, and evaluate it.

Run as::

    fnlm glue --task_name MRPC --do_train --do_eval --data_dir glue/MRPC \
        --bert_model bert-base-uncased --output_dir runs/mrpc

Killed at any time and started again with the same flags, a run goes on from its last checkpoint and
ends with the same numbers. The output directory then holds the model and its tokenizer, the
checkpoint state.safetensors, log.jsonl, and the results, eval_results.json and eval_results.txt.
With --do_eval alone, --bert_model is such a directory. Flags may also come from --config run.yaml.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from fnlm import bert, distributed, finetune, random
from fnlm.params import spec
from fnlm.programs import _training
from fnlm.programs._command import progress
from fnlm.tasks import glue
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

HEAD = "sequence_classification"


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.TextRecipe):
    """Fine-tune BERT on a task of GLUE, and evaluate it.

    Args:
        task_name: CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, RTE or WNLI.
        data_dir: directory of the task's files, under their published names.
        do_train: whether to train.
        do_eval: whether to evaluate; beside --do_train, also at each checkpoint.
        eval_batch_size: rows to evaluate together.
    """

    task_name: str
    data_dir: Path
    do_train: bool = False
    do_eval: bool = False
    eval_batch_size: int = 8


def read(flags: Flags, tokenizer: tokenize.Tokenizer, split: str) -> glue.Features:
    """Read the file of a split, and turn its texts into ids."""
    name = glue.file_name(flags.task_name, split)
    return distributed.on_first(lambda: glue.features(
        glue.read(flags.data_dir / name, flags.task_name),
        flags.task_name,
        tokenizer,
        max_seq_length=flags.max_seq_length,
        workers=flags.workers,
        progress=progress(name),
        cache=flags.cache_dir,
    ))  # fmt: skip


def load(flags: Flags) -> bert.Params:
    """Load the model; the one to train gets a new head where it has none that fits."""
    outputs = max(len(glue.task(flags.task_name).labels), 1)
    if not flags.do_train:
        return bert.load(flags.bert_model, heads=[HEAD])
    key = random.key(flags.seed)
    params = bert.load(flags.bert_model, heads=[])
    if params["config"].num_labels == outputs:
        return bert.load(flags.bert_model, heads=[HEAD], key=key)
    config = replace(params["config"], num_labels=outputs)
    new = {name: bert.spec(config, [HEAD])[name] for name in ("pooler", "heads")}
    return {**spec.initialize(new, key), **params, "config": config}


def compare(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean loss: of the scores of a regression, or of classes."""
    is_regression = labels.is_floating_point()
    return (losses.regression if is_regression else losses.cross_entropy)(logits, labels)


def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, token types, mask and labels."""
    return compare(bert.sequence_classification(params, *batch[:3], key=key), batch[3])


def evaluate(params: bert.Params, data: glue.Features, flags: Flags) -> dict[str, float]:
    """Return the metrics of the task, and the mean loss."""
    logits = finetune.predict(
        bert.sequence_classification, params, data, flags.eval_batch_size, flags.device
    )
    results = glue.evaluate(flags.task_name, glue.predict(flags.task_name, logits), data.labels)
    mean = compare(torch.from_numpy(logits), torch.from_numpy(data.labels))
    return results | {"eval_loss": float(mean)}


def main(flags: Flags) -> None:
    """Read, train, save, evaluate, report."""
    _training.check_work(flags)
    is_mnli = glue.task(flags.task_name).name == "MNLI"
    splits = ("dev", "dev_mismatched") if is_mnli else ("dev",)
    params = load(flags)
    tokenizer = tokenize.load(flags.bert_model, lower_case=flags.do_lower_case or None)
    held_out = [read(flags, tokenizer, split) for split in splits if flags.do_eval]
    results: dict[str, float] = {}
    if flags.do_train:
        params, results = finetune.finetune(
            loss,
            params,
            read(flags, tokenizer, "train"),
            flags,
            flags.output_dir,
            held_out=next(iter(held_out), None),
        )
        _training.save(bert, params, tokenizer, flags.output_dir)
    for split, data in zip(splits, held_out, strict=False):
        prefix = split.removeprefix("dev").removeprefix("_")
        found = evaluate(params, data, flags)
        results |= {f"{prefix}_{name}".lstrip("_"): value for name, value in found.items()}
    _training.report(
        "glue", flags, results, keep=("task_name", "data_dir", "max_seq_length"), do_eval=True,
        bert_model=flags.output_dir,
    )  # fmt: skip
