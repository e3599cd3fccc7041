"""Adapters in the files of `peft`: adapter_config.json and adapter_model.safetensors.

A file holds, for each module, the transposes of our factors: lora_A [rank, inputs] and lora_B
[outputs, rank], scaled by lora_alpha / rank. A key of adapter_config.json that changes numbers is
heeded, or refused by name.

`peft` has an adapter of a table act where rows are looked up, not in a tied output layer. Here a
tie is one leaf, and its adapter acts on both. So those of tied tables are neither read nor written.

Source: `peft` 0.21, `LoraConfig` and `get_peft_model_state_dict`.
"""

import importlib
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from torch import Tensor

from fnlm import tree
from fnlm.files import _folder, hub
from fnlm.files._text import printable_errors
from fnlm.leaves import Leaf, LowRank, attach
from fnlm.params import _rename, io
from fnlm.params.config import BaseConfig, read_json, short
from fnlm.params.names import Dialect, Family
from fnlm.tree import Predicate, Tree

__all__ = ["load", "save"]

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
ROOT = "base_model.model."
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?([AB])(\.weight)?")
# Keys whose values change no number of a file that was written.
_HARMLESS = {
    "arrow_config", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern",
    "layers_to_transform", "lora_dropout", "megatron_core", "modules_to_save", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "task_type",
}  # fmt: skip
_HEEDED = {"alpha_pattern", "init_lora_weights", "lora_alpha", "peft_type", "use_rslora"}
# Other ways to begin change the base as well, which a file of adapters does not say.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@printable_errors()
def load(params: Tree, name_or_path: str | Path, *, name: str = "") -> Tree:
    """Return parameters with the adapters of a directory or of the hub.

    Args:
        params: of the family that the adapters were made for, with the heads that they hold; of
            any type, which the adapters take.
        name_or_path: a directory with adapter_config.json and adapter_model.safetensors, or .bin;
            or the name of one on the hub.
        name: of the adapters, in front of their parts in paths.

    Returns:
        a tree with `LowRank` leaves; leaves that the file holds whole (`modules_to_save`: heads,
        for example) take the place of those of `params`.

    Raises:
        FileNotFoundError: no such directory or name, or it lacks a file.
        ValueError: a tensor that no leaf of `params` answers to, or of another shape; an adapter of
            a tied table; a key that asks for arithmetic that fnlm does not do.

    >>> import tempfile
    >>> from fnlm import gpt2, leaves, random
    >>> params = gpt2.load("tiny")
    >>> adapted = leaves.lora(params, random.key(0), rank=2)
    >>> with tempfile.TemporaryDirectory() as place:
    ...     files = save(adapted, place)
    ...     again = load(params, place)
    >>> tree.structure(again) == tree.structure(adapted)
    True
    """
    place = _folder.current(Path(name_or_path), "adapter")
    path, config = hub.find(place, [(weights, CONFIG) for weights in WEIGHTS])
    settings, file = _settings(config), io.read(path)
    family = _rename.for_heads(_family(params), params.get("heads", {}))
    leaves = dict(tree.named_leaves(params, whole=Leaf))
    factors: dict[str, dict[str, Tensor]] = {}
    modules: dict[str, str] = {}  # our path -> the module
    others: dict[str, Tensor] = {}
    for foreign in file:
        bare = foreign.removeprefix(ROOT)
        if not (match := _FACTOR.fullmatch(bare)):
            others[bare] = file[foreign]
            continue
        ours = _path(f"{match[1]}.weight", family, leaves, f"{path}: {foreign}")
        _check_untied(ours, params, family)
        if match[3] in factors.setdefault(ours, {}):
            raise ValueError(f"{path} has lora_{match[3]} of {match[1]} twice: leave one out")
        factors[ours][match[3]] = file[foreign]
        modules[ours] = match[1]
    for foreign in others:
        _path(foreign, family, leaves, f"{path}: {foreign}")
    replaced, _ = _rename.from_foreign(others, family, str(path))

    def changed(at: str, leaf: Any) -> Any:
        if at in replaced:
            _check_shape(path, at, replaced[at], leaf.shape)
            leaf = replaced[at].to(leaf.device, leaf.dtype)
        if at not in factors:
            return leaf
        a, b = _pair(path, modules[at], factors[at], leaf)
        scale = _scale(settings, modules[at], a.shape[-1])
        return attach(leaf, (a, b), path=at, name=name, scale=scale)

    return tree.map_with_path(changed, params, whole=Leaf)


