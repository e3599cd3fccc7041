"""Times products of a few vectors with a matrix in 32, 16, 8 and 4 bits, as in decoding.

    python benchmarks/quantized.py

Each is timed in turn, one thread, over matrices that together are larger than the caches.
"""

import time

import torch
from _harness import arguments, judge, ratios
from torch import Tensor

from fnlm.leaves import quantize, quantized

INPUTS, OUTPUTS, MATRICES, ROUNDS = 768, 3072, 24, 7


def product(x: Tensor, weights: list) -> float:
    """Return the milliseconds of one product."""
    start = time.perf_counter()
    for w in weights:
        x @ w
    return (time.perf_counter() - start) / len(weights) * 1e3


def main() -> None:
    """Print the time of a product, and its ratio to bfloat16."""
    rounds = arguments(__doc__, rounds=ROUNDS).parse_args().rounds
    torch.set_num_threads(1)
    wide = [torch.randn(OUTPUTS, INPUTS).mT for _ in range(MATRICES)]
    half = [w.bfloat16() for w in wide]

    def in_bits(bits: int) -> list:
        return [quantize({"w": w}, bits=bits, where=lambda path, x: True)["w"] for w in half]

    forms = {"float32": wide, "bfloat16": half, "8 bits": in_bits(8), "4 bits": in_bits(4)}
    print(f"{INPUTS} x {OUTPUTS}, kernels for up to {quantized.FEW} vectors; milliseconds:")
    for vectors in (1, 4, 8, 64):
        x = torch.randn(vectors, INPUTS)
        taken: dict[str, list[float]] = {name: [] for name in forms}
        for _ in range(rounds):
            for name, weights in forms.items():
                taken[name].append(product(x if name == "float32" else x.bfloat16(), weights))
        print(f"{vectors:3} vectors:", ", ".join(f"{n} {min(t):.3f}" for n, t in taken.items()))
        for name in ("float32", "8 bits", "4 bits"):
            found = ratios(taken["bfloat16"], taken[name])
            judge(f"{vectors} vectors, {name}: speed / bfloat16's", found)


if __name__ == "__main__":
    main()
