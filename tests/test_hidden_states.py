"""`hidden_states` and `layers` of every family: the same states, and those of the peers."""

import weakref
from typing import Any
from unittest import mock

import pytest
import torch
from families import BERT, FAMILIES, GPT, GPT2, TRANSFO_XL, Family, make_batch, make_params
from peers import hf, ppb_transfo_xl, quiet
from torch import Tensor
from torch.func import vmap

from fnlm import _causal, bert, random, transfo_xl, tree
from fnlm.layers import dropout, dropout_keys, layer_norm
from fnlm.params import _rename

each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
causal = pytest.mark.parametrize("family", [GPT, GPT2], ids=lambda family: family.name)


def states(family: Family, params: Any, ids: Tensor, *rest: Any, **options: Any) -> Any:
    """The last hidden states and those of all layers, without the new caches."""
    results = [
        getattr(family.module, name)(params, ids, *rest, **options)
        for name in ("hidden_states", "layers")
    ]
    return results if family is BERT else [result for result, _ in results]


def finished(family: Family, params: Any, x: Tensor, key: Any = None) -> Tensor:
    """What a family makes of the state after its last block."""
    if family is GPT2:
        return layer_norm(x, **params["norm"], eps=params["config"].layer_norm_epsilon)
    if family is TRANSFO_XL:
        return dropout(x, params["config"].dropout, dropout_keys(key, 3)[2])
    return x


@each
@pytest.mark.parametrize("keyed", [False, True])
def test_the_last_layer_makes_the_hidden_states(family: Family, keyed: bool) -> None:
    params, (ids, _) = make_params(family), make_batch(family)
    key = random.key(5) if keyed else None
    last, every = states(family, params, ids, key=key)
    assert len(every) == len(params["blocks"])
    assert {x.shape for x in every} == {last.shape} == {(*ids.shape, 36)}
    assert finished(family, params, every[-1], key).equal(last)


@each
def test_layers_end_where_a_model_of_fewer_blocks_does(family: Family) -> None:
    """With and without dropout: the key of a block does not depend on those after it."""
    params, (ids, _) = make_params(family), make_batch(family)
    for key in (None, random.key(3)):
        _, every = states(family, params, ids, key=key)
        for depth in range(1, 3):
            start = params | {"blocks": params["blocks"][:depth]}
            assert every[depth - 1].equal(states(family, start, ids, key=key)[1][-1])


@each
def test_layers_return_the_new_state_of_hidden_states(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family)
    if family is BERT:
        return
    _, state = family.module.layers(params, ids)
    _, expected = family.module.hidden_states(params, ids)
    for a, b in zip(tree.leaves(state), tree.leaves(expected), strict=True):
        assert a.equal(b)


@each
def test_layers_of_a_text_in_pieces_equal_those_of_the_whole(family: Family) -> None:
    params, (ids, _) = tree.cast(make_params(family), torch.float64), make_batch(family)
    if family is BERT:
        return
    start = family.module.init_mems(params, 3, empty=True) if family is TRANSFO_XL else None
    whole, _ = family.module.layers(params, ids[:, :5], start)
    first, state = family.module.layers(params, ids[:, :3], start)
    second, _ = family.module.layers(params, ids[:, 3:5], state)
    for a, b, c in zip(first, second, whole, strict=True):
        torch.testing.assert_close(torch.cat([a, b], 1), c, atol=1e-9, rtol=1e-9)


