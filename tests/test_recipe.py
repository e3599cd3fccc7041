"""Batches as functions of the step; fine-tuning beside the BertAdam of pytorch-pretrained-bert."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_pretrained_bert.optimization import BertAdam
from torch import Tensor

from fnlm import finetune, random, train, tree
from fnlm.layers import dropout
from fnlm.train import device, losses


def numbered(rows: int, length: int = 5) -> tuple[np.ndarray, ...]:
    """Rows whose first id is their number, of different lengths."""
    ids = np.arange(rows, dtype=np.int32)[:, None] + np.zeros((rows, length), np.int32)
    mask = np.arange(length) <= np.arange(rows)[:, None] % length
    return ids, np.zeros_like(ids), mask, np.arange(rows, dtype=np.int32)


@pytest.mark.parametrize("count,batch_size", [(1.0, 4), (3.0, 7), (2.5, 4), (2.0, 50), (0.5, 3)])
def test_each_epoch_takes_every_row_once_in_an_order_of_its_own(
    count: float, batch_size: int
) -> None:
    epochs = finetune.Epochs.of(numbered(11), count)
    steps, batch_at = finetune.batches(epochs, random.key(3), batch_size)
    total = round(11 * count)
    assert sum(epochs.sizes) == total and steps == -(-total // batch_size)
    seen = [n for step in range(steps) for n in batch_at(step)[3].tolist()]
    assert (
        len(seen) == steps * batch_size and seen[total:] == (seen[:total] * 9)[: len(seen) - total]
    )
    for start, size in zip(np.cumsum([0, *epochs.sizes]), epochs.sizes, strict=False):
        assert max(Counter(seen[start : start + size]).values()) == 1
    if count == 3:
        assert seen[:11] != seen[11:22] != seen[22:33]
    again = finetune.batches(epochs, random.key(3), batch_size)[1](steps - 1)  # asked for by itself
    assert all(a.equal(b) for a, b in zip(again, batch_at(steps - 1), strict=True))


def test_epochs_may_differ_and_are_read_when_their_turn_comes() -> None:
    read: list[int] = []

    def arrays(epoch: int) -> tuple[np.ndarray, ...]:
        read.append(epoch)
        ids, types, mask, labels = numbered(3 + epoch)
        return ids, types, mask, labels + 100 * epoch

    steps, batch_at = finetune.batches(finetune.Epochs((3, 4, 5), arrays), random.key(0), 2)
    batches = []
    for step in range(steps):
        batches.append(batch_at(step)[3].tolist())
        assert read == [*range(len(read))] and len(read) <= step + 1
    assert sorted(sum(batches, [])) == [0, 1, 2, *range(100, 104), *range(200, 205)]


def test_batches_are_no_longer_than_their_longest_row() -> None:
    mask = np.arange(40) < np.array([[3], [17], [9]])
    ids = np.where(mask, 7, 0).astype(np.int32)
    made = finetune.tensors((ids, ids, mask, np.array([0.5, 1, 2], np.float32)))
    assert [x.shape[-1] for x in made] == [17, 17, 17, 3] and not ids[:, 17:].any()
    assert [x.dtype for x in made] == [torch.int64, torch.int64, torch.bool, torch.float32]
    choices = mask.reshape(1, 3, 40)
    assert finetune.tensors((choices, choices, choices))[0].shape == (1, 3, 17)
    empty = np.zeros((2, 16), np.bool_)  # rows of padding alone are still rows
    assert finetune.tensors((empty, empty, empty))[0].shape == (2, 1)


def test_predictions_come_in_the_order_of_the_rows() -> None:
    ids, types, mask, labels = numbered(11, length=30)
    sums = finetune.predict(
        lambda params, ids, types, mask: (ids * mask).sum(-1) * params["by"],
        {"by": torch.tensor(3)},
        (ids, types, mask),
        4,
        "cpu",
    )
    assert sums.tolist() == (3 * (ids * mask).sum(axis=1)).tolist()
    each = finetune.predict(lambda params, ids, *_: ids, {}, (ids, types, mask), 2, "cpu")
    longest = mask.sum(axis=1).max()
    assert each.shape == (11, longest)
    assert np.array_equal(each * mask[:, :longest], (ids * mask)[:, :longest])


PARAMS = {
    "up": {"weight": random.normal(random.key(1), (5, 3)), "bias": torch.ones(3)},
    "norm": {"scale": torch.ones(3), "bias": torch.zeros(3)},
}


def loss(params: Any, *batch: Tensor, key: Tensor | None = None) -> Tensor:
    x = (batch[0] / 11) @ params["up"]["weight"][: batch[0].shape[1]] + params["up"]["bias"]
    return (
        ((x * params["norm"]["scale"] + params["norm"]["bias"]).sum(-1) - batch[3]).square().mean()
    )


RECIPE = finetune.Recipe(
    train_batch_size=4, num_train_epochs=3, learning_rate=0.1, warmup_proportion=0.3,
    weight_decay=0.05, checkpoint_every=2,
)  # fmt: skip


@pytest.mark.parametrize("parts", [1, 2])
def test_the_recipe_matches_pytorch_pretrained_bert(tmp_path: Path, parts: int) -> None:
    recipe = replace(RECIPE, gradient_accumulation_steps=parts)
    before = tree.map(torch.clone, PARAMS)
    found, results = finetune.finetune(loss, PARAMS, numbered(11), recipe, tmp_path)
    assert all(a.equal(b) for a, b in zip(tree.leaves(PARAMS), tree.leaves(before), strict=True))

    theirs = tree.map(lambda x: x.clone().requires_grad_(), PARAMS)
    named = tree.named_leaves(theirs)
    decayed = [leaf for path, leaf in named if path == "up.weight"]
    others = [leaf for path, leaf in named if path != "up.weight"]
    order = random.split(random.key(recipe.seed))[0]
    steps, batch_at = finetune.batches(finetune.Epochs.of(numbered(11), 3), order, 4)
    optimizer = BertAdam(
        [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}],
        lr=0.1, warmup=0.3, t_total=steps,
    )  # fmt: skip
    for step in range(steps):
        optimizer.zero_grad()
        for part in zip(*(x.chunk(parts) for x in batch_at(step)), strict=True):
            (loss(theirs, *part) / parts).backward()
        optimizer.step()
    assert results["global_step"] == steps == 9
    for (path, a), b in zip(named, tree.leaves(found), strict=True):
        torch.testing.assert_close(b, a.detach(), rtol=1e-5, atol=1e-6, msg=path)


def test_dropout_does_not_depend_on_micro_batches(tmp_path: Path) -> None:
    def dropped(params: Any, *batch: Tensor, key: Tensor | None = None) -> Tensor:
        x = dropout(batch[0] / 11, 0.5, key)
        return losses.mean((x @ params["up"]["weight"][: x.shape[1]]).square().sum(-1))

    rows = numbered(11)
    recipes = [replace(RECIPE, gradient_accumulation_steps=parts) for parts in (1, 2, 4)]
    found = [
        finetune.finetune(dropped, PARAMS, rows, recipe, tmp_path / str(i), held_out=rows)
        for i, recipe in enumerate(recipes)
    ]
    for params, results in found[1:]:
        assert results == pytest.approx(found[0][1], rel=1e-5)
        for a, b in zip(tree.leaves(params), tree.leaves(found[0][0]), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert found[0][1]["loss"] != train.read_log(tmp_path / "0")[-1]["valid_loss"]
    with pytest.raises(ValueError, match="plan must be one of replicate, shard, tensor, got 'x'"):
        finetune.Spread("x").check(4)


def test_a_directory_keeps_to_its_run(tmp_path: Path) -> None:
    first = finetune.finetune(loss, PARAMS, numbered(11), RECIPE, tmp_path, held_out=numbered(7))
    again = finetune.finetune(
        loss, PARAMS, numbered(11), replace(RECIPE, checkpoint_every=3), tmp_path
    )
    assert again[1] == first[1], "nothing was left to do"
    log = train.read_log(tmp_path)
    assert [row["step"] for row in log] == [2, 4, 6, 8, 9]
    assert log[-1]["valid_loss"] == pytest.approx(
        finetune.mean_loss(loss, first[0], numbered(7), RECIPE)
    )
    rate = replace(RECIPE, learning_rate=0.2)
    moved = tree.map(lambda x: x + 1, PARAMS)
    with pytest.raises(ValueError, match="other learning_rate: give another directory"):
        finetune.finetune(loss, PARAMS, numbered(11), rate, tmp_path)
    with pytest.raises(ValueError, match="other data: "):
        finetune.finetune(loss, PARAMS, numbered(12), RECIPE, tmp_path)
    with pytest.raises(ValueError, match="other starting parameters: "):
        finetune.finetune(loss, moved, numbered(11), RECIPE, tmp_path)
    assert json.loads((tmp_path / "run.json").read_text())["learning_rate"] == 0.1
    with pytest.raises(ValueError, match="train_batch_size=4 must be a multiple of .*steps=3"):
        recipe = replace(RECIPE, gradient_accumulation_steps=3)
        finetune.finetune(loss, PARAMS, numbered(11), recipe, tmp_path / "parts")
    with pytest.raises(ValueError, match="0 epochs of 11 rows"):
        recipe = replace(RECIPE, num_train_epochs=0)
        finetune.finetune(loss, PARAMS, numbered(11), recipe, tmp_path / "none")


# Precision, devices.


def tuned(directory: Path, **flags: Any) -> tuple[Any, dict[str, float]]:
    params = {"w": random.normal(random.key(0), (5,))}

    def loss(params: Any, *batch: Tensor, key: Tensor | None = None) -> Tensor:
        x = batch[0].to(params["w"].dtype) / 11

        score = (x * params["w"][:1]).sum(-1, keepdim=True)
        return losses.regression(score, batch[3].float() / 11) * 0.01

    settings = {"train_batch_size": 4, "checkpoint_every": 2, "learning_rate": 1e-2} | flags
    recipe = finetune.Recipe(**settings)
    return finetune.finetune(loss, params, numbered(11), recipe, directory, held_out=numbered(3))


def test_an_optimizer_on_the_cpu_makes_the_same_run(tmp_path: Path) -> None:
    (a, results), (b, again) = (
        tuned(tmp_path / str(there), optimize_on_cpu=there) for there in (False, True)
    )
    assert a["w"].equal(b["w"]) and results == again


@pytest.mark.parametrize(
    ("dtype", "scale", "logged"),
    [("float16", 0.0, 2.0**15), ("float16", 128.0, 128.0), ("bfloat16", 0.0, None)],
)
def test_a_run_in_half_precision(
    dtype: str, scale: float, logged: float | None, tmp_path: Path
) -> None:
    full, results = tuned(tmp_path / "full")
    half, found = tuned(tmp_path / "half", dtype=dtype, loss_scale=scale)
    assert half["w"].dtype == torch.float32 and found["loss"] != results["loss"]
    torch.testing.assert_close(half["w"], full["w"], rtol=0.02, atol=0.01)
    assert found["loss"] == pytest.approx(results["loss"], rel=0.05)
    assert train.read_log(tmp_path / "half")[-1].get("loss_scale") == logged


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dtype": "float8"}, "dtype must be one of float32, bfloat16, float16, got 'float8'"),
        ({"loss_scale": -1.0}, "value must be a finite number above 0, got -1"),
        ({"device": "tpu"}, "device=tpu is none here .*: use device=cpu, or device=auto"),
    ],
)
def test_flags_that_make_no_run_are_named(
    flags: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        tuned(tmp_path / "new", **flags)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("there", [False, True])
def test_auto_is_cuda_where_it_is(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    device._device.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert train.choose_device().type == ("cuda" if there else "cpu")
    device._device.cache_clear()
    if not torch.cuda.device_count():
        with pytest.raises(ValueError, match="device=cuda is none here"):
            train.choose_device("cuda")
