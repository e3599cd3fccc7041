"""Claim: time and memory grow as the arithmetic does, in length, batch, depth, vocabulary and text.

Each row lets one size grow over a factor of 16 and fits an exponent: the slope of least squares of
the logarithm of the cost over that of the size. Time is that of the processor, in one thread, a fit
for each round, in which all sizes take turns; memory is the most bytes allocated at once. Bars are
the exponents of the arithmetic, and 0.15 more for times, 0.1 for memory: attention is quadratic in
the length and holds no scores, a cached step is linear in the context at most, derivatives through
N steps of training hold sqrt(N) states, a cross entropy in chunks no more logits for more tokens.
Small sizes have costs that do not grow, so exponents may well be lower.
"""

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _harness import Call, arguments, environment, judge, peak_bytes, seconds, take_turns
from _reference import bert_tokenizer, gpt_tokenizer, paragraphs, topics
from torch import Tensor
from torch.func import jvp, vmap

from fnlm import gpt2, random, train, transfo_xl, tree
from fnlm.generate import beam_search, generate
from fnlm.tasks import squad
from fnlm.tokenize import gpt2 as bpe
from fnlm.tokenize import transfo_xl as words
from fnlm.train import losses
from fnlm.transforms import (
    attribute,
    clipped_grad_sum,
    grad,
    lanczos,
    per_example_grads,
    per_example_norms,
)

TIME_SLACK, MEMORY_SLACK = 0.15, 0.1
VOCABULARY, WIDTH = 512, 64


class Row(NamedTuple):
    """What grows, and by which exponents at most; None where there is nothing to hold it to."""

    what: str
    smallest: int
    make: Callable[[int], Call]  # from a size
    time: float | None = 1.0
    memory: float | None = None


def model(
    layers: int = 2, vocabulary: int = VOCABULARY, width: int = WIDTH, positions: int = 4097
) -> Any:
    """Return random parameters of GPT-2."""
    config = gpt2.Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=2
    )
    return gpt2.init(config, random.key(0))


def draw(rows: int, length: int, vocabulary: int = VOCABULARY) -> Tensor:
    """Return random ids."""
    return (random.uniform(random.key(1), (rows, length)) * vocabulary).long()


def loss(params: Any, ids: Tensor) -> Tensor:
    return losses.language_model(gpt2.apply(params, ids)[0], ids)


def gradient(params: Any, ids: Tensor) -> Call:
    return lambda: grad(loss)(params, ids)


def chunked(vocabulary: int) -> Call:
    """Return the gradient of a cross entropy over chunks of tokens by its hidden states."""
    hidden = random.normal(random.key(0), (1100, 32))
    table = random.normal(random.key(1), (vocabulary, 32))
    labels = torch.arange(1100) % vocabulary
    return lambda: grad(losses.linear_cross_entropy)(hidden, table, labels)


def hessian_product(params: Any, ids: Tensor) -> Call:
    return lambda: jvp(lambda p: grad(loss)(p, ids), (params,), (params,))


def examples(function: Callable[..., object], rows: int, length: int = 128, **given: Any) -> Call:
    """Return a call of a function of per-example gradients."""
    params, ids = model(), draw(rows, length)
    return lambda: function(loss, params, ids, **given)


def spectrum(steps: int) -> Call:
    params, ids = model(1, 64, 32), draw(2, 32, 64)
    return lambda: lanczos(
        lambda v: jvp(lambda p: grad(loss)(p, ids), (params,), (v,))[1],
        params, random.key(2), steps,
    )  # fmt: skip


def attribution(steps: int) -> Call:
    """Return the derivative of a loss through steps of training by the weights of 8 texts."""
    config = gpt2.Config(vocab_size=64, n_positions=8, n_embd=64, n_layer=1, n_head=2)
    optimizer = train.adamw(1e-2)
    start = train.init_state(gpt2.init(config, random.key(0)), optimizer, random.key(1))
    ids = draw(8, 8, 64)

    def weighted(params: Any, which: Tensor, weights: Tensor, key: Tensor) -> Tensor:
        each = vmap(lambda row: loss(params, row[None]))(ids[which])
        return (weights * each).mean()

    take = train.train_step(weighted, optimizer)

    def step(state: Any, weights: Tensor, which: Tensor) -> Any:
        return take(state, which, weights[which])[0]

    order = [((2 * i + torch.arange(2)) % 8,) for i in range(steps)]
    ones = torch.ones(8)
    return lambda: attribute(step, lambda state: loss(state.params, ids), start, ones, order)


