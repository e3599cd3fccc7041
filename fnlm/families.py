"""The register of families: what a tool, a test or a page must know of each, one record a family.

Tools know no family by name. They look here, and import the modules of a family when they need
them: `fnlm.NAME` is its model, `fnlm.params.names.NAME` its table of foreign names. Imports run one
way: no module of a family imports this one. docs/adding_a_family.md says what else a family needs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType, ModuleType
from typing import Any

__all__ = ["FAMILIES", "Record", "causal", "find"]


@dataclass(frozen=True, kw_only=True)
class Record:
    """What there is to know of a family without importing it.

    >>> FAMILIES["gpt2"].title, FAMILIES["gpt2"].module.Config(**FAMILIES["gpt2"].small).n_head
    ('GPT-2', 3)
    """

    name: str  # of its module in fnlm, and of its table of names in fnlm.params.names
    title: str  # its name in prose
    small: Mapping[
        str, Any
    ]  # fields of a small, awkward Config: 3 heads, odd sizes, every rate > 0
    # Of families that generate text:
    tokenizer: str | None = None  # its module in fnlm.tokenize, which may be that of another family
    is_causal: bool = True  # whether its `apply` gives the logits of the next token
    begin: str | None = None  # the token that an empty prompt becomes
    eos: str | None = None  # the token that ends a text
    newline: str | None = None  # the token of a line's end, where others are words between spaces
    vocab_size: str = "vocab_size"  # the field of its Config that counts the tokens
    may_pad: bool = True  # whether its embeddings may have more rows than there are tokens

    @property
    def module(self) -> ModuleType:
        """The model: Config, init, apply, load, save, ..."""
        return import_module(f"fnlm.{self.name}")

    @property
    def names(self) -> Any:
        """The table of foreign names, a `fnlm.params.names.Family`."""
        return import_module(f"fnlm.params.names.{self.name}").FAMILY

    @property
    def tokenizer_module(self) -> ModuleType:
        """The module in `fnlm.tokenize`.

        Raises:
            ValueError: the family has none.
        """
        if self.tokenizer is None:
            raise ValueError(
                f"{self.name} has no tokenizer in fnlm.tokenize: call fnlm.{self.name}.load and "
                "pass ids of your own"
            )
        return import_module(f"fnlm.tokenize.{self.tokenizer}")


_SMALL_GPT = {
    "vocab_size": 41, "n_positions": 24, "n_ctx": 24, "n_embd": 36, "n_layer": 2, "n_head": 3,
    "layer_norm_epsilon": 1e-3, "embd_pdrop": 0.2, "attn_pdrop": 0.3, "resid_pdrop": 0.1,
}  # fmt: skip
_SMALL_BERT = {
    "vocab_size": 41, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.3,
    "max_position_embeddings": 24, "layer_norm_eps": 1e-3,
}  # fmt: skip
_SMALL_TRANSFO_XL = {
    "n_token": 41, "cutoffs": (11, 24), "d_model": 36, "d_embed": 20, "n_head": 3, "d_head": 10,
    "d_inner": 20, "div_val": 2, "n_layer": 2, "mem_len": 5, "clamp_len": 4, "dropout": 0.2,
    "dropatt": 0.3, "layer_norm_epsilon": 1e-3,
}  # fmt: skip

_RECORDS = (
    Record(name="bert", title="BERT", small=_SMALL_BERT, tokenizer="bert", is_causal=False),
    # No token begins or ends a text of GPT: it needs a prompt, and goes on.
    Record(
        name="gpt", title="OpenAI GPT", small=_SMALL_GPT, tokenizer="gpt",
        vocab_size="total_tokens_embeddings",
    ),
    Record(
        name="gpt2", title="GPT-2", small=_SMALL_GPT, tokenizer="gpt2",
        begin="<|endoftext|>", eos="<|endoftext|>",
    ),
    # A text of Transformer-XL is any number of lines, each of which begins after an <eos>. Its
    # adaptive softmax has no rows to spare.
    Record(
        name="transfo_xl", title="Transformer-XL", small=_SMALL_TRANSFO_XL, tokenizer="transfo_xl",
        begin="<eos>", newline="<eos>", vocab_size="n_token", may_pad=False,
    ),
)  # fmt: skip

FAMILIES: Mapping[str, Record] = MappingProxyType({record.name: record for record in _RECORDS})


def find(name: str) -> Record:
    """Return the record of a family.

    Raises:
        ValueError: there is none of that name.

    >>> find("gpt3")
    Traceback (most recent call last):
    ValueError: family='gpt3' is not one of bert, gpt, gpt2, transfo_xl
    """
    if name not in FAMILIES:
        raise ValueError(f"family={name!r} is not one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def causal() -> tuple[Record, ...]:
    """Return the records of the families that generate text.

    >>> [record.name for record in causal()]
    ['gpt', 'gpt2', 'transfo_xl']
    """
    return tuple(record for record in FAMILIES.values() if record.is_causal)
