"""Counter-based random numbers: pure functions of explicit keys.

A key is an int64 tensor of shape []. Every function also accepts a batch of keys of shape [...],
and the result then has shape [*key.shape, *shape]. No global generator is read or written, so the
same key gives the same bits in a loop, under `vmap`, in any chunking, under recomputation and on
every device.

Element i of a draw is a hash of (key, i) in 32-bit integer arithmetic: two rounds of a
multiply-xorshift mixer, with one half of the key mixed in before each. Derived keys (`split`,
`fold_in`) use the 64-bit finalizer of SplitMix64.

Sources: Salmon et al. 2011 (counter-based generators); Steele, Lea and Flood 2014 (SplitMix); the
32-bit multipliers are those of C. Wellons' "hash-prospector". Deviation: in 32 bits the shifts are
arithmetic, one operation cheaper than logical ones; the highest bit of a draw is therefore 0, and
counters below 2**31 do not collide in the first round.
"""

import math
import operator

import torch
from torch import Tensor

__all__ = ["bernoulli", "categorical", "fold_in", "gumbel", "key", "normal", "split", "uniform"]


def _signed(value: int, bits: int) -> int:
    """Reinterpret an unsigned integer as two's complement, as torch's integers are."""
    return value - (1 << bits) if value >> (bits - 1) else value


_GAMMA = _signed(0x9E3779B97F4A7C15, 64)  # 2**64 / golden ratio, odd: multiples of it never collide
_FOLD = _signed(0xD1B54A32D192ED03, 64)  # separates fold_in(key, i) from split(key, n)[i]
_DRAW = _signed(0xA0761D6478BD642F, 64)  # separates random numbers from derived keys
_MIX64 = (_signed(0xBF58476D1CE4E5B9, 64), _signed(0x94D049BB133111EB, 64))
_MIX32 = (_signed(0x7FEB352D, 32), _signed(0x846CA68B, 32))
_BLOCK = 1 << 18  # numbers hashed at a time, so that temporaries stay in a core's cache


def key(seed: int) -> Tensor:
    """Make a key from an integer seed.

    Args:
        seed: -2**63 <= seed < 2**63. Neighbouring seeds give independent keys.

    Returns:
        int64 tensor of shape [].

    >>> uniform(key(0), (3,)).equal(uniform(key(0), (3,)))
    True
    """
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer, got {seed!r}: random.key(0)") from None
    if not -(1 << 63) <= seed < 1 << 63:
        raise ValueError(f"seed must fit in 64 signed bits, got {seed}")
    return _mix64(torch.tensor(seed) + _GAMMA)


def split(key: Tensor, n: int = 2) -> Tensor:
    """Split a key into n keys, independent of each other and of the numbers drawn from `key`.

    Args:
        key: [...] keys.
        n: number of keys; the first m of n are the same for every n >= m.

    Returns:
        [..., n] keys.

    >>> for_init, for_dropout = split(key(0))
    >>> split(for_init, 3).shape
    torch.Size([3])
    """
    check_key(key)
    if n < 0:
        raise ValueError(f"n must be a number of keys, 0 or more, got {n}")
    counter = torch.arange(1, n + 1, device=key.device)
    return _mix64(_mix64(key).unsqueeze(-1) + counter * _GAMMA)


def fold_in(key: Tensor, data: int | Tensor) -> Tensor:
    """Derive a key from a key and an integer, such as a training step or the index of a row.

    Args:
        key: [...] keys.
        data: an integer, or an int64 tensor that broadcasts against `key`.

    Returns:
        keys of the broadcast shape.

    >>> bool(fold_in(key(0), 7) == fold_in(key(0), torch.tensor(7)))
    True
    """
    check_key(key)
    if isinstance(data, str | float):
        raise TypeError(f"data must be an integer, such as a step, got {data!r}")
    counter = data if isinstance(data, Tensor) else torch.tensor(data, device=key.device)
    return _mix64(_mix64(key ^ _FOLD) + counter * _GAMMA)


