"""The table of families: a new family adds a row, and every property in the tests applies to it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import bert, gpt, gpt2, random, transfo_xl, tree
from fnlm.tree import Tree

Task = Callable[..., Any]  # task(params, ids [*lead, T], mask [*lead, T], *, key=None) -> tensors


class Family(NamedTuple):
    """A model family as the tests see it."""

    name: str
    module: ModuleType
    config: Any  # small and awkward: 3 heads, width 36, unusual eps
    tasks: dict[str, Task]  # every model variant, as a function of params and data
    golden: Any  # the config of tests/golden/NAME.json: published widths, two layers
    others: tuple[Any, ...] = ()  # configs that have other leaves
    # Of a causal family: state(params, rows) before the first token, of every kind.
    starts: Mapping[str, Callable[[Tree, int], Any]] = {}
    table: str = "embed.token"  # the leaf whose rows are the embeddings of ids 0 to 10

    def takes(self, argument: str) -> bool:
        """Whether `apply` has an argument of this name."""
        return argument in inspect.signature(self.module.apply).parameters


def _causal(module: ModuleType) -> dict[str, Task]:
    """Make the tasks of a family with the signatures of GPT-2."""

    def hidden(params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None) -> Tensor:
        return module.hidden_states(params, ids, mask=mask, key=key)[0]

    def lm(params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None) -> Tensor:
        return module.apply(params, ids, mask=mask, key=key)[0]

    def double(
        params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Take each row of ids as two choices: itself, and itself with the first tokens dropped."""
        choices = torch.stack([ids, ids.roll(1, -1)], -2)
        masks = None if mask is None else torch.stack([mask, mask.roll(1, -1)], -2)
        last = torch.full_like(choices[..., 0], ids.shape[-1] - 2)
        return module.double_heads(params, choices, last, mask=masks, key=key)[:2]

    return {"hidden_states": hidden, "apply": lm, "double_heads": double}


def _caches(module: ModuleType) -> dict[str, Callable[[Tree, int], Any]]:
    """Make the starts of a family with a key-value cache."""
    return {
        "growing": lambda params, rows: None,
        "fixed": lambda params, rows: module.init_cache(params, rows, params["config"].n_positions),
    }


GPT2 = Family(
    "gpt2",
    gpt2,
    gpt2.Config(
        vocab_size=41,
        n_positions=24,
        n_ctx=24,
        n_embd=36,
        n_layer=2,
        n_head=3,
        layer_norm_epsilon=1e-3,
        embd_pdrop=0.2,
        attn_pdrop=0.3,
        resid_pdrop=0.1,
    ),
    _causal(gpt2),
    golden=gpt2.Config(n_layer=2),
    starts=_caches(gpt2),
)
GPT2 = GPT2._replace(others=(dataclasses.replace(GPT2.config, tie_word_embeddings=False),))

GPT = Family(
    "gpt",
    gpt,
    gpt.Config(
        vocab_size=41,
        n_positions=24,
        n_ctx=24,
        n_embd=36,
        n_layer=2,
        n_head=3,
        layer_norm_epsilon=1e-3,
        embd_pdrop=0.2,
        attn_pdrop=0.3,
        resid_pdrop=0.1,
    ),
    _causal(gpt),
    golden=gpt.Config(n_layer=2, n_special=3),
    starts=_caches(gpt),
)
GPT = GPT._replace(
    others=(
        dataclasses.replace(GPT.config, tie_word_embeddings=False),
        dataclasses.replace(GPT.config, n_special=3),
    )
)


def _bert(name: str) -> Task:
    """Make a task of a function of bert: token types vary with the ids."""

    def task(params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None) -> Any:
        return getattr(bert, name)(params, ids, ids % 2, mask, key=key)

    return task


def _bert_multiple_choice(
    params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None
) -> Tensor:
    """Take each row of ids as two choices: itself, and itself with the first tokens last."""
    choices = torch.stack([ids, ids.roll(1, -1)], -2)
    masks = None if mask is None else torch.stack([mask, mask.roll(1, -1)], -2)
    return bert.multiple_choice(params, choices, choices % 2, masks, key=key)


BERT = Family(
    "bert",
    bert,
    bert.Config(
        vocab_size=41,
        hidden_size=36,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.3,
        max_position_embeddings=24,
        layer_norm_eps=1e-3,
    ),
    {
        "multiple_choice": _bert_multiple_choice,
        **{
            name: _bert(name)
            for name in (
                "apply",
                "layers",
                "pretraining",
                "masked_lm",
                "next_sentence_prediction",
                "sequence_classification",
                "token_classification",
                "question_answering",
            )
        },
    },
    golden=bert.Config(num_hidden_layers=2, num_labels=3),
)
BERT = BERT._replace(others=(dataclasses.replace(BERT.config, num_labels=5),))


