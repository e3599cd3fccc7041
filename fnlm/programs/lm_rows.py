"""Make rows of masked tokens and next sentences from a text, and keep them on disk.

Run as::

    fnlm lm-rows --train_corpus text.txt --bert_model bert-base-uncased --output_dir rows

They are what `fnlm pretrain-bert` learns from, and `fnlm lm` with --pregenerated_data. The text has
a sentence on each line and a blank line between documents. A row is a piece of a document in two
texts, or a piece and one of another document, as long as a row may be.

The output directory gets a file for each epoch, epoch_0.npz and so on, that NumPy reads without
pickle. Of N rows with T tokens it holds::

    ids          [N, T] int32  with some tokens masked
    token_types  [N, T] int32  0 for the first text, 1 for the second
    mask         [N, T] bool   False on padding
    lm_labels    [N, T] int32  the id that was there, or -1 where it is not asked for
    next_labels  [N]    int32  0: the second text follows the first; 1: it is a random one

and rows.json, which says what they were made of, and the tokenizer. Killed at any time and started
again with the same flags, the program goes on with the epochs that are not there yet.
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fnlm import finetune
from fnlm.files._checkpoint import replace
from fnlm.programs._command import progress
from fnlm.tasks import corpus
from fnlm.tasks.features import digest
from fnlm.tokenize import bert as tokenize


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Make rows of masked tokens and next sentences, on which BERT is trained.

    Args:
        train_corpus: a sentence on each line, a blank line between documents.
        bert_model: directory, file (such as vocab.txt) or hub name of the tokenizer.
        output_dir: directory of the rows.
        epochs_to_generate: how many files to make, each with other masks and other pairs.
        max_seq_length: tokens of a row.
        short_seq_prob: share of documents that are cut into shorter rows.
        masked_lm_prob: share of the tokens that are asked for.
        max_predictions_per_seq: most tokens of a row that are asked for.
        do_lower_case: lower-case the text; without, as the files or the name of the model say.
        seed: of all choices.
        workers: processes that make the rows.
    """

    train_corpus: Path
    bert_model: str
    output_dir: Path
    epochs_to_generate: int = 3
    max_seq_length: int = 128
    short_seq_prob: float = 0.1
    masked_lm_prob: float = 0.15
    max_predictions_per_seq: int = 20
    do_lower_case: bool = False
    seed: int = 42
    workers: int = 1


def check(path: Path, facts: dict[str, object]) -> None:
    """Raise ValueError if a directory has rows that are made of something else."""
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8"))) != facts:
        other = ", ".join(name for name in facts if found.get(name) != facts[name])
        raise ValueError(f"{path.parent} holds rows with other {other}: give another directory")


def claim(path: Path, facts: dict[str, object], tokenizer: tokenize.Tokenizer) -> None:
    """Write down what the rows are made of, before the first of them."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        tokenizer.save(path.parent)
        text = json.dumps(facts, indent=2) + "\n"
        replace(path, lambda new: new.write_text(text, encoding="utf-8"))


def write(rows: corpus.Features, path: Path) -> None:
    """Write the rows of an epoch."""
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **rows._asdict())


def main(flags: Flags) -> None:
    """Read, and make one epoch after the other."""
    tokenizer = tokenize.load(flags.bert_model, lower_case=flags.do_lower_case or None)
    documents = corpus.read(flags.train_corpus)
    facts = {name: getattr(flags, name) for name in (
        "max_seq_length", "short_seq_prob", "masked_lm_prob", "max_predictions_per_seq", "seed"
    )}  # fmt: skip
    facts |= {"vocabulary": digest(tokenizer.vocab), "text": digest(tokenizer, documents)}
    check(flags.output_dir / "rows.json", facts)
    bar = progress(flags.train_corpus.name)
    text = corpus.encode(documents, tokenizer, workers=flags.workers, progress=bar)
    for epoch in range(flags.epochs_to_generate):
        path = flags.output_dir / f"epoch_{epoch}.npz"
        if path.exists():
            continue
        rows = corpus.features(
            text,
            tokenizer,
            flags.seed,
            epoch=epoch,
            max_seq_length=flags.max_seq_length,
            short_probability=flags.short_seq_prob,
            masked_fraction=flags.masked_lm_prob,
            max_masked=flags.max_predictions_per_seq,
            workers=flags.workers,
            progress=progress(path.name),
        )
        claim(flags.output_dir / "rows.json", facts, tokenizer)
        replace(path, partial(write, rows))
        print(f"{path}: {len(rows.ids)} rows")
    print(finetune.last_line(flags.output_dir, following(flags)), end="")


def following(flags: Flags) -> list[str]:
    """Return the words of a command that trains on the rows."""
    rows = str(flags.output_dir)
    if Path(flags.bert_model).suffix in (".txt", ".json"):  # a vocabulary alone
        words = ["fnlm", "pretrain-bert", "--do_train", "--pregenerated_data", rows]
        return [*words, "--bert_config_file", "config.json", "--output_dir", f"{rows}-bert"]
    words = ["fnlm", "lm", "--pregenerated_data", rows, "--bert_model", flags.bert_model]
    return [*words, "--output_dir", f"{rows}-lm"]
