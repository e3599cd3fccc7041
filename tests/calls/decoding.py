"""Examples of decoding."""

from typing import Any

import torch
from torch import Tensor, nn

import fnlm.generate as decoding
from calls.common import IDS, KEY, KEYS, LOGITS, MASK, PARAMS, Make, on
from fnlm import gpt2, taps
from fnlm.generate import sampling


def counts(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """A model whose next word is the number after the last."""
    return nn.functional.one_hot((ids + 1) % 5, 5).float(), ids


PROMPT: dict[str, Any] = {"mask": MASK, "eos": [4, 9], "prefill": gpt2.hidden_states}
SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_k": 9, "top_p": 0.8}
STARTED = decoding.start(gpt2.apply, PARAMS, IDS)
DECODING_ARGS = (gpt2.apply, PARAMS, IDS)
WITH = (gpt2.apply, PARAMS)
PROMPTED: dict[str, Any] = {"mask": MASK, "eos": [4, 9]}
READING = taps.read(gpt2.apply, "hidden")
BOTH = (gpt2.apply, PARAMS, gpt2.apply, PARAMS, IDS, 4)
REQUESTS = [decoding.Request(row, 2 + n) for n, row in enumerate(IDS)]
POOL = decoding.admit(gpt2.apply, PARAMS, None, REQUESTS[0], 0)
DECODING: dict[str, Make] = {
    "sample": lambda _: on(decoding.sample, LOGITS, KEYS, **SAMPLING),
    "scan": lambda _: on(decoding.scan, gpt2.apply, PARAMS, STARTED, 3, key=KEYS, **SAMPLING),
    "stream": lambda _: on(
        decoding.stream, *DECODING_ARGS, 4, key=KEY, **SAMPLING, **PROMPT, seen=list
    ),
    "generate": lambda _: on(
        decoding.generate, *DECODING_ARGS, 4, key=KEYS, repetition_penalty=1.2, **PROMPT
    ),
    "generate by any model": lambda _: on(decoding.generate, counts, {}, IDS[:, :2] % 5, 4, eos=3),
    "beam_search": lambda _: on(decoding.beam_search, *DECODING_ARGS, 4, num_beams=3, **PROMPT),
    "start": lambda _: on(decoding.start, *DECODING_ARGS, mask=MASK, prefill=gpt2.hidden_states),
    "advance": lambda _: on(decoding.advance, gpt2.apply, PARAMS, STARTED, IDS[:, 0]),
    "take_rows": lambda _: on(decoding.take_rows, STARTED, torch.tensor([1, 1])),
    "speculative": lambda _: on(decoding.speculative, *BOTH, key=KEYS, draft_tokens=2, **PROMPTED),
    "speculative_stream": lambda _: on(decoding.speculative_stream, *BOTH, key=KEY, seen=list),
    "admit": lambda _: on(decoding.admit, *WITH, POOL, REQUESTS[1], 1),
    "step": lambda _: on(decoding.step, *WITH, POOL, key=KEY, **SAMPLING),
    "serve": lambda _: on(decoding.serve, *WITH, REQUESTS, rows=2, key=KEY, eos=4, seen=list),
    "contrastive_search": lambda _: on(
        decoding.contrastive_search, READING, PARAMS, IDS, 4, mask=MASK, eos=[4, 9]
    ),
    "sampling.check_settings": lambda _: on(sampling.check_settings, KEY, **SAMPLING),
}
