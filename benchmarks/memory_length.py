"""What the memory of Transformer-XL is worth: perplexity by the length of the memory.

    python benchmarks/memory_length.py --data shared/data/wikitext/wikitext-2 --work_dir runs/memory

A small model is trained from scratch for some minutes, on three fifths of the validation text of
WikiText-2, and evaluated on its test text with memories of several lengths. Claim: perplexity
falls from no memory to 64 tokens, and from 64 to 256. Both steps are done by `fnlm wikitext103`,
and docs/memory_length.png is drawn. With --work_dir, a run that was killed goes on.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from _harness import judge
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = (0, 16, 64, 128, 256)
CLAIMED = ((0, 64), (64, 256))
BAR = 1.0
TRAINING = (
    "--tgt_len 128 --mem_len 256 --d_model 160 --n_layer 2 --n_head 4 --d_inner 320 "
    "--cutoffs [1500] --dropout 0.3 --min_freq 1 --train_batch_size 4 --steps 2500 "
    "--learning_rate 0.003 --seed 42"
)
EVALUATION = "--batch_size 10 --tgt_len 32"


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "fnlm", "wikitext103", *words], check=True)


def measure(directory: Path, data: Path) -> dict[int, dict[str, float]]:
    """Train, and evaluate with each length of the memory."""
    text, model = str(data / "valid-first60.txt.gz"), str(directory / "model")
    command("--train_file", text, "--work_dir", model, *TRAINING.split())
    found = {}
    for length in LENGTHS:
        given = ("--model_name", model, "--eval_file", str(data / "test.txt.gz"))
        output = directory / f"memory-{length}"
        memory = ("--work_dir", str(output), "--mem_len", str(length))
        command(*given, *memory, *EVALUATION.split())
        found[length] = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
    return found


def draw(found: dict[int, dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(5, 3.2))
    axis = figure.subplots()
    axis.plot([*found], [row["ppl"] for row in found.values()], "o-", color="#205080")
    axis.set(xlabel="tokens that are remembered", ylabel="perplexity", xticks=[*found])
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of WikiText-2")
    parser.add_argument("--work_dir", type=Path, help="keeps the run; without, nothing is kept")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "memory_length.png")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.work_dir or Path(folder), args.data)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"training: {TRAINING}\nevaluation: {EVALUATION}")
    print("| memory | perplexity | tokens/s |\n| ---: | ---: | ---: |")
    for length, row in found.items():
        print(f"| {length} | {row['ppl']:.2f} | {row['tokens_per_second']:.0f} |")
    draw(found, args.plot)
    met = True
    for few, many in CLAIMED:
        ratio = found[few]["ppl"] / found[many]["ppl"]
        met &= judge(f"perplexity with {few} tokens / with {many}", [ratio], BAR)
    return not met


if __name__ == "__main__":
    sys.exit(main())
