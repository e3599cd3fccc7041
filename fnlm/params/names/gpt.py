"""GPT's names in `transformers` and pytorch-pretrained-bert files, and in OpenAI's release."""

from dataclasses import replace
from typing import Any

from fnlm.params.names import Dialect, Family, Rule
from fnlm.params.names._generic import REQUIRED, SUMMARY, harmless

# Other names of fields of the config: the published file's, and those that `transformers` has for
# the fields of any family.
ALIASES = {
    "n_ctx": "n_positions",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "resid_pdrop": "summary_first_dropout",
}

_EMBEDDINGS = (
    Rule("embed.token", "tokens_embed.weight"),
    Rule("embed.position", "positions_embed.weight"),
)

# Tensors of a layer in the order of OpenAI's release: our name and the name of the layer's module.
_LAYER = (
    ("attention.qkv.weight", "attn.c_attn"),
    ("attention.qkv.bias", "attn.c_attn"),
    ("attention.out.weight", "attn.c_proj"),
    ("attention.out.bias", "attn.c_proj"),
    ("norm_1.scale", "ln_1"),
    ("norm_1.bias", "ln_1"),
    ("mlp.up.weight", "mlp.c_fc"),
    ("mlp.up.bias", "mlp.c_fc"),
    ("mlp.down.weight", "mlp.c_proj"),
    ("mlp.down.bias", "mlp.c_proj"),
    ("norm_2.scale", "ln_2"),
    ("norm_2.bias", "ln_2"),
)


def _named(weight: str, scale: str, bias: str) -> tuple[Rule, ...]:
    """Return the rules of all layers, for one naming of weight, scale and bias."""
    ends = {"weight": weight, "scale": scale, "bias": bias}
    return tuple(
        Rule(f"blocks.*.{ours}", f"h.*.{module}.{ends[ours.split('.')[-1]]}")
        for ours, module in _LAYER
    )


def _numbered(layers: int) -> tuple[Rule, ...]:
    """Return the rules of the release's numbered tensors: positions, tokens, then each layer."""
    embeddings = (Rule("embed.position", "params.0"), Rule("embed.token", "params.1"))
    names = [f"blocks.{layer}.{ours}" for layer in range(layers) for ours, _ in _LAYER]
    return embeddings + tuple(
        Rule(ours, f"params.{number}", "1 i o -> i o" if ours.endswith("weight") else "")
        for number, ours in enumerate(names, start=2)
    )


def _dialect(name: str, file: str, rules: tuple[Rule, ...], head: str, bare: bool) -> Dialect:
    # pytorch-pretrained-BERT always ties the output to the embeddings; `transformers` need not.
    output = () if bare else (Rule("output.table", "lm_head.weight"),)
    return Dialect(
        name=name,
        file=file,
        rules=(
            *_EMBEDDINGS,
            *rules,
            Rule("heads.multiple_choice.weight", f"{head}.weight", "o i -> i o"),
            Rule("heads.multiple_choice.bias", f"{head}.bias"),
            *output,
        ),
        prefix="transformer.",
        unprefixed=("multiple_choice_head.", "lm_head."),
        ties={"lm_head.weight": "embed.token", "lm_head.decoder.weight": "embed.token"},
        buffers=("h.*.attn.bias", "position_ids"),
        bare=bare,
    )


def _stated(config: Any, heads: tuple[str, ...], dialect: str) -> Any:
    """Return the config with n_special added to vocab_size: `transformers` knows no n_special."""
    if dialect != "transformers":
        return config
    return replace(config, vocab_size=config.total_tokens_embeddings, n_special=0)


_RULES = _named("weight", "weight", "bias")
_FIRST_RULES = _named("w", "g", "b")
_THEIR_HEAD = "multiple_choice_head.linear"

FAMILY = Family(
    name="openai-gpt",
    dialects=(
        _dialect(
            "transformers", "model.safetensors", _RULES, "multiple_choice_head.summary", bare=False
        ),
        _dialect("pytorch-pretrained-bert", "pytorch_model.bin", _RULES, _THEIR_HEAD, bare=True),
        # The file that was first published; nothing writes its names any more.
        _dialect("pytorch-pretrained-bert 0.3", "", _FIRST_RULES, _THEIR_HEAD, bare=True),
        # The release has 12 layers, and computes with convolutions of width 1.
        Dialect(
            name="openai", file="", rules=_numbered(12), prefix="", unprefixed=(), ties={},
            buffers=(),
        ),
    ),
    architectures={(): "OpenAIGPTLMHeadModel", ("multiple_choice",): "OpenAIGPTDoubleHeadsModel"},
    required=REQUIRED,
    required_by_head={"multiple_choice": SUMMARY},
    harmless=harmless(
        predict_special_tokens="of its training script",
    ),
    optional={"output": ()},
    stated=_stated,
)  # fmt: skip
