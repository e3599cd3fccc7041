"""The table of families: a new family adds a row, and every property in the tests applies to it."""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fnlm import gpt2, random
from fnlm.params import tree
from fnlm.params.tree import Tree

Task = Callable[..., Any]  # task(params, ids [*lead, T], mask [*lead, T], *, key=None) -> tensors


class Family(NamedTuple):
    """A model family as the tests see it."""

    name: str
    module: ModuleType
    config: Any  # small and awkward: 3 heads, width 36, unusual epsilon
    tasks: dict[str, Task]  # every model variant, as a function of params and data


def _gpt2_lm(params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None) -> Tensor:
    return gpt2.apply(params, ids, mask=mask, key=key)[0]


def _gpt2_hidden(
    params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None
) -> Tensor:
    return gpt2.hidden_states(params, ids, mask=mask, key=key)[0]


def _gpt2_double(
    params: Tree, ids: Tensor, mask: Tensor | None = None, *, key: Any = None
) -> tuple[Tensor, Tensor]:
    """Take each row of ids as two choices: itself, and itself with the first tokens dropped."""
    choices = torch.stack([ids, ids.roll(1, -1)], -2)
    masks = None if mask is None else torch.stack([mask, mask.roll(1, -1)], -2)
    last = torch.full_like(choices[..., 0], ids.shape[-1] - 2)
    return gpt2.double_heads(params, choices, last, mask=masks, key=key)


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
    {"hidden_states": _gpt2_hidden, "apply": _gpt2_lm, "double_heads": _gpt2_double},
)

FAMILIES = (GPT2,)
VARIANTS = [(family, name) for family in FAMILIES for name in family.tasks]
IDS = [f"{family.name}-{name}" for family, name in VARIANTS]


def make_params(
    family: Family, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.2
) -> Tree:
    """Make parameters far from their initial values, so that no bias or scale is trivial."""
    params = family.module.init(family.config, random.key(seed), heads=family.module.HEADS)
    keys = iter(random.split(random.key(seed + 1), len(tree.leaves(params))))
    noisy = tree.map(lambda x: x + scale * random.normal(next(keys), tuple(x.shape)), params)
    return tree.cast(noisy, dtype)


def make_batch(
    family: Family, rows: int = 3, length: int = 7, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Make ids [rows, length] and a mask: rows whole, left-padded and right-padded in turn."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(family.config.vocab_size, (rows, length), generator=generator)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[1::3, :2] = False
    mask[2::3, -3:] = False
    return ids, mask


def scalar(outputs: Any) -> Tensor:
    """Turn any outputs into one smooth number that every element has a say in."""
    return sum((x * x).mean() + x.sin().mean() for x in tree.leaves(outputs))
