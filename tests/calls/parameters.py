"""Examples of parameters and files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from families import BERT, GPT2
from torch import nn

from calls.common import (
    CLI_CONFIG,
    IDS,
    PARAMS,
    SMALL,
    UNTIED,
    Make,
    X,
    on,
    saved,
    writes,
)
from fnlm import (
    bert,
    gpt2,
    train,
    tree,
)
from fnlm.files import hub
from fnlm.files._folder import replace_files
from fnlm.params import _rename, check_config, config_of, io, layout, module, spec
from fnlm.params.config import BaseConfig, multiple_of, one_of, read_json
from fnlm.params.names.gpt2 import FAMILY

SPEC = gpt2.spec(GPT2.config, gpt2.HEADS)
HEADS_KWARGS: dict[str, Any] = {"heads": None, "key": None}
FOLDER_ARGS = (FAMILY, gpt2.Config, gpt2.spec)


def saving(params: Any, directory: Path) -> None:
    io.save(params, directory, FAMILY, gpt2.spec, "transformers")


def saving_two(directory: Path) -> list[str]:
    """Save two files in the place of one."""
    write = partial(Path.write_text, data="whole")
    first = replace_files(directory, "model", {"old.txt": write})
    return replace_files(directory, "model", {"a.txt": write, "b.txt": write}, first)


def config_there(folder: Path) -> Path:
    CLI_CONFIG.to_json_file(folder / "config.json")
    return folder / "config.json"


TREE: dict[str, Make] = {
    "map": lambda _: on(tree.map, torch.add, SMALL, SMALL),
    "map_with_path": lambda _: on(tree.map_with_path, lambda p, x, y: x * len(p), SMALL, SMALL),
    "partition": lambda _: on(tree.partition, PARAMS, train.except_bias_and_norm),
    "select": lambda _: on(tree.select, PARAMS, train.except_bias_and_norm),
}
FOREIGN = _rename.to_foreign(UNTIED, FAMILY.dialects[0])
PARAMETERS: dict[str, Make] = {
    "check_config": lambda _: on(check_config, GPT2.config, gpt2.Config),
    "config_of": lambda _: on(config_of, PARAMS, gpt2.Config),
    "config.LabelledConfig.from_dict": lambda _: on(
        bert.Config.from_dict, {"id2label": {"0": "no"}}
    ),
    "config.LabelledConfig.to_dict": lambda _: on(bert.Config.to_dict, BERT.config),
    "config.multiple_of": lambda _: on(multiple_of, GPT2.config, "n_embd", "n_head"),
    "config.BaseConfig.from_dict": lambda _: on(gpt2.Config.from_dict, {"n_embd": 24, "new": [1]}),
    "config.BaseConfig.from_json_file": lambda folder: on(
        gpt2.Config.from_json_file, config_there(folder)
    ),
    "config.one_of": lambda _: on(one_of, "activation", "gelu", ["gelu", "relu"]),
    "config.read_json": lambda folder: on(read_json, config_there(folder)),
    "config.BaseConfig.to_dict": lambda _: on(BaseConfig.to_dict, CLI_CONFIG),
    "config.BaseConfig.to_json_string": lambda _: on(BaseConfig.to_json_string, CLI_CONFIG),
    "config.BaseConfig.to_json_file": writes(BaseConfig.to_json_file, CLI_CONFIG),
    "io.write": writes(io.write, FOREIGN),
    "io.load": lambda folder: on(io.load, saved(folder), *FOLDER_ARGS, **HEADS_KWARGS),
    "io.assemble": lambda _: on(io.assemble, FOREIGN, GPT2.config, FAMILY, gpt2.spec),
    "io.config_from": lambda folder: on(io.config_from, config_there(folder), FAMILY, gpt2.Config),
    "io.save": writes(saving, PARAMS),
    "layout.for_decoding": lambda _: on(layout.for_decoding, tree.cast(PARAMS, torch.bfloat16)),
    "module.from_module": lambda _: on(
        module.from_module, nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(5)).eval(), seen=called
    ),
    "module.as_module": lambda _: on(
        module.as_module, gpt2.apply, PARAMS, seen=lambda made: (made.params(), made(IDS)[0])
    ),
    "module.TreeModule.forward": lambda _: on(module.TreeModule(gpt2.apply, PARAMS).forward, IDS),
    "spec.linear_spec": lambda _: on(spec.linear_spec, 3, 4, 0.1),
    "spec.norm_spec": lambda _: on(spec.norm_spec, 3),
    "spec.check": lambda _: on(spec.check, SPEC, PARAMS),
}
FILES: dict[str, Make] = {
    "hub.find": lambda folder: on(hub.find, saved(folder), [("model.bin",), ("config.json",)]),
    "hub.locate": lambda folder: on(hub.locate, saved(folder)),
    "hub.Source.directory": lambda folder: on(
        vars(hub.Source)["directory"].fget, hub.locate(saved(folder))
    ),
}


def called(made: tuple[Callable[..., Any], Any]) -> Any:
    apply, params = made
    return params, apply(params, X)
