"""`fnlm.taps`: reading and writing at the sites of every family, under every transform.

What is read is held to computations by hand in tests/test_taps_by_hand.py.
"""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from families import BERT, FAMILIES, GPT2, IDS, TRANSFO_XL, VARIANTS, Family, make_batch
from families import make_params as made
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from fnlm import bert, gpt2, random, taps, transfo_xl, tree
from fnlm.generate import generate
from fnlm.layers._tap import is_read
from fnlm.layers.attention import SLICE
from fnlm.train import adamw, init_state, train_step
from fnlm.transforms import per_example_grads

each = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
HIDDEN = "blocks.0.out"


def make_params(family: Family) -> Any:
    return made(family, dtype=torch.float64)


PARAMS = make_params(GPT2)
IDS_OF_TWO = make_batch(GPT2, 2, 5)[0]


def output(family: Family) -> Callable[..., Tensor]:
    """The logits, or pooled output, of a family as a function of parameters and ids."""

    def last(params: Any, ids: Tensor) -> Tensor:
        result = family.module.apply(params, ids)
        return result[1] if family is BERT else result[0]

    return last


LOGITS = output(GPT2)


def equal(a: Any, b: Any) -> bool:
    pairs = zip(tree.leaves(a), tree.leaves(b), strict=True)
    return tree.structure(a) == tree.structure(b) and all(torch.equal(x, y) for x, y in pairs)


def close(a: Any, b: Any) -> None:
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(tree.leaves(a), tree.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-10)


def is_plain(tree_: Any) -> bool:
    """Whether no tensor belongs to a transform that is over, and no entry "taps" is left."""
    paths = tree.named_leaves(tree_)
    wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    return not any("taps" in path.split(".") or wrapped(x) for path, x in paths)


# Names


@each
def test_sites_are_those_that_the_variants_reach(family: Family) -> None:
    names = taps.sites(family.module, family.config)
    params, (ids, mask) = make_params(family), make_batch(family)

    def is_reached(site: str) -> bool:
        for task in family.tasks.values():
            try:
                taps.write(task, {site: lambda x: x})(params, ids, mask)
            except ValueError as error:
                assert "was reached" in str(error)
            else:
                return True
        return False

    assert len(set(names)) == len(names) and all(map(is_reached, names))


@each
def test_sites_depend_on_the_number_of_blocks(family: Family) -> None:
    deeper = dataclasses.replace(family.config, **{family.config.depth: 3})
    found = taps.sites(family.module, deeper)
    assert sum(site.endswith("attention.weights") for site in found) == 3
    assert next(site for site in found if site.startswith("blocks.2.")) == "blocks.2.in"
    assert set(taps.sites(family.module, family.config)) < set(found)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("blocks.*.out", ["blocks.0.out", "blocks.1.out"]),
        ("blocks.1.*", ["blocks.1.in", "blocks.1.mid", "blocks.1.out"]),
        ("**.weights", ["blocks.0.attention.weights", "blocks.1.attention.weights"]),
        ("blocks.**.hidden", ["blocks.0.mlp.hidden", "blocks.1.mlp.hidden"]),
        ("**.hidden", ["blocks.0.mlp.hidden", "blocks.1.mlp.hidden", "hidden"]),
        ("*", ["hidden", "logits"]),
        ("hidden", ["hidden"]),
    ],
)
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert list(taps.read(LOGITS, pattern)(PARAMS, IDS_OF_TWO)[1]) == expected


@pytest.mark.parametrize("edit", [False, True], ids=["read", "write"])
@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("blocks.0.atention.out", "blocks.0.attention.out"),
        ("blocks.2.out", "blocks.1.out"),
        ("logit", "logits"),
        ("blocks.0.attention.weight", "blocks.0.attention.weights"),
        ("taps.out", "are"),
    ],
)
def test_an_unknown_site_names_near_ones(name: str, near: str, edit: bool) -> None:
    call = taps.write(LOGITS, {name: torch.zeros(2)}) if edit else taps.read(LOGITS, name)
    with pytest.raises(ValueError, match=rf"no site '{name}' was reached.*{near}"):
        call(PARAMS, IDS_OF_TWO)


