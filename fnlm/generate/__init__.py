"""Decoding: from a prompt to more text.

Any model will do that is a function `apply(params, ids, cache) -> (logits, cache)`.
`generate` and `stream` follow one continuation a row, the most likely (no key) or a random one (a
key); `beam_search` follows several and keeps the best. All are short loops over `start`, `advance`
and `sample`; write your own the same way.
"""

from fnlm.generate.beam import beam_search
from fnlm.generate.logits import repetition_penalty, temperature, top_k, top_p
from fnlm.generate.sampling import generate, row_keys, sample, scan, stream
from fnlm.generate.state import State, advance, start, take_rows

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
