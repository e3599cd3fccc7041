"""Text generation: greedy decoding, sampling and beam search.

The model is any function `apply(params, ids, cache) -> (logits, cache)`. `generate` and `stream`
decode one continuation per row, greedily (no key) or by sampling (a key); `beam_search` keeps the
best of several. All are short loops over `start`, `advance` and `sample`; write your own the same
way.
"""

from fnlm.generate._state import State, advance, start, take_rows
from fnlm.generate.beam import beam_search
from fnlm.generate.logits import repetition_penalty, temperature, top_k, top_p
from fnlm.generate.sampling import generate, row_keys, sample, scan, stream

__all__ = [
    "State",
    "advance",
    "beam_search",
    "generate",
    "repetition_penalty",
    "row_keys",
    "sample",
    "scan",
    "start",
    "stream",
    "take_rows",
    "temperature",
    "top_k",
    "top_p",
]
