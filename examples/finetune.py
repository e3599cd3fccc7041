"""Fine-tuning in a few lines: rows in memory, a loss, the loop.

    python examples/finetune.py --model bert-base-uncased --directory runs/moods

The rows are dicts, as those of the package `datasets`: try `load_dataset("glue", "sst2")["train"]`.
Started again after a kill, it goes on where it was; `torchrun --nproc-per-node 2` in place of
`python` does the same work in two processes.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fnlm import bert, cli, distributed, finetune, random
from fnlm.tasks import glue
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

WORDS = {"fine": 1, "good": 1, "old": 0, "sad": 0}
ROWS = [
    {"sentence": f"The {first} king was {second}.", "label": label, "idx": 0}
    for first, label in WORDS.items()
    for second in WORDS
]


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.Recipe):
    """Fine-tune BERT on rows in memory.

    Args:
        model: directory, file or hub name of a model and its tokenizer.
        directory: of the run.
    """

    model: str
    directory: Path
    train_batch_size: int = 4
    num_train_epochs: float = 20
    learning_rate: float = 1e-3


def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, token types, mask and labels."""
    return losses.cross_entropy(bert.sequence_classification(params, *batch[:3], key=key), batch[3])


def main(flags: Flags) -> None:
    tokenizer = tokenize.load(flags.model)
    params = bert.load(flags.model, heads=["sequence_classification"], key=random.key(0))
    data = glue.features(glue.read(ROWS, "SST-2"), "SST-2", tokenizer, max_seq_length=32)

    params, _ = finetune.finetune(loss, params, data, flags, flags.directory)
    distributed.on_first(lambda: bert.save(params, flags.directory))  # one process writes

    logits = finetune.predict(bert.sequence_classification, params, data, 8, flags.device)
    results = glue.evaluate("SST-2", glue.predict("SST-2", logits), data.labels)
    print(finetune.write_results(results, flags.directory, "results"), end="")


if __name__ == "__main__":
    sys.exit(cli.run(main, Flags))
