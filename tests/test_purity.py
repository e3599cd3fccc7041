"""No public function changes an argument, a global state or a default, or depends on a seed.

Each example of `calls.TABLE`, and each call of a function in its own docstring, is made twice, with
different global seeds, and the world is compared before and after.
"""

import ast
import doctest
import inspect
import logging
import os
import random as python_random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import ABSTRACT, TABLE, files
from test_public_names import MODULES, api
from torch import Tensor, nn
from torch.func import grad

from fnlm import tree
from fnlm.leaves import Leaf

# Public, yet without an example: the reason.
EXCEPTIONS = {
    "fnlm.tree.register_constant": "its purpose is to make a class known to torch's trees",
    "fnlm.tree.register_leaf": "its purpose is to make a class known to torch's trees and files",
    "fnlm.tree.register_value": "its purpose is to make a class known to torch's files",
    **{f"fnlm.leaves.Leaf.{name}": "each kind of leaf defines it" for name in ABSTRACT},
    "fnlm.layers.kv_cache.overwrite": "its purpose is to write into a cache that is given away",
    "fnlm.params.register_functions": "its purpose is to change the functions of a module",
}


def picture(value: Any) -> Any:
    """All that can be seen of a value, to be compared by `==`."""
    if isinstance(value, Tensor):
        content = None if value.is_meta else _bytes(value)
        version = None if value.is_inference() else value._version
        return value.shape, value.stride(), value.dtype, value.requires_grad, content, version
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, Leaf):
        slots: tuple[str, ...] = type(value).__slots__
        return type(value), [picture(getattr(value, name)) for name in slots]
    if isinstance(value, nn.Module):
        return picture(value.state_dict()), [m.training for m in value.modules()]
    if isinstance(value, Mapping):
        return type(value), [(name, picture(item)) for name, item in value.items()]
    if isinstance(value, Set):
        return type(value), sorted(map(repr, value))
    if isinstance(value, list | tuple):
        return type(value), [picture(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), [picture(getattr(value, f.name)) for f in fields(value) if f.compare]
    return value


def _bytes(x: Tensor) -> bytes:
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def without_versions(value: Any) -> Any:
    """A picture that tells nothing of how often a tensor was written to."""
    return picture(tree.map(lambda x: x.clone() if isinstance(x, Tensor) else x, value))


def world() -> dict[str, Any]:
    """The global state of the process, as far as a library could want to change it."""
    return {
        "torch's generator": _bytes(torch.get_rng_state()),
        "python's generator": python_random.getstate(),
        "numpy's generator": repr(np.random.get_state()),
        "types": (torch.get_default_dtype(), torch.get_default_device()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "anomalies": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "determinism": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.benchmark,
        ),
        "precision": (torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "constants": [picture(value) for value in constants()],
    }


def constants() -> Iterator[Any]:
    for owner in MODULES:
        for name in sorted(vars(owner)):
            if name.isupper() and not name.startswith("_"):
                yield vars(owner)[name]


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that a class defines itself."""
    for name, value in vars(cls).items():
        inner = getattr(value, "__func__", getattr(value, "fget", value))
        own = inspect.isfunction(inner) and inner.__module__ == cls.__module__
        if own and not name.startswith("_"):
            yield name, inner


def public() -> dict[str, Any]:
    """Every public function by its name, and those of every public class."""
    found: dict[str, Any] = {}
    for owner, names in api.homes().items():
        for name, value in names:
            if getattr(value, "_is_protocol", False):
                continue  # its methods are those of others
            if inspect.isclass(value):
                found |= {f"{owner}.{name}.{method}": fn for method, fn in methods(value)}
            else:
                found[f"{owner}.{name}"] = value
    return found


PUBLIC = public()
EXCEPTIONS |= {
    name: "oneDNN's order of numbers can't be seen"
    for name in PUBLIC
    if name.startswith(("fnlm.leaves.Packed.", "fnlm.leaves.pack"))
}


def named(node: ast.AST) -> Iterator[str]:
    """The names of what a program calls."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            yield getattr(call.func, "id", getattr(call.func, "attr", ""))


def documented() -> Iterator[str]:
    """The public functions and methods that are called in their own docstrings."""
    for name, function in PUBLIC.items():
        examples = doctest.DocTestParser().get_examples(inspect.getdoc(function) or "")
        short = name.rpartition(".")[2]
        if any(short in named(ast.parse(example.source)) for example in examples):
            yield name


ROWS = {name.split(" ")[0].rstrip(",") for name in TABLE}
DOCUMENTED = [name for name in documented() if name not in ROWS | EXCEPTIONS.keys()]


@pytest.fixture(autouse=True, scope="module")
def warm_up_torch() -> None:
    """The first gradient imports torch's compiler, which sets an environment variable."""
    grad(torch.sin)(torch.tensor(1.0))


def seed(number: int) -> None:
    torch.manual_seed(number)
    python_random.seed(number)
    np.random.seed(number)


def test_every_public_function_has_an_example() -> None:
    missing = PUBLIC.keys() - ROWS - EXCEPTIONS.keys() - {*DOCUMENTED}
    assert not missing, "call it in its docstring, or give it a row in tests/calls"
    classes = {f"{m.__name__}.{n}" for m in MODULES for n, v in api.public_names(m)}
    assert ROWS | EXCEPTIONS.keys() <= PUBLIC.keys() | classes, "a row for what is not there"


@pytest.mark.parametrize("name", TABLE)
def test_a_call_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # what is written beside the argument shows, too
    function, args, kwargs, seen = TABLE[name](tmp_path)
    given = picture((args, kwargs))
    seed(1)
    before = world()
    first = without_versions(seen(function(*args, **kwargs)))
    changed = [what for what, value in world().items() if value != before[what]]
    assert not changed, f"{name} changed {changed}"
    assert picture((args, kwargs)) == given, f"{name} changed an argument"
    there = files(tmp_path)
    seed(2)  # a function that reads a global generator would differ now
    assert without_versions(seen(function(*args, **kwargs))) == first, (
        f"{name} differs when repeated"
    )
    assert picture((args, kwargs)) == given, f"{name} changed an argument when repeated"
    assert files(tmp_path) == there, f"{name} wrote something else when repeated"


class Watched:
    """A function that notes what each call of it changes and returns; calls within one pass."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.busy = function, False
        self.calls: list[Any] = []
        self.complaints: list[str] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.busy:
            return self.function(*args, **kwargs)
        self.busy = True
        try:
            given, before = picture((args, kwargs)), world()
            result = self.function(*args, **kwargs)
            result = list(result) if isinstance(result, Iterator) else result
            self.complaints += [what for what, value in world().items() if value != before[what]]
            self.complaints += ["an argument"] if picture((args, kwargs)) != given else []
            self.calls.append((given, without_versions(result)))
        finally:
            self.busy = False
        return iter(result) if isinstance(result, list) and not args else result


class Lenient(doctest.OutputChecker):
    """What examples print is checked elsewhere."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return True


def run_docstring(name: str, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Run the examples in the docstring of a function, in its place one that is watched."""
    owner, _, short = name.rpartition(".")
    function = PUBLIC[name]
    module = sys.modules[function.__module__]
    watched = Watched(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        return watched(*args, **kwargs)

    place = module if owner in sys.modules else getattr(sys.modules[owner.rpartition(".")[0]],
                                                        owner.rpartition(".")[2])  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(place, short, call)
        content = dict(vars(module)) | ({short: call} if place is module else {})
        test = doctest.DocTestParser().get_doctest(
            inspect.getdoc(function) or "", content, name, None, 0
        )
        runner = doctest.DocTestRunner(Lenient(), verbose=False)
        assert not runner.run(test, out=lambda text: None).failed
    return watched


@pytest.mark.parametrize("name", DOCUMENTED)
def test_a_documented_call_changes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "doctest: +SKIP" in (inspect.getdoc(PUBLIC[name]) or ""):
        pytest.skip("its example needs a package that tests do without")
    monkeypatch.chdir(tmp_path)
    seed(1)
    first = run_docstring(name, monkeypatch)
    seed(2)
    second = run_docstring(name, monkeypatch)
    assert not first.complaints and not second.complaints
    assert first.calls and first.calls == second.calls, "differs when repeated"


@pytest.mark.parametrize("name", PUBLIC)
def test_defaults_are_values(name: str) -> None:
    """A default that cannot be hashed could be changed by a call, for all calls after it."""
    for argument, default in defaults(PUBLIC[name]).items():
        assert isinstance(hash(default), int), argument
        assert not isinstance(default, Tensor), argument


def test_the_pictures_show_every_kind_of_change() -> None:
    """The test above can fail: what it compares would differ."""
    x = torch.zeros(2)
    for value, change in (
        (x, lambda: x.add_(1)),
        ({"x": x}, lambda: x.mul_(1)),  # equal values, but written
        (config := {"a": [1]}, lambda: config["a"].append(2)),
        (layer := nn.Linear(2, 2), lambda: layer.eval()),
    ):
        before = picture(value)
        change()
        assert picture(value) != before
    before = world()
    torch.rand(1)
    np.random.rand()
    python_random.random()
    assert {what for what, value in world().items() if value != before[what]} == {
        "torch's generator",
        "python's generator",
        "numpy's generator",
    }


def test_a_watched_call_shows_what_it_changes() -> None:
    """The test of docstrings can fail: a call that changes something is seen."""

    def impure(numbers: list[int], x: Tensor) -> Tensor:
        numbers.append(1)
        torch.rand(1)
        return x

    watched = Watched(impure)
    watched([2], torch.zeros(2))
    assert watched.complaints == ["torch's generator", "an argument"] and len(watched.calls) == 1
