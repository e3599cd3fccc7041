"""Pretrain BERT on rows of masked tokens and next sentences, from scratch or from a checkpoint.

Run as::

    fnlm lm-rows --train_corpus text.txt --bert_model vocab.txt --output_dir rows
    fnlm pretrain-bert --do_train --do_eval --pregenerated_data rows \
        --bert_config_file config.json --output_dir runs/bert

The flags have the names of `run_pretraining.py` of BERT's authors, and learning is theirs: Adam
without bias correction, a linear warm-up and a linear decay over the steps, weight decay of all but
norms and biases, all gradients clipped together at norm 1. The rows' epochs follow each other, and
begin again where there are fewer than the steps need.

Killed at any time and started again with the same flags, a run goes on from its last checkpoint and
ends with the same numbers. The output directory then holds the model and its tokenizer, the
checkpoint state.safetensors, log.jsonl, and the results, eval_results.json and eval_results.txt.
With --do_eval alone, --init_checkpoint is such a directory. Flags may also come from --config
run.yaml.
"""

from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fnlm import bert, checkpoints, finetune, random, train, tree
from fnlm.programs import _rows, _training
from fnlm.tasks import corpus
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.Steps):
    """Pretrain BERT on rows of masked tokens and next sentences, and evaluate it.

    Args:
        pregenerated_data: directory of rows that `fnlm lm-rows` made, to learn from.
        output_dir: directory of the run.
        bert_config_file: config.json of a new model, whose weights start at random.
        init_checkpoint: directory, file or hub name of a model to go on from, instead of a new one.
        eval_data: directory of rows to evaluate on, by epoch 0; by default those learned from.
        do_train: whether to train.
        do_eval: whether to evaluate; beside --do_train, the loss also at each checkpoint.
        eval_batch_size: rows to evaluate together.
        max_eval_steps: batches of the evaluation, at most.
        num_train_steps: number of steps.
        num_warmup_steps: steps over which the learning rate rises; then it falls to 0.
        max_grad_norm: limit of the norm of all gradients together.
        save_checkpoints_steps: steps between checkpoints.
    """

    output_dir: Path
    pregenerated_data: Path | None = None
    bert_config_file: Path | None = None
    init_checkpoint: str | None = None
    eval_data: Path | None = None
    do_train: bool = False
    do_eval: bool = False
    eval_batch_size: int = 8
    max_eval_steps: int = 100
    learning_rate: float = 1e-4
    num_train_steps: int = 100_000
    num_warmup_steps: int = 10_000
    max_grad_norm: float = 1.0
    save_checkpoints_steps: int = 1000
    seed: int = 12345


def load(flags: Flags, rows: Path) -> tuple[bert.Params, tokenize.Tokenizer]:
    """Make or load the model; the tokenizer is that of the rows."""
    tokenizer, new = tokenize.load(rows), random.key(flags.seed)
    if (flags.bert_config_file is None) == (flags.init_checkpoint is None):
        raise ValueError(
            "give --bert_config_file for a new model, or --init_checkpoint to go on from one"
        )
    if flags.init_checkpoint is not None:
        # The case of letters is that of the rows.
        _rows.check_vocabulary(rows, tokenize.load(flags.init_checkpoint, lower_case=True))
        key = new if flags.do_train else None
        return bert.load(flags.init_checkpoint, heads=_rows.HEADS, key=key), tokenizer
    if not flags.do_train:
        raise ValueError("a new model is to be trained: give --init_checkpoint to evaluate one")
    assert flags.bert_config_file is not None
    config = bert.Config.from_json_file(flags.bert_config_file)
    checkpoints.check_vocabulary(
        str(flags.bert_config_file), tokenizer.vocab_size, config.vocab_size
    )
    return bert.init(config, new, heads=_rows.HEADS), tokenizer