def test_a_pattern_without_sites_is_an_error() -> None:
    with pytest.raises(ValueError, match="no site 'blocks.*.norm' was reached"):
        taps.read(LOGITS, "blocks.*.norm")(PARAMS, IDS_OF_TWO)
    with pytest.raises(ValueError, match="no site 'blocks.*.norm' was reached"):
        taps.write(LOGITS, {"blocks.*.norm": torch.zeros_like})(PARAMS, IDS_OF_TWO)


def test_a_site_that_the_function_does_not_reach_is_an_error() -> None:
    with pytest.raises(ValueError, match="no site 'logits' was reached"):
        taps.read(gpt2.hidden_states, "logits")(PARAMS, IDS_OF_TWO)
    with pytest.raises(ValueError, match="reached no site at all"):
        taps.read(lambda params: gpt2.apply(PARAMS, IDS_OF_TWO), "logits")(PARAMS)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: taps.read(LOGITS), ValueError, "needs the name of a site"),
        (lambda: taps.read(LOGITS, cast(Any, 3)), TypeError, "got int"),
        (lambda: taps.read(LOGITS, "blocks.0*.out"), ValueError, "a whole part"),
        (lambda: taps.write(LOGITS, {}), ValueError, "needs the name of a site"),
        (lambda: taps.write(LOGITS, cast(Any, {"hidden": 0.0})), TypeError, "got float"),
        (lambda: taps.write(LOGITS, {"*": torch.ones(1)}), ValueError, "names several"),
    ],
)
def test_mistakes_are_named(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("as_function", [False, True], ids=["tensor", "function"])
@pytest.mark.parametrize(
    ("new", "error", "message"),
    [
        (torch.zeros(5, 36).double(), ValueError, r"shape \[2, 5, 36\], .* \[5, 36\]"),
        (torch.zeros(2, 5, 36), TypeError, r"dtype torch.float64, .* torch.float32"),
        (torch.zeros(2, 5, 36, device="meta").double(), ValueError, "on cpu, .* on meta"),
    ],
)
def test_what_does_not_fit_is_named(
    new: Tensor, error: type[Exception], message: str, as_function: bool
) -> None:
    edit = (lambda x: new) if as_function else new
    with pytest.raises(error, match=f"'{HIDDEN}' .*{message}"):
        taps.write(LOGITS, {HIDDEN: edit})(PARAMS, IDS_OF_TWO)


def test_a_function_that_returns_nothing_is_named() -> None:
    with pytest.raises(TypeError, match=f"'{HIDDEN}': .*NoneType"):
        taps.write(LOGITS, {HIDDEN: cast(Any, lambda x: None)})(PARAMS, IDS_OF_TWO)


@pytest.mark.parametrize("params", [None, {}, torch.ones(2), {"blocks": 3}, IDS_OF_TWO])
def test_parameters_come_first(params: Any) -> None:
    with pytest.raises(TypeError, match="must be the parameters of a model"):
        taps.read(LOGITS, HIDDEN)(params, IDS_OF_TWO)


def test_a_missing_leaf_is_named_as_ever() -> None:
    block = {k: v for k, v in PARAMS["blocks"][1].items() if k != "norm_2"}
    params = PARAMS | {"blocks": (PARAMS["blocks"][0], block)}
    with pytest.raises(ValueError, match=r"params have no leaf blocks.1.norm_2.scale"):
        taps.read(LOGITS, HIDDEN)(params, IDS_OF_TWO)


# Values


@pytest.mark.parametrize(("family", "name"), VARIANTS, ids=IDS)
@pytest.mark.parametrize("keyed", [False, True], ids=["plain", "dropout"])
def test_reading_and_writing_back_change_nothing(family: Family, name: str, keyed: bool) -> None:
    """With dropout, too, as all sites of a block are before it."""
    task, params, (ids, mask) = family.tasks[name], made(family), make_batch(family)
    key = random.key(3) if keyed else None
    expected = task(params, ids, mask, key=key)
    if family is TRANSFO_XL and name == "apply":  # two segments
        with pytest.raises(ValueError, match="'embed.token' is reached twice"):
            taps.read(task, "**")(params, ids, mask, key=key)
        same = taps.write(task, {"**": lambda x: x + 0})(params, ids, mask, key=key)
        assert equal(same, expected)
        return
    result, found = taps.read(task, "**")(params, ids, mask, key=key)
    assert equal(result, expected)
    assert found.keys() <= set(taps.sites(family.module, family.config))
    for site, x in found.items():
        assert equal(taps.write(task, {site: x})(params, ids, mask, key=key), expected), site
    assert equal(taps.write(task, found)(params, ids, mask, key=key), expected)


@each
@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (4,), (2, 1, 3)])
def test_awkward_shapes(family: Family, shape: tuple[int, ...]) -> None:
    """No example, one token, no batch axis, two of them."""
    params, ids = make_params(family), torch.ones(shape, dtype=torch.int64)
    result, found = taps.read(output(family), "**")(params, ids)
    assert result.equal(output(family)(params, ids))
    assert taps.write(output(family), found)(params, ids).equal(result)
    assert found["blocks.1.attention.heads"].shape[:-1] == (*shape[:-1], 3, shape[-1])
    assert found["blocks.1.attention.weights"].shape[:-1] == (*shape[:-1], 3, shape[-1])
    assert {x.shape for site, x in found.items() if site.endswith(".out")} == {(*shape, 36)}


