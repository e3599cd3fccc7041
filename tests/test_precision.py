"""Precision as a value, loss scales, and where an optimizer keeps its state."""

from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from fnlm import bert, gpt2, random, train, transfo_xl, tree
from fnlm.train import Precision, loss_scale, losses
from fnlm.tree import Tree

HALVES = [torch.float16, torch.bfloat16]
CONFIG = gpt2.Config(vocab_size=40, n_positions=9, n_embd=12, n_layer=2, n_head=3)
each_half = pytest.mark.parametrize("dtype", HALVES, ids=str)


def lm_loss(params: Tree, ids: Tensor, *, key: Tensor | None = None) -> Tensor:
    return losses.language_model(gpt2.apply(params, ids, key=key)[0], ids)


def ids(seed: int = 0, rows: int = 4) -> Tensor:
    return (random.uniform(random.key(seed), (rows, 9)) * 40).long()


def dtypes(*values: Tree) -> set[torch.dtype]:
    return {x.dtype for x in tree.leaves(values) if x.is_floating_point()}


def assert_same(a: Tree, b: Tree) -> None:
    for (path, x), y in zip(tree.named_leaves(a), tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.equal(y), path


# The value.


@each_half
def test_what_is_cast_where(dtype: torch.dtype) -> None:
    precision, seen = Precision(compute=dtype), []

    def loss(params: Tree, x: Tensor, n: Tensor, *, key: Tensor) -> Tensor:
        seen.append((params["w"].dtype, x.dtype, n.dtype, key.dtype))
        return (params["w"] * x * n).sum()

    optimizer = train.adamw(0.1)
    step = train.train_step(loss, optimizer, precision=precision)
    state = train.init_state({"w": torch.ones(3)}, optimizer, random.key(0))
    state, metrics = step(state, torch.ones(3), torch.tensor(2))
    assert seen == [(dtype, torch.float32, torch.int64, torch.int64)]
    assert dtypes(state, metrics) == {torch.float32}
    assert metrics.loss == 6 and metrics.gradient_norm == pytest.approx(12**0.5)


@each_half
@pytest.mark.parametrize("output", [*HALVES, torch.float32, torch.float64], ids=str)
def test_results_have_the_dtype_of_the_output(dtype: torch.dtype, output: torch.dtype) -> None:
    model = Precision(compute=dtype, output=output).wrap(gpt2.apply)
    logits, _ = model(gpt2.init(CONFIG, random.key(0)), ids())
    assert logits.dtype == output


def test_types_under_vmap_are_the_types_without() -> None:
    wrapped = Precision(compute=torch.bfloat16).wrap(lambda p, x: (p["w"] @ x, p["w"].sum() * x))
    params, x = {"w": torch.ones(3, 3)}, torch.ones(2, 3)
    mapped = vmap(wrapped, in_dims=(None, 0))(params, x)
    for a, b in zip(mapped, wrapped(params, x[0]), strict=True):
        assert a.dtype == b.dtype == torch.float32 and a[0].equal(b)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_is_not_read(compute: torch.dtype) -> None:
    optimizer = train.adamw(0.01)
    step = train.train_step(lm_loss, optimizer, precision=Precision(compute=compute))
    state = train.init_state(gpt2.init(CONFIG, random.key(0)), optimizer, random.key(1))
    expected = step(state, ids())
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(step(state, ids()), expected)
        mapped = vmap(step, in_dims=(None, 0))(state, ids().unsqueeze(0))
    assert [x.dtype for x in tree.leaves(mapped)] == [x.dtype for x in tree.leaves(expected)]


@pytest.mark.parametrize("name", ["params", "compute", "output"])
def test_what_is_no_floating_point_dtype_is_named(name: str) -> None:
    values: list[Any] = [torch.int64, "bfloat16", 16, None]
    for value in values:
        with pytest.raises(TypeError, match=f"{name} must be a floating-point dtype"):
            Precision(**{name: value})


def test_parameters_of_another_dtype_are_named() -> None:
    optimizer = train.adamw(0.1)
    step = train.train_step(lm_loss, optimizer, precision=Precision())
    half = tree.cast(gpt2.init(CONFIG, random.key(0)), torch.float16)
    with pytest.raises(ValueError, match=r"params\.[\w.]+ is torch\.float16, .*to_params"):
        step(train.init_state(half, optimizer, random.key(0)), ids())


# The numbers.


@each_half
def test_losses_softmax_and_norms_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    """Of logits that half precision holds, the loss is that of float64 to float32's rounding."""
    logits = (random.normal(random.key(0), (2, 5, 3000)) * 4).to(dtype)
    labels = torch.arange(10).view(2, 5) * 7
    assert losses.cross_entropy(logits, labels).item() == pytest.approx(
        losses.cross_entropy(logits.double(), labels).item(), rel=1e-6
    )


def parameters(name: str) -> tuple[Any, Tree, tuple[Tensor, ...]]:
    if name == "gpt2":
        return lm_loss, gpt2.init(CONFIG, random.key(0)), (ids(),)
    if name == "bert":
        config = bert.Config(
            vocab_size=40, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
            intermediate_size=20, max_position_embeddings=9,
        )  # fmt: skip
        params = bert.init(config, random.key(0), ["masked_lm"])
        return (
            lambda p, x, key=None: losses.cross_entropy(bert.masked_lm(p, x, key=key), x),
            params,
            (ids(),),
        )
    xl = transfo_xl.Config(
        n_token=40, cutoffs=(20,), d_model=12, d_embed=12, d_inner=20, n_layer=2, n_head=3,
        d_head=4, tgt_len=9, mem_len=9,
    )  # fmt: skip
    return (
        lambda p, x, key=None: transfo_xl.negative_log_likelihood(p, x[:, :-1], x[:, 1:], key=key)[
            0
        ].mean(),
        transfo_xl.init(xl, random.key(0)),
        (ids(),),
    )


@each_half
@pytest.mark.parametrize("name", ["gpt2", "bert", "transfo_xl"])
def test_gradients_in_half_precision_are_those_of_float32_to_its_rounding(
    name: str, dtype: torch.dtype
) -> None:
    """Against float64; the bound is some roundings of 2^-8 or 2^-11, relative to the whole."""
    loss, params, batch = parameters(name)
    found = grad(Precision(compute=dtype).wrap(loss))(params, *batch)
    wanted = grad(loss)(tree.cast(params, torch.float64), *batch)
    assert dtypes(found) == {torch.float32}
    error = tree.norm(tree.map(lambda a, b: a.double() - b, found, wanted)) / tree.norm(wanted)
    assert error < (0.03 if dtype == torch.bfloat16 else 0.004)


@each_half
@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_training_in_half_precision_learns_what_float32_learns(
    dtype: torch.dtype, donate: bool
) -> None:
    optimizer, scale = train.adamw(0.01), loss_scale.dynamic(2.0**10)

    def trained(**options: Any) -> list[float]:
        step = train.train_step(lm_loss, optimizer, donate=donate, **options)
        params = gpt2.init(CONFIG, random.key(0))
        state = train.init_state(
            params, optimizer, random.key(1), loss_scale=options.get("loss_scale")
        )
        values = []
        for i in range(40):
            state, metrics = step(state, ids(i % 2))
            values.append(metrics.loss.item())
        assert not int(state.skipped.steps)
        return values

    half, full = trained(precision=Precision(compute=dtype), loss_scale=scale), trained()
    assert full[-1] < 0.75 * full[0]
    assert half[-1] == pytest.approx(full[-1], abs=0.08)


# Loss scales.


def test_small_gradients_need_a_scale_in_float16() -> None:
    """The derivative of the inner value, 1e-9, is 0 in float16."""

    def loss(params: Tree, *, key: Tensor) -> Tensor:
        return params["w"].sum().float() * 1e-9

    optimizer, params = train.adamw(0.1), {"w": torch.ones(2)}
    precision = Precision(compute=torch.float16)
    for scale, norm in ((None, 0.0), (loss_scale.static(2.0**20), 2**0.5 * 1e-9)):
        step = train.train_step(loss, optimizer, precision=precision, loss_scale=scale)
        state = train.init_state(params, optimizer, random.key(0), loss_scale=scale)
        state, metrics = step(state)
        assert metrics.gradient_norm.item() == pytest.approx(norm, rel=1e-3)
        assert metrics.loss.item() == pytest.approx(2e-9)  # without the scale


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_overflow_halves_the_scale_and_skips_the_step_and_nothing_else(
    donate: bool, accumulate: int
) -> None:
    """Against a run by hand, which makes all steps but the one that overflows."""

    def loss(params: Tree, x: Tensor, *, key: Tensor) -> Tensor:
        noise = random.normal(key, (3,)).to(params["w"].dtype)
        return losses.mean((params["w"] * x.to(params["w"].dtype) + noise).square())

    optimizer, precision = train.bert_adam(0.1), Precision(compute=torch.float16)
    scale = loss_scale.dynamic(2.0**8, growth_interval=3)
    options: dict[str, Any] = {
        "precision": precision, "loss_scale": scale, "accumulate": accumulate
    }  # fmt: skip
    step = train.train_step(loss, optimizer, donate=donate, **options)
    batches = [random.normal(random.key(i), (4, 3)) for i in range(6)]
    batches[3][0, 1] = 300.0  # its square does not fit in float16
    start = train.init_state({"w": torch.ones(3)}, optimizer, random.key(0), loss_scale=scale)
    state: Any = tree.map(torch.clone, start)
    scales: list[float] = []
    for batch in batches:
        state, metrics = step(state, batch)
        assert bool(metrics.finite) == (len(scales) != 3)
        scales.append(state.loss_scale.scale.item())
    assert scales == [256, 256, 512, 256, 256, 256]
    expected = tree.map(torch.clone, start)
    for i, batch in enumerate(batches):
        if i == 3:
            smaller = scale.update(expected.loss_scale, torch.tensor(False))
            expected = expected._replace(step=expected.step + 1, loss_scale=smaller)
        else:
            expected, _ = step(expected, batch)
    assert_same(state._replace(skipped=expected.skipped), expected)
    assert (int(state.step), int(state.opt_state.step)) == (6, 5)
    assert train.describe_skipped(state) == (
        "1 step skipped, the last one step 4: the gradient of w was not finite; "
        "the loss scale is 256"
    )


def test_a_dynamic_scale_stays_between_its_bounds() -> None:
    scale = loss_scale.dynamic(2.0**127, growth_interval=1, minimum=2.0**125)
    state = scale.init()
    for _ in range(3):
        state = scale.update(state, torch.tensor(True))
    assert state.scale.item() == 2.0**127
    for _ in range(5):
        state = scale.update(state, torch.tensor(False))
    assert state.scale.item() == 2.0**125


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: loss_scale.static(0.0), "value must be"),
        (lambda: loss_scale.static(float("nan")), "value must be"),
        (lambda: loss_scale.dynamic(float("inf")), "initial must be"),
        (lambda: loss_scale.dynamic(growth_interval=0), "growth_interval must be at least 1"),
        (lambda: loss_scale.dynamic(factor=1.0), "factor must be"),
        (lambda: loss_scale.dynamic(minimum=-1.0), "minimum must be"),
    ],
)
def test_numbers_out_of_range_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_step_and_state_must_agree_on_a_scale() -> None:
    optimizer, scale = train.adamw(0.1), loss_scale.static(8.0)
    params = gpt2.init(CONFIG, random.key(0))
    plain = train.init_state(params, optimizer, random.key(0))
    scaled = train.init_state(params, optimizer, random.key(0), loss_scale=scale)
    with pytest.raises(ValueError, match="the step has a loss scale and the state none"):
        train.train_step(lm_loss, optimizer, loss_scale=scale)(plain, ids())
    with pytest.raises(ValueError, match="the step has no loss scale and the state one"):
        train.train_step(lm_loss, optimizer)(scaled, ids())


