"""Activations as values: what a model computes at named sites, read and written.

`read` and `write` take a function of parameters and return one that tells, or changes, what passes
at the sites of the model. What they need travels with the parameters, as the config does: the model
gets a tree with entries "taps" beside the weights of each block. So nothing is switched on, nothing
remains after a call or an exception, and calls in each other, in threads and under any transform
have nothing in common. A written tensor is a leaf of that tree, which derivatives and `vmap` see.

In a pattern `*` stands for one part of a name and `**` for any number of them: "blocks.*.out",
"blocks.3.**", "**". docs/interpretability.md has a table of the sites.
"""

import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

from fnlm.layers._tap import Level, Visitor
from fnlm.params import spec
from fnlm.params.config import BaseConfig
from fnlm.protocols import Family
from fnlm.tree import Params, Tree

__all__ = ["read", "sites", "write"]

Edit = Tensor | Callable[[Tensor], Tensor]


def sites(family: Family, config: BaseConfig) -> tuple[str, ...]:
    """Return the names of a family's sites, in the order in which a model reaches them.

    They are found by running the model on tensors without memory, so they are those of the code.

    Args:
        family: a module, such as `fnlm.gpt2`.
        config: of the family; the names depend on the number of its blocks alone.

    >>> from fnlm import gpt2
    >>> names = sites(gpt2, gpt2.Config(n_layer=2))
    >>> names[:4], names[-2:]
    (('embed.token', 'blocks.0.in', 'blocks.0.attention.q', 'blocks.0.attention.k'),
     ('logits', 'heads.multiple_choice.logits'))
    """
    params = spec.meta(family.spec(config))
    ids = torch.zeros(1, 1, dtype=torch.int64, device="meta")
    found = read(family.apply, "**")(params, ids)[1]
    return (*found, *(f"heads.{head}.logits" for head in family.HEADS))


def read(fn: Callable[..., Any], *patterns: str) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    """Return the function that also returns what passes at sites.

    A site that is written gives what is written, whichever of `read` and `write` is around the
    other.

    Args:
        fn: function whose first argument is the parameters of a model, as `gpt2.apply` or a loss;
            data follow.
        *patterns: names of sites, or patterns for several; of these, sites that fn doesn't reach
            are left out.

    Returns:
        function of the same arguments that returns the result of fn and {site: tensor}, in the
        order in which sites are reached.

    Raises:
        ValueError: from the returned function: fn reaches no site of a name or pattern; it reaches
            one twice; a site lies within a `vmap` in fn (read inside of it instead).

    >>> from fnlm import gpt2, random
    >>> config = gpt2.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params, ids = gpt2.init(config, random.key(0)), torch.tensor([[3, 1, 4, 1, 5]])
    >>> (logits, cache), found = read(gpt2.apply, "blocks.*.attention.weights")(params, ids)
    >>> {site: list(x.shape) for site, x in found.items()}
    {'blocks.0.attention.weights': [1, 3, 5, 5], 'blocks.1.attention.weights': [1, 3, 5, 5]}
    """
    _check_patterns(patterns, "read")
    exact = frozenset(name for name in patterns if "*" not in name)
    wild = [pattern for pattern in patterns if "*" in pattern]

    @functools.wraps(fn)
    def reading(params: Params, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tensor]]:
        found: dict[str, Tensor] = {}
        reached: dict[str, bool] = {}  # whether a site is wanted
        running = [True]

        def wants(site: str) -> bool:
            if site not in reached:
                reached[site] = site in exact or any(_matches(name, site) for name in wild)
            return reached[site]

        def visit(site: str, x: Tensor, _: Tensor | None) -> Tensor:
            # A checkpoint of torch recomputes sites after the call.
            if running and wants(site):
                if site in found:
                    raise ValueError(
                        f"{site!r} is reached twice: read around each call of the model, "
                        "not around a function that calls it several times"
                    )
                found[site] = x
            return x

        tapped = _tapped(params, visit, wants, {}, reads=True)
        result = fn(tapped, *args, **kwargs)
        running.clear()
        _check_reached(patterns, reached)
        return _without_taps(result), {site: _outside(x, site) for site, x in found.items()}

    return reading


