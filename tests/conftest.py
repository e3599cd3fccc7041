"""What all tests share: no network, the same random numbers every time, the optional data files."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by huggingface_hub when it is imported

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from packaging.version import Version  # noqa: E402

# The gate is repeatable and its machine may be slow: no clock, the same examples every time.
hypothesis.settings.register_profile("gate", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gate")

ROOT = Path(__file__).resolve().parent.parent
collect_ignore = ["fixtures"]


NO_SOCKETS = os.environ.get("FNLM_TEST_NO_SOCKETS", "0") != "0"
LOOPBACK = {"127.0.0.1", "::1", "localhost"}
may_reach: set[str] = set()  # the hosts that the running test may connect to
was_refused: list[str] = []


def guard(owner: Any, name: str, host_of: Callable[..., Any]) -> None:
    """Let a function of sockets through only if the host that its arguments name may be reached."""
    genuine = getattr(owner, name)

    def guarded(*args: Any, **kwargs: Any) -> Any:
        host = host_of(*args, **kwargs)
        if host is not None and host not in may_reach:
            was_refused.append(f"{name} to {host!r}")
            raise PermissionError(f"tests use no network, and this one asked for {was_refused[-1]}")
        return genuine(*args, **kwargs)

    setattr(owner, name, guarded)


def host_of_socket(this: socket.socket, *args: Any) -> Any:
    return args[-1][0] if this.family in (socket.AF_INET, socket.AF_INET6) else None


for _name in ("connect", "connect_ex", "sendto"):  # urllib3 binds to ::1 when it is imported
    guard(socket.socket, _name, host_of_socket)
guard(socket, "getaddrinfo", lambda host, *args, **kwargs: host)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """A test fails that tried to reach anything, though it caught the error."""
    was_refused.clear()
    yield
    assert not was_refused, f"tests use no network, and this one asked for {was_refused}"


@pytest.fixture
def loopback() -> Iterator[None]:
    """The test may reach servers on this machine; it is skipped where nothing can."""
    if NO_SOCKETS:
        pytest.skip("needs a server on 127.0.0.1, and FNLM_TEST_NO_SOCKETS is set")
    may_reach.update(LOOPBACK)
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        pytest.skip(f"needs a server on 127.0.0.1, which cannot be reached: {error}")
    else:
        yield
    finally:
        may_reach.clear()


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
def places(tmp_path: Path) -> Iterator[Path]:
    """Paths of directories that are not there yet, one after the other."""
    return (tmp_path / f"place{number}" for number in range(1000))


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Say what a test tried, to be printed at the end of the run: `tally("zip", {"error": 3})`."""

    def add(what: str, counts: dict[str, int]) -> None:
        record_property("tally", (what, dict(counts)))

    return add


# The tokenizer files of OpenAI GPT that transformers writes have another normalizer up to some 5.x,
# with other ids; those versions also read old lists of added tokens and settings otherwise.
NEWER_TRANSFORMERS = Version("5.23")
ASK_NEWER_TRANSFORMERS = {
    "test_tokenize_folders.py::test_the_newer_form_wins_where_both_agree[gpt]",
    "test_tokenize_folders.py::test_forms_that_disagree_are_both_named[gpt]",
    "test_tokenize_folders.py::test_the_file_that_was_named_is_read[gpt]",
    "test_tokenize_added.py::test_the_peers_folders_give_the_peers_ids[gpt]",
    "test_tokenize_added.py::test_our_folders_give_our_ids_to_the_peer[gpt]",
    "test_tokenize_added.py::test_offsets_of_added_tokens_are_where_they_stand[gpt]",
    "test_tokenize_added.py::test_old_lists_of_added_tokens",
    "test_tokenize_settings.py::test_a_setting_gives_the_peers_ids_or_is_refused_by_name[bert]",
    "test_tokenize_settings.py::test_a_field_gives_the_peers_ids_or_is_refused_by_name[gpt]",
    "test_tokenize_settings.py::test_every_field_of_a_tokenizer_json_is_in_the_table[gpt]",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what an old peer answers otherwise: `make test-lowest` tries fnlm, not the peer."""
    found = version("transformers")
    if Version(found) >= NEWER_TRANSFORMERS:
        return
    for item in items:
        if item.nodeid.rpartition("/")[2] in ASK_NEWER_TRANSFORMERS:
            reason = f"transformers {found} answers otherwise than {NEWER_TRANSFORMERS}"
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tallies of every test, those of other processes included."""
    tallies: dict[str, Counter[str]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "tally":
                tallies.setdefault(value[0], Counter()).update(value[1])
    if not tallies:
        return
    terminalreporter.section("inputs tried")
    total = 0
    for what, counts in sorted(tallies.items()):
        total += counts.total()
        split = ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
        terminalreporter.write_line(f"{what}: {counts.total():,} tried: {split}")
    terminalreporter.write_line(f"together: {total:,}")
