"""What a newcomer gets wrong: each error names the argument, the value or shapes, and the remedy.

A row is what he wrote, the type of the error, and what its message must hold, in this order: the
argument, the value or the shapes, the remedy. Where the error is not fnlm's but Python's or torch's
(a dict has no method `to`), docs/mistakes.md must answer for the message.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.func import vmap
from vocabularies import bert_small

import fnlm
from fnlm import bert, gpt, gpt2, pipeline, random, train, transfo_xl, transforms, tree
from fnlm.generate import beam_search, generate, sample
from fnlm.leaves import is_adapter, lora, quantize
from fnlm.tokenize import bert as wordpiece
from fnlm.tokenize import gpt2 as bpe
from fnlm.train import losses, schedules

KEY = random.key(0)
CONFIG = gpt2.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=2, n_head=3)
PARAMS = gpt2.init(CONFIG, KEY)
WIDE = gpt2.init(gpt2.Config(vocab_size=50, n_positions=8, n_embd=15, n_layer=2, n_head=3), KEY)
BERT = bert.init(
    bert.Config(
        vocab_size=50, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=16, max_position_embeddings=8,
    ),
    KEY, heads=("sequence_classification",),
)  # fmt: skip
GPT = gpt.init(gpt.Config(vocab_size=50, n_positions=8, n_embd=12, n_layer=1, n_head=3), KEY)
XL = transfo_xl.init(
    transfo_xl.Config(n_token=50, cutoffs=(9,), d_model=8, d_embed=8, n_layer=2, mem_len=6), KEY
)
IDS = torch.tensor([[3, 1, 4], [1, 5, 9]])
CACHE, MEMS = gpt2.apply(PARAMS, IDS)[1], transfo_xl.apply(XL, IDS)[1]
ADAPTERS, FROZEN = tree.partition(lora(PARAMS, KEY, rank=2), is_adapter)
TEXT = bpe.train(["low lower lowest"], 262)
OPTIMIZER = train.adamw(1e-3)
STATE = OPTIMIZER.init(PARAMS)
LOGITS = torch.zeros(2, 3)
PAGE = (ROOT / "docs" / "mistakes.md").read_text(encoding="utf-8")


def loss(params: Any, row: Any) -> Any:
    return losses.language_model(gpt2.apply(params, row)[0], row)


def with_key(params: Any, row: Any, key: Any) -> Any:
    return loss(params, row)


def continued(*args: Any, **settings: Any) -> Any:
    return generate(gpt2.apply, PARAMS, IDS[:, :2], *args, **settings)


class Mistake(NamedTuple):
    name: str
    wrong: Callable[..., Any]
    error: type[Exception]
    holds: tuple[str, ...]  # in this order


ROWS: list[Mistake] = []
FILES: list[Mistake] = []


def row(name: str, wrong: Callable[[], Any], error: type[Exception], *holds: str) -> None:
    ROWS.append(Mistake(name, wrong, error, holds))


def on_disk(name: str, wrong: Callable[[Path], Any], error: type[Exception], *holds: str) -> None:
    FILES.append(Mistake(name, wrong, error, holds))


def wrong(value: Any) -> Any:
    """A value in a place that its type forbids, as someone without a type checker has it."""
    return value


# Likewise, of functions.
F: Any = fnlm
M: Any = gpt2
B: Any = bert
X: Any = transfo_xl

# ruff: noqa: E501
# fmt: off

# Ids and parameters.
row("float ids", lambda: gpt2.apply(PARAMS, IDS.float()), TypeError, "ids", "float32", "ids.long()")
row("uint8 ids", lambda: bert.apply(BERT, IDS.byte()), TypeError, "ids", "uint8", "ids.long()")
row("ids of numpy", lambda: M.apply(PARAMS, np.ones((2, 3), np.int64)), TypeError, "ids", "ndarray", "torch.as_tensor")
row("ids in a list", lambda: B.apply(BERT, [[1, 2]]), TypeError, "ids", "list", "torch.as_tensor")
row("a text for ids", lambda: M.apply(PARAMS, "low"), TypeError, "ids", "str", "encode(text)")
row("a batch in a dict", lambda: B.apply(BERT, {"input_ids": IDS}), TypeError, "ids", "dict", "one by one")
row("one number for ids", lambda: gpt2.apply(PARAMS, IDS[0, 0]), ValueError, "ids", "one number", "ids[None]")
row("ids out of range", lambda: gpt2.apply(PARAMS, IDS + 50), IndexError, "ids", "less than 50", "51 to 59", "vocabulary")
row("ids before params", lambda: M.apply(IDS, PARAMS), TypeError, "params", "tensor [2, 3]", "parameters come first")
row("no params", lambda: M.apply(IDS), TypeError, "params", "tensor [2, 3]", "come first")
row("no ids", lambda: M.apply(PARAMS), TypeError, "'ids'", "apply() takes params, ids, cache")
row("a config for params", lambda: M.apply(CONFIG, IDS), TypeError, "params", "config", "init(config, key)")
row("params of BERT", lambda: gpt2.apply(BERT, IDS), TypeError, "params", "those of bert", "that module")
row("params of GPT", lambda: gpt2.apply(GPT, IDS), TypeError, "params", "those of gpt", "that module")
row("a name for params", lambda: M.apply("gpt2", IDS), TypeError, "params", "'gpt2'", "gpt2.load('gpt2')")
row("a module for params", lambda: M.apply(torch.nn.Linear(2, 2), IDS), TypeError, "params", "Linear", "gpt2.load")
row("a state dict for params", lambda: gpt2.apply({"h.0.attn": IDS}, IDS), TypeError, "params", "'h.0.attn'", "gpt2.load")
row("a config of BERT", lambda: M.init(BERT["config"], KEY), TypeError, "config", "bert.Config", "functions of bert")
row("a config as a dict", lambda: M.init({"n_embd": 12}, KEY), TypeError, "config", "dict", "from_dict")
row("a name for a config", lambda: M.init("gpt2", KEY), TypeError, "config", "'gpt2'", "gpt2.load")
row("a config as a dict in params", lambda: gpt2.apply({**PARAMS, "config": {}}, IDS), TypeError, "'config'", "dict", "from_dict")
row("ids on another device", lambda: gpt2.apply(PARAMS, IDS.to("meta")), ValueError, "ids are on meta", "parameters on cpu", "ids.to('cpu')")
row("too many tokens", lambda: gpt2.apply(PARAMS, IDS.repeat(1, 3)), ValueError, "9 tokens", "n_positions=8", "shorten ids")
row("too many tokens for BERT", lambda: bert.apply(BERT, IDS.repeat(1, 3)), ValueError, "9 tokens", "max_position_embeddings=8", "shorten ids")
row("too many with the cache", lambda: gpt2.apply(PARAMS, IDS.repeat(1, 2), CACHE), ValueError, "9 tokens", "n_positions=8", "new cache")

# Masks and types.
row("a mask of floats", lambda: gpt2.apply(PARAMS, IDS, mask=torch.ones(2, 3)), TypeError, "mask", "float32", "mask = mask != 0")
row("an additive mask", lambda: bert.apply(BERT, IDS, None, torch.zeros(2, 3)), TypeError, "mask", "float32", "mask = bias == 0")
row("an extended mask", lambda: bert.apply(BERT, IDS, None, IDS[:, None, None]), ValueError, "mask", "[2, 1, 1, 3]", "each token")
row("a mask of another length", lambda: gpt2.apply(PARAMS, IDS[:, :2], None, IDS), ValueError, "mask", "[2, 3]", "[2, 2]", "mask[..., -2:]")
row("a mask of the past, too", lambda: gpt2.apply(PARAMS, IDS, CACHE, IDS.repeat(1, 2)), ValueError, "mask", "[2, 6]", "[2, 3]", "mask[..., -3:]")
row("a mask without the batch", lambda: gpt2.apply(PARAMS, IDS, None, IDS[0]), ValueError, "mask", "[3]", "[2, 3]", "expand_as(ids)")
row("a mask in a list", lambda: B.apply(BERT, IDS, None, [[1, 1, 1]] * 2), TypeError, "mask", "list", "torch.as_tensor")
row("a mask for the cache", lambda: M.apply(PARAMS, IDS, IDS), TypeError, "cache", "int64 [2, 3]", "append(None")
row("a mask for the types", lambda: bert.apply(BERT, IDS, IDS > 0), TypeError, "token_types", "bool", "token_types.long()")
row("a mask by keyword under vmap", lambda: vmap(lambda ids, mask: gpt2.apply(PARAMS, ids, mask=mask)[0])(IDS, mask=IDS), ValueError, "mask", "[2, 3]", "[3]", "by position")
row("a mask for Transformer-XL", lambda: X.apply(XL, IDS, mask=IDS), TypeError, "'mask'", "leave it out")
row("types out of range", lambda: bert.apply(BERT, IDS, IDS), IndexError, "token_types", "less than 2", "1 to 9")
row("types of one row", lambda: bert.apply(BERT, IDS, IDS[0]), ValueError, "token_types", "[3]", "[2, 3]", "expand_as")
row("positions of another length", lambda: gpt2.apply(PARAMS, IDS, positions=torch.arange(4)), ValueError, "positions", "[4]", "[2, 3]", "leave positions out")
row("choices without their axis", lambda: gpt2.double_heads(gpt2.init(CONFIG, KEY, ("multiple_choice",)), IDS, IDS[:1, 0]), ValueError, "choice_positions", "[1]", "[2]", "[..., C, T]")

# Caches and memories.
row("a cache of another batch", lambda: gpt2.apply(PARAMS, IDS[:1], CACHE), ValueError, "cache", "(2, 2, 3, 4)", "(2, 1, 3, 4)", "use a cache")
row("a cache of another model", lambda: gpt2.apply(WIDE, IDS, CACHE), ValueError, "cache", "(2, 2, 3, 4)", "(2, 2, 3, 5)", "this model")
row("a cache of another dtype", lambda: gpt2.apply(tree.cast(PARAMS, torch.float64), IDS, CACHE), TypeError, "cache", "float32", "float64", "fnlm.tree.cast(cache")
row("a cache on another device", lambda: gpt2.apply(PARAMS, IDS, tree.to(CACHE, "meta")), ValueError, "cache", "meta", "cpu", "device of a cache")
row("logits and cache for the cache", lambda: M.apply(PARAMS, IDS, gpt2.apply(PARAMS, IDS)), TypeError, "cache", "tuple of ['Tensor', 'Cache']")
row("a memory for a cache", lambda: M.apply(PARAMS, IDS, MEMS), TypeError, "cache", "Mems", "append(None")
row("a cache for a memory", lambda: X.apply(XL, IDS, CACHE), TypeError, "mems", "Cache", "pass the Mems")
row("a memory as a list", lambda: X.apply(XL, IDS, list(MEMS.hidden)), TypeError, "mems", "list", "Mems alone")
row("a memory of another batch", lambda: transfo_xl.apply(XL, IDS[:1], MEMS), ValueError, "mems", "[2, 6, 8]", "[1, 6, 8]", "use mems")
row("a cache larger than the model", lambda: gpt2.init_cache(PARAMS, 2, 9), ValueError, "capacity", "n_positions=8", "got 9", "continuation")

# Halves of trees.
row("half a tree", lambda: gpt2.apply(tree.partition(PARAMS, lambda path, x: "norm" in path)[1], IDS), ValueError, "params", "norm_1.scale", "tree.merge")
row("adapters alone", lambda: gpt2.apply(ADAPTERS, IDS), TypeError, "params", "blocks", "params['config']")
row("a base without its adapters", lambda: gpt2.apply(FROZEN, IDS), ValueError, "base without its adapter", "fnlm.tree.merge")
row("adapters on the wrong base", lambda: gpt2.apply(tree.merge(ADAPTERS, tree.partition(lora(WIDE, KEY, rank=2), is_adapter)[1]), IDS), ValueError, "adapter", "[36, 2]", "[45, 15]", "made for")
row("adapters merged with whole params", lambda: tree.merge(ADAPTERS, PARAMS), ValueError, "both trees", "qkv.weight", "halves of one partition")
row("sums of two families", lambda: tree.map(torch.add, PARAMS, BERT), ValueError, "tree 1 and tree 2", "'blocks.0.attention.k.bias'", "same parameters")
row("a stack of two sizes of config", lambda: tree.stack([PARAMS, WIDE]), ValueError, "tree 1 and tree 2", "different configs")
row("a path for a predicate", lambda: tree.partition(PARAMS, wrong("blocks")), TypeError, "predicate", "'blocks'", "lambda path, leaf")
row("nothing selected, and trained", lambda: OPTIMIZER.init(tree.select(PARAMS, lambda path, x: "lora" in path)), ValueError, "params", "{}", "tree.named_leaves")
row("nothing selected, and differentiated", lambda: transforms.grad(lambda p: loss(tree.merge(p, PARAMS), IDS))(tree.select(PARAMS, lambda path, x: False)), ValueError, "params", "{}", "tree.named_leaves")
row("a dtype by name", lambda: tree.cast(PARAMS, wrong("float16")), TypeError, "dtype", "'float16'", "torch.float16")
row("a device that is none", lambda: tree.to(PARAMS, "gpu"), ValueError, "device", "'gpu'", "'cuda'")

# Keys.
row("an int for a key", lambda: M.apply(PARAMS, IDS, key=7), TypeError, "key", "got 7", "random.key(7)")
row("no key to initialize", lambda: M.init(CONFIG, None), TypeError, "key", "None", "random.key(0)")
row("a generator for a key", lambda: M.init(CONFIG, torch.Generator()), TypeError, "key", "Generator", "random.key(0)")
row("keys of another batch", lambda: gpt2.apply(PARAMS, IDS, key=random.split(KEY, 3)), ValueError, "key", "[3]", "[2, 3, 12]", "one key")
row("a key by position", lambda: B.apply(BERT, IDS, None, None, KEY), TypeError, "5 were given", "by name key")
row("a float for a seed", lambda: random.key(wrong(0.5)), TypeError, "seed", "0.5", "random.key(0)")
row("a number for a shape", lambda: random.normal(KEY, wrong(3)), TypeError, "shape", "got 3", "(3,)")

# Arguments by their names elsewhere.
row("attention_mask", lambda: B.apply(BERT, IDS, attention_mask=IDS), TypeError, "'attention_mask'", "called mask")
row("token_type_ids", lambda: B.apply(BERT, IDS, token_type_ids=IDS), TypeError, "'token_type_ids'", "token_types")
row("input_ids", lambda: B.apply(BERT, input_ids=IDS), TypeError, "'input_ids'", "called ids")
row("past", lambda: M.apply(PARAMS, IDS, past=CACHE), TypeError, "'past'", "called cache")
row("lm_labels", lambda: M.apply(PARAMS, IDS, lm_labels=IDS), TypeError, "'lm_labels'", "fnlm.train.losses")
row("output_hidden_states", lambda: B.masked_lm(BERT, IDS, output_hidden_states=True), TypeError, "output_hidden_states", "layers(params")
row("training=True", lambda: M.hidden_states(PARAMS, IDS, training=True), TypeError, "'training'", "key=fnlm.random.key")
row("a misspelled argument", lambda: M.apply(PARAMS, IDS, positionss=IDS), TypeError, "'positionss'", "is positions meant?")

# Methods of modules, which a dict has not.
for method, call in {
    "parameters": "()", "to": "('cuda')", "cuda": "()", "eval": "()", "train": "()", "half": "()",
    "state_dict": "()", "config": "",
}.items():
    row(f"params.{method}{call}", partial(getattr, PARAMS, method), AttributeError, "'dict' object", f"'{method}'")
row("params(ids)", lambda: wrong(PARAMS)(IDS), TypeError, "'dict' object is not callable")
row("gpt2(params, ids)", lambda: M(PARAMS, IDS), TypeError, "'module' object is not callable")
row("torch.optim of params", lambda: torch.optim.SGD(wrong(PARAMS)), TypeError, "optimizer can only optimize Tensors")
row("torch.optim of leaves, and backward", lambda: (torch.optim.SGD(tree.leaves(PARAMS)), loss(PARAMS, IDS).backward()), RuntimeError, "element 0 of tensors does not require grad")
row("vmap over params, too", lambda: vmap(gpt2.apply)(PARAMS, IDS), ValueError, "same size in the mapped dimension")
row("in_dims of another number", lambda: vmap(loss, in_dims=(None, 0, 0))(PARAMS, IDS), ValueError, "in_dims is not compatible with the structure")
row("one key under vmap", lambda: vmap(lambda ids, key: gpt2.apply(PARAMS, ids, key=key)[0])(IDS, KEY), ValueError, "Got in_dim=0", "dimensionality 0")
row("rows of several lengths", lambda: torch.tensor(TEXT.encode_batch(["low", "lower low"])), ValueError, "expected sequence of length")
row("a predicate of one argument", lambda: tree.partition(PARAMS, wrong(lambda path: True)), TypeError, "takes 1 positional argument but 2 were given")
row("a tokenizer that is called", lambda: wrong(TEXT)("low"), TypeError, "'Tokenizer' object is not callable")

# Names of other libraries.
row("from fnlm import BertModel", lambda: exec("from fnlm import BertModel"), ImportError, "'BertModel'", "fnlm.bert.apply", "fnlm.bert.load")
row("from fnlm.gpt2 import GPT2LMHeadModel", lambda: exec("from fnlm.gpt2 import GPT2LMHeadModel"), ImportError, "'GPT2LMHeadModel'", "fnlm.gpt2.apply")
row("BertForSequenceClassification", lambda: B.BertForSequenceClassification, ImportError, "fnlm.bert.sequence_classification")
row("TransfoXLModel", lambda: F.TransfoXLModel, ImportError, "fnlm.transfo_xl.hidden_states", "mems")
row("OpenAIGPTDoubleHeadsModel", lambda: F.OpenAIGPTDoubleHeadsModel, ImportError, "fnlm.gpt.double_heads")
row("BertConfig", lambda: F.BertConfig, ImportError, "'BertConfig'", "fnlm.bert.Config")
row("AutoModel", lambda: F.AutoModel, ImportError, "'AutoModel'", "fnlm.bert.load")
row("from_pretrained of a module", lambda: B.from_pretrained("bert-base-uncased"), ImportError, "'from_pretrained'", "load(")
row("BertTokenizer", lambda: exec("from fnlm.tokenize import BertTokenizer"), ImportError, "fnlm.tokenize.bert.load")
row("BertAdam", lambda: exec("from fnlm.train import BertAdam"), ImportError, "fnlm.train.bert_adam(lr")
row("WarmupLinearSchedule", lambda: exec("from fnlm.train.schedules import WarmupLinearSchedule"), ImportError, "schedules.warmup_linear")
row("a name of no module", lambda: F.modeling, AttributeError, "'modeling'", "its modules are")
row("convert_tokens_to_ids", lambda: wrong(TEXT).convert_tokens_to_ids(["low"]), AttributeError, "'convert_tokens_to_ids'", "tokens_to_ids(tokens)")
row("optimizer.step()", lambda: wrong(OPTIMIZER).step(), AttributeError, "'step'", "optimizer.update(grads, state, params)")
row("optimizer.zero_grad()", lambda: wrong(OPTIMIZER).zero_grad(), AttributeError, "'zero_grad'", "gradients are values")

# Derivatives, and examples.
row("a loss of many numbers", lambda: transforms.grad(lambda p: gpt2.apply(p, IDS)[0])(PARAMS), ValueError, "loss", "[2, 3, 50]", ".mean()")
row("a loss of logits and cache", lambda: transforms.grad(lambda p: gpt2.apply(p, IDS))(PARAMS), ValueError, "loss", "tuple", "fnlm.train.losses")
row("by integers", lambda: transforms.grad(lambda p: loss(p, IDS))(quantize(PARAMS, bits=8)), ValueError, "qkv.weight.values", "int8", "tree.partition")
row("argnums", lambda: F.transforms.grad(loss, argnums=1), TypeError, "'argnums'", "torch.func.grad")
row("examples of two lengths", lambda: transforms.per_example_grads(loss, PARAMS, IDS, IDS[:1]), ValueError, "batch.0 [2]", "batch.1 [1]", "row for each example")
row("a loss of many numbers an example", lambda: transforms.per_example_norms(lambda p, x: gpt2.apply(p, x)[0].sum(-1), PARAMS, IDS), ValueError, "loss", "[3]", ".mean()")
row("the params among the batch", lambda: transforms.per_example_norms(loss, IDS, PARAMS), ValueError, "batch.0.embed", "params come first")
row("a mask of examples by keyword", lambda: F.transforms.per_example_grads(loss, PARAMS, IDS, mask=IDS), TypeError, "'mask'", "by position")
row("max_norm of 0", lambda: transforms.clipped_grad_sum(loss, PARAMS, IDS, max_norm=0), ValueError, "max_norm", "got 0", "math.inf")
row("no max_norm", lambda: F.transforms.clipped_grad_sum(loss, PARAMS, IDS), TypeError, "'max_norm'", "by name max_norm")
row("remat of a result", lambda: F.transforms.remat(gpt2.apply(PARAMS, IDS)), TypeError, "fn", "tuple", "remat(fn)(x)")
row("remat of a closure", lambda: transforms.grad(lambda w: transforms.remat(lambda x: (x @ w).sum())(torch.ones(2)))(torch.ones(2)), ValueError, "remat", "closes over", "as an argument")

# Losses.
row("labels of -100", lambda: losses.cross_entropy(LOGITS, torch.tensor([1, -100])), IndexError, "labels", "-100 to 1", "masked_fill")
row("labels out of range", lambda: losses.cross_entropy(LOGITS, torch.tensor([1, 3])), IndexError, "labels", "less than 3", "1 to 3")
row("labels of floats", lambda: losses.cross_entropy(LOGITS, torch.ones(2)), TypeError, "labels", "float32", "labels.long()")
row("one-hot labels", lambda: losses.cross_entropy(LOGITS, torch.eye(3)[:2]), TypeError, "labels", "float32", "argmax(-1)")
row("labels of another shape", lambda: losses.cross_entropy(LOGITS, IDS), ValueError, "labels", "(2, 3)", "each row of logits")
row("logits and cache for logits", lambda: losses.language_model(wrong(gpt2.apply(PARAMS, IDS)), IDS), TypeError, "logits", "tuple", "give the first")
row("labels before logits", lambda: losses.cross_entropy(IDS[:, 0], IDS[:, 0]), TypeError, "logits", "int64", "come first")
row("a regression without its axis", lambda: losses.regression(torch.ones(2), torch.ones(2)), ValueError, "logits", "(2,)", "logits[..., None]")
row("targets of -1", lambda: transfo_xl.negative_log_likelihood(XL, IDS, -IDS), IndexError, "targets", "-9 to -1", "within that range")

# Optimizers, schedules and steps.
row("an optimizer of params", lambda: F.train.bert_adam(PARAMS), TypeError, "lr", "dict", "optimizer.init(params)")
row("an optimizer of leaves", lambda: F.train.adamw(tree.leaves(PARAMS)), TypeError, "lr", "list", "optimizer.init(params)")
row("params before lr", lambda: F.train.bert_adam(PARAMS, lr=1e-3), TypeError, "'lr'", "bert_adam() takes lr")
row("betas", lambda: F.train.adamw(1e-3, betas=(0.9, 0.99)), TypeError, "'betas'", "b1 and b2")
row("a negative lr", lambda: train.adamw(-1e-3), ValueError, "lr", "-0.001", "0 or more")
row("b1 of 1", lambda: train.adamw(1e-3, b1=1.0), ValueError, "b1", "got 1.0", "0.9")
row("a schedule by name", lambda: F.train.bert_adam(1e-3, schedule="warmup_linear"), TypeError, "schedule", "'warmup_linear'", "schedules.warmup_linear itself")
row("a schedule that is made", lambda: F.train.bert_adam(1e-3, schedule=schedules.warmup_linear(0.1, 9)), TypeError, "schedule", "function", "lr=lambda step")
row("warmup in steps", lambda: train.bert_adam(1e-3, warmup=100, t_total=1000), ValueError, "warmup", "got 100", "warmup / t_total")
row("t_total of 0", lambda: schedules.warmup_linear(0.1, 0), ValueError, "t_total", "got 0", "number of updates")
row("t_total below 0", lambda: schedules.warmup_linear(0.1, -5), ValueError, "t_total", "-5", "number of updates")
row("t_total as a text", lambda: schedules.warmup_linear(0.1, wrong("9")), TypeError, "t_total", "'9'", "-1 for none")
row("a negative step", lambda: schedules.warmup_linear(0.1, 9)(-1), ValueError, "step", "-1", "step 0")
row("no params to update", lambda: OPTIMIZER.update(PARAMS, STATE, None), TypeError, "params", "None", "update(grads, state, params)")
row("state before gradients", lambda: wrong(OPTIMIZER).update(STATE, PARAMS, PARAMS), TypeError, "state", "dict", "update(grads, state, params)")
row("a loss without key", lambda: train.train_step(loss, OPTIMIZER), TypeError, "loss must take key", "loss(params, row)", "loss(params, *batch, key)")
row("the optimizer before the loss", lambda: F.train.train_step(OPTIMIZER, with_key), TypeError, "loss", "Optimizer", "train_step(loss, optimizer)")
row("params for the state", lambda: train.train_step(with_key, OPTIMIZER)(wrong(PARAMS), IDS), TypeError, "state", "dict", "init_state(params, optimizer, key)")
row("an int for the key of a run", lambda: F.train.init_state(PARAMS, OPTIMIZER, 0), TypeError, "key", "got 0", "random.key(0)")

# Generation.
row("-1 new tokens", lambda: continued(-1), ValueError, "max_new_tokens", "-1", "follow the prompt")
row("more tokens than positions", lambda: continued(20), ValueError, "max_new_tokens=20", "n_positions=8", "at most 6")
row("max_length", lambda: continued(max_length=9), TypeError, "'max_length'", "max_new_tokens")
row("a text for a prompt", lambda: generate(gpt2.apply, PARAMS, wrong("low"), 2), TypeError, "ids", "str", "tokenizer.encode(text)")
row("a list for a prompt", lambda: generate(gpt2.apply, PARAMS, wrong([1, 2]), 2), TypeError, "ids", "list", "torch.tensor(ids)")
row("an empty prompt", lambda: generate(gpt2.apply, PARAMS, IDS[:, :0], 2), ValueError, "prompt", "[2, 0]", "<|endoftext|>")
row("temperature of 0 with a key", lambda: continued(2, key=KEY, temperature=0), ValueError, "temperature", "got 0", "leave out the key")
row("a negative temperature", lambda: continued(2, key=KEY, temperature=-1), ValueError, "temperature", "more than 0", "got -1", "leave out")
row("temperature without a key", lambda: continued(2, temperature=0.7), ValueError, "temperature=0.7", "key=random.key(seed)")
row("top_p above 1", lambda: continued(2, key=KEY, top_p=1.5), ValueError, "top_p", "at most 1", "1.5")
row("top_p as a text", lambda: continued(2, key=KEY, top_p="0.9"), TypeError, "top_p", "'0.9'", "float(top_p)")
row("top_k of a float", lambda: continued(2, key=KEY, top_k=4.5), TypeError, "top_k", "4.5", "round it")
row("do_sample", lambda: continued(2, do_sample=True), TypeError, "'do_sample'", "key=fnlm.random.key")
row("an int for the key of sampling", lambda: continued(2, key=3), TypeError, "key", "got 3", "random.key")
row("eos as a text", lambda: continued(2, eos="<|endoftext|>"), TypeError, "eos", "endoftext", "tokens_to_ids")
row("BERT generates", lambda: generate(B.masked_lm, BERT, IDS, 2), TypeError, "apply", "masked_lm", "gpt2.apply does")
row("the module for apply", lambda: generate(F.gpt2, PARAMS, IDS, 2), TypeError, "apply", "gpt2.apply", "module", "the order is")
row("0 beams", lambda: beam_search(gpt2.apply, PARAMS, IDS, 2, num_beams=0), ValueError, "num_beams", "got 0", "greedy")
row("a temperature without key to sample", lambda: sample(LOGITS, temperature=0.5), ValueError, "temperature=0.5", "key")
row("a pipeline of fp16", lambda: pipeline.load("tiny", dtype="fp16"), ValueError, "dtype", "'fp16'", "'bfloat16'")

# Tokenizers.
for name, tokenizer in (("GPT-2's", TEXT), ("BERT's", bert_small())):
    t: Any = tokenizer
    row(f"{name} decode of a batch", partial(t.decode, IDS), TypeError, "ids", "Tensor", "decode(row) for row in ids")
    row(f"{name} decode of a text", partial(t.decode, "low"), TypeError, "ids", "'l'", "encode")
    row(f"{name} decode of one id", partial(t.decode, 3), TypeError, "ids", "int", "[id]")
    row(f"{name} decode of an id of another", partial(t.decode, [10**6]), ValueError, "ids", "1000000", "made them")
    row(f"{name} encode of bytes", partial(t.encode, b"low"), TypeError, "text", "bytes", "decode bytes first")
    row(f"{name} encode of None", partial(t.encode, None), TypeError, "text", "NoneType")
    row(f"{name} encode of a list", partial(t.encode, ["low"]), TypeError, "text", "list", "encode_batch")
    row(f"{name} batch of one text", partial(t.encode_batch, "low"), ValueError, "texts", "'low'", "list of strings")
    row(f"{name} unknown token", partial(t.tokens_to_ids, ["zzz"]), ValueError, "tokens", "'zzz'", "encode")

# Leaves.
row("3 bits", lambda: quantize(PARAMS, bits=3), ValueError, "bits", "8 or 4", "got 3")
row("rank 0", lambda: lora(PARAMS, KEY, rank=0), ValueError, "rank", "got 0", "such as 8")
row("where selects nothing", lambda: lora(PARAMS, KEY, rank=2, where=lambda path, x: "c_attn" in path), ValueError, "where", "blocks.0.attention.qkv.weight", "named_leaves")
row("a path for where", lambda: lora(PARAMS, KEY, rank=2, where=wrong("attention")), TypeError, "where", "'attention'", "lambda path, leaf")
row("target_modules", lambda: F.leaves.lora(PARAMS, KEY, rank=2, target_modules=["q"]), TypeError, "'target_modules'", "where=")


# Files: `at` is a folder with models and vocabularies.
on_disk("no config", lambda at: gpt2.load(at / "bare"), FileNotFoundError, "config.json is missing", "copy that there")
on_disk("a vocabulary for a model", lambda at: gpt2.load(at / "words"), FileNotFoundError, "model.safetensors is missing", "copy the weights there")
on_disk("a model for a vocabulary", lambda at: bpe.load(at / "bert"), FileNotFoundError, "bert", "vocab.json+merges.txt", "put them there")
on_disk("a folder of another family", lambda at: gpt2.load(at / "bert"), ValueError, "config.json", "'bert', not 'gpt2'", "module of that family")
on_disk("a .bin of another family", lambda at: gpt2.load(at / "old" / "pytorch_model.bin"), ValueError, "'bert', not 'gpt2'", "module of that family")
on_disk("an old name, offline", lambda at: bert.load("bert-base-uncased"), FileNotFoundError, "'bert-base-uncased'", "HF_HUB_OFFLINE is set", "load that")
on_disk("a misspelled name", lambda at: gpt2.load("tinny"), FileNotFoundError, "'tinny'", "is 'tiny' meant?")
on_disk("no name", lambda at: F.gpt2.load(None), TypeError, "name_or_path", "'gpt2'", "NoneType", "needs no load")
on_disk("an empty name", lambda at: gpt2.load(""), FileNotFoundError, "''", "give a directory")
on_disk("no such folder", lambda at: gpt2.load("/no/such/folder"), FileNotFoundError, "'/no/such/folder'", "give a directory")
on_disk("cache_dir", lambda at: B.load(at / "bert", cache_dir="x"), TypeError, "'cache_dir'", "HF_HUB_CACHE")
on_disk("num_labels", lambda at: B.load(at / "bert", num_labels=3), TypeError, "'num_labels'", "config.json")
on_disk("state_dict", lambda at: B.load(at / "bert", state_dict={}), TypeError, "'state_dict'", "give the file")
on_disk("map_location", lambda at: B.load(at / "bert", map_location="cpu"), TypeError, "'map_location'", "fnlm.tree.to")
on_disk("torch_dtype", lambda at: B.load(at / "bert", torch_dtype="auto"), TypeError, "'torch_dtype'", "fnlm.tree.cast")
on_disk("do_lower_case", lambda at: F.tokenize.bert.load(at / "bert", do_lower_case=True), TypeError, "'do_lower_case'", "lower_case")
on_disk("no vocabulary", lambda at: wordpiece.load(at / "bert"), FileNotFoundError, "vocab.txt", "put them there")
on_disk("heads that the file lacks", lambda at: bert.load(at / "bert", heads=("masked_lm",)), ValueError, "masked_lm", "key=fnlm.random.key(seed)")
on_disk("a head misspelled", lambda at: bert.load(at / "bert", heads=("mlm",)), ValueError, "heads=('mlm',)", "'masked_lm'")
on_disk("a head that was not loaded", lambda at: bert.masked_lm(bert.load(at / "bert"), IDS), KeyError, "'masked_lm'", "heads=('masked_lm',)")
on_disk("an int for the key of heads", lambda at: B.load(at / "bert", heads=("masked_lm",), key=0), TypeError, "key", "got 0", "random.key(0)")
on_disk("a dialect misspelled", lambda at: gpt2.save(PARAMS, at / "new", dialect="huggingface"), ValueError, "dialect='huggingface'", "transformers, pytorch-pretrained-bert")
on_disk("a dialect by position", lambda at: M.save(PARAMS, at / "new", "transformers"), TypeError, "3 were given", "by name dialect")
on_disk("saved over a file", lambda at: gpt2.save(PARAMS, at / "file"), FileExistsError, "file", "path of a directory")
on_disk("the folder before params", lambda at: M.save(at / "new", PARAMS), TypeError, "params", "new", "gpt2.load")
on_disk("params of BERT saved", lambda at: gpt2.save(BERT, at / "new"), TypeError, "params", "those of bert", "that module")
on_disk("adapters saved", lambda at: gpt2.save(lora(PARAMS, KEY, rank=1), at / "new"), ValueError, "qkv.weight", "LowRank", "fnlm.leaves.merge")
on_disk("an ensemble saved", lambda at: gpt2.save(tree.stack([PARAMS] * 2), at / "new"), ValueError, "embed.token", "[2, 50, 12]", "[50, 12]")
on_disk("BERT as a pipeline", lambda at: pipeline.load(at / "bert"), ValueError, "bert is not a causal", "GPT-2")
# fmt: on


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, a model without config, a vocabulary and a file."""
    folder = tmp_path_factory.mktemp("mistakes")
    for name in ("gpt2", "bare"):
        gpt2.save(PARAMS, folder / name)
    (folder / "bare" / "config.json").unlink()
    bert.save(BERT, folder / "bert")
    bert.save(BERT, folder / "old", dialect="pytorch-pretrained-bert")
    TEXT.save(folder / "words")
    (folder / "file").write_text("a file")
    return folder


