"""Evaluate Transformer-XL with its memory on a text such as WikiText-103, or train a small one.

Run as::

    fnlm wikitext103 --eval_file wiki.test.tokens --work_dir log/xl --same_length
    fnlm wikitext103 --train_file wiki.train.tokens --work_dir log/small --mem_len 256

Perplexity and speed are printed and written to eval_results.json in the work directory. Texts have
their words between spaces, as those of WikiText; their ids go to disk, so that neither the length
of a text nor the number of its segments costs memory. A training that was killed and is started
again with the same flags goes on from its last checkpoint and ends with the same numbers; the
directory then holds the model and its tokenizer, and is a --model_name. Flags may also come from
--config run.yaml.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from fnlm import checkpoints, distributed, finetune, random, train, transfo_xl, tree
from fnlm.programs import _training
from fnlm.tasks import language_model
from fnlm.tokenize import transfo_xl as tokenize
from fnlm.tokenize import words
from fnlm.train import schedules

Mems = transfo_xl.Mems
Ids = npt.NDArray[np.integer[Any]]
CORPORA = (".bin", ".pkl", ".pt")  # files of ids, as pytorch-pretrained-bert names them
ATTENTION = ("tgt_len", "mem_len", "clamp_len", "same_length")


@dataclass(frozen=True, kw_only=True)
class Training(finetune.Computation):
    """What tells one training from another.

    Args:
        tgt_len: tokens of a segment, which are read at once.
        mem_len: tokens that are remembered from the segments before.
        clamp_len: distance from which on tokens count as equally far; -1 for none.
        same_length: let each token see as many as any other; needs a memory.
        d_model: width of the model to train, as for the following.
        n_layer: number of blocks.
        n_head: number of attention heads; d_model / n_head is their width.
        d_inner: inner width of the perceptrons.
        cutoffs: ids, ordered by frequency, where a cluster of rarer words begins.
        div_val: how many times narrower each cluster's vectors are than those before.
        dropout: rate, but for attention weights.
        min_freq: words that occur less often in the training text become <unk>.
        train_batch_size: places of the text at which to learn at the same time, of all processes.
        steps: of training, a segment of each place a step.
        warmup_proportion: share of the steps over which the learning rate rises; then it falls.
        learning_rate: the highest, after the warm-up.
        max_grad_norm: limit of the norm of all gradients together.
        seed: of weights and dropout.
    """

    tgt_len: int = 128
    mem_len: int = 1600
    clamp_len: int = 1000
    same_length: bool = False
    d_model: int = 128
    n_layer: int = 4
    n_head: int = 4
    d_inner: int = 512
    cutoffs: tuple[int, ...] = ()
    div_val: int = 1
    dropout: float = 0.1
    min_freq: int = 3
    train_batch_size: int = 8
    steps: int = 2000
    warmup_proportion: float = 0.1
    learning_rate: float = 2e-3
    max_grad_norm: float = 0.25
    seed: int = 42


@dataclass(frozen=True, kw_only=True)
class Flags(Training):
    """Evaluate Transformer-XL with its memory on a text, or train a small one.

    Args:
        work_dir: directory of the run.
        model_name: directory, file or hub name of the model to evaluate.
        train_file: text on which to train a model of the given sizes, instead of loading one.
        eval_file: text, or corpus.bin of pytorch-pretrained-bert; without, that of the model.
        split: of such a corpus: train, valid, test, or all for valid and test.
        batch_size: places of the text at which to evaluate at the same time.
        checkpoint_every: steps between checkpoints of the training.
    """

    work_dir: Path
    model_name: str = "transfo-xl-wt103"
    train_file: Path | None = None
    eval_file: Path | None = None
    split: str = "test"
    batch_size: int = 10
    checkpoint_every: int = 200


def loss(params: transfo_xl.Params, mems: Mems, *batch: Tensor, key: Tensor) -> tuple[Tensor, Mems]:
    """Return the mean loss of a batch: begins, ids and targets; and the new memory."""
    begins, ids, targets = batch
    mems = transfo_xl.reset_mems(mems, begins)
    nll, mems = transfo_xl.negative_log_likelihood(params, ids, targets, mems, key=key, sparse=True)
    return nll.mean(), mems


def make_batches(ids: Ids, flags: Flags) -> Callable[[int], tuple[Tensor, ...]]:
    """Make the function from a step to its batch: begins of the text [B], ids, targets [B, T]."""
    size, device = (flags.train_batch_size, flags.tgt_len), train.choose_device(flags.device)
    segments = sum(1 for _ in language_model.ordered(ids, *size))

    def batch_at(step: int) -> tuple[Tensor, ...]:
        at = step % segments
        batch = next(language_model.ordered(ids, *size, start=at * flags.tgt_len))
        arrays = (np.full(flags.train_batch_size, at == 0), batch.inputs, batch.targets)
        return tuple(torch.from_numpy(array).to(device) for array in arrays)

    return batch_at


def store(path: Path, tokenizer: tokenize.Tokenizer, directory: Path) -> None:
    """Write the ids of a text to a directory."""
    lines = tqdm(tokenizer.encode_file(path), path.name, unit="line", delay=1e-3, disable=None)
    language_model.store(lines, directory)


def learn(flags: Flags, path: Path) -> None:
    """Train a model, and save it with its tokenizer."""
    spread = finetune.Spread(flags.plan)
    spread.check(flags.train_batch_size)
    tokenizer, ids = read(flags, path)
    names = [field.name for field in fields(Training) if field.name not in finetune.MAY_DIFFER]
    settings = {name: getattr(flags, name) for name in names}
    finetune.claim_run_directory(flags.work_dir, settings, {"training text": [ids]})
    rate = schedules.warmup_cosine(flags.warmup_proportion, flags.steps)
    optimizer = train.adamw(
        lambda step: flags.learning_rate * rate(step),
        weight_decay=0.0,
        max_grad_norm=flags.max_grad_norm,
    )
    precision, scale = finetune.mixed_precision(flags.dtype, flags.loss_scale)
    optimizer = train.offload(optimizer) if flags.optimize_on_cpu else optimizer
    device = train.choose_device(flags.device)
    weights, dropout = random.split(random.key(flags.seed).to(device))
    params = tree.to(transfo_xl.init(make_config(flags, tokenizer), weights), device)
    state = train.init_state(spread.place(params), optimizer, dropout, loss_scale=scale)
    step = train.carry_step(
        spread.carry_loss(loss), optimizer, precision=precision, loss_scale=scale, donate=True
    )
    run = train.fit(
        step,
        train.CarryState(
            state, spread.place_rows(transfo_xl.init_mems(params, flags.train_batch_size))
        ),
        spread.batches(make_batches(ids, flags), dropout),
        steps=flags.steps,
        directory=flags.work_dir,
        evaluate_every=flags.checkpoint_every,
        processes=distributed.processes(),
    )
    params = finetune.whole(run.train.params)
    _training.save(transfo_xl, params, tokenizer, flags.work_dir)


def read(flags: Flags, path: Path) -> tuple[tokenize.Tokenizer, Ids]:
    """Make a tokenizer of the words of a text, and the text's ids."""
    special = ["<eos>", "<unk>"]
    tokenizer = tokenize.train(words.lines(path), special=special, min_freq=flags.min_freq)
    place = flags.work_dir / "train-ids"
    distributed.on_first(lambda: store(path, tokenizer, place))
    return tokenizer, language_model.read(place).ids


