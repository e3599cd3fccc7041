"""What is given for parameters and ids is looked at once, by every function, at no cost."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import BERT, FAMILIES, GPT, GPT2, TRANSFO_XL, Family, make_batch, make_params
from torch import nn
from torch.func import grad, jacrev, jvp, vmap

from fnlm import bert, gpt, gpt2, random, transfo_xl, tree
from fnlm.generate import beam_search, generate, stream
from fnlm.params._check import config_of
from fnlm.params.layout import for_decoding

IDS = torch.tensor([[1, 2, 3]])
CHOICES = (torch.ones(1, 2, 3, dtype=torch.int64), torch.tensor([[1, 2]]))
SMALL = {family.name: make_params(family) for family in FAMILIES}


def other_of(name: str) -> str:
    """Another family."""
    return {"gpt2": "gpt", "transfo_xl": "bert"}.get(name, "gpt2")


TASKS = ("apply", "layers", *bert.HEADS, "pretraining")


def _saved(save: Callable[..., None], params: Any, folder: Path) -> None:
    save(params, folder / "made")


def calls_of(family: Family) -> dict[str, Callable[..., Any]]:
    """Every public function of a family that takes parameters, as a function of them alone."""
    f = family.module
    found: dict[str, Callable[..., Any]] = {"save": partial(_saved, f.save)}
    if f is bert:
        ids = torch.ones(1, 2, 3, dtype=torch.int64)
        return found | {name: lambda p, _, n=name: getattr(bert, n)(p, ids) for name in TASKS}
    found |= {
        "apply": lambda p, _: f.apply(p, IDS),
        "hidden_states": lambda p, _: f.hidden_states(p, IDS),
        "generate": lambda p, _: generate(f.apply, p, IDS, 2),
        "stream": lambda p, _: list(stream(f.apply, p, IDS, 2)),
        "beam_search": lambda p, _: beam_search(f.apply, p, IDS, 2, num_beams=2),
    }
    if f is transfo_xl:
        return found | {
            "negative_log_likelihood": lambda p, _: f.negative_log_likelihood(p, IDS, IDS),
            "init_mems": lambda p, _: f.init_mems(p, 2),
        }
    found["init_cache"] = lambda p, _: f.init_cache(p, 2, 4)
    if "multiple_choice" in f.HEADS:
        found["double_heads"] = lambda p, _: f.double_heads(p, *CHOICES)
    if f is gpt:
        found["extend_vocabulary"] = lambda p, _: gpt.extend_vocabulary(p, 2, random.key(0))
    return found


def without(params: Any, path: str) -> Any:
    """A tree without one leaf, or one branch."""
    first, _, rest = path.partition(".")
    if isinstance(params, tuple):
        index = int(first)
        return (*params[:index], without(params[index], rest), *params[index + 1 :])
    if not rest:
        return {name: x for name, x in params.items() if name != first}
    return params | {first: without(params[first], rest)}


# What is given in place of the parameters, and what the error must say besides "params".
MISTAKES: dict[str, tuple[Callable[[Any, str], Any], list[str]]] = {
    "the ids": (lambda p, name: IDS, ["tensor [1, 3]", "first"]),
    "a name": (lambda p, name: "models/mine", ["'models/mine'", "{family}.load"]),
    "a path": (lambda p, name: Path("models/mine"), ["models/mine", "{family}.load"]),
    "a module": (lambda p, name: nn.Linear(2, 2), ["module Linear", "{family}.load"]),
    "nothing": (lambda p, name: None, ["NoneType", "{family}.init"]),
    "a pair": (lambda p, name: (p, None), ["tuple", "{family}.load"]),
    "a state dict": (
        lambda p, name: {f"transformer.{n}": x for n, x in tree.named_leaves(p)},
        ["dotted names", "{family}.load"],
    ),
    "gradients": (
        lambda p, name: {n: x for n, x in p.items() if n != "config"},
        ["without 'config'", "gradients"],
    ),
    "a config": (lambda p, name: p["config"], ["config", "{family}.init"]),
    "a config from JSON": (
        lambda p, name: p | {"config": p["config"].to_dict()},
        ["'config' is of type dict", "from_dict"],
    ),
    "another family": (lambda p, name: SMALL[other_of(name)], ["those of {other}"]),
    "a state of training": (
        lambda p, name: type("TrainState", (), {"params": p})(),
        ["TrainState", "params"],
    ),
}
CALLS = [(family, name) for family in FAMILIES for name in calls_of(family)]
CALL_IDS = [f"{family.name}-{name}" for family, name in CALLS]


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize(("family", "name"), CALLS, ids=CALL_IDS)
def test_a_mistake_is_named(family: Family, name: str, mistake: str, tmp_path: Path) -> None:
    make, words = MISTAKES[mistake]
    call = calls_of(family)[name]
    with pytest.raises(TypeError) as caught:
        call(make(SMALL[family.name], family.name), tmp_path)
    told = {"family": family.name, "other": other_of(family.name)}
    text = str(caught.value)
    assert text.startswith(f"params must be parameters of {family.name}, got")
    assert all(word.format(**told) in text for word in words), text


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_missing_leaf_is_named_wherever_it_is(family: Family) -> None:
    params, missed = SMALL[family.name], 0
    ids, _ = make_batch(family)
    for path, _ in tree.named_leaves(params):
        for task in family.tasks.values():
            try:
                task(without(params, path), ids)
            except (ValueError, KeyError) as error:
                missed += 1
                short = path.removeprefix("pooler.")  # of a pooler, both or none
                assert path in str(error) or (short != path and "pooler" in str(error)), error
                break
        else:
            pytest.fail(f"nobody missed {path}")
    for branch in ("embed", "blocks", "blocks.0", "blocks.0.attention", "blocks.1.mlp.up"):
        broken = without(params, branch) if branch != "blocks.0" else params | {"blocks": ({},) * 2}
        with pytest.raises(ValueError, match=branch):
            family.tasks[next(iter(family.tasks))](broken, ids)
    assert missed == len(tree.leaves(params))


def test_an_error_of_another_kind_stays_itself() -> None:
    with pytest.raises(IndexError, match="ids must be"):
        gpt2.apply(SMALL["gpt2"], torch.tensor([[99]]))
    broken = SMALL["gpt2"] | {"norm": {"scale": "x", "bias": "y"}}
    with pytest.raises((TypeError, AttributeError)) as caught:
        gpt2.apply(broken, IDS)
    assert "no leaf" not in str(caught.value)


BAD_IDS: list[tuple[str, Any, type[Exception], str]] = [
    ("a list", [[1, 2]], TypeError, "list"),
    ("an array", np.ones((1, 2), dtype=np.int64), TypeError, "ndarray"),
    ("floats", torch.ones(1, 2), TypeError, "float32"),
    ("booleans", torch.ones(1, 2) > 0, TypeError, "bool"),
    ("no axis", torch.tensor(1), ValueError, r"ids\[None\]"),
    ("nothing", None, TypeError, "NoneType"),
    ("a text", "abc", TypeError, "str"),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize(("what", "ids", "error", "word"), BAD_IDS, ids=lambda x: str(x)[:9])
def test_invalid_ids_are_named(
    what: str, ids: Any, error: type[Exception], word: str, family: Family
) -> None:
    params = SMALL[family.name]
    functions = [getattr(bert, name) for name in TASKS] if family is BERT else [
        family.module.apply, family.module.hidden_states,
    ]  # fmt: skip
    if family is TRANSFO_XL:
        functions.append(lambda p, x: transfo_xl.negative_log_likelihood(p, x, x))
    for function in functions:
        with pytest.raises(error, match=f"ids must .*{word}"):
            function(params, ids)


@pytest.mark.parametrize("family", [GPT, GPT2], ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        (torch.tensor([1, 2]), ValueError, r"choice_positions has shape \[2\], expected \[1, 2\]"),
        (torch.tensor([[1]]), ValueError, r"\[1, 1\], expected \[1, 2\]"),
        (torch.tensor([[[1, 2]]]), ValueError, r"\[1, 1, 2\]"),
        (torch.tensor([[1.0, 2.0]]), TypeError, "choice_positions must be integers"),
        ([[1, 2]], TypeError, "choice_positions must be an int64 tensor"),
        (torch.tensor([[1, 3]]), IndexError, "choice_positions must be .* less than 3"),
        (torch.tensor([[-1, 1]]), IndexError, "choice_positions must be"),
    ],
)
def test_positions_of_choices_that_do_not_fit_are_named(
    family: Family, positions: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        family.module.double_heads(SMALL[family.name], CHOICES[0], positions)


@pytest.mark.parametrize("family", [GPT, GPT2], ids=lambda family: family.name)
def test_positions_and_types_that_do_not_fit_are_named(family: Family) -> None:
    params, ids = SMALL[family.name], torch.ones(2, 3, dtype=torch.int64)
    apply = family.module.apply
    for positions in ([2], [3, 3], [1, 2, 3]):
        with pytest.raises(ValueError, match="positions has shape .* broadcast to that of ids"):
            apply(params, ids, positions=torch.ones(positions, dtype=torch.int64))
    for types in ([3], [2, 4]):
        with pytest.raises(ValueError, match=r"token_types has shape .*, ids \[2, 3\]"):
            apply(params, ids, token_types=torch.ones(types, dtype=torch.int64))
    with pytest.raises(TypeError, match="token_types must be a tensor"):
        apply(params, ids, token_types=[[1, 2, 3]] * 2)
    for fitting in ([3], [1, 3], [2, 1], [2, 3], []):
        apply(params, ids, positions=torch.ones(fitting, dtype=torch.int64))


def test_the_check_costs_next_to_nothing() -> None:
    """Less than 20 microseconds: here two look-ups, whatever the size of the model."""
    params = SMALL["gpt2"]
    rounds = 2000
    best = min(_seconds(lambda: config_of(params, gpt2.Config), rounds) for _ in range(5))
    assert best / rounds < 20e-6


def _seconds(work: Callable[[], Any], rounds: int) -> float:
    start = time.process_time()
    for _ in range(rounds):
        work()
    return time.process_time() - start


class Doubled:
    """A leaf that is no tensor, and answers for twice one."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x

    def __getattr__(self, name: str) -> Any:
        return getattr(2 * self.x, name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        dense = tree.map(lambda x: 2 * x.x if isinstance(x, Doubled) else x, (args, kwargs or {}))
        return func(*dense[0], **dense[1])


def test_the_check_passes_under_transforms_and_with_other_leaves() -> None:
    params = SMALL["gpt2"]

    def loss(params: Any, ids: torch.Tensor) -> torch.Tensor:
        return gpt2.apply(params, ids)[0].sin().sum()

    ensemble = tree.stack([params, tree.map(lambda x: x * 2, params)])
    assert vmap(loss, (0, None))(ensemble, IDS).shape == (2,)
    assert tree.structure(grad(loss)(params, IDS)) == tree.structure(params)
    jvp(lambda p: loss(p, IDS), (params,), (params,))
    jacrev(loss)(params, IDS)
    torch.compile(loss, fullgraph=True, backend="eager")(params, IDS)
    half = params | {"norm": tree.map(lambda x: Doubled(x / 2), params["norm"])}
    torch.testing.assert_close(gpt2.apply(half, IDS)[0], gpt2.apply(params, IDS)[0])
    fewer = params | {"config": dataclasses.replace(params["config"])}
    assert gpt2.apply(fewer, IDS)[0].equal(gpt2.apply(params, IDS)[0])


@pytest.mark.parametrize("given", ["gpt2", None, nn.Linear(2, 2), IDS])
def test_a_layout_of_anything_but_parameters_is_an_error(given: Any) -> None:
    with pytest.raises(TypeError, match="params must be the parameters of a family, got"):
        for_decoding(given)
