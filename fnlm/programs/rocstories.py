"""Fine-tune OpenAI GPT on ROCStories, which of two endings a story has, and evaluate it.

Run as::

    fnlm rocstories --do_train --do_eval --train_dataset cloze_test_val.csv \
        --eval_dataset cloze_test_test.csv --model_name openai-gpt --output_dir log/stories

Killed at any time and started again with the same flags, a run goes on from its last checkpoint and
ends with the same numbers. The output directory then holds the model and its tokenizer, the
checkpoint state.safetensors, log.jsonl, and the results, eval_results.json and eval_results.txt.
With --do_eval alone, --model_name is such a directory. Flags may also come from --config run.yaml.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fnlm import checkpoints, distributed, finetune, gpt, random, train
from fnlm.programs import _training
from fnlm.programs._command import progress
from fnlm.tasks import rocstories
from fnlm.tasks.metrics import accuracy, most_likely
from fnlm.tokenize import gpt as tokenize
from fnlm.train import losses, schedules

HEAD = "multiple_choice"
SETTINGS = ("lm_coef", "lr_schedule", "max_grad_norm")  # that tell a run from others
Schedule = Literal["constant", "warmup_constant", "warmup_linear", "warmup_cosine"]


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.Recipe):
    """Fine-tune OpenAI GPT on ROCStories, and evaluate it.

    Args:
        output_dir: directory of the run.
        model_name: directory, file or hub name of a model and its tokenizer.
        train_dataset: file of stories with their right endings, to learn from.
        eval_dataset: such a file, to evaluate on.
        do_train: whether to train.
        do_eval: whether to evaluate; beside --do_train, also at each checkpoint.
        eval_batch_size: stories to evaluate together.
        lr_schedule: how the learning rate goes on after it rose.
        lm_coef: how much the loss of the language model counts beside that of the endings.
        max_grad_norm: limit of the norm of each gradient tensor.
    """

    output_dir: Path
    model_name: str = "openai-gpt"
    train_dataset: Path | None = None
    eval_dataset: Path | None = None
    do_train: bool = False
    do_eval: bool = False
    train_batch_size: int = 8
    eval_batch_size: int = 16
    learning_rate: float = 6.25e-5
    warmup_proportion: float = 0.002
    lr_schedule: Schedule = "warmup_linear"
    lm_coef: float = 0.9
    max_grad_norm: float = 1.0


def load(flags: Flags) -> tuple[gpt.Params, tokenize.Tokenizer]:
    """Load model and tokenizer; one to train gets the special tokens and the head it lacks."""
    tokenizer, key = tokenize.load(flags.model_name), random.key(flags.seed)
    params = gpt.load(flags.model_name, heads=[HEAD], key=key if flags.do_train else None)
    config = params["config"]
    checkpoints.check_vocabulary(
        flags.model_name, tokenizer.vocab_size, config.total_tokens_embeddings
    )
    new = [mark for mark in rocstories.MARKS if mark not in tokenizer.special]
    if new and flags.do_train:
        tokenizer = tokenizer.extend(new)
        params = gpt.extend_vocabulary(params, config.n_special + len(new), random.fold_in(key, 0))
    return params, tokenizer


def choose(params: gpt.Params, ids: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Score the endings: [B, 2, T] -> [B, 2]."""
    return gpt.double_heads(params, ids, mask.sum(-1) - 1)[1]


def loss(params: gpt.Params, *batch: Tensor, lm_coef: float, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, targets, mask and labels."""
    ids, targets, mask, labels = batch
    words, endings, _ = gpt.double_heads(params, ids, mask.sum(-1) - 1, key=key)
    return lm_coef * losses.cross_entropy(words, targets) + losses.multiple_choice(endings, labels)


def evaluate(params: gpt.Params, data: rocstories.Features, flags: Flags) -> dict[str, float]:
    """Return the accuracy, and the mean loss of the endings."""
    logits = finetune.predict(choose, params, data, flags.eval_batch_size, flags.device)
    mean = losses.multiple_choice(torch.from_numpy(logits), torch.from_numpy(data.labels))
    return {"accuracy": accuracy(most_likely(logits), data.labels), "eval_loss": float(mean)}


def main(flags: Flags) -> None:
    """Read, train, save, evaluate, report."""
    _training.check_work(flags)
    params, tokenizer = load(flags)

    def read(path: Path | None, flag: str) -> rocstories.Features:
        if path is None:
            raise ValueError(f"no stories: give {flag}")
        length = params["config"].n_positions
        return distributed.on_first(lambda: rocstories.features(
            rocstories.read(path), tokenizer, max_seq_length=length, progress=progress(path.name)
        ))  # fmt: skip

    held_out = read(flags.eval_dataset, "--eval_dataset") if flags.do_eval else None
    results: dict[str, float] = {}
    if flags.do_train:
        params, results = finetune.finetune(
            partial(loss, lm_coef=flags.lm_coef),
            params,
            read(flags.train_dataset, "--train_dataset"),
            flags,
            flags.output_dir,
            held_out=held_out,
            optimizer=partial(
                train.openai_adam,
                schedule=getattr(schedules, flags.lr_schedule),
                max_grad_norm=flags.max_grad_norm,
            ),
            settings={name: getattr(flags, name) for name in SETTINGS},
        )
        _training.save(gpt, params, tokenizer, flags.output_dir)
    if held_out is not None:
        results |= evaluate(params, held_out, flags)
    _training.report(
        "rocstories", flags, results, do_eval=True, model_name=flags.output_dir,
        eval_dataset=flags.eval_dataset or "stories.csv",
    )  # fmt: skip
