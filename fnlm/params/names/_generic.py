"""Keys that `transformers` writes into the config.json of any model: required or harmless."""

_GENERATION = "a default of its `generate`, whose settings are arguments here"
_OUTPUT = "what its functions return beside the result"
_ORIGIN = "says where a file comes from"

# Keys that change numbers, with the only value that is computed.
REQUIRED: dict[str, object] = {
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}

# How `transformers` scores choices by GPT and GPT-2: the head of pytorch-pretrained-BERT,
# if these are so.
SUMMARY: dict[str, object] = {
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "summary_proj_to_labels": True,
    "summary_last_dropout": 0,
}

HARMLESS: dict[str, str] = {
    **dict.fromkeys(
        (
            "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "decoder_start_token_id",
            "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
            "eos_token_id", "exponential_decay_length_penalty", "forced_bos_token_id",
            "forced_eos_token_id", "length_penalty", "max_length", "min_length",
            "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
            "pad_token_id", "remove_invalid_values", "repetition_penalty", "sep_token_id",
            "suppress_tokens", "temperature", "top_k", "top_p", "typical_p", "use_cache",
        ),
        _GENERATION,
    ),
    **dict.fromkeys(
        (
            "output_attentions", "output_hidden_states", "output_past", "output_scores",
            "return_dict", "return_dict_in_generate",
        ),
        _OUTPUT,
    ),
    **dict.fromkeys(
        (
            "_name_or_path", "_num_labels", "architectures", "finetuning_task", "model_type",
            "prefix", "task_specific_params", "tokenizer_class", "transformers_version",
        ),
        _ORIGIN,
    ),
    "chunk_size_feed_forward": "the same numbers, computed in parts",
    "cross_attention_hidden_size": "of cross attention, which is refused",
    "dtype": "the type of a file's tensors is that of the tree",
    "gradient_checkpointing": "the same numbers, in less memory",
    "id2label": "names of classes; their count is num_labels",
    "label2id": "names of classes",
    "num_labels": "of classifiers, which the family does not have",
    "problem_type": "chooses a loss, which is a function apart here",
    "tf_legacy_loss": "of its losses for TensorFlow",
    "tie_encoder_decoder": "of a decoder beside an encoder, which is refused",
    "torch_dtype": "the type of a file's tensors is that of the tree",
    "torchscript": "how it is compiled",
    "use_bfloat16": "of its models for TPUs",
}  # fmt: skip


def harmless(*fields: str, **others: str) -> dict[str, str]:
    """Return a family's table: the common keys without its own `fields`, and `others`."""
    return {name: why for name, why in HARMLESS.items() if name not in fields} | others
