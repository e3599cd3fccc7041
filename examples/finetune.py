"""Fine-tuning in a few lines: rows in memory, a loss, the loop.

    python examples/finetune.py bert-base-uncased runs/moods

The rows are dicts, as those of the package `datasets`: try `load_dataset("glue", "sst2")["train"]`.
Started again after a kill, it goes on where it was.
"""

import sys
from pathlib import Path

from torch import Tensor

from fnlm import bert, finetune, random
from fnlm.tasks import glue
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

WORDS = {"fine": 1, "good": 1, "old": 0, "sad": 0}
ROWS = [
    {"sentence": f"The {first} king was {second}.", "label": label, "idx": 0}
    for first, label in WORDS.items()
    for second in WORDS
]


def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, token types, mask and labels."""
    return losses.cross_entropy(bert.sequence_classification(params, *batch[:3], key=key), batch[3])


def main(model: str, directory: str | Path) -> int:
    params = bert.load(model, heads=["sequence_classification"], key=random.key(0))
    data = glue.features(glue.read(ROWS, "SST-2"), "SST-2", tokenize.load(model), max_seq_length=32)

    recipe = finetune.Recipe(train_batch_size=4, num_train_epochs=20, learning_rate=1e-3)
    params, _ = finetune.finetune(loss, params, data, recipe, directory)
    bert.save(params, directory)

    logits = finetune.predict(bert.sequence_classification, params, data, 8, recipe.device)
    results = glue.evaluate("SST-2", glue.predict("SST-2", logits), data.labels)
    print(finetune.write_results(results, directory, "results"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
