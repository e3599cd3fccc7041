"""The table of families: a new family adds a row, and every property in the tests applies to it."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import bert, families, gpt, gpt2, random, transfo_xl, tree
from fnlm.params.names import Family as Names
from fnlm.tree import Tree

# task(params, ids [*lead, T], mask [*lead, T], *, key=None, **how) -> tensors; how: remat
Task = Callable[..., Any]


class Family(NamedTuple):
    """A model family as the tests see it."""

    name: str
    module: ModuleType
    config: Any  # small and awkward: 3 heads, width 36, unusual eps
    tasks: dict[str, Task]  # every model variant, as a function of params and data
    others: tuple[Any, ...] = ()  # configs that have other leaves
    golden: Any = None  # the config of tests/golden/NAME.json: published widths, two layers
    # Of a causal family: state(params, rows) before the first token, of every kind.
    starts: Mapping[str, Callable[[Tree, int], Any]] = {}
    table: str = "embed.token"  # the leaf whose rows are the embeddings of ids 0 to 10

    def takes(self, argument: str) -> bool:
        """Whether `apply` has an argument of this name."""
        return argument in inspect.signature(self.module.apply).parameters

    @property
    def names(self) -> Names:
        """The table of foreign names."""
        return families.FAMILIES[self.name].names


def _row(
    name: str, tasks: dict[str, Task], *changes: dict[str, Any], golden: Any = None, **rest: Any
) -> Family:
    """Make the row of a family of the register; changes of its config give it other leaves."""
    record = families.FAMILIES[name]
    config = record.module.Config(**record.small)
    others = tuple(dataclasses.replace(config, **change) for change in changes)
    golden = None if golden is None else record.module.Config(**golden)
    return Family(name, record.module, config, tasks, others, golden, **rest)


def _causal(module: ModuleType) -> dict[str, Task]:
    """Make the tasks of a family with the signatures of GPT-2."""

    def hidden(
        params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None, **how: Any
    ) -> Tensor:
        return module.hidden_states(params, ids, mask=mask, key=key, **how)[0]

    def lm(
        params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None, **how: Any
    ) -> Tensor:
        return module.apply(params, ids, mask=mask, key=key, **how)[0]

    def double(
        params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None, **how: Any
    ) -> tuple[Tensor, Tensor]:
        """Take each row of ids as two choices: itself, and itself with the first tokens dropped."""
        choices = torch.stack([ids, ids.roll(1, -1)], -2)
        masks = None if mask is None else torch.stack([mask, mask.roll(1, -1)], -2)
        last = torch.full_like(choices[..., 0], ids.shape[-1] - 2)
        return module.double_heads(params, choices, last, mask=masks, key=key, **how)[:2]

    tasks: dict[str, Task] = {"hidden_states": hidden, "apply": lm, "double_heads": double}
    return {name: task for name, task in tasks.items() if hasattr(module, name)}


def _caches(module: ModuleType) -> dict[str, Callable[[Tree, int], Any]]:
    """Make the starts of a family with a key-value cache."""
    return {
        "growing": lambda params, rows: None,
        "fixed": lambda params, rows: module.init_cache(params, rows, 24),
    }


GPT2 = _row(
    "gpt2", _causal(gpt2), {"tie_word_embeddings": False},
    golden={"n_layer": 2}, starts=_caches(gpt2),
)  # fmt: skip
GPT = _row(
    "gpt", _causal(gpt), {"tie_word_embeddings": False}, {"n_special": 3},
    golden={"n_layer": 2, "n_special": 3}, starts=_caches(gpt),
)  # fmt: skip


def _bert(name: str) -> Task:
    """Make a task of a function of bert: token types vary with the ids."""

    def task(
        params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None, **how: Any
    ) -> Any:
        return getattr(bert, name)(params, ids, ids % 2, mask, key=key, **how)

    return task


def _bert_multiple_choice(
    params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None, **how: Any
) -> Tensor:
    """Take each row of ids as two choices: itself, and itself with the first tokens last."""
    choices = torch.stack([ids, ids.roll(1, -1)], -2)
    masks = None if mask is None else torch.stack([mask, mask.roll(1, -1)], -2)
    return bert.multiple_choice(params, choices, choices % 2, masks, key=key, **how)


_BERT_TASKS = (
    "apply", "layers", "pretraining", "masked_lm", "next_sentence_prediction",
    "sequence_classification", "token_classification", "question_answering",
)  # fmt: skip
BERT = _row(
    "bert",
    {"multiple_choice": _bert_multiple_choice, **{name: _bert(name) for name in _BERT_TASKS}},
    {"num_labels": 5},
    golden={"num_hidden_layers": 2, "num_labels": 3},
)


def _xl_hidden(
    params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None, **how: Any
) -> Tensor:
    return transfo_xl.hidden_states(params, ids, key=key, **how)[0]


def _xl_segments(
    params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None, **how: Any
) -> Any:
    """Read each row in two segments; a row that has padding begins anew in the second."""
    first, mems = transfo_xl.apply(params, ids[..., :3], key=key, detach=False, **how)
    if mask is not None:
        mems = transfo_xl.reset_mems(mems, ~mask.all(-1))
    second, mems = transfo_xl.apply(params, ids[..., 3:], mems, key=key, detach=False, **how)
    return first, second, mems.hidden


def _xl_losses(
    params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None, **how: Any
) -> Tensor:
    losses, _ = transfo_xl.negative_log_likelihood(params, ids, ids.roll(1, -1), key=key, **how)
    return losses if mask is None else losses * mask


TRANSFO_XL = _row(
    "transfo_xl",
    {
        "hidden_states": _xl_hidden,
        "apply": _xl_segments,
        "negative_log_likelihood": _xl_losses,
    },
    {"untie_r": False, "tie_weight": False},
    golden={"n_layer": 2},
    starts={"none": lambda params, rows: None, "blank": transfo_xl.init_mems},
    table="embed.cluster_0.table",
)

# A family of the register that has no row above has the functions of GPT-2.
WRITTEN = (GPT2, GPT, BERT, TRANSFO_XL)
DERIVED = tuple(
    _row(name, _causal(record.module), starts=_caches(record.module))
    for name, record in families.FAMILIES.items()
    if name not in {family.name for family in WRITTEN}
)
FAMILIES = (*WRITTEN, *DERIVED)
VARIANTS = [(family, name) for family in FAMILIES for name in family.tasks]
IDS = [f"{family.name}-{name}" for family, name in VARIANTS]

# The functions that every family has, or every causal one.
STATES = ("apply", "hidden_states", "layers")
FUNCTIONS = [(f, name) for f in FAMILIES for name in STATES if hasattr(f.module, name)]
FUNCTION_IDS = [f"{f.name}-{name}" for f, name in FUNCTIONS]
CAUSAL = [f for f in FAMILIES if f.starts]

# What a file can hold: a family and heads that one class of `transformers` has.
FILES = [(f, heads) for f in FAMILIES for heads in f.names.architectures]
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
    return getattr(family.config, families.FAMILIES[family.name].vocab_size)


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
