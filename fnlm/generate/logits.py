"""Logits processors: they shape the distribution to sample from; excluded tokens get -inf.

Each is a few lines to read, to change and to put in any order; `generate` uses the order
repetition penalty, temperature, top-k, top-p, min-p, typical. What is NaN stays NaN. Arithmetic on
half precision logits is done, and comes back, in float32, which a low temperature does not
overflow.
"""

import math
import operator

import torch
from torch import Tensor

from fnlm.layers.precision import at_least_float32

__all__ = ["contrast", "min_p", "repetition_penalty", "temperature", "top_k", "top_p", "typical"]


def check_number(name: str, value: object) -> None:
    """Raise TypeError unless a setting is a number.

    >>> check_number("top_p", "0.9")
    Traceback (most recent call last):
    TypeError: top_p must be a number, got '0.9': float(top_p) reads a text
    """
    if isinstance(value, str | None | list | tuple):
        raise TypeError(f"{name} must be a number, got {value!r}: float({name}) reads a text")


def temperature(logits: Tensor, temperature: float) -> Tensor:
    """Flatten (above 1) or sharpen (below 1) the distribution: logits / temperature.

    Args:
        logits: [..., V].
        temperature: more than 0, and finite.

    Returns:
        [..., V], float32 (float64 for float64 logits).

    Raises:
        ValueError: temperature is not positive, or infinite.

    >>> temperature(torch.tensor([2.0, 4.0]), 2.0)
    tensor([1., 2.])
    """
    check_number("temperature", temperature)
    if not 0 < temperature < math.inf:
        raise ValueError(
            f"temperature must be more than 0 and finite, got {temperature}: "
            "for the most likely token leave out the key"
        )
    logits = at_least_float32(logits)
    return logits if temperature == 1 else logits / temperature


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k most likely tokens (and ties with the k-th).

    Args:
        logits: [..., V].
        k: at least 0; 0 keeps all, as does V or more.

    Raises:
        TypeError: k is not an integer.
        ValueError: k is negative.

    Source: Fan, Lewis and Dauphin 2018, "Hierarchical Neural Story Generation".

    >>> top_k(torch.tensor([3.0, 1.0, 2.0]), 2)
    tensor([3., -inf, 2.])
    """
    try:
        k = operator.index(k)
    except TypeError:
        raise TypeError(
            f"top_k must be a whole number, got {k!r}: round it, or 0 for all"
        ) from None
    if k < 0:
        raise ValueError(f"top_k must be at least 0 (which keeps every token), got {k}")
    if k == 0 or k >= logits.shape[-1]:
        return logits
    kth = logits.topk(k).values[..., -1:]  # [..., 1]
    return logits.masked_fill(logits < kth, -torch.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest most likely tokens whose probabilities add up to at least p (the nucleus).

    Args:
        logits: [..., V].
        p: 0 < p <= 1; 1 keeps all, and the most likely token always stays.

    Raises:
        ValueError: p is out of range.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration".

    >>> top_p(torch.tensor([0.2, 0.5, 0.3]).log(), 0.6).exp()
    tensor([0.0, 0.5, 0.3])
    """
    check_number("top_p", p)
    if not 0 < p <= 1:
        raise ValueError(
            f"top_p must be more than 0 and at most 1 (which keeps every token), got {p}"
        )
    if p == 1:
        return logits
    probs, order = logits.float().softmax(-1).sort(-1, descending=True)
    mass_before = probs.cumsum(-1) - probs  # of the tokens more likely than each, [..., V]
    excluded = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before >= p)
    return logits.masked_fill(excluded, -torch.inf)


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens that are at least p times as likely as the most likely one.

    Args:
        logits: [..., V].
        p: 0 <= p <= 1; 0 keeps all, and the most likely token always stays.

    Raises:
        ValueError: p is out of range.

    Source: Nguyen et al. 2024, "Turning Up the Heat: Min-p Sampling for Creative and Coherent LLM
    Outputs" (arXiv:2407.01082).

    >>> min_p(torch.tensor([0.1, 0.6, 0.3]).log(), 0.4).exp()
    tensor([0.0, 0.6, 0.3])
    """
    check_number("min_p", p)
    if not 0 <= p <= 1:
        raise ValueError(f"min_p must be from 0 (which keeps every token) to 1, got {p}")
    if p == 0:
        return logits
    probs = at_least_float32(logits).softmax(-1)
    return logits.masked_fill(probs < p * probs.amax(-1, keepdim=True), -torch.inf)


def typical(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens whose surprise is nearest to what is expected, up to a probability of p.

    The surprise of a token is -log of its probability, and its expectation the entropy. Tokens are
    taken in the order of the distance of the two, until they have the probability p together.

    Args:
        logits: [..., V].
        p: 0 < p <= 1; 1 keeps all, and the most typical token, which need not be the most likely,
            always stays.

    Raises:
        ValueError: p is out of range.

    Source: Meister et al. 2023, "Locally Typical Sampling" (arXiv:2202.00666).

    >>> typical(torch.tensor([0.15, 0.5, 0.35]).log(), 0.3).exp()
    tensor([0.0000, 0.0000, 0.3500])
    """
    check_number("typical", p)
    if not 0 < p <= 1:
        raise ValueError(
            f"typical must be more than 0 and at most 1 (which keeps every token), got {p}"
        )
    if p == 1:
        return logits
    log_probs = at_least_float32(logits).log_softmax(-1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).nansum(-1, keepdim=True)  # 0 log 0 is 0
    _, order = (log_probs + entropy).abs().sort(dim=-1, stable=True)
    sorted_probs = probs.gather(-1, order)
    mass_before = sorted_probs.cumsum(-1) - sorted_probs  # of the tokens more typical than each
    excluded = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, mass_before >= p)
    return logits.masked_fill(excluded, -torch.inf)