def uniform(key: Tensor, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Sample from the uniform distribution on [0, 1): multiples of 2**-24 (float64: of 2**-53).

    Args:
        key: [...] keys.
        shape: shape of the sample for each key.
        dtype: a floating-point type; half precision is rounded from float32 (possibly up to 1).

    Returns:
        [..., *shape].

    >>> uniform(split(key(0), 5), (2, 3)).shape
    torch.Size([5, 2, 3])
    """
    if dtype == torch.float64:
        high, low = split(key).unbind(-1)
        # 53 bits: 26 high ones and 27 low ones.
        low_bits = (_bits(low, shape) & 0x7FFFFFF).to(dtype)
        return ((_bits(high, shape) & 0x3FFFFFF).to(dtype) * 2**27 + low_bits) * 2**-53
    return _grid(key, shape).mul_(2**-24).to(dtype)


def normal(key: Tensor, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
    """Sample from the standard normal distribution (Box-Muller; |x| < 5.8 in float32).

    Args:
        key: [...] keys.
        shape: shape of the sample for each key.
        dtype: a floating-point type; half precision is rounded from float32.

    Returns:
        [..., *shape].

    >>> bool(normal(key(0), (10_000,)).mean().abs() < 0.05)
    True
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    radius, angle = split(key).unbind(-1)
    r = (1 - uniform(radius, shape, wide)).log_().mul_(-2).sqrt_()  # sqrt(-2 log u), u in (0, 1]
    return r.mul_(uniform(angle, shape, wide).mul_(2 * math.pi).cos_()).to(dtype)


def gumbel(key: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """Sample from the standard Gumbel distribution in float32, with probabilities of 24 bits.

    >>> gumbel(key(0), (4,)).shape
    torch.Size([4])
    """
    return -torch.log(-torch.log1p(-(_grid(key, shape) + 0.5) * 2**-24))


def bernoulli(key: Tensor, p: float, shape: tuple[int, ...] = ()) -> Tensor:
    """Sample booleans that are True with probability p (rounded to a multiple of 2**-31).

    Args:
        key: [...] keys.
        p: 0 <= p <= 1.
        shape: shape of the sample for each key.

    Returns:
        bool [..., *shape].

    >>> bernoulli(key(0), 1.0, (2,)).all()
    tensor(True)
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must be a probability, got {p}")
    return _bits(key, shape) <= round(p * 2**31) - 1  # with "<", 2**31 would overflow for p = 1


def categorical(key: Tensor, logits: Tensor) -> Tensor:
    """Sample an index with probability softmax(logits), by the Gumbel-max trick.

    Args:
        key: [...] keys, one per row; further leading axes of `logits` share a key.
        logits: [..., *rows, V]; -inf excludes an index.

    Returns:
        int64 [..., *rows]; -1 where the logits are not a distribution: they hold NaN or infinity,
        or exclude every index.

    >>> categorical(split(key(0), 2), torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]]))
    tensor([0, 1])
    """
    check_key(key)
    if key.shape != logits.shape[: key.ndim] or key.ndim == logits.ndim:
        raise ValueError(
            f"key of shape {list(key.shape)} does not lead logits of shape {list(logits.shape)}: "
            "give one key, or one key a row"
        )
    logits = logits.float()
    samples = (logits + gumbel(key, tuple(logits.shape[key.ndim :]))).argmax(-1)
    return torch.where(logits.amax(-1).isfinite(), samples, -1)  # amax propagates NaN


def check_key(key: Tensor) -> None:
    """Raise TypeError unless a key is a tensor made by `key`."""
    if not isinstance(key, Tensor) or key.dtype != torch.int64:
        value = f"{key.dtype} tensor" if isinstance(key, Tensor) else repr(key)[:60]
        seed = int(key) if isinstance(key, int) else 0
        raise TypeError(
            "key must be an int64 tensor made by random.key(seed), got "
            f"{value}: give random.key({seed})"
        )


def _mix64(x: Tensor) -> Tensor:
    """Apply SplitMix64's finalizer, a bijection of 64-bit integers. [...] -> [...]."""
    # The masks make the arithmetic shifts logical.
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX64[0]
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX64[1]
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _mix32_(x: Tensor) -> Tensor:
    """Mix an int32 tensor in place, as memory traffic is the bottleneck, not arithmetic."""
    x.bitwise_xor_(x >> 16).mul_(_MIX32[0])
    x.bitwise_xor_(x >> 15).mul_(_MIX32[1])
    return x.bitwise_xor_(x >> 16)


def _bits(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Hash (key, element index) to 31 random bits: non-negative int32 [*key.shape, *shape]."""
    check_key(key)
    if isinstance(shape, int):
        raise TypeError(f"shape must be a tuple, got {shape}: give ({shape},)")
    size = math.prod(shape)
    if size >= 1 << 31:
        raise ValueError(f"one key draws fewer than 2**31 numbers, asked for {size}: split the key")
    hashed = _mix64(key ^ _DRAW).unsqueeze(-1)  # [..., 1]
    low, high = hashed.to(torch.int32), (hashed >> 32).to(torch.int32)
    bits = torch.arange(size, dtype=torch.int32, device=key.device) ^ low  # [..., size]
    blocked = key.device.type == "cpu" and not torch.compiler.is_compiling()
    if not blocked or bits.numel() <= _BLOCK:
        _mix32_(_mix32_(bits).bitwise_xor_(high))
        return bits.reshape((*key.shape, *shape))
    rows = max(1, _BLOCK // size)  # keys that are drawn from at a time
    pairs = (x.reshape(-1, x.shape[-1]).split(rows) for x in (bits, high))
    for numbers, halves in zip(*pairs, strict=True):
        for block in numbers.split(_BLOCK, -1):
            _mix32_(_mix32_(block).bitwise_xor_(halves))
    return bits.reshape((*key.shape, *shape))


def _grid(key: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sample integers 0 ... 2**24 - 1 as float32, which represents each exactly."""
    return (_bits(key, shape) & 0xFFFFFF).to(torch.float32)
