"""Fine-tune BERT as a language model on rows that `pregenerate.py` made.

    python examples/lm_finetuning/finetune.py --pregenerated_data rows \
        --bert_model bert-base-uncased --output_dir runs/lm

Epoch i takes the rows of epoch_i.npz; where there are fewer files, it begins again with the first.

Killed at any time and started again with the same flags, a run goes on from its last checkpoint and
ends with the same numbers. The output directory then holds the model and its tokenizer, the
checkpoint state.safetensors, log.jsonl, and train_results.json and train_results.txt. Flags may
also come from --config run.yaml.
"""

import json
import sys
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
from torch import Tensor

from fnlm import bert, cli, finetune, random
from fnlm.tasks import corpus
from fnlm.tasks.features import digest
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

HEADS = ("masked_lm", "next_sentence_prediction")


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.Recipe):
    """Fine-tune BERT as a language model on rows from disk.

    Args:
        pregenerated_data: directory of rows.json, epoch_0.npz, epoch_1.npz, ...
        bert_model: directory, file or hub name of a model and its tokenizer.
        output_dir: directory of the run.
        do_lower_case: of the tokenizer that is saved beside the model.
    """

    pregenerated_data: Path
    bert_model: str
    output_dir: Path
    do_lower_case: bool = False
    learning_rate: float = 3e-5


def read(path: Path) -> corpus.Features:
    """Read the rows of an epoch."""
    with np.load(path, allow_pickle=False) as arrays:
        return corpus.Features(*(arrays[name] for name in corpus.Features._fields))


def find(folder: Path, tokenizer: tokenize.Tokenizer, count: float) -> finetune.Epochs:
    """Find the rows of so many epochs; they must have the tokenizer's vocabulary."""
    facts = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
    if facts["vocabulary"] != digest(tokenizer.vocab):
        raise ValueError(f"{folder} holds rows of another vocabulary than that of the model")
    sizes: list[int] = []
    while (path := folder / f"epoch_{len(sizes)}.npz").exists():
        with np.load(path, allow_pickle=False) as arrays:
            sizes.append(len(arrays["next_labels"]))
    if not sizes:
        raise FileNotFoundError(f"{folder} holds no epoch_0.npz; pregenerate.py makes it")
    wanted = [sizes[epoch % len(sizes)] for epoch in range(ceil(count))]
    if rest := count % 1:
        wanted[-1] = round(wanted[-1] * rest)
    return finetune.Epochs(
        tuple(wanted), lambda epoch: read(folder / f"epoch_{epoch % len(sizes)}.npz")
    )


def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, token types, mask, words, whether texts follow."""
    return losses.pretraining(*bert.pretraining(params, *batch[:3], key=key), *batch[3:])


def main(flags: Flags) -> None:
    """Read, train, save, report."""
    params = bert.load(flags.bert_model, heads=HEADS, key=random.key(flags.seed))
    tokenizer = tokenize.load(flags.bert_model, lower_case=flags.do_lower_case or None)
    epochs = find(flags.pregenerated_data, tokenizer, flags.num_train_epochs)
    params, results = finetune.finetune(loss, params, epochs, flags, flags.output_dir)
    bert.save(params, flags.output_dir)
    tokenizer.save(flags.output_dir)
    then = ["fnlm", "inspect", str(flags.output_dir)]
    print(finetune.write_results(results, flags.output_dir, "train_results", then=then), end="")


if __name__ == "__main__":
    sys.exit(cli.run(main, Flags))
