"""Names of other libraries, and what stands for them here: the remedies in errors of names.

Nobody pays for it but who makes the mistake: a function is asked for its arguments, and a module
for a name that it has not, only after Python has refused the call.
"""

import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

__all__ = [
    "answering",
    "explain_names",
    "explained",
    "is_refused",
    "of_attribute",
    "raise_answer",
]

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound=type)

_LOSS = "models return logits: give them with the labels to a function of fnlm.train.losses"
_DROPOUT = "dropout is on where key=fnlm.random.key(seed) is given, and off without it"
_CAST = "cast what was loaded: fnlm.tree.cast(params, torch.float16)"
_MOVE = "move what was loaded: fnlm.tree.to(params, device)"
_HOME = "the cache is where the environment variable HF_HUB_CACHE says"
_KEY = "give key=fnlm.random.key(seed) to sample, or leave it out for the most likely token"

# Arguments of pytorch-pretrained-bert, transformers, peft and torch.optim.
_ARGUMENTS = {
    "input_ids": "it is called ids, and comes after params",
    "attention_mask": "it is called mask",
    **dict.fromkeys(("token_type_ids", "segment_ids"), "they are called token_types"),
    "position_ids": "they are called positions",
    **dict.fromkeys(
        ("past", "past_key_values", "layer_past"),
        "it is called cache, and is what the last call returned beside its logits",
    ),
    "mc_token_ids": "they are called choice_positions, of double_heads",
    **dict.fromkeys(
        (
            "labels", "lm_labels", "masked_lm_labels", "next_sentence_label", "start_positions",
            "end_positions", "mc_labels",
        ),
        _LOSS,
    ),
    **dict.fromkeys(
        ("output_all_encoded_layers", "output_hidden_states"),
        "layers(params, ids, ...) returns the hidden states after every block",
    ),
    **dict.fromkeys(("return_dict", "use_cache"), "leave it out: results are always of one type"),
    **dict.fromkeys(("train", "training", "deterministic", "dropout_rng", "rng"), _DROPOUT),
    "cache_dir": _HOME,
    "num_labels": "the config.json has it: change it there, and give heads=(...), key=key",
    **dict.fromkeys(("state_dict", "pretrained_model_name_or_path"), "give the file or its folder"),
    **dict.fromkeys(("from_tf", "from_flax"), "leave it out: a file's own bytes tell its format"),
    "config": "the config.json beside the weights is read: put it there",
    "strict": "loading is strict: ignore=(pattern, ...) names the tensors to leave out",
    **dict.fromkeys(("dtype", "torch_dtype"), _CAST),
    **dict.fromkeys(("map_location", "device", "device_map"), _MOVE),
    "do_lower_case": "it is called lower_case",
    **dict.fromkeys(("max_len", "model_max_length", "truncation"), "cut the ids: ids[:512]"),
    **dict.fromkeys(("never_split", "additional_special_tokens"), "load(...).extend(tokens)"),
    "do_basic_tokenize": "leave it out, or cut words with fnlm.tokenize.wordpiece.split",
    "errors": "give errors to decode",
    "force_download": "remove the model from the folder of HF_HUB_CACHE",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "merges_file": "name the directory that holds both files, or one of them",
    "num_special_tokens": "call extend_vocabulary on what load returns",
    "revision": "name the model owner/name@revision",
    "special_tokens": "call extend(tokens) on what load returns",
    "token": "set HF_TOKEN",
    "trust_remote_code": "leave it out, as nothing in a file is run",
    "use_auth_token": "set HF_TOKEN",
    "betas": "they are called b1 and b2",
    **dict.fromkeys(("e", "epsilon"), "it is called eps"),
    **dict.fromkeys(("l2", "decay_rate"), "it is called weight_decay"),
    **dict.fromkeys(("params", "parameters"), "optimizer.init(params) takes them"),
    "argnums": "the first argument is differentiated: make params it, or use torch.func.grad",
    "in_dims": "every batch argument is mapped over its first axis",
    "max_grad_norm": "it is called max_norm",
    **dict.fromkeys(("max_length", "length"), "max_new_tokens counts the new tokens alone"),
    **dict.fromkeys(("do_sample", "seed", "generator"), _KEY),
    "assistant_model": "fnlm.generate.speculative takes a draft model",
    "num_assistant_tokens": "it is called draft_tokens, of fnlm.generate.speculative",
    "penalty_alpha": "it is called alpha, of fnlm.generate.contrastive_search",
    "typical_p": "it is called typical",
    "eos_token_id": "it is called eos",
    "pad_token_id": "it is called pad",
    "r": "it is called rank",
    "lora_alpha": "it is called alpha",
    "target_modules": 'where=lambda path, leaf: "attention" in path selects leaves',
}  # fmt: skip

