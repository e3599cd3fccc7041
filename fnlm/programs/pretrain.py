"""Pretrain a GPT-2 of any size on text files.

Run as::

    fnlm pretrain --train_files books.txt --output runs/books

Killed at any time and started again with the same flags, a run goes on from its last checkpoint
and ends with the same numbers: batch and dropout are functions of the seed and the step. The
output directory holds the best model so far with its tokenizer (model.safetensors, config.json,
vocab.json, merges.txt), the checkpoints, log.jsonl, run.json and loss.png.
"""

import gzip
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from fnlm import distributed, finetune, gpt2, heads, random, train, tree
from fnlm.tokenize import gpt2 as tokenize
from fnlm.train import losses, schedules

END = "<|endoftext|>"
MAY_DIFFER = (
    "train_files",
    "output",
    "tokenizer",
    "patience",
    "evaluate_every",
    *finetune.MAY_DIFFER,
)  # in a continuation


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.Computation):
    """Pretrain a GPT-2, keeping the model with the best validation loss.

    Args:
        train_files: text files, .gz or plain; documents are divided by <|endoftext|>.
        output: directory of the run.
        hold_out: first lines of the documents for validation; without, the last tenth of the text.
        tokenizer: name or path; by default one of vocab_size is trained on the training documents.
        vocab_size: of the trained tokenizer.
        n_positions: length of the context and of the training windows.
        n_embd: width of the model.
        n_layer: number of blocks.
        n_head: number of attention heads.
        dropout: rate after embeddings and in residual branches.
        attention_dropout: rate of the dropout of attention weights.
        batch_size: windows a step, of all processes together.
        steps: after which the cosine schedule reaches 0.
        warmup_steps: of linear warm-up.
        learning_rate: the highest, after the warm-up.
        weight_decay: of matrices.
        evaluate_every: steps between evaluations, which are also the checkpoints.
        patience: evaluations without improvement before stopping.
        seed: of everything random.
    """

    train_files: list[Path]
    output: Path
    hold_out: list[str] = field(default_factory=list)
    tokenizer: str | None = None
    vocab_size: int = 4096
    n_positions: int = 256
    n_embd: int = 128
    n_layer: int = 6
    n_head: int = 4
    dropout: float = 0.1
    attention_dropout: float = 0.1
    batch_size: int = 8
    steps: int = 5000
    warmup_steps: int = 200
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    evaluate_every: int = 200
    patience: int = 6
    seed: int = 0


def read_documents(paths: list[Path]) -> list[str]:
    """Read text files and cut them into documents."""
    texts = [
        gzip.decompress(p.read_bytes()) if p.suffix == ".gz" else p.read_bytes() for p in paths
    ]
    parts = [part.strip() for text in texts for part in text.decode("utf-8").split(END)]
    return [part for part in parts if part]


