"""A pickle reader that imports and calls nothing: it returns a description of the content.

A pickle is a program. This machine runs the part of its language that a dict of tensors needs, on
records of its own: a global name is looked up in a fixed table, and a call builds a record by a
function of this file. Anything else ends in a ValueError. Work and memory are bounded
by the length of the pickle: no step does more than the bytes it consumed, or counts the excess.
"""

import math
import mmap
import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

__all__ = ["Made", "Pairs", "Run", "Storage", "Strided", "run"]

# A tensor takes about 45 steps, a plain number one: enough for 20,000 tensors, in a second.
_STEPS = 1_000_000
_BYTES = 1 << 26
_LINE = 1 << 16
_DIMENSIONS = 64
_LARGEST = 1 << 62
_EXPANDED = 1 << 24  # elements that a tensor may have beyond those in its storage


class Storage(NamedTuple):
    """Elements `start` to `start + length` of the `numel` elements stored under `key`."""

    dtype: str
    key: str
    numel: int
    start: int
    length: int


class Strided(NamedTuple):
    """A tensor: a view of a storage, within its bounds."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Pairs:
    """A dict as pairs: keys are neither hashed nor compared."""

    __slots__ = ("holds_tensors", "items")

    def __init__(self) -> None:
        self.items: list[tuple[object, object]] = []
        self.holds_tensors = False

    def add(self, key: object, value: object) -> None:
        """Append an item."""
        self.items.append((key, value))
        self.holds_tensors |= isinstance(value, Strided)


@dataclass(slots=True, eq=False)
class Made:
    """The record of a call of one of the caller's names, which is not carried out."""

    name: str
    arguments: tuple[Any, ...]
    state: Any = None


class Run(NamedTuple):
    """The description of a pickle, and where it ended."""

    value: Any
    end: int
    storages: dict[str, Storage]  # all that it named, whole


class _Symbol(NamedTuple):
    """The record of a global: its name."""

    name: str


def run(
    data: bytes | mmap.mmap,
    start: int,
    stop: int,
    *,
    names: Collection[str] = (),
    steps: int = _STEPS,
    size: int = _BYTES,
) -> Run:
    """Return the description of the pickle in bytes `start` to `stop`.

    Args:
        names: more globals that it may name, "module name"; calls of them are recorded as `Made`.
        steps, size: how many steps it may take, and bytes it may have.

    Raises:
        ValueError: it is damaged, asks for what may run code, or is too long.
    """
    window = _Window(data, start, min(stop, start + size))
    machine = _Machine(names, steps)
    try:
        for opcode, argument, _ in pickletools.genops(window):  # type: ignore[arg-type]
            machine.step(opcode.name, argument)
        return Run(machine.pop(), window.position, machine.storages)
    except (IndexError, OverflowError, UnicodeError) as error:
        raise ValueError(f"the pickle is damaged ({error}): copy the file again") from error


class _Window:
    """A read-only file over a part of a buffer."""

    def __init__(self, data: bytes | mmap.mmap, start: int, stop: int) -> None:
        self.data, self.position, self.end = data, start, stop

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        stop = min(self.position + size, self.end)
        chunk = bytes(self.data[self.position : stop])
        self.position = stop
        return chunk

    def readline(self) -> bytes:
        stop = min(self.position + _LINE, self.end)
        line = self.read((self.data.find(b"\n", self.position, stop) + 1 or stop) - self.position)
        if b"\\" in line:
            raise ValueError("the pickle holds text with escapes, which torch.save doesn't write")
        return line