# Where and how an optimizer keeps its state.


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
@pytest.mark.parametrize("make", [train.adamw, train.bert_adam, train.openai_adam])
def test_an_offloaded_optimizer_updates_as_it_would_here(make: Any, donate: bool) -> None:
    params = gpt2.init(CONFIG, random.key(0))
    plain, away = make(0.01), train.offload(make(0.01))
    a, b = tree.map(torch.clone, params), tree.map(torch.clone, params)
    state, moved = plain.init(a), cast(Any, away.init(b))
    for i in range(4):
        grads = grad(lm_loss)(a, ids(i))
        a, state = plain.update(tree.map(torch.clone, grads), state, a, donate=donate)
        b, moved = away.update(grads, moved, b, donate=donate)
    assert_same((b, moved.inner), (a, state))


@each_half
def test_master_weights_keep_what_half_precision_would_lose(dtype: torch.dtype) -> None:
    optimizer = train.offload(train.adamw(1e-4, weight_decay=0.0))
    params, full = {"w": torch.ones(3, dtype=dtype)}, {"w": torch.ones(3)}
    state, plain = optimizer.init(params), train.adamw(1e-4, weight_decay=0.0)
    wanted = plain.init(full)
    for _ in range(50):
        params, state = optimizer.update({"w": torch.ones(3, dtype=dtype)}, state, params)
        full, wanted = plain.update({"w": torch.ones(3)}, wanted, full)
    assert params["w"].dtype == dtype and params["w"].equal(full["w"].to(dtype))
    assert params["w"][0] < 1


