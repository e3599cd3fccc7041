"""The donated Adam step: one pass over memory, in the buffers of the arguments.

A step of Adam reads parameters, gradients and two averages and writes three of them; arithmetic is
nothing next to that. So the road for `donate=True` calls torch's fused kernel, which makes one
pass, and expresses the three optimizers in its terms::

    p <- p (1 - lr decay) - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Without bias correction t is infinite. OpenAI's correction is a number that joins lr, and so does
its decay d of the *updated* weight, which is p - s u for an update u at a rate s::

    p <- (p - s u) (1 - d)

that is, p (1 - d) - s (1 - d) u. Clipping needs one more pass, to read the norms; the factor is
applied by the kernel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FusedStep", "can_fuse", "can_say", "clip_divisors", "fused_adam_"]


class FusedStep(NamedTuple):
    """The numbers of one step."""

    lr: float  # the factor of the update where weights do not decay
    lr_decayed: float  # and where they do
    shrink: float  # what decay takes off a decayed weight: p (1 - shrink)
    t: float  # the step of the bias correction; infinite for none
    b1: float
    b2: float
    eps: float


def can_say(step: FusedStep) -> bool:
    """Say whether the kernel's terms hold: it has 0 / 0 without e, and shrinks by way of its rate.

    >>> can_say(FusedStep(lr=0.1, lr_decayed=0.0, shrink=1.0, t=1, b1=0.9, b2=0.999, eps=1e-8))
    False
    """
    return step.eps > 0 and (step.lr_decayed != 0 or step.shrink == 0)


def clip_divisors(grads: list[Tensor], max_norm: float, *, per_tensor: bool) -> list[float]:
    """Return for each gradient the number (at least 1) that it has to be divided by.

    >>> clip_divisors([torch.tensor([3.0, 4.0]), torch.ones(1)], 1.0, per_tensor=True)
    [5.0, 1.0]
    """
    if max_norm <= 0 or not grads:
        return [1.0] * len(grads)
    norms = [norm.double() for norm in torch._foreach_norm([_row_norms(g) for g in grads])]
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.cpu() for norm in norms]
    stacked = torch.stack(norms)
    if not per_tensor:
        stacked = torch.linalg.vector_norm(stacked).expand(len(grads))
    return [max((norm + 1e-6) / max_norm, 1.0) for norm in stacked.tolist()]


def fused_adam_(
    params: list[Tensor],
    grads: list[Tensor],
    mu: list[Tensor],
    nu: list[Tensor],
    *,
    step: FusedStep,
    decayed: list[bool],
    divisors: list[float],
) -> None:
    """Make one step of Adam in place; a gradient is overwritten where its divisor is not 1.

    >>> p, m, v = torch.ones(1), torch.zeros(1), torch.zeros(1)
    >>> step = FusedStep(lr=0.1, lr_decayed=0.1, shrink=0.0, t=1, b1=0.9, b2=0.999, eps=1e-8)
    >>> fused_adam_([p], [torch.ones(1)], [m], [v], step=step, decayed=[False], divisors=[1.0])
    >>> p
    tensor([0.9000])
    """
    groups: dict[tuple[torch.device, torch.dtype, bool, float], list[int]] = {}
    for i, p in enumerate(params):
        groups.setdefault((p.device, p.dtype, decayed[i], divisors[i]), []).append(i)
    for (device, dtype, decay, divisor), group in groups.items():
        t = torch.tensor(float(step.t), dtype=torch.float32, device=device)
        scale = None
        if divisor != 1.0 and dtype == torch.float64:
            torch._foreach_div_([grads[i] for i in group], divisor)  # the kernel's is a float32
        elif divisor != 1.0:
            scale = torch.tensor(divisor, dtype=torch.float32, device=device)
        lr = step.lr_decayed if decay else step.lr
        torch._fused_adamw_(
            [params[i] for i in group],
            [_laid_out_like(params[i], grads[i]) for i in group],
            [mu[i] for i in group],
            [nu[i] for i in group],
            [],
            [t] * len(group),
            lr=lr,
            beta1=step.b1,
            beta2=step.b2,
            weight_decay=step.shrink / lr if decay and lr else 0.0,
            eps=step.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
        )


def can_fuse(params: list[Tensor], mu: list[Tensor], nu: list[Tensor]) -> bool:
    """Say whether the kernel takes these: floats on CPU or CUDA, averages laid out as parameters.

    >>> can_fuse([torch.ones(2)], [torch.ones(2)], [torch.ones(2)])
    True
    """
    return all(
        p.device.type in ("cpu", "cuda")
        and p.is_floating_point()
        and _is_dense(p)
        and p.stride() == m.stride() == v.stride()
        and p.dtype == m.dtype == v.dtype
        for p, m, v in zip(params, mu, nu, strict=True)
    )


def _row_norms(g: Tensor) -> Tensor:
    """Return the norms of the rows in memory: torch uses all threads for rows, one for a whole."""
    if g.ndim < 2 or g.dtype not in (torch.float32, torch.float64):
        return g
    return torch.linalg.vector_norm(g, dim=min(range(g.ndim), key=g.stride))


def _laid_out_like(p: Tensor, g: Tensor) -> Tensor:
    """Return the gradient in the layout and type of its parameter: the kernel walks raw memory."""
    if g.stride() == p.stride() and g.dtype == p.dtype:
        return g
    return torch.empty_like(p).copy_(g)


def _is_dense(p: Tensor) -> bool:
    """Say whether the elements fill one stretch of memory, in whatever order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
