"""The table of calls: an example for every public function and method of the package."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from conftest import ROOT
from families import BERT, GPT, GPT2, TRANSFO_XL, make_batch, make_params
from torch import Tensor, nn
from torch.func import grad

import fnlm.generate as decoding
from fnlm import _adaptive_vocabulary as vocabulary
from fnlm import (
    bert,
    checkpoints,
    cli,
    finetune,
    gpt,
    gpt2,
    heads,
    pipeline,
    random,
    train,
    transfo_xl,
    transforms,
    tree,
)
from fnlm.files import hub, numpy, safetensors, tensorflow, torch_pickle
from fnlm.files.checkpoint import Checkpoint, half_written, replace
from fnlm.files.folder import current, directory_of, replace_files
from fnlm.generate import state as reading
from fnlm.layers import (
    activation,
    adaptive_softmax,
    attention,
    cache,
    dropout,
    embedding,
    linear,
    mask,
    memory,
    mlp,
    norm,
    precision,
    relative_attention,
    values,
)
from fnlm.params import io, layout, module, rename, spec
from fnlm.params.config import BaseConfig, one_of, read_json
from fnlm.params.names import bert as bert_names
from fnlm.params.names.gpt2 import FAMILY
from fnlm.tasks import (
    corpus,
    features,
    glue,
    metrics,
    rocstories,
    squad,
    squad_answers,
    squad_metrics,
    swag,
)
from fnlm.tasks import language_model as texts
from fnlm.tokenize import added, bpe, wordpiece
from fnlm.tokenize import bert as pieces
from fnlm.tokenize import gpt as symbols
from fnlm.tokenize import gpt2 as words
from fnlm.tokenize import transfo_xl as counted
from fnlm.tokenize import words as between_spaces
from fnlm.train import loss_scale, losses, schedules
from fnlm.train import state as state_files


class Example(NamedTuple):
    """A call, and how to compare what it returns."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    seen: Callable[[Any], Any]  # what of the result must be equal when called again


def on(
    function: Callable[..., Any],
    *args: Any,
    seen: Callable[[Any], Any] = lambda x: x,
    **kwargs: Any,
) -> Example:
    return Example(function, args, kwargs, seen)


Make = Callable[[Path], Example]
KEY = random.key(3)
KEYS = random.split(KEY, 3)
X = random.normal(KEY, (3, 5, 12))
LOGITS = random.normal(KEY, (3, 7))
LABELS = torch.tensor([2, -1, 6])
PARAMS = make_params(GPT2)
IDS, MASK = make_batch(GPT2)
LINEAR: dict[str, Any] = {"weight": random.normal(KEY, (12, 4)), "bias": random.normal(KEY, (4,))}
BACK = {"weight": random.normal(KEY, (4, 12)), "bias": random.normal(KEY, (12,))}
SMALL = {"up": LINEAR, "pair": (BACK, {"bias": torch.arange(3.0)})}
TEXTS = ["low lower lowest", "a slow été <|endoftext|>"]
TOKENIZER = words.train(TEXTS, 262)
SYMBOLS = symbols.Tokenizer({"<unk>": 0, "l": 1, "o": 2, "w</w>": 3, "lo": 4}, [("l", "o")])
PIECE_TOKENS = ["[UNK]", "[CLS]", "[SEP]", "low", "slow", "##er", "##est"]
PIECES = pieces.Tokenizer({token: at for at, token in enumerate(PIECE_TOKENS)})
UNTIED = {name: leaf for name, leaf in PARAMS.items() if name != "config"}


def grown() -> Any:
    """Make a cache of two segments."""
    with torch.no_grad():
        _, first = gpt2.apply(PARAMS, IDS[:, :3], mask=MASK[:, :3])
        return gpt2.apply(PARAMS, IDS[:, 3:4], first, mask=MASK[:, 3:4])[1]


