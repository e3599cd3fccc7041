"""Pretraining BERT: the loss of masked tokens, the optimizer, the epochs, and that it learns."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, grad_and_value

from fnlm import bert, cli, finetune, random, train, tree
from fnlm.programs import _rows, lm_rows, pretrain_bert
from fnlm.tasks import corpus
from fnlm.tokenize import bert as tokenize
from fnlm.train import losses

WORDS = "the old king had three sons who lived by a red sea and it rained every day .".split()
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
TEXT = (
    "the old king had three sons .\nthe sons lived by a red sea .\nit rained every day .\n\n"
    "a red king lived .\nit rained by the sea .\n\nthree sons had a day .\nthe sea rained .\n\n"
)
CONFIG = {
    "vocab_size": len(VOCAB), "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 40, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1,
}  # fmt: skip
BATCH = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretraining")
    (folder / "text.txt").write_text(TEXT * 4)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in VOCAB))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rows = "--epochs_to_generate 3 --max_seq_length 20 --masked_lm_prob 0.3"
    line = f"--train_corpus {folder}/text.txt --bert_model {folder}/vocab.txt {rows}"
    assert cli.main(["lm-rows", *shlex.split(line), "--output_dir", str(folder / "rows")]) == 0
    return folder


@pytest.fixture
def params() -> bert.Params:
    made = bert.init(bert.Config.from_dict(CONFIG), random.key(3), heads=_rows.HEADS)
    return tree.cast(made, torch.float64)


@pytest.fixture
def batch(folder: Path) -> tuple[Tensor, ...]:
    rows = _rows.read(folder / "rows", 0)
    return finetune.tensors([array[:BATCH] for array in rows])


def of_all_tokens(params: bert.Params, *batch: Tensor) -> Tensor:
    """The loss with logits of every token."""
    return losses.pretraining(*bert.pretraining(params, *batch[:3]), *batch[3:])


def test_a_vocabulary_file_is_enough_and_goes_with_the_rows(folder: Path) -> None:
    assert tokenize.load(folder / "rows") == tokenize.load(folder / "vocab.txt")
    assert len(_rows.sizes(folder / "rows")) == 3
    flags = lm_rows.Flags(train_corpus=folder, bert_model="vocab.txt", output_dir=Path("rows"))
    assert lm_rows.following(flags)[:2] == ["fnlm", "pretrain-bert"]
    assert lm_rows.following(replace(flags, bert_model="bert"))[:2] == ["fnlm", "lm"]


def test_logits_of_masked_tokens_are_those_of_the_model(
    params: bert.Params, batch: tuple[Tensor, ...]
) -> None:
    asked = batch[3] != -1
    assert 0 < asked.sum() < asked.numel() / 2
    words, following = _rows.logits(params, asked, *batch[:3])
    wanted = bert.pretraining(params, *batch[:3])
    torch.testing.assert_close(words, wanted[0][asked], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(following, wanted[1], rtol=0, atol=0)


@pytest.mark.parametrize("rows", [BATCH, 1])
def test_the_loss_and_its_gradient_are_those_of_all_tokens(
    rows: int, params: bert.Params, batch: tuple[Tensor, ...]
) -> None:
    batch = tuple(x[:rows] for x in batch)
    found, value = grad_and_value(_rows.loss)(params, *batch)
    wanted, whole = grad_and_value(of_all_tokens)(params, *batch)
    torch.testing.assert_close(value, whole, rtol=1e-12, atol=0)
    for a, b in zip(tree.leaves(found), tree.leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_batch_without_masked_tokens_has_the_loss_of_next_sentences(
    params: bert.Params, batch: tuple[Tensor, ...]
) -> None:
    *inputs, words, follows = batch
    value = _rows.loss(params, *inputs, torch.full_like(words, -1), follows)
    wanted = losses.cross_entropy(bert.pretraining(params, *inputs)[1], follows)
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=0)


def test_micro_batches_of_uneven_counts_equal_one_batch(
    params: bert.Params, batch: tuple[Tensor, ...]
) -> None:
    batch = tuple(x[:4] for x in batch)
    counts = [int((half != -1).sum()) for half in batch[3].split(2)]
    batch[3][0] = -1  # of the first micro-batch only one row is asked for
    optimizer = train.adamw(1e-3)
    moved = []
    for parts in (1, 2):
        step = train.train_step(_rows.loss, optimizer, accumulate=parts)
        state, metrics = step(train.init_state(params, optimizer, random.key(0)), *batch)
        moved.append((metrics.loss, *tree.leaves(state.params)))
    assert sum(counts) > 0
    for a, b in zip(*moved, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("max_norm", [0.05, 1e9])
def test_steps_are_those_of_adam_with_gradients_clipped_together(max_norm: float) -> None:
    """Three steps beside the formula, in float64; norms and biases do not decay."""
    rate, decay, total = 0.1, 0.01, 10
    params = {"a": {"weight": torch.tensor([[1.0, -2.0]], dtype=torch.float64)},
              "b": {"bias": torch.tensor([0.5], dtype=torch.float64)}}  # fmt: skip
    targets = [torch.tensor([[0.3, 0.4]]), torch.tensor([0.2])]

    def loss(params: Any, scale: float) -> Tensor:
        leaves = tree.leaves(params)
        return scale * sum(((x - y) ** 2).sum() for x, y in zip(leaves, targets, strict=True))

    optimizer = pretrain_bert.clipped_adam(
        rate, max_grad_norm=max_norm, warmup=0.2, t_total=total, weight_decay=decay
    )
    state = optimizer.init(params)
    mine = [leaf.numpy().copy() for leaf in tree.leaves(params)]
    moments = [(np.zeros_like(x), np.zeros_like(x)) for x in mine]
    for step, scale in enumerate((1.0, 3.0, 0.5)):
        params, state = optimizer.update(grad(loss)(params, scale), state, params)
        grads = [scale * 2 * (x - y.double().numpy()) for x, y in zip(mine, targets, strict=True)]
        norm = np.sqrt(sum((g**2).sum() for g in grads))
        grads = [g * min(1.0, max_norm / (norm + 1e-6)) for g in grads]
        now = rate * (step / 2 if step < 2 else (total - step) / (total - 2))
        for at, g in enumerate(grads):
            mu, nu = 0.9 * moments[at][0] + 0.1 * g, 0.999 * moments[at][1] + 0.001 * g**2
            moments[at] = (mu, nu)
            share = decay if at == 0 else 0.0
            mine[at] = mine[at] - now * (mu / (np.sqrt(nu) + 1e-6) + share * mine[at])
    for found, wanted in zip(tree.leaves(params), mine, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-7)


def test_epochs_begin_again_until_the_steps_are_made(folder: Path) -> None:
    sizes = _rows.sizes(folder / "rows")
    wanted = _rows.steps(folder / "rows", (2 * sum(sizes) + 3) // 3, 3)
    assert sum(wanted.sizes) == (2 * sum(sizes) + 3) // 3 * 3
    assert wanted.sizes[:6] == sizes * 2 and len(wanted.sizes) in (6, 7)
    for epoch in range(len(wanted.sizes)):
        rows = corpus.Features._make(wanted.arrays(epoch))
        assert np.array_equal(rows.ids, _rows.read(folder / "rows", epoch % 3).ids)


def run(folder: Path, output: str, *words: str) -> dict[str, float]:
    line = f"--pregenerated_data {folder}/rows --do_eval --output_dir {folder}/{output}"
    assert cli.main(["pretrain-bert", *shlex.split(line), *words]) == 0
    return json.loads((folder / output / "eval_results.json").read_text())


def test_a_model_learns_its_text_and_goes_on_from_a_checkpoint(folder: Path) -> None:
    size = ("--train_batch_size", "8", "--learning_rate", "3e-3", "--num_warmup_steps", "5")
    new = ("--do_train", "--bert_config_file", str(folder / "config.json"), *size)
    first = run(folder, "new", *new, "--num_train_steps", "10")
    more = ("--do_train", "--init_checkpoint", str(folder / "new"), *size)
    last = run(folder, "more", *more, "--num_train_steps", "150")
    assert last["masked_lm_loss"] < 0.6 * first["masked_lm_loss"]
    assert last["masked_lm_accuracy"] > first["masked_lm_accuracy"]
    assert last["global_step"] == 150
    assert bert.load(folder / "more")["config"].to_dict().items() >= CONFIG.items()
    again = run(folder, "again", "--init_checkpoint", str(folder / "more"))
    assert again == {name: last[name] for name in again} and len(again) == 4


def test_results_are_those_of_each_row_by_itself(folder: Path, params: bert.Params) -> None:
    rows = _rows.read(folder / "rows", 1)
    flags = pretrain_bert.Flags(output_dir=folder, eval_batch_size=3, device="cpu")
    found = pretrain_bert.evaluate(params, rows, flags)
    words, following = [], []
    for row in zip(*rows, strict=True):
        ids, types, mask, labels, follows = (torch.as_tensor(x).long()[None] for x in row)
        mlm, nsp = bert.pretraining(params, ids, types, mask)
        for at in (labels[0] != -1).nonzero().flatten().tolist():
            logs = mlm[0, at].log_softmax(-1)
            words.append((int(logs.argmax()) == labels[0, at], -float(logs[labels[0, at]])))
        logs = nsp[0].log_softmax(-1)
        following.append((int(logs.argmax()) == follows[0], -float(logs[follows[0]])))
    for name, pairs in (("masked_lm", words), ("next_sentence", following)):
        right, lost = np.mean(np.array(pairs, float), axis=0)
        assert found[f"{name}_accuracy"] == pytest.approx(right, abs=1e-12)
        assert found[f"{name}_loss"] == pytest.approx(lost, rel=1e-9)


def test_a_text_that_makes_no_rows_claims_no_directory(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = tmp_path / "one.txt"
    one.write_text("a king .\n")
    words = ["--bert_model", str(folder / "vocab.txt"), "--output_dir", str(tmp_path / "rows")]
    assert cli.main(["lm-rows", "--train_corpus", str(one), *words]) == 2
    assert "has 1 documents" in capsys.readouterr().err and not (tmp_path / "rows").exists()
    one.write_text("a king .\n\nthe sea .\n")
    assert cli.main(["lm-rows", "--train_corpus", str(one), *words]) == 0
    (tmp_path / "rows" / "epoch_0.npz").unlink()
    line = f"--do_train --pregenerated_data {tmp_path}/rows --output_dir {tmp_path}/run"
    model = ["--bert_config_file", str(folder / "config.json")]
    assert cli.main(["pretrain-bert", *shlex.split(line), *model]) == 2
    assert "rows holds no epoch_0.npz; `fnlm lm-rows` makes it\n" in capsys.readouterr().err
