"""Typed leaves: what may stand where a tensor of the parameters stands."""

from fnlm.leaves._leaf import Leaf
from fnlm.leaves.low_rank import LowRank, attach, base, is_adapter, linear_weights, lora, merge
from fnlm.leaves.packed import Packed, pack
from fnlm.leaves.quantized import Int4, Int8, Quantized, quantize

__all__ = [
    "Int4", "Int8", "Leaf", "LowRank", "Packed", "Quantized", "attach", "base", "is_adapter",
    "linear_weights", "lora", "merge", "pack", "quantize",
]  # fmt: skip
