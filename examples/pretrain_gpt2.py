"""Pretrain a GPT-2 of any size on text files.

    python examples/pretrain_gpt2.py --train books.txt --output runs/books --steps 5000

Documents are divided by `<|endoftext|>`; those whose first line is given with --hold_out are for
validation. A byte-level vocabulary is trained unless --tokenizer names one. Killed at any time and
started again with the same flags, a run goes on from its last checkpoint and ends with the same
numbers: batch and dropout are functions of the seed and the step. The output holds the best model
so far (model.safetensors, config.json, vocab.json, merges.txt), state.safetensors, log.jsonl and
loss.png.
"""

import gzip
import json
import math
import time
from pathlib import Path

import torch
from jsonargparse import auto_cli
from torch import Tensor
from tqdm import tqdm

from fnlm import gpt2, random, train
from fnlm.params import tree
from fnlm.tokenize import gpt2 as tokenize
from fnlm.train import losses, schedules

END = "<|endoftext|>"


def read_documents(paths: list[Path]) -> list[str]:
    """Read text files (.gz or plain) and cut them into documents."""
    texts = [
        gzip.open(p, "rt", encoding="utf-8").read() if p.suffix == ".gz" else p.read_text("utf-8")
        for p in paths
    ]
    return [part.strip() for text in texts for part in text.split(END) if part.strip()]


def hold_out(documents: list[str], titles: list[str]) -> tuple[list[str], list[str]]:
    """Split into training and validation, which is the last tenth unless titles are given."""
    first_lines = [document.partition("\n")[0] for document in documents]
    if missing := set(titles) - set(first_lines):
        raise SystemExit(
            f"--hold_out: no document begins with {sorted(missing)}; there are {first_lines[:20]}"
        )
    if titles:
        chosen = [d for d, line in zip(documents, first_lines, strict=True) if line in titles]
        return [d for d in documents if d not in chosen], chosen
    text = f"\n{END}\n".join(documents)
    cut = len(text) * 9 // 10
    return [text[:cut]], [text[cut:]]


def token_stream(tokenizer: tokenize.Tokenizer, documents: list[str]) -> Tensor:
    """Encode documents one after the other, each begun by the end-of-text token: int64 [N]."""
    (end,) = tokenizer.tokens_to_ids([END])
    return torch.tensor([i for document in documents for i in (end, *tokenizer.encode(document))])


def draw_batch(tokens: Tensor, key: Tensor, batch_size: int, length: int) -> Tensor:
    """Cut random windows: [batch_size, length]."""
    starts = (random.uniform(key, (batch_size, 1), torch.float64) * (len(tokens) - length)).long()
    return tokens[starts + torch.arange(length)]