@each
def test_zeros_are_an_ablation(family: Family) -> None:
    """As the parameters without that part compute."""
    params, (ids, _) = make_params(family), make_batch(family)

    def without(place: str) -> Any:
        zeroed = tree.map_with_path(lambda p, x: 0 * x if p.startswith(place) else x, params)
        return output(family)(zeroed, ids)

    for part in ("attention.out", "mlp.out"):
        place = f"blocks.1.{part}" if part == "attention.out" else "blocks.1.mlp.down"
        ablated = taps.write(output(family), {f"blocks.1.{part}": torch.zeros_like})(params, ids)
        close(ablated, without(place))
        assert (ablated - output(family)(params, ids)).abs().max() > 1e-3


@each
def test_a_head_without_values_is_a_head_without_weights(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family)
    out = params["blocks"][0]["attention"]["out"]
    matrix = out["weight"] if isinstance(out, dict) else out  # [H Dh, D]
    kept = torch.ones(3, 1, 1, dtype=torch.float64)
    kept[1] = 0
    matrix = (matrix.unflatten(0, (3, -1)) * kept).flatten(0, 1)
    block = params["blocks"][0]
    attention = block["attention"] | {
        "out": out | {"weight": matrix} if isinstance(out, dict) else matrix
    }
    pruned = params | {"blocks": (block | {"attention": attention}, params["blocks"][1])}
    ablated = taps.write(output(family), {"blocks.0.attention.heads": lambda x: x * kept})
    close(ablated(params, ids), output(family)(pruned, ids))


@each
def test_embeddings_in_place_of_ids(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family)
    others = make_batch(family, seed=1)[0]
    x = taps.read(output(family), "embed.token")(params, others)[1]["embed.token"]
    written = taps.write(output(family), {"embed.token": x})(params, ids)
    assert written.equal(output(family)(params, others)) and not ids.equal(others)


@each
def test_a_model_goes_on_from_what_is_written(family: Family) -> None:
    """One block alone is the model of that block."""
    params, (ids, _) = make_params(family), make_batch(family)
    x = taps.read(output(family), "blocks.1.in")(params, ids)[1]["blocks.1.in"]
    last = params | {"blocks": params["blocks"][1:]}
    close(taps.write(output(family), {"blocks.0.in": x})(last, ids), output(family)(params, ids))