def cached_step(context: int) -> Call:
    params = model(width=256)
    _, cache = gpt2.apply(params, draw(4, context))
    token = draw(4, 1)
    return lambda: gpt2.apply(params, token, cache)


def prefill(length: int) -> Call:
    params, ids = model(width=256), draw(2, length)
    return lambda: gpt2.hidden_states(params, ids)


def decode(rows: int, tokens: int) -> Call:
    params, ids = model(width=256), draw(rows, 8)
    return lambda: generate(gpt2.apply, params, ids, tokens)


def beams(num_beams: int, tokens: int) -> Call:
    params, ids = model(width=256), draw(1, 8)
    return lambda: beam_search(gpt2.apply, params, ids, tokens, num_beams=num_beams)


def segments(count: int, memory: int) -> Call:
    """Return the losses of segments of 32 tokens, one after the other."""
    config = transfo_xl.Config(
        n_token=1000, cutoffs=(200,), d_model=64, d_embed=64, n_head=2, d_head=32, d_inner=256,
        n_layer=2, mem_len=memory, clamp_len=-1,
    )  # fmt: skip
    params = transfo_xl.init(config, random.key(0))
    ids = draw(2, 32, 1000)
    start = transfo_xl.init_mems(params, 2)

    def run() -> None:
        mems = start
        for _ in range(count):
            _, mems = transfo_xl.negative_log_likelihood(params, ids, ids, mems)

    return run


def update(optimizer: Any, size: int, *, donate: bool = False) -> Call:
    """Return an update of 16 leaves of a size."""
    params = {str(i): torch.ones(size) for i in range(16)}
    grads, state = tree.map(torch.clone, params), optimizer.init(params)
    return lambda: optimizer.update(grads, state, params, donate=donate)


def encode(make: Callable[[], Any], size: int) -> Call:
    """Return what encodes the first characters of a text by a tokenizer that has seen nothing."""
    text = "\n".join(topics())[:size]
    return lambda: make().encode(text)


def one_word(make: Callable[[], Any], size: int) -> Call:
    letters = random.categorical(random.key(3), torch.zeros(size, 26)).tolist()
    word = "".join(chr(ord("a") + letter) for letter in letters)
    return lambda: make().encode(word)


def questions(count: int, tokenizer: Any) -> Call:
    texts = paragraphs()[:count]
    asked = [squad.Example(str(i), text[:60], text, ()) for i, text in enumerate(texts)]
    return lambda: squad.features(asked, tokenizer)


def opening(folder: Path, width: int) -> Call:
    """Return what opens a checkpoint, whose bytes grow as the square of the width."""
    gpt2.save(model(2, VOCABULARY, width), folder / str(width))
    return partial(gpt2.load, folder / str(width))


def training() -> list[Row]:
    """Return the rows about gradients."""
    return [
        Row("gradient by length", 128, lambda n: gradient(model(), draw(2, n)), 2, 1),
        Row("gradient by batch", 1, lambda n: gradient(model(), draw(n, 256)), 1, 1),
        Row("gradient by depth", 1, lambda n: gradient(model(n), draw(2, 128)), 1, 1),
        Row("gradient by vocabulary", 2048, lambda n: gradient(model(1, n), draw(2, 128)), 1, 1),
        Row("cross entropy in chunks by vocabulary", 8192, chunked, None, 0),
        Row("Hessian product by length", 64, lambda n: hessian_product(model(), draw(1, n)), 2, 2),
        Row("Hessian product by batch", 1, lambda n: hessian_product(model(), draw(n, 64)), 1, 1),
        Row("Hessian product by depth", 1, lambda n: hessian_product(model(n), draw(2, 64)), 1, 1),
        Row("Lanczos by steps", 2, spectrum, 1, 1),
        Row("attribution by steps", 4, attribution, 1, 0.5),
        Row("AdamW by parameters", 2**14, partial(update, train.adamw(1e-3)), 1, 1),
        Row("BertAdam by parameters", 2**14, partial(update, train.bert_adam(1e-3)), 1, 1),
        Row("clipped sum by batch", 1, partial(examples, clipped_grad_sum, max_norm=1.0), 1, 1),
        Row(
            "clipped sum, an example at a time, by batch", 2,
            partial(examples, clipped_grad_sum, max_norm=1.0, chunk_size=1), 1, 0,
        ),
        Row("norms by batch", 1, partial(examples, per_example_norms), 1, 1),
        Row("norms by length", 64, lambda n: examples(per_example_norms, 2, n), 2, 1),
        Row("per-example gradients by batch", 1, partial(examples, per_example_grads), 1, 1),
    ]  # fmt: skip