def loss(params: gpt2.Params, ids: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of each token given those before it."""
    logits, _ = gpt2.apply(params, ids, key=key)
    return losses.language_model(logits, ids)


@torch.no_grad()
def evaluate(params: gpt2.Params, tokens: Tensor, length: int) -> float:
    """Return the mean loss over consecutive windows of `length`, without dropout."""
    windows = tokens[: len(tokens) // length * length].view(-1, length)
    total = sum(loss(params, part).item() * len(part) for part in windows.split(16))
    return total / len(windows)


def plot(log: list[dict[str, float]], path: Path) -> None:
    """Draw training and validation loss over the steps."""
    from matplotlib.figure import Figure

    axes = Figure(figsize=(7, 4)).subplots()
    for name in ("train_loss", "valid_loss"):
        axes.plot(
            [row["step"] for row in log], [row[name] for row in log], label=name.replace("_", " ")
        )
    axes.set(xlabel="step", ylabel="nats per token")
    axes.legend()
    axes.figure.savefig(path, dpi=120)


def main(
    train_files: list[Path],
    output: Path,
    hold_out_titles: list[str] | None = None,
    tokenizer: str | None = None,
    vocab_size: int = 4096,
    n_positions: int = 256,
    n_embd: int = 192,
    n_layer: int = 6,
    n_head: int = 6,
    dropout: float = 0.1,
    attention_dropout: float = 0.1,
    batch_size: int = 8,
    steps: int = 5000,
    warmup_steps: int = 200,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.1,
    evaluate_every: int = 250,
    patience: int = 6,
    seed: int = 0,
    compile: bool = False,
) -> None:
    """Train, keeping the best model and stopping after `patience` evaluations without a better one.

    Args:
        train_files: text files, .gz or plain.
        output: directory of the run.
        hold_out_titles: first lines of the documents held out for validation.
        tokenizer: name or path of a tokenizer; by default one is trained on the training documents.
        vocab_size: of the trained tokenizer.
        n_positions: length of the context and of the training windows.
        n_embd: width.
        n_layer: number of blocks.
        n_head: number of attention heads.
        dropout: rate of the dropout of embeddings and residual branches.
        attention_dropout: rate of the dropout of attention weights.
        batch_size: windows a step.
        steps: after which the cosine schedule reaches 0.
        warmup_steps: steps of linear warm-up.
        learning_rate: highest.
        weight_decay: of matrices.
        evaluate_every: steps between evaluations, which are also the checkpoints.
        patience: evaluations without improvement before stopping.
        seed: of everything random.
        compile: compile the training step.
    """
    output.mkdir(parents=True, exist_ok=True)
    training, validation = hold_out(read_documents(train_files), hold_out_titles or [])
    if tokenizer is None and not (output / "vocab.json").exists():
        tokenize.train(training, vocab_size).save(output)
    words = tokenize.load(tokenizer or output)
    train_tokens, valid_tokens = token_stream(words, training), token_stream(words, validation)
    end = words.vocab_size - 1
    config = gpt2.Config(
        vocab_size=words.vocab_size,
        n_positions=n_positions,
        n_ctx=n_positions,
        n_embd=n_embd,
        n_layer=n_layer,
        n_head=n_head,
        embd_pdrop=dropout,
        attn_pdrop=attention_dropout,
        resid_pdrop=dropout,
        extra=json.dumps({"bos_token_id": end, "eos_token_id": end}),
    )
    rate = schedules.warmup_cosine(warmup_steps / steps, steps)
    optimizer = train.adamw(
        lambda step: learning_rate * rate(step), b2=0.98, weight_decay=weight_decay,
        max_grad_norm=1.0, decay=lambda path, leaf: leaf.ndim > 1,
    )  # fmt: skip
    root = random.key(seed)
    params_key, data_key, run_key = random.split(root, 3)
    state = train.init_state(gpt2.init(config, params_key), optimizer, run_key)
    log_path, state_path = output / "log.jsonl", output / "state.safetensors"
    log: list[dict[str, float]] = []
    if state_path.exists():
        state = train.load_state(state_path, like=state)
        log = [json.loads(line) for line in log_path.read_text().splitlines()]
        log = [row for row in log if row["step"] <= int(state.step)]
    step = train.train_step(loss, optimizer, donate=not compile)
    step = torch.compile(step) if compile else step
    print(
        f"{tree.count(state.params):,} parameters, {len(train_tokens):,} training tokens, "
        f"{len(valid_tokens):,} held out"
    )
    bar = tqdm(total=steps, initial=int(state.step), unit="step")
    recent, began = [], time.monotonic()
    while (done := int(state.step)) < steps:
        ids = draw_batch(train_tokens, random.fold_in(data_key, done), batch_size, n_positions)
        state, metrics = step(state, ids)
        recent.append(float(metrics.loss))
        bar.update()
        if (done + 1) % evaluate_every and done + 1 != steps:
            continue
        valid_loss = evaluate(state.params, valid_tokens, n_positions)
        row = {"step": done + 1, "train_loss": sum(recent) / len(recent), "valid_loss": valid_loss,
               "seconds": time.monotonic() - began}  # fmt: skip
        best = min((old["valid_loss"] for old in log), default=math.inf)
        log.append(row)
        if valid_loss < best:
            gpt2.save(tree.cast(state.params, torch.float16), output)
        log_path.write_text("".join(json.dumps(row) + "\n" for row in log))
        train.save_state(state, state_path)
        plot(log, output / "loss.png")
        bar.set_postfix(
            train=f"{row['train_loss']:.3f}",
            valid=f"{valid_loss:.3f}",
            perplexity=f"{math.exp(valid_loss):.1f}",
        )
        recent, began = [], time.monotonic()
        if min(old["valid_loss"] for old in log) < min(
            old["valid_loss"] for old in log[-patience:]
        ):
            print(f"stopped: no better validation loss in {patience} evaluations")
            break


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
