"""Claim: the memory of Transformer-XL is worth something: perplexity falls with its length.

    python benchmarks/memory_length.py
    python benchmarks/memory_length.py --data shared/data/wikitext/wikitext-2 --work_dir runs/memory

A small model is trained from scratch, and evaluated on other text with memories of several lengths.
The text is that of Python's `help`, for a minute; or, with --data, three fifths of the validation
text of WikiText-2, for some minutes, evaluated on its test text, with docs/memory_length.png drawn.
Both steps are done by `fnlm wikitext103`. Claim: perplexity falls from no memory to 64 tokens, and
from 64 to 256. With --work_dir, a run that was killed goes on.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _harness import arguments, environment, judge
from _text import topics

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = (0, 16, 64, 128, 256)
CLAIMED = ((0, 64), (64, 256))
TRAINING = (
    "--tgt_len 128 --mem_len 256 --d_model 160 --n_layer 2 --n_head 4 --d_inner 320 "
    "--cutoffs [1500] --dropout 0.3 --min_freq 1 --train_batch_size 4 "
    "--learning_rate 0.003 --seed 42"
)
STEPS = {"help": 400, "quick": 4, "data": 2500}
EVALUATION = "--batch_size 10 --tgt_len 32"
BAR = 1.0


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "fnlm", "wikitext103", *words], check=True)


def write_texts(directory: Path) -> tuple[Path, Path]:
    """Write the texts of `help`, each fifth for the evaluation."""
    texts = topics()
    paths = directory / "train.txt", directory / "test.txt"
    held = texts[::5]
    taught = [text for at, text in enumerate(texts) if at % 5]
    for path, part in zip(paths, (taught, held), strict=True):
        path.write_text("\n".join(part), encoding="utf-8")
    return paths


def measure(
    directory: Path, texts: tuple[Path, Path], steps: int, lengths: tuple[int, ...]
) -> dict[int, dict[str, float]]:
    """Train, and evaluate with each length of the memory."""
    taught, held = map(str, texts)
    model = str(directory / "model")
    training = (*TRAINING.split(), "--steps", str(steps))
    command("--train_file", taught, "--work_dir", model, *training)
    found = {}
    for length in lengths:
        given = ("--model_name", model, "--eval_file", held)
        output = directory / f"memory-{length}"
        memory = ("--work_dir", str(output), "--mem_len", str(length))
        command(*given, *memory, *EVALUATION.split())
        found[length] = json.loads((output / "eval_results.json").read_text(encoding="utf-8"))
    return found


def draw(found: dict[int, dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.2))
    axis = figure.subplots()
    axis.plot([*found], [row["ppl"] for row in found.values()], "o-", color="#205080")
    axis.set(xlabel="tokens that are remembered", ylabel="perplexity", xticks=[*found])
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = arguments(__doc__, rounds=1, quick=1)
    parser.add_argument("--data", type=Path, help="folder of WikiText-2; without, `help` is read")
    parser.add_argument("--work_dir", type=Path, help="keeps the run; without, nothing is kept")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "memory_length.png")
    args = parser.parse_args()
    steps = STEPS["data" if args.data else "quick" if args.quick else "help"]
    with tempfile.TemporaryDirectory() as folder:
        texts = write_texts(Path(folder))
        if args.data:
            texts = args.data / "valid-first60.txt.gz", args.data / "test.txt.gz"
        lengths = (0, 64, 256) if args.quick else LENGTHS
        found = measure(args.work_dir or Path(folder), texts, steps, lengths)
    print(environment())
    print(f"training: {TRAINING} --steps {steps}\nevaluation: {EVALUATION}")
    print("| memory | perplexity | tokens/s |\n| ---: | ---: | ---: |")
    for length, row in found.items():
        print(f"| {length} | {row['ppl']:.2f} | {row['tokens_per_second']:.0f} |")
    if args.data:
        draw(found, args.plot)
    met = [
        judge(
            f"perplexity with {few} tokens / with {many}",
            [found[few]["ppl"] / found[many]["ppl"]],
            BAR,
        )
        for few, many in CLAIMED
    ]
    return not all(met)


if __name__ == "__main__":
    sys.exit(main())
