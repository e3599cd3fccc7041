"""What all tests share: no network, the same random numbers every time, the optional data files."""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by huggingface_hub when it is imported

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

# The gate is repeatable and its machine may be slow: no clock, the same examples every time.
hypothesis.settings.register_profile("gate", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gate")

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


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Test inputs drawn from torch's global generator do not depend on which tests ran before."""
    torch.manual_seed(0)


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Say what a test tried, to be printed at the end of the run: `tally("zip", {"error": 3})`."""

    def add(what: str, counts: dict[str, int]) -> None:
        record_property("tally", (what, dict(counts)))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tallies of every test, those of other processes included."""
    rows = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "tally"
    ]
    if not rows:
        return
    terminalreporter.section("inputs tried")
    total = 0
    for what, counts in sorted(rows, key=lambda row: row[0]):
        tried = sum(counts.values())
        total += tried
        split = ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
        terminalreporter.write_line(f"{what}: {tried:,} tried: {split}")
    terminalreporter.write_line(f"together: {total:,}")
