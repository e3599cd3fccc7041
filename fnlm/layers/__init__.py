"""The primitives that families are written with: pure functions of tensors.

They take any leading dimensions. Dimension letters: B batch, T new tokens, S cached tokens,
V vocabulary, D width, H heads, Dh width of a head (D = H Dh). Most functions are at hand here:
`from fnlm.layers import attend, layer_norm`; those of a state in `kv_cache` and `memory`.
"""

from fnlm.layers._tap import tap
from fnlm.layers.activation import ACTIVATIONS, gelu_erf, gelu_tanh
from fnlm.layers.adaptive_softmax import (
    Cluster,
    adaptive_embedding,
    adaptive_log_softmax,
    adaptive_nll,
    draw_words,
    sampled_nll,
)
from fnlm.layers.attention import attend, causal_mask, merge_heads, padding_bias, split_heads
from fnlm.layers.dropout import apply_mask, dropout, dropout_keys, keep_mask
from fnlm.layers.embedding import check_range, lookup
from fnlm.layers.linear import linear
from fnlm.layers.mask import check_mask
from fnlm.layers.memory import update_mems, zero_mems
from fnlm.layers.mlp import mlp
from fnlm.layers.norm import layer_norm
from fnlm.layers.precision import at_least_float32
from fnlm.layers.relative_attention import (
    attend_relative,
    attention_bias,
    causal_window_mask,
    relative_shift,
    sinusoids,
)

__all__ = [
    "ACTIVATIONS", "Cluster", "adaptive_embedding", "adaptive_log_softmax", "adaptive_nll",
    "apply_mask", "at_least_float32", "attend", "attend_relative", "attention_bias", "causal_mask",
    "causal_window_mask", "check_mask", "check_range", "draw_words", "dropout", "dropout_keys",
    "gelu_erf", "gelu_tanh", "keep_mask", "layer_norm", "linear", "lookup", "merge_heads", "mlp",
    "padding_bias", "relative_shift", "sampled_nll", "sinusoids", "split_heads",
    "tap", "update_mems", "zero_mems",
]  # fmt: skip
