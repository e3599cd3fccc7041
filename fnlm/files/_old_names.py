"""What to give instead of the arguments that `from_pretrained` takes in other libraries."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

INSTEAD = {
    "cache_dir": "set HF_HUB_CACHE to the folder that keeps downloads",
    "config": "save it as config.json beside the weights, or call init(config, key)",
    "device": "move what load returns: tree.to(params, device)",
    "device_map": "move what load returns: tree.to(params, device)",
    "do_basic_tokenize": "leave it out, or cut words with fnlm.tokenize.wordpiece.split",
    "do_lower_case": "give lower_case",
    "dtype": "cast what load returns: tree.cast(params, dtype)",
    "errors": "give errors to decode",
    "force_download": "remove the model from the folder of HF_HUB_CACHE",
    "from_tf": "leave it out, as the content of a file tells its format",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "max_len": "cut the ids: encode(text)[:max_len]",
    "merges_file": "name the directory that holds both files, or one of them",
    "never_split": "make Tokenizer(vocab, never_split=...)",
    "num_labels": "change it in the config of what load returns, and initialize the head anew",
    "num_special_tokens": "call extend_vocabulary on what load returns",
    "output_hidden_states": "call layers in place of apply",
    "revision": "name the model owner/name@revision",
    "special_tokens": "call extend(tokens) on what load returns",
    "state_dict": "write it to a file and load that",
    "token": "set HF_TOKEN",
    "torch_dtype": "cast what load returns: tree.cast(params, dtype)",
    "trust_remote_code": "leave it out, as nothing in a file is run",
    "use_auth_token": "set HF_TOKEN",
}


def answered(load: Callable[P, R]) -> Callable[P, R]:
    """Return a `load` whose error says what to give instead of an argument with an old name."""
    takes = signature(load).parameters

    @wraps(load)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name in INSTEAD and name not in takes:
                raise TypeError(f"load takes no {name}: {INSTEAD[name]}")
        return load(*args, **kwargs)

    return wrapper
