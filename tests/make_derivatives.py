"""Writes docs/derivatives.md: what fnlm and transformers give under compositions of transforms.

    python tests/make_derivatives.py

Tiny language models with the same parameters, in float64, one example being ids without padding.
transformers' models are called through `torch.func.functional_call`, with defaults and with
attn_implementation="eager". A cell compares with plain autograd and loops, over all leaves at once.
"""

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from compositions import PAIRED, Function, compose, error, reference
from conftest import ROOT
from families import BERT, GPT, GPT2, TRANSFO_XL, Family, scalar, with_heads
from peers import hf
from torch import Tensor
from torch.func import functional_call

from fnlm import bert, gpt, gpt2, random, transfo_xl, tree
from fnlm.params import _rename
from fnlm.tree import Tree

PAGE = ROOT / "docs" / "derivatives.md"
TOLERANCE = 1e-6
PAIRS = [(outer, inner) for outer in PAIRED for inner in PAIRED]
TRIPLES = [
    ("grad", "vmap", "grad"), ("vmap", "jvp", "grad"), ("jvp", "jvp", "grad"),
    ("grad", "grad", "grad"), ("grad", "jvp", "vmap"),
]  # fmt: skip
HEAD = """# Derivatives of compositions

Transforms of `torch.func` compose, and what comes out should be the derivative. Here is what does,
for tiny language models with the same parameters in fnlm and in `transformers`, whose models are
called through `torch.func.functional_call`, with their defaults and with
`attn_implementation="eager"`. All derivatives are along directions that move every leaf; `vmap` is
over examples; "grad of vmap" is the gradient of a weighted sum of what `vmap` gives. Numbers are in
float64 and compared with plain autograd and loops, which differences confirm
(`tests/test_derivatives.py` does so for all models of fnlm); "right" is 1e-6. What is off is so
without an error or a warning, since torch's layer norm is ([torch_func.md](torch_func.md) has it
alone). Errors are listed below each table.

Written by `python tests/make_derivatives.py`, with VERSIONS.
"""
COLUMNS = ("fnlm", "transformers", "transformers, eager")


class Model(NamedTuple):
    """A language model of fnlm, and the same one in transformers."""

    family: Family
    changes: dict[str, Any]  # to its config, to make it tiny
    logits: Callable[[Tree, Tensor], Tensor]
    heads: tuple[str, ...] = ()
    name: str = ""  # of the class in transformers; empty for none
    extra: dict[str, Any] = {}  # what the peer's config says besides


TINY = {"n_embd": 6, "n_layer": 1, "n_positions": 8, "vocab_size": 11}
MODELS = {
    "BERT, masked LM": Model(
        BERT,
        {"hidden_size": 6, "intermediate_size": 5, "num_hidden_layers": 1, "vocab_size": 11},
        bert.masked_lm, ("masked_lm",), "BertForMaskedLM",
    ),
    "GPT": Model(
        GPT, TINY, lambda p, ids: gpt.apply(p, ids)[0], (), "OpenAIGPTLMHeadModel",
        {"num_labels": 1},
    ),
    "GPT-2": Model(
        GPT2, TINY, lambda p, ids: gpt2.apply(p, ids)[0], (), "GPT2LMHeadModel",
        {"bos_token_id": None, "eos_token_id": None},
    ),
    "Transformer-XL": Model(
        TRANSFO_XL,
        {"d_model": 6, "d_embed": 8, "d_head": 3, "d_inner": 5, "n_layer": 1, "n_token": 11,
         "cutoffs": (3, 6)},
        lambda p, ids: transfo_xl.apply(p, ids)[0],
    ),
}  # fmt: skip
IDS = torch.tensor([[1, 7, 10, 3, 4], [9, 2, 2, 5, 8]])
EXAMPLE = torch.tensor(0)


class Case(NamedTuple):
    """A function of a model's parameters and an example, and where to differentiate it."""

    h: Function
    params: Tree
    along: list[Tree]