@each
def test_layers_return_what_is_written(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family)
    new = torch.randn(*ids.shape, 36, dtype=torch.float64)
    result = taps.write(family.module.layers, {HIDDEN: new})(params, ids)
    states = result if family is BERT else result[0]
    assert states[0].equal(new) and not states[1].equal(new)


# Derivatives


@each
def test_attribution_equals_finite_differences(family: Family) -> None:
    """The gradient by a written tensor, at every site."""
    params, (ids, _) = make_params(family), make_batch(family, 2, 4)
    _, found = taps.read(output(family), "**")(params, ids)

    def loss(found: dict[str, Tensor], site: str) -> Tensor:
        return taps.write(output(family), {site: found[site]})(params, ids).sin().sum()

    for site, x in found.items():
        slope = grad(loss)(found, site)[site]
        direction, h = torch.randn_like(x), 1e-6  # of ReLU, few kinks are nearer
        points = [loss({site: x + t * h * direction}, site) for t in (-2, -1, 1, 2)]
        expected = (8 * (points[2] - points[1]) - (points[3] - points[0])) / (12 * h)
        torch.testing.assert_close((slope * direction).sum(), expected, rtol=1e-6, atol=1e-7)
        assert site == "pooled" or slope.abs().max() > 1e-6, site


@each
def test_derivatives_of_every_kind_agree(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family, 1, 3)
    site = "blocks.0.attention.heads"
    x = taps.read(output(family), site)(params, ids)[1][site]
    directions = torch.randn(2, *x.shape, dtype=torch.float64)

    def at(t: Tensor) -> Tensor:  # two numbers move the tensor
        moved = x + (t[:, None, None, None, None] * directions).sum(0)
        return taps.write(output(family), {site: moved})(params, ids).sin().sum()

    t = torch.tensor([0.3, -0.2], dtype=torch.float64)
    slope = grad(at)(t)
    close(jacrev(at)(t), slope)
    close(jacfwd(at)(t), slope)
    close(jvp(at, (t,), (torch.ones_like(t),))[1], slope.sum())
    close(hessian(at)(t), jacrev(jacrev(at))(t))
    t.requires_grad_()
    close(torch.autograd.grad(at(t), t)[0], slope)


def test_what_is_read_has_derivatives() -> None:
    def size(params: Any) -> Tensor:
        return taps.read(LOGITS, HIDDEN)(params, IDS_OF_TWO)[1][HIDDEN].sin().sum()

    close(grad(size)(PARAMS), grad(lambda p: gpt2.layers(p, IDS_OF_TWO)[0][0].sin().sum())(PARAMS))


def test_parameters_before_a_written_site_have_no_gradient() -> None:
    x = torch.randn(2, 5, 36, dtype=torch.float64)
    slopes = grad(lambda p: taps.write(LOGITS, {HIDDEN: x})(p, IDS_OF_TWO).sum())(PARAMS)
    assert not any(leaf.any() for leaf in tree.leaves(slopes["blocks"][0]))
    assert all(leaf.any() for leaf in tree.leaves(slopes["blocks"][1]["mlp"]))


def test_gradients_inside_are_like_the_parameters() -> None:
    """Without the taps, and what is read there belongs to no transform that is over."""
    loss = grad(lambda p, ids: LOGITS(p, ids).sin().sum())
    slopes, found = taps.read(loss, "blocks.*.out")(PARAMS, IDS_OF_TWO)
    assert equal(slopes, loss(PARAMS, IDS_OF_TWO)) and is_plain(slopes) and is_plain(found)
    assert equal(found, taps.read(LOGITS, "blocks.*.out")(PARAMS, IDS_OF_TWO)[1])
    x = found[HIDDEN] * 2
    written = taps.write(loss, {HIDDEN: x})(PARAMS, IDS_OF_TWO)
    outside = grad(lambda p: taps.write(LOGITS, {HIDDEN: x})(p, IDS_OF_TWO).sin().sum())(PARAMS)
    assert equal(written, outside) and tree.structure(written) == tree.structure(PARAMS)


