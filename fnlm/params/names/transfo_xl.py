"""Transformer-XL's names in pytorch-pretrained-bert files, and in the release for TensorFlow.

`transformers` deleted the family; its last versions used the names of pytorch-pretrained-BERT.
"""

from fnlm.params.names import Dialect, Family, Rule
from fnlm.params.names._generic import REQUIRED, harmless

# Other names of fields of the config: those of pytorch-pretrained-BERT and of `transformers`.
ALIASES = {
    "vocab_size": "n_token",
    "vocab_size_or_config_json_file": "n_token",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "tie_word_embeddings": "tie_weight",
}

_BLOCK = (
    Rule("blocks.*.attention.qkv", "layers.*.dec_attn.qkv_net.weight", "o i -> i o"),
    Rule("blocks.*.attention.relative", "layers.*.dec_attn.r_net.weight", "o i -> i o"),
    Rule("blocks.*.attention.out", "layers.*.dec_attn.o_net.weight", "o i -> i o"),
    Rule("blocks.*.attention.content_bias", "layers.*.dec_attn.r_w_bias"),
    Rule("blocks.*.attention.position_bias", "layers.*.dec_attn.r_r_bias"),
    Rule("blocks.*.norm_1.scale", "layers.*.dec_attn.layer_norm.weight"),
    Rule("blocks.*.norm_1.bias", "layers.*.dec_attn.layer_norm.bias"),
    Rule("blocks.*.mlp.up.weight", "layers.*.pos_ff.CoreNet.0.weight", "o i -> i o"),
    Rule("blocks.*.mlp.up.bias", "layers.*.pos_ff.CoreNet.0.bias"),
    Rule("blocks.*.mlp.down.weight", "layers.*.pos_ff.CoreNet.3.weight", "o i -> i o"),
    Rule("blocks.*.mlp.down.bias", "layers.*.pos_ff.CoreNet.3.bias"),
    Rule("blocks.*.norm_2.scale", "layers.*.pos_ff.layer_norm.weight"),
    Rule("blocks.*.norm_2.bias", "layers.*.pos_ff.layer_norm.bias"),
)
_VOCABULARY = (
    Rule("embed.cluster_*.table", "word_emb.emb_layers.*.weight"),
    Rule("embed.cluster_*.projection", "word_emb.emb_projs.*", "d e -> e d"),
    Rule("softmax.gates.table", "crit.cluster_weight"),
    Rule("softmax.gates.bias", "crit.cluster_bias"),
    Rule("softmax.cluster_*.table", "crit.out_layers.*.weight"),
    Rule("softmax.cluster_*.bias", "crit.out_layers.*.bias"),
    Rule("softmax.cluster_*.projection", "crit.out_projs.*", "d e -> e d"),
)
_SHARED = (
    Rule("shared.content_bias", "r_w_bias"),
    Rule("shared.position_bias", "r_r_bias"),
)

_TENSORFLOW = (
    Rule("embed.cluster_*.table", "adaptive_embed/cutoff_*/lookup_table"),
    Rule("embed.cluster_*.projection", "adaptive_embed/cutoff_*/proj_W"),
    Rule("embed.cluster_0.table", "adaptive_embed/lookup_table"),
    Rule("embed.cluster_0.projection", "adaptive_embed/proj_W"),
    Rule("softmax.gates.table", "adaptive_softmax/cutoff_0/cluster_W"),
    Rule("softmax.gates.bias", "adaptive_softmax/cutoff_0/cluster_b"),
    Rule("softmax.cluster_*.bias", "adaptive_softmax/cutoff_*/b"),
    Rule("softmax.cluster_*.projection", "adaptive_softmax/cutoff_*/proj"),
    Rule("softmax.cluster_0.bias", "adaptive_softmax/bias"),
    Rule("shared.content_bias", "r_w_bias"),
    Rule("shared.position_bias", "r_r_bias"),
    Rule("blocks.*.attention.qkv", "layer_*/rel_attn/qkv/kernel"),
    Rule("blocks.*.attention.relative", "layer_*/rel_attn/r/kernel"),
    Rule("blocks.*.attention.out", "layer_*/rel_attn/o/kernel"),
    Rule("blocks.*.norm_1.scale", "layer_*/rel_attn/LayerNorm/gamma"),
    Rule("blocks.*.norm_1.bias", "layer_*/rel_attn/LayerNorm/beta"),
    Rule("blocks.*.mlp.up.weight", "layer_*/ff/layer_1/kernel"),
    Rule("blocks.*.mlp.up.bias", "layer_*/ff/layer_1/bias"),
    Rule("blocks.*.mlp.down.weight", "layer_*/ff/layer_2/kernel"),
    Rule("blocks.*.mlp.down.bias", "layer_*/ff/layer_2/bias"),
    Rule("blocks.*.norm_2.scale", "layer_*/ff/LayerNorm/gamma"),
    Rule("blocks.*.norm_2.bias", "layer_*/ff/LayerNorm/beta"),
)


def _torch(name: str, file: str) -> Dialect:
    return Dialect(
        name=name,
        file=file,
        rules=(*_BLOCK, *_VOCABULARY, *_SHARED),
        prefix="transformer.",
        unprefixed=("crit.",),
        ties={},
        buffers=("pos_emb.inv_freq",),
    )


FAMILY = Family(
    name="transfo-xl",
    dialects=(
        _torch("transformers", "model.safetensors"),
        _torch("pytorch-pretrained-bert", "pytorch_model.bin"),
        Dialect(
            name="tensorflow",
            file="",
            rules=_TENSORFLOW,
            prefix="transformer/",
            unprefixed=(),
            ties={},
            buffers=(),
        ),
    ),
    architectures={(): "TransfoXLLMHeadModel"},
    required=REQUIRED,
    harmless=harmless(),
    optional={"softmax": ()},
    # The config says which leaves are one: torch files hold them once for each of their uses, the
    # TensorFlow release stacks the biases of all layers in one tensor.
    ties={
        "blocks.*.attention.content_bias": ("shared.content_bias",),
        "blocks.*.attention.position_bias": ("shared.position_bias",),
        "softmax.cluster_*.table": ("embed.cluster_*.table",),
        "softmax.cluster_*.projection": (
            "embed.cluster_*.projection",
            "embed.cluster_0.projection",
        ),
    },
    stacks={
        "blocks.*.attention.content_bias": "shared.content_bias",
        "blocks.*.attention.position_bias": "shared.position_bias",
    },
)
