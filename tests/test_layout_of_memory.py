"""`fnlm.params.layout`: another memory order, the same numbers."""

import pytest
import torch
from torch import Tensor
from torch.func import grad

from fnlm import gpt2, random, tree
from fnlm.params.layout import for_decoding

CONFIG = gpt2.Config(vocab_size=37, n_positions=11, n_embd=12, n_layer=2, n_head=3)
IDS = torch.tensor([[3, 36, 0, 5, 5]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_values_shapes_and_types_stay(dtype: torch.dtype) -> None:
    params = tree.cast(gpt2.init(CONFIG, random.key(0)), dtype)
    laid = for_decoding(params)
    assert tree.structure(laid) == tree.structure(params)
    for (path, old), new in zip(tree.named_leaves(params), tree.leaves(laid), strict=True):
        assert new.dtype == old.dtype and torch.equal(new, old), path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_columns_of_each_matrix_become_contiguous(dtype: torch.dtype) -> None:
    laid = for_decoding(tree.cast(gpt2.init(CONFIG, random.key(0)), dtype))
    factors = [x for path, x in tree.named_leaves(laid) if path.endswith(".weight")]
    for factor in [*factors, laid["embed"]["token"].mT]:  # each is the w [in, out] of x @ w
        assert factor.mT.is_contiguous() and not factor.is_contiguous()
    for old, new in zip(tree.leaves(laid), tree.leaves(for_decoding(laid)), strict=True):
        assert new.data_ptr() == old.data_ptr(), "what is in order is not copied"


def test_gradients_flow_through_and_agree() -> None:
    params = gpt2.init(CONFIG, random.key(0))

    def loss(params: tree.Tree) -> Tensor:
        return gpt2.apply(params, IDS)[0].square().mean()

    expected = grad(loss)(params)
    found = grad(lambda p: loss(for_decoding(p)))(params)
    for (path, a), b in zip(tree.named_leaves(expected), tree.leaves(found), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-7), path


def test_other_devices_are_left_alone() -> None:
    params = tree.to(gpt2.init(CONFIG, random.key(0)), "meta")
    for old, new in zip(tree.leaves(params), tree.leaves(for_decoding(params)), strict=True):
        assert new is old
