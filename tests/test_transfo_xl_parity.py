"""Transformer-XL equals pytorch-pretrained-bert 0.6.2, and the release for TensorFlow.

Compared are log-probabilities, losses, every memory and gradients, over segments.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import data_path
from families import TRANSFO_XL, make_params
from peers import ppb_transfo_xl, ppb_transfo_xl_module, quiet
from torch import Tensor
from torch.func import grad

from fnlm import transfo_xl, tree
from fnlm._adaptive_vocabulary import tied_projections
from fnlm.params import _rename, io
from fnlm.params.names.transfo_xl import FAMILY

CONFIGS: dict[str, dict[str, Any]] = {
    "div_val 2, tied": {},
    "div_val 4, as wide as the model": {"div_val": 4, "d_embed": 36},
    "div_val 1, projected": {"div_val": 1},
    "div_val 1, as wide as the model": {"div_val": 1, "d_embed": 36},
    "nothing tied": {"tie_weight": False, "proj_share_all_but_first": False},
    "div_val 1, nothing tied": {
        "div_val": 1, "tie_weight": False, "proj_share_all_but_first": False,
    },
    "some projections tied": {"tie_projs": (True, False, True)},
    "shared biases": {"untie_r": False},
    "any length": {"same_length": False},
    "any length, no clamp": {"same_length": False, "clamp_len": -1},
    "no memory": {"same_length": False, "mem_len": 0},
    "long memory": {"mem_len": 30},
    "norm before": {"pre_lnorm": True},
    "extended context": {"ext_len": 2},
    "one head, four layers": {"n_head": 1, "n_layer": 4, "d_head": 7},
}  # fmt: skip
PRECISION = [(torch.float32, 1e-5), (torch.float64, 1e-9)]
LENGTHS = (5, 7, 3, 4)
in_both = pytest.mark.parametrize(("dtype", "tolerance"), PRECISION)


def make_config(**changes: Any) -> transfo_xl.Config:
    """As in the table of families, with pytorch-pretrained-bert's eps."""
    values = TRANSFO_XL.config.to_dict() | {"layer_norm_epsilon": 1e-12, "tie_projs": None}
    return transfo_xl.Config.from_dict(values | changes)


