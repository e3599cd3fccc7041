"""Write the hidden states of BERT for every token of the lines of a file, as JSON lines.

Run as::

    fnlm extract-features --bert_model bert-base-uncased \
        --input_file input.txt --output_file output.jsonl

A line is a text, or two texts divided by " ||| ". Its result has the form of the well-known script,
whose spelling "linex_index" programs rely on::

    {"linex_index": 0, "features": [{"token": "[CLS]", "layers": [{"index": -1, "values": [...]}]}]}

The output file appears when all is done. Killed at any time and started again with the same flags,
a run goes on from what is in the file of the same name that ends in ".partial".
"""

import json
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from fnlm import bert, finetune, train, tree
from fnlm.tasks.features import digest, encode_pairs
from fnlm.tokenize import bert as tokenize

BATCHES = 8  # that are sorted by length and written together


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Write the hidden states of BERT for every token of the lines of a file.

    Args:
        bert_model: directory, file or hub name of a model and its tokenizer.
        input_file: a text on each line, or two divided by " ||| ".
        output_file: where the JSON lines go.
        layers: numbers of the blocks to show, -1 for the last one, as in --layers=-1,-2.
        max_seq_length: most tokens of a line; what is longer is cut.
        batch_size: lines to run together.
        do_lower_case: lower-case the text; without, as the files or the name of the model say.
        device: cpu, cuda, or auto for CUDA where there is a GPU.
        dtype: of the computation: float32, bfloat16 or float16.
    """

    bert_model: str
    input_file: Path
    output_file: Path
    layers: str = "-1,-2,-3,-4"
    max_seq_length: int = 128
    batch_size: int = 32
    do_lower_case: bool = False
    device: str = "auto"
    dtype: str = "float32"


def read(path: Path) -> list[tuple[str, str | None]]:
    """Read the texts: a first and a second one, or None."""
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    cut = [line.strip().rpartition(" ||| ") for line in lines]
    return [(first, second) if mark else (second, None) for first, mark, second in cut]


def whole_parts(path: Path, size: int) -> int:
    """Cut a file after its last whole part of lines; return how many lines are left."""
    kept = end = place = 0
    with path.open("a+b") as file:
        file.seek(0)
        for number, line in enumerate(file, 1):
            place += len(line)
            if line.endswith(b"\n") and number % size == 0:
                kept, end = number, place
        file.truncate(end)
    return kept


@torch.no_grad()
def features(
    params: bert.Params,
    tokenizer: tokenize.Tokenizer,
    texts: list[tuple[str, str | None]],
    layers: list[int],
    flags: Flags,
) -> Iterator[list[object]]:
    """Yield for each text what to show of its tokens; texts of similar length run together."""
    arrays = encode_pairs(tokenizer, texts, flags.max_seq_length)
    found: dict[int, Tensor] = {}  # by text, without padding: [T, layers, D]
    for rows, batch in finetune.length_sorted_batches(arrays, flags.batch_size, flags.device):
        states = bert.layers(params, *batch)
        values = torch.stack([states[layer] for layer in layers], dim=2).float().cpu()
        for row, shown, length in zip(rows, values, arrays[2][rows].sum(axis=1), strict=True):
            found[int(row)] = shown[:length].clone()  # and not the padding beside it
    for row, ids in enumerate(arrays[0]):
        values = found.pop(row)
        tokens = tokenizer.ids_to_tokens(ids[: len(values)].tolist())
        yield [
            {"token": token, "layers": [
                {"index": layer, "values": [round(x, 6) for x in state]}
                for layer, state in zip(layers, shown, strict=True)
            ]}
            for token, shown in zip(tokens, values.tolist(), strict=True)
        ]  # fmt: skip


def main(flags: Flags) -> None:
    """Read, run the model on some batches after others, and write."""
    precision, _ = finetune.mixed_precision(flags.dtype)
    params = precision.to_compute(bert.load(flags.bert_model, heads=[]))
    params = tree.to(params, train.choose_device(flags.device))
    tokenizer = tokenize.load(flags.bert_model, lower_case=flags.do_lower_case or None)
    layers, count = [int(number) for number in flags.layers.split(",")], len(params["blocks"])
    if not all(-count <= layer < count for layer in layers) or flags.batch_size < 1:
        raise ValueError(
            f"--layers {flags.layers} must be from {-count} to {count - 1}, "
            f"and --batch_size {flags.batch_size} at least 1"
        )
    texts, size = read(flags.input_file), BATCHES * flags.batch_size
    # Only what the same flags made of the same texts is gone on with.
    settings = {name: str(value) for name, value in asdict(flags).items() if name != "device"}
    name = f"{flags.output_file.name}.{digest(settings, texts)[:8]}.partial"
    partial = flags.output_file.with_name(name)
    done = whole_parts(partial, size)
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(texts), initial=done, unit="record", disable=None) as bar,
    ):
        for start in range(done, len(texts), size):
            some = features(params, tokenizer, texts[start : start + size], layers, flags)
            lines = [{"linex_index": at, "features": row} for at, row in enumerate(some, start)]
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            bar.update(len(lines))
    partial.replace(flags.output_file)
    then = shlex.join(["head", "-c", "500", str(flags.output_file)])
    print(f"{flags.output_file} holds {len(texts)} lines; next: {then}")
