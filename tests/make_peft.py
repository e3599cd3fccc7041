"""Writes tests/fixtures/peft: adapters that `peft` made of tiny models, and the logits it gives.

    python tests/make_peft.py

It needs peft, which the tests do not: any version from 0.14, tried with 0.21.2. It also writes the
adapters again with fnlm, and raises unless peft gives the same logits with those.
"""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from fnlm import bert, gpt2
from fnlm.files import _safetensors
from fnlm.params import peft

FOLDER = ROOT / "tests" / "fixtures" / "peft"
IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
SIZES: dict[str, Any] = {"vocab_size": 17, "pad_token_id": 0}
GPT2_SIZES = SIZES | {
    "n_positions": 8, "n_embd": 12, "n_layer": 2, "n_head": 3, "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
BERT_SIZES = SIZES | {
    "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 10,
    "max_position_embeddings": 8, "num_labels": 3,
}  # fmt: skip
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZES)),
        {
            "r": 2, "lora_alpha": 3, "fan_in_fan_out": True, "task_type": "CAUSAL_LM",
            "target_modules": ["c_attn", "mlp.c_proj", "wpe"],
            "rank_pattern": {"h.1.attn.c_attn": 3}, "alpha_pattern": {"h.0.mlp.c_proj": 5},
        },
    ),
    "bert": (
        lambda: BertModel(BertConfig(**BERT_SIZES)),
        {
            "r": 4, "lora_alpha": 6, "use_rslora": True,
            "target_modules": ["query", "word_embeddings", "output.dense"],
        },
    ),
    "bert_classes": (
        lambda: BertForSequenceClassification(BertConfig(**BERT_SIZES)),
        {"r": 2, "lora_alpha": 2, "task_type": "SEQ_CLS", "target_modules": ["query", "value"]},
    ),
}  # fmt: skip


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS)[0]


def main() -> None:
    """Write the folder of each model."""
    from peft import LoraConfig, get_peft_model

    warnings.simplefilter("ignore")
    for name, (make, settings) in MODELS.items():
        torch.manual_seed(0)
        model, folder = make(), FOLDER / name
        for x in model.parameters():  # biases are 0 and scales 1 otherwise
            x.data += 0.2 * torch.randn_like(x)
        model.save_pretrained(folder / "base")
        adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))
        for n, x in adapted.named_parameters():
            if "modules_to_save" in n:
                x.data += torch.randn_like(x)
        adapted.save_pretrained(folder / "adapter")
        (folder / "adapter" / "README.md").unlink()
        expected = logits(adapted)
        _safetensors.write({"ids": IDS, "result": expected}, folder / "expected.safetensors")
        check(make, folder, expected)


def check(make: Any, folder: Path, expected: torch.Tensor) -> None:
    """Raise unless peft reads what fnlm writes."""
    from peft import PeftModel

    family = gpt2 if folder.name == "gpt2" else bert
    params = peft.load(family.load(folder / "base"), folder / "adapter")
    with tempfile.TemporaryDirectory() as place:
        heads = "heads" in params
        peft.save(
            params, place, also=(lambda path, x: path.startswith("heads.")) if heads else None
        )
        base = type(make()).from_pretrained(folder / "base")
        found = logits(PeftModel.from_pretrained(base, place))
    torch.testing.assert_close(found, expected)


if __name__ == "__main__":
    main()