def make_pair(config: transfo_xl.Config, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """Our parameters, and pytorch-pretrained-bert's model with the same numbers."""
    params = make_params(TRANSFO_XL._replace(config=config), dtype=dtype)
    module = ppb_transfo_xl(config.to_dict(), **options).to(dtype)
    leaves = {name: leaf for name, leaf in params.items() if name != "config"}
    foreign = _rename.to_foreign(leaves, FAMILY.dialects[1])
    missing, unexpected = module.load_state_dict(foreign, strict=False)
    assert not unexpected
    copies = ("crit.out_", "transformer.layers.", "transformer.pos_emb.")
    assert all(name.startswith(copies) for name in missing)
    return params, module


def make_text(rows: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Ids, targets and weights of a loss: [rows, all segments]."""
    shape = (rows, sum(LENGTHS))
    return torch.randint(41, shape), torch.randint(41, shape), torch.randn(shape, dtype=dtype)


def segments() -> list[tuple[int, int]]:
    ends = np.cumsum((0, *LENGTHS)).tolist()
    return list(pairwise(ends))


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@in_both
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", CONFIGS)
def test_segments_equal_pytorch_pretrained_bert(
    name: str, rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    config = make_config(**CONFIGS[name])
    params, module = make_pair(config, dtype)
    ids, targets, _ = make_text(rows)
    mems, theirs = None, None
    for start, stop in segments():
        now, wanted = ids[:, start:stop].contiguous(), targets[:, start:stop].contiguous()
        with torch.no_grad():
            losses, _ = module(now, wanted, theirs)
            expected, theirs = module(now, mems=theirs)
        found, new = transfo_xl.apply(params, now, mems)
        close(found, expected, tolerance)
        for sparse in (False, True):
            ours, same = transfo_xl.negative_log_likelihood(
                params, now, wanted, mems, sparse=sparse
            )
            close(ours, losses, tolerance)
            for a, b in zip(same.hidden, new.hidden, strict=True):
                close(a, b, tolerance)
        assert (theirs is None) == (not config.mem_len)
        for a, b in zip(new.hidden, theirs or (), strict=bool(theirs)):
            close(a, b.transpose(0, 1), tolerance)
        mems = new


def loss_of(run: Any, ids: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """A sum of losses and log-probabilities over segments, each weighted at random."""
    total, mems = torch.zeros((), dtype=weights.dtype), None
    for start, stop in segments():
        now, wanted = ids[:, start:stop].contiguous(), targets[:, start:stop].contiguous()
        losses, scores, mems = run(now, wanted, mems)
        weight = weights[:, start:stop]
        total = total + (losses * weight).sum() + (scores.exp() * weight[..., None]).sin().sum()
    return total


@in_both
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_equal_pytorch_pretrained_bert(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    params, module = make_pair(make_config(**CONFIGS[name]), dtype)
    text = make_text(2, dtype)

    def ours(p: Any, sparse: bool) -> Tensor:
        def run(ids: Tensor, targets: Tensor, mems: Any) -> Any:
            losses, _ = transfo_xl.negative_log_likelihood(p, ids, targets, mems, sparse=sparse)
            return losses, *transfo_xl.apply(p, ids, mems, sparse=sparse)

        return loss_of(run, *text)

    def theirs(ids: Tensor, targets: Tensor, mems: Any) -> Any:
        return module(ids, targets, mems)[0], *module(ids, mems=mems)

    loss_of(theirs, *text).backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert all(g is not None for g in gradients.values())
    found, _ = _rename.from_foreign(gradients, FAMILY, "pytorch-pretrained-bert")
    for sparse in (False, True):
        mine = dict(tree.named_leaves(grad(ours)(params, sparse)))
        assert found.keys() == mine.keys()
        for path, gradient in mine.items():
            scale = max(1.0, gradient.abs().max().item())
            close(gradient / scale, found[path] / scale, tolerance)


def test_where_pytorch_pretrained_bert_masks_nothing_it_computes_in_float64_itself() -> None:
    config = make_config(same_length=False)
    params, module = make_pair(config, torch.float64, rounded=True)
    ids = torch.randint(41, (2, 4))
    mems, theirs = None, None
    for t in range(4):
        with torch.no_grad():
            expected, theirs = module(ids[:, t : t + 1].contiguous(), mems=theirs)
        found, mems = transfo_xl.apply(params, ids[:, t : t + 1], mems)
        close(found, expected, 1e-9)
        for a, b in zip(mems.hidden, theirs, strict=True):
            close(a, b.transpose(0, 1), 1e-9)


@in_both
@pytest.mark.parametrize("div_val", [1, 2])
def test_without_cutoffs_the_softmax_is_plain(
    div_val: int, dtype: torch.dtype, tolerance: float
) -> None:
    """The peer stops without cutoffs, after its last block: compared are its hidden states."""
    params, module = make_pair(make_config(cutoffs=(), div_val=div_val), dtype)
    ids = torch.randint(41, (3, 6))
    seen: list[Tensor] = []
    module.transformer.register_forward_hook(lambda m, x, y: seen.append(y[0].detach()))
    with pytest.raises(UnboundLocalError):
        module(ids)
    close(transfo_xl.hidden_states(params, ids)[0], seen[0], tolerance)
    leaves = {**params["embed"]["cluster_0"], **params["softmax"]["cluster_0"]}
    scores = seen[0] @ leaves["projection"].mT @ leaves["table"].mT + leaves["bias"]
    expected = scores - scores.exp().sum(-1, keepdim=True).log()
    close(transfo_xl.apply(params, ids)[0], expected, tolerance)
    losses, _ = transfo_xl.negative_log_likelihood(params, ids, ids)
    close(losses, -expected.gather(-1, ids[..., None])[..., 0], tolerance)


RELEASES = {
    "div_1": {"n_layer": 2, "cutoffs": (), "div_val": 1, "untie_r": True},
    "div_2_cutoffs_3": {
        "n_layer": 3, "cutoffs": (10, 20), "div_val": 2, "untie_r": False,
        "proj_share_all_but_first": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASES)
def test_releases_for_tensorflow_give_their_stored_results(name: str) -> None:
    folder = data_path(f"checkpoints/transfo-xl-tiny-tf/{name}")
    common = {"n_token": 30, "d_model": 32, "d_embed": 32, "n_head": 4, "d_head": 8, "d_inner": 64}
    common |= {"mem_len": 20, "same_length": False}
    config = transfo_xl.Config.from_dict(common | RELEASES[name])
    params = io.assemble(io.read(folder / "model.ckpt.index"), config, FAMILY, transfo_xl.spec)

    def stored(what: str) -> Tensor:
        return torch.from_numpy(np.load(folder / f"{what}.npy"))

    hidden = tuple(stored(f"memory_{i}").float() for i in range(config.n_layer))
    mems = transfo_xl.Mems(hidden, torch.ones(1, 10, dtype=torch.bool))
    scores, new = transfo_xl.apply(params, stored("tokens"), mems)
    close(scores.exp(), stored("softmax"), 1e-5)
    for i, x in enumerate(new.hidden):
        close(x, stored(f"new_memory_{i}"), 1e-5)


@pytest.mark.parametrize(
    "name", ["div_val 2, tied", "nothing tied", "shared biases", "div_val 1, projected"]
)
def test_pytorch_pretrained_bert_loads_what_is_saved_and_back(name: str, tmp_path: Path) -> None:
    config = make_config(**CONFIGS[name])
    params, module = make_pair(config, torch.float32)
    transfo_xl.save(params, tmp_path, dialect="pytorch-pretrained-bert")
    with quiet():
        theirs = ppb_transfo_xl_module().TransfoXLLMHeadModel.from_pretrained(str(tmp_path))
    assert theirs.config.tie_projs == list(tied_projections(config))
    state = module.state_dict()
    assert state.keys() == theirs.state_dict().keys()
    assert all(x.equal(state[name]) for name, x in theirs.state_dict().items())
    torch.save(state, tmp_path / "pytorch_model.bin")  # with the copies of what is tied
    assert tree.structure(params) == tree.structure(again := transfo_xl.load(tmp_path))
    for a, b in zip(tree.leaves(params), tree.leaves(again), strict=True):
        assert a.equal(b)


def test_a_copy_that_differs_is_an_error(tmp_path: Path) -> None:
    config = make_config()
    params, module = make_pair(config, torch.float32)
    transfo_xl.save(params, tmp_path, dialect="pytorch-pretrained-bert")
    state = module.state_dict()
    state["crit.out_layers.1.weight"] = state["crit.out_layers.1.weight"] + 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"softmax.cluster_1.table and embed.cluster_1.table diff"):
        transfo_xl.load(tmp_path)


def test_pytorch_pretrained_bert_has_no_other_attention_and_no_sampled_softmax_that_runs() -> None:
    """Why attn_type 1 to 3 are refused, and the sampling has tests of its own."""
    ids = torch.randint(41, (2, 5))
    with pytest.raises(AttributeError, match="r_w_bias"):
        ppb_transfo_xl(make_config().to_dict() | {"attn_type": 1})(ids)
    for kind in (2, 3):
        values = make_config(same_length=False, n_head=4, d_head=9).to_dict() | {"attn_type": kind}
        module = ppb_transfo_xl(values)
        with torch.no_grad():
            for p in module.parameters():
                p.normal_()
        mems = [torch.zeros(5, 2, 36) for _ in range(2)]
        with torch.no_grad():
            module(ids, mems=mems)
        assert any(x.abs().max() > 0 for x in mems), "the caller's memory was changed"
    with pytest.raises(NameError):
        ppb_transfo_xl(make_config().to_dict() | {"sample_softmax": 5})


def test_pytorch_pretrained_bert_reads_ahead_without_a_memory() -> None:
    """Why same_length is refused with mem_len 0."""
    _, module = make_pair(make_config(mem_len=0), torch.float32)
    ids = torch.randint(40, (1, 6))
    other = ids.clone()
    other[0, -1] += 1
    with torch.no_grad():
        first, second = (module(x)[0][0, 0] for x in (ids, other))
    assert (first - second).abs().max() > 1e-3