_MODELS = {"Bert": "bert", "OpenAIGPT": "gpt", "GPT2": "gpt2", "TransfoXL": "transfo_xl"}
_OF_MODELS = "|".join(_MODELS)
_OF_BERT = {
    "PreTraining": "pretraining", "MaskedLM": "masked_lm",
    "NextSentencePrediction": "next_sentence_prediction",
    "SequenceClassification": "sequence_classification", "MultipleChoice": "multiple_choice",
    "TokenClassification": "token_classification", "QuestionAnswering": "question_answering",
}  # fmt: skip
_SCHEDULES = {
    "ConstantLR": "constant", "WarmupConstantSchedule": "warmup_constant",
    "WarmupLinearSchedule": "warmup_linear", "WarmupCosineSchedule": "warmup_cosine",
    "WarmupCosineWithHardRestartsSchedule": "warmup_cosine_with_hard_restarts",
    "WarmupCosineWithWarmupRestartsSchedule": "warmup_cosine_with_warmup_restarts",
}  # fmt: skip
_ATTRIBUTES = {
    "BertAdam": "fnlm.train.bert_adam(lr, ...), and then init(params)",
    "OpenAIAdam": "fnlm.train.openai_adam(lr, ...), and then init(params)",
    **dict.fromkeys(("Adam", "AdamW"), "fnlm.train.adamw(lr, ...), and then init(params)"),
    "from_pretrained": "load(name_or_path)",
    "save_pretrained": "save(..., directory)",
    "cached_path": "fnlm.files.hub.locate(name)",
    "PYTORCH_PRETRAINED_BERT_CACHE": "the environment variable HF_HUB_CACHE",
    "BasicTokenizer": "fnlm.tokenize.bert.load(name_or_path)",
    "WordpieceTokenizer": "fnlm.tokenize.bert.load(name_or_path)",
    "TransfoXLCorpus": "fnlm.tasks.language_model",
}
# Of a tokenizer.
_METHODS = {
    "convert_tokens_to_ids": "tokens_to_ids(tokens)",
    "convert_ids_to_tokens": "ids_to_tokens(ids)",
    **dict.fromkeys(("encode_plus", "batch_encode_plus"), "encode(text) or encode_batch(texts)"),
    "batch_decode": "[tokenizer.decode(row) for row in ids]",
    "from_pretrained": "the load of its module",
    **dict.fromkeys(("save_pretrained", "save_vocabulary"), "save(directory)"),
    **dict.fromkeys(
        ("eos_token_id", "pad_token_id", "bos_token_id", "cls_token_id", "sep_token_id"),
        "tokens_to_ids([token])",
    ),
    **dict.fromkeys(("add_tokens", "add_special_tokens"), "extend(tokens), a new tokenizer"),
    # Of an optimizer.
    "step": "params, state = optimizer.update(grads, state, params)",
    "zero_grad": "nothing: gradients are values, and none are added up",
    "param_groups": "lr as a function of the step, and decay=predicate",
    **dict.fromkeys(("state_dict", "load_state_dict"), "fnlm.train.save_state and load_state"),
}


