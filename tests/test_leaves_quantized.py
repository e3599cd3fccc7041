"""Quantized leaves: their error, their kernels, a real model in 8 and 4 bits."""

from typing import Any

import pytest
import torch
from families import FAMILIES, GPT2, TRANSFO_XL, Family, make_batch, make_params, scalar
from test_leaves import matrices, minilm, moved
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from fnlm import bert, gpt2, random, train, transfo_xl, transforms, tree
from fnlm.generate import beam_search, generate
from fnlm.leaves import Int4, Int8, is_adapter, linear_weights, lora, merge, quantize
from fnlm.leaves import quantized as module

Tree = Any
SHAPES = [(6, 8), (1, 1), (3, 70), (64, 32), (65, 33), (130, 97), (128, 64)]
EVERY: dict[str, Any] = {"where": lambda path, leaf: True}


def floating(path: str, leaf: Any) -> bool:
    return leaf.is_floating_point()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("path", ["weight", "table"])
def test_no_number_is_off_by_more_than_half_a_scale(
    path: str, bits: int, shape: tuple[int, int], dtype: torch.dtype
) -> None:
    w = random.normal(random.key(1), shape).to(dtype)
    params = {path: w} if path == "weight" else {"a": {path: w}}
    leaf = tree.typed_leaves(quantize(params, bits=bits, **EVERY))[0][1]
    found = leaf.dense()
    assert leaf.shape == found.shape == w.shape and leaf.dtype == found.dtype == dtype
    # The bound by an independent reckoning: one scale a channel, or a group of 32.
    channels = (w.mT if path == "weight" else w).double()  # [C, K]
    error = (found.double() - w.double()).abs()
    error = error.mT if path == "weight" else error
    if bits == 8:
        scale = channels.abs().amax(-1, keepdim=True) / 127
    else:
        padded = F.pad(channels, (0, -channels.shape[1] % 32)).unflatten(-1, (-1, 32))
        scale = (padded.amax(-1) - padded.amin(-1)) / 15
        scale = scale.repeat_interleave(32, -1)[:, : channels.shape[1]]
    rounding = 16 * torch.finfo(dtype).eps * channels.abs().amax(-1, keepdim=True)
    assert (error <= scale / 2 * (1 + 1e-6) + rounding).all()
    assert error.max() > 0 or channels.numel() <= 2  # something was rounded


def test_channels_that_are_zero_or_constant_stay_so() -> None:
    w = torch.zeros(40, 66)
    w[:, 3], w[:, 4] = 5.0, 1e-3
    for dtype in (torch.float32, torch.float16):
        for bits in (8, 4):
            found = merge(quantize({"w": w.to(dtype)}, bits=bits, **EVERY))["w"]
            torch.testing.assert_close(
                found.float(), w, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=0
            )


def test_small_integers_take_little_memory() -> None:
    w = torch.ones(768, 3072)
    for bits, least in ((8, 1.0), (4, 0.5 + 2 * 4 / 32)):
        leaf = quantize({"w": w}, bits=bits, **EVERY)["w"]
        size = sum(x.nbytes for x in tree.leaves(leaf)) / w.numel()
        assert least <= size < least + 0.01


