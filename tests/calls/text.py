"""Examples of tokenizers and tasks."""

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from vocabularies import TOKENIZERS

from calls.common import PIECES, Example, Make, file_there, on, writes
from fnlm.tasks import corpus, features, glue, rocstories, squad, swag
from fnlm.tasks import language_model as texts
from fnlm.tokenize import added, gpt2, transfo_xl, wordpiece
from fnlm.tokenize import words as between_spaces


def of_tokenizer(name: str, module: ModuleType, tokenizer: Any) -> Iterator[tuple[str, Make]]:
    """Make an example of what every module of tokenizers has, but no docstring calls."""
    cls = module.Tokenizer
    given = {f.name: getattr(tokenizer, f.name) for f in fields(cls) if f.init}

    def load(folder: Path) -> Example:
        tokenizer.save(folder / "made")
        return on(module.load, folder / "made")

    yield f"{name}.load", load
    yield f"{name}.Tokenizer", lambda _: on(cls, **given | {"vocab": dict(tokenizer.vocab)})
    yield f"{name}.Tokenizer.save", writes(cls.save, tokenizer.extend(["<a>"]))
    for member, value in vars(cls).items():
        if isinstance(value, property):
            yield (
                f"{name}.Tokenizer.{member}",
                partial(lambda _, m: on(lambda own: getattr(own, m), tokenizer), m=member),
            )


def pieces_saved(folder: Path) -> Path:
    PIECES.save(folder / "bert")
    return folder / "bert" / "vocab.txt"


def two_lines(folder: Path) -> Path:
    return file_there(folder, "x.txt", "low slow\nlow\n")


def corpus_saved(folder: Path) -> Path:
    """Make a file as pytorch-pretrained-bert's converter does."""
    torch.save({"dataset": "wt103", "train": np.arange(5), "valid": None}, folder / "corpus.bin")
    return folder


COUNTED = transfo_xl.train(["low slow"], special=["<unk>", "<eos>"])
BYTES = gpt2.train(["low lower"], 262)
TOKENIZING: dict[str, Make] = {
    **{
        row: make
        for name, (module, small) in TOKENIZERS.items()
        for row, make in of_tokenizer(name, module, small())
    },
    "added.Added": lambda _: on(added.Added, "<x>", True),
    "added.Added.plain": lambda _: on(lambda token: token.plain, added.Added("<x>", lstrip=True)),
    "wordpiece.read_vocab": lambda folder: on(wordpiece.read_vocab, pieces_saved(folder)),
    "gpt2.Tokenizer.decode_stream": lambda _: on(
        gpt2.Tokenizer.decode_stream, BYTES, [64, 258], seen=list
    ),
    "transfo_xl.Tokenizer.encode_file": lambda folder: on(
        transfo_xl.Tokenizer.encode_file, COUNTED, two_lines(folder), seen=list
    ),
    "transfo_xl.load_corpus": lambda folder: on(transfo_xl.load_corpus, corpus_saved(folder)),
    "words.lines": lambda folder: on(between_spaces.lines, two_lines(folder), seen=list),
}


class Sizes(NamedTuple):
    numbers: Any


def sizes(records: Any, first: int, *, plus: int) -> Sizes:
    return Sizes(np.array(records) * plus + first)


QUESTION = '{"id": "a", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}'
PARAGRAPHS = f'[{{"context": "a b", "qas": [{QUESTION}]}}]'
STORIES_FILE = ",".join([*rocstories.COLUMNS, rocstories.ANSWER]) + "\na,b,c,d,e,f,2\n"
CHOICES_FILE = "sent1,sent2,ending0,ending1,ending2,ending3,label\na,b,c,d,e,f,3\n"
TASKS: dict[str, Make] = {
    "features.convert": lambda folder: on(
        features.convert, partial(sizes, plus=2), [3, 4], Sizes, cache=folder
    ),
    "squad.read": lambda folder: on(
        squad.read, file_there(folder, "x.json", f'{{"data": [{{"paragraphs": {PARAGRAPHS}}}]}}')
    ),
    "glue.Task.is_regression": lambda _: on(lambda t: t.is_regression, glue.task("RTE")),
    "glue.read": lambda folder: on(
        glue.read, file_there(folder, "x.tsv", "sentence\tlabel\nlow \t1\n"), "SST-2"
    ),
    "swag.read": lambda folder: on(swag.read, file_there(folder, "x.csv", CHOICES_FILE)),
    "rocstories.read": lambda folder: on(
        rocstories.read, file_there(folder, "x.csv", STORIES_FILE)
    ),
    "corpus.read": lambda folder: on(corpus.read, file_there(folder, "x.txt", "a\nb\n\nc\n")),
}
SENTENCES = [[5, 6, 7], [8, 9], [1, 2, 3, 4]]


def text_stored(folder: Path) -> Path:
    texts.store(SENTENCES, folder / "text")
    return folder / "text"


LANGUAGE: dict[str, Make] = {
    "store": writes(texts.store, SENTENCES),
    "read": lambda folder: on(texts.read, text_stored(folder)),
}