class _Machine:
    """The stack, the marks in it and the memo."""

    def __init__(self, names: Collection[str], most: int) -> None:
        self.names, self.most, self.steps = names, most, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, name: str, argument: Any) -> None:
        self.spend(1)
        if action := _ACTIONS.get(name):
            action(self, argument)
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name in _PUSHED:
            self.stack.append(argument)
        elif name not in _NOTHING:
            raise _forbidden(f"{name} {argument}" if isinstance(argument, str) else name)

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > self.most:
            raise ValueError(
                f"the pickle takes more than {self.most} steps, which no dict of tensors does: "
                "save the tensors alone"
            )

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError("nothing after the mark")
        return self.stack.pop()

    def top(self, kind: type) -> Any:
        """Return the container on top of the stack."""
        if not isinstance(self.stack[-1], kind):
            raise ValueError("the pickle adds items to what holds none: copy the file again")
        return self.stack[-1]

    def take(self) -> list[Any]:
        """Pop the items above the last mark, and the mark."""
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def tuple_of(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self.stack.append(tuple(reversed(items)))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"the pickle has nothing in memo {index}: copy the file again")
        self.stack.append(self.memo[index])

    def set_items(self, items: list[Any]) -> None:
        target = self.top(Pairs)
        if len(items) % 2:
            raise ValueError("the pickle sets a key to nothing: copy the file again")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target.add(key, value)

    def extend(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def symbol(self, name: str) -> None:
        if all(name not in known for known in (_CALLS, _NAMES, _STORAGES, self.names)):
            raise _forbidden(name)
        self.stack.append(_Symbol(name))

    def stack_symbol(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("the pickle names a global by what is no text: copy the file again")
        self.symbol(f"{module} {name}")

    def reduce(self, *, ours: bool) -> None:
        arguments, function = self.pop(), self.pop()
        name = function.name if isinstance(function, _Symbol) else type(function).__name__
        if name not in self.names and not (ours and name in _CALLS):
            raise _forbidden(f"a call of {name}")
        if not isinstance(arguments, tuple):
            raise ValueError(f"the pickle calls {name} without a tuple: copy the file again")
        theirs = name in self.names
        self.stack.append(Made(name, arguments) if theirs else _CALLS[name](self, arguments))

    def build(self) -> None:
        """Keep the state of a `Made`; drop that of an OrderedDict, a state dict's `_metadata`."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Made):
            target.state = state
        elif not isinstance(target, Pairs):
            raise _forbidden(f"attributes of {type(target).__name__}")

    def storage(self) -> None:
        match self.pop():
            case ("storage", _Symbol(kind), str(key), str(), int(numel), *rest) if (
                kind in _STORAGES and 0 <= numel < _LARGEST and len(key) < 100 and len(rest) <= 1
            ):
                dtype = _STORAGES[kind]
            case _:
                raise _forbidden("a persistent object that is no storage of numbers")
        whole = Storage(dtype, key, numel, 0, numel)
        if self.storages.setdefault(key, whole) != whole:
            raise ValueError(f"storage {key!r} is described in two ways: save the tensors again")
        match rest:
            case [] | [None]:
                self.stack.append(whole)
            case [(str(), int(start), int(length))] if 0 <= start <= start + length <= numel:
                self.stack.append(whole._replace(start=start, length=length))
            case _:
                raise ValueError(f"storage {key!r} has a view that leaves it: copy the file again")


def _forbidden(what: str) -> ValueError:
    if what.startswith("fnlm."):
        return ValueError(
            "it is a tree of fnlm's: torch.load it, and write it by its family's save"
        )
    return ValueError(
        f"the pickle asks for {what[:200]}, and fnlm runs nothing that a file asks for: if you "
        "trust the file, load it with the program that wrote it, and save a plain dict of "
        "tensors by torch.save(model.state_dict(), path)"
    )


def _strided(machine: _Machine, arguments: tuple[Any, ...]) -> Strided:
    """Return a tensor, after checking that its elements lie in its storage."""
    match arguments:
        case (Storage() as storage, int(offset), tuple(shape), tuple(stride), *rest) if (
            len(rest) <= 3 and len(shape) == len(stride) <= _DIMENSIONS
        ):
            pass
        case _:
            raise ValueError("the pickle describes a tensor in no known form: save it again")
    if not all(type(n) is int and 0 <= n < _LARGEST for n in (offset, *shape, *stride)):
        raise ValueError(f"a tensor of storage {storage.key!r} has sizes that are no sizes")
    largest = _LARGEST if 0 in shape else max(storage.length, _EXPANDED)
    if math.prod(n for n in shape if n) > largest:
        raise ValueError(
            f"a tensor of shape {shape} is far larger than its storage of {storage.length} elements"
        )
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if 0 not in shape and last >= storage.length:
        raise ValueError(
            f"a tensor of shape {shape} and stride {stride} at {offset} leaves its storage of "
            f"{storage.length} elements: copy or download the file again"
        )
    return Strided(storage, offset, shape, stride)


def _parameter(machine: _Machine, arguments: tuple[Any, ...]) -> Strided:
    if not arguments or not isinstance(arguments[0], Strided):
        raise ValueError("the pickle describes a parameter that holds no tensor: save it again")
    return arguments[0]


def _ordered_dict(machine: _Machine, arguments: tuple[Any, ...]) -> Pairs:
    """Return an OrderedDict, empty or (as Python 2 wrote them) of a list of pairs."""
    result = Pairs()
    match arguments:
        case ():
            pass
        case (list(items),):
            machine.spend(len(items))
            for item in items:
                if not isinstance(item, list | tuple) or len(item) != 2:
                    raise ValueError("the pickle makes a dict of no pairs: copy the file again")
                result.add(*item)
        case _:
            raise ValueError("the pickle makes a dict in no known form: copy the file again")
    return result


def _size(machine: _Machine, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple):
        raise ValueError("the pickle describes a shape in no known form: save it again")
    return arguments[0]


def _device(machine: _Machine, arguments: tuple[Any, ...]) -> _Symbol:
    return _Symbol("torch device")


# The globals that a pickle may name. Calls of these are recorded:
_CALLS: dict[str, Callable[[_Machine, tuple[Any, ...]], Any]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor": _strided,
    "torch._utils _rebuild_tensor_v2": _strided,
    "torch._utils _rebuild_parameter": _parameter,
    "torch._utils _rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter Parameter": _parameter,
    "torch Size": _size,
    "torch device": _device,
}
# these are types of storages:
_STORAGES = {
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch LongStorage": "int64",
    "torch IntStorage": "int32",
    "torch ShortStorage": "int16",
    "torch CharStorage": "int8",
    "torch ByteStorage": "uint8",
    "torch BoolStorage": "bool",
}
# and these are values, of which nothing is read.
_NAMES = {f"torch {dtype}" for dtype in _STORAGES.values()}

_NOTHING = {"PROTO", "FRAME", "STOP"}
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": Pairs,
}
_PUSHED = set(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 "
    "BYTEARRAY8".split()
)


def _dict(machine: _Machine, items: list[Any]) -> None:
    machine.stack.append(Pairs())
    machine.set_items(items)


# A container is made of what is above the last mark.
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.take())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.stack.append(machine.take()),
    "FROZENSET": lambda machine, _: machine.stack.append(machine.take()),
    "DICT": lambda machine, _: _dict(machine, machine.take()),
    "APPEND": lambda machine, _: machine.extend([machine.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.take()),
    "ADDITEMS": lambda machine, _: machine.extend(machine.take()),
    "SETITEM": lambda machine, _: machine.set_items([machine.pop(), machine.pop()][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take()),
    "PUT": lambda machine, index: machine.put(index),
    "BINPUT": lambda machine, index: machine.put(index),
    "LONG_BINPUT": lambda machine, index: machine.put(index),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GET": lambda machine, index: machine.get(index),
    "BINGET": lambda machine, index: machine.get(index),
    "LONG_BINGET": lambda machine, index: machine.get(index),
    "GLOBAL": lambda machine, name: machine.symbol(name),
    "STACK_GLOBAL": lambda machine, _: machine.stack_symbol(),
    "REDUCE": lambda machine, _: machine.reduce(ours=True),
    "NEWOBJ": lambda machine, _: machine.reduce(ours=False),
    "BUILD": lambda machine, _: machine.build(),
    "BINPERSID": lambda machine, _: machine.storage(),
}
