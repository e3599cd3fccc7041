"""Losses: scalar functions of logits and labels, or of hidden states where logits are too large.

Letters: C classes, D width, T time, V vocabulary; `...` any leading dimensions.

Pure arithmetic with fixed shapes, so every loss works under grad, vmap, jvp and second derivatives.
Half-precision logits are cast to float32 first, as a sum over a vocabulary of 50,000 has no digits
left in bfloat16. Labels are integers; `ignore_index` (-1) marks positions without a label. A NaN
logit at a labelled position makes the loss NaN; where no position has a label, as in an empty
batch, the loss is 0 and so is its gradient.

`train_step(..., accumulate=n)` takes these means, and `mean` in losses of your own, over all that
the whole batch counts.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fnlm.layers.mask import check_mask
from fnlm.layers.precision import at_least_float32
from fnlm.train._means import mean, mean_of
from fnlm.transforms import remat

__all__ = [
    "cross_entropy", "language_model", "linear_cross_entropy", "linear_language_model",
    "mean", "multiple_choice", "pretraining", "regression", "span", "token_classification",
]  # fmt: skip

IGNORE = -1  # label of positions that do not count
CHUNK = 2**23  # logits at a time, by default: 32 MiB of float32


def cross_entropy(logits: Tensor, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Return the mean of -log softmax(logits)[label] over the positions that have a label.

    Args:
        logits: [..., C], floating point.
        labels: [...] integers in [0, C), or `ignore_index`.
        ignore_index: the label of positions that do not count.

    Returns:
        [] float32 (float64 for float64 logits); 0, with gradient 0, if every label is ignored.

    Raises:
        TypeError: labels are not integers, or logits not floating.
        ValueError: the shapes do not fit.
        IndexError: a label is out of range (on CPU; elsewhere the device stops).

    >>> cross_entropy(torch.zeros(3, 8), torch.tensor([5, -1, 0]))
    tensor(2.0794)

    Source: `torch.nn.functional.cross_entropy`, which pytorch-pretrained-BERT calls with
    ignore_index=-1. Deviation: torch's is NaN if every label is ignored.
    """
    _check_floating(logits)
    labels = _integers(labels, "labels")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            "labels must have the shape of logits without the last dimension: "
            f"labels {tuple(labels.shape)}, logits {tuple(logits.shape)}; give a label for each "
            f"row of logits, or {ignore_index} where there is none"
        )
    return mean_of(_summed(logits, labels, ignore_index), (labels != ignore_index).sum())


def linear_cross_entropy(
    hidden: Tensor,
    table: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = IGNORE,
    chunk_size: int | None = None,
) -> Tensor:
    """Return the cross entropy of hidden @ table^T + bias, without ever holding all logits.

    Logits are computed for `chunk_size` positions at a time, and again in the backward pass. The
    number is that of `cross_entropy`, as are derivatives of every order, under every transform.

    Args:
        hidden: [..., D], floating point.
        table: [V, D], the output layer: see `fnlm.heads.output_table`.
        labels: [...] integers in [0, V), or `ignore_index`.
        bias: [V], or None.
        ignore_index: the label of positions that do not count.
        chunk_size: positions at a time; None takes as many as have `CHUNK` logits. Where one chunk
            holds all, as in small vocabularies, nothing is computed again.

    Returns:
        [] float32 (float64 for float64 hidden states); 0, with gradient 0, if every label is
        ignored.

    Raises:
        TypeError: labels are not integers, or hidden states not floating.
        ValueError: the shapes do not fit, or chunk_size is less than 1.
        IndexError: a label is out of range (on CPU; elsewhere the device stops).

    >>> linear_cross_entropy(torch.zeros(3, 4), torch.ones(8, 4), torch.tensor([5, -1, 0]))
    tensor(2.0794)
    """
    labels = _integers(labels, "labels")
    _check_linear(hidden, table, labels, bias)
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 position, or None, got {chunk_size}")
    size = chunk_size or max(1, CHUNK // max(1, table.shape[0]))

    def total(hidden: Tensor, labels: Tensor, table: Tensor, bias: Tensor | None) -> Tensor:
        logits = hidden @ table.mT if bias is None else F.linear(hidden, table, bias)
        return _summed(logits, labels, ignore_index)

    flat, targets = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)  # [N, D], [N]
    if len(targets) > size:
        total = remat(total)
    chunks = zip(flat.split(size), targets.split(size), strict=True)
    totals = [total(*chunk, table, bias) for chunk in chunks]
    return mean_of(torch.stack(totals).sum(), (labels != ignore_index).sum())


