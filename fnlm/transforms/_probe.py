"""Leaves that write down how a loss uses them.

A `Probe` stands where a leaf of the parameters stood. What it knows (products, lookups, additions,
scales, layer norms, of the leaf, a view or a cast of it) it computes with the leaf as a constant,
and notes the input and the output: the gradient of the leaf is a product of that input and of the
gradient of that output. In everything else it is the tensor itself, with its derivative. So
autograd finds the rest of the gradient, if there is any, and this holds for what goes past
`__torch_function__` as well, such as an inner `vmap`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import debug_unwrap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from fnlm import tree
from fnlm.layers.linear import linear
from fnlm.transforms._views import View

__all__ = ["Kind", "Probe", "Record", "Tape", "Watch"]

_current_level = torch._C._functorch.maybe_current_level
_level_of = torch._C._functorch.maybe_get_level
Kind = str  # "product", "lookup", "add", "scale" or "norm"


class Record(NamedTuple):
    """One use of a leaf."""

    kind: Kind
    path: str  # of the leaf
    view: View  # what of it was used; of a product, as a matrix [inputs, outputs]
    output: int  # number of the output, whose gradient is needed
    input: int | None = None  # number of the input, if it is needed
    eps: float = 0.0  # of a norm


class Tape:
    """The uses of all probes in a call of a loss, in their order.

    Args:
        seed: a zero of shape [] that autograd tracks; it makes it track outputs.
    """

    def __init__(self, seed: Tensor):
        self.records: list[Record] = []
        self.inputs: list[Tensor] = []
        self.outputs: list[GradientEdge | None] = []  # of the graph, not the tensors themselves
        self._seed = seed
        self._numbers: dict[int, int] = {}  # of the inputs, by identity
        self._versions: list[int] = []
        self._level, self._dual_level = _current_level(), forward_ad._current_level

    def probe(self, path: str, leaf: Tensor, constant: Tensor) -> "Probe":
        """Return the probe of a leaf, which autograd tracks, and of the same as a constant."""
        return Probe.of(leaf, constant, path, View.whole(leaf.shape), self)

    def is_current(self) -> bool:
        """Whether the loss itself runs, and no transform inside of it."""
        return (
            _current_level() == self._level
            and forward_ad._current_level == self._dual_level
            and not torch.compiler.is_compiling()
        )

    def note(self, kind: Kind, probe: "Probe", view: View, x: Any = None, eps: float = 0.0) -> None:
        """Record a use, whose result `output` is called with next."""
        number = None
        if x is not None:
            number = self._numbers.setdefault(id(x), len(self.inputs))
            if number == len(self.inputs):
                self.inputs.append(x)
                self._versions.append(_version(x))
        self.records.append(Record(kind, probe.path, view, len(self.outputs), number, eps))

    def output(self, result: Tensor) -> Tensor:
        """Return the result of a use, tracked by autograd unless gradients are off."""
        if not self.tracks(result):
            result = result + self._seed
        self.outputs.append(get_gradient_edge(result) if self.tracks(result) else None)
        return result

    def tracks(self, x: Tensor) -> bool:
        """Whether x depends on a leaf or the seed, as autograd sees it."""
        return _level_of(x) == self._level and x.requires_grad

    def check(self) -> None:
        """Raise RuntimeError if an input was changed in place after its use."""
        if any(_version(x) != n for x, n in zip(self.inputs, self._versions, strict=True)):
            raise RuntimeError("a tensor was written to after it had been multiplied by a leaf")


class Watch(TorchFunctionMode):
    """Notices derivatives that a loss takes by plain autograd, which no probe sees."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self._level = False, _current_level()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.autograd.grad, torch.autograd.backward, Tensor.backward):
            self.found |= _current_level() == self._level  # further in, probes are plain tensors
        return func(*args, **(kwargs or {}))


