"""The peers run here under warnings as errors, so that a parity test fails for its own reason."""

import peers
import pytest
import torch

CONFIG = {"vocab_size": 31, "n_positions": 17, "n_embd": 36, "n_layer": 2, "n_head": 3}


@pytest.mark.parametrize("model", ["GPT2Model", "GPT2LMHeadModel", "GPT2DoubleHeadsModel"])
def test_pytorch_pretrained_bert_runs_every_variant_of_gpt2(model: str) -> None:
    module = peers.ppb_gpt2(CONFIG, model)
    ids = torch.randint(0, 31, (2, 3, 7))
    choices = (torch.full((2, 3), 6),) if model == "GPT2DoubleHeadsModel" else ()
    output = module(ids, *choices)[0]
    assert output.shape == (2, 3, 7, 36 if model == "GPT2Model" else 31)
    assert not module.training


@pytest.mark.parametrize("name", ["BertAdam", "OpenAIAdam"])
def test_the_optimizers_of_pytorch_pretrained_bert_step(name: str) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = getattr(peers.ppb(), name)([weight], lr=0.1, warmup=0.5, t_total=4)
    weight.grad = torch.ones(3)
    for _ in range(2):
        optimizer.step()
    assert (weight < 1).all()


def test_transformers_runs_gpt2() -> None:
    hf = peers.hf()
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**CONFIG)).eval()
    assert model(torch.randint(0, 31, (2, 7))).logits.shape == (2, 7, 31)
