"""Draw where a model keeps what decides between "she" and "he", by activation patching.

Into a run on one text goes what another text has at one layer and position; all of them at once.

python examples/interpretability/activation_patching.py --output activation_patching.png
"""

import argparse

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

from fnlm import gpt2, taps, tree
from fnlm.tokenize import gpt2 as tokenize

TEXTS = ("The boy was so tired that", "The girl was so tired that")
ANSWERS = (" he", " she")
PARTS = {"in": "residual stream", "attention.out": "attention", "mlp.out": "MLP"}


def patched(params: gpt2.Params, ids: Tensor, answers: Tensor, part: str) -> Tensor:
    """Return she - he [L, T] of the first text, with a part of a layer from the second text."""
    length, layers = ids.shape[-1], len(params["blocks"])
    _, found = taps.read(gpt2.apply, f"blocks.*.{part}")(params, ids[1])

    def one(layer: Tensor, position: Tensor) -> Tensor:
        here = (torch.arange(length) == position)[:, None]  # [T, 1]
        edits = {
            site: lambda x, i=i, other=other: torch.where(here & (layer == i), other, x)
            for i, (site, other) in enumerate(found.items())
        }
        return taps.write(gpt2.apply, edits)(params, ids[0])[0][-1, answers].diff()[0]

    places = torch.cartesian_prod(torch.arange(layers), torch.arange(length))
    return vmap(one)(*places.unbind(-1)).unflatten(0, (layers, length))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="activation_patching.png")
    output = parser.parse_args(argv).output
    params, tokenizer = tree.cast(gpt2.load("tiny"), torch.float32), tokenize.load("tiny")
    ids = torch.tensor([tokenizer.encode(text) for text in TEXTS])  # [2, T]
    answers = torch.tensor([tokenizer.encode(word)[0] for word in ANSWERS])
    first, second = gpt2.apply(params, ids)[0][:, -1, answers].diff().flatten().tolist()
    print(f"logit of she - he: {first:.2f} for {TEXTS[0]!r}, {second:.2f} for {TEXTS[1]!r}")
    figure = Figure((12, 4), layout="constrained")
    for axes, (part, title) in zip(figure.subplots(1, 3), PARTS.items(), strict=True):
        share = (patched(params, ids, answers, part) - first) / (second - first)  # [L, T]
        axes.imshow(share.numpy(), origin="lower", cmap="RdBu", vmin=-1, vmax=1)
        axes.set(title=title, ylabel="block")
        axes.set_xticks(range(ids.shape[1]), map(tokenizer.decode, ids[0, :, None].tolist()))
    figure.savefig(output)


if __name__ == "__main__":
    main()
