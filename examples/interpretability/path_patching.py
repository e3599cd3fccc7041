"""Draw which head hands to which later head what decides between "she" and "he".

With one head as in another text and all else as it was, each other head alone reads what follows.

python examples/interpretability/path_patching.py --output path_patching.png
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


def paths(params: gpt2.Params, ids: Tensor, answers: Tensor) -> Tensor:
    """Return the change of she - he by the path from each head to each head's values: [LH, LH]."""
    read = taps.read(gpt2.apply, "blocks.*.attention.heads", "blocks.*.mlp.out")
    ((logits, _), old), (_, new) = (read(params, row) for row in ids)
    layers = len(params["blocks"])
    one = torch.eye(layers * params["config"].n_head).bool().unflatten(1, (layers, -1, 1, 1))

    def send(sender: Tensor) -> dict[str, Tensor]:  # all but the sender stays as it was
        heads = (f"blocks.{i}.attention.heads" for i in range(layers))
        fixed = {s: torch.where(at, new[s], old[s]) for s, at in zip(heads, sender, strict=True)}
        edited = taps.write(gpt2.apply, old | fixed)
        return taps.read(edited, "blocks.*.attention.v")(params, ids[0])[1]

    def receive(receiver: Tensor, sent: dict[str, Tensor]) -> Tensor:  # the rest follows
        places = zip(sent, receiver, strict=True)
        edits = {s: lambda x, s=s, at=at: torch.where(at, sent[s], x) for s, at in places}
        return taps.write(gpt2.apply, edits)(params, ids[0])[0][-1, answers].diff()[0]

    each = vmap(vmap(receive, in_dims=(0, None)), in_dims=(None, 0))
    return each(one, vmap(send)(one)) - logits[-1, answers].diff()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", default="path_patching.png")
    output = parser.parse_args(argv).output
    params, tokenizer = tree.cast(gpt2.load("tiny"), torch.float32), tokenize.load("tiny")
    ids = torch.tensor([tokenizer.encode(text) for text in TEXTS])  # [2, T]
    effect = paths(params, ids, torch.tensor([tokenizer.encode(word)[0] for word in ANSWERS]))
    figure = Figure((6, 5), layout="constrained")
    axes, limit = figure.subplots(), float(effect.abs().max())
    figure.colorbar(axes.imshow(effect.numpy(), cmap="RdBu", vmin=-limit, vmax=limit))
    axes.set(xlabel="head that receives values (4 a block)", ylabel="head that sends")
    figure.savefig(output)


if __name__ == "__main__":
    main()
