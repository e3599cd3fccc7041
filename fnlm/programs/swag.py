"""Fine-tune BERT on SWAG, which of four endings follows a sentence, and evaluate it.

Run as::

    fnlm swag --do_train --do_eval --data_dir swag \
        --bert_model bert-base-uncased --output_dir runs/swag --gradient_accumulation_steps 4

Killed at any time and started again with the same flags, a run goes on from its last checkpoint and
ends with the same numbers. The output directory then holds the model and its tokenizer, the
checkpoint state.safetensors, log.jsonl, and the results, eval_results.json and eval_results.txt.
With --do_eval alone, --bert_model is such a directory. Flags may also come from --config run.yaml.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fnlm import bert, distributed, finetune, random
from fnlm.programs import _training
from fnlm.programs._command import progress
from fnlm.tasks import swag
from fnlm.tasks.metrics import accuracy, most_likely
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.TextRecipe):
    """Fine-tune BERT on SWAG, and evaluate it.

    Args:
        data_dir: directory with train.csv and val.csv.
        do_train: whether to train.
        do_eval: whether to evaluate; beside --do_train, also at each checkpoint.
        eval_batch_size: questions to evaluate together.
    """

    data_dir: Path
    do_train: bool = False
    do_eval: bool = False
    eval_batch_size: int = 8


def read(flags: Flags, tokenizer: tokenize.Tokenizer, name: str) -> swag.Features:
    """Read a file, and turn its texts into ids."""
    return distributed.on_first(lambda: swag.features(
        swag.read(flags.data_dir / name),
        tokenizer,
        max_seq_length=flags.max_seq_length,
        workers=flags.workers,
        progress=progress(name),
        cache=flags.cache_dir,
    ))  # fmt: skip


def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, token types, mask and labels."""
    logits = bert.multiple_choice(params, *batch[:3], key=key)
    return losses.multiple_choice(logits, batch[3])


def evaluate(params: bert.Params, data: swag.Features, flags: Flags) -> dict[str, float]:
    """Return the accuracy, and the mean loss."""
    size, device = flags.eval_batch_size, flags.device
    logits = finetune.predict(bert.multiple_choice, params, data, size, device)
    mean = losses.multiple_choice(torch.from_numpy(logits), torch.from_numpy(data.labels))
    return {"accuracy": accuracy(most_likely(logits), data.labels), "eval_loss": float(mean)}


def main(flags: Flags) -> None:
    """Read, train, save, evaluate, report."""
    _training.check_work(flags)
    new = random.key(flags.seed) if flags.do_train else None
    params = bert.load(flags.bert_model, heads=["multiple_choice"], key=new)
    tokenizer = tokenize.load(flags.bert_model, lower_case=flags.do_lower_case or None)
    held_out = read(flags, tokenizer, "val.csv") if flags.do_eval else None
    results: dict[str, float] = {}
    if flags.do_train:
        data = read(flags, tokenizer, "train.csv")
        params, results = finetune.finetune(
            loss, params, data, flags, flags.output_dir, held_out=held_out
        )
        _training.save(bert, params, tokenizer, flags.output_dir)
    if held_out is not None:
        results |= evaluate(params, held_out, flags)
    _training.report(
        "swag", flags, results, keep=("data_dir", "max_seq_length"), do_eval=True,
        bert_model=flags.output_dir,
    )  # fmt: skip