def test_the_layout_of_four_bits_is_that_of_the_docstring() -> None:
    w = random.normal(random.key(0), (70, 40))
    leaf = quantize({"embed.w": w}, bits=4, **EVERY)["embed.w"]
    assert isinstance(leaf, Int4) and leaf.values.shape == (2, 64, 32)
    for channel, k in ((0, 0), (33, 39), (69, 17)):
        byte = int(leaf.values[channel // 64, k, channel % 64 % 32])
        number = byte >> 4 if channel % 64 >= 32 else byte & 15
        scale, zero = leaf.scale[k // 32, channel].tolist()
        assert (number - 8) * scale + zero == pytest.approx(float(leaf.dense()[channel, k]))


# torch's kernels


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that are called."""
    calls: list[str] = []
    for name in ("_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu"):
        kernel = getattr(torch, name)

        def counting(*args: Any, kernel: Any = kernel, name: str = name) -> Tensor:
            calls.append(name)
            return kernel(*args)

        monkeypatch.setattr(torch, name, counting)
    return calls


@pytest.mark.parametrize("shape", [(64, 128), (128, 70), (192, 3)], ids=str)
@pytest.mark.parametrize("bits", [8, 4])
def test_the_kernels_compute_the_product(
    bits: int, shape: tuple[int, int], counted: list[str]
) -> None:
    w = random.normal(random.key(1), shape).bfloat16()
    leaf = quantize({"w": w}, bits=bits, **EVERY)["w"]
    x = random.normal(random.key(2), (2, 3, shape[0])).bfloat16()
    bias = torch.ones(shape[1], dtype=torch.bfloat16)
    exact = x.double() @ leaf.dense().double()
    for found, expected in ((x @ leaf, exact), (F.linear(x, leaf.mT, bias), exact + 1)):
        assert found.dtype == torch.bfloat16
        assert (found - expected).abs().max() <= 2**-7 * expected.abs().max()
    assert len(counted) == (2 if bits == 8 or module.PACKS_ALIKE else 0)


@pytest.mark.parametrize("bits", [8, 4])
def test_the_kernels_stay_away_where_they_are_slow_or_wrong(bits: int, counted: list[str]) -> None:
    w = random.normal(random.key(1), (64, 128)).bfloat16()
    leaf = quantize({"w": w}, bits=bits, **EVERY)["w"]
    x = random.normal(random.key(2), (3, 64)).bfloat16()
    dense = leaf.dense()

    def f(x: Tensor) -> Tensor:
        return (x @ leaf).float().sum()

    slope = grad(lambda x: (x @ dense).float().sum())(x)
    torch.testing.assert_close(grad(f)(x), slope, rtol=2**-6, atol=0.1)
    vmap(lambda row: row @ leaf)(x)
    tangent = torch.ones_like(x)
    along = jvp(lambda x: (x @ dense).float().sum(), (x,), (tangent,))[1]
    torch.testing.assert_close(jvp(f, (x,), (tangent,))[1], along, rtol=2**-6, atol=1)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(forward_ad.make_dual(x, tangent) @ leaf).tangent
        assert dual is not None and (dual - tangent @ dense).abs().max() < 0.1
    y = (x.clone().requires_grad_() @ leaf).float().sum()
    y.backward()
    many = random.normal(random.key(2), (module.FEW + 1, 64)).bfloat16()
    assert (many @ leaf).shape == (9, 128) and (x[:0] @ leaf).shape == (0, 128)
    wide = quantize({"w": w.float()}, bits=bits, **EVERY)["w"]
    torch.testing.assert_close(x.float() @ wide, x.float() @ wide.dense())
    assert (x.to("meta") @ tree.to(leaf, "meta")).shape == (3, 128)
    torch.func.functionalize(f)(x)
    assert not counted


@pytest.mark.parametrize("bits", [8, 4])
def test_half_precision_does_not_overflow(bits: int) -> None:
    """Sums of unscaled integers would: 127 x 512 x 4."""
    w = torch.full((512, 8), 1e-3, dtype=torch.float16)
    leaf = quantize({"w": w}, bits=bits, **EVERY)["w"]
    y = torch.full((2, 512), 4.0, dtype=torch.float16) @ leaf
    torch.testing.assert_close(y, torch.full_like(y, 2.048), rtol=2e-3, atol=0)


# Models

SENTENCES = [
    "A man is eating food.", "A man is riding a horse.", "A woman is playing violin.",
    "The new movie is awesome, and the dog plays in the garden.", "Someone in a gorilla costume.",
    "Cheetahs run behind their prey in the tall grass of the savanna.",
]  # fmt: skip
# Per bits and choice of leaves: the least cosine similarity of the embeddings of sentences, and the
# largest difference of a hidden state (which are up to 5.6 in size).
BOUNDS = {
    (8, "blocks"): (0.999, 0.25),
    (8, "all"): (0.999, 0.25),
    (4, "blocks"): (0.96, 0.8),
    (4, "all"): (0.96, 0.8),
}


@pytest.mark.parametrize(("bits", "which"), BOUNDS, ids=str)
def test_minilm_in_few_bits_says_the_same_of_sentences(bits: int, which: str) -> None:
    params, words = minilm()
    data = words(SENTENCES, padding=True, return_tensors="pt")
    ids, mask = data["input_ids"], data["attention_mask"]

    def hidden(params: Tree) -> Tensor:
        return bert.apply(params, ids, mask=mask)[0]

    def sentences(hidden: Tensor) -> Tensor:  # the mean of the tokens, as the model is used
        return F.normalize((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)

    where = linear_weights if which == "blocks" else matrices
    exact, found = hidden(params), hidden(quantize(params, bits=bits, where=where))
    similarity = (sentences(exact) * sentences(found)).sum(-1).min()
    error = ((exact - found) * mask[..., None]).abs().max()
    least, most = BOUNDS[bits, which]
    assert similarity > least and error < most
    assert error > most / 20  # the bounds say something


@pytest.mark.parametrize("bits", [8, 4])
def test_generation_from_few_bits(bits: int) -> None:
    """Greedy and beam search give what the weights give that the integers stand for."""
    params, (ids, _) = make_params(GPT2, dtype=torch.float64), make_batch(GPT2, rows=2, length=4)
    small = quantize(params, bits=bits, where=matrices)
    found = generate(gpt2.apply, small, ids, 6)
    assert torch.equal(found, generate(gpt2.apply, merge(small), ids, 6))
    found, scores = beam_search(gpt2.apply, small, ids, 4, num_beams=3)
    expected, exact = beam_search(gpt2.apply, merge(small), ids, 4, num_beams=3)
    assert torch.equal(found, expected)
    torch.testing.assert_close(scores, exact)
    half = quantize(tree.cast(params, torch.bfloat16), bits=bits, where=matrices)
    assert generate(gpt2.apply, half, ids, 6).shape == (2, 6)
    cache = gpt2.init_cache(half, 2, 12)
    assert gpt2.apply(half, ids, cache)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("bits", [8, 4])
def test_the_memory_of_transformer_xl_from_few_bits(bits: int) -> None:
    small = quantize(make_params(TRANSFO_XL), bits=bits, where=matrices)
    mems = transfo_xl.init_mems(small, 2)
    assert mems.hidden[0].shape == (2, 5, 36) and mems.hidden[0].dtype == torch.float32


# Training beside integers


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_adapters_train_on_a_base_of_few_bits(family: Family, bits: int) -> None:
    """The gradients of adapters equal those on the dense base, which is never made whole."""
    params, (ids, mask) = make_params(family, dtype=torch.float64), make_batch(family)
    small = quantize(params, bits=bits, where=matrices)
    small = moved(lora(small, random.key(1), rank=2, where=matrices))
    adapters, rest = tree.partition(small, is_adapter)
    dense = tree.map_with_path(
        lambda path, x: merge(x) if isinstance(x, Int8 | Int4) else x,
        rest,
        whole=module.Quantized,
    )
    task = next(iter(family.tasks.values()))

    def slope(rest: Tree) -> Tree:
        return grad(lambda a: scalar(task(tree.merge(a, rest), ids, mask)))(adapters)

    for a, b in zip(tree.leaves(slope(rest)), tree.leaves(slope(dense)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_quantizing_a_weight_with_adapters_quantizes_its_base() -> None:
    params = moved(lora(make_params(GPT2), random.key(0), rank=2))
    first = quantize(params, bits=8)
    second = tree.partition(params, is_adapter)[0]
    second = tree.merge(second, tree.partition(first, is_adapter)[1])
    for (_, a), (_, b) in zip(tree.typed_leaves(first), tree.typed_leaves(second), strict=True):
        assert isinstance(a.base, Int8) and torch.equal(a.dense(), b.dense())


def test_integers_are_named_where_only_parameters_will_do() -> None:
    params = quantize(make_params(GPT2), bits=8)
    path = "blocks.0.attention.qkv.weight.values has type torch.int8"
    with pytest.raises(ValueError, match=f"{path}.*tree.partition"):
        train.adamw(1e-3).init(params)
    with pytest.raises(ValueError, match=f"{path}.*tree.partition"):
        transforms.grad(lambda p: scalar(p))(params)
    with pytest.raises(ValueError, match=f"{path}.*partition"):
        tree.combine([params], [1.0])
    with pytest.raises(ValueError, match="blocks.0.attention.qkv.weight is a leaf of type Int8"):
        gpt2.save(params, "nowhere")


def test_scales_train_and_integers_stay() -> None:
    """Gradients of examples leave integers out by themselves; an optimizer gets the other half."""
    params, (ids, _) = quantize(make_params(GPT2), bits=8), make_batch(GPT2)

    def loss(params: Tree, row: Tensor) -> Tensor:
        return scalar(gpt2.apply(params, row)[0])

    each = transforms.per_example_grads(loss, params, ids)
    floats, integers = tree.partition(params, floating)
    assert tree.structure(each) == tree.structure(floats)
    expected = [grad(lambda f, row=row: loss(tree.merge(f, integers), row))(floats) for row in ids]
    for a, b in zip(tree.leaves(each), tree.leaves(tree.stack(expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    optimizer = train.adamw(1e-2)
    mean = tree.map(lambda x: x.mean(0), each)
    floats, _ = optimizer.update(mean, optimizer.init(floats), floats)
    after = tree.merge(floats, integers)
    for (_, a), (_, b) in zip(tree.typed_leaves(after), tree.typed_leaves(params), strict=True):
        assert a.values is b.values and not torch.equal(a.scale, b.scale)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"bits": 3}, "bits must be 8 or 4, got 3"),
        ({"bits": 4, "group": 48}, r"group must be one of \(32, 64, 128, 256\), got 48"),
        ({"bits": 8, "where": lambda path, leaf: False}, "selects no leaf"),
        ({"bits": 8, "where": lambda path, leaf: path == "v"}, r"v has shape \[3\]"),
        ({"bits": 8, "where": lambda path, leaf: path == "none"}, r"none has shape \[0, 2\]"),
        ({"bits": 4, "where": lambda path, leaf: path == "bad"}, "bad has a number that is not"),
        ({"bits": 4, "where": lambda path, leaf: path == "q"}, "q is a leaf of type Int8 already"),
    ],
)
def test_wrong_requests_are_named(kwargs: dict[str, Any], message: str) -> None:
    params = {"v": torch.ones(3), "bad": torch.full((2, 2), torch.nan)}
    params["none"] = torch.ones(0, 2)
    params |= quantize({"q": torch.ones(2, 2)}, bits=8, **EVERY)
    with pytest.raises(ValueError, match=message):
        quantize(params, **kwargs)
