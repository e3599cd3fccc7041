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
    random,
)
from fnlm.layers import (
    activation,
    adaptive_softmax,
    attention,
    cache,
    embedding,
    mask,
    mlp,
    relative_attention,
)


def grown() -> Any:
    """Make a cache of two segments."""
    with torch.no_grad():
        _, first = gpt2.apply(PARAMS, IDS[:, :3], mask=MASK[:, :3])
        return gpt2.apply(PARAMS, IDS[:, 3:4], first, mask=MASK[:, 3:4])[1]


HALF = torch.ones(1, 5, 5, dtype=torch.bool).tril()
LAYERS: dict[str, Make] = {
    "activation.gelu_erf": lambda _: on(activation.gelu_erf, X),
    "activation.gelu_tanh": lambda _: on(activation.gelu_tanh, X),
    "attention.attend": lambda _: on(
        attention.attend, X, (X[:, :2], X[:, 2:]), (X[:, :2], X[:, 2:]), HALF, rate=0.2, key=KEY
    ),
    "cache.check": lambda _: on(cache.check, grown(), (2, 3, 3, 12), IDS.device),
    "cache.check_dtype": lambda _: on(cache.check_dtype, (X,), X),
    "cache.outside_inference_mode": lambda _: on(cache.outside_inference_mode, grown()),
    "cache.length": lambda _: on(cache.length, grown()),
    "cache.valid": lambda _: on(cache.valid, grown(), MASK),
    "cache.past": lambda _: on(cache.past, grown(), 1),
    "cache.append": lambda _: on(cache.append, grown(), *grown().segments[-1], MASK[:, :1]),
    "cache.take_rows": lambda _: on(cache.take_rows, grown(), torch.tensor([2, 0, 2])),
    "cache.truncate": lambda _: on(cache.truncate, grown(), 2),
    "embedding.check_range": lambda _: on(embedding.check_range, IDS, 41),
    "mask.check_mask": lambda _: on(mask.check_mask, MASK),
    "mlp.mlp": lambda _: on(mlp.mlp, X, LINEAR, BACK, activation=torch.tanh),
}
BERT_PARAMS = make_params(BERT)
WORDS_HEAD: dict[str, Any] = BERT_PARAMS["heads"]["masked_lm"]
HEADS: dict[str, Make] = {
    "find": lambda _: on(heads.find, BERT_PARAMS, "masked_lm", bert.Config),
    "output_table": lambda _: on(heads.output_table, PARAMS),
    "masked_lm_logits": lambda _: on(
        heads.masked_lm_logits,
        random.normal(KEY, (3, 36)),
        BERT_PARAMS["embed"]["token"],
        **WORDS_HEAD,
        activation=torch.tanh,
        eps=0.1,
    ),
    "tied_logits": lambda _: on(heads.tied_logits, X, X[0]),
    "choice_logits": lambda _: on(
        heads.choice_logits, X, torch.tensor([1, 0, 4]), LINEAR["weight"][:, :1], X[0, 0, :1]
    ),
}
XL_PARAMS = make_params(TRANSFO_XL)
CLUSTERS, GATES = vocabulary.softmax_clusters(XL_PARAMS)
STATES = random.normal(KEY, (3, 7, 36))
BIASES = XL_PARAMS["blocks"][0]["attention"]
BY_HEAD = random.normal(KEY, (3, 7, 10))
DISTANCES = random.normal(KEY, (3, 8, 10))
XL_LAYERS: dict[str, Make] = {
    "adaptive_softmax.adaptive_embedding": lambda _: on(
        adaptive_softmax.adaptive_embedding,
        IDS,
        vocabulary.embedding_clusters(XL_PARAMS),
        sparse=True,
    ),
    "adaptive_softmax.adaptive_nll": lambda _: on(
        adaptive_softmax.adaptive_nll, STATES, IDS, CLUSTERS, GATES, sparse=True
    ),
    "relative_attention.attend_relative": lambda _: on(
        relative_attention.attend_relative,
        *(BY_HEAD, BY_HEAD, BY_HEAD, DISTANCES),
        relative_attention.attention_bias(relative_attention.causal_window_mask(7, 7), X.dtype),
        content_bias=BIASES["content_bias"],
        position_bias=BIASES["position_bias"],
        rate=0.2,
        key=KEY,
    ),
}
