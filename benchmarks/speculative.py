"""Speculative decoding with the bundled GPT-2 as the draft, against plain decoding of the model.

    python benchmarks/speculative.py --rounds 8

Claim: one text at a time comes at least 1.5 times as fast, greedy and sampled, in bfloat16 and in
float32. What decides is how many guesses stand, and what the model takes to read five tokens
instead of one, which is printed: at best, what the reading of its weights takes. The tokens are
those of plain decoding, which the script counts: they differ where the arithmetic of several tokens
at once rounds otherwise than that of one and two tokens are all but tied.

The model has 87 million parameters. It begins as a copy of the draft that computes the same with
six times the width and twice the blocks (Chen, Goodfellow and Shlens 2016, "Net2Net"), and is then
trained on three quarters of the sentences in `docs/notebooks`, half from old children's books, half
from speeches; prompts are from the rest. Its loss on these is printed beside that of the draft: it
has become another model, so that the draft is wrong at times.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _harness import environment, judge, quartiles, ratios, row, take_turns
from torch import Tensor

from fnlm import gpt2, random, tree
from fnlm.generate import generate, speculative_stream
from fnlm.params.layout import for_decoding
from fnlm.tokenize import gpt2 as bpe
from fnlm.train import adamw, init_state, losses, train_step
from fnlm.tree import Params, Tree

TEXT = Path(__file__).parent.parent / "docs" / "notebooks" / "speeches_and_stories.tsv"
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SAMPLED = {"greedy": {}, "sampled": {"temperature": 0.8, "top_k": 40}}
BAR = 1.5
WINDOW, GUESSES = 64, 4


def windows() -> tuple[Tensor, Tensor]:
    """Return tokens [N, WINDOW + 1] to train on, and others."""
    lines = TEXT.read_text(encoding="utf-8").splitlines()
    text = "\n".join(line.split("\t")[1] for line in lines)
    ids = torch.tensor(bpe.load("tiny").encode(text))
    ids = ids[: len(ids) // (WINDOW + 1) * (WINDOW + 1)].reshape(-1, WINDOW + 1)
    return ids[: len(ids) * 3 // 4], ids[len(ids) * 3 // 4 :]


def widened(path: str, x: Tensor, times: int, key: Tensor) -> Tensor:
    """Return a parameter of the model that has every unit `times` times.

    What reads a unit takes a random share of it from each copy, the shares adding up to 1, so that
    the copies learn different things.
    """
    if x.ndim == 1 or path.startswith("embed"):
        parts = 3 if path.endswith("qkv.bias") else 1
        wide = x.unflatten(-1, (parts, -1)).repeat(*(1,) * x.ndim, times).flatten(-2)
        return wide / times if path.startswith("norm.") else wide  # of its copies logits are sums
    parts = 3 if path.endswith("qkv.weight") else 1
    wide = x.unflatten(-1, (parts, -1)).repeat(1, 1, times).flatten(-2)  # [in, times out]
    shares = random.normal(key, (times, *wide.shape)) * 0.5 + 1
    return (wide * shares / shares.sum(0)).flatten(0, 1)  # [times in, times out]


def grown(params: Params, times: int, blocks: int) -> Params:
    """Return a model that computes the same with more heads, wider and deeper."""
    old = params["config"]
    config = gpt2.Config(
        vocab_size=old.vocab_size, n_positions=old.n_positions, n_ctx=old.n_ctx,
        n_embd=times * old.n_embd, n_head=times * old.n_head, n_layer=blocks,
    )  # fmt: skip
    leaves = tree.named_leaves(params)
    keys = dict(zip([path for path, _ in leaves], random.split(random.key(0), 999), strict=False))
    wide = tree.map_with_path(lambda path, x: widened(path, x, times, keys[path]), params)
    new = gpt2.init(config, random.key(1))["blocks"][len(wide["blocks"]) :]
    # A new block adds nothing until it has learnt to.
    silent = {"attention.out.weight", "mlp.down.weight"}
    new = tree.map_with_path(lambda path, x: x * 0 if path.partition(".")[2] in silent else x, new)
    return {**wide, "config": config, "blocks": (*wide["blocks"], *new)}


def loss(params: Tree, ids: Tensor, *, key: Tensor | None = None) -> Tensor:
    logits, _ = gpt2.apply(params, ids[:, :-1])
    return losses.cross_entropy(logits, ids[:, 1:])


def trained(params: Params, ids: Tensor, steps: int) -> Params:
    """Return the model after a few steps of 4 windows."""
    optimizer = adamw(3e-5)
    step = train_step(loss, optimizer, donate=True)
    state = init_state(params, optimizer, random.key(2))
    for number in range(steps):
        start = 4 * number % (len(ids) - 3)
        state, _ = step(state, ids[start : start + 4])
    return state.params


def timed(call: Any) -> tuple[float, Any]:
    """Return the seconds that a call takes, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def reading(model: Params, reader: Params, ids: Tensor, rounds: int) -> list[float]:
    """Return how much longer the reader takes for the guesses than the model for one token."""
    with torch.no_grad():
        _, cache = gpt2.apply(model, ids)
        calls = {
            "one": partial(gpt2.apply, model, ids[:, :1], cache),
            "several": partial(gpt2.apply, reader, ids[:, : 1 + GUESSES], cache),
        }
        one, several = take_turns(calls, rounds).values()
    return ratios(several, one)


