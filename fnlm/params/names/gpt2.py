"""GPT-2's names in `transformers` and pytorch-pretrained-bert files, and in OpenAI's release."""

from fnlm.params.names import Dialect, Family, Rule
from fnlm.params.names._generic import REQUIRED, SUMMARY, harmless

# Other names of fields of the config: OpenAI's and the published file's, and those that
# `transformers` has for the fields of any family.
ALIASES = {
    "n_vocab": "vocab_size",
    "n_ctx": "n_positions",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "resid_pdrop": "summary_first_dropout",
}

_SHARED = (
    Rule("embed.token", "wte.weight"),
    Rule("embed.position", "wpe.weight"),
    Rule("blocks.*.norm_1.scale", "h.*.ln_1.weight"),
    Rule("blocks.*.norm_1.bias", "h.*.ln_1.bias"),
    Rule("blocks.*.attention.qkv.weight", "h.*.attn.c_attn.weight"),
    Rule("blocks.*.attention.qkv.bias", "h.*.attn.c_attn.bias"),
    Rule("blocks.*.attention.out.weight", "h.*.attn.c_proj.weight"),
    Rule("blocks.*.attention.out.bias", "h.*.attn.c_proj.bias"),
    Rule("blocks.*.norm_2.scale", "h.*.ln_2.weight"),
    Rule("blocks.*.norm_2.bias", "h.*.ln_2.bias"),
    Rule("blocks.*.mlp.up.weight", "h.*.mlp.c_fc.weight"),
    Rule("blocks.*.mlp.up.bias", "h.*.mlp.c_fc.bias"),
    Rule("blocks.*.mlp.down.weight", "h.*.mlp.c_proj.weight"),
    Rule("blocks.*.mlp.down.bias", "h.*.mlp.c_proj.bias"),
    Rule("norm.scale", "ln_f.weight"),
    Rule("norm.bias", "ln_f.bias"),
)


# OpenAI's code computes with convolutions of width 1: hence the first axis of its matrices.
_OPENAI = (
    Rule("embed.token", "wte"),
    Rule("embed.position", "wpe"),
    Rule("blocks.*.norm_1.scale", "h*/ln_1/g"),
    Rule("blocks.*.norm_1.bias", "h*/ln_1/b"),
    Rule("blocks.*.attention.qkv.weight", "h*/attn/c_attn/w", "1 i o -> i o"),
    Rule("blocks.*.attention.qkv.bias", "h*/attn/c_attn/b"),
    Rule("blocks.*.attention.out.weight", "h*/attn/c_proj/w", "1 i o -> i o"),
    Rule("blocks.*.attention.out.bias", "h*/attn/c_proj/b"),
    Rule("blocks.*.norm_2.scale", "h*/ln_2/g"),
    Rule("blocks.*.norm_2.bias", "h*/ln_2/b"),
    Rule("blocks.*.mlp.up.weight", "h*/mlp/c_fc/w", "1 i o -> i o"),
    Rule("blocks.*.mlp.up.bias", "h*/mlp/c_fc/b"),
    Rule("blocks.*.mlp.down.weight", "h*/mlp/c_proj/w", "1 i o -> i o"),
    Rule("blocks.*.mlp.down.bias", "h*/mlp/c_proj/b"),
    Rule("norm.scale", "ln_f/g"),
    Rule("norm.bias", "ln_f/b"),
)


def _dialect(name: str, file: str, head: str, bare: bool) -> Dialect:
    # pytorch-pretrained-BERT always ties the output to the embeddings; `transformers` need not.
    output = () if bare else (Rule("output.table", "lm_head.weight"),)
    return Dialect(
        name=name,
        file=file,
        rules=(
            *_SHARED,
            Rule("heads.multiple_choice.weight", f"{head}.weight", "o i -> i o"),
            Rule("heads.multiple_choice.bias", f"{head}.bias"),
            *output,
        ),
        prefix="transformer.",
        unprefixed=("multiple_choice_head.", "lm_head."),
        ties={"lm_head.weight": "embed.token", "lm_head.decoder.weight": "embed.token"},
        buffers=("h.*.attn.bias", "h.*.attn.masked_bias"),
        bare=bare,
    )


FAMILY = Family(
    name="gpt2",
    dialects=(
        _dialect("transformers", "model.safetensors", "multiple_choice_head.summary", bare=False),
        _dialect(
            "pytorch-pretrained-bert", "pytorch_model.bin", "multiple_choice_head.linear", bare=True
        ),
        Dialect(
            name="tensorflow",
            file="",
            rules=_OPENAI,
            prefix="model/",
            unprefixed=(),
            ties={},
            buffers=(),
        ),
    ),
    architectures={(): "GPT2LMHeadModel", ("multiple_choice",): "GPT2DoubleHeadsModel"},
    required=REQUIRED | {"add_cross_attention": False},
    required_by_head={"multiple_choice": SUMMARY},
    harmless=harmless(
        reorder_and_upcast_attn="the same numbers, rounded otherwise in half precision",
        predict_special_tokens="of its training script",
    ),
    optional={"output": ()},
)