def clipped_adam(rate: float, *, max_grad_norm: float, **settings: Any) -> train.Optimizer:
    """Return `bert_adam` of gradients that are clipped together."""
    clip = train.clip_by_global_norm(max_grad_norm)
    adam = train.bert_adam(rate, max_grad_norm=-1, decay=train.except_bias_and_norm, **settings)

    def update(
        grads: tree.Tree, state: train.OptimizerState, params: tree.Tree, *, donate: bool = False
    ) -> tuple[tree.Tree, train.OptimizerState]:
        clipped, _ = clip.update(grads, (), params, state.step)
        return adam.update(clipped, state, params, donate=donate)

    return train.Optimizer(adam.init, update)


def recipe(flags: Flags) -> finetune.Recipe:
    """Return the recipe that the flags describe."""
    if not 0 <= flags.num_warmup_steps < flags.num_train_steps:
        raise ValueError(
            f"--num_warmup_steps {flags.num_warmup_steps} must be at least 0, and below "
            f"--num_train_steps {flags.num_train_steps}"
        )
    shared = {field.name: getattr(flags, field.name) for field in fields(finetune.Steps)}
    return finetune.Recipe(
        **shared,
        warmup_proportion=flags.num_warmup_steps / flags.num_train_steps,
        checkpoint_every=flags.save_checkpoints_steps,
    )


@torch.no_grad()
def evaluate(params: bert.Params, rows: corpus.Features, flags: Flags) -> dict[str, float]:
    """Return accuracy and mean loss of masked tokens, and of next sentences."""
    params = tree.to(params, train.choose_device(flags.device))

    def sums(pair: Any) -> list[tuple[float, float, int]]:
        """Return for each task, of a batch: right answers, sum of losses, number of labels."""
        *inputs, words, follows = pair[1]
        asked = words != losses.IGNORE
        both = zip(_rows.logits(params, asked, *inputs), (words[asked], follows), strict=True)
        return [
            (float((logits.argmax(-1) == labels).sum()),
             float(losses.cross_entropy(logits, labels)) * len(labels), len(labels))
            for logits, labels in both
        ]  # fmt: skip

    pairs = finetune.length_sorted_batches(rows, flags.eval_batch_size, flags.device)
    by_task = zip(*finetune.over_ranks(sums, iter, pairs), strict=True)
    results: dict[str, float] = {}
    for name, found in zip(("masked_lm", "next_sentence"), by_task, strict=True):
        right, lost, count = map(sum, zip(*found, strict=True))
        results |= {f"{name}_accuracy": right / count, f"{name}_loss": lost / count}
    return results


def main(flags: Flags) -> None:
    """Read, train, save, evaluate, report."""
    learned, asked = flags.pregenerated_data, flags.eval_data or flags.pregenerated_data
    _training.check_work(flags)
    if asked is None or (flags.do_train and learned is None):
        raise ValueError("no rows: give --pregenerated_data, a directory of `fnlm lm-rows`")
    params, tokenizer = load(flags, learned or asked)
    held_out = None
    if flags.do_eval:
        _rows.check_vocabulary(asked, tokenizer)
        most = flags.max_eval_steps * flags.eval_batch_size
        held_out = corpus.Features._make(array[:most] for array in _rows.read(asked, 0))
    results: dict[str, float] = {}
    if flags.do_train:
        assert learned is not None
        params, results = finetune.finetune(
            _rows.loss,
            params,
            _rows.steps(learned, flags.num_train_steps, flags.train_batch_size),
            recipe(flags),
            flags.output_dir,
            held_out=held_out,
            optimizer=partial(clipped_adam, max_grad_norm=flags.max_grad_norm),
            settings={"max_grad_norm": flags.max_grad_norm},
        )
        _training.save(bert, params, tokenizer, flags.output_dir)
    if held_out is not None:
        results |= evaluate(params, held_out, flags)
    _training.report(
        "pretrain-bert", flags, results, keep=("eval_data", "max_eval_steps", "eval_batch_size"),
        do_eval=True, pregenerated_data=learned, init_checkpoint=flags.output_dir,
    )  # fmt: skip
