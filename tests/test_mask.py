"""Masks of tokens: integers and booleans say the same everywhere, a floating one is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from families import BERT, FAMILIES, GPT, GPT2, make_batch, make_params
from torch import Tensor
from torch.func import vmap

from fnlm import bert, generate, tree
from fnlm.layers.attention import attend, padding_bias
from fnlm.layers.mask import check_mask
from fnlm.train import losses

PARAMS = {family.name: make_params(family) for family in (BERT, GPT, GPT2)}
IDS, MASK = make_batch(GPT2)
LOGITS = torch.zeros(3, 7, 41)


def counts(params: Any, ids: Tensor, cache: Any = None, mask: Any = None) -> tuple[Tensor, Tensor]:
    """A model that counts."""
    return torch.nn.functional.one_hot((ids + 1) % 41, 41).float(), ids


def of_task(task: Any, params: Any, mask: Tensor) -> Any:
    return task(params, IDS, mask)


Call = Callable[[Tensor], Any]

# Whatever takes a mask of tokens: a new function adds a row.
CALLS: dict[str, Call] = {
    **{
        f"{family.name}.{name}": partial(of_task, task, PARAMS[family.name])
        for family in FAMILIES
        if family.name in PARAMS
        for name, task in family.tasks.items()
    },
    "padding_bias": lambda mask: padding_bias(mask, torch.float32),
    "generate": lambda mask: generate.generate(counts, {}, IDS, 2, mask=mask),
    "stream": lambda mask: list(generate.stream(counts, {}, IDS, 2, mask=mask)),
    "beam_search": lambda mask: generate.beam_search(counts, {}, IDS, 2, num_beams=2, mask=mask),
    "start": lambda mask: generate.start(GPT2.module.apply, PARAMS["gpt2"], IDS, mask=mask),
    "pad_left": lambda mask: [x for x in generate._state.pad_left(IDS, mask) if x is not None],
    "language_model": lambda mask: losses.language_model(LOGITS, IDS, mask),
    "token_classification": lambda mask: losses.token_classification(LOGITS, IDS, mask),
}
each_call = pytest.mark.parametrize("name", CALLS)
READS_VALUES = {"generate", "stream", "beam_search", "pad_left"}
FLOATS = {
    "ones and zeros": MASK.float(),
    "-10000": torch.where(MASK, 0.0, -1e4),
    "-inf": torch.where(MASK, 0.0, -torch.inf),
    "lowest half": torch.where(MASK, 0.0, torch.finfo(torch.float16).min).half(),
    "float64": torch.where(MASK, 0.0, -1e4).double(),
}


@each_call
@pytest.mark.parametrize("kind", FLOATS)
def test_floating_masks_are_refused_by_their_type(name: str, kind: str) -> None:
    with pytest.raises(TypeError, match=r"mask must be bool or integers.*`mask = bias == 0`"):
        CALLS[name](FLOATS[kind])
    if name not in READS_VALUES:
        with pytest.raises(TypeError, match=r"`mask = bias == 0`"):
            vmap(CALLS[name])(FLOATS[kind][None])


@each_call
def test_the_remedies_of_the_error_hold(name: str) -> None:
    expected = tree.leaves(CALLS[name](MASK))
    for mask in (FLOATS["-inf"] == 0, FLOATS["ones and zeros"] != 0, MASK.int(), MASK.byte() * 7):
        for found, wanted in zip(tree.leaves(CALLS[name](mask)), expected, strict=True):
            assert torch.equal(found, wanted)


def test_the_check_is_of_types_alone() -> None:
    compiled = torch.compile(bert.apply, fullgraph=True, backend="eager")
    assert compiled(PARAMS["bert"], IDS, None, MASK)[0].isfinite().all()
    check_mask(None)
    check_mask(torch.empty(2, dtype=torch.uint8, device="meta"))
    with pytest.raises(TypeError, match="got list"):
        check_mask([1, 1, 0])


def test_attention_takes_a_mask_or_what_is_added_to_the_scores_and_no_integers() -> None:
    """Ones and zeros would be added, and hide nothing."""
    x = torch.randn(2, 3, 4)
    with pytest.raises(TypeError, match=r"got torch.int64: give `mask != 0`"):
        attend(x, (x,), (x,), torch.ones(1, 3, 3, dtype=torch.int64))