def language_model(logits: Tensor, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy of next-token prediction.

    Args:
        logits: [..., T, V]; those at t predict the token at t + 1, and the last are not used.
        ids: [..., T] token ids; -1 is never a target.
        mask: [..., T] True (or 1) at real tokens, False at padding; targets are the real tokens
            right after a real one.

    Returns:
        [] float32 (float64 for float64 logits); 0 where there is no target.

    Raises:
        TypeError: ids are not integers, or the mask is floating point.
        ValueError: the shapes do not fit.
        IndexError: an id is out of range.

    >>> ids = torch.tensor([[3, 1, 2, 0]])
    >>> language_model(torch.zeros(1, 4, 5), ids, mask=torch.tensor([[1, 1, 1, 0]]))
    tensor(1.6094)

    Source: the loss of `GPT2LMHeadModel` in pytorch-pretrained-bert 0.6.2. Deviation: the mask.
    """
    return cross_entropy(logits, _next_tokens(ids, mask))


def linear_language_model(
    hidden: Tensor,
    table: Tensor,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    chunk_size: int | None = None,
) -> Tensor:
    """Return `language_model` of the logits hidden @ table^T, without ever holding all of them.

    Args:
        hidden: [..., T, D], the last hidden states: `gpt.hidden_states`, `gpt2.hidden_states`.
        table: [V, D], the output layer: see `fnlm.heads.output_table`.
        ids: as in `language_model`.
        mask: as in `language_model`.
        chunk_size: as in `linear_cross_entropy`.

    Returns:
        [] float32 (float64 for float64 hidden states); 0 where there is no target.

    >>> ids = torch.tensor([[3, 1, 2, 0]])
    >>> linear_language_model(torch.zeros(1, 4, 2), torch.ones(5, 2), ids)
    tensor(1.6094)
    """
    return linear_cross_entropy(hidden, table, _next_tokens(ids, mask), chunk_size=chunk_size)


def multiple_choice(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy of the right choice.

    Args:
        logits: [..., C], one score per choice.
        labels: [...] the index of the right choice, or -1 where it is unknown.

    Returns:
        [] float32 (float64 for float64 logits); 0 if every label is -1.

    >>> multiple_choice(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.6931)
    """
    return cross_entropy(logits, labels)


def pretraining(
    mlm_logits: Tensor, nsp_logits: Tensor, mlm_labels: Tensor, nsp_labels: Tensor
) -> Tensor:
    """Return BERT's pretraining loss: masked language modelling plus next-sentence prediction.

    Either loss alone is `cross_entropy`.

    Args:
        mlm_logits: [..., T, V], masked language modelling.
        nsp_logits: [..., 2], next-sentence prediction.
        mlm_labels: [..., T] the original token ids at masked positions, -1 elsewhere.
        nsp_labels: [...] 0 where the second text follows the first, 1 where it does not, or -1.

    Returns:
        [] float32 (float64 for float64 logits).

    >>> pretraining(torch.zeros(1, 3, 4), torch.zeros(1, 2), torch.tensor([[-1, 2, -1]]),
    ...             torch.tensor([0]))
    tensor(2.0794)

    Source: `BertForPreTraining` of pytorch-pretrained-bert 0.6.2.
    """
    return cross_entropy(mlm_logits, mlm_labels) + cross_entropy(nsp_logits, nsp_labels)


def token_classification(logits: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the mean cross entropy of the classes of the real tokens.

    Args:
        logits: [..., T, C].
        labels: [..., T] classes, or -1 at positions that do not count.
        mask: [..., T] nonzero at real tokens; the labels of padding are ignored.

    Returns:
        [] float32 (float64 for float64 logits); 0 if every label is ignored.

    >>> token_classification(torch.zeros(3, 2), torch.tensor([1, 0, 9]), torch.tensor([1, 1, 0]))
    tensor(0.6931)

    Source: `BertForTokenClassification` of pytorch-pretrained-bert 0.6.2. Deviation: -1 is ignored.
    """
    labels = _integers(labels, "labels")
    check_mask(mask)
    if mask is not None:
        labels = torch.where(mask != 0, labels, IGNORE)
    return cross_entropy(logits, labels)


def span(start_logits: Tensor, end_logits: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """Return the mean of the cross entropies of the start and the end position of an answer.

    Args:
        start_logits: [..., T].
        end_logits: [..., T].
        starts: [...] positions; those of T or more lie outside the window and are ignored,
            negative ones are clamped to 0.
        ends: [...] likewise.

    Returns:
        [] float32 (float64 for float64 logits); 0 if every position is ignored.

    >>> starts, ends = torch.tensor([1, 4]), torch.tensor([2, 7])
    >>> span(torch.zeros(2, 4), torch.zeros(2, 4), starts, ends)
    tensor(1.3863)

    Source: `BertForQuestionAnswering` of pytorch-pretrained-bert 0.6.2. Deviations: that one clamps
    the caller's labels in place, and is NaN if every position is ignored.
    """
    outside = start_logits.shape[-1]  # T, one past the last position
    starts, ends = (
        _integers(x, name).clamp(0, outside) for x, name in ((starts, "starts"), (ends, "ends"))
    )
    start_loss = cross_entropy(start_logits, starts, ignore_index=outside)
    end_loss = cross_entropy(end_logits, ends, ignore_index=outside)
    return (start_loss + end_loss) / 2


def regression(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean squared error, for sequence classification with a single output.

    Args:
        logits: [..., 1].
        targets: [...] numbers.

    Returns:
        [] float32 (float64 for float64 logits); NaN if a target is NaN; 0 for an empty batch.

    Raises:
        ValueError: the shapes do not fit.

    >>> regression(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0]))
    tensor(2.)

    Source: `run_classifier.py` of pytorch-pretrained-bert 0.6.2, for STS-B.
    """
    if logits.shape != (*targets.shape, 1):
        raise ValueError(
            "logits must have the shape of targets and a last dimension of 1: "
            f"logits {tuple(logits.shape)}, targets {tuple(targets.shape)}; logits[..., None] or "
            "targets.squeeze(-1) adds or takes it"
        )
    squares = (at_least_float32(logits).squeeze(-1) - targets).square()
    return mean(squares)


def _summed(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """Return the sum of -log softmax(logits)[label] over the positions that have a label: []."""
    counted = labels != ignore_index
    log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)  # [..., C]
    index = torch.where(counted, labels, 0).unsqueeze(-1)  # [..., 1], 0 is a valid class
    try:
        label_log_probs = log_probs.gather(-1, index).squeeze(-1)  # [...]
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(_out_of_range(labels, logits.shape[-1], ignore_index)) from error
    # `where`, not a product: 0 * NaN at an ignored position would be NaN.
    return -torch.where(counted, label_log_probs, 0.0).sum()


def _next_tokens(ids: Any, mask: Tensor | None) -> Tensor:
    """Return the label of each position, the token after it: [..., T]."""
    ids = _integers(ids, "ids")
    labels = torch.cat([ids[..., 1:], torch.full_like(ids[..., :1], IGNORE)], dim=-1)  # [..., T]
    check_mask(mask)
    if mask is None:
        return labels
    if mask.shape != ids.shape:
        raise ValueError(
            f"mask must have the shape of ids: mask {tuple(mask.shape)}, ids {tuple(ids.shape)}"
        )
    real = mask.bool()
    next_real = torch.cat([real[..., 1:], torch.zeros_like(real[..., :1])], dim=-1)
    return torch.where(real & next_real, labels, IGNORE)


def _check_linear(hidden: Tensor, table: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    """Validate types and shapes of `linear_cross_entropy`."""
    if not hidden.is_floating_point():
        raise TypeError(f"hidden must be floating point, got {hidden.dtype}")
    if hidden.shape[:-1] != labels.shape:
        raise ValueError(
            "labels must have the shape of hidden without the last dimension: "
            f"labels {tuple(labels.shape)}, hidden {tuple(hidden.shape)}"
        )
    if len(table.shape) != 2 or table.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"table must be [V, {hidden.shape[-1]}], one row a class, as wide as hidden: "
            f"table {tuple(table.shape)}, hidden {tuple(hidden.shape)}"
        )
    if bias is not None and tuple(bias.shape) != (table.shape[0],):
        raise ValueError(
            f"bias must have one number a class, [{table.shape[0]}], got {tuple(bias.shape)}"
        )


def _integers(x: Any, name: str) -> Tensor:
    """Return integer labels as int64, so that -1 is distinct from every class in every type."""
    if not isinstance(x, Tensor) or x.is_floating_point() or x.is_complex():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        remedy = f"{name}.long() makes them, of one-hot rows {name}.argmax(-1)"
        if not isinstance(x, Tensor):
            remedy = "torch.as_tensor makes one of a list or an array"
        raise TypeError(f"{name} must be a tensor of integers, got {kind}: {remedy}")
    return x.long()


def _check_floating(logits: Any) -> None:
    """Raise TypeError unless logits are a tensor of floating type."""
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"logits must be a tensor, got {type(logits).__name__}: of what a model returns beside "
            "its state, logits, cache = apply(...), give the first"
        )
    if not logits.is_floating_point():
        raise TypeError(
            f"logits must be floating point, got {logits.dtype}: logits come first, then labels"
        )


def _out_of_range(labels: Tensor, classes: int, ignore_index: int) -> str:
    """Return the message for labels out of range, with their range where it can be read."""
    try:
        values = f"got values from {labels.min().item()} to {labels.max().item()}"
    except RuntimeError:  # under vmap, values cannot be read
        values = "one of them is not"
    return (
        f"labels must be at least 0 and less than {classes}, or {ignore_index} where nothing is to "
        f"be predicted; {values}. Where -100 marks what does not count, replace it: "
        f"labels.masked_fill(labels == -100, {ignore_index})"
    )
