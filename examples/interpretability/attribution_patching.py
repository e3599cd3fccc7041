"""Draw the estimate of what patching every head would do, from one gradient, beside the truth.

To each head's output goes a zero. The gradient by these zeros, times what another text has more
there, is to first order what activation patching measures head by head.

python examples/interpretability/attribution_patching.py --output attribution_patching.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, vmap

from fnlm import gpt2, taps, tree
from fnlm.tokenize import gpt2 as tokenize

TEXTS = ("The boy was so tired that", "The girl was so tired that")
ANSWERS = (" he", " she")


def effects(params: gpt2.Params, ids: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimated and the true effect on she - he of patching each head: [L, H] each."""
    read = taps.read(gpt2.apply, "blocks.*.attention.heads")
    found, others = (read(params, row)[1] for row in ids)
    difference = torch.stack([others[site] - x for site, x in found.items()])  # [L, H, T, Dh]

    def moved(by: Tensor) -> Tensor:
        edits = {site: lambda x, more=more: x + more for site, more in zip(found, by, strict=True)}
        logits = taps.write(gpt2.apply, edits)(params, ids[0])[0][-1]  # [V]
        return logits[answers[1]] - logits[answers[0]]

    zeros = torch.zeros_like(difference)
    estimate = (grad(moved)(zeros) * difference).sum((-2, -1))  # [L, H]
    heads = torch.eye(estimate.numel()).unflatten(1, estimate.shape)[..., None, None]
    effect = vmap(moved)(heads * difference) - moved(zeros)  # [L H]
    return estimate, effect.unflatten(0, estimate.shape)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="attribution_patching.png")
    output = parser.parse_args(argv).output
    params, tokenizer = tree.cast(gpt2.load("tiny"), torch.float32), tokenize.load("tiny")
    ids = torch.tensor([tokenizer.encode(text) for text in TEXTS])  # [2, T]
    answers = torch.tensor([tokenizer.encode(word)[0] for word in ANSWERS])
    both = torch.stack(effects(params, ids, answers)).flatten(1)  # [2, L H]
    print(f"correlation over {both.shape[1]} heads: {torch.corrcoef(both)[0, 1]:.3f}")
    figure = Figure((5, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(*both.flip(0).numpy())
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.5)
    axes.set(xlabel="effect of patching a head", ylabel="estimate from one gradient")
    figure.savefig(output)


if __name__ == "__main__":
    main()
