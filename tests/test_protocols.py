"""Every family and every tokenizer has what the protocols say: names, order, kinds, defaults."""

import inspect
from collections.abc import Callable, Iterator
from inspect import Parameter
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from families import FAMILIES, Family
from vocabularies import TOKENIZERS

from fnlm import bert, gpt, gpt2, protocols, transfo_xl
from fnlm.params.config import BaseConfig

if TYPE_CHECKING:
    from fnlm.tokenize import bert as bert_text
    from fnlm.tokenize import gpt as gpt_text
    from fnlm.tokenize import gpt2 as gpt2_text
    from fnlm.tokenize import transfo_xl as transfo_xl_text

    # A type checker compares the types, too.
    _bert: protocols.Family = bert
    _gpt: protocols.CacheFamily = gpt
    _gpt2: protocols.CacheFamily = gpt2
    _transfo_xl: protocols.MemoryFamily = transfo_xl

    def _tokenizers(
        a: bert_text.Tokenizer,
        b: gpt_text.Tokenizer,
        c: gpt2_text.Tokenizer,
        d: transfo_xl_text.Tokenizer,
    ) -> tuple[protocols.Tokenizer, ...]:
        return a, b, c, d


each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def protocol_of(module: Any) -> type:
    if hasattr(module, "init_cache"):
        return protocols.CacheFamily
    return protocols.MemoryFamily if hasattr(module, "init_mems") else protocols.Family


def members(protocol: type) -> dict[str, Any]:
    """The methods and properties of a protocol and those that it extends, by name."""
    found: dict[str, Any] = {}
    for cls in reversed(protocol.__mro__):
        if cls not in (object, Protocol) and cls.__module__ == protocols.__name__:
            found |= {n: value for n, value in vars(cls).items() if not n.startswith("_")}
    return found


def parameters(function: Callable[..., Any], skip: int = 0) -> list[Parameter]:
    return list(inspect.signature(function).parameters.values())[skip:]


def differences(protocol: type, thing: Any) -> Iterator[str]:
    """What of a module or a class is not as its protocol says."""
    method = 1 if inspect.isclass(thing) else 0  # its first argument is `self`
    for name, wanted in members(protocol).items():
        if not hasattr(thing, name):
            yield f"{name} is missing"
        elif not isinstance(wanted, property):
            for problem in misfits(
                parameters(wanted, skip=1), parameters(getattr(thing, name), skip=method)
            ):
                yield f"{name}: {problem}"


def misfits(wanted: list[Parameter], found: list[Parameter]) -> Iterator[str]:
    """What a call by the wanted parameters would not find in a function that has others."""
    names, others = positional(wanted), positional(found)
    for place in range(min(len(names), len(others))):
        if names[place] != others[place]:
            yield f"argument {place} is {others[place]}, not {names[place]}"
    by_name = {p.name: p for p in found}
    for expected in wanted:
        given = by_name.pop(expected.name, None)
        if given is None:
            yield f"no argument {expected.name}"
        elif given.kind != expected.kind:
            yield f"{given.name} is {given.kind.description}, not {expected.kind.description}"
        elif given.default != expected.default:
            yield f"{given.name} is {given.default!r} by default, not {expected.default!r}"
    for extra in by_name.values():
        if extra.default is extra.empty and extra.kind in (
            Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY,
        ):  # fmt: skip
            yield f"{extra.name} has no default"


def positional(found: list[Parameter]) -> list[str]:
    return [p.name for p in found if p.kind == Parameter.POSITIONAL_OR_KEYWORD]