def files(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def saved(folder: Path) -> Path:
    """Make a directory with a model and its tokenizer."""
    gpt2.save(make_params(GPT2._replace(config=CLI_CONFIG)), folder / "model")
    TOKENIZER.save(folder / "model")
    return folder / "model"


def stored(folder: Path, name: str) -> Path:
    """Make a file of two tensors, by its name in the format of torch or of NumPy."""
    path = folder / name
    if name.endswith(".npz"):
        np.savez(path, **{name: x.numpy() for name, x in LINEAR.items()})
    else:
        torch_pickle.write(LINEAR, path)
    return path


def pieces_saved(folder: Path) -> Path:
    PIECES.save(folder / "bert")
    return folder / "bert" / "vocab.txt"


CLI_CONFIG = gpt2.Config(vocab_size=262, n_positions=16, n_embd=6, n_layer=1, n_head=2)


def writes(function: Callable[..., Any], *args: Any) -> Make:
    """A call with a path as last argument; what it leaves there must be equal the next time."""
    return lambda folder: on(function, *args, folder / "made", seen=lambda _: files(folder))


def updates(make: Callable[..., train.Optimizer], *args: Any, **kwargs: Any) -> Make:
    optimizer = make(*args, **kwargs)
    second = optimizer.update(SMALL, optimizer.init(SMALL), SMALL)[1]
    return lambda _: on(optimizer.update, SMALL, second, SMALL)


def links(link: train.GradientTransformation) -> Make:
    return lambda _: on(link.update, SMALL, link.init(SMALL), SMALL, torch.tensor(2))


def at_steps(schedule: train.schedules.Schedule) -> Make:
    steps = [0, 1.5, 30, torch.tensor(7)]
    return lambda _: on(lambda steps: [schedule(step) for step in steps], steps)


def counts(params: Any, ids: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
    """A model whose next word is the number after the last."""
    return nn.functional.one_hot((ids + 1) % 5, 5).float(), ids


def all_logits(params: Any) -> Tensor:
    return gpt2.apply(params, IDS, mask=MASK)[0].sum()


def square(params: Any, x: Tensor) -> Tensor:
    return (linear.linear(x, **params["up"]) ** 2).mean()


def square_with_key(params: Any, x: Tensor, *, key: Tensor) -> Tensor:
    return square(params, dropout.dropout(x, 0.5, key))


STEP = train.train_step(square_with_key, train.adamw(0.1), accumulate=3)
STATE = train.init_state(SMALL, train.adamw(0.1), KEY)


def square_and_sum(params: Any, carry: Tensor, x: Tensor, *, key: Tensor) -> tuple[Tensor, Tensor]:
    return square_with_key(params, x + carry, key=key), carry + x


CARRY_STEP = train.carry_step(square_and_sum, train.adamw(0.1))
CARRIED = train.CarryState(STATE, torch.zeros_like(X))
SPEC = gpt2.spec(GPT2.config, gpt2.HEADS)
CHOICES = (IDS[:, None].expand(3, 2, 7), torch.full((3, 2), 4))
PROMPT: dict[str, Any] = {"mask": MASK, "eos": [4, 9], "prefill": gpt2.hidden_states}
SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_k": 9, "top_p": 0.8}
STARTED = reading.start(gpt2.apply, PARAMS, IDS)
HEADS_KWARGS: dict[str, Any] = {"heads": None, "key": None}
DECODING_ARGS = (gpt2.apply, PARAMS, IDS)
FOLDER_ARGS = (FAMILY, gpt2.Config, gpt2.spec)


def saving(params: Any, directory: Path) -> None:
    io.save(params, directory, FAMILY, gpt2.spec, "transformers")


def checkpoint_there(folder: Path) -> Checkpoint:
    return io.read(stored(folder, "w.npz"))


def saving_two(directory: Path) -> list[str]:
    """Save two files in the place of one."""
    write = partial(Path.write_text, data="whole")
    first = replace_files(directory, "model", {"old.txt": write})
    return replace_files(directory, "model", {"a.txt": write, "b.txt": write}, first)


def state_there(folder: Path) -> Path:
    train.save_state(SMALL, folder / "state.safetensors")
    return folder / "state.safetensors"


def config_there(folder: Path) -> Path:
    CLI_CONFIG.to_json_file(folder / "config.json")
    return folder / "config.json"


RANDOM: dict[str, Make] = {
    "key": lambda _: on(random.key, 7),
    "split": lambda _: on(random.split, KEYS, 4),
    "fold_in": lambda _: on(random.fold_in, KEYS, torch.tensor([1, 5, 2])),
    "uniform": lambda _: on(random.uniform, KEYS, (4,), torch.float64),
    "normal": lambda _: on(random.normal, KEYS, (4,)),
    "gumbel": lambda _: on(random.gumbel, KEYS, (4,)),
    "bernoulli": lambda _: on(random.bernoulli, KEYS, 0.3, (40,)),
    "categorical": lambda _: on(random.categorical, KEYS, LOGITS),
}
TREE: dict[str, Make] = {
    "structure": lambda _: on(tree.structure, PARAMS),
    "unflatten": lambda _: on(tree.unflatten, tree.structure(SMALL), tree.leaves(SMALL)),
    "leaves": lambda _: on(tree.leaves, PARAMS),
    "named_leaves": lambda _: on(tree.named_leaves, PARAMS),
    "map": lambda _: on(tree.map, torch.add, SMALL, SMALL),
    "map_with_path": lambda _: on(tree.map_with_path, lambda p, x, y: x * len(p), SMALL, SMALL),
    "partition": lambda _: on(tree.partition, PARAMS, train.except_bias_and_norm),
    "select": lambda _: on(tree.select, PARAMS, train.except_bias_and_norm),
    "merge": lambda _: on(tree.merge, *tree.partition(PARAMS, train.except_bias_and_norm)),
    "count": lambda _: on(tree.count, PARAMS),
    "norm": lambda _: on(tree.norm, SMALL["up"]),
    "cast": lambda _: on(tree.cast, PARAMS, torch.bfloat16),
    "to": lambda _: on(tree.to, PARAMS, "meta"),
    "stack": lambda _: on(tree.stack, [SMALL, SMALL]),
    "unstack": lambda _: on(tree.unstack, tree.stack([SMALL, SMALL])),
}
FOREIGN = rename.to_foreign(UNTIED, FAMILY.dialects[0])
NESTED = dict(tree.named_leaves(UNTIED))
TENSORFLOW = ROOT / "tests" / "fixtures" / "tensorflow" / "partitioned"
PARAMETERS: dict[str, Make] = {
    "config.BaseConfig.from_dict": lambda _: on(gpt2.Config.from_dict, {"n_embd": 24, "new": [1]}),
    "config.BaseConfig.from_json_file": lambda folder: on(
        gpt2.Config.from_json_file, config_there(folder)
    ),
    "config.one_of": lambda _: on(one_of, "activation", "gelu", ["gelu", "relu"]),
    "config.read_json": lambda folder: on(read_json, config_there(folder)),
    "config.BaseConfig.to_dict": lambda _: on(BaseConfig.to_dict, CLI_CONFIG),
    "config.BaseConfig.to_json_string": lambda _: on(BaseConfig.to_json_string, CLI_CONFIG),
    "config.BaseConfig.to_json_file": writes(BaseConfig.to_json_file, CLI_CONFIG),
    "io.read": lambda folder: on(io.read, saved(folder) / "model.safetensors"),
    "io.write": writes(io.write, FOREIGN),
    "io.load": lambda folder: on(io.load, saved(folder), *FOLDER_ARGS, **HEADS_KWARGS),
    "io.assemble": lambda _: on(io.assemble, FOREIGN, GPT2.config, FAMILY, gpt2.spec),
    "io.config_from": lambda folder: on(io.config_from, config_there(folder), FAMILY, gpt2.Config),
    "io.save": writes(saving, PARAMS),
    "layout.for_decoding": lambda _: on(layout.for_decoding, tree.cast(PARAMS, torch.bfloat16)),
    "module.from_module": lambda _: on(
        module.from_module, nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(5)).eval(), seen=called
    ),
    "rename.to_foreign": lambda _: on(rename.to_foreign, UNTIED, FAMILY.dialects[1]),
    "rename.from_foreign": lambda _: on(rename.from_foreign, FOREIGN, FAMILY, "here"),
    "rename.for_heads": lambda _: on(rename.for_heads, bert_names.FAMILY, ["multiple_choice"]),
    "rename.classify": lambda _: on(rename.classify, "h.3.ln_1.bias", FAMILY),
    "rename.account": lambda _: on(rename.account, FOREIGN, FAMILY),
    "rename.without_absent": lambda _: on(
        rename.without_absent, make_params(BERT), ["embed.token"], bert_names.FAMILY
    ),
    "rename.dialect_of": lambda _: on(rename.dialect_of, list(FOREIGN), FAMILY),
    "rename.foreign_name": lambda _: on(rename.foreign_name, "norm.bias", FAMILY.dialects[1]),
    "rename.nearest": lambda _: on(rename.nearest, "wte.wieght", list(FOREIGN)),
    "rename.nest": lambda _: on(rename.nest, NESTED),
    "rename.untied": lambda _: on(rename.untied, FAMILY),
    "rename.fit": lambda _: on(rename.fit, NESTED, NESTED, FAMILY, "here"),
    "spec.linear": lambda _: on(spec.linear, 3, 4, 0.1),
    "spec.norm": lambda _: on(spec.norm, 3),
    "spec.init": lambda _: on(spec.init, SPEC, KEY),
    "spec.heads_among": lambda _: on(spec.heads_among, "a", ["a", "b"]),
    "spec.meta": lambda _: on(spec.meta, SPEC),
    "spec.size": lambda _: on(spec.size, SPEC),
    "spec.listed": lambda _: on(spec.listed, ["a", "b"]),
    "spec.check": lambda _: on(spec.check, SPEC, PARAMS),
}
FILES: dict[str, Make] = {
    "tensorflow.read": lambda _: on(tensorflow.read, TENSORFLOW, seen=dict),
    "tensorflow.can_read": lambda _: on(tensorflow.can_read, TENSORFLOW),
    "hub.find": lambda folder: on(hub.find, saved(folder), [("model.bin",), ("config.json",)]),
    "hub.locate": lambda folder: on(hub.locate, saved(folder)),
    "hub.weights": lambda folder: on(hub.weights, saved(folder)),
    "torch_pickle.read": lambda folder: on(torch_pickle.read, stored(folder, "w.bin")),
    "torch_pickle.can_read": lambda folder: on(torch_pickle.can_read, stored(folder, "w.bin")),
    "torch_pickle.write": writes(torch_pickle.write, FOREIGN),
    "numpy.read": lambda folder: on(numpy.read, stored(folder, "w.npz")),
    "numpy.can_read": lambda folder: on(numpy.can_read, stored(folder, "w.npz")),
    "safetensors.read": lambda folder: on(safetensors.read, saved(folder) / "model.safetensors"),
    "safetensors.write": writes(safetensors.write, FOREIGN),
    "safetensors.can_read": lambda folder: on(
        safetensors.can_read, saved(folder) / "model.safetensors"
    ),
    "checkpoint.half_written": lambda folder: on(half_written, folder, seen=list),
    "checkpoint.replace": lambda folder: on(
        replace,
        folder / "made",
        partial(Path.write_text, data="whole"),
        seen=lambda _: files(folder),
    ),
    "checkpoint.Checkpoint.without": lambda folder: on(
        Checkpoint.without, checkpoint_there(folder), {"bias"}, seen=dict
    ),
    "checkpoint.Checkpoint.outlined": lambda folder: on(
        Checkpoint.outlined, checkpoint_there(folder), seen=dict
    ),
    "folder.current": lambda folder: on(current, saved(folder), "model"),
    "folder.directory_of": lambda folder: on(directory_of, folder / ".model.saved" / "a.txt"),
    "folder.replace_files": writes(saving_two),
}


def called(made: tuple[Callable[..., Any], Any]) -> Any:
    apply, params = made
    return params, apply(params, X)


HALF = torch.ones(1, 5, 5, dtype=torch.bool).tril()
WIDE = random.normal(KEY, (3, 5, 36))
LAYERS: dict[str, Make] = {
    "activation.gelu_erf": lambda _: on(activation.gelu_erf, X),
    "activation.gelu_tanh": lambda _: on(activation.gelu_tanh, X),
    "attention.split_heads": lambda _: on(attention.split_heads, X, 2, 3),
    "attention.merge_heads": lambda _: on(attention.merge_heads, X),
    "attention.causal_mask": lambda _: on(attention.causal_mask, MASK, 4),
    "attention.padding_bias": lambda _: on(attention.padding_bias, MASK, torch.float64),
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
    "dropout.dropout": lambda _: on(dropout.dropout, X, 0.4, KEYS),
    "dropout.keep_mask": lambda _: on(dropout.keep_mask, X.shape, 0.4, KEYS),
    "dropout.apply_mask": lambda _: on(dropout.apply_mask, X, X > 0, 0.4),
    "dropout.dropout_keys": lambda _: on(dropout.dropout_keys, KEYS, 4),
    "embedding.lookup": lambda _: on(embedding.lookup, PARAMS["embed"]["token"], IDS),
    "embedding.check_range": lambda _: on(embedding.check_range, IDS, 41),
    "values.extremes": lambda _: on(values.extremes, IDS),
    "linear.linear": lambda _: on(linear.linear, X, **LINEAR),
    "mask.check_mask": lambda _: on(mask.check_mask, MASK),
    "precision.at_least_float32": lambda _: on(precision.at_least_float32, X.half()),
    "mlp.mlp": lambda _: on(mlp.mlp, X, LINEAR, BACK, activation=torch.tanh),
    "norm.layer_norm": lambda _: on(norm.layer_norm, X, X[0, 0], X[0, 1], eps=1e-3),
}
MODEL: dict[str, Make] = {
    "init_cache": lambda _: on(gpt2.init_cache, PARAMS, 3, 9),
    "spec": lambda _: on(gpt2.spec, GPT2.config, gpt2.HEADS),
    "init": lambda _: on(gpt2.init, GPT2.config, KEY, gpt2.HEADS),
    "hidden_states": lambda _: on(
        gpt2.hidden_states, PARAMS, IDS, token_types=IDS, key=KEYS, mask=MASK
    ),
    "apply": lambda _: on(gpt2.apply, PARAMS, IDS, mask=MASK, positions=IDS % 7, key=KEY),
    "apply with a cache": lambda _: on(
        torch.no_grad()(gpt2.apply), PARAMS, IDS, grown(), mask=MASK
    ),
    "apply with a fixed cache": lambda _: on(
        gpt2.apply, PARAMS, IDS, gpt2.init_cache(PARAMS, 3, 9), mask=MASK
    ),
    "apply under grad": lambda _: on(grad(all_logits), PARAMS),
    "double_heads": lambda _: on(gpt2.double_heads, PARAMS, *CHOICES, key=KEY),
    "load": lambda folder: on(gpt2.load, saved(folder), heads=gpt2.HEADS, key=KEY),
    "save": writes(gpt2.save, PARAMS),
}
BERT_PARAMS = make_params(BERT)
BERT_DATA: tuple[Tensor, ...] = (IDS, IDS % 2, MASK)


def bert_saved(folder: Path) -> Path:
    bert.save(BERT_PARAMS, folder / "model", dialect="fnlm")
    return folder / "model"


def bert_saving(folder: Path) -> None:
    bert.save(BERT_PARAMS, folder, dialect="fnlm")


def bert_task(name: str, _: Path) -> Any:
    return on(getattr(bert, name), BERT_PARAMS, *BERT_DATA, key=KEYS)


GPT_PARAMS = make_params(GPT)
GPT_MODEL: dict[str, Make] = {
    "Config.total_tokens_embeddings": lambda _: on(
        lambda config: config.total_tokens_embeddings, GPT.config
    ),
    "init_cache": lambda _: on(gpt.init_cache, GPT_PARAMS, 3, 9),
    "spec": lambda _: on(gpt.spec, GPT.config, gpt.HEADS),
    "init": lambda _: on(gpt.init, GPT.config, KEY, gpt.HEADS),
    "extend_vocabulary": lambda _: on(gpt.extend_vocabulary, GPT_PARAMS, 3, KEY),
    "hidden_states": lambda _: on(gpt.hidden_states, GPT_PARAMS, IDS, token_types=IDS, key=KEYS),
    "apply": lambda _: on(gpt.apply, GPT_PARAMS, IDS, mask=MASK, positions=IDS % 7, key=KEY),
    "apply with a cache": lambda _: on(
        gpt.apply, GPT_PARAMS, IDS, gpt.init_cache(GPT_PARAMS, 3, 9), mask=MASK
    ),
    "double_heads": lambda _: on(gpt.double_heads, GPT_PARAMS, *CHOICES, key=KEY),
    "load": lambda folder: on(gpt.load, gpt_saved(folder), heads=gpt.HEADS, key=KEY),
    "save": writes(gpt.save, GPT_PARAMS),
}


def gpt_saved(folder: Path) -> Path:
    gpt.save(GPT_PARAMS, folder / "gpt")
    SYMBOLS.save(folder / "gpt")
    return folder / "gpt"


BERT_TASKS = ("apply", "layers", "pretraining", *bert.HEADS)
BERT_MODEL: dict[str, Make] = {
    **{name: partial(bert_task, name) for name in BERT_TASKS},
    "Config.from_dict": lambda _: on(bert.Config.from_dict, {"id2label": {"0": "no"}}),
    "Config.to_dict": lambda _: on(bert.Config.to_dict, BERT.config),
    "spec": lambda _: on(bert.spec, BERT.config, bert.HEADS),
    "init": lambda _: on(bert.init, BERT.config, KEY, bert.HEADS),
    "load": lambda folder: on(bert.load, bert_saved(folder), heads=bert.HEADS[:1]),
    "save": writes(bert_saving),
}
DECODING: dict[str, Make] = {
    "temperature": lambda _: on(decoding.temperature, LOGITS, 0.3),
    "top_k": lambda _: on(decoding.top_k, LOGITS, 3),
    "top_p": lambda _: on(decoding.top_p, LOGITS, 0.6),
    "repetition_penalty": lambda _: on(decoding.repetition_penalty, LOGITS, LOGITS > 1, 1.3),
    "sample": lambda _: on(decoding.sample, LOGITS, KEYS, **SAMPLING),
    "row_keys": lambda _: on(decoding.row_keys, KEY, (3,)),
    "scan": lambda _: on(decoding.scan, gpt2.apply, PARAMS, STARTED, 3, key=KEYS, **SAMPLING),
    "stream": lambda _: on(
        decoding.stream, *DECODING_ARGS, 4, key=KEY, **SAMPLING, **PROMPT, seen=list
    ),
    "generate": lambda _: on(
        decoding.generate, *DECODING_ARGS, 4, key=KEYS, repetition_penalty=1.2, **PROMPT
    ),
    "generate by any model": lambda _: on(decoding.generate, counts, {}, IDS[:, :2] % 5, 4, eos=3),
    "beam_search": lambda _: on(decoding.beam_search, *DECODING_ARGS, 4, num_beams=3, **PROMPT),
    "start": lambda _: on(decoding.start, *DECODING_ARGS, mask=MASK, prefill=gpt2.hidden_states),
    "advance": lambda _: on(decoding.advance, gpt2.apply, PARAMS, STARTED, IDS[:, 0]),
    "take_rows": lambda _: on(decoding.take_rows, STARTED, torch.tensor([1, 1])),
    "state.pad_left": lambda _: on(reading.pad_left, IDS, MASK),
    "state.check_prompt": lambda _: on(reading.check_prompt, PARAMS, IDS, MASK, 4),
    "state.check_highest": lambda _: on(reading.check_highest, torch.ones(3), 4),
    "state.whole": lambda _: on(reading.whole, torch.tensor(3), "eos"),
    "state.eos_ids": lambda _: on(reading.eos_ids, [3, 4], torch.device("cpu")),
    "state.pad_id": lambda _: on(reading.pad_id, torch.tensor([3, 4]), None),
}


def fitted(folder: Path) -> Example:
    """A call of `fit`; the second one finds that all steps were made."""
    ends: dict[str, Any] = {"steps": 3, "evaluate_every": 2, "evaluate": lambda state: 1.0}
    return on(train.fit, STEP, STATE, lambda at: (X + at,), directory=folder / "run", **ends)


def log_there(folder: Path) -> Path:
    (folder / "log.jsonl").write_text('{"step": 2, "train_loss": 0.5}\n')
    return folder


ROWED = (np.arange(36).reshape(3, 12), np.zeros((3, 12), np.int32), np.ones((3, 12), np.bool_))
EPOCHS = finetune.Epochs.of(ROWED, 2.5)


def row_loss(params: Any, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    return square(params, batch[0] / 36)


def row_squares(params: Any, *batch: Tensor) -> Tensor:
    return linear.linear(batch[0] / 36, **params["up"])


def finetuned(folder: Path) -> Example:
    """A call of `finetune`; the second one finds that all steps were made."""
    return on(finetune.finetune, row_loss, SMALL, EPOCHS, finetune.Recipe(), folder / "tuned")


MIXED = train.Precision(torch.bfloat16, compute=torch.float16)
SCALE = loss_scale.dynamic(8.0)
RATES: dict[str, Any] = {"warmup": 0.1, "t_total": 10}
TRAINING: dict[str, Make] = {
    "add_decayed_weights": links(train.add_decayed_weights(0.1, train.except_bias_and_norm)),
    "chain": updates(train.chain, train.clip_by_global_norm(0.1), train.scale_by_adam()),
    "clip_by_global_norm": links(train.clip_by_global_norm(0.1)),
    "clip_per_tensor": links(train.clip_per_tensor(0.1)),
    "correct_bias": links(train.correct_bias(0.9, 0.99)),
    "decay_updated_weights": links(train.decay_updated_weights(0.1, schedules.constant())),
    "everything": lambda _: on(train.everything, "norm.bias", X),
    "except_bias_and_norm": lambda _: on(train.except_bias_and_norm, "norm.bias", X),
    "scale_by_adam": links(train.scale_by_adam()),
    "scale_by_schedule": links(train.scale_by_schedule(schedules.warmup_linear(0.1, 10))),
    "adamw": updates(train.adamw, 0.1, max_grad_norm=0.1),
    "bert_adam": updates(train.bert_adam, 0.1, **RATES),
    "openai_adam": updates(train.openai_adam, 0.1, weight_decay=0.1, **RATES),
    "mask_rows": updates(train.mask_rows, train.adamw(0.1), {"up.weight": 1}),
    "init_state": lambda _: on(train.init_state, SMALL, train.adamw(0.1), KEY),
    "fit": fitted,
    "read_log": lambda folder: on(train.read_log, log_there(folder)),
    "describe_run": lambda folder: on(train.describe_run, log_there(folder)),
    "plot_log": lambda folder: on(train.plot_log, log_there(folder), seen=lambda path: path.name),
    "describe_skipped": lambda _: on(train.describe_skipped, STATE),
    "choose_device": lambda _: on(train.choose_device, "cpu"),
    "offload": updates(train.offload, train.adamw(0.1)),
    "half_moments": updates(train.half_moments, train.adamw(0.1), KEY),
    "round_stochastically": lambda _: on(train.round_stochastically, X, torch.bfloat16, KEY),
    "loss_scale.static": lambda _: on(loss_scale.static, 8.0, seen=lambda scale: scale.init()),
    "loss_scale.dynamic": lambda _: on(
        SCALE.update, SCALE.init(), torch.tensor(False), seen=lambda state: state
    ),
    "Precision.to_params": lambda _: on(MIXED.to_params, SMALL),
    "Precision.to_compute": lambda _: on(MIXED.to_compute, SMALL),
    "Precision.to_output": lambda _: on(MIXED.to_output, SMALL),
    "Precision.wrap": lambda _: on(MIXED.wrap(square), SMALL, X),
    "read_notes": lambda folder: on(train.read_notes, state_there(folder)),
    "state.load_with_notes": lambda folder: on(
        state_files.load_with_notes, state_there(folder), SMALL
    ),
    "load_state": lambda folder: on(train.load_state, state_there(folder), SMALL),
    "save_state": writes(train.save_state, STATE),
    "train_step": lambda _: on(STEP, STATE, X),
    "carry_step": lambda _: on(CARRY_STEP, CARRIED, X),
    "CarryState.step": lambda _: on(lambda state: state.step, CARRIED),
    "losses.cross_entropy": lambda _: on(losses.cross_entropy, LOGITS, LABELS),
    "losses.language_model": lambda _: on(
        losses.language_model, random.normal(KEY, (3, 7, 41)), IDS, MASK
    ),
    "losses.pretraining": lambda _: on(
        losses.pretraining, X, X[:, 0, :2], IDS[:, :5] % 9, LABELS % 2
    ),
    "losses.regression": lambda _: on(losses.regression, X[..., :1], X[..., 1]),
    "losses.span": lambda _: on(losses.span, LOGITS, -LOGITS, LABELS, 3 + LABELS),
    "losses.token_classification": lambda _: on(
        losses.token_classification, X, IDS[:, :5] % 9, MASK[:, :5]
    ),
    "losses.mean": lambda _: on(losses.mean, LOGITS, LOGITS > 0),
    "losses.multiple_choice": lambda _: on(losses.multiple_choice, LOGITS, LABELS),
    "schedules.constant": at_steps(schedules.constant()),
    "schedules.warmup_constant": at_steps(schedules.warmup_constant(0.1, 20)),
    "schedules.warmup_linear": at_steps(schedules.warmup_linear(0.1, 20)),
    "schedules.warmup_cosine": at_steps(schedules.warmup_cosine(0.1, 20)),
    "schedules.warmup_cosine_with_hard_restarts": at_steps(
        schedules.warmup_cosine_with_hard_restarts(0.1, 20, 2)
    ),
    "schedules.warmup_cosine_with_warmup_restarts": at_steps(
        schedules.warmup_cosine_with_warmup_restarts(0.1, 20, 2)
    ),
}
TRANSFORMS: dict[str, Make] = {
    "grad": lambda _: on(transforms.grad(square), SMALL, X),
    "grad_and_value": lambda _: on(transforms.grad_and_value(square), SMALL, X),
    "per_example_grads": lambda _: on(transforms.per_example_grads, square, SMALL, X, chunk_size=2),
    "per_example_norms": lambda _: on(transforms.per_example_norms, square, SMALL, X),
}
FINETUNING: dict[str, Make] = {
    "Epochs.of": lambda _: on(finetune.Epochs.of, ROWED, 2.5, seen=lambda epochs: epochs.sizes),
    "batches": lambda _: on(finetune.batches, EPOCHS, KEY, 2, seen=lambda made: made[1](0)),
    "length_sorted_batches": lambda _: on(finetune.length_sorted_batches, ROWED, 2, seen=list),
    "predict": lambda _: on(finetune.predict, row_squares, SMALL, ROWED, 2, "cpu"),
    "tensors": lambda _: on(finetune.tensors, ROWED),
    "finetune": finetuned,
    "mean_loss": lambda _: on(finetune.mean_loss, row_loss, SMALL, ROWED, finetune.Recipe()),
    "write_results": lambda folder: on(
        finetune.write_results, {"f1": 0.5}, folder / "made", "r", seen=lambda _: files(folder)
    ),
    "last_line": lambda folder: on(finetune.last_line, log_there(folder), ["fnlm", "inspect"]),
    "mixed_precision": lambda _: on(finetune.mixed_precision, "bfloat16"),
    "claim_run_directory": lambda folder: on(
        finetune.claim_run_directory,
        folder,
        {"seed": 1},
        {"rows": [ROWED[0]]},
        seen=lambda _: files(folder),
    ),
}
MERGES = ([("a", "b"), ("ab", "b")], {"a": 0, "b": 1, "ab": 2, "abb": 3})
SPECIAL: dict[str, Any] = {"allowed_special": {"<|endoftext|>"}}
TEXT = "".join(TEXTS)
TOKENIZING: dict[str, Make] = {
    "added.Added": lambda _: on(added.Added, "<x>", True),
    "added.Added.plain": lambda _: on(lambda token: token.plain, added.Added("<x>", lstrip=True)),
    "bpe.merges": lambda _: on(bpe.merges, *MERGES),
    "bpe.merge": lambda _: on(bpe.merge, [0, 1, 1, 0], bpe.merges(*MERGES)),
    "bpe.merge, long words": lambda _: on(bpe.merge, [0, 1, 1] * 99, bpe.merges(*MERGES)),
    "bpe.well_formed": lambda _: on(bpe.well_formed, "a\ud800b"),
    "bpe.train": lambda _: on(bpe.train, TEXTS, 259, r"\w+"),
    "wordpiece.pieces": lambda _: on(wordpiece.pieces, dict(PIECES.vocab)),
    "wordpiece.split": lambda _: on(wordpiece.split, "lowest", wordpiece.pieces(PIECES.vocab)),
    "wordpiece.read_vocab": lambda folder: on(wordpiece.read_vocab, pieces_saved(folder)),
    "bert.load": lambda folder: on(pieces.load, pieces_saved(folder)),
    "bert.Tokenizer": lambda _: on(pieces.Tokenizer, dict(PIECES.vocab), False, "transformers"),
    "bert.Tokenizer.vocab_size": lambda _: on(lambda t: t.vocab_size, PIECES),
    "bert.Tokenizer.encode": lambda _: on(pieces.Tokenizer.encode, PIECES, TEXTS[1]),
    "bert.Tokenizer.encode_batch": lambda _: on(pieces.Tokenizer.encode_batch, PIECES, TEXTS),
    "bert.Tokenizer.encode_with_offsets": lambda _: on(
        pieces.Tokenizer.encode_with_offsets, PIECES, TEXTS[1]
    ),
    "bert.Tokenizer.tokenize": lambda _: on(pieces.Tokenizer.tokenize, PIECES, TEXTS[1]),
    "bert.Tokenizer.join": lambda _: on(pieces.Tokenizer.join, PIECES, [3, 4], [5]),
    "bert.Tokenizer.tokens_to_ids": lambda _: on(
        pieces.Tokenizer.tokens_to_ids, PIECES, ["low", "[SEP]"]
    ),
    "bert.Tokenizer.ids_to_tokens": lambda _: on(
        pieces.Tokenizer.ids_to_tokens, PIECES, torch.tensor([3, 5])
    ),
    "bert.Tokenizer.decode": lambda _: on(pieces.Tokenizer.decode, PIECES, [3, 5]),
    "bert.Tokenizer.save": writes(pieces.Tokenizer.save, PIECES),
    "gpt2.load": lambda folder: on(words.load, saved(folder)),
    "gpt2.train": lambda _: on(words.train, TEXTS, 262),
    "gpt2.Tokenizer": lambda _: on(
        words.Tokenizer, dict(TOKENIZER.vocab), [*TOKENIZER.merges], ["<a>", "<b>"]
    ),
    "gpt2.Tokenizer.vocab_size": lambda _: on(lambda t: t.vocab_size, TOKENIZER),
    "gpt2.Tokenizer.special": lambda _: on(lambda t: t.special, TOKENIZER),
    "gpt2.Tokenizer.encode": lambda _: on(words.Tokenizer.encode, TOKENIZER, TEXT, **SPECIAL),
    "gpt2.Tokenizer.encode_batch": lambda _: on(
        words.Tokenizer.encode_batch, TOKENIZER, TEXTS, **SPECIAL
    ),
    "gpt2.Tokenizer.encode_with_offsets": lambda _: on(
        words.Tokenizer.encode_with_offsets, TOKENIZER, TEXT, **SPECIAL
    ),
    "gpt2.Tokenizer.tokenize": lambda _: on(words.Tokenizer.tokenize, TOKENIZER, TEXT),
    "gpt2.Tokenizer.tokens_to_ids": lambda _: on(
        words.Tokenizer.tokens_to_ids, TOKENIZER, ["a", "b"]
    ),
    "gpt2.Tokenizer.ids_to_tokens": lambda _: on(
        words.Tokenizer.ids_to_tokens, TOKENIZER, [64, 258]
    ),
    "gpt2.Tokenizer.decode_bytes": lambda _: on(
        words.Tokenizer.decode_bytes, TOKENIZER, torch.tensor([64, 258])
    ),
    "gpt2.Tokenizer.decode": lambda _: on(words.Tokenizer.decode, TOKENIZER, [64, 258]),
    "gpt2.Tokenizer.decode_stream": lambda _: on(
        words.Tokenizer.decode_stream, TOKENIZER, [64, 258], seen=list
    ),
    "gpt2.Tokenizer.extend": lambda _: on(words.Tokenizer.extend, TOKENIZER, ["<a>", "<b>"]),
    "gpt2.Tokenizer.save": writes(words.Tokenizer.save, TOKENIZER.extend(["<a>"])),
}
MARKED = pieces.Tokenizer(
    {token: at for at, token in enumerate("[UNK] [PAD] [CLS] [SEP] [MASK] low slow a ?".split())}
)
ASKED = [
    squad.Example("a", "Low?", "A low slow \u00e9t\u00e9.", (squad.Answer("slow", 6),)),
    squad.Example("b", "Slow?", "A low.", (), impossible=True),
]
SHORT: dict[str, Any] = {"max_seq_length": 9, "doc_stride": 2, "max_query_length": 2}
WINDOWS = squad.features(ASKED, MARKED, **SHORT)
SPANS = list(squad.window_spans(9, 5, 2))
FOUND = {"a": "low", "b": "slow"}
ODDS = {"a": -1.0, "b": 2.0}
RATED = ([1, 0, 1, 1], [1, 0, 0, 1])
ENCODED = corpus.encode([["a low", "slow ?"], ["low low a"]], MARKED)
GLUED = [glue.Example("a low", "slow ?", 1)]
SWAGGED = [swag.Example("a low", "slow", ("?", "a", "low", "slow"), 2)]


class Sizes(NamedTuple):
    numbers: Any


def sizes(records: Any, first: int, *, plus: int) -> Sizes:
    return Sizes(np.array(records) * plus + first)


def file_there(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


QUESTION = '{"id": "a", "question": "?", "answers": [{"text": "b", "answer_start": 2}]}'
PARAGRAPHS = f'[{{"context": "a b", "qas": [{QUESTION}]}}]'
TOLD = rocstories.Example("a low low", ("slow", "?"), 1)
STORIES_FILE = ",".join([*rocstories.COLUMNS, rocstories.ANSWER]) + "\na,b,c,d,e,f,2\n"
CHOICES_FILE = "sent1,sent2,ending0,ending1,ending2,ending3,label\na,b,c,d,e,f,3\n"
TASKS: dict[str, Make] = {
    "features.special_tokens": lambda _: on(features.special_tokens, MARKED),
    "features.truncate_pair": lambda _: on(features.truncate_pair, 10, 3, 9),
    "features.rows": lambda _: on(
        features.rows, [([5, 6], [7]), ([8], None)], features.SpecialTokens(2, 3, 1), 6
    ),
    "features.encode_pairs": lambda _: on(
        features.encode_pairs, MARKED, [("a low", "slow"), ("a", None)], 6
    ),
    "features.convert": lambda folder: on(
        features.convert, partial(sizes, plus=2), [3, 4], Sizes, cache=folder
    ),
    "features.digest": lambda _: on(features.digest, MARKED, {"a": [1, 2.5]}, np.arange(3)),
    "squad.read": lambda folder: on(
        squad.read, file_there(folder, "x.json", f'{{"data": [{{"paragraphs": {PARAGRAPHS}}}]}}')
    ),
    "squad.features": lambda _: on(squad.features, ASKED, MARKED, **SHORT),
    "squad.window_spans": lambda _: on(squad.window_spans, 9, 5, 2, seen=list),
    "squad.best_windows": lambda _: on(squad.best_windows, SPANS),
    "squad_answers.recover": lambda _: on(
        squad_answers.recover, ASKED, WINDOWS, WINDOWS.ids * 0.5, WINDOWS.ids * 0.25, n_best=3
    ),
    "squad_metrics.normalize": lambda _: on(squad_metrics.normalize, "The low."),
    "squad_metrics.exact_match": lambda _: on(squad_metrics.exact_match, "The low.", "low"),
    "squad_metrics.f1": lambda _: on(squad_metrics.f1, "The low slow.", "low"),
    "squad_metrics.evaluate_v1": lambda _: on(squad_metrics.evaluate_v1, ASKED[:1], FOUND),
    "squad_metrics.evaluate_v2": lambda _: on(squad_metrics.evaluate_v2, ASKED, FOUND, ODDS),
    "squad_metrics.best_thresholds": lambda _: on(
        squad_metrics.best_thresholds, ASKED, FOUND, ODDS
    ),
    "glue.Task.is_regression": lambda _: on(lambda t: t.is_regression, glue.task("RTE")),
    "glue.task": lambda _: on(glue.task, "rte"),
    "glue.file_name": lambda _: on(glue.file_name, "MNLI", "dev"),
    "glue.read": lambda folder: on(
        glue.read, file_there(folder, "x.tsv", "sentence\tlabel\nlow \t1\n"), "SST-2"
    ),
    "glue.features": lambda _: on(glue.features, GLUED, "RTE", MARKED),
    "glue.predict": lambda _: on(glue.predict, "RTE", np.array([[0.1, 0.7], [2.0, -1.0]])),
    "glue.evaluate": lambda _: on(glue.evaluate, "MRPC", *RATED),
    "metrics.most_likely": lambda _: on(metrics.most_likely, np.array([[0.1, 0.7], [2.0, -1.0]])),
    **{
        f"metrics.{metric.__name__}": (lambda _, metric=metric: on(metric, *RATED))  # type: ignore[misc]
        for metric in (
            *(metrics.accuracy, metrics.f1, metrics.matthews),
            *(metrics.pearson, metrics.spearman),
        )
    },
    "swag.read": lambda folder: on(swag.read, file_there(folder, "x.csv", CHOICES_FILE)),
    "swag.features": lambda _: on(swag.features, SWAGGED, MARKED),
    "rocstories.read": lambda folder: on(
        rocstories.read, file_there(folder, "x.csv", STORIES_FILE)
    ),
    "rocstories.features": lambda _: on(
        rocstories.features, [TOLD], TOKENIZER.extend(rocstories.MARKS), max_seq_length=20
    ),
    "corpus.read": lambda folder: on(corpus.read, file_there(folder, "x.txt", "a\nb\n\nc\n")),
    "corpus.encode": lambda _: on(corpus.encode, [["a low", "slow ?"], ["low"]], MARKED),
    "corpus.features": lambda _: on(corpus.features, ENCODED, MARKED, 7),
}
SYMBOL_METHODS: dict[str, tuple[Any, ...]] = {
    "encode": (TEXT,),
    "encode_batch": (TEXTS,),
    "encode_with_offsets": (TEXT,),
    "tokenize": (TEXT,),
    "tokens_to_ids": (["w</w>", "lo"],),
    "ids_to_tokens": ([3, 1],),
    "decode": ([3, 1],),
    "extend": (["<a>", "<b>"],),
}


def symbol_method(name: str, _: Path) -> Example:
    return on(getattr(symbols.Tokenizer, name), SYMBOLS, *SYMBOL_METHODS[name])


SYMBOL_TOKENIZING: dict[str, Make] = {
    "gpt.load": lambda folder: on(symbols.load, gpt_saved(folder), "fallback"),
    "gpt.Tokenizer": lambda _: on(symbols.Tokenizer, dict(SYMBOLS.vocab), [], "fallback", ["<a>"]),
    "gpt.Tokenizer.vocab_size": lambda _: on(lambda t: t.vocab_size, SYMBOLS),
    "gpt.Tokenizer.special": lambda _: on(lambda t: t.special, SYMBOLS),
    "gpt.Tokenizer.save": writes(symbols.Tokenizer.save, SYMBOLS.extend(["<a>"])),
    "gpt.Tokenizer.decode_stream": lambda _: on(
        symbols.Tokenizer.decode_stream, SYMBOLS, [3, 1], seen=list
    ),
    **{f"gpt.Tokenizer.{name}": partial(symbol_method, name) for name in SYMBOL_METHODS},
}
COUNTED = counted.train([TEXT], special=["<unk>", "<eos>"])
COUNTED_METHODS: dict[str, tuple[Any, ...]] = {
    "encode": (TEXT,),
    "encode_batch": (TEXTS,),
    "encode_with_offsets": (TEXT,),
    "tokenize": (TEXT,),
    "tokens_to_ids": (["low", "lo"],),
    "ids_to_tokens": ([3, 1],),
    "decode": ([3, 1],),
}


def counted_method(name: str, _: Path) -> Example:
    return on(getattr(counted.Tokenizer, name), COUNTED, *COUNTED_METHODS[name])


def counted_saved(folder: Path) -> Path:
    COUNTED.save(folder / "words")
    return folder / "words"


def corpus_saved(folder: Path) -> Path:
    """Make a file as pytorch-pretrained-bert's converter does."""
    torch.save({"dataset": "wt103", "train": np.arange(5), "valid": None}, folder / "corpus.bin")
    return folder


def two_lines(folder: Path) -> Path:
    return file_there(folder, "x.txt", "low slow\nlow\n")


COUNTED_TOKENIZING: dict[str, Make] = {
    "transfo_xl.Tokenizer": lambda _: on(counted.Tokenizer, dict(COUNTED.vocab), True, " "),
    "transfo_xl.Tokenizer.vocab_size": lambda _: on(lambda t: t.vocab_size, COUNTED),
    "transfo_xl.Tokenizer.save": writes(counted.Tokenizer.save, COUNTED),
    "transfo_xl.Tokenizer.encode_file": lambda folder: on(
        counted.Tokenizer.encode_file, COUNTED, two_lines(folder), seen=list
    ),
    **{f"transfo_xl.Tokenizer.{name}": partial(counted_method, name) for name in COUNTED_METHODS},
    "transfo_xl.load": lambda folder: on(counted.load, counted_saved(folder)),
    "transfo_xl.load_corpus": lambda folder: on(counted.load_corpus, corpus_saved(folder)),
    "transfo_xl.build": lambda _: on(counted.build, {"a": 2, "b": 3}, special=["<eos>"]),
    "transfo_xl.train": lambda _: on(counted.train, TEXTS, max_size=3),
    "words.count": lambda _: on(between_spaces.count, TEXTS, lower_case=True),
    "words.lines": lambda folder: on(between_spaces.lines, two_lines(folder), seen=list),
    "words.places": lambda _: on(between_spaces.places, TEXT),
    "words.split": lambda _: on(between_spaces.split, TEXT),
}
SENTENCES = [[5, 6, 7], [8, 9], [1, 2, 3, 4]]


def text_stored(folder: Path) -> Path:
    texts.store(SENTENCES, folder / "text")
    return folder / "text"


LANGUAGE: dict[str, Make] = {
    "gather": lambda _: on(texts.gather, SENTENCES),
    "store": writes(texts.store, SENTENCES),
    "read": lambda folder: on(texts.read, text_stored(folder)),
    "ordered": lambda _: on(texts.ordered, np.arange(50), 2, 4, key=3, seen=list),
    "sentences": lambda _: on(
        texts.sentences, [texts.gather(SENTENCES)], 1, 2, extra=1, key=3, seen=list
    ),
}
PROGRAM: dict[str, Make] = {
    "main": lambda folder: on(cli.main, ["inspect", str(saved(folder))]),
    "generate": lambda folder: on(
        cli.generate, str(saved(folder)), "low", max_new_tokens=5, seed=4, seen=list
    ),
    "inspect": lambda folder: on(cli.inspect, str(saved(folder)), seen=list),
    "convert": lambda folder: on(cli.convert, str(saved(folder)), str(folder / "b"), seen=list),
    "as_flags": lambda _: on(cli.as_flags, "pass heads=('masked_lm',)", "convert"),
    "progress": lambda _: on(cli.progress, "rows", seen=lambda show: show(2, 2)),
    "run": lambda _: on(cli.run, str, finetune.Recipe, ["--seed", "3"]),
}
CHECKPOINTS: dict[str, Make] = {
    "check_vocabulary": lambda _: on(checkpoints.check_vocabulary, "tiny", 9, 9),
    "family_of": lambda folder: on(checkpoints.family_of, saved(folder)),
    "inspect": lambda folder: on(checkpoints.inspect, saved(folder), seen=list),
    "convert": lambda folder: on(checkpoints.convert, saved(folder), folder / "b", seen=list),
}
WRITER: dict[str, Make] = {
    "load": lambda folder: on(
        pipeline.load,
        saved(folder),
        seen=lambda made: (made.name, made.params, made.begin, made.eos),
    ),
    "Pipeline.apply": lambda folder: on(
        pipeline.load(saved(folder)).apply, pipeline.load(saved(folder)).params, IDS
    ),
    "Pipeline.encode": lambda folder: on(pipeline.load(saved(folder)).encode, "low"),
    "Pipeline.decode": lambda folder: on(pipeline.load(saved(folder)).decode, [1, 2, 3], seen=list),
}
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
XL_PARAMS, XL_CONFIG = make_params(TRANSFO_XL), TRANSFO_XL.config
MEMS = transfo_xl.apply(XL_PARAMS, IDS[:, :3])[1]
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
    "adaptive_softmax.adaptive_log_softmax": lambda _: on(
        adaptive_softmax.adaptive_log_softmax, STATES, CLUSTERS, GATES
    ),
    "adaptive_softmax.adaptive_nll": lambda _: on(
        adaptive_softmax.adaptive_nll, STATES, IDS, CLUSTERS, GATES, sparse=True
    ),
    "adaptive_softmax.draw_words": lambda _: on(adaptive_softmax.draw_words, KEYS, 9, 41),
    "adaptive_softmax.sampled_nll": lambda _: on(
        adaptive_softmax.sampled_nll, STATES, IDS % 11, CLUSTERS[0], 4, key=KEYS
    ),
    "memory.zero_mems": lambda _: on(memory.zero_mems, X, 2, (3, 5, 12)),
    "memory.check": lambda _: on(memory.check, MEMS, X, 2, (3,), 36),
    "memory.update_mems": lambda _: on(memory.update_mems, MEMS, 3, 4, ext_len=1),
    "relative_attention.sinusoids": lambda _: on(relative_attention.sinusoids, 7, 6, 3),
    "relative_attention.causal_window_mask": lambda _: on(
        relative_attention.causal_window_mask, 3, 7, 4
    ),
    "relative_attention.attention_bias": lambda _: on(
        relative_attention.attention_bias, HALF, torch.float64
    ),
    "relative_attention.relative_shift": lambda _: on(relative_attention.relative_shift, DISTANCES),
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


def xl_saved(folder: Path) -> Path:
    transfo_xl.save(XL_PARAMS, folder / "xl")
    return folder / "xl"


XL_MODEL: dict[str, Make] = {
    "Config.to_dict": lambda _: on(transfo_xl.Config.to_dict, XL_CONFIG),
    "apply": lambda _: on(transfo_xl.apply, XL_PARAMS, IDS, MEMS, key=KEYS, sparse=True),
    "hidden_states": lambda _: on(transfo_xl.hidden_states, XL_PARAMS, IDS, MEMS, detach=False),
    "negative_log_likelihood": lambda _: on(
        transfo_xl.negative_log_likelihood, XL_PARAMS, IDS, IDS, MEMS, key=KEY
    ),
    "init": lambda _: on(transfo_xl.init, XL_CONFIG, KEY),
    "Config.from_dict": lambda _: on(transfo_xl.Config.from_dict, {"n_token": 9, "cutoffs": [4]}),
    "init_mems": lambda _: on(transfo_xl.init_mems, XL_PARAMS, 3, empty=True),
    "reset_mems": lambda _: on(transfo_xl.reset_mems, MEMS, MASK[:, 0]),
    "spec": lambda _: on(transfo_xl.spec, XL_CONFIG),
    "load": lambda folder: on(transfo_xl.load, xl_saved(folder)),
    "save": writes(transfo_xl.save, XL_PARAMS),
}
TABLE: dict[str, Make] = {
    f"fnlm.{part}.{name}": make
    for part, rows in {
        "random": RANDOM,
        "tree": TREE,
        "files": FILES,
        "params": PARAMETERS,
        "layers": LAYERS | XL_LAYERS,
        "heads": HEADS,
        "checkpoints": CHECKPOINTS,
        "pipeline": WRITER,
        "bert": BERT_MODEL,
        "gpt": GPT_MODEL,
        "gpt2": MODEL,
        "transfo_xl": XL_MODEL,
        "generate": DECODING,
        "train": TRAINING,
        "transforms": TRANSFORMS,
        "finetune": FINETUNING,
        "tokenize": TOKENIZING | SYMBOL_TOKENIZING | COUNTED_TOKENIZING,
        "tasks": TASKS,
        "tasks.language_model": LANGUAGE,
        "cli": PROGRAM,
    }.items()
    for name, make in rows.items()
}
