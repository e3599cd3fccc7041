"""Examples of every family, made of its row in the table of families."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, FUNCTIONS, Family, make_params, run, with_heads
from torch.func import grad

from calls.common import IDS, KEY, KEYS, MASK, Example, Make, on, writes
from fnlm import tree


def cached(family: Family, params: Any, start: str) -> Example:
    """A call with the state after some tokens."""
    with torch.no_grad():
        state = run(family, params, IDS[:, :3], family.starts[start](params, 3), MASK[:, :3])[1]
    return on(torch.no_grad()(run), family, params, IDS[:, 3:], state, MASK[:, 3:])


def total(family: Family, params: Any) -> torch.Tensor:
    return sum(x.float().sum() for x in tree.leaves(family.tasks["apply"](params, IDS, MASK)))


def models(family: Family) -> Iterator[tuple[str, Make]]:
    """Make an example of each function that families have in common, and of its tasks."""
    module, params = family.module, make_params(family)
    some = with_heads(family, next(iter(family.names.architectures)))
    yield "spec", lambda _: on(module.spec, family.config, module.HEADS)
    yield "init", lambda _: on(module.init, family.config, KEY, module.HEADS)
    for row, name in FUNCTIONS:
        if row is family:
            yield name, partial(lambda _, n: on(run, family, params, IDS, None, MASK, function=n),
                                n=name)  # fmt: skip
    for name, task in family.tasks.items():
        yield (
            f"{name} with dropout",
            partial(lambda _, call: on(call, params, IDS, MASK, key=KEYS), call=task),
        )
    for start in family.starts:
        yield (
            f"apply with a state, {start}",
            partial(lambda _, kind: cached(family, params, kind), kind=start),
        )
    yield "apply under grad", lambda _: on(grad(partial(total, family)), params)
    for name, sizes in {"init_cache": (3, 9), "init_mems": (3,)}.items():
        if hasattr(module, name):
            yield name, partial(lambda _, n, s: on(getattr(module, n), params, *s), n=name, s=sizes)
    yield "save", writes(module.save, some)

    def load(folder: Path) -> Example:
        module.save(some, folder / "model")
        return on(module.load, folder / "model")

    def load_with_new_heads(folder: Path) -> Example:
        module.save({k: v for k, v in some.items() if k != "heads"}, folder / "model")
        return on(module.load, folder / "model", heads=module.HEADS[:1], key=KEY)

    yield "load", load
    yield "load, with new heads", load_with_new_heads


def configs(family: Family) -> Iterator[tuple[str, Make]]:
    """Make an example of each method and property that a family's config has of its own."""
    cls, config = family.module.Config, family.config
    for name, value in vars(cls).items():
        if isinstance(value, property):
            yield (
                f"Config.{name}",
                partial(lambda _, n: on(lambda own: getattr(own, n), config), n=name),
            )
    if "from_dict" in vars(cls):
        yield "Config.from_dict", lambda _: on(cls.from_dict, config.to_dict())
    if "to_dict" in vars(cls):
        yield "Config.to_dict", lambda _: on(cls.to_dict, config)


FAMILY_ROWS: dict[str, Make] = {
    f"{family.module.__name__.removeprefix('fnlm.')}.{name}": make
    for family in FAMILIES
    for name, make in (*models(family), *configs(family))
}
