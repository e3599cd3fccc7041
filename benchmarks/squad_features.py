"""Claim: questions of SQuAD become arrays in at most half of pytorch-pretrained-bert's time.

    python benchmarks/squad_features.py                   # questions about the text of `help`
    python benchmarks/squad_features.py --file dev-v1.1.json --vocab vocab.txt

`fnlm.tasks.squad.features`, in one process, against what `run_squad.py` did on the tokenizer of
pytorch-pretrained-bert 0.6.2: contexts are split at white space, each word is tokenized for each
question anew, and each window is built token by token. That script is not part of the installed
package, so `convert` below is a plain rendition of it on the package's BertTokenizer.

The two take turns; a ratio is that of neighbours. Cold is a tokenizer that has seen nothing, warm
one that has converted the file before. The ids, token types, masks and best windows of both must be
equal. Physical limit: to give the tokenizer each context and each question once, warm.
"""

import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _harness import arguments, is_installed, judge, quartiles, ratios, seconds, take_turns
from _reference import bert_tokenizer, paragraphs, topics

from fnlm.tasks import squad
from fnlm.tokenize import bert

BAR = 2.0
COLD, PEER = "fnlm cold", "pytorch-pretrained-bert"
CONTEXTS, QUESTIONS = 300, 5  # about each


class Window(NamedTuple):
    """What pytorch-pretrained-bert keeps of a window."""

    ids: list[int]
    token_types: list[int]
    mask: list[int]
    best: dict[int, bool]  # of the tokens of the context
    words: dict[int, int]  # index of the word that each of them is from


def split_at_spaces(text: str) -> list[str]:
    """Return the words of a context; pytorch-pretrained-bert also counts U+202F as a space."""
    words: list[str] = []
    after_space = True
    for character in text:
        if character in " \t\r\n\u202f":
            after_space = True
        elif after_space:
            words.append(character)
            after_space = False
        else:
            words[-1] += character
    return words


def is_best(spans: Sequence[tuple[int, int]], window: int, token: int) -> bool:
    """Return whether a token has no better window."""
    best, winner = -1.0, -1
    for number, (begin, end) in enumerate(spans):
        if begin <= token < end:
            score = min(token - begin, end - 1 - token) + 0.01 * (end - begin)
            if score > best:
                best, winner = score, number
    return winner == window


def convert(
    examples: Sequence[squad.Example], tokenizer: Any, length: int, stride: int, query_length: int
) -> list[Window]:
    """Convert examples as pytorch-pretrained-bert's script does."""
    windows = []
    for example in examples:
        query = tokenizer.tokenize(example.question)[:query_length]
        tokens: list[str] = []
        owners: list[int] = []
        for number, word in enumerate(split_at_spaces(example.context)):
            for token in tokenizer.tokenize(word):
                tokens.append(token)
                owners.append(number)
        spans, begin = [], 0
        room = length - len(query) - 3
        while begin < len(tokens):
            size = min(len(tokens) - begin, room)
            spans.append((begin, begin + size))
            if begin + size == len(tokens):
                break
            begin += min(size, stride)
        for window, (begin, end) in enumerate(spans):
            row, types = ["[CLS]", *query, "[SEP]"], [0] * (len(query) + 2)
            best, words = {}, {}
            for token_at in range(begin, end):
                best[len(row)] = is_best(spans, window, token_at)
                words[len(row)] = owners[token_at]
                row.append(tokens[token_at])
                types.append(1)
            row.append("[SEP]")
            types.append(1)
            ids = tokenizer.convert_tokens_to_ids(row)
            mask = [1] * len(ids)
            while len(ids) < length:
                ids.append(0)
                mask.append(0)
                types.append(0)
            windows.append(Window(ids, types, mask, best, words))
    return windows


def agree(ours: squad.Features, theirs: list[Window]) -> bool:
    """Return whether both made the same rows."""
    best = np.zeros_like(ours.best)
    for row, window in enumerate(theirs):
        best[row, [place for place, flag in window.best.items() if flag]] = True
    return (
        np.array_equal(ours.ids, [window.ids for window in theirs])
        and np.array_equal(ours.token_types, [window.token_types for window in theirs])
        and np.array_equal(ours.mask, [window.mask for window in theirs])
        and np.array_equal(ours.best, best)
    )


