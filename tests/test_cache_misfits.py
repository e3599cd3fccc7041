"""What does not fit as a cache or memory is named; what is small or empty fits."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from families import BERT, FAMILIES, GPT, GPT2, TRANSFO_XL, Family, make_batch, make_params
from torch import Tensor

from fnlm import bert, random, transfo_xl, tree
from fnlm.generate import State, generate, take_rows
from fnlm.layers import cache as kv

IDS, MASK = make_batch(GPT2, 2, 9)
XL = make_params(TRANSFO_XL)
CAUSAL = pytest.mark.parametrize("family", [GPT2, GPT], ids=lambda f: f.name)
Change = Callable[[Any, Any], Any]  # what stands for a cache, from logits and the right cache


def first_keys(change: Callable[[Tensor], Tensor]) -> Change:
    """Change the keys of the last layer alone."""

    def changed(_: Tensor, cache: Any) -> Any:
        *others, last = cache.segments[0].keys
        segment = cache.segments[0]._replace(keys=(*others, change(last)))
        return cache._replace(segments=(segment,))

    return changed


# Who is no cache, and what the error says.
STRANGE: dict[str, tuple[Change, type[Exception], list[str]]] = {
    "logits": (lambda logits, cache: logits, TypeError, ["Cache", "float32 [2, 4, 41]"]),
    "the whole result": (
        lambda logits, cache: (logits, cache),
        TypeError,
        ["a tuple of ['Tensor', 'Cache']", "beside its logits"],
    ),
    "pairs of keys and values": (
        lambda logits, cache: tuple(zip(*cache.segments[0], strict=True)),
        TypeError,
        ["a tuple of ['tuple', 'tuple']", "append(None, keys, values, valid)"],
    ),
    "segments": (lambda logits, cache: cache.segments, TypeError, ["Cache", "'Segment'"]),
    "pairs in a cache": (
        lambda logits, cache: kv.Cache(tuple(zip(*cache.segments[0], strict=True)), cache.valid),
        TypeError,
        ["Cache"],
    ),
    "a number": (lambda logits, cache: 3, TypeError, ["Cache", "int"]),
    "a dict": (lambda logits, cache: cache._asdict(), TypeError, ["Cache", "dict"]),
    "Mems": (
        lambda logits, cache: transfo_xl.init_mems(XL, 2),
        TypeError,
        ["Cache", "Mems"],
    ),
    "another type": (
        lambda logits, cache: tree.cast(cache, torch.float16),
        TypeError,
        ["float16", "float32", "tree.cast"],
    ),
    "another device": (
        lambda logits, cache: tree.to(cache, "meta"),
        ValueError,
        ["cache", "meta", "cpu", "tree", "to"],
    ),
    "mask on another device": (
        lambda logits, cache: cache._replace(valid=cache.valid.to("meta")),
        ValueError,
        ["cache.valid", "meta", "cpu"],
    ),
    "no layers": (lambda logits, cache: cache._replace(segments=()), ValueError, ["(0,)"]),
    "other rows": (
        lambda logits, cache: tree.map(lambda x: x[:1], cache),
        ValueError,
        ["cache is for", "(2, 1, 3, 12)", "(2, 2, 3, 12)", "this batch"],
    ),
    "another axis": (
        lambda logits, cache: tree.map(lambda x: x[None], cache),
        ValueError,
        ["cache is for", "(2, 1, 2, 3, 12)"],
    ),
    "one layer of another type": (
        first_keys(Tensor.double),
        ValueError,
        ["cache holds", "float64", "float32"],
    ),
    "one layer shorter": (
        first_keys(lambda x: x[..., :-1, :]),
        ValueError,
        ["cache holds", "[2, 3, 3, 12]", "[2, 3, 4, 12]"],
    ),
    "a key for no value": (
        lambda logits, cache: cache._replace(
            segments=(cache.segments[0]._replace(values=cache.segments[0].values[:1]),)
        ),
        ValueError,
        ["keys of 2 layers", "values of 1"],
    ),
    "another number of tokens": (
        lambda logits, cache: cache._replace(valid=cache.valid[:, :3]),
        ValueError,
        ["cache.valid", "[2, 4]", "[2, 3]"],
    ),
    "a mask of numbers": (
        lambda logits, cache: cache._replace(valid=cache.valid.float()),
        ValueError,
        ["cache.valid", "bool", "float32"],
    ),
    "a fixed cache of another type": (
        lambda logits, cache: tree.cast(
            GPT2.module.init_cache(make_params(GPT2), 2, 9), torch.half
        ),
        TypeError,
        ["float16", "float32"],
    ),
    "a length that is no number": (
        lambda logits, cache: GPT2.module.init_cache(make_params(GPT2), 2, 9)._replace(length=3),
        ValueError,
        ["cache.length", "int64"],
    ),
}


def said(
    error: type[Exception], words: list[str], task: Callable[..., Any], *args: Any, **more: Any
) -> None:
    with pytest.raises(error) as caught:
        task(*args, **more)
    assert all(word in str(caught.value) for word in words), caught.value


@CAUSAL
@pytest.mark.parametrize("name", STRANGE)
def test_invalid_caches_are_named(name: str, family: Family) -> None:
    params = make_params(family)
    change, error, words = STRANGE[name]
    given = change(*family.module.apply(params, IDS[:, :4]))
    for task in (family.module.apply, family.module.hidden_states):
        said(error, words, task, params, IDS[:, 4:], given)
    said(error, words, family.module.double_heads, params, IDS[:, 4:], torch.zeros(2).long(), given)


XL_STRANGE: dict[str, tuple[Change, type[Exception], list[str]]] = {
    "scores": (lambda scores, mems: scores, TypeError, ["mems", "Tensor", "init_mems"]),
    "the whole result": (lambda scores, mems: (scores, mems), TypeError, ["mems", "tuple of 2"]),
    "pytorch-pretrained-bert's list": (lambda scores, mems: list(mems.hidden), TypeError, ["mems", "list"]),
    "a cache": (
        lambda scores, mems: GPT2.module.apply(make_params(GPT2), IDS)[1],
        TypeError,
        ["mems", "Cache"],
    ),
    "another type": (
        lambda scores, mems: tree.cast(mems, torch.float16),
        TypeError,
        ["mems", "float16", "float32", "tree.cast"],
    ),
    "another device": (
        lambda scores, mems: tree.to(mems, "meta"),
        ValueError,
        ["mems", "meta", "cpu", "tree.to"],
    ),
    "a mask of numbers": (
        lambda scores, mems: mems._replace(valid=mems.valid.float()),
        TypeError,
        ["mems.valid", "bool", "float32"],
    ),
    "other rows": (
        lambda scores, mems: tree.map(lambda x: x[:1], mems),
        ValueError,
        ["mems", "[1, 5, 36]", "[2, 5, 36]"],
    ),
    "fewer layers": (
        lambda scores, mems: mems._replace(hidden=mems.hidden[:1]),
        ValueError,
        ["1 layers", "2 of"],
    ),
    "no layers": (lambda scores, mems: mems._replace(hidden=()), ValueError, ["0 layers", "2 of"]),
}


@pytest.mark.parametrize("name", XL_STRANGE)
def test_invalid_mems_are_named(name: str) -> None:
    change, error, words = XL_STRANGE[name]
    given = change(*transfo_xl.apply(XL, IDS[:, :4]))
    for task in (transfo_xl.apply, transfo_xl.hidden_states):
        said(error, words, task, XL, IDS[:, 4:], given)
    said(error, words, transfo_xl.negative_log_likelihood, XL, IDS[:, 4:], IDS[:, 4:], given)


@CAUSAL
def test_the_remedies_of_the_errors_work(family: Family) -> None:
    params, apply = make_params(family), family.module.apply
    _, cache = apply(params, IDS[:, :4])
    expected, _ = apply(params, IDS[:, 4:], cache)
    pairs = tuple(zip(*cache.segments[0], strict=True))
    keys, values = zip(*pairs, strict=True)
    again = kv.append(None, keys, values, cache.valid)
    assert apply(params, IDS[:, 4:], again)[0].equal(expected)
    low = tree.cast(cache, torch.bfloat16)
    back = apply(params, IDS[:, 4:], tree.cast(low, torch.float32))[0]
    torch.testing.assert_close(back, expected, atol=0.2, rtol=0.2)


@CAUSAL
@pytest.mark.parametrize("fixed", [False, True])
def test_double_heads_give_their_cache(fixed: bool, family: Family) -> None:
    params, module = make_params(family), family.module
    ids, at = IDS.reshape(1, 2, -1), torch.tensor([[8, 7]])
    lm, choice, whole = module.double_heads(params, ids, at)
    cache = module.init_cache(params, (1, 2), 9) if fixed else None
    first, _, cache = module.double_heads(params, ids[..., :5], at * 0, cache)
    rest, later, grown = module.double_heads(params, ids[..., 5:], at - 5, cache)
    torch.testing.assert_close(torch.cat([first, rest], -2), lm, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(later, choice, atol=1e-5, rtol=1e-5)
    assert type(grown) is (kv.FixedCache if fixed else kv.Cache) and kv.length(whole) == 9


# Parameters with another number of blocks than their config says.


def with_blocks(family: Family, count: int) -> Any:
    params = make_params(family)
    return {**params, "blocks": (params["blocks"] * 2)[:count]}


def as_configured(params: Any) -> Any:
    """The same parameters with a config that says how many blocks there are."""
    config = params["config"]
    name = "n_layer" if hasattr(config, "n_layer") else "num_hidden_layers"
    return {
        **params,
        "config": dataclasses.replace(config, **{name: len(params["blocks"])}),
    }


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("key", [None, random.key(4)], ids=["", "dropout"])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_layers_are_those_of_the_tree(family: Family, key: Any, count: int) -> None:
    params = with_blocks(family, count)
    for task in family.tasks.values():
        found, expected = (task(p, IDS, MASK, key=key) for p in (params, as_configured(params)))
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            assert a.equal(b)


@CAUSAL
@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_cache_of_fewer_or_more_layers(count: int, family: Family) -> None:
    params, module = with_blocks(family, count), family.module
    expected, whole = module.apply(params, IDS)
    for begun in (None, module.init_cache(params, 2, 9)):
        _, cache = module.apply(params, IDS[:, :4], begun)
        _, cache = module.apply(params, IDS[:, 4:5], cache)
        found, _ = module.apply(params, IDS[:, 5:], cache)
        torch.testing.assert_close(found, expected[:, 5:], atol=1e-5, rtol=1e-5)
    rows = torch.tensor([1, 1])
    found, _ = module.apply(params, IDS[rows, 5:], kv.take_rows(kv.truncate(whole, 5), rows))
    torch.testing.assert_close(found, expected[rows, 5:], atol=1e-5, rtol=1e-5)
    other = module.apply(make_params(family), IDS[:, :5])[1]
    if count != len(make_params(family)["blocks"]):
        with pytest.raises(ValueError, match=re.escape(f"need ({count}, 2, 3, 12)")):
            module.apply(params, IDS[:, 5:], other)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_memory_of_fewer_or_more_layers(count: int) -> None:
    params = with_blocks(TRANSFO_XL, count)
    start = transfo_xl.init_mems(params, 2)
    _, mems = transfo_xl.apply(params, IDS[:, :4], start)
    assert len(start.hidden) == len(mems.hidden) == count
    found, _ = transfo_xl.apply(params, IDS[:, 4:5], mems)
    assert found.isfinite().all()


def test_bert_without_blocks_encodes_the_embeddings() -> None:
    params = with_blocks(BERT, 0)
    hidden, pooled = bert.apply(params, IDS, mask=MASK)
    embed, pooler = params["embed"], params["pooler"]
    x = embed["token"][IDS] + embed["position"][: IDS.shape[1]] + embed["token_type"][0]
    x = torch.nn.functional.layer_norm(
        x, x.shape[-1:], embed["norm"]["scale"], embed["norm"]["bias"], 1e-3
    )
    torch.testing.assert_close(hidden, x)
    torch.testing.assert_close(pooled, torch.tanh(x[:, 0] @ pooler["weight"] + pooler["bias"]))
    assert bert.layers(params, IDS) == ()


# Nothing at all.


@CAUSAL
@pytest.mark.parametrize("fixed", [False, True])
def test_no_tokens_change_nothing(fixed: bool, family: Family) -> None:
    params, apply = make_params(family), family.module.apply
    begun = family.module.init_cache(params, 2, 9) if fixed else None
    empty_logits, none = apply(params, IDS[:, :0], begun)
    logits, cache = apply(params, IDS, none)
    same_logits, same = apply(params, IDS[:, :0], cache)
    assert empty_logits.shape == same_logits.shape == (2, 0, 41)
    torch.testing.assert_close(logits, apply(params, IDS)[0], atol=1e-5, rtol=1e-5)
    for a, b in zip(tree.leaves(same), tree.leaves(cache), strict=True):
        assert a.equal(b)


@CAUSAL
def test_caches_of_no_tokens_and_no_rows(family: Family) -> None:
    params, apply = make_params(family), family.module.apply
    expected, cache = apply(params, IDS)
    none = kv.truncate(cache, 0)
    some = kv.take_rows(none, torch.tensor([1, 0, 1]))
    logits, _ = apply(params, IDS[torch.tensor([1, 0, 1])], some)
    torch.testing.assert_close(logits, expected[[1, 0, 1]], atol=1e-5, rtol=1e-5)
    rowless = kv.take_rows(cache, torch.zeros(0, dtype=torch.int64))
    logits, grown = apply(params, IDS[:0, :3], rowless)
    assert logits.shape == (0, 3, 41) and grown.valid.shape == (0, 12)
    assert apply(params, IDS[:0])[0].shape == (0, 9, 41)


def test_files_without_rows_or_first_tokens_are_named() -> None:
    params = make_params(GPT2)
    logits, cache = GPT2.module.apply(params, IDS)
    fixed = GPT2.module.init_cache(params, 2, 9)
    said(TypeError, ["Cache", "float32 [2, 9, 41]"], kv.take_rows, logits, torch.tensor([0]))
    said(TypeError, ["truncate", "FixedCache"], kv.truncate, fixed, 2)
    said(TypeError, ["truncate", "a tuple of"], kv.truncate, (logits, cache), 2)
    said(TypeError, ["mask", "Transformer-XL"], generate, transfo_xl.apply, XL, IDS, 2, mask=MASK)


def test_rows_of_a_fixed_cache() -> None:
    params, rows = make_params(GPT2), torch.tensor([1, 1, 0])
    expected, _ = GPT2.module.apply(params, IDS)
    _, cache = GPT2.module.apply(params, IDS[:, :5], GPT2.module.init_cache(params, 2, 9))
    for chosen in (kv.take_rows(cache, rows), take_rows(State(cache, expected[:, -1]), rows).cache):
        found, _ = GPT2.module.apply(params, IDS[rows, 5:], chosen)
        torch.testing.assert_close(found, expected[rows, 5:], atol=1e-5, rtol=1e-5)
