"""Fine-tune BERT as a language model on a text of your own: masked tokens and next sentences.

    python examples/lm_finetuning/simple.py --train_corpus text.txt \
        --bert_model bert-base-uncased --output_dir runs/lm

The text has a sentence on each line and a blank line between documents. A row is a sentence and the
next one, or one of another document; it is made when it is needed, with other masks each epoch.
Rows as long as those that BERT was trained on come from `pregenerate.py`.

Killed at any time and started again with the same flags, a run goes on from its last checkpoint and
ends with the same numbers. The output directory then holds the model and its tokenizer, the
checkpoint state.safetensors, log.jsonl, and train_results.json and train_results.txt. Flags may
also come from --config run.yaml.
"""

import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from fnlm import bert, cli, finetune, random
from fnlm.tasks import corpus
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

HEADS = ("masked_lm", "next_sentence_prediction")


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.TextRecipe):
    """Fine-tune BERT as a language model on a text of your own.

    Args:
        train_corpus: a sentence on each line, a blank line between documents.
    """

    train_corpus: Path
    learning_rate: float = 3e-5


def loss(params: bert.Params, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    """Return the mean loss of a batch: ids, token types, mask, words, whether texts follow."""
    return losses.pretraining(*bert.pretraining(params, *batch[:3], key=key), *batch[3:])


def main(flags: Flags) -> None:
    """Read, train, save, report."""
    params = bert.load(flags.bert_model, heads=HEADS, key=random.key(flags.seed))
    tokenizer = tokenize.load(flags.bert_model, lower_case=flags.do_lower_case or None)
    text = corpus.encode(
        corpus.read(flags.train_corpus),
        tokenizer,
        workers=flags.workers,
        progress=cli.progress(flags.train_corpus.name),
        cache=flags.cache_dir,
    )

    @lru_cache(maxsize=2)
    def rows(epoch: int) -> corpus.Features:
        return corpus.features(
            text,
            tokenizer,
            flags.seed,
            epoch=epoch,
            pairing="sentences",
            max_seq_length=flags.max_seq_length,
            workers=flags.workers,
            progress=cli.progress(f"epoch {epoch}"),
        )

    # Every epoch has as many rows as the first.
    epochs = finetune.Epochs.of(rows(0), flags.num_train_epochs)._replace(arrays=rows)
    params, results = finetune.finetune(loss, params, epochs, flags, flags.output_dir)
    bert.save(params, flags.output_dir)
    tokenizer.save(flags.output_dir)
    then = ["fnlm", "inspect", str(flags.output_dir)]
    print(finetune.write_results(results, flags.output_dir, "train_results", then=then), end="")


if __name__ == "__main__":
    sys.exit(cli.run(main, Flags))