@each_family
def test_a_family_is_as_its_protocol_says(family: Family) -> None:
    assert not list(differences(protocol_of(family.module), family.module))
    causal = protocol_of(family.module) is not protocols.Family
    assert causal == bool(family.starts), "a causal family has init_cache or init_mems"
    assert issubclass(family.module.Config, BaseConfig)
    assert all(isinstance(head, str) for head in family.module.HEADS)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_as_its_protocol_says(name: str) -> None:
    module, make = TOKENIZERS[name]
    assert not list(differences(protocols.Tokenizer, module.Tokenizer))
    assert type(make()) is module.Tokenizer
    (first, *switches) = parameters(module.load)
    assert first.name == "name_or_path"
    assert all(p.kind == Parameter.KEYWORD_ONLY for p in switches)


def data_functions(module: ModuleType) -> Iterator[tuple[str, list[Parameter]]]:
    """The public functions of a family that take parameters and ids."""
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isfunction(found) and [p.name for p in parameters(found)[:2]] == [
            "params", "ids",
        ]:  # fmt: skip
            yield name, parameters(found)


SWITCHES = {"key", "detach", "sparse", "remat"}  # everything else is data


@each_family
def test_data_are_positional_and_switches_are_not(family: Family) -> None:
    """`vmap` maps no keywords. Only what would be a seventh positional argument is one."""
    functions = dict(data_functions(family.module))
    assert "apply" in functions
    for name, found in functions.items():
        keywords = {p.name for p in found if p.kind == Parameter.KEYWORD_ONLY}
        assert not SWITCHES & {*positional(found)}, name
        assert keywords <= SWITCHES or len(found) - len(keywords & SWITCHES) > 6, name


def test_functions_of_one_name_in_families_with_a_cache_take_the_same() -> None:
    first, *others = [f.module for f in FAMILIES if protocol_of(f.module) is protocols.CacheFamily]
    for other in others:
        theirs = dict(data_functions(other))
        for name, found in data_functions(first):
            ours = [(p.name, p.kind, p.default) for p in found]
            assert ours == [(p.name, p.kind, p.default) for p in theirs[name]], name


# Faults, each seen by the tests above.


def swapped(params, ids, mask=None, cache=None, positions=None, *, key=None, remat=False): ...
def renamed(params, tokens, cache=None, mask=None, positions=None, *, key=None, remat=False): ...
def keyed(params, ids, cache=None, mask=None, positions=None, key=None, *, remat=False): ...
def masked(params, ids, cache=None, positions=None, *, mask=None, key=None, remat=False): ...
def needy(params, ids, cache=None, mask=None, positions=None, *, key=None, remat=False, rate): ...
def lazy(params, ids, cache=None, mask=None, *, key=None, remat=False): ...
def saved(params, directory, *, dialect="fnlm"): ...


@pytest.mark.parametrize(
    ("name", "fault", "said"),
    [
        ("apply", None, ["apply is missing"]),
        ("HEADS", None, ["HEADS is missing"]),
        (
            "apply",
            swapped,
            ["apply: argument 2 is mask, not cache", "apply: argument 3 is cache, not mask"],
        ),
        (
            "hidden_states",
            renamed,
            [
                "hidden_states: argument 1 is tokens, not ids",
                "hidden_states: no argument ids",
                "hidden_states: tokens has no default",
            ],
        ),
        ("apply", keyed, ["apply: key is positional or keyword, not keyword-only"]),
        (
            "apply",
            masked,
            [
                "apply: argument 3 is positions, not mask",
                "apply: mask is keyword-only, not positional or keyword",
            ],
        ),
        ("apply", needy, ["apply: rate has no default"]),
        ("apply", lazy, ["apply: no argument positions"]),
        ("save", saved, ["save: dialect is 'fnlm' by default, not 'transformers'"]),
    ],
)
def test_a_planted_fault_is_seen(name: str, fault: Any, said: list[str]) -> None:
    content = {**vars(gpt2), "layers": gpt2.hidden_states}
    whole, faulty = SimpleNamespace(**content), SimpleNamespace(**content | {name: fault})
    if fault is None:
        delattr(faulty, name)
    assert not list(differences(protocols.CacheFamily, whole))
    assert list(differences(protocols.CacheFamily, faulty)) == said