def on_examples(logits: Callable[[Tree, Tensor], Tensor]) -> Function:
    """Take the number of an example; models of transformers want a batch of it alone."""
    return lambda p, i: scalar(logits(p, IDS.index_select(0, i[None])))


def directions(params: Tree) -> list[Tree]:
    """A direction for each of three transforms."""
    keys = iter(random.split(random.key(7), 3 * len(tree.leaves(params))))
    return [
        tree.map(lambda x: random.normal(next(keys), tuple(x.shape), x.dtype), params)
        for _ in range(3)
    ]


def ours(model: Model) -> Case:
    family = model.family._replace(config=replace(model.family.config, **model.changes))
    params = with_heads(family, model.heads, torch.float64)
    return Case(on_examples(model.logits), params, directions(params))


def theirs(model: Model, **options: Any) -> Case:
    """The same function under the peer's names, its parameters and directions likewise."""
    same, table = ours(model), model.family.names
    config = same.params["config"]
    if model.family is GPT:  # its peer counts words and special tokens together
        config = replace(config, vocab_size=config.total_tokens_embeddings)
    cls = getattr(hf(), model.name)
    module = cls(cls.config_class(**config.to_dict() | model.extra, **options)).double().eval()
    wanted = [name for name, _ in module.named_parameters()]

    def renamed(values: Tree) -> Tree:
        leaves = {name: leaf for name, leaf in values.items() if name != "config"}
        foreign = _rename.to_foreign(leaves, table.dialects[0])
        return {name: foreign[name] for name in wanted}

    def logits(p: Tree, ids: Tensor) -> Tensor:
        return functional_call(module, p, (ids,)).logits

    return Case(on_examples(logits), renamed(same.params), [renamed(d) for d in same.along])


def case(model: Model, column: str) -> Case:
    if column == "fnlm":
        return ours(model)
    return theirs(model, **{"attn_implementation": "eager"} if "eager" in column else {})


@cache
def expected(name: str, kinds: tuple[str, ...]) -> Tensor:
    h, params, along = ours(MODELS[name])
    return reference(h, kinds, along[-len(kinds) :])(params, EXAMPLE).detach()


def cell(name: str, of: Case, names: tuple[str, ...], errors: list[str]) -> str:
    """Say how one composition compares: "right", by how much it is off, or which error it is."""
    kinds = tuple("vmap" if name == "vmap" else "grad" for name in names)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = compose(of.h, names, of.along[-len(names) :])(of.params, EXAMPLE)
    except (RuntimeError, NotImplementedError, ValueError) as problem:
        words = f"{type(problem).__name__}: {str(problem).splitlines()[0].partition('. ')[0]}"
        errors += [words] if words not in errors else []
        return f"error {errors.index(words) + 1}"
    off = error(found, expected(name, kinds))
    return (
        "right" if off < TOLERANCE else f"**off by {100 * off:{'.0f' if off > 0.1 else '.2g'}} %**"
    )


def rows(name: str) -> Iterator[str]:
    """The lines of a model's table."""
    model = MODELS[name]
    columns = COLUMNS if model.name else COLUMNS[:1]
    cases = [case(model, column) for column in columns]
    errors: list[str] = []
    yield f"| {name} | " + " | ".join(columns) + " |"
    yield "| --- " * (1 + len(columns)) + "|"
    for names in [*PAIRS, *TRIPLES]:
        cells = [cell(name, of, names, errors) for of in cases]
        yield f"| {' of '.join(names)} | " + " | ".join(cells) + " |"
    for number, words in enumerate(errors, 1):
        yield f"{number}. `{words}`" if number > 1 else f"\n{number}. `{words}`"


def page() -> str:
    """The text of docs/derivatives.md."""
    tables = ["\n".join(rows(name)) for name in MODELS]
    versions = f"torch {torch.__version__.split('+')[0]}, transformers {hf().__version__}"
    return HEAD.replace("VERSIONS", versions) + "\n" + "\n\n".join(tables) + "\n"


if __name__ == "__main__":
    sys.stdout.write(made := page())
    PAGE.write_text(made, encoding="utf-8")