def write(fn: Callable[..., Any], edits: Mapping[str, Edit]) -> Callable[..., Any]:
    """Return the function in which other values go on from sites.

    Derivatives by a written tensor are those of the function; what was computed before the site is
    no part of it. With one `write` around another, the outer one writes last. Attention weights are
    computed in plain operations where they are written or read.

    Args:
        fn: function whose first argument is the parameters of a model, as `gpt2.apply` or a loss.
        edits: for each site a tensor to go on with, or a function from what the model computed to
            what goes on; a function may stand for a pattern of names. Both keep shape, dtype and
            device. Tensors go first, then functions in their order.

    Returns:
        function of the arguments and the result of fn.

    Raises:
        TypeError: an edit is no tensor and no function, or of another dtype.
        ValueError: no edits; a tensor for a pattern; from the returned function: fn reaches no site
            of a name or pattern; a tensor of another shape or device.

    >>> from fnlm import gpt2, random
    >>> config = gpt2.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
    >>> params, ids = gpt2.init(config, random.key(0)), torch.tensor([[3, 1, 4, 1, 5]])
    >>> ablated = write(gpt2.apply, {"blocks.*.mlp.out": torch.zeros_like})
    >>> ablated(params, ids)[0].shape
    torch.Size([1, 5, 50])
    """
    edits = dict(edits)
    _check_patterns(edits, "write")
    tensors = {site: edit for site, edit in edits.items() if isinstance(edit, Tensor)}
    functions = {site: edit for site, edit in edits.items() if not isinstance(edit, Tensor)}
    _check_edits(tensors, functions)

    @functools.wraps(fn)
    def writing(params: Params, *args: Any, **kwargs: Any) -> Any:
        reached: dict[str, list[Callable[[Tensor], Tensor]]] = {}

        def edits_of(site: str) -> list[Callable[[Tensor], Tensor]]:
            if site not in reached:
                matching = [edit for name, edit in functions.items() if _matches(name, site)]
                reached[site] = matching
            return reached[site]

        def wants(site: str) -> bool:
            return bool(edits_of(site)) or site in tensors

        def visit(site: str, x: Tensor, written: Tensor | None) -> Tensor:
            if written is not None:
                x = _fitting(site, x, written)
            for edit in edits_of(site):
                x = _fitting(site, x, edit(x))
            return x

        result = fn(_tapped(params, visit, wants, tensors, reads=False), *args, **kwargs)
        _check_reached(edits, reached)
        return _without_taps(result)

    return writing


def _tapped(
    params: Params,
    visit: Callable[[str, Tensor, Tensor | None], Tensor],
    wants: Callable[[str], bool],
    tensors: Mapping[str, Tensor],
    *,
    reads: bool,
) -> Params:
    """Return parameters whose sub-trees with sites have one level more."""
    if not isinstance(params, dict) or not isinstance(params.get("blocks"), Sequence):
        raise TypeError(
            f"the first argument must be the parameters of a model, got {type(params).__name__} "
            "without blocks: give a function of (params, ...), as gpt2.apply"
        )
    places: dict[str, dict[str, Tensor]] = {}  # of a sub-tree, its written tensors
    for site, x in tensors.items():
        place, _, name = site.rpartition(".")
        places.setdefault(place, {})[name] = x

    def add(node: Tree, place: str) -> Tree:
        visitor = Visitor(f"{place}." if place else "", visit, wants, reads)
        level, others = Level(visitor, places.get(place, {})), node.get("taps", ())
        return {**node, "taps": (*others, level) if reads else (level, *others)}

    def children(node: Tree, place: str, names: Sequence[str]) -> Tree:
        there = [name for name in names if isinstance(node.get(name), dict)]
        return {**node, **{name: add(node[name], f"{place}{name}") for name in there}}

    params = add(children(params, "", ("embed",)), "")
    blocks = [
        add(children(block, f"blocks.{i}.", ("attention", "mlp")), f"blocks.{i}")
        for i, block in enumerate(params["blocks"])
    ]
    params["blocks"] = tuple(blocks)
    if "heads" in params:
        params["heads"] = children(params["heads"], "heads.", tuple(params["heads"]))
    return params


