"""What all tests share: where the optional data files are."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def data_path(name: str) -> Path:
    """The file `name` of the optional test data; the test is skipped where it is absent.

    The data are looked for in the folder that FNLM_TEST_DATA names, else in `../shared/data`
    beside the checkout.
    """
    folder = Path(os.environ.get("FNLM_TEST_DATA") or ROOT.parent / "shared" / "data")
    path = folder / name
    if not path.exists():
        pytest.skip(f"test data {name!r} not found in {folder}; set FNLM_TEST_DATA to its folder")
    return path


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """`data_path` as a fixture."""
    return data_path
