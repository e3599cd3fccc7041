"""Examples of layers and heads."""

from typing import Any

import torch
from families import BERT, TRANSFO_XL, make_params

from calls.common import BACK, IDS, KEY, LINEAR, MASK, PARAMS, Make, X, on
from fnlm import _adaptive_vocabulary as vocabulary
from fnlm import (
    bert,
    gpt2,
    heads,
    layers,
    random,
)
from fnlm.layers import kv_cache
from fnlm.layers._tap import Level, Visitor


def grown() -> Any:
    """Make a cache of two segments."""
    with torch.no_grad():
        _, first = gpt2.apply(PARAMS, IDS[:, :3], mask=MASK[:, :3])
        return gpt2.apply(PARAMS, IDS[:, 3:4], first, mask=MASK[:, 3:4])[1]


def sevenfold() -> Any:
    """Make taps that write seven times what is there."""
    visitor = Visitor("", lambda site, x, written: 7 * x, lambda site: True, False)
    return (Level(visitor, {}),)


HALF = torch.ones(1, 5, 5, dtype=torch.bool).tril()
LAYERS: dict[str, Make] = {
    "gelu_erf": lambda _: on(layers.gelu_erf, X),
    "gelu_tanh": lambda _: on(layers.gelu_tanh, X),
    "attend": lambda _: on(
        layers.attend, X, (X[:, :2], X[:, 2:]), (X[:, :2], X[:, 2:]), HALF, rate=0.2, key=KEY
    ),
    "kv_cache.check": lambda _: on(kv_cache.check, grown(), (2, 3, 3, 12), IDS.device),
    "kv_cache.check_dtype": lambda _: on(kv_cache.check_dtype, (X,), X),
    "kv_cache.outside_inference_mode": lambda _: on(kv_cache.outside_inference_mode, grown()),
    "kv_cache.length": lambda _: on(kv_cache.length, grown()),
    "kv_cache.valid": lambda _: on(kv_cache.valid, grown(), MASK),
    "kv_cache.past": lambda _: on(kv_cache.past, grown(), 1),
    "kv_cache.append": lambda _: on(kv_cache.append, grown(), *grown().segments[-1], MASK[:, :1]),
    "kv_cache.take_rows": lambda _: on(kv_cache.take_rows, grown(), torch.tensor([2, 0, 2])),
    "kv_cache.truncate": lambda _: on(kv_cache.truncate, grown(), 2),
    "check_range": lambda _: on(layers.check_range, IDS, 41),
    "check_mask": lambda _: on(layers.check_mask, MASK),
    "tap": lambda _: on(layers.tap, X, sevenfold(), "out"),
    "mlp": lambda _: on(layers.mlp, X, LINEAR, BACK, activation=torch.tanh),
}
BERT_PARAMS = make_params(BERT)
STATES = random.normal(KEY, (3, 7, 36))
HEADS: dict[str, Make] = {
    "pooler_params": lambda _: on(heads.pooler_params, BERT_PARAMS, bert.Config),
    "head_params": lambda _: on(heads.head_params, BERT_PARAMS, "masked_lm", bert.Config),
    "output_table": lambda _: on(heads.output_table, PARAMS),
    "linear_logits": lambda _: on(heads.linear_logits, X, **LINEAR),
    "masked_lm_logits": lambda _: on(heads.masked_lm_logits, BERT_PARAMS, STATES),
    "masked_lm_states": lambda _: on(heads.masked_lm_states, BERT_PARAMS, STATES),
    "tied_logits": lambda _: on(heads.tied_logits, X, X[0]),
    "choice_logits": lambda _: on(
        heads.choice_logits, X, torch.tensor([1, 0, 4]), LINEAR["weight"][:, :1], X[0, 0, :1]
    ),
}
XL_PARAMS = make_params(TRANSFO_XL)
CLUSTERS, GATES = vocabulary.softmax_clusters(XL_PARAMS)
BIASES = XL_PARAMS["blocks"][0]["attention"]
BY_HEAD = random.normal(KEY, (3, 7, 10))
DISTANCES = random.normal(KEY, (3, 8, 10))
XL_LAYERS: dict[str, Make] = {
    "adaptive_embedding": lambda _: on(
        layers.adaptive_embedding,
        IDS,
        vocabulary.embedding_clusters(XL_PARAMS),
        sparse=True,
    ),
    "adaptive_nll": lambda _: on(layers.adaptive_nll, STATES, IDS, CLUSTERS, GATES, sparse=True),
    "attend_relative": lambda _: on(
        layers.attend_relative,
        *(BY_HEAD, BY_HEAD, BY_HEAD, DISTANCES),
        layers.attention_bias(layers.causal_window_mask(7, 7), X.dtype),
        content_bias=BIASES["content_bias"],
        position_bias=BIASES["position_bias"],
        rate=0.2,
        key=KEY,
    ),
}