def of_attribute(name: str) -> str:
    """Return what stands for a name of another library, "" where nothing is known.

    >>> of_attribute("GPT2LMHeadModel")
    'fnlm.gpt2.apply(params, ids, cache), with params = fnlm.gpt2.load(name)'
    """
    if name in _ATTRIBUTES:
        return _ATTRIBUTES[name]
    if name in _SCHEDULES:
        return f"fnlm.train.schedules.{_SCHEDULES[name]}(warmup, t_total)"
    if re.fullmatch(r"Auto(Model\w*|Config|Tokenizer)", name):
        return "the load of the model's own module, such as fnlm.bert.load(name)"
    if found := re.fullmatch(rf"({_OF_MODELS})Tokenizer(Fast)?", name):
        return f"fnlm.tokenize.{_MODELS[found[1]]}.load(name_or_path)"
    if found := re.fullmatch(rf"({_OF_MODELS})Config", name):
        return f"fnlm.{_MODELS[found[1]]}.Config"
    if (found := re.fullmatch(r"BertFor(\w+)", name)) and found[1] in _OF_BERT:
        task = _OF_BERT[found[1]]
        return (
            f"fnlm.bert.{task}(params, ids, token_types, mask), with params = fnlm.bert.load(name)"
        )
    if found := re.fullmatch(rf"({_OF_MODELS})(LMHead|DoubleHeads|)Model", name):
        family, state = _MODELS[found[1]], "mems" if found[1] == "TransfoXL" else "cache"
        function = {"LMHead": "apply", "DoubleHeads": "double_heads", "": "hidden_states"}[found[2]]
        rest = "token_types, mask" if family == "bert" else state
        function = "apply" if family == "bert" else function
        return (
            f"fnlm.{family}.{function}(params, ids, {rest}), with params = fnlm.{family}.load(name)"
        )
    return ""


def explain_names(module: str) -> Callable[[str], NoReturn]:
    """Let a module answer for names of other libraries; return its new `__getattr__`.

    The answer is an ImportError for attributes, too, as Python replaces the message of an
    AttributeError in `from fnlm.bert import BertModel`.

    Args:
        module: its name, `__name__`, of a module that is being imported.
    """

    def attribute(name: str) -> NoReturn:
        if instead := of_attribute(name):
            raise ImportError(f"{module} has no {name!r}: instead of it there is {instead}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    sys.modules[module].__dict__["__getattr__"] = attribute  # unknown to type checkers
    return attribute


def explained(cls: C) -> C:
    """Return a class whose instances, and whose module, answer for names of other libraries.

    >>> @explained
    ... class Tokenizer: ...
    >>> Tokenizer().batch_decode
    Traceback (most recent call last):
    AttributeError: Tokenizer has no 'batch_decode': instead of it there is ...
    """
    explain_names(cls.__module__)
    cls.__getattr__ = _attribute  # type: ignore[attr-defined]
    return cls


def _attribute(value: object, name: str) -> NoReturn:
    """Raise AttributeError for an attribute that a value has not."""
    kind = type(value).__name__
    if instead := _METHODS.get(name):
        raise AttributeError(f"{kind} has no {name!r}: instead of it there is {instead}")
    raise AttributeError(f"{kind!r} object has no attribute {name!r}")


def answering(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function, whose errors of arguments that it has not name the remedy.

    >>> @answering
    ... def apply(params, ids, *, mask=None): ...
    >>> apply({}, [], attention_mask=[])
    Traceback (most recent call last):
    TypeError: apply() has no argument 'attention_mask': it is called mask; apply() takes ...
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except TypeError as error:
            if is_refused(error):
                raise_answer(error, function)
            raise

    return call


def is_refused(error: BaseException) -> bool:
    """Return whether Python refused a call for its arguments; asked where the function is called.

    An error of the body has that body in its traceback.
    """
    traceback = error.__traceback__
    return isinstance(error, TypeError) and traceback is not None and traceback.tb_next is None


def raise_answer(error: Exception, function: Callable[..., object]) -> NoReturn:
    """Raise the TypeError of a call that Python refused, with the remedy.

    Args:
        error: caught where the function was called.
        function: what was called.
    """
    name = getattr(function, "__name__", "the function")
    parameters = inspect.signature(function).parameters.values()
    words = [str(p).split(":")[0] for p in parameters if p.kind is p.VAR_POSITIONAL]
    words = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] + words
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    takes = f"{name}() takes {', '.join(words)}" + (
        f"; by name {', '.join(named)}" if named else ""
    )
    found = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if not found:
        raise TypeError(f"{error}: {takes}") from None
    close = difflib.get_close_matches(found[1], [*words, *named], 1)
    instead = f"is {close[0]} meant?" if close else "leave it out"
    if words[-1].startswith("*"):
        instead = "give it by position, as all of the batch"
    instead = _ARGUMENTS.get(found[1], instead)
    raise TypeError(f"{name}() has no argument {found[1]!r}: {instead}; {takes}") from None
