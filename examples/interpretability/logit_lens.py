"""Draw what every layer would predict: the logit lens.

python examples/interpretability/logit_lens.py --output logit_lens.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from fnlm import gpt2, taps, tree
from fnlm.tokenize import gpt2 as tokenize


def lens(params: gpt2.Params, ids: Tensor) -> Tensor:
    """Return the logits [1 + L, T, V] that follow from the residual stream after each layer."""
    blocks = len(params["blocks"])
    _, found = taps.read(gpt2.apply, "blocks.0.in", "blocks.*.out")(params, ids)

    def finish(x: Tensor) -> Tensor:
        return taps.write(gpt2.apply, {f"blocks.{blocks - 1}.out": x})(params, ids)[0]

    return vmap(finish)(torch.stack(list(found.values())))


def draw(best: list[list[str]], chances: Tensor, words: list[str]) -> Figure:
    """Draw the most likely next token of every layer and position, as dark as it is likely."""
    layers, positions = chances.shape
    figure = Figure((1 + 1.1 * positions, 1 + 0.5 * layers), layout="constrained")
    axes = figure.subplots()
    axes.imshow(chances.numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=1, origin="lower")
    for layer in range(layers):
        for position in range(positions):
            colour = "white" if chances[layer, position] > 0.6 else "black"
            axes.text(position, layer, best[layer][position], ha="center", color=colour)
    axes.set_xticks(range(positions), words)
    axes.set_yticks(range(layers), ["embedding", *map(str, range(layers - 1))])
    axes.set_ylabel("after block")
    return figure


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--text", default="Once upon a time there lived a king who had three sons")
    parser.add_argument("--output", default="logit_lens.png")
    args = parser.parse_args(argv)
    params, tokenizer = tree.cast(gpt2.load("tiny"), torch.float32), tokenize.load("tiny")
    ids = torch.tensor(tokenizer.encode(args.text))  # [T]
    chances, tokens = lens(params, ids).softmax(-1).max(-1)  # [1 + L, T] each
    best = [[tokenizer.decode([token]) for token in row] for row in tokens.tolist()]
    for layer, row in enumerate(best):
        print(f"{'embedding' if not layer else f'block {layer - 1}':10} {row[-1]!r}")
    draw(best, chances, [tokenizer.decode([i]) for i in ids.tolist()]).savefig(args.output)


if __name__ == "__main__":
    main()
