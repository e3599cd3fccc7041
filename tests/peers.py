"""The reference implementations that the parity tests compare with, imported when first asked for.

Both libraries import and run their models under warnings as errors. Two warnings of
pytorch-pretrained-bert's old code remain, and are contained where they arise: its optimizers
call a deprecated overload of `add_` (ignored for its modules alone in pyproject.toml), and
its Transformer-XL initialises empty tensors (see `quiet`).
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from typing import Any
from unittest import mock

import torch


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings inside: for importing and constructing a peer, never around fnlm's own code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache
def ppb() -> Any:
    """The module `pytorch_pretrained_bert` (0.6.2)."""
    with quiet():
        return import_module("pytorch_pretrained_bert")


@lru_cache
def hf() -> Any:
    """The module `transformers`, its own log lines and progress bars off."""
    with quiet():
        transformers = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def ppb_gpt2_config(config: dict[str, Any]) -> Any:
    """The GPT-2 config of pytorch-pretrained-bert for the fields of a published config.json."""
    return ppb().GPT2Config(
        vocab_size_or_config_json_file=config["vocab_size"],
        n_positions=config["n_positions"],
        n_ctx=config.get("n_ctx", config["n_positions"]),
        n_embd=config["n_embd"],
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        layer_norm_epsilon=config.get("layer_norm_epsilon", 1e-5),
        initializer_range=config.get("initializer_range", 0.02),
    )


def ppb_gpt2(config: dict[str, Any], model: str = "GPT2LMHeadModel") -> Any:
    """A GPT-2 of pytorch-pretrained-bert with random weights, in evaluation mode.

    `model` is "GPT2Model", "GPT2LMHeadModel" or "GPT2DoubleHeadsModel".
    """
    with quiet():
        module = getattr(ppb(), model)(ppb_gpt2_config(config))
    module.eval()
    return module


def ppb_gpt(config: dict[str, Any], model: str = "OpenAIGPTLMHeadModel") -> Any:
    """A GPT of pytorch-pretrained-bert with random weights, in evaluation mode.

    `config` holds fields of a published config.json; `model` is "OpenAIGPTModel",
    "OpenAIGPTLMHeadModel" or "OpenAIGPTDoubleHeadsModel".
    """
    with quiet():
        module = getattr(ppb(), model)(ppb().OpenAIGPTConfig.from_dict(config))
    module.eval()
    return module


@lru_cache
def ppb_transfo_xl_module() -> Any:
    """pytorch-pretrained-bert's Transformer-XL file, for what its package does not export."""
    with quiet():
        return import_module("pytorch_pretrained_bert.modeling_transfo_xl")


def ppb_transfo_xl(config: dict[str, Any], *, rounded: bool = False) -> Any:
    """A Transformer-XL of pytorch-pretrained-bert, in evaluation mode, its weights not yet set.

    Its masks are bytes, which torch no longer takes, so they are booleans while it runs. Its masked
    scores are rounded to float32; `rounded=False` leaves them as they are in float64. Its losses
    come in the order of the targets, for which it has a flag.
    """
    whole = torch.Tensor.float

    def to_float(x: Any) -> Any:
        return x if x.dtype == torch.float64 and not rounded else whole(x)

    peer = ppb_transfo_xl_module()
    with quiet():
        module = peer.TransfoXLLMHeadModel(peer.TransfoXLConfig.from_dict(config))
    module.crit.keep_order = True
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.multiple(torch.Tensor, byte=torch.Tensor.bool, float=to_float):
            return forward(*args, **kwargs)

    module.forward = run
    return module.eval()
