"""GPT-2 in ggml, through `ctransformers`: its files, and the time of a token.

Sources: ggml's example `gpt-2` for the format; its blocks `q8_0` and `q4_0` of 32 numbers with one
scale, for 8 and 4 bits.
"""

import statistics
import struct
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
MAGIC, BLOCK = 0x67676D6C, 32
NAMES = {"attention.qkv": "attn/c_attn", "attention.out": "attn/c_proj", "mlp.up": "mlp/c_fc",
         "mlp.down": "mlp/c_proj", "norm_1": "ln_1", "norm_2": "ln_2"}  # fmt: skip


def _wide(x: Array) -> bytes:
    return x.astype("<f4").tobytes()


def _eight_bits(x: Array) -> bytes:
    blocks = x.reshape(-1, BLOCK)
    made = np.empty(len(blocks), [("scale", "<f2"), ("values", "i1", BLOCK)])
    made["scale"] = np.abs(blocks).max(1) / 127
    made["values"] = np.round(blocks / made["scale"].astype("f4")[:, None]).clip(-127, 127)
    return made.tobytes()


def _four_bits(x: Array) -> bytes:
    blocks = x.reshape(-1, BLOCK)
    made = np.empty(len(blocks), [("scale", "<f2"), ("values", "u1", BLOCK // 2)])
    largest = np.abs(blocks).argmax(1)
    made["scale"] = blocks[np.arange(len(blocks)), largest] / -8
    numbers = np.round(blocks / made["scale"].astype("f4")[:, None] + 8).clip(0, 15).astype("u1")
    made["values"] = numbers[:, : BLOCK // 2] | numbers[:, BLOCK // 2 :] << 4
    return made.tobytes()


class Kind(NamedTuple):
    """How the matrices of a type are stored."""

    file: int  # what the header calls it, with the version of the blocks
    tensor: int  # what each tensor calls it
    pack: Callable[[Array], bytes]


KINDS = {
    "float32": Kind(0, 0, _wide),
    "8 bits": Kind(2007, 8, _eight_bits),
    "4 bits": Kind(2002, 2, _four_bits),
}


def write(params: Any, path: Path, kind: Kind) -> None:
    """Write parameters of GPT-2 in float32; a token is called by its number."""
    config = params["config"]
    sizes = (config.vocab_size, config.n_positions, config.n_embd, config.n_head, config.n_layer)
    with path.open("wb") as file:
        file.write(struct.pack("<7i", MAGIC, *sizes, kind.file))
        file.write(struct.pack("<i", config.vocab_size))
        for number in range(config.vocab_size):
            word = str(number).encode()
            file.write(struct.pack("<I", len(word)) + word)
        _put(file, "model/wte", params["embed"]["token"], kind)
        _put(file, "model/wpe", params["embed"]["position"], KINDS["float32"])
        _norm(file, "model/ln_f", params["norm"])
        for layer, block in enumerate(params["blocks"]):
            for ours, theirs in NAMES.items():
                branch, _, leaf = ours.partition(".")
                name = f"model/h{layer}/{theirs}"
                if not leaf:
                    _norm(file, name, block[branch])
                    continue
                _put(file, f"{name}/w", block[branch][leaf]["weight"].mT, kind)
                _put(file, f"{name}/b", block[branch][leaf]["bias"], KINDS["float32"])


def _norm(file: BinaryIO, name: str, norm: Any) -> None:
    _put(file, f"{name}/g", norm["scale"], KINDS["float32"])
    _put(file, f"{name}/b", norm["bias"], KINDS["float32"])


def _put(file: BinaryIO, name: str, x: Any, kind: Kind) -> None:
    """Append a tensor: its sizes, the innermost first, its name and its numbers."""
    array, sizes = np.ascontiguousarray(x.numpy()), x.shape[::-1]
    file.write(struct.pack(f"<{3 + len(sizes)}i", len(sizes), len(name), kind.tensor, *sizes))
    file.write(name.encode() + kind.pack(array))


@lru_cache(maxsize=1)
def _model(path: str, threads: int, prompt: tuple[int, ...]) -> Any:
    from ctransformers import LLM, Config

    settings = Config(threads=threads, context_length=1024, batch_size=64)  # its memory is fixed
    model = LLM(path, "gpt2", config=settings)
    model.eval(prompt)
    return model


def logits(path: str, threads: int, prompt: tuple[int, ...]) -> list[float]:
    """Return the logits after a prompt."""
    return list(_model(path, threads, prompt).logits)


def seconds(path: str, threads: int, prompt: tuple[int, ...], tokens: int) -> float:
    """Return the seconds of a token after a prompt, and after those of earlier calls."""
    model, took = _model(path, threads, prompt), []
    for number in range(tokens):
        begin = time.perf_counter()
        model.eval([number])
        took.append(time.perf_counter() - begin)
    return statistics.median(took)