def save(
    params: Tree, directory: str | Path, *, name: str = "", also: Predicate | None = None
) -> list[str]:
    """Write the adapters of parameters, without their base.

    Args:
        params: with `LowRank` leaves; other kinds of leaves are of the base.
        directory: created if missing; adapters in it are replaced atomically.
        name: of the adapters to be written.
        also: predicate of path and leaf that selects leaves to be written whole, such as a head.

    Returns:
        the names of the files.

    Raises:
        ValueError: no adapter of that name; one of a tied table, or of a leaf that the format has
            no name for.

    >>> import tempfile
    >>> from fnlm import gpt2, leaves, random
    >>> params = leaves.lora(gpt2.load("tiny"), random.key(0), rank=2)
    >>> with tempfile.TemporaryDirectory() as place:
    ...     save(params, place)
    ['adapter_model.safetensors', 'adapter_config.json']
    """
    family = _family(params)
    bare = family.dialects[0].bare and "heads" not in params
    dialect = family.dialects[0]._replace(bare=False)
    tensors: dict[str, Tensor] = {}
    scales: dict[str, tuple[int, float]] = {}  # module -> rank and scale
    turned = []
    for path, leaf in tree.typed_leaves(params):
        if not isinstance(leaf, LowRank) or name not in dict(leaf.frame):
            continue
        _check_untied(path, params, family)
        module, layout = _module(path, dialect, bare)
        index = [n for n, _ in leaf.frame].index(name)
        (a, b), scale = leaf.factors[index], leaf.frame[index][1]
        is_table = layout is None
        ends = ("lora_embedding_A", "lora_embedding_B") if is_table else _LINEAR_ENDS
        tensors |= {f"{ROOT}{module}.{end}": x for end, x in zip(ends, (a.mT, b.mT), strict=True)}
        scales[module] = (a.shape[-1], scale)
        turned.append(layout == "")
    if not scales:
        raise ValueError(f"params have no adapter {name!r}: fnlm.leaves.lora makes adapters")
    whole = _rename.to_foreign(tree.select(params, also), dialect) if also else {}
    whole = {n.removeprefix(dialect.prefix) if bare else n: x for n, x in whole.items()}
    tensors |= {f"{ROOT}{foreign}": x for foreign, x in whole.items()}
    modules = sorted({foreign.rpartition(".")[0] for foreign in whole})
    text = json.dumps(_stated(scales, modules, any(turned)), indent=2, sort_keys=True) + "\n"
    files = {
        WEIGHTS[0]: lambda path: io.write(tensors, path),
        CONFIG: lambda path: path.write_text(text, encoding="utf-8"),
    }
    return _folder.replace_files(directory, "adapter", files, (CONFIG, *WEIGHTS))


_LINEAR_ENDS = ("lora_A.weight", "lora_B.weight")


def _family(params: Tree) -> Family:
    """Return the tables of the family of parameters."""
    config = params.get("config") if isinstance(params, dict) else None
    if not isinstance(config, BaseConfig):
        raise ValueError("params must be those of a family, with its config: none was found")
    module = type(config).__module__.rpartition(".")[2]
    return importlib.import_module(f"fnlm.params.names.{module}").FAMILY


def _settings(path: Path) -> dict[str, Any]:
    """Return adapter_config.json, after refusing what would change numbers."""
    settings = read_json(path)
    if (kind := settings.get("peft_type")) != "LORA":
        raise ValueError(f"{path} has peft_type={short(kind)}: fnlm reads 'LORA' only")
    if (start := settings.get("init_lora_weights", True)) not in _STARTS:
        raise ValueError(
            f"{path} has init_lora_weights={short(start)}, which changed the base weights as well: "
            "convert it in peft (path_initial_model_for_weight_conversion), or merge it there"
        )
    for key, value in settings.items():
        if key not in _HARMLESS | _HEEDED and value not in (None, False, {}, []):
            raise ValueError(
                f"{path} has {short(key)}={short(value)}, which may change the arithmetic: fnlm "
                "reads plain adapters; merge this one in peft, and load the merged model"
            )
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{path} has alpha_pattern={short(patterns)}: it must be an object")
    numbers = {"lora_alpha": settings.get("lora_alpha", 8), **patterns}
    for key, value in numbers.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not abs(value) < 1e30:
            raise ValueError(
                f"{path} has alpha {short(value)} of {short(key)}: it must be a finite number"
            )
        if not re.fullmatch(r"\^?[\w.]+", key):
            raise ValueError(
                f"{path} has the pattern {short(key)}: fnlm reads names of modules only"
            )
    return settings


