"""`tokenize.pad`: texts of different lengths as one array, which a model reads as each alone."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fnlm import gpt2, random
from fnlm.tokenize import pad

ROWS = st.lists(st.lists(st.integers(0, 2**40), max_size=7), max_size=5)


@given(ROWS, st.booleans(), st.integers(1, 8), st.integers(-1, 9))
def test_rows_come_back_by_their_mask(
    rows: list[list[int]], left: bool, multiple_of: int, fill: int
) -> None:
    ids, mask = pad(rows, pad=fill, left=left, multiple_of=multiple_of)
    assert ids.dtype == np.int64 and mask.dtype == np.bool_
    assert ids.shape == mask.shape and ids.shape[0] == len(rows)
    assert [row[real].tolist() for row, real in zip(ids, mask, strict=True)] == rows
    assert (ids[~mask] == fill).all()
    longest = max(map(len, rows), default=0)
    assert ids.shape[1] % multiple_of == 0 and 0 <= ids.shape[1] - longest < multiple_of
    for real in mask:  # padding is on one side alone
        runs = [value for value, _ in itertools.groupby(real.tolist())]
        assert runs in ([], [True], [False], [False, True] if left else [True, False])


def test_a_padded_row_reads_as_the_row_alone() -> None:
    config = gpt2.Config(vocab_size=31, n_positions=16, n_embd=24, n_layer=2, n_head=3)
    params = gpt2.init(config, random.key(0))
    rows = [[3, 1, 4, 1, 5], [9, 2], [6]]
    for left in (False, True):
        ids, mask = map(torch.as_tensor, pad(rows, pad=7, left=left))
        logits, _ = gpt2.apply(params, ids, mask=mask)
        for row, real, alone in zip(logits, mask, rows, strict=True):
            wanted, _ = gpt2.apply(params, torch.tensor(alone))
            assert torch.allclose(row[real], wanted, atol=1e-5)
        if left:
            assert mask[:, -1].all()


def test_rows_may_be_arrays_and_batches_may_be_drawn() -> None:
    ids, _ = pad(np.array(row, dtype=np.uint16) for row in ([1, 2], [3]))
    assert ids.tolist() == [[1, 2], [3, 0]]


@pytest.mark.parametrize(
    ("rows", "options", "kind", "message"),
    [
        ([1, 2, 3], {}, TypeError, r"=1 is no sequence of ids: for one text, give \[ids\]"),
        (["one", "two"], {}, TypeError, r"batch\[0\]='one' is no sequence of ids"),
        ([[1], [0.5]], {}, TypeError, r"batch\[1\] has shape \[1\] and type float64"),
        ([[[1, 2]]], {}, TypeError, r"batch\[0\] has shape \[1, 2\] and type int64"),
        ([[1]], {"multiple_of": 0}, ValueError, "multiple_of=0 must be at least 1"),
    ],
)  # fmt: skip
def test_misuse_is_named(
    rows: list[list[int]], options: dict[str, int], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        pad(rows, **options)  # type: ignore[arg-type]