@each
def test_layers_of_rows_equal_those_of_the_batch(family: Family) -> None:
    """Under vmap, and with a key for each row."""
    params, (ids, _) = tree.cast(make_params(family), torch.float64), make_batch(family)
    for keys in (None, random.split(random.key(0), 3)):

        def one(row: Tensor, key: Any = None) -> Any:
            return states(family, params, row, key=key)

        found = vmap(one)(ids) if keys is None else vmap(one)(ids, keys)
        expected = states(family, params, ids, key=keys)
        for a, b in zip(tree.leaves(found), tree.leaves(expected), strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@causal
def test_only_layers_holds_the_state_after_every_block(family: Family) -> None:
    """Without gradients; a block takes one state and makes another."""
    params, (ids, _) = make_params(family), make_batch(family)
    params["blocks"] = params["blocks"] * 3
    made: list[weakref.ref[Tensor]] = []
    held: list[int] = []
    block = family.module._block

    def watched(*args: Any) -> Any:
        held.append(sum(state() is not None for state in made))
        x, new = block(*args)
        made.append(weakref.ref(x))
        return x, new

    with torch.no_grad(), mock.patch.object(family.module, "_block", watched):
        family.module.apply(params, ids)
        assert held == [0, 1, 1, 1, 1, 1]
        family.module.layers(params, ids)
    assert held[-1] == 5


@pytest.mark.parametrize("lead", [3, (2, 3), (), [1]])
def test_states_start_for_any_leading_axes(lead: Any) -> None:
    """As an int, or as sizes."""
    sizes = (lead,) if isinstance(lead, int) else tuple(lead)
    ids = torch.randint(41, (*sizes, 4))
    params = make_params(GPT2)
    cache = GPT2.module.init_cache(params, lead, 9)
    assert cache.valid.shape == (*sizes, 9) and cache.keys[1].shape == (*sizes, 3, 9, 12)
    found, _ = GPT2.module.hidden_states(params, ids, cache)
    torch.testing.assert_close(found, GPT2.module.hidden_states(params, ids)[0])
    params = make_params(TRANSFO_XL)
    for empty in (False, True):
        mems = transfo_xl.init_mems(params, lead, empty=empty)
        assert mems.hidden[1].shape == (*sizes, 5, 36) and mems.valid.any() != empty
        assert transfo_xl.hidden_states(params, ids, mems)[0].shape == (*sizes, 4, 36)


# The peers


def peer_of(family: Family, params: Any) -> Any:
    """The model without heads of transformers, with our numbers."""
    kinds = {"gpt2": "GPT2", "gpt": "OpenAIGPT", "bert": "Bert"}
    kind, content = kinds[family.name], params["config"].to_dict()
    if family is GPT:
        content |= {"vocab_size": params["config"].total_tokens_embeddings}
    with quiet():
        config = getattr(hf(), f"{kind}Config")(**content, attn_implementation="eager")
        module = getattr(hf(), f"{kind}Model")(config).double().eval()
    leaves = {name: x for name, x in params.items() if name not in ("config", "heads")}
    dialect = family.names.dialects[0]
    foreign = _rename.to_foreign(leaves, dialect)
    foreign = {name.removeprefix(dialect.prefix): x for name, x in foreign.items()}
    missing, _ = module.load_state_dict(foreign, strict=False)
    assert all("position_ids" in name or "attn.bias" in name for name in missing)
    return module


@pytest.mark.parametrize("family", [GPT, GPT2, BERT], ids=lambda family: family.name)
def test_layers_equal_those_of_transformers(family: Family) -> None:
    params, (ids, mask) = make_params(family, dtype=torch.float64), make_batch(family)
    with torch.no_grad():
        peer = peer_of(family, params)
        theirs = peer(ids, attention_mask=mask, output_hidden_states=True).hidden_states
        rest: tuple[Any, ...] = (None, mask)  # token types or a cache, and the mask
        if family is GPT:  # the peer counts padding, too
            rest = (None, mask, torch.arange(ids.shape[-1]))
        if family is GPT2:
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            theirs = peer(
                ids, attention_mask=mask, position_ids=positions, output_hidden_states=True
            ).hidden_states
        last, every = states(family, params, ids, *rest)
    ours = [*every[:-1], last]  # the peer's last states are those after its last norm
    assert len(theirs) == 1 + len(ours)
    for a, b in zip(ours, theirs[1:], strict=True):
        torch.testing.assert_close(a[mask], b[mask], atol=1e-9, rtol=1e-9)


def test_layers_are_the_memory_of_pytorch_pretrained_bert() -> None:
    """It remembers the input of every block but the first, which is the state after the former."""
    config = transfo_xl.Config.from_dict(
        TRANSFO_XL.config.to_dict() | {"layer_norm_epsilon": 1e-12, "tie_projs": None, "mem_len": 7}
    )
    family = TRANSFO_XL._replace(config=config)
    params, (ids, _) = make_params(family, dtype=torch.float64), make_batch(family)
    module = ppb_transfo_xl(config.to_dict()).double()
    leaves = {name: leaf for name, leaf in params.items() if name != "config"}
    foreign = _rename.to_foreign(leaves, TRANSFO_XL.names.dialects[1])
    module.load_state_dict(foreign, strict=False)
    made: list[Any] = []
    module.transformer.register_forward_hook(lambda _module, _args, result: made.extend(result))
    with torch.no_grad():
        module(ids)
    last, mems = made
    found, every = states(family, params, ids)
    for a, b in zip([*every[:-1], found], [*mems[1:2], last], strict=True):
        b = b if b is last else b.transpose(0, 1)
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


# What another family needs of the shared code: numbers and functions


def test_a_block_of_any_family_runs_with_a_cache() -> None:
    """One attention of one head, with a config of its own: cached pieces equal the whole."""
    weights = tuple({"x": random.normal(random.key(i), (8, 8))} for i in range(3))
    table = random.normal(random.key(9), (11, 8))
    sizes = _causal.Sizes(3, 1, 8, 16, "max_position_embeddings")
    ids = torch.randint(11, (2, 7))

    def block(x: Tensor, weights: Any, context: Any, config: float, key: Any) -> Any:
        q, k, v = ((x @ weights["x"]).unsqueeze(-3),) * 3
        out, new = _causal.attend_cached(q, k, v, context)
        return x + config * out.squeeze(-3), new

    def run(ids: Tensor, cache: Any = None) -> Any:
        tokens = _causal.begin(ids, cache, None, None, sizes)
        return _causal.run(block, table[ids], weights, tokens, 0.5, (None,) * 3, keep=1)

    (whole,), _ = run(ids)
    (first,), cache = run(ids[:, :4], _causal.init_cache(sizes, table, 2, 16))
    (second,), cache = run(ids[:, 4:], cache)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert int(cache.length) == 7
    with pytest.raises(ValueError, match="17 tokens.*max_position_embeddings=16"):
        run(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(ValueError, match="capacity must be from 1 to max_position_embeddings=16"):
        _causal.init_cache(sizes, table, 2, 17)


def test_bert_without_a_pooler_has_hidden_states() -> None:
    params, (ids, _) = make_params(BERT), make_batch(BERT)
    del params["pooler"]
    with pytest.raises(KeyError, match="use `hidden_states`"):
        bert.apply(params, ids)
    assert bert.hidden_states(params, ids).shape == (3, 7, 36)
