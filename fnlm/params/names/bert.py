"""BERT's names in `transformers`, pytorch-pretrained-bert and Google's TensorFlow files."""

from dataclasses import replace
from typing import Any

from fnlm.params.names import Dialect, Family, Rule
from fnlm.params.names._generic import REQUIRED, harmless

# Ours, PyTorch's and TensorFlow's names of layers: a weight and a bias each, or a scale and a bias.
_LINEAR = (
    ("blocks.*.attention.q", "encoder.layer.*.attention.self.query"),
    ("blocks.*.attention.k", "encoder.layer.*.attention.self.key"),
    ("blocks.*.attention.v", "encoder.layer.*.attention.self.value"),
    ("blocks.*.attention.out", "encoder.layer.*.attention.output.dense"),
    ("blocks.*.mlp.up", "encoder.layer.*.intermediate.dense"),
    ("blocks.*.mlp.down", "encoder.layer.*.output.dense"),
    ("pooler", "pooler.dense"),
    ("heads.masked_lm.transform", "cls.predictions.transform.dense"),
)
_NORMS = (
    ("embed.norm", "embeddings.LayerNorm"),
    ("blocks.*.norm_1", "encoder.layer.*.attention.output.LayerNorm"),
    ("blocks.*.norm_2", "encoder.layer.*.output.LayerNorm"),
    ("heads.masked_lm.norm", "cls.predictions.transform.LayerNorm"),
)
_TABLES = (
    ("embed.token", "embeddings.word_embeddings"),
    ("embed.position", "embeddings.position_embeddings"),
    ("embed.token_type", "embeddings.token_type_embeddings"),
)
# Three heads are called "classifier": the class in config.json decides which.
_HEADS = (
    ("heads.next_sentence_prediction", "cls.seq_relationship"),
    ("heads.sequence_classification", "classifier"),
    ("heads.multiple_choice", "classifier"),
    ("heads.token_classification", "classifier"),
    ("heads.question_answering", "qa_outputs"),
)
# Google's code keeps the matrices of these as [outputs, inputs], all others as [inputs, outputs].
_GOOGLE_HEADS = (
    ("heads.next_sentence_prediction", "cls/seq_relationship/output"),
    ("heads.sequence_classification", "output"),
    ("heads.question_answering", "cls/squad/output"),
)


def _pairs(
    names: tuple[tuple[str, str], ...], ours: str, theirs: str, layout: str = ""
) -> tuple[Rule, ...]:
    """Return the rules of two tensors a module, as in "weight bias" and ".kernel .bias"."""
    ends = tuple(zip(ours.split(), theirs.split(), (layout, ""), strict=True))
    return tuple(Rule(f"{a}.{x}", b + y, order) for a, b in names for x, y, order in ends)


def _torch(name: str, file: str, norm: str = ".weight .bias") -> Dialect:
    return Dialect(
        name=name,
        file=file,
        rules=(
            *(Rule(ours, f"{theirs}.weight") for ours, theirs in _TABLES),
            *_pairs(_LINEAR + _HEADS, "weight bias", ".weight .bias", "o i -> i o"),
            *_pairs(_NORMS, "scale bias", norm),
            Rule("heads.masked_lm.bias", "cls.predictions.bias"),
        ),
        prefix="bert.",
        unprefixed=("cls.", "classifier.", "qa_outputs."),
        ties={
            "cls.predictions.decoder.weight": "embed.token",
            "cls.predictions.decoder.bias": "heads.masked_lm.bias",
        },
        buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
        bare=True,
    )


def _tensorflow() -> Dialect:
    linear, norms, tables = (
        tuple((ours, theirs.replace("layer.*", "layer_*").replace(".", "/")) for ours, theirs in t)
        for t in (_LINEAR, _NORMS, _TABLES)
    )
    return Dialect(
        name="tensorflow",
        file="",
        rules=(
            *(Rule(ours, theirs) for ours, theirs in tables),
            *_pairs(linear, "weight bias", "/kernel /bias"),
            *_pairs(norms, "scale bias", "/gamma /beta"),
            *_pairs(_GOOGLE_HEADS, "weight bias", "_weights _bias", "o i -> i o"),
            Rule("heads.masked_lm.bias", "cls/predictions/output_bias"),
        ),
        prefix="bert/",
        unprefixed=("cls/", "output_"),
        ties={},
        buffers=(),
    )


def _stated(config: Any, heads: tuple[str, ...], dialect: str) -> Any:
    """Return the config with num_labels as `transformers` counts it: question answering has two."""
    return replace(config, num_labels=2) if heads == ("question_answering",) else config


_TRANSFORMERS = _torch("transformers", "model.safetensors")

FAMILY = Family(
    name="bert",
    dialects=(
        _TRANSFORMERS,
        _torch("pytorch-pretrained-bert", "pytorch_model.bin"),
        _torch("pytorch-pretrained-bert, gamma and beta", "", norm=".gamma .beta"),
        _tensorflow(),
        Dialect(  # our own names, which keep any heads apart
            name="fnlm",
            file="model.safetensors",
            rules=tuple(Rule(rule.ours, rule.ours) for rule in _TRANSFORMERS.rules),
            prefix="",
            unprefixed=(),
            ties={},
            buffers=(),
        ),
    ),
    architectures={
        (): "BertModel",
        ("masked_lm",): "BertForMaskedLM",
        ("masked_lm", "next_sentence_prediction"): "BertForPreTraining",
        ("next_sentence_prediction",): "BertForNextSentencePrediction",
        ("sequence_classification",): "BertForSequenceClassification",
        ("multiple_choice",): "BertForMultipleChoice",
        ("token_classification",): "BertForTokenClassification",
        ("question_answering",): "BertForQuestionAnswering",
    },
    required=REQUIRED
    | {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    required_by_head={"masked_lm": {"tie_word_embeddings": True}},
    harmless=harmless("num_labels", "pad_token_id"),
    stated=_stated,
    optional={"pooler": ("multiple_choice", "next_sentence_prediction", "sequence_classification")},
)