@pytest.mark.parametrize("mistake", FILES, ids=lambda mistake: mistake.name)
def test_errors_of_files(mistake: Mistake, at: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(mistake.error) as caught:
        mistake.wrong(at)
    held(caught.value, mistake)


@pytest.mark.parametrize("mistake", ROWS, ids=lambda mistake: mistake.name)
def test_the_error_names_argument_value_and_remedy(mistake: Mistake) -> None:
    with pytest.raises(mistake.error) as caught:
        mistake.wrong()
    held(caught.value, mistake)


def held(error: Exception, mistake: Mistake) -> None:
    message = str(error.args[0] if isinstance(error, KeyError) else error)
    assert type(error) is mistake.error
    assert re.search(".*?".join(map(re.escape, mistake.holds)), message, re.DOTALL), message
    if not is_ours(error):
        answers = [line for line in PAGE.splitlines() if all(x in line for x in mistake.holds)]
        assert answers, f"docs/mistakes.md lacks {message}"


def is_ours(error: Exception) -> bool:
    """Whether a line of fnlm raised the error."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    assert last is not None
    return "/fnlm/" in last.tb_frame.f_code.co_filename.replace("\\", "/")


def test_there_are_enough_of_them() -> None:
    names = [mistake.name for mistake in ROWS + FILES]
    assert len(set(names)) == len(names) >= 60