def make_config(flags: Flags, tokenizer: tokenize.Tokenizer) -> transfo_xl.Config:
    """Make the config of a model for the words of a tokenizer."""
    return transfo_xl.Config(
        n_token=tokenizer.vocab_size, cutoffs=flags.cutoffs, div_val=flags.div_val,
        d_model=flags.d_model, d_embed=flags.d_model, d_inner=flags.d_inner,
        n_layer=flags.n_layer, n_head=flags.n_head, d_head=flags.d_model // flags.n_head,
        tgt_len=flags.tgt_len, mem_len=flags.mem_len, clamp_len=flags.clamp_len,
        same_length=flags.same_length, dropout=flags.dropout,
    )  # fmt: skip


@torch.no_grad()
def evaluate(params: transfo_xl.Params, ids: Ids, flags: Flags) -> dict[str, float]:
    """Return perplexity and speed; the memory goes from segment to segment."""
    device = train.choose_device(flags.device)
    total, count, mems, began = 0.0, 0, None, time.perf_counter()
    with tqdm(total=len(ids), desc="evaluate", unit="token", disable=None) as bar:
        for batch in language_model.ordered(ids, flags.batch_size, flags.tgt_len):
            inputs, targets = (torch.from_numpy(x).to(device) for x in batch[:2])
            nll, mems = transfo_xl.negative_log_likelihood(
                params, inputs, targets, mems, sparse=True
            )
            total += float(nll.double().sum())
            count += nll.numel()
            bar.update(nll.numel())
    speed = count / (time.perf_counter() - began)
    loss = total / count
    return {"loss": loss, "ppl": math.exp(loss), "tokens": count, "tokens_per_second": speed}


def texts(flags: Flags, name: str | Path, tokenizer: tokenize.Tokenizer) -> dict[str, Ids]:
    """Return the ids to evaluate: name of a split, or "" -> ids."""
    if flags.eval_file is not None and flags.eval_file.suffix not in CORPORA:
        place = flags.work_dir / "eval-ids"
        store(flags.eval_file, tokenizer, place)
        return {"": language_model.read(place).ids}
    corpus = tokenize.load_corpus(flags.eval_file or name)
    splits = ("valid", "test") if flags.split == "all" else (flags.split,)
    if missing := [split for split in splits if split not in corpus]:
        raise ValueError(f"split={missing[0]!r} is none of {', '.join(corpus)}")
    return {
        split if flags.split == "all" else "": np.concatenate(corpus[split]) for split in splits
    }


def main(flags: Flags) -> None:
    """Train or load, evaluate, report."""
    name: str | Path = flags.model_name
    then: list[str] = []
    if flags.train_file is not None:
        learn(flags, flags.train_file)
        name, then = flags.work_dir, ["fnlm", "generate", str(flags.work_dir)]
        if flags.eval_file is None:
            print(finetune.last_line(flags.work_dir, then), end="")
            return
    precision, _ = finetune.mixed_precision(flags.dtype)
    tokenizer, params = tokenize.load(name), precision.to_compute(transfo_xl.load(name))
    tokens = params["config"].n_token
    checkpoints.check_vocabulary(name, tokenizer.vocab_size, tokens, padded=False)
    config = replace(params["config"], **{field: getattr(flags, field) for field in ATTENTION})
    params = tree.to(params, train.choose_device(flags.device)) | {"config": config}
    results = distributed.on_first(lambda: {
        f"{split}_{what}".lstrip("_"): value
        for split, ids in texts(flags, name, tokenizer).items()
        for what, value in evaluate(params, ids, flags).items()
    })  # fmt: skip
    print(finetune.write_results(results, flags.work_dir, "eval_results", then=then), end="")