def compare(what: str, models: Any, prompts: Tensor, new: int, how: Any) -> None:
    """Let model and draft decode each prompt by turns with the model, and judge the ratios.

    Args:
        what: the name of the row.
        models: the model as it decodes one token fastest, as it reads some fastest, and the draft.
        prompts: [rounds, tokens].
        new: tokens to decode.
        how: the settings of sampling.
    """
    model, reader, draft = models
    plain_times, times, same, accepted, calls = [], [], 0, 0, 0
    for number, prompt in enumerate(prompts):
        both = (gpt2.apply, reader, gpt2.apply, draft, prompt[None], new)
        rounds = partial(speculative_stream, *both, draft_tokens=GUESSES, **how)
        contenders = {
            "plain": partial(generate, gpt2.apply, model, prompt[None], new, **how),
            "drafted": lambda rounds=rounds: list(rounds()),
        }
        found = take_turns(contenders, 1, warm_up=int(not number), timer=timed)
        (plain_took, tokens), (took, steps) = (found[name][0] for name in contenders)
        told = torch.cat([each.tokens[:, : int(each.gained)] for each in steps], 1)
        same += int((tokens == told).sum())
        accepted += sum(int(each.accepted) for each in steps)
        calls += len(steps)
        plain_times.append(plain_took)
        times.append(took)
    print("  " + row("generate", plain_times, "s"))
    print("  " + row("speculative", times, "s"))
    print(
        f"  {accepted / calls:.1f} of {GUESSES} guesses accepted a call; "
        f"{same} of {prompts.shape[0] * new} tokens as in plain decoding"
    )
    judge(f"{what}: speed / plain decoding's", ratios(plain_times, times), BAR)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=8, help="prompts")
    parser.add_argument("--tokens", type=int, default=32, help="of each text")
    parser.add_argument("--steps", type=int, default=4, help="of training")
    parser.add_argument(
        "--quick", action="store_true", help="the same rows, less trained and shorter"
    )
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.tokens, args.steps = 1, 16, 1
    print(f"{environment()}, {torch.backends.cpu.get_cpu_capability()}")
    draft = tree.cast(gpt2.load("tiny"), torch.float32)
    ids, others = windows()
    model = trained(grown(draft, 6, 12), ids, args.steps)
    with torch.no_grad():
        found = [float(loss(params, others)) for params in (draft, model)]
    print(f"loss on other sentences: draft {found[0]:.3f}, model {found[1]:.3f}", flush=True)
    torch.set_num_threads(1)
    draft, prompts = for_decoding(draft), others[: args.rounds, :16]
    for name, dtype in TYPES.items():
        laid = for_decoding(tree.cast(model, dtype))
        # In float32, one token is multiplied fastest by columns, and some by rows.
        reader = model if dtype == torch.float32 else laid
        longer = quartiles(reading(laid, reader, prompts[:1], 2 * args.rounds))
        print(f"{name}: {1 + GUESSES} tokens are read in {longer} times the time of one")
        for kind, settings in SAMPLED.items():
            how = {**settings, "key": random.key(3)} if settings else {}
            compare(f"{name}, {kind}", (laid, reader, draft), prompts, args.tokens, how)


if __name__ == "__main__":
    main()
