"""Text generation: greedy decoding, sampling, beam search and speculative decoding.

The model is any function `apply(params, ids, cache) -> (logits, cache)`. `generate` and `stream`
decode one continuation per row, greedily (no key) or by sampling (a key); `beam_search` keeps the
best of several; `speculative` makes the tokens of `generate` with the help of a smaller model;
`serve` keeps a pool of rows busy with many requests; `contrastive_search` avoids repetition. All
are short loops over `start`, `advance` and `sample`; write your own the same way.
"""

from fnlm.generate._state import State, advance, start, take_rows
from fnlm.generate.beam import beam_search
from fnlm.generate.contrastive import contrastive_search
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
from fnlm.generate.pool import Completion, Pool, Request, admit, serve, step
from fnlm.generate.sampling import generate, row_keys, sample, scan, stream

__all__ = [
    "Completion",
    "Pool",
    "Request",
    "Round",
    "State",
    "admit",
    "advance",
    "beam_search",
    "contrast",
    "contrastive_search",
    "generate",
    "min_p",
    "repetition_penalty",
    "row_keys",
    "sample",
    "scan",
    "serve",
    "speculative",
    "speculative_stream",
    "start",
    "step",
    "stream",
    "take_rows",
    "temperature",
    "top_k",
    "top_p",
    "typical",
]
