"""Fine-tune BERT as a language model on a text of your own: masked tokens and next sentences.

Run as::

    fnlm lm --train_corpus text.txt --bert_model bert-base-uncased --output_dir runs/lm

The text has a sentence on each line and a blank line between documents. A row is a sentence and the
next one, or one of another document; it is made when it is needed, with other masks each epoch.
Rows as long as those that BERT was trained on come from `fnlm lm-rows`, and are given by
--pregenerated_data instead: epoch i takes those of epoch_i.npz, and where there are fewer files, it
begins again with the first.

Killed at any time and started again with the same flags, a run goes on from its last checkpoint and
ends with the same numbers. The output directory then holds the model and its tokenizer, the
checkpoint state.safetensors, log.jsonl, and train_results.json and train_results.txt. Flags may
also come from --config run.yaml.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fnlm import bert, distributed, finetune, random
from fnlm.programs import _rows, _training
from fnlm.programs._command import progress
from fnlm.tasks import corpus
from fnlm.tokenize import bert as tokenize


@dataclass(frozen=True, kw_only=True)
class Flags(finetune.TextRecipe):
    """Fine-tune BERT as a language model on a text of your own, or on rows made of one.

    Args:
        train_corpus: a sentence on each line, a blank line between documents.
        pregenerated_data: directory of rows that `fnlm lm-rows` made, instead of a text.
        do_train: may be given, as this program always trains.
    """

    train_corpus: Path | None = None
    pregenerated_data: Path | None = None
    do_train: bool = True
    learning_rate: float = 3e-5


def rows_of(path: Path, flags: Flags, tokenizer: tokenize.Tokenizer) -> finetune.Epochs:
    """Return the epochs of a text, each made when it is needed."""
    text = distributed.on_first(lambda: corpus.encode(
        corpus.read(path),
        tokenizer,
        workers=flags.workers,
        progress=progress(path.name),
        cache=flags.cache_dir,
    ))  # fmt: skip

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
            progress=None if distributed.rank() else progress(f"epoch {epoch}"),
        )

    # Every epoch has as many rows as the first.
    return finetune.Epochs.of(rows(0), flags.num_train_epochs)._replace(arrays=rows)


def main(flags: Flags) -> None:
    """Read, train, save, report."""
    if (flags.train_corpus is None) == (flags.pregenerated_data is None) or not flags.do_train:
        raise ValueError("nothing to do: give --train_corpus or --pregenerated_data, one of them")
    params = bert.load(flags.bert_model, heads=_rows.HEADS, key=random.key(flags.seed))
    tokenizer = tokenize.load(flags.bert_model, lower_case=flags.do_lower_case or None)
    if flags.train_corpus is not None:
        epochs = rows_of(flags.train_corpus, flags, tokenizer)
    else:
        assert flags.pregenerated_data is not None
        _rows.check_vocabulary(flags.pregenerated_data, tokenizer)
        epochs = _rows.epochs(flags.pregenerated_data, flags.num_train_epochs)
    params, results = finetune.finetune(_rows.loss, params, epochs, flags, flags.output_dir)
    _training.save(bert, params, tokenizer, flags.output_dir)
    then = ["fnlm", "inspect", str(flags.output_dir)]
    print(finetune.write_results(results, flags.output_dir, "train_results", then=then), end="")
