"""Cross entropies of softmaxes that know their curvature in closed form.

With logits z and probabilities p = softmax(z), the Hessian of -log p[label] by z is::

    H = diag(p) - p p^T

and does not depend on the label. So it is the Fisher information of the distribution p as well, and
a product with it takes neither a graph nor a second derivative.

A loss with a method `curvature_product` is asked for its products by `ggn`; any other loss is
differentiated twice.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LinearSoftmaxCrossEntropy", "SoftmaxCrossEntropy"]

IGNORE = -1  # label of positions that do not count


class SoftmaxCrossEntropy(NamedTuple):
    """The mean of -log softmax(logits)[label] over labelled positions: `loss((logits, labels))`.

    Logits are [..., V], labels [...] integers. Of log-probabilities it is the same function, as
    log_softmax leaves them as they are.

    >>> SoftmaxCrossEntropy()((torch.zeros(3, 8), torch.tensor([5, -1, 0])))
    tensor(2.0794)
    """

    ignore_index: int = IGNORE  # label of positions that do not count

    def __call__(self, outputs: Any) -> Tensor:
        logits, labels = _pair(outputs)
        log_probs = torch.log_softmax(logits, -1)
        counted = _counted(labels, self.ignore_index, logits.shape[-1])
        taken = log_probs.gather(-1, torch.where(counted, labels, 0).unsqueeze(-1)).squeeze(-1)
        return -(torch.where(counted, taken, 0.0) * _shares(counted, logits)).sum()

    def curvature_product(self, outputs: Any, tangents: tuple[Tensor]) -> tuple[Tensor]:
        """Return the product of the Hessian by the logits, p (u - p . u) at each position.

        Args:
            outputs: `(logits [..., V], labels [...])`, or logits alone where all positions count.
            tangents: `(u [..., V],)`.
        """
        logits, (u,) = _logits(outputs), tangents
        p = logits.softmax(-1)
        mean = (p.unsqueeze(-2) @ u.unsqueeze(-1)).squeeze(-1)  # p . u: [..., 1], no [..., V]
        if isinstance(outputs, Tensor):
            return (p * (u - mean) / max(mean.numel(), 1),)
        counted = _counted(outputs[1], self.ignore_index, logits.shape[-1])
        # `where`, not a product: 0 * NaN at an ignored position would be NaN.
        centered = torch.where(counted.unsqueeze(-1), u - mean, 0.0)
        p = torch.where(counted.unsqueeze(-1), p, 0.0) * _shares(counted, p).unsqueeze(-1)
        return (centered * p,)


class LinearSoftmaxCrossEntropy(NamedTuple):
    """`SoftmaxCrossEntropy` of logits = hidden table^T + bias, whose curvature needs no logits.

    It is called as `loss((hidden, table, labels))` or `loss((hidden, table, bias, labels))`, with
    hidden [..., D], table [V, D], bias [V] and labels [...]. Curvature is that by the logits, so
    `ggn` gives the products of a model that returned the logits, in chunks of the vocabulary.

    >>> loss = LinearSoftmaxCrossEntropy(chunk_size=3)
    >>> loss((torch.zeros(3, 4), torch.ones(8, 4), torch.tensor([5, -1, 0])))
    tensor(2.0794)
    """

    chunk_size: int = 8192  # tokens of the vocabulary at a time
    ignore_index: int = IGNORE  # label of positions that do not count

    def __call__(self, outputs: Any) -> Tensor:
        hidden, table, *bias, labels = outputs
        logits = F.linear(hidden, table, *bias)
        return SoftmaxCrossEntropy(self.ignore_index)((logits, labels))

    def curvature_product(
        self, outputs: tuple[Tensor, ...], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return J^T H J applied to tangents of hidden, table and bias, J being that of the logits.

        Args:
            outputs: `(hidden, table, labels)` or `(hidden, table, bias, labels)`.
            tangents: those of all but the labels.
        """
        *primals, labels = outputs
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")
        counted = _counted(labels, self.ignore_index, len(primals[1]))
        shares = _shares(counted, primals[0]).unsqueeze(-1)  # [..., 1]
        hidden = torch.where(counted.unsqueeze(-1), primals[0], 0.0).flatten(0, -2)  # [N, D]
        total, mean = self._softmax_mean(primals, tangents)
        to_hidden: Any = 0.0
        parts: list[tuple[Tensor, ...]] = []
        for (table, *_), z, u in self._chunks(primals, tangents):
            p = torch.where(counted.unsqueeze(-1), (z - total).exp(), 0.0) * shares
            cotangent = (p * torch.where(counted.unsqueeze(-1), u - mean, 0.0)).to(table.dtype)
            to_hidden = to_hidden + cotangent @ table  # [..., D]
            rows = cotangent.flatten(0, -2)  # [N, c]
            parts.append((rows.mT @ hidden, rows.sum(0))[: len(primals) - 1])
        return to_hidden, *(torch.cat(chunks) for chunks in zip(*parts, strict=True))

    def _softmax_mean(
        self, primals: list[Tensor], tangents: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return log sum exp z and sum p u over the whole vocabulary, each [..., 1]."""
        total: Any = None
        mean: Any = 0.0
        for _, z, u in self._chunks(primals, tangents):
            part = z.logsumexp(-1, keepdim=True)
            new = part if total is None else torch.logaddexp(total, part)
            here = ((z - new).exp().unsqueeze(-2) @ u.unsqueeze(-1)).squeeze(-1)
            mean = here if total is None else mean * (total - new).exp() + here
            total = new
        return total, mean

    def _chunks(
        self, primals: list[Tensor], tangents: tuple[Tensor, ...]
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor, Tensor]]:
        """Yield rows of table and bias, with their logits and the tangents of these, [..., c]."""
        (hidden, *leaves), (hidden_tangent, *along) = primals, tangents
        pieces = zip(*(x.split(self.chunk_size) for x in (*leaves, *along)), strict=True)
        for piece in pieces:
            here, moved = piece[: len(leaves)], piece[len(leaves) :]
            u = F.linear(hidden_tangent, here[0]) + F.linear(hidden, *moved)
            yield here, _wide(F.linear(hidden, *here)), _wide(u)


def _pair(outputs: Any) -> tuple[Tensor, Tensor]:
    if isinstance(outputs, Tensor):
        raise ValueError("the loss needs labels: let the model return the pair (logits, labels)")
    logits, labels = outputs
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            "labels must have the shape of logits without the last dimension: "
            f"labels {tuple(labels.shape)}, logits {tuple(logits.shape)}"
        )
    return _wide(logits), labels


def _logits(outputs: Any) -> Tensor:
    return _wide(outputs) if isinstance(outputs, Tensor) else _pair(outputs)[0]


def _counted(labels: Tensor, ignore_index: int, classes: int) -> Tensor:
    """Return where there is a label, after a check (on CPU) that each is one of the classes."""
    counted = labels != ignore_index
    index = torch.where(counted, labels, 0).unsqueeze(-1)
    every = torch.zeros((), device=labels.device).expand(*labels.shape, classes)
    try:
        every.gather(-1, index)
    except RuntimeError as error:
        if "out of bounds" not in str(error):
            raise
        raise IndexError(
            f"labels must be at least 0 and less than {classes}, or {ignore_index} where nothing "
            f"counts. Where -100 marks that: labels.masked_fill(labels == -100, {ignore_index})"
        ) from error
    return counted


def _shares(counted: Tensor, like: Tensor) -> Tensor:
    """Return 1 / number of positions that count, at each of them; 0 at the others."""
    counts = counted.to(like.dtype)
    return counts / counts.sum().clamp_min(1)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