def contrast(expert: Tensor, amateur: Tensor, share: float = 0.1) -> Tensor:
    """Return by how much more likely one model finds each token than a weaker one.

    The result is log p_expert - log p_amateur, of the tokens that the expert finds at least `share`
    times as likely as its most likely one; the others are excluded. Contrastive decoding takes the
    highest, or samples.

    Args:
        expert: logits [..., V].
        amateur: logits [..., V] of a smaller model, or of the same at a higher temperature.
        share: 0 <= share <= 1; 0 excludes no token.

    Raises:
        ValueError: share is out of range, or the two are of different shapes.

    Source: Li et al. 2023, "Contrastive Decoding: Open-ended Text Generation as Optimization"
    (arXiv:2210.15097); share is their alpha.

    >>> expert, amateur = torch.tensor([[0.50, 0.46, 0.04], [0.80, 0.19, 0.01]]).log()
    >>> contrast(expert, amateur).argmax(), (expert - amateur).argmax()
    (tensor(1), tensor(2))
    """
    check_number("share", share)
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 (which excludes no token) to 1, got {share}")
    if expert.shape != amateur.shape:
        raise ValueError(
            f"expert has shape {list(expert.shape)}, amateur {list(amateur.shape)}: both must be "
            "logits of one vocabulary, for the same tokens"
        )
    expert, amateur = (at_least_float32(x).log_softmax(-1) for x in (expert, amateur))
    return torch.where(min_p(expert, share) == -torch.inf, -torch.inf, expert - amateur)


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Lower the logits of tokens that have occurred.

    Positive logits are divided by the penalty, negative ones multiplied by it.

    Args:
        logits: [..., V].
        seen: bool [..., V], True for tokens that have occurred (padding has not).
        penalty: more than 0, and finite; 1 changes nothing, less than 1 encourages repetition.

    Raises:
        ValueError: penalty is not positive, or infinite.

    Source: Keskar et al. 2019, "CTRL"; deviation: their formula divides negative logits too, which
    would reward them.

    >>> repetition_penalty(torch.tensor([2.0, -2.0, 2.0]), torch.tensor([True, True, False]), 2.0)
    tensor([ 1., -4.,  2.])
    """
    check_number("repetition_penalty", penalty)
    if not 0 < penalty < math.inf:
        raise ValueError(
            f"repetition_penalty must be more than 0 and finite, got {penalty}: 1 changes nothing"
        )
    logits = at_least_float32(logits)
    if penalty == 1:
        return logits
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