def test_what_is_offloaded_lies_on_its_device() -> None:
    params = tree.to(gpt2.init(CONFIG, random.key(0)), "meta")
    state = train.offload(train.adamw(0.1), "meta").init(params)
    assert {leaf.device.type for leaf in tree.leaves(state)} == {"meta"}


@each_half
def test_rounding_is_to_a_neighbour_and_right_on_average(dtype: torch.dtype) -> None:
    x = random.normal(random.key(0), (500,)) * torch.logspace(-3, 2, 500)
    x[:4] = torch.tensor([0.0, -0.0, 1.0, -2.0])
    keys = random.split(random.key(1), 400)
    rounded = vmap(lambda key: train.round_stochastically(x, dtype, key))(keys)  # [400, 500]
    single = train.round_stochastically(x, dtype, keys[7])
    assert rounded.dtype == dtype and rounded[7].equal(single)
    assert rounded[:, :4].double().equal(x[:4].double().expand(400, 4))
    spacing = x.abs() * torch.finfo(dtype).eps + torch.finfo(dtype).smallest_normal
    wide = rounded.double()
    assert ((wide - x).abs() <= spacing).all()
    assert all(len(column.unique()) <= 2 for column in wide.T)
    assert ((wide.mean(0) - x).abs() < 0.3 * spacing).all()  # six standard deviations
    assert (wide.mean(0) - x).abs().div(spacing).mean() < 0.03


