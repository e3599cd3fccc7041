"""Losses: logits and labels to one number.

Letters: C classes, T time, V vocabulary; `...` any leading dimensions.

Pure arithmetic with fixed shapes, so every loss works under grad, vmap, jvp and second derivatives.
Half precision logits are taken to float32 first, as a sum over a vocabulary of 50,000 has no digits
left in bfloat16. Labels are integers. A logit that is NaN and counts makes the loss NaN; where
nothing counts, as in a batch of no rows, the loss is 0 and so is its gradient.
"""

from typing import Any

import torch
from torch import Tensor

from fnlm.layers.mask import check_mask
from fnlm.layers.precision import at_least_float32

__all__ = [
    "cross_entropy", "language_model", "multiple_choice", "pretraining", "regression", "span",
    "token_classification",
]  # fmt: skip

IGNORE = -1


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Return the mean of -log softmax(logits)[label] over the labels that count.

    Args:
        logits: [..., C], floating point.
        labels: [...] integers in [0, C), or `ignore_index` where nothing is to be predicted.
        ignore_index: the label that does not count.

    Returns:
        [] float32 (float64 for float64 logits); 0, with gradient 0, where no label counts.

    Raises:
        TypeError: labels are not integers, or logits not floating.
        ValueError: the shapes do not fit.
        IndexError: a label is out of range (on CPU; elsewhere the device stops).

    >>> cross_entropy(torch.zeros(3, 8), torch.tensor([5, -1, 0]))
    tensor(2.0794)

    Source: `torch.nn.functional.cross_entropy`, which the ancestor calls with ignore_index=-1.
    Deviation: that one is NaN where no label counts.
    """
    labels = _integers(labels, "labels")
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            "labels must have the shape of logits without the last dimension: "
            f"labels {tuple(labels.shape)}, logits {tuple(logits.shape)}"
        )
    counted = labels != ignore_index
    log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)
    index = torch.where(counted, labels, 0).unsqueeze(-1)
    try:
        chosen = log_probs.gather(-1, index).squeeze(-1)
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(_out_of_range(labels, logits.shape[-1], ignore_index)) from error
    return -torch.where(counted, chosen, 0.0).sum() / counted.sum().clamp_min(1)


def language_model(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy of each token given those before it.

    Args:
        logits: [..., T, V]; those at t predict the token at t + 1, and the last are not used.
        ids: [..., T] token ids; -1 is never predicted.
        mask: [..., T] True (or 1) at real tokens, False at padding; predicted are the real tokens
            that stand right after a real one.

    Returns:
        [] float32 (float64 for float64 logits); 0 where nothing is predicted.

    Raises:
        TypeError: ids are not integers, or a mask is floating.
        ValueError: the shapes do not fit.
        IndexError: an id is out of range.

    >>> ids = torch.tensor([[3, 1, 2, 0]])
    >>> language_model(torch.zeros(1, 4, 5), ids, mask=torch.tensor([[1, 1, 1, 0]]))
    tensor(1.6094)

    Source: the loss of `GPT2LMHeadModel` in pytorch-pretrained-bert 0.6.2. Deviation: the mask.
    """
    ids = _integers(ids, "ids")
    labels = torch.cat([ids[..., 1:], torch.full_like(ids[..., :1], IGNORE)], dim=-1)
    check_mask(mask)
    if mask is not None:
        if mask.shape != ids.shape:
            raise ValueError(
                f"mask must have the shape of ids: mask {tuple(mask.shape)}, ids {tuple(ids.shape)}"
            )
        real = mask.bool()
        following = torch.cat([real[..., 1:], torch.zeros_like(real[..., :1])], dim=-1)
        labels = torch.where(real & following, labels, IGNORE)
    return cross_entropy(logits, labels)


