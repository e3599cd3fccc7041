"""Stream text from the bundled GPT-2, then take per-example gradients of five sentences.

python examples/demo.py
"""

import time

import torch
from torch.func import grad, vmap

from fnlm import gpt2, random, tree
from fnlm.generate import stream
from fnlm.tokenize import gpt2 as tokenize
from fnlm.train import losses

PROMPT = "Once upon a time there was a little"
TOKENS = 120
SENTENCES = (
    "The King had three sons.",
    "The wolf ran into the forest.",
    "She opened the door and looked out.",
    "Colourless green ideas sleep furiously.",
    "Quarterly revenue grew by nine percent.",
)


def loss(params: gpt2.Params, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the language-model loss of one sentence: ids [T], mask [T]."""
    logits, _ = gpt2.apply(params, ids, mask=mask)
    return losses.language_model(logits, ids, mask)


def norm(gradient: gpt2.Params) -> torch.Tensor:
    """Return the Euclidean norm over all leaves."""
    return torch.stack([leaf.square().sum() for leaf in tree.leaves(gradient)]).sum().sqrt()


def write_story(params: gpt2.Params, tokenizer: tokenize.Tokenizer) -> None:
    """Print a continuation of the prompt as it is made, and its speed."""
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    new = stream(gpt2.apply, params, ids, TOKENS, key=random.key(7), temperature=0.7, top_k=40)
    print(PROMPT, end="", flush=True)
    start = time.perf_counter()
    for text in tokenizer.decode_stream(int(token) for token in new):
        print(text, end="", flush=True)
    print(f"\n\n{TOKENS} tokens, {TOKENS / (time.perf_counter() - start):.0f} tokens per second\n")


def compare_gradients(params: gpt2.Params, tokenizer: tokenize.Tokenizer) -> None:
    """Print gradient norms of each sentence, from vmap and from a loop."""
    encoded = [tokenizer.encode(sentence) for sentence in SENTENCES]
    length = max(map(len, encoded))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in encoded])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in encoded])
    together = vmap(norm)(vmap(grad(loss), in_dims=(None, 0, 0))(params, ids, mask))
    loop = torch.stack([norm(grad(loss)(params, *row)) for row in zip(ids, mask, strict=True)])
    print("norm of the gradient    vmap(grad(loss))      loop")
    for sentence, a, b in zip(SENTENCES, together.tolist(), loop.tolist(), strict=True):
        print(f"{sentence:<40}{a:10.6f}{b:10.6f}")
    worst = ((together - loop).abs() / loop).max().item()
    print(f"largest relative difference {worst:.1e}")
    if worst > 1e-5:
        raise SystemExit("the two differ by more than 1e-5")


def main() -> None:
    """Load the bundled model and show both."""
    params = tree.cast(gpt2.load("tiny"), torch.float32)
    tokenizer = tokenize.load("tiny")
    write_story(params, tokenizer)
    compare_gradients(params, tokenizer)


if __name__ == "__main__":
    main()