def test_a_training_step_of_an_edited_model() -> None:
    optimizer = adamw(1e-2)

    def loss(params: Any, ids: Tensor, *, key: Any = None) -> Tensor:
        return taps.write(LOGITS, {"blocks.0.mlp.out": torch.zeros_like})(params, ids).sin().mean()

    state = init_state(PARAMS, optimizer, random.key(0))
    after = train_step(loss, optimizer)(state, IDS_OF_TWO)[0].params
    assert tree.structure(after) == tree.structure(PARAMS)
    assert not after["blocks"][1]["mlp"]["down"]["bias"].equal(
        PARAMS["blocks"][1]["mlp"]["down"]["bias"]
    )


# Batches


@each
def test_vmap_over_a_written_tensor_equals_a_loop(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family, 2, 4)
    for site in ("blocks.0.out", "blocks.1.attention.weights", "embed.token"):
        x = taps.read(output(family), site)(params, ids)[1][site]
        several = torch.stack([x, 2 * x, x.roll(1, 0)])

        def one(x: Tensor, site: str = site) -> Tensor:
            return taps.write(output(family), {site: x})(params, ids)

        close(vmap(one)(several), torch.stack([one(x) for x in several]))


@each
def test_vmap_over_examples_equals_the_batch(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family)
    result, found = taps.read(output(family), "**")(params, ids)
    each_result, each_found = vmap(taps.read(output(family), "**"), in_dims=(None, 0))(params, ids)
    close(each_result, result)
    for site, x in each_found.items():
        close(x, found[site])


def test_patching_every_layer_head_and_position_in_one_pass() -> None:
    clean, other = IDS_OF_TWO[:1], IDS_OF_TWO[1:]
    _, found = taps.read(LOGITS, "blocks.*.attention.heads")(PARAMS, other)
    values = torch.stack(list(found.values()))  # [L, B, H, T, Dh]

    def patched(layer: Tensor, head: Tensor, position: Tensor) -> Tensor:
        def patch(x: Tensor, number: int) -> Tensor:
            here = (torch.arange(3) == head)[:, None] & (torch.arange(5) == position)
            return torch.where((here & (layer == number))[..., None], values[number], x)

        edits = {site: lambda x, i=i: patch(x, i) for i, site in enumerate(found)}
        return taps.write(LOGITS, edits)(PARAMS, clean)

    places = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(5))
    together = vmap(patched)(*places.unbind(-1))
    for result, (layer, head, position) in zip(together, places.tolist(), strict=True):
        site = f"blocks.{layer}.attention.heads"
        x = taps.read(LOGITS, site)(PARAMS, clean)[1][site].clone()
        x[:, head, position] = found[site][:, head, position]
        close(result, taps.write(LOGITS, {site: x})(PARAMS, clean))


def test_an_ensemble_is_read_by_vmap() -> None:
    members = [PARAMS, made(GPT2, seed=4, dtype=torch.float64)]
    both = vmap(taps.read(LOGITS, "**"), in_dims=(0, None))(tree.stack(members), IDS_OF_TWO)[1]
    for i, params in enumerate(members):
        for site, x in taps.read(LOGITS, "**")(params, IDS_OF_TWO)[1].items():
            close(both[site][i], x)


def test_reading_around_a_vmap_is_an_error() -> None:
    mapped = vmap(LOGITS, in_dims=(None, 0))
    with pytest.raises(ValueError, match=r"'blocks.0.out' lies within a vmap .* vmap\(read\(fn"):
        taps.read(mapped, HIDDEN)(PARAMS, IDS_OF_TWO)
    with pytest.raises(ValueError, match="lies within a vmap"):
        vmap(taps.read(lambda p, ids: mapped(p, ids[None]), HIDDEN), in_dims=(None, 0))(
            PARAMS, IDS_OF_TWO
        )


def test_writing_around_a_vmap_writes_in_every_row() -> None:
    x = torch.randn(5, 36, dtype=torch.float64)
    around = taps.write(vmap(LOGITS, in_dims=(None, 0)), {HIDDEN: x})(PARAMS, IDS_OF_TWO)
    close(around, taps.write(LOGITS, {HIDDEN: x.expand(2, 5, 36)})(PARAMS, IDS_OF_TWO))


