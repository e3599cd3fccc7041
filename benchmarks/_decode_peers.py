"""The peers of decode_gpt2.py: what each takes for a token, of the same weights.

CTranslate2 and ggml run in another process: once CTranslate2's threads are in this one, torch's
take nearly twice the time for a token, perhaps as more threads than cores do not wait actively.
"""

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import _ggml
import torch
from _harness import is_installed
from torch import Tensor

from fnlm import gpt2

__all__ = ["Peers", "all_peers", "of_module"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CTRANSLATE2_TYPES = {"float32": "float32", "bfloat16": "bfloat16", "8 bits": "int8"}
Call = Callable[[], float]  # returns the seconds of a token


class Peers(NamedTuple):
    """The peers that are installed."""

    params: gpt2.Params  # in float32
    module: Any  # the same in `transformers`, of the type that was last asked for
    folder: Path  # where `transformers` has it, and ggml's files are
    ctranslate2: str | None  # the folder of its model
    has_ggml: bool
    other: Executor  # the other process

    def calls(self, name: str, ids: Tensor, tokens: int) -> dict[str, Call]:
        """Return for each peer that has a type what the tokens after ids [1, T] take."""
        found: dict[str, Call] = {}
        if name in DTYPES:
            found["transformers"] = of_module(self.module.to(DTYPES[name]), ids, tokens)
        threads, prompt = torch.get_num_threads(), tuple(ids[0].tolist())
        if self.ctranslate2 and (kind := self._of_ctranslate2(name)):
            given = self.ctranslate2, kind, threads, prompt, tokens
            found["CTranslate2"] = lambda: self.other.submit(by_ctranslate2, *given).result()
        if self.has_ggml and name in _ggml.KINDS:
            model = str(self._ggml_file(name)), threads, prompt
            self._check_ggml(name, ids, self.other.submit(_ggml.logits, *model).result())
            found["ggml"] = lambda: self.other.submit(_ggml.seconds, *model, tokens).result()
        return found

    def _of_ctranslate2(self, name: str) -> str | None:
        """Return what CTranslate2 calls a type; None where it lacks it on this CPU."""
        import ctranslate2

        kind = CTRANSLATE2_TYPES.get(name)
        return kind if kind in ctranslate2.get_supported_compute_types("cpu") else None

    def _ggml_file(self, name: str) -> Path:
        path = self.folder / f"ggml {name}.bin"
        if not path.exists():
            _ggml.write(self.params, path, _ggml.KINDS[name])
        return path

    def _check_ggml(self, name: str, ids: Tensor, found: list[float]) -> None:
        """Raise ValueError if the logits are not those of fnlm, in float32."""
        away = (torch.tensor(found) - gpt2.apply(self.params, ids)[0][0, -1]).abs().max()
        if name == "float32" and float(away) > 0.05:
            raise ValueError(f"ggml's logits are {float(away)} from those of fnlm")


@contextmanager
def all_peers(params: gpt2.Params) -> Iterator[Peers]:
    """Yield the peers with these parameters of GPT-2, in float32."""
    with (
        tempfile.TemporaryDirectory() as directory,
        ProcessPoolExecutor(1, get_context("spawn")) as other,
    ):
        module = _hugging_face(params, directory)
        folder = _to_ctranslate2(directory) if is_installed("ctranslate2") else None
        has_ggml = is_installed("ctransformers")
        yield Peers(params, module, Path(directory), folder, has_ggml, other)


def of_module(module: Any, ids: Tensor, tokens: int) -> Call:
    """Return the seconds of a token of `transformers`, by its own forward function and cache."""

    def run() -> float:
        out = module(ids, use_cache=True, logits_to_keep=1)
        took = []
        for _ in range(tokens):
            begin = time.perf_counter()
            last = out.logits[:, -1:].argmax(-1)
            out = module(last, past_key_values=out.past_key_values, use_cache=True)
            took.append(time.perf_counter() - begin)
        return statistics.median(took)

    return run


def _hugging_face(params: gpt2.Params, directory: str) -> Any:
    """Return the same weights as a module of `transformers`; they stay in the directory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        gpt2.save(params, directory)
        return transformers.GPT2LMHeadModel.from_pretrained(directory, dtype=torch.float32).eval()


def _to_ctranslate2(directory: str) -> str:
    """Return the folder, inside of the directory, of a CTranslate2 model of what is in it."""
    from ctranslate2.converters import TransformersConverter

    class Words:
        unk_token = bos_token = eos_token = "0"

        def get_vocab(self) -> dict[str, int]:
            return {str(n): n for n in range(50257)}

    folder = str(Path(directory, "ctranslate2"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converter = TransformersConverter(directory)
        converter.load_tokenizer = lambda *args, **kwargs: Words()
        converter.convert(folder, force=True)
    return folder


@lru_cache(maxsize=1)
def _generator(folder: str, kind: str, threads: int) -> Any:
    import ctranslate2

    return ctranslate2.Generator(folder, compute_type=kind, intra_threads=threads)


def by_ctranslate2(
    folder: str, kind: str, threads: int, prompt: tuple[int, ...], tokens: int
) -> float:
    """Return the seconds of a token after a prompt."""
    times: list[float] = []

    def note(result: object) -> bool:
        times.append(time.perf_counter())
        return False

    _generator(folder, kind, threads).generate_batch(
        [[str(n) for n in prompt]], max_length=tokens + 1, min_length=tokens + 1,
        sampling_topk=1, include_prompt_in_result=False, cache_static_prompt=False,
        callback=note,
    )  # fmt: skip
    return statistics.median(b - a for a, b in zip(times, times[1:], strict=False))