def hold_out(documents: list[str], titles: list[str]) -> tuple[list[str], list[str]]:
    """Split into training and validation documents."""
    if not titles:
        text = f"\n{END}\n".join(documents)
        return [text[: len(text) * 9 // 10]], [text[len(text) * 9 // 10 :]]
    by_title = {document.partition("\n")[0]: document for document in documents}
    if missing := set(titles) - set(by_title):
        known = ", ".join(map(repr, by_title))
        raise ValueError(
            f"--hold_out: no document begins with {sorted(missing)}; there are {known}"
        )
    chosen = [by_title[title] for title in titles]
    return [document for document in documents if document not in chosen], chosen


def token_stream(tokenizer: tokenize.Tokenizer, documents: list[str]) -> Tensor:
    """Encode documents one after the other, each begun by the end-of-text token: int64 [N]."""
    return torch.tensor(tokenizer.encode(END + END.join(documents), allowed_special={END}))


def draw_batch(tokens: Tensor, key: Tensor, rows: int, length: int) -> Tensor:
    """Cut random windows: [rows, length]."""
    starts = (random.uniform(key, (rows, 1), torch.float64) * (len(tokens) - length)).long()
    return tokens[starts + torch.arange(length)]


def loss(params: gpt2.Params, ids: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of each token given those before it."""
    hidden, _ = gpt2.hidden_states(params, ids, key=key)
    return losses.linear_language_model(hidden, heads.output_table(params), ids)


@torch.no_grad()
def mean_loss(params: gpt2.Params, tokens: Tensor, length: int) -> float:
    """Return the mean loss over consecutive windows, without dropout."""
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    device = tree.leaves(params)[0].device
    parts = windows.to(device).split(16)
    sums = finetune.over_ranks(lambda part: loss(params, part).item() * len(part), iter, parts)
    return sum(sums) / len(windows)


def make_config(flags: Flags, tokenizer: tokenize.Tokenizer) -> gpt2.Config:
    """Make the config of a model for the tokens of a tokenizer."""
    (end,) = tokenizer.tokens_to_ids([END])
    return gpt2.Config(
        vocab_size=tokenizer.vocab_size,
        n_positions=flags.n_positions,
        n_ctx=flags.n_positions,
        n_embd=flags.n_embd,
        n_layer=flags.n_layer,
        n_head=flags.n_head,
        embd_pdrop=flags.dropout,
        attn_pdrop=flags.attention_dropout,
        resid_pdrop=flags.dropout,
        extra=json.dumps({"bos_token_id": end, "eos_token_id": end}),
    )


def learn(config: gpt2.Config, tokens: Tensor, held_out: Tensor, flags: Flags) -> None:
    """Train a model, and save the best one so far."""
    rate = schedules.warmup_cosine(flags.warmup_steps / flags.steps, flags.steps)
    optimizer = train.adamw(
        lambda step: flags.learning_rate * rate(step),
        b2=0.98,
        weight_decay=flags.weight_decay,
        max_grad_norm=1.0,
        decay=lambda path, leaf: leaf.ndim > 1,
    )
    precision, scale = finetune.mixed_precision(flags.dtype, flags.loss_scale)
    optimizer = train.offload(optimizer) if flags.optimize_on_cpu else optimizer
    size, device = (flags.batch_size, flags.n_positions), train.choose_device(flags.device)
    params_key, data_key, run_key = random.split(random.key(flags.seed), 3)
    params = tree.to(gpt2.init(config, params_key), device)
    print(f"{tree.count(params):,} parameters, {len(tokens):,} tokens, {len(held_out):,} held out")
    spread = finetune.Spread(flags.plan)
    step = train.train_step(
        spread.loss(loss), optimizer, precision=precision, loss_scale=scale, donate=True
    )
    train.fit(
        step,
        train.init_state(spread.place(params), optimizer, run_key.to(device), loss_scale=scale),
        spread.batches(
            lambda at: (draw_batch(tokens, random.fold_in(data_key, at), *size).to(device),),
            run_key,
        ),
        steps=flags.steps,
        directory=flags.output,
        evaluate=lambda s: mean_loss(finetune.whole(s.params), held_out, flags.n_positions),
        evaluate_every=flags.evaluate_every,
        on_best=lambda state: save(state.params, flags.output),
        patience=flags.patience,
        processes=distributed.processes(),
    )


def save(params: gpt2.Params, directory: Path) -> None:
    """Write a model in float16, by the first process."""
    whole = distributed.collect(tree.cast(params, torch.float16))
    distributed.on_first(lambda: gpt2.save(whole, directory))


def read(flags: Flags) -> tuple[tokenize.Tokenizer, Tensor, Tensor]:
    """Return the tokenizer, trained if there is none, and the texts to learn from and hold out."""
    training, validation = hold_out(read_documents(flags.train_files), flags.hold_out)
    if flags.tokenizer is None and not (flags.output / "vocab.json").exists():
        tokenize.train(training, flags.vocab_size).save(flags.output)
    tokenizer = tokenize.load(flags.tokenizer or flags.output)
    return tokenizer, token_stream(tokenizer, training), token_stream(tokenizer, validation)


def main(flags: Flags) -> None:
    """Read, train, report."""
    finetune.Spread(flags.plan).check(flags.batch_size)
    tokenizer, tokens, held_out = distributed.on_first(lambda: read(flags))
    for what, ids in (("training", tokens), ("validation", held_out)):
        if len(ids) < flags.n_positions:
            raise ValueError(
                f"the {what} text has {len(ids)} tokens, fewer than --n_positions "
                f"{flags.n_positions}: give more text, or a shorter context"
            )
    settings = {f.name: getattr(flags, f.name) for f in fields(Flags) if f.name not in MAY_DIFFER}
    texts = {"training text": [tokens.numpy()], "held-out text": [held_out.numpy()]}
    finetune.claim_run_directory(flags.output, settings, texts)
    learn(make_config(flags, tokenizer), tokens, held_out, flags)
    print(distributed.on_first(lambda: results(flags.output)), end="")


def results(directory: Path) -> str:
    """Draw the losses of a run, and return what to print of it."""
    train.plot_log(directory, unit="nats per token")
    best = min(train.read_log(directory), key=lambda row: row["valid_loss"])
    line = f"best at step {best['step']}: validation perplexity {math.exp(best['valid_loss']):.2f}"
    return f"{line}\n{finetune.last_line(directory, ['fnlm', 'generate', str(directory)])}"