def test_per_example_gradients_of_an_edited_model() -> None:
    def loss(params: Any, row: Tensor) -> Tensor:
        return taps.write(LOGITS, {"blocks.*.mlp.hidden": lambda x: x / 2})(params, row).sum()

    each = per_example_grads(loss, PARAMS, IDS_OF_TWO, chunk_size=1)
    close(tree.unstack(each)[1]["norm"], grad(loss)(PARAMS, IDS_OF_TWO[1])["norm"])


# States


def test_reading_and_writing_with_a_cache() -> None:
    whole, of_all = taps.read(LOGITS, "blocks.*.attention.*", "**.out")(PARAMS, IDS_OF_TWO)
    for cache in (None, gpt2.init_cache(PARAMS, 2, 8)):
        _, cache = gpt2.apply(PARAMS, IDS_OF_TWO[:, :3], cache)
        (logits, _), found = taps.read(gpt2.apply, "blocks.*.attention.*", "**.out")(
            PARAMS, IDS_OF_TWO[:, 3:], cache
        )
        close(logits, whole[:, 3:])
        for site, x in found.items():
            later = of_all[site][..., 3:, :]
            if site.endswith("weights"):  # the new tokens come after the free places of a cache
                assert not x[..., 3:-2].any()
                x = torch.cat([x[..., :3], x[..., -2:]], -1)
            close(x, later)


def test_the_cache_holds_the_keys_and_values_that_were_written() -> None:
    site = "blocks.0.attention.v"
    edited = taps.write(gpt2.apply, {site: lambda x: 2 * x})
    _, cache = edited(PARAMS, IDS_OF_TWO[:, :3])
    _, plain = gpt2.apply(PARAMS, IDS_OF_TWO[:, :3])
    assert cache.segments[0].values[0].equal(2 * plain.segments[0].values[0])
    second, _ = edited(PARAMS, IDS_OF_TWO[:, 3:], cache)
    close(second, edited(PARAMS, IDS_OF_TWO)[0][:, 3:])


def test_reading_and_writing_with_a_memory() -> None:
    params, ids = make_params(TRANSFO_XL), make_batch(TRANSFO_XL)[0]
    edit = {"blocks.1.in": lambda x: x / 2}
    _, mems = taps.write(transfo_xl.apply, edit)(params, ids[:, :4])
    _, plain = transfo_xl.apply(params, ids[:, :4])
    # The memory of a block is of what went into it.
    close(mems.hidden[1][:, -4:], plain.hidden[1][:, -4:] / 2)
    assert mems.hidden[0].equal(plain.hidden[0])
    _, found = taps.read(transfo_xl.apply, "blocks.1.attention.k")(params, ids[:, 4:], mems)
    assert found["blocks.1.attention.k"].shape == (3, 3, 5 + 3, 10)


def test_many_queries_are_one_chunk_where_weights_are_read() -> None:
    config = gpt2.Config(vocab_size=41, n_positions=300, n_embd=36, n_layer=2, n_head=3)
    params = tree.cast(gpt2.init(config, random.key(0)), torch.float64)
    ids = torch.randint(41, (2, SLICE + 13))
    expected = LOGITS(params, ids)
    result, found = taps.read(LOGITS, "**.weights", "**.heads", "**.v")(params, ids)
    weights = found["blocks.1.attention.weights"]
    close(result, expected)
    close(weights @ found["blocks.1.attention.v"], found["blocks.1.attention.heads"])
    assert not weights.triu(1).any() and weights.shape == (2, 3, SLICE + 13, SLICE + 13)
    # Where they are not, the way is the one without taps.
    assert taps.read(LOGITS, "blocks.*.attention.heads")(params, ids)[0].equal(expected)
    written = taps.write(LOGITS, {"**.weights": torch.zeros_like})(params, ids)
    close(written, taps.write(LOGITS, {"**.heads": torch.zeros_like})(params, ids))