class Probe(Tensor):
    """A leaf, or a view of one, that writes its uses on a tape."""

    plain: Tensor
    constant: Tensor
    path: str
    region: View
    tape: Tape

    @staticmethod
    def of(plain: Tensor, constant: Tensor, path: str, region: View, tape: Tape) -> "Probe":
        """Return the probe of a region of the leaf at `path`: two tensors of the same numbers."""
        probe = plain.as_subclass(Probe)
        probe.plain, probe.constant, probe.path = plain, constant, path
        probe.region, probe.tape = region, tape
        return probe

    def viewed(self, view: Callable[[Tensor], Tensor]) -> "Probe":
        """Return the probe of a view of this one."""
        region = self.region.then(view)
        return Probe.of(view(self.plain), view(self.constant), self.path, region, self.tape)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        handler = _HANDLERS.get(func)
        if handler is not None:
            probes = [x for x in (*args, *kwargs.values()) if isinstance(x, Probe)]
            tapes = {id(probe.tape) for probe in probes}
            if len(tapes) == 1 and probes[0].tape.is_current():
                result = handler(probes[0].tape, *args, **kwargs)
                if result is not NotImplemented:
                    return result
        args, kwargs = tree.map(lambda x: x.plain if isinstance(x, Probe) else x, (args, kwargs))
        return func(*args, **kwargs)


def _constant(x: Any) -> Any:
    """Return the tensor of a probe, without its derivative; anything else as it is."""
    return x.constant if isinstance(x, Probe) else x


def _version(x: Tensor) -> int:
    """Return how often a tensor was written to."""
    inner = debug_unwrap(x)
    return 0 if inner.is_inference() else inner._version


def _is_input(x: Any, *probes: Any) -> bool:
    """Whether x is a tensor of the type of all probes, and none itself."""
    if not isinstance(x, Tensor) or isinstance(x, Probe) or not x.ndim:
        return False
    return all(probe.plain.dtype == x.dtype for probe in probes if isinstance(probe, Probe))


def _linear(tape: Tape, input: Any, weight: Any, bias: Any = None) -> Any:
    if not _is_input(input, weight, bias) or weight.ndim != 2 or not _is_vector(bias):
        return NotImplemented
    result = linear(input, _constant(weight).mT, _constant(bias))
    if result.dtype != input.dtype:  # autocast
        return NotImplemented
    if isinstance(weight, Probe):
        view = weight.region.then(lambda x: x.mT)
        if view.box is None:
            return NotImplemented
        tape.note("product", weight, view, input)
    if isinstance(bias, Probe):
        tape.note("add", bias, bias.region)
    return tape.output(result)


def _is_vector(bias: Any) -> bool:
    return bias is None or bias.ndim == 1


def _matmul(tape: Tape, input: Any, other: Any) -> Any:
    if not _is_input(input, other) or other.region.box is None:
        return NotImplemented
    result = linear(input, _constant(other), None)
    if result.dtype != input.dtype:
        return NotImplemented
    tape.note("product", other, other.region, input)
    return tape.output(result)


def _addmm(tape: Tape, input: Any, mat1: Any, mat2: Any, *, beta: Any = 1, alpha: Any = 1) -> Any:
    if beta != 1 or alpha != 1 or input.ndim != 1:
        return NotImplemented
    if isinstance(mat2, Probe):
        return _linear(tape, mat1, mat2.viewed(lambda x: x.mT), input)
    return NotImplemented if isinstance(mat1, Probe) else _linear(tape, mat1, mat2.mT, input)


def _embedding(
    tape: Tape, input: Any, weight: Any, *, padding_idx: Any = None, max_norm: Any = None,
    norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
) -> Any:  # fmt: skip
    plain = padding_idx is None and max_norm is None and not scale_grad_by_freq and not sparse
    if not plain or isinstance(input, Probe) or weight.region.box is None:
        return NotImplemented
    tape.note("lookup", weight, weight.region, input)
    return tape.output(F.embedding(input, _constant(weight)))