@each_half
def test_numbers_at_the_ends_are_rounded_like_others(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, largest, -largest])
    found = train.round_stochastically(x, dtype, random.key(0))
    assert found.isnan().tolist() == [False, False, True, False, False]
    assert found[[0, 1, 3, 4]].float().equal(x[[0, 1, 3, 4]])


@pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])
def test_half_moments_learn_and_repeat_by_their_key(donate: bool) -> None:
    def trained(key: int, optimizer: train.Optimizer | None = None) -> tuple[Tree, float]:
        opt = optimizer or train.half_moments(train.adamw(0.01), random.key(key))
        step = train.train_step(lm_loss, opt, donate=donate)
        state = train.init_state(gpt2.init(CONFIG, random.key(0)), opt, random.key(1))
        for i in range(30):
            state, metrics = step(state, ids(i % 2))
        return state, metrics.loss.item()

    (state, loss), (again, _), (other, _) = trained(0), trained(0), trained(1)
    assert_same(state, again)
    assert not all(a.equal(b) for a, b in zip(tree.leaves(state), tree.leaves(other), strict=True))
    assert dtypes(state.opt_state) == {torch.bfloat16} and dtypes(state.params) == {torch.float32}
    assert loss == pytest.approx(trained(0, train.adamw(0.01))[1], abs=0.1)


def test_a_second_moment_follows_where_rounding_to_the_nearest_stays() -> None:
    """From 1 towards 0 by a thousandth a step: bfloat16 has no number between 0.996 and 1."""
    optimizer = train.half_moments(train.adamw(0.0), random.key(3))
    params = {"w": torch.zeros(2000)}
    state = optimizer.init(params)
    links = tuple(
        link._replace(nu={"w": torch.ones(2000, dtype=torch.bfloat16)}) if link else link
        for link in state.links
    )
    state = state._replace(links=links)
    for _ in range(300):
        params, state = optimizer.update({"w": torch.zeros(2000)}, state, params)
    nu = next(link for link in state.links if link).nu["w"]
    assert nu.double().mean().item() == pytest.approx(0.999**300, rel=0.01)
    assert torch.tensor(0.999).bfloat16() == 1


def test_wrappers_in_the_wrong_order_and_types_are_named() -> None:
    with pytest.raises(TypeError, match=r"turn it around, offload\(half_moments"):
        train.half_moments(train.offload(train.adamw(0.1)), random.key(0)).init(
            {"w": torch.ones(2)}
        )
    with pytest.raises(TypeError, match=r"dtype must be .* got torch\.float32"):
        train.half_moments(train.adamw(0.1), random.key(0), torch.float32)
    both = train.offload(train.half_moments(train.adamw(0.1), random.key(0)))
    params = {"w": torch.ones(2)}
    params, state = both.update(params, both.init(params), params)
    assert dtypes(cast(Any, state).inner) == {torch.bfloat16} and dtypes(params) == {torch.float32}