def test_steering_while_text_is_generated() -> None:
    push = torch.randn(36, dtype=torch.float64)
    edits = {HIDDEN: lambda x: x + 3 * push}
    inside = generate(taps.write(gpt2.apply, edits), PARAMS, IDS_OF_TWO, 6)
    around = taps.write(lambda p, ids: generate(gpt2.apply, p, ids, 6), edits)(PARAMS, IDS_OF_TWO)
    assert inside.equal(around)
    assert not inside.equal(generate(gpt2.apply, PARAMS, IDS_OF_TWO, 6))


# In each other


def test_reading_sees_what_is_written_in_either_order() -> None:
    x = torch.randn(2, 5, 36, dtype=torch.float64)
    edits = {HIDDEN: x}
    outer = taps.read(taps.write(LOGITS, edits), "blocks.*.out")(PARAMS, IDS_OF_TWO)
    inner = taps.write(taps.read(LOGITS, "blocks.*.out"), edits)(PARAMS, IDS_OF_TWO)
    assert outer[1][HIDDEN].equal(x) and equal(outer, inner)


def test_the_outer_write_is_the_last() -> None:
    double, shift = {HIDDEN: lambda x: 2 * x}, {HIDDEN: lambda x: x + 1}
    nested = taps.write(taps.write(LOGITS, double), shift)(PARAMS, IDS_OF_TWO)
    assert nested.equal(taps.write(LOGITS, {HIDDEN: lambda x: 2 * x + 1})(PARAMS, IDS_OF_TWO))
    fixed = {HIDDEN: torch.ones(2, 5, 36, dtype=torch.float64)}
    nested = taps.write(taps.write(LOGITS, double), fixed)(PARAMS, IDS_OF_TWO)
    assert nested.equal(taps.write(LOGITS, fixed)(PARAMS, IDS_OF_TWO))
    nested = taps.write(taps.write(LOGITS, fixed), double)(PARAMS, IDS_OF_TWO)
    twice = {HIDDEN: 2 * fixed[HIDDEN]}
    assert nested.equal(taps.write(LOGITS, twice)(PARAMS, IDS_OF_TWO))


def test_a_tensor_goes_before_functions_of_the_same_site() -> None:
    one = torch.ones(2, 5, 36, dtype=torch.float64)
    edits: dict[str, Any] = {"blocks.*.out": lambda x: 3 * x, HIDDEN: one}
    found = taps.read(taps.write(LOGITS, edits), HIDDEN)(PARAMS, IDS_OF_TWO)[1]
    assert found[HIDDEN].equal(3 * one)


def test_two_readers_see_the_same() -> None:
    (_, inner), outer = taps.read(taps.read(LOGITS, "**"), "**")(PARAMS, IDS_OF_TWO)
    assert equal(inner, outer) and len(inner) == 25