def _getitem(tape: Tape, table: Any, index: Any) -> Any:
    if not isinstance(table, Probe):
        return NotImplemented
    if isinstance(index, Tensor):
        if isinstance(index, Probe) or index.dtype not in (torch.int64, torch.int32):
            return NotImplemented
        rows = torch.where(index < 0, index + table.shape[0], index)
        tape.note("lookup", table, table.region, rows)
        return tape.output(_constant(table)[index])
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or type(part) in (int, slice, type(...)) for part in parts):
        return NotImplemented
    return table.viewed(lambda x: x[index])


def _transpose(tape: Tape, matrix: Any, *axes: Any) -> Any:
    if not isinstance(matrix, Probe) or matrix.ndim != 2:
        return NotImplemented
    if axes and (len(axes) != 2 or axes[0] % 2 == axes[1] % 2):
        return NotImplemented
    return matrix.viewed(lambda x: x.mT)


def _to(tape: Tape, leaf: Any, *given: Any, **options: Any) -> Any:
    """Cast a leaf: what it is used for next is a use of the leaf, in another dtype."""
    if not isinstance(leaf, Probe):
        return NotImplemented
    plain, constant = leaf.plain.to(*given, **options), leaf.constant.to(*given, **options)
    if not plain.dtype.is_floating_point or plain.device != leaf.plain.device:
        return NotImplemented
    return Probe.of(plain, constant, leaf.path, leaf.region, tape)


def _add(tape: Tape, input: Any, other: Any, *, alpha: Any = 1) -> Any:
    if alpha != 1 or not all(isinstance(x, Tensor | int | float) for x in (input, other)):
        return NotImplemented
    probes = [x for x in (input, other) if isinstance(x, Probe)]
    dtype = torch.result_type(_constant(input), _constant(other))
    if any(probe.plain.dtype != dtype for probe in probes):
        return NotImplemented
    for probe in probes:
        tape.note("add", probe, probe.region)
    return tape.output(torch.add(_constant(input), _constant(other)))


def _mul(tape: Tape, input: Any, other: Any) -> Any:
    x, probe = (input, other) if isinstance(other, Probe) else (other, input)
    if not isinstance(x, Tensor) or isinstance(x, Probe) or x.dtype != probe.plain.dtype:
        return NotImplemented
    tape.note("scale", probe, probe.region, x)
    return tape.output(x * _constant(probe))


def _layer_norm(
    tape: Tape,
    input: Any,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Any:
    if not _is_input(input, weight, bias) or len(normalized_shape) != 1:
        return NotImplemented
    result = F.layer_norm(input, normalized_shape, _constant(weight), _constant(bias), eps)
    if result.dtype != input.dtype:
        return NotImplemented
    if isinstance(weight, Probe):
        tape.note("norm", weight, weight.region, input, eps)
    if isinstance(bias, Probe):
        tape.note("add", bias, bias.region)
    return tape.output(result)


_HANDLERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    Tensor.__getitem__: _getitem,
    Tensor.mT.__get__: _transpose,  # type: ignore[attr-defined]
    Tensor.T.__get__: _transpose,  # type: ignore[attr-defined]
    Tensor.t: _transpose,
    torch.t: _transpose,
    Tensor.transpose: _transpose,
    torch.transpose: _transpose,
    Tensor.to: _to,
    Tensor.double: lambda tape, leaf: _to(tape, leaf, torch.float64),
    Tensor.float: lambda tape, leaf: _to(tape, leaf, torch.float32),
    Tensor.half: lambda tape, leaf: _to(tape, leaf, torch.float16),
    Tensor.bfloat16: lambda tape, leaf: _to(tape, leaf, torch.bfloat16),
    torch.add: _add,
    Tensor.add: _add,
    torch.mul: _mul,
    Tensor.mul: _mul,
}
