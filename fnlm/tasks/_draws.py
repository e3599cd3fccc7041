"""Random numbers as a function of a key and a position (counter-based)."""

import numpy as np
import numpy.typing as npt


class Draws:
    """The outputs of the Philox4x64 counter generator from a position on.

    Only its raw 64-bit outputs are used, which NumPy does not change between its versions.

    Args:
        key: 0 <= key < 2**128.
        epoch, place: 0 to 2**64 - 1, where the counter starts.
    """

    def __init__(self, key: int, epoch: int, place: int) -> None:
        if not 0 <= key < 1 << 128:
            raise ValueError(f"key={key} must be from 0 to 2**128 - 1")
        words = np.array([key % (1 << 64), key >> 64], np.uint64)
        start = np.array([0, epoch, place, 0], np.uint64)
        self._bits = np.random.Philox(key=words, counter=start)

    def uniform(self, count: int) -> npt.NDArray[np.float64]:
        """Return numbers from [0, 1), multiples of 2**-53."""
        return (self._bits.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, n: int) -> int:
        """Return a whole number from 0 to n - 1."""
        return int(self.uniform(1)[0] * n)

    def order(self, n: int) -> npt.NDArray[np.int64]:
        """Return the numbers from 0 to n - 1, each order of them equally likely."""
        return np.argsort(self.uniform(n), kind="stable")