def encode_once(examples: Sequence[squad.Example], tokenizer: bert.Tokenizer) -> None:
    for context in dict.fromkeys(example.context for example in examples):
        tokenizer.encode_with_offsets(context)
    for example in examples:
        tokenizer.encode(example.question)


def make_examples() -> list[squad.Example]:
    """Return questions about the paragraphs of a text: pieces of these, with the word that follows.

    Contexts are as long as those of SQuAD: three paragraphs, some hundred characters.
    """
    made, texts = [], paragraphs()
    for number in range(CONTEXTS):
        whole = " ".join(texts[3 * number : 3 * number + 3])
        spaces = [at for at, letter in enumerate(whole) if letter == " "]
        for i in range(QUESTIONS):
            first = spaces[i * len(spaces) // (2 * QUESTIONS)]
            question = whole[first + 1 : first + 60].strip()
            start = whole.rindex(" ") + 1
            answer = squad.Answer(whole[start:], start)
            made.append(squad.Example(f"{number}-{i}", f"{question}?", whole, (answer,)))
    return made


def main() -> int:
    parser = arguments(__doc__, rounds=5, quick=1)
    parser.add_argument("--file", type=Path, help="of SQuAD; without, a text is made")
    parser.add_argument("--vocab", type=Path, help="of BERT; without, one of the text is made")
    parser.add_argument("--questions", type=int, help="only the first ones")
    flags = parser.parse_args()
    if not is_installed("pytorch_pretrained_bert"):
        return 0
    examples = squad.read(flags.file) if flags.file else make_examples()
    count = flags.questions or (150 if flags.quick else len(examples))
    with tempfile.TemporaryDirectory() as folder:
        if flags.vocab is None:
            bert_tokenizer("\n".join(topics())).save(folder)
            flags.vocab = Path(folder, "vocab.txt")
        return not compare(examples[:count], flags.vocab, flags.rounds)


def compare(examples: Sequence[squad.Example], vocabulary: Path, rounds: int) -> bool:
    """Convert questions by both, check that they agree, and judge the times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = import_module("pytorch_pretrained_bert")
    peer = package.BertTokenizer(str(vocabulary), do_lower_case=True)
    names = ("pytorch-pretrained-bert", "numpy")
    print(f"Python {platform.python_version()},", *(f"{n} {metadata.version(n)}," for n in names))
    print(f"1 thread, {os.cpu_count()} processors; {len(examples)} questions")
    made: dict[str, Any] = {}  # the tokenizer of a round, and what both sides made

    def load() -> None:
        made["tokenizer"] = bert.load(vocabulary, lower_case=True)

    def ours() -> None:
        made["ours"] = squad.features(examples, made["tokenizer"])

    def theirs() -> None:
        made["theirs"] = convert(examples, peer, 384, 128, 64)

    taken = take_turns(
        {COLD: ours, PEER: theirs, "fnlm warm": ours, "physical limit": lambda: encode_once(
            examples, made["tokenizer"]
        )},
        rounds,
        warm_up=0,
        timer=partial(seconds, clock=time.process_time),
        prepare={COLD: load},
    )  # fmt: skip
    assert agree(made["ours"], made["theirs"]), "both must make the same rows"
    print(f"{len(made['theirs'])} windows, the same by both")
    for name, times in taken.items():
        speed = quartiles(ratios(taken[PEER], times))
        print(f"{name:26} {statistics.median(times):6.2f} s, {speed} times the peer's speed")
    judge("warm: speed / pytorch-pretrained-bert's", ratios(taken[PEER], taken["fnlm warm"]))
    found = ratios(taken[PEER], taken[COLD])
    return judge("cold: speed / pytorch-pretrained-bert's", found, BAR)


if __name__ == "__main__":
    sys.exit(main())
