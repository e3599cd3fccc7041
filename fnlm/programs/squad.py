"""Fine-tune BERT on SQuAD 1.1 or 2.0, answer questions, and evaluate the answers.

Run as::

    fnlm squad --do_train --do_predict --do_eval --train_file train-v1.1.json \
        --predict_file dev-v1.1.json --bert_model bert-base-uncased --output_dir runs/squad

Killed at any time and started again with the same flags, a run goes on from its last checkpoint and
ends with the same numbers. The output directory then holds the model and its tokenizer, the
checkpoint state.safetensors, log.jsonl; of --do_predict, predictions.json, nbest_predictions.json
and null_odds.json; of --do_eval, eval_results.json and eval_results.txt. Without --do_train,
--bert_model is such a directory. Flags may also come from --config run.yaml.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fnlm import bert, distributed, finetune, random
from fnlm.files._checkpoint import replace
from fnlm.programs import _training
from fnlm.programs._command import progress
from fnlm.tasks import squad
from fnlm.tasks.squad_answers import Answers, recover
from fnlm.tasks.squad_metrics import evaluate_v1, evaluate_v2
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

# Flags of a run that its model's answers need again.
ANSWERING = (
    "version_2_with_negative", "null_score_diff_threshold", "max_seq_length", "doc_stride",
    "max_query_length",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.TextRecipe):
    """Fine-tune BERT on SQuAD, answer questions, and evaluate the answers.

    Args:
        train_file: questions with answers, for --do_train.
        predict_file: questions, for --do_predict and --do_eval.
        do_train: whether to train.
        do_predict: whether to write the answers.
        do_eval: whether to compare the answers with those of the file.
        version_2_with_negative: questions may have no answer, as in SQuAD 2.0.
        null_score_diff_threshold: a question has none if the odds for that are above this.
        doc_stride: tokens from the start of a window to that of the next.
        max_query_length: tokens of a question; what is longer is cut.
        n_best_size: answers of a question in nbest_predictions.json.
        max_answer_length: tokens of the longest answer.
        predict_batch_size: windows to answer together.
    """

    train_file: Path | None = None
    predict_file: Path | None = None
    do_train: bool = False
    do_predict: bool = False
    do_eval: bool = False
    version_2_with_negative: bool = False
    null_score_diff_threshold: float = 0.0
    max_seq_length: int = 384
    doc_stride: int = 128
    max_query_length: int = 64
    n_best_size: int = 20
    max_answer_length: int = 30
    predict_batch_size: int = 8


Data = tuple[tuple[squad.Example, ...], squad.Features]


def read(flags: Flags, tokenizer: tokenize.Tokenizer, *, training: bool) -> Data:
    """Read questions, and cut their contexts into windows of ids."""
    path = flags.train_file if training else flags.predict_file
    if path is None:
        raise ValueError(f"no questions: give --{'train' if training else 'predict'}_file")
    examples = squad.read(path, training=training)
    for example in examples if training or flags.do_eval else ():
        if not example.answers and not flags.version_2_with_negative:
            raise ValueError(
                f"{path}: question {example.id!r} has no answers; SQuAD 2.0, where this may be, "
                "needs --version_2_with_negative"
            )
    return examples, squad.features(
        examples, tokenizer,
        max_seq_length=flags.max_seq_length, doc_stride=flags.doc_stride,
        max_query_length=flags.max_query_length, workers=flags.workers,
        progress=progress(path.name), cache=flags.cache_dir,
    )  # fmt: skip


def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, token types, mask, first and last tokens."""
    return losses.span(*bert.question_answering(params, *batch[:3], key=key), *batch[3:])


def score(params: bert.Params, *batch: Tensor) -> Tensor:
    """Score each token as the first and as the last one of the answer: [B, T, 2]."""
    return torch.stack(bert.question_answering(params, *batch), dim=-1)


def answer(params: bert.Params, data: Data, flags: Flags) -> Answers:
    """Score every token of every window, and find the best answers."""
    found = finetune.predict(score, params, data[1], flags.predict_batch_size, flags.device)
    logits = np.zeros((2, *data[1].ids.shape), np.float32)
    logits[..., : found.shape[1]] = found.transpose(2, 0, 1)
    threshold = flags.null_score_diff_threshold if flags.version_2_with_negative else None
    length, n = flags.max_answer_length, flags.n_best_size
    return recover(*data, *logits, n_best=n, max_answer_length=length, null_threshold=threshold)


def evaluate(examples: tuple[squad.Example, ...], found: Answers, flags: Flags) -> dict[str, float]:
    """Return the official metrics; those of 2.0 with the best thresholds, too."""
    if not flags.version_2_with_negative:
        return evaluate_v1(examples, found.texts)
    threshold = flags.null_score_diff_threshold
    texts = {name: next((a.text for a in n if a.text), "") for name, n in found.n_best.items()}
    return evaluate_v2(examples, texts, found.null_odds, threshold=threshold)


def write(found: Answers, directory: Path) -> None:
    """Write answers in the form that the official evaluation reads."""
    n_best = {name: [answer._asdict() for answer in n] for name, n in found.n_best.items()}
    contents = {"predictions": found.texts, "nbest_predictions": n_best}
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in (contents | {"null_odds": found.null_odds}).items():
        text = json.dumps(content, indent=2)
        replace(directory / f"{name}.json", partial(Path.write_text, data=text, encoding="utf-8"))


def main(flags: Flags) -> None:
    """Read, train, save, answer, evaluate."""
    asks = flags.do_predict or flags.do_eval
    if not (flags.do_train or asks):
        raise ValueError("nothing to do: give --do_train, --do_predict or --do_eval")
    new = random.key(flags.seed) if flags.do_train else None
    params = bert.load(flags.bert_model, heads=["question_answering"], key=new)
    tokenizer = tokenize.load(flags.bert_model, lower_case=flags.do_lower_case or None)
    asked = distributed.on_first(lambda: read(flags, tokenizer, training=False)) if asks else None
    results: dict[str, float] = {}
    if flags.do_train:
        _, windows = distributed.on_first(lambda: read(flags, tokenizer, training=True))
        padding = {"embed.token": params["config"].pad_token_id}  # the loss reads it: see parity.md
        params, results = finetune.finetune(
            loss, params, windows[:5], flags, flags.output_dir, masked_rows=padding
        )
        _training.save(bert, params, tokenizer, flags.output_dir)
    if asked is not None:
        found = answer(params, asked, flags)
        if flags.do_predict:
            distributed.on_first(partial(write, found, flags.output_dir))
        if flags.do_eval:
            results |= evaluate(asked[0], found, flags)
    _training.report(
        "squad", flags, results, keep=ANSWERING, do_predict=True, bert_model=flags.output_dir,
        predict_file=flags.predict_file or "questions.json",
    )  # fmt: skip
