"""The Adam step by torch's fused kernel: one pass over memory.

Adam is bound by memory bandwidth: a step reads parameters, gradients and two moments, and writes
three of them. Updates outside of all transforms therefore call the fused kernel, which makes one
pass in place, with `donate=True` on the tensors themselves and without on copies. It expresses the
three optimizers in its terms::

    p <- p (1 - lr decay) - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps)

Without bias correction t is infinite. OpenAI's bias correction is a scalar factor of lr. Its decay
d of the *updated* weight, p - s u for an update u at a rate s, is a scalar factor as well::

    p <- p (1 - d) - s (1 - d) u

Clipping needs one more pass, to read the norms; the kernel applies the factor.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["FusedStep", "can_express", "can_fuse", "clip_divisors", "fused_adam_"]


class FusedStep(NamedTuple):
    """The scalars of one step."""

    lr: float  # factor of the update of leaves without weight decay
    lr_decayed: float  # factor of the update of leaves with weight decay
    shrink: float  # weight decay: p is multiplied by 1 - shrink
    t: float  # step of the bias correction; infinite for none
    b1: float  # decay rate of the first moment estimate
    b2: float  # decay rate of the second moment estimate
    eps: float  # added to the denominator


def can_express(step: FusedStep) -> bool:
    """Return whether the kernel can compute this step.

    It divides 0 by 0 without eps, and has no weight decay at a learning rate of 0.

    >>> can_express(FusedStep(lr=0.1, lr_decayed=0.0, shrink=1.0, t=1, b1=0.9, b2=0.999, eps=1e-8))
    False
    """
    return step.eps > 0 and (step.lr_decayed != 0 or step.shrink == 0)


def clip_divisors(
    grads: list[Tensor], max_norm: float, *, per_tensor: bool, whole: list[Tensor] | None = None
) -> list[float]:
    """Return the divisor (at least 1) of each gradient that clips its norm to `max_norm`.

    `whole` are norms that are known already.

    >>> clip_divisors([torch.tensor([3.0, 4.0]), torch.ones(1)], 1.0, per_tensor=True)
    [5.0, 1.0]
    """
    if max_norm <= 0 or not grads:
        return [1.0] * len(grads)
    norms = torch._foreach_norm([_row_norms(g) for g in grads]) if whole is None else whole
    norms = [norm.double() for norm in norms]
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
    donate: bool = True,
) -> None:
    """Apply one step of Adam in place; with `donate`, gradients whose divisor is not 1, too.

    >>> p, m, v = torch.ones(1), torch.zeros(1), torch.zeros(1)
    >>> step = FusedStep(lr=0.1, lr_decayed=0.1, shrink=0.0, t=1, b1=0.9, b2=0.999, eps=1e-8)
    >>> fused_adam_([p], [torch.ones(1)], [m], [v], step=step, decayed=[False], divisors=[1.0])
    >>> p
    tensor([0.9000])
    """
    # One call of the kernel takes one device, one type, and one value of each scalar.
    groups: dict[tuple[torch.device, torch.dtype, bool, float], list[int]] = {}
    for i, p in enumerate(params):
        groups.setdefault((p.device, p.dtype, decayed[i], divisors[i]), []).append(i)
    for (device, dtype, decay, divisor), group in groups.items():
        t = torch.tensor(float(step.t), dtype=torch.float32, device=device)
        scale, clipped = None, [_laid_out_like(params[i], grads[i]) for i in group]
        if divisor != 1.0 and not donate:
            clipped = list(torch._foreach_div(clipped, divisor))
        elif divisor != 1.0 and dtype == torch.float64:
            torch._foreach_div_(clipped, divisor)  # grad_scale is float32
        elif divisor != 1.0:
            scale = torch.tensor(divisor, dtype=torch.float32, device=device)
        lr = step.lr_decayed if decay else step.lr
        torch._fused_adamw_(
            [params[i] for i in group],
            clipped,
            [mu[i] for i in group],
            [nu[i] for i in group],
            [],
            [t] * len(group),
            lr=lr,  # the kernel decays by 1 - lr * weight_decay
            beta1=step.b1,
            beta2=step.b2,
            weight_decay=step.shrink / lr if decay and lr else 0.0,
            eps=step.eps,
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
        )


def can_fuse(params: list[Tensor], mu: list[Tensor], nu: list[Tensor]) -> bool:
    """Return whether the kernel supports these: floats on CPU or CUDA, in one memory layout.

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
    """Return the norms along the contiguous dimension: torch threads over rows, not over a sum."""
    if g.ndim < 2 or g.dtype not in (torch.float32, torch.float64):
        return g
    return torch.linalg.vector_norm(g, dim=min(range(g.ndim), key=g.stride))


def _laid_out_like(p: Tensor, g: Tensor) -> Tensor:
    """Return the gradient in the layout and type of its parameter: the kernel ignores strides."""
    if g.stride() == p.stride() and g.dtype == p.dtype:
        return g
    return torch.empty_like(p).copy_(g)


def _is_dense(p: Tensor) -> bool:
    """Return whether the elements fill contiguous memory, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