def _xl_hidden(params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None) -> Tensor:
    return transfo_xl.hidden_states(params, ids, key=key)[0]


def _xl_segments(params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None) -> Any:
    """Read each row in two segments; a row that has padding begins anew in the second."""
    first, mems = transfo_xl.apply(params, ids[..., :3], key=key, detach=False)
    if mask is not None:
        mems = transfo_xl.reset_mems(mems, ~mask.all(-1))
    second, mems = transfo_xl.apply(params, ids[..., 3:], mems, key=key, detach=False)
    return first, second, mems.hidden


def _xl_losses(params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None) -> Tensor:
    losses, _ = transfo_xl.negative_log_likelihood(params, ids, ids.roll(1, -1), key=key)
    return losses if mask is None else losses * mask


XL_CONFIG = transfo_xl.Config(
    n_token=41,
    cutoffs=(11, 24),
    d_model=36,
    d_embed=20,
    n_head=3,
    d_head=10,
    d_inner=20,
    div_val=2,
    n_layer=2,
    mem_len=5,
    clamp_len=4,
    dropout=0.2,
    dropatt=0.3,
    layer_norm_epsilon=1e-3,
)
TRANSFO_XL = Family(
    "transfo_xl",
    transfo_xl,
    XL_CONFIG,
    {
        "hidden_states": _xl_hidden,
        "apply": _xl_segments,
        "negative_log_likelihood": _xl_losses,
    },
    golden=transfo_xl.Config(n_layer=2),
    starts={"none": lambda params, rows: None, "blank": transfo_xl.init_mems},
    table="embed.cluster_0.table",
    others=(dataclasses.replace(XL_CONFIG, untie_r=False, tie_weight=False),),
)

FAMILIES = (GPT2, GPT, BERT, TRANSFO_XL)
VARIANTS = [(family, name) for family in FAMILIES for name in family.tasks]
IDS = [f"{family.name}-{name}" for family, name in VARIANTS]

# The functions that every family has, or every causal one.
STATES = ("apply", "hidden_states", "layers")
FUNCTIONS = [(f, name) for f in FAMILIES for name in STATES if hasattr(f.module, name)]
FUNCTION_IDS = [f"{f.name}-{name}" for f, name in FUNCTIONS]
CAUSAL = [f for f in FAMILIES if f.starts]

# What a file can hold: a family and heads that one class of `transformers` has.
FILES = [(f, heads) for f in FAMILIES for heads in f.module.names.FAMILY.architectures]
FILE_IDS = ["-".join([f.name, *heads]) for f, heads in FILES]


def make_params(
    family: Family, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.2
) -> Tree:
    """Make parameters far from their initial values, so that no bias or scale is trivial."""
    params = family.module.init(family.config, random.key(seed), heads=family.module.HEADS)
    keys = iter(random.split(random.key(seed + 1), len(tree.leaves(params))))
    noisy = tree.map(lambda x: x + scale * random.normal(next(keys), tuple(x.shape)), params)
    return tree.cast(noisy, dtype)


def with_heads(family: Family, heads: tuple[str, ...], dtype: torch.dtype = torch.float32) -> Tree:
    """Make parameters with these heads alone."""
    params = make_params(family, dtype=dtype)
    every = params.pop("heads", {})
    return {**params, "heads": {name: every[name] for name in heads}} if heads else params


def make_batch(
    family: Family, rows: int = 3, length: int = 7, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Make ids [rows, length] and a mask: rows whole, left-padded and right-padded in turn."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary(family), (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[1::3, :2] = False
    mask[2::3, -3:] = False
    return ids, mask


def vocabulary(family: Family) -> int:
    """The number of tokens in a family's config."""
    return getattr(family.config, "n_token", None) or family.config.vocab_size


def run(
    family: Family,
    params: Tree,
    ids: Tensor,
    state: Any = None,
    mask: Tensor | None = None,
    *,
    function: str = "apply",
) -> tuple[list[Tensor], Any]:
    """Call a function of any family: its results, and the next state where there is one.

    Token types vary with the ids; a family without masks is given none.
    """
    options: dict[str, Any] = {"token_types": ids % 2} if family.takes("token_types") else {}
    if mask is not None and family.takes("mask"):
        options["mask"] = mask
    call = getattr(family.module, function)
    if family.starts:
        result, state = call(params, ids, state, **options)
        return tree.leaves(result), state
    return tree.leaves(call(params, ids, **options)), None


def scalar(outputs: Any) -> Tensor:
    """Turn any outputs into one smooth number that every element has a say in."""
    return sum((x * x).mean() + x.sin().mean() for x in tree.leaves(outputs))