def _scale(settings: dict[str, Any], module: str, rank: int) -> float:
    """Return the scale of the adapter of a module."""
    alpha = settings.get("lora_alpha", 8)
    for pattern, value in (settings.get("alpha_pattern") or {}).items():
        plain = pattern.removeprefix("^")
        if module == plain or (module.endswith(f".{plain}") and plain == pattern):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _path(name: str, family: Family, leaves: dict[str, Any], label: str) -> str:
    """Return our path of a foreign name."""
    match = _rename.classify(name, family)
    if match.kind == "leaf" and match.path in leaves:
        return match.path
    known = [foreign for x in leaves if (foreign := _rename.foreign_name(x, family.dialects[0]))]
    raise ValueError(
        f"{label} is of no leaf of these params{_rename.nearest(name, known)}: adapters and params "
        "must be of one model, with its heads"
    )


def _module(path: str, dialect: Dialect, bare: bool) -> tuple[str, str | None]:
    """Return the module of a weight, and the axis order in its file; None for a table."""
    name = _rename.foreign_name(path, dialect)
    if name is None or not name.endswith(".weight"):
        raise ValueError(f"peft has no adapters of {path}: save fnlm.leaves.merge(params) instead")
    name = name.removeprefix(dialect.prefix) if bare else name
    table = path.startswith("embed.") or path.endswith(".table")
    layout = _rename.classify(name, Family("", (dialect,), {}, {})).layout
    return name.removesuffix(".weight"), None if table else layout


def _check_untied(path: str, params: Tree, family: Family) -> None:
    """Raise ValueError for a table that the output layer uses as well."""
    tying = {h for h, keys in family.required_by_head.items() if "tie_word_embeddings" in keys}
    ties = bool(tying & {*params.get("heads", ())}) if tying else True
    ties = ties and getattr(params["config"], "tie_word_embeddings", True)
    shared = {ours for dialect in family.dialects for ours in dialect.ties.values()}
    shared |= {x for xs in family.ties.values() for x in xs}
    if ties and any(re.fullmatch(x.replace("*", "[0-9]+"), path) for x in shared):
        raise ValueError(
            f"{path} is tied to the output layer: peft's adapter of it acts on look-ups alone, "
            "that of fnlm on both; save fnlm.leaves.merge(params), or give the output "
            "layer a table of its own"
        )


def _pair(path: Path, module: str, found: dict[str, Tensor], leaf: Any) -> tuple[Tensor, Tensor]:
    """Return a [inputs, rank] and b [rank, outputs]."""
    if missing := {"A", "B"} - found.keys():
        raise ValueError(f"{path}: {module} has no lora_{missing.pop()}: the file is not whole")
    if found["A"].ndim != 2 or not found["A"].shape[0] or leaf.ndim != 2:
        raise ValueError(
            f"{path}: {module} has lora_A {list(found['A'].shape)}, expected [rank, inputs] with a "
            f"rank of at least 1, for a weight {list(leaf.shape)}"
        )
    rank, (inputs, outputs) = found["A"].shape[0], leaf.shape
    _check_shape(path, f"{module} (lora_A)", found["A"], (rank, inputs))
    _check_shape(path, f"{module} (lora_B)", found["B"], (outputs, rank))
    a, b = (found[x].mT.contiguous().to(leaf.device, leaf.dtype) for x in "AB")
    return a, b


def _check_shape(path: Path, label: str, x: Tensor, expected: Any) -> None:
    if tuple(x.shape) != tuple(expected):
        raise ValueError(f"{path}: {label} has shape {list(x.shape)}, expected {list(expected)}")


def _stated(
    scales: dict[str, tuple[int, float]], modules: list[str], fan_in_fan_out: bool
) -> dict[str, Any]:
    """Return the content of adapter_config.json."""
    ranks = {module: rank for module, (rank, _) in scales.items()}
    alphas = {module: rank * scale for module, (rank, scale) in scales.items()}
    rank, alpha = (Counter(x.values()).most_common(1)[0][0] for x in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {module: x for module, x in alphas.items() if x != alpha},
        "target_modules": list(scales),
        "modules_to_save": modules or None,
        "fan_in_fan_out": fan_in_fan_out,
        "bias": "none",
        "inference_mode": True,
        "lora_dropout": 0.0,
        "task_type": None,
        "base_model_name_or_path": None,
    }