def test_threads_have_nothing_in_common() -> None:
    numbers, results = range(6), dict[int, Tensor]()
    barrier = threading.Barrier(len(numbers))

    def run(number: int) -> None:
        edit = {HIDDEN: lambda x: x * number}
        for _ in range(5):
            barrier.wait()  # they start together, every time
            call = taps.read(taps.write(LOGITS, edit) if number else LOGITS, "logits")
            results[number] = call(PARAMS, IDS_OF_TWO)[1]["logits"]

    threads = [threading.Thread(target=run, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in numbers:
        edits = {HIDDEN: lambda x, n=number: x * n if n else x}
        assert results[number].equal(taps.write(LOGITS, edits)(PARAMS, IDS_OF_TWO))


def test_an_exception_leaves_no_trace() -> None:
    before = LOGITS(PARAMS, IDS_OF_TWO)
    paths = [path for path, _ in tree.named_leaves(PARAMS)]

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("on purpose")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="on purpose"):
            taps.read(taps.write(LOGITS, {HIDDEN: fail}), "logits")(PARAMS, IDS_OF_TWO)
        assert LOGITS(PARAMS, IDS_OF_TWO).equal(before)
        assert [path for path, _ in tree.named_leaves(PARAMS)] == paths
        assert taps.read(LOGITS, "logits")(PARAMS, IDS_OF_TWO)[1]["logits"].equal(before)


def test_a_generator_may_wait_within_a_tapped_function() -> None:
    before = LOGITS(PARAMS, IDS_OF_TWO)

    def texts(params: Any) -> Iterator[Tensor]:
        for _ in range(2):
            yield LOGITS(params, IDS_OF_TWO)

    box: list[Iterator[Tensor]] = []

    def start(params: Any) -> Tensor:
        box.append(texts(params))
        return next(box[0])

    edits = {HIDDEN: torch.zeros_like}
    first = taps.write(start, edits)(PARAMS)
    assert LOGITS(PARAMS, IDS_OF_TWO).equal(before), "between two steps of the generator"
    assert next(box[0]).equal(first) and not first.equal(before)


def test_a_checkpoint_of_torch_recomputes_in_peace() -> None:
    """Its recomputation, after the call, reads nothing again."""
    leaves = tree.map(lambda x: x.clone().requires_grad_(), PARAMS)
    run = taps.read(lambda p: checkpoint(LOGITS, p, IDS_OF_TWO, use_reentrant=False), HIDDEN)
    logits, found = run(leaves)
    expected = grad(lambda p: LOGITS(p, IDS_OF_TWO).sin().sum())(PARAMS)
    logits.sin().sum().backward()
    close(tree.map(lambda x: 0 * x if x.grad is None else x.grad, leaves), expected)
    assert list(found) == [HIDDEN]


def test_functions_can_ask_whether_they_are_read() -> None:
    asked = []

    def ask(params: Any, ids: Tensor) -> Tensor:
        asked.append(is_read(params, ids))
        return LOGITS(params, ids)

    ask(PARAMS, IDS_OF_TWO)
    taps.write(ask, {HIDDEN: torch.zeros_like})(PARAMS, IDS_OF_TWO)
    taps.write(taps.read(ask, HIDDEN), {HIDDEN: torch.zeros_like})(PARAMS, IDS_OF_TWO)
    assert asked == [False, False, True]


# Compiled


@pytest.mark.slow
@each
def test_compiled(family: Family) -> None:
    params, (ids, _) = make_params(family), make_batch(family, 2, 4)
    result, found = taps.read(output(family), "**")(params, ids)

    def run(params: Any, ids: Tensor, x: Tensor) -> Any:
        edited = taps.write(output(family), {HIDDEN: x, "blocks.1.*.out": lambda x: x / 2})
        return taps.read(output(family), "**")(params, ids), edited(params, ids)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for x in (found[HIDDEN], 2 * found[HIDDEN]):
        (again, all_found), edited = compiled(params, ids, x)
        close(again, result)
        close(all_found, found)
        close(edited, run(params, ids, x)[1])


@pytest.mark.slow
def test_around_what_is_compiled() -> None:
    compiled = torch.compile(LOGITS, fullgraph=True, backend="aot_eager")
    for factor in (2, 3):
        edits = {HIDDEN: lambda x, factor=factor: x * factor}
        close(
            taps.read(taps.write(compiled, edits), "**.out")(PARAMS, IDS_OF_TWO),
            taps.read(taps.write(LOGITS, edits), "**.out")(PARAMS, IDS_OF_TWO),
        )
    close(compiled(PARAMS, IDS_OF_TWO), LOGITS(PARAMS, IDS_OF_TWO))


def test_bert_reads_padding_as_any_token() -> None:
    params, (ids, mask) = make_params(BERT), make_batch(BERT)
    found = taps.read(bert.apply, "**.weights")(params, ids, None, mask)[1]
    weights = found["blocks.0.attention.weights"]  # [B, H, T, S]
    assert not weights.masked_select(~mask[:, None, None, :]).any()
    close(weights.sum(-1), torch.ones(3, 3, 7, dtype=torch.float64))