def multiple_choice(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the right choice.

    Args:
        logits: [..., C], one number a choice.
        labels: [...] the right choice, or -1 where it is not known.

    Returns:
        [] float32 (float64 for float64 logits); 0 where no choice is known.

    >>> multiple_choice(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.6931)
    """
    return cross_entropy(logits, labels)


def pretraining(
    masked_lm_logits: Tensor, follow_logits: Tensor, words: Tensor, follows: Tensor
) -> Tensor:
    """Return the loss of masked words plus that of the next sentence, as BERT is pretrained.

    Args:
        masked_lm_logits: [..., T, V].
        follow_logits: [..., 2].
        words: [..., T] the words to predict, or -1 where none is; either loss alone is
            `cross_entropy`.
        follows: [...] 0 where the second text follows the first, 1 where it does not, or -1.

    Returns:
        [] float32 (float64 for float64 logits).

    >>> pretraining(torch.zeros(1, 3, 4), torch.zeros(1, 2), torch.tensor([[-1, 2, -1]]),
    ...             torch.tensor([0]))
    tensor(2.0794)

    Source: `BertForPreTraining` of pytorch-pretrained-bert 0.6.2.
    """
    return cross_entropy(masked_lm_logits, words) + cross_entropy(follow_logits, follows)


def token_classification(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy of the real tokens' classes.

    Args:
        logits: [..., T, C].
        labels: [..., T] classes, or -1 where none is to be predicted.
        mask: [..., T] nonzero at real tokens; the labels of others do not count.

    Returns:
        [] float32 (float64 for float64 logits); 0 where no label counts.

    >>> token_classification(torch.zeros(3, 2), torch.tensor([1, 0, 9]), torch.tensor([1, 1, 0]))
    tensor(0.6931)

    Source: `BertForTokenClassification` of pytorch-pretrained-bert 0.6.2. Deviation: -1.
    """
    labels = _integers(labels, "labels")
    check_mask(mask)
    if mask is not None:
        labels = torch.where(mask != 0, labels, IGNORE)
    return cross_entropy(logits, labels)


def span(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Return the mean of the cross entropies of the first and the last token of an answer.

    Args:
        start_logits: [..., T].
        end_logits: [..., T].
        starts: [...] positions; those of T or more are outside of the window and do not count,
            negative ones count as 0.
        ends: [...] likewise.

    Returns:
        [] float32 (float64 for float64 logits); 0 where no position counts.

    >>> starts, ends = torch.tensor([1, 4]), torch.tensor([2, 7])
    >>> span(torch.zeros(2, 4), torch.zeros(2, 4), starts, ends)
    tensor(1.3863)

    Source: `BertForQuestionAnswering` of pytorch-pretrained-bert 0.6.2. Deviations: that one clamps
    the caller's labels in place, and is NaN where no position counts.
    """
    outside = start_logits.shape[-1]
    starts, ends = (
        _integers(x, name).clamp(0, outside) for x, name in ((starts, "starts"), (ends, "ends"))
    )
    first, last = (
        cross_entropy(start_logits, starts, outside),
        cross_entropy(end_logits, ends, outside),
    )
    return (first + last) / 2


def regression(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error, for a sequence classification of one label.

    Args:
        logits: [..., 1].
        targets: [...] numbers.

    Returns:
        [] float32 (float64 for float64 logits); NaN where a target is; 0 for no rows.

    Raises:
        ValueError: the shapes do not fit.

    >>> regression(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
    tensor(2.)

    Source: `run_classifier.py` of pytorch-pretrained-bert 0.6.2, for STS-B.
    """
    if logits.shape != (*targets.shape, 1):
        raise ValueError(
            "logits must have the shape of targets and a last dimension of 1: "
            f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}"
        )
    squares = (at_least_float32(logits).squeeze(-1) - targets).square()
    return squares.sum() / max(squares.numel(), 1)


def _integers(x: Any, name: str) -> Tensor:
    """Return labels as int64: what is said of them by value, -1 say, then holds for every type."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{name} must be a tensor of integers, got {found}: classes have numbers")
    return x.long()


def _out_of_range(labels: Tensor, classes: int, ignore_index: int) -> str:
    """Say which labels are wrong, as far as their values can be read."""
    try:
        found = f"got values from {labels.min().item()} to {labels.max().item()}"
    except RuntimeError:  # a batch of vmap
        found = "one of them is not"
    return (
        f"labels must be at least 0 and less than {classes}, or {ignore_index} where nothing is to "
        f"be predicted; {found}. Where -100 marks what does not count, replace it: "
        f"labels.masked_fill(labels == -100, {ignore_index})"
    )
