"""Types that all tasks share."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Rows = Iterable[Mapping[str, Any]]  # such as a data set of the package `datasets`
Source = str | Path | Rows  # a file, or its rows
Progress = Callable[[int, int], None]  # records done, records in all


class Tokenizer(Protocol):
    """The interface of a tokenizer that the tasks use."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text."""

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Return the ids of a text, and for each the (start, end) of its characters there."""

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Return the id of each token."""
