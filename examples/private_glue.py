"""Fine-tune BERT on a task of GLUE with differential privacy (DP-SGD), and evaluate it.

    python examples/private_glue.py --task_name SST-2 --data_dir glue/SST-2 \
        --bert_model bert-base-uncased --epsilon 3 --output_dir private/sst-2

Every step takes a Poisson sample of the examples, clips the gradient of each and adds noise. The
noise is what an accountant (of the package opacus) says is needed for the privacy asked for, or it
is given by --noise_multiplier. The output directory then holds model, tokenizer and results.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fnlm import bert, cli, finetune, random, tree
from fnlm.params import spec
from fnlm.tasks import glue
from fnlm.tokenize.bert import Tokenizer
from fnlm.tokenize.bert import load as load_tokenizer
from fnlm.train import adamw, choose_device, init_state, losses, poisson_sample, private_step

HEAD = "sequence_classification"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Fine-tune BERT on a task of GLUE with differential privacy (DP-SGD), and evaluate it.

    Args:
        task_name: a task of classes: CoLA, SST-2, MRPC, QQP, MNLI, QNLI, RTE or WNLI.
        data_dir: directory of the task's files, under their published names.
        bert_model: directory, file or hub name of a model and its tokenizer.
        output_dir: directory for the model and the results.
        epsilon: of the privacy to keep, by example.
        delta: of the privacy to keep; by default 1 / (2 x number of examples).
        noise_multiplier: standard deviation of the noise over max_norm; by default what epsilon
            needs, as an accountant says.
        max_norm: to which the gradient of each example is clipped.
        expected_batch_size: mean number of examples per step.
        chunk_size: number of examples in memory at a time.
        num_train_epochs: how often each example is taken, on average.
        learning_rate: of AdamW, constant.
        max_seq_length: maximum number of tokens per row.
        eval_batch_size: rows to evaluate together.
        seed: of a new head, samples, dropout and noise: keep it to yourself.
        device: cpu, cuda, or auto for CUDA where there is a GPU.
        dtype: of the computation; float16 needs a loss scale, which clipping has not.
    """

    task_name: str
    data_dir: Path
    bert_model: str
    output_dir: Path
    epsilon: float = 3.0
    delta: float | None = None
    noise_multiplier: float | None = None
    max_norm: float = 0.1
    expected_batch_size: int = 1024
    chunk_size: int = 32
    num_train_epochs: float = 3.0
    learning_rate: float = 5e-4
    max_seq_length: int = 128
    eval_batch_size: int = 64
    seed: int = 42
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"


def read(flags: Flags, tokenizer: Tokenizer, split: str) -> glue.Features:
    """Read the file of a split, and turn its texts into ids."""
    rows = glue.read(flags.data_dir / glue.file_name(flags.task_name, split), flags.task_name)
    return glue.features(rows, flags.task_name, tokenizer, max_seq_length=flags.max_seq_length)


def load(flags: Flags, key: Tensor) -> bert.Params:
    """Load the model, with a new head of the task's classes."""
    params = bert.load(flags.bert_model, heads=[])
    config = replace(params["config"], num_labels=len(glue.task(flags.task_name).labels))
    new = {name: bert.spec(config, [HEAD])[name] for name in ("pooler", "heads")}
    return {**spec.initialize(new, key), **params, "config": config}


def loss(
    params: bert.Params, ids: Tensor, types: Tensor, mask: Tensor, label: Tensor, key: Tensor
) -> Tensor:
    """Return the loss of one example, without a batch axis."""
    logits = bert.sequence_classification(params, ids, types, mask, key=key)
    return losses.cross_entropy(logits, label)


def noise_for(flags: Flags, rate: float, steps: int, delta: float) -> float:
    """Return the noise multiplier that a number of steps needs for the privacy asked for."""
    if flags.noise_multiplier is not None:
        return flags.noise_multiplier
    from opacus.accountants.utils import get_noise_multiplier

    return get_noise_multiplier(
        target_epsilon=flags.epsilon, target_delta=delta, sample_rate=rate, steps=steps
    )


def train(flags: Flags, params: bert.Params, data: glue.Features, key: Tensor) -> bert.Params:
    """Return the parameters after training with privacy."""
    size = len(data.labels)
    rate = min(1.0, flags.expected_batch_size / size)
    steps = max(1, round(flags.num_train_epochs / rate))
    delta = 1 / (2 * size) if flags.delta is None else flags.delta
    noise = noise_for(flags, rate, steps, delta)
    told = "" if flags.noise_multiplier is not None else f", epsilon {flags.epsilon}, delta {delta}"
    print(f"{size} examples, {steps} steps of {rate:.2%}, noise multiplier {noise:.3f}{told}")
    optimizer, (precision, _) = adamw(flags.learning_rate), finetune.mixed_precision(flags.dtype)
    step = private_step(
        precision.wrap(loss, arguments=1), optimizer, max_norm=flags.max_norm,
        noise_multiplier=noise, expected_batch_size=rate * size, chunk_size=flags.chunk_size,
    )  # fmt: skip
    device, (sample_key, state_key) = choose_device(flags.device), random.split(key, 2)
    state = init_state(tree.to(params, device), optimizer, state_key.to(device))
    rows, show = finetune.tensors(data, device), cli.progress("steps")
    for number in range(steps):
        sample = poisson_sample(random.fold_in(sample_key, number), rate, size).to(device)
        state, _ = step(state, *(x[sample] for x in rows))
        show(number + 1, steps)
    return state.params


def main(flags: Flags) -> None:
    """Read, train, save, evaluate, report."""
    if not glue.task(flags.task_name).labels:
        raise ValueError(f"{flags.task_name} has scores: give a task of classes")
    head_key, train_key = random.split(random.key(flags.seed), 2)
    tokenizer = load_tokenizer(flags.bert_model)
    data, held_out = (read(flags, tokenizer, split) for split in ("train", "dev"))
    params = train(flags, load(flags, head_key), data, train_key)
    bert.save(params, flags.output_dir)
    tokenizer.save(flags.output_dir)
    logits = finetune.predict(
        bert.sequence_classification, params, held_out, flags.eval_batch_size, flags.device
    )
    results = glue.evaluate(flags.task_name, glue.predict(flags.task_name, logits), held_out.labels)
    mean = losses.cross_entropy(torch.from_numpy(logits), torch.from_numpy(held_out.labels))
    results |= {"eval_loss": float(mean)}
    print(finetune.write_results(results, flags.output_dir, "eval_results"), end="")


if __name__ == "__main__":
    sys.exit(cli.run(main, Flags))