def _without_taps(result: Any) -> Any:
    """Return a result without the taps of trees that are like parameters, as gradients are."""
    if isinstance(result, dict):
        kept = {k: _without_taps(v) for k, v in result.items() if not _is_taps(k, v)}
        same = len(kept) == len(result) and all(kept[k] is result[k] for k in kept)
        return result if same else kept
    if isinstance(result, tuple | list):
        parts = [_without_taps(part) for part in result]
        if all(new is old for new, old in zip(parts, result, strict=True)):
            return result
        return type(result)(*parts) if hasattr(result, "_fields") else type(result)(parts)
    return result


def _is_taps(key: Any, value: Any) -> bool:
    return key == "taps" and isinstance(value, tuple) and all(isinstance(v, Level) for v in value)


def _matches(pattern: str, site: str) -> bool:
    """Whether a site has the name, or fits the pattern."""
    if "*" not in pattern:
        return pattern == site
    return _fits(pattern.split("."), site.split("."))


def _fits(pattern: list[str], parts: list[str]) -> bool:
    if not pattern:
        return not parts
    first, *rest = pattern
    if first == "**":
        return any(_fits(rest, parts[i:]) for i in range(len(parts) + 1))
    return bool(parts) and first in ("*", parts[0]) and _fits(rest, parts[1:])


def _check_patterns(patterns: Any, caller: str) -> None:
    if not patterns:
        raise ValueError(f'{caller} needs the name of a site, or a pattern, such as "blocks.*.out"')
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{caller} takes names of sites, got {type(pattern).__name__}")
        if any("*" in part and part not in ("*", "**") for part in pattern.split(".")):
            raise ValueError(
                f"pattern {pattern!r}: * stands for a whole part between dots, ** for any number "
                'of parts, as in "blocks.*.out"'
            )


def _check_edits(tensors: Mapping[str, Tensor], functions: Mapping[str, Any]) -> None:
    for site in tensors:
        if "*" in site:
            raise ValueError(
                f"a tensor is written at one site, and {site!r} names several: give a function, "
                "lambda x: tensor"
            )
    for site, edit in functions.items():
        if not callable(edit):
            raise TypeError(
                f"{site!r}: write takes a tensor or a function from tensor to tensor, got "
                f"{type(edit).__name__}"
            )


def _check_reached(patterns: Any, reached: Mapping[str, Any]) -> None:
    """Raise an error that names near sites if the function did not reach one that was asked for."""
    for pattern in patterns:
        if any(_matches(pattern, site) for site in reached):
            continue
        if not reached:
            raise ValueError(
                f"no site {pattern!r}: the function reached no site at all. Its model must be run "
                "on the parameters that it is given"
            )
        near = difflib.get_close_matches(pattern, reached, 3, 0.5) or list(reached)[:3]
        raise ValueError(
            f"no site {pattern!r} was reached; near ones are {', '.join(near)}. "
            "fnlm.taps.sites(family, config) has all names; functions reach those that they need"
        )


def _fitting(site: str, x: Tensor, new: Any) -> Tensor:
    """Return what is to be written, if it can stand in the place of x."""
    if not isinstance(new, Tensor):
        raise TypeError(f"{site!r}: a tensor must be written, got {type(new).__name__}")
    if new.shape != x.shape:
        raise ValueError(
            f"{site!r} has shape {list(x.shape)}, what is written {list(new.shape)}: they must "
            "agree; expand it, or write a function"
        )
    if new.dtype != x.dtype:
        raise TypeError(f"{site!r} has dtype {x.dtype}, what is written {new.dtype}: cast it")
    if new.device != x.device:
        raise ValueError(f"{site!r} is on {x.device}, what is written on {new.device}: move it")
    return new


def _outside(x: Tensor, site: str) -> Tensor:
    """Return a tensor that was read, as it is outside of the transforms in the function."""
    if torch.compiler.is_compiling():
        return x
    while (inner := _functorch.unwrap_if_dead(x)) is not x:  # a derivative in fn is over
        x = inner
    level = _functorch.maybe_get_level(x) if _functorch.is_functorch_wrapped_tensor(x) else 0
    if level > (_functorch.maybe_current_level() or 0):
        raise ValueError(
            f"{site!r} lies within a vmap that ended before its value was read: read inside, "
            "vmap(read(fn, ...)) instead of read(vmap(fn), ...)"
        )
    return x
