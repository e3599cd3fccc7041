"""Text generation: greedy decoding, sampling and beam search.

The model is any function `apply(params, ids, cache) -> (logits, cache)`. `generate` and `stream`
decode one continuation per row, greedily (no key) or by sampling (a key); `beam_search` keeps the
best of several. All are short loops over `start`, `advance` and `sample`; write your own the same
way.
"""

from fnlm.generate.beam import beam_search
from fnlm.generate.drafting import Round, speculative, speculative_stream
from fnlm.generate.logits import (
    contrast,
    min_p,
    repetition_penalty,
    temperature,
    top_k,
    top_p,
    typical,
)
from fnlm.generate.sampling import generate, row_keys, sample, scan, stream
from fnlm.generate.state import State, advance, start, take_rows

__all__ = [
    "Round",
    "State",
    "advance",
    "beam_search",
    "contrast",
    "generate",
    "min_p",
    "repetition_penalty",
    "row_keys",
    "sample",
    "scan",
    "speculative",
    "speculative_stream",
    "start",
    "stream",
    "take_rows",
    "temperature",
    "top_k",
    "top_p",
    "typical",
]