def decoding() -> list[Row]:
    """Return the rows about evaluation and generation."""
    return [
        Row("hidden states by length", 128, prefill, 2, 1),
        Row("cached step by context", 256, cached_step, 1, 1),
        Row("generation by tokens", 16, partial(decode, 1)),
        Row("generation by batch", 4, lambda n: decode(n, 16)),
        Row("beam search by beams", 2, lambda n: beams(n, 16)),
        Row("beam search by tokens", 8, partial(beams, 4)),
        Row("Transformer-XL by memory", 64, lambda n: segments(2, n), 1, 1),
        Row("Transformer-XL by segments", 2, lambda n: segments(n, 64), 1, 0),
    ]


def texts(folder: Path) -> list[Row]:
    """Return the rows about text and files."""
    text = "\n".join(topics())
    bert, gpt = bert_tokenizer(text), gpt_tokenizer(text)
    table = words.train([text], special=["<unk>"])
    loaded = bpe.load("tiny")
    makers: dict[str, Callable[[], Any]] = {
        "BERT": lambda: type(bert)(bert.vocab, profile="transformers"),
        "GPT": lambda: type(gpt)(gpt.vocab, gpt.merges, gpt.mode),
        "GPT-2": lambda: bpe.Tokenizer(loaded.vocab, loaded.merges),
        "Transformer-XL": lambda: table,
    }
    return [
        *(
            Row(f"{name}'s tokens by text", 2**14, partial(encode, make))
            for name, make in makers.items()
        ),
        *(
            Row(f"{name}'s tokens by one long word", 2**10, partial(one_word, makers[name]))
            for name in ("GPT", "GPT-2")
        ),
        Row("SQuAD's windows by questions", 32, lambda n: questions(n, bert)),
        Row("opening a checkpoint by width", 32, partial(opening, folder), 0),
    ]


def slope(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return the exponent of least squares."""
    x, y = ([math.log(value) for value in column] for column in (sizes, costs))
    return statistics.linear_regression(x, y).slope


def measure(row: Row, rounds: int, factors: Sequence[int]) -> bool:
    """Judge the exponents of a row."""
    sizes = [row.smallest * factor for factor in factors]
    calls = {str(size): row.make(size) for size in sizes}
    met = True
    if row.time is not None:
        clock = partial(seconds, clock=time.process_time)
        taken = take_turns(calls, rounds, timer=clock)
        found = [slope(sizes, costs) for costs in zip(*taken.values(), strict=True)]
        what = f"{row.what}: exponent of time, expected {row.time:g}"
        met &= judge(what, found, row.time + TIME_SLACK, at_most=True)
    if row.memory is not None:
        peaks = [peak_bytes(call) for call in calls.values()]
        what = f"{row.what}: exponent of memory, expected {row.memory:g}"
        met &= judge(what, [slope(sizes, peaks)], row.memory + MEMORY_SLACK, at_most=True)
    return met


def main() -> int:
    args = arguments(__doc__, rounds=3, quick=1).parse_args()
    torch.set_num_threads(1)
    print(environment())
    factors = (1, 4) if args.quick else (1, 2, 4, 8, 16)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*training(), *decoding(), *texts(Path(folder))]
        met = [measure(row, args.rounds, factors) for row in rows]
    return not all(met)


if __name__ == "__main__":
    sys.exit(main())
