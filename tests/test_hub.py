"""Files of models: on disk, in the hub's cache, from a hub on 127.0.0.1, and the errors of each."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from conftest import ROOT, was_refused
from families import GPT2, make_params
from hostile import little_memory
from hub_server import COMMIT, MOVED, TOKEN, Cut, Hub, Repository, etag
from huggingface_hub import constants, file_download

from fnlm import gpt2, tree
from fnlm.files import _hub_client, hub
from fnlm.params import peft

BIG = bytes(range(256)) * 4000  # a file of weights, as far as these tests look into it
CONFIG = b"{}"


def index_of(*shards: Any) -> bytes:
    return json.dumps({"weight_map": {str(i): shard for i, shard in enumerate(shards)}}).encode()


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
WHOLE = {"config.json": CONFIG, "model.safetensors": BIG}
SHARDED = {
    "config.json": CONFIG,
    "model.safetensors.index.json": index_of(SHARDS[0], SHARDS[1], SHARDS[0]),
    **{shard: shard.encode() + BIG for shard in SHARDS},
}


def put(directory: Path, *names: str, **contents: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name in names:
        (directory / name).write_text(contents.get(name.replace(".", "_"), ""))
    return directory


def test_no_test_reaches_out() -> None:
    """The guard in conftest.py: every way is closed, and the test would fail all the same."""
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        for attempt in (
            lambda: tcp.connect(("127.0.0.1", 9)),
            lambda: tcp.connect_ex(("10.0.0.1", 9)),
            lambda: udp.sendto(b"", ("127.0.0.1", 9)),
            lambda: socket.create_connection(("huggingface.co", 443)),
        ):
            with pytest.raises(PermissionError, match="tests use no network"):
                attempt()
    assert len(was_refused) == 4
    was_refused.clear()


# On disk.

FORMS: dict[str, tuple[list[str], str]] = {
    "safetensors": (["model.safetensors", "pytorch_model.bin"], "model.safetensors"),
    "sharded": (
        ["model.safetensors.index.json", *SHARDS, "pytorch_model.bin"],
        "model.safetensors.index.json",
    ),
    "bin": (["pytorch_model.bin", "tf.index", "tf.data-00000-of-00001"], "pytorch_model.bin"),
    "sharded bin": (["pytorch_model.bin.index.json"], "pytorch_model.bin.index.json"),
    "other name": (["tuned.safetensors", "a.npz", "b.npz"], "tuned.safetensors"),
    "TensorFlow": (["bert_model.ckpt.index", "bert_model.ckpt.data-0"], "bert_model.ckpt.index"),
    "TensorFlow, of two": (
        ["checkpoint", "model.ckpt-5.index", "model.ckpt-9.index"],
        "model.ckpt-9.index",
    ),
    "TensorFlow, one with data": (["a.index", "b.index", "b.data-0"], "b.index"),
    "TensorFlow, first version": (["checkpoint", "model.ckpt-9"], "model.ckpt-9"),
    "NumPy": (["weights.npz", "params_shapes.json"], "weights.npz"),
    "OpenAI's shards and a stray": (
        ["notes.npz", "params_shapes.json", "params_0.npy"],
        "params_shapes.json",
    ),
    "OpenAI's shards": (["params_shapes.json", "params_0.npy"], "params_shapes.json"),
}


def weights(name: str | Path) -> Path:
    """The weights that a name stands for, with or without a configuration."""
    return hub.locate(name, config_required=False).weights


@pytest.mark.parametrize("form", FORMS)
def test_a_directory_gives_the_first_form_it_has(form: str, tmp_path: Path) -> None:
    names, expected = FORMS[form]
    note = 'model_checkpoint_path: "/home/me/run/model.ckpt-9"\nall_model_checkpoint_paths: "x"\n'
    put(tmp_path, *names, "hparams.json", "config.json", checkpoint=note)
    assert hub.locate(tmp_path) == hub.Source(tmp_path / expected, tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    assert hub.locate(str(tmp_path)).config == tmp_path / "hparams.json"
    put(tmp_path, "bert_config.json", "mine.json")
    assert hub.locate(tmp_path).config == tmp_path / "bert_config.json"
    assert hub.locate(tmp_path, configs=("mine.json",)).config == tmp_path / "mine.json"


def test_a_file_stands_for_itself_and_a_prefix_for_its_index(tmp_path: Path) -> None:
    put(tmp_path, "a.bin", "b.bin", "m.ckpt.index", "m.ckpt.data-00000-of-00001", "config.json")
    found = hub.locate(tmp_path / "b.bin")
    assert found == hub.Source(tmp_path / "b.bin", tmp_path / "config.json")
    assert hub.locate(tmp_path / "m.ckpt").weights == tmp_path / "m.ckpt.index"
    (tmp_path / "config.json").unlink()
    assert weights(tmp_path / "m.ckpt") == tmp_path / "m.ckpt.index"
    assert weights(tmp_path) == tmp_path / "m.ckpt.index"


def test_paths_win_over_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.locate("tiny").weights == hub.BUNDLED / "tiny" / "model.safetensors"
    for name in ("tiny", "gpt2", "owner/name", "at@home"):
        put(tmp_path / name, "model.safetensors", "config.json")
        assert hub.locate(name).weights == Path(name, "model.safetensors")
        assert hub.locate(f"~/{name}").weights == tmp_path / name / "model.safetensors"


@pytest.mark.parametrize(
    ("names", "candidates"),
    [
        (["a.safetensors", "b.safetensors"], "a.safetensors, b.safetensors"),
        (["a.index", "a.data-0", "b.index", "b.data-0"], "a.index, b.index"),
        (["x.npz", "y.npz"], "x.npz, y.npz"),
    ],
)
def test_several_candidates_are_listed(names: list[str], candidates: str, tmp_path: Path) -> None:
    put(tmp_path, *names)
    with pytest.raises(ValueError, match=f"holds {candidates}: give the path of the one") as caught:
        hub.locate(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_note_of_tensorflow_cannot_leave_its_directory(tmp_path: Path) -> None:
    put(tmp_path, "secret.index", "secret")
    for path in ("../secret", str(tmp_path / "secret"), "..\\\\secret", "..", ".", "/", "\0"):
        inside = put(tmp_path / "in", "checkpoint", checkpoint=f'model_checkpoint_path: "{path}"')
        with pytest.raises(FileNotFoundError, match="model.safetensors is missing"):
            hub.locate(inside)


def test_missing_files_are_named(tmp_path: Path) -> None:
    empty = put(tmp_path / "empty")
    bare = put(tmp_path / "bare", "model.safetensors")
    packed = put(tmp_path / "packed", "bert-base-uncased.tar.gz")
    cases = {
        empty: f"{empty}/model.safetensors is missing, and so are model.safetensors.index.json, ",
        bare: f"{bare}/config.json is missing, and so are bert_config.json, hparams.json: a model",
        packed: f"unpack it (cd {packed}; tar xf bert-base-uncased.tar.gz)",
        packed / "bert-base-uncased.tar.gz": f"unpack it (cd {packed}; tar xf",
        tmp_path / "none": "is no directory and no name of a model",
        Path("a/b/c"): "'a/b/c' is no directory and no name",
    }
    for path, message in cases.items():
        with pytest.raises(FileNotFoundError) as caught:
            hub.locate(path)
        assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["", "..", "a/../b", "x" * 5000, "a\0b", "~no-such-user/x y", "a b"]
)
def test_a_name_that_none_could_have_is_refused(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no name of a model|is missing"):
        hub.locate(name)


# A cache that is already there.


def cache(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """Lay out a repository as huggingface_hub does."""
    repository = folder / f"models--{name.replace('/', '--')}"
    for file, content in files.items():
        path = repository / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return repository / "snapshots" / COMMIT


# huggingface_hub 0.x leaves the connection of a broken download open, which shows when it is freed.
if not hasattr(huggingface_hub, "close_session"):
    pytestmark = pytest.mark.filterwarnings(
        "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
    )


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an empty cache; the network is not to be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


@pytest.mark.parametrize("name", hub.PUBLISHED)
def test_published_names_are_found_by_either_id(name: str, offline: Path) -> None:
    assert len(hub.PUBLISHED) == 10
    home = hub.PUBLISHED[name]
    old = cache(offline, name, WHOLE)
    found = hub.locate(name)
    assert found == hub.locate(home)
    assert found[:2] == (old / "model.safetensors", old / "config.json")
    new = cache(offline, home, WHOLE)
    assert hub.locate(name).weights == hub.locate(home).weights == new / "model.safetensors"


def test_a_cache_must_hold_the_whole_set(offline: Path) -> None:
    folder = cache(offline, "owner/name", SHARDED)
    assert hub.locate("owner/name").weights == folder / "model.safetensors.index.json"
    assert hub.locate(f"owner/name@{COMMIT}") == hub.locate("owner/name@main")
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / SHARDS[1]).unlink()
    assert hub.locate("owner/name").weights == folder / "pytorch_model.bin"
    (folder / "config.json").unlink()
    assert weights("owner/name") == folder / "pytorch_model.bin"
    with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set"):
        hub.locate("owner/name")


TRICKS = ["../secret.bin", "/etc/passwd", "a/b.bin", "..\\a", ".hidden", "", "a\nb", "C:x", 7, None]


@pytest.mark.parametrize("shard", TRICKS)
def test_an_index_names_files_beside_it_only(shard: Any, offline: Path) -> None:
    files = {"config.json": CONFIG, "model.safetensors.index.json": index_of("good.bin", shard)}
    cache(offline, "owner/name", files)
    with pytest.raises(ValueError, match="which is not a file beside it") as caught:
        hub.locate("owner/name")
    assert repr(shard) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"weight_map": [1]}', b"\xff", b"[" * 99999]
)
def test_an_invalid_index_is_named(content: bytes, offline: Path) -> None:
    cache(offline, "owner/name", {"config.json": b"", "pytorch_model.bin.index.json": content})
    with pytest.raises(ValueError, match=r"pytorch_model.bin.index.json is no index of shards"):
        hub.locate("owner/name")


def test_near_misses_are_named(offline: Path) -> None:
    for typo, meant in {
        "bert-base-uncase": "bert-base-uncased",
        "GPT2": "gpt2",
        "openai-comunity/gpt2": "openai-community/gpt2",
        "tinny": "tiny",
        "bert-base-multilingual": "bert-base-multilingual-cased",
    }.items():
        with pytest.raises(FileNotFoundError) as caught:
            hub.locate(typo)
        assert f"(is {meant!r} meant?)" in str(caught.value), typo
    with pytest.raises(FileNotFoundError) as caught:
        hub.locate("something/else")
    assert "meant" not in str(caught.value)


# A running hub.


@pytest.fixture
def server(loopback: None) -> Iterator[Hub]:
    with Hub({"owner/name": Repository(dict(WHOLE))}) as running:
        yield running


@pytest.fixture
def client(server: Hub, offline: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a client of the server, in this process; a developer's own token stays out."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    for module in (constants, file_download):  # huggingface_hub 0.x has it in both
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(offline / "no-token"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 12)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    return offline


def failure(name: str = "owner/name") -> str:
    """The message of the error that a name gives."""
    with pytest.raises(FileNotFoundError) as caught:
        hub.locate(name)
    message = str(caught.value)
    assert "\n" not in message and "by hand: put these files of http" in message
    return message


def test_a_second_use_asks_nothing(server: Hub, client: Path) -> None:
    found = hub.locate("owner/name")
    assert found.weights.read_bytes() == BIG and found.config.read_bytes() == CONFIG
    assert found.weights.is_relative_to(client)
    assert [r.path for r in server.requests].count("/api/models/owner/name/revision/main") == 1
    assert sum(r.method == "GET" for r in server.requests) <= 4  # a redirect is one more
    server.requests.clear()
    assert hub.locate("owner/name") == found
    assert hub.find("owner/name", [("vocab.txt",), ("config.json",)]) == (found.config,)
    assert not server.requests
    # What huggingface_hub itself makes of the cache.
    path = huggingface_hub.hf_hub_download("owner/name", "model.safetensors")
    assert Path(path) == found.weights
    assert not list(client.rglob("*.incomplete"))


def test_all_shards_come(server: Hub, client: Path) -> None:
    server.repositories["owner/name"] = Repository(SHARDED | {"pytorch_model.bin": b"no"})
    found = hub.locate("owner/name")
    assert found.weights.name == "model.safetensors.index.json"
    for shard in SHARDS:
        assert (found.weights.parent / shard).read_bytes() == SHARDED[shard]
    server.requests.clear()
    assert hub.locate("owner/name") == found and not server.requests


@pytest.mark.parametrize(
    "files",
    [
        {"pytorch_model.bin": BIG, "bert_config.json": CONFIG},
        {"pytorch_model.bin.index.json": index_of("a.bin"), "a.bin": b"a", "config.json": CONFIG},
    ],
)
def test_other_forms_come_too(files: dict[str, bytes], server: Hub, client: Path) -> None:
    server.repositories["owner/name"] = Repository(files | {"README.md": b"..."})
    found = hub.locate("owner/name")
    assert {path.name for path in found.weights.parent.iterdir()} == set(files)
    assert weights("owner/name") == found.weights


def test_published_names_are_asked_for_where_they_are_now(server: Hub, client: Path) -> None:
    server.repositories["openai-community/gpt2"] = Repository(dict(WHOLE))
    found = hub.locate("gpt2")
    server.requests.clear()
    assert hub.locate("openai-community/gpt2") == found and not server.requests


def test_a_revision_can_be_named(server: Hub, client: Path) -> None:
    found = hub.locate(f"owner/name@{COMMIT}")
    assert found.weights.read_bytes() == BIG
    assert "it has no revision 'v9'" in failure("owner/name@v9")


def test_the_token_is_sent_and_only_to_the_hub(
    server: Hub, client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["owner/name"].gated = True
    assert f"it is gated: ask for access on {server.url}/owner/name" in failure()
    assert "then set HF_TOKEN" in failure()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the token is refused: set HF_TOKEN to a valid one" in failure()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.requests.clear()
    assert hub.locate("owner/name").weights.read_bytes() == BIG
    for request in server.requests:
        elsewhere = request.path.startswith("/cdn")
        assert request.token == (None if elsewhere else f"Bearer {TOKEN}"), request
    assert any(request.path.startswith("/cdn") for request in server.requests)


def test_a_private_repository_is_reported_as_missing(
    server: Hub, client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.repositories["owner/name"].private = True
    assert "no such repository, or it is private: then set HF_TOKEN" in failure()
    assert "no such repository" in failure("owner/none")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.locate("owner/name").config.read_bytes() == CONFIG
    assert "no such repository" in failure("owner/none")


def test_the_files_of_a_repository_without_weights_are_listed(server: Hub, client: Path) -> None:
    server.repositories["owner/name"].files = {"README.md": b"", "model.gguf": b""}
    message = failure()
    assert "it holds README.md, model.gguf;" in message
    assert f"({server.url}, cache {client})" in message
    assert "gave no weights (model.safetensors or pytorch_model.bin" in message
    server.repositories["owner/name"].files = SHARDED | {SHARDS[0]: b""}
    del server.repositories["owner/name"].files[SHARDS[1]]
    assert f"owner/name lacks {SHARDS[1]}, which its index names" in failure()


def test_an_index_from_a_hub_cannot_ask_for_other_files(server: Hub, client: Path) -> None:
    index = index_of("../../../stolen.bin")
    server.repositories["owner/name"].files = {
        "config.json": CONFIG,
        "model.safetensors.index.json": index,
        "../../../stolen.bin": b"",
    }
    with pytest.raises(ValueError, match=r"names the file '../../../stolen.bin', which is not"):
        hub.locate("owner/name")
    assert not any("stolen" in request.path for request in server.requests)


# Downloads that break off.


def ranges(server: Hub) -> list[int]:
    """Where the requests for parts of files began."""
    return [int(r.range[6:-1]) for r in server.requests if r.range]


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_broken_download_goes_on(how: str, server: Hub, client: Path) -> None:
    server.cuts["model.safetensors"] = Cut(700_000, how)
    assert hub.locate("owner/name").weights.read_bytes() == BIG
    assert ranges(server)[0] > (650_000 if how == "close" else 0)


def test_a_later_call_goes_on_where_an_earlier_one_failed(server: Hub, client: Path) -> None:
    server.cuts["model.safetensors"] = Cut(700_000, then=500)
    assert "it answered with HTTP status 500" in failure()
    size = next(client.rglob("*.fnlm.incomplete")).stat().st_size
    assert 650_000 < size <= 700_000
    server.cuts.clear()
    server.requests.clear()
    assert hub.locate("owner/name").weights.read_bytes() == BIG
    assert set(ranges(server)) == {size}


CLIENT = """
import sys
from huggingface_hub import constants
from fnlm.files import hub
constants.DOWNLOAD_CHUNK_SIZE = 1 << 12
found = hub.locate("owner/name")
assert "torch" not in sys.modules
print(found.weights, found.config, sep="\\n")
"""


def environment(server: Hub, home: Path, **more: str) -> dict[str, str]:
    there = {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "NO_PROXY": "*", **more}
    return os.environ | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | there


def test_a_killed_download_goes_on(server: Hub, tmp_path: Path) -> None:
    """In processes of their own, which know the hub by the variables of the environment."""
    server.repositories["owner/name"].private = True
    server.cuts["model.safetensors"] = Cut(700_000, "stall")
    variables = environment(server, tmp_path, HF_TOKEN=TOKEN)
    command = [sys.executable, "-c", CLIENT]
    killed = subprocess.Popen(command, cwd=ROOT, env=variables)
    assert server.stalled.wait(60)
    until(lambda: sizes(tmp_path) > 600_000)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    server.go_on.set()
    server.requests.clear()
    size = sizes(tmp_path)
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    weights, config = map(Path, done.stdout.split())
    assert weights.read_bytes() == BIG and config.read_bytes() == CONFIG
    assert weights.is_relative_to(tmp_path / "hub")
    assert set(ranges(server)) == {size}
    server.requests.clear()
    quiet = environment(server, tmp_path, HF_HUB_OFFLINE="1")
    again = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert again.stdout == done.stdout and not server.requests


def sizes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.fnlm.incomplete"))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_damaged_bytes_are_not_kept(server: Hub, client: Path) -> None:
    blobs = put(client / "models--owner--name" / "blobs")
    for rest in (b"something else", BIG + b"more"):
        (blobs / f"{etag('model.safetensors', BIG)}.fnlm.incomplete").write_bytes(rest)
        message = failure()
        assert "have SHA-256" in message and "download it again" in message
    assert hub.locate("owner/name").weights.read_bytes() == BIG


def test_a_full_disk_is_reported_before_the_download(
    server: Hub, client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"needs 1,024,000 bytes .* has 1,000: make room") as caught:
        hub.locate("owner/name")
    assert caught.value.errno == errno.ENOSPC
    assert not any(r.path.startswith("/cdn") for r in server.requests)


# No network.


def test_no_answer_costs_little_time(
    server: Hub, client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.stop()
    start = time.perf_counter()
    assert re.search("Connect(ion)?Error", failure())  # of httpx, or of requests before
    assert time.perf_counter() - start < 10  # huggingface_hub alone takes 24 s


def test_a_silent_network_costs_as_long_as_allowed(
    client: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hub_client, "_patience", lambda: 0.2)
    monkeypatch.setattr(_hub_client, "_answer", lambda *a: time.sleep(20))
    start = time.perf_counter()
    assert "no answer in 0.2 s (HF_HUB_ETAG_TIMEOUT sets the limit)" in failure()
    assert time.perf_counter() - start < 10


def test_how_long_the_hub_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    assert _hub_client._patience() == 5
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "30")  # as it was when huggingface_hub was imported
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 30)
    assert _hub_client._patience() == 30


NOT_A_LIST = "its answer is no list of files: is HF_ENDPOINT a hub?"
LISTINGS = {
    b"<html>": NOT_A_LIST,
    b"": NOT_A_LIST,
    b"[]": NOT_A_LIST,
    b"null": NOT_A_LIST,
    b"[" * 100_000: NOT_A_LIST,
    b"\xff\xfe": NOT_A_LIST,
    b'{"id": "owner/name"}': NOT_A_LIST,
    b'{"sha": "COMMIT", "siblings": 5}': NOT_A_LIST,
    b'{"sha": "COMMIT", "siblings": [5]}': NOT_A_LIST,
    b'{"sha": "COMMIT", "siblings": [{"name": "a"}]}': NOT_A_LIST,
    b'{"sha": "COMMIT", "siblings": [{"rfilename": 5}]}': "has names that are no text",
    b'{"sha": "../../x", "siblings": []}': "is of commit '../../x', which is none",
    b'{"sha": null, "siblings": []}': "is of commit None, which is none",
    b'{"sha": "COMMIT", "siblings": null}': "it holds no files",
    b" " * (1 << 23): "its list of files has more than 4,194,304 bytes",
}


@pytest.mark.parametrize("listing", LISTINGS, ids=lambda content: repr(content[:60]))
def test_invalid_hub_response_is_reported(listing: bytes, server: Hub, client: Path) -> None:
    server.listings = listing.replace(b"COMMIT", COMMIT.encode())
    assert LISTINGS[listing] in failure()
    assert not list(client.glob("models--*/*/*"))


def test_a_compressed_listing_is_not_inflated(server: Hub, client: Path) -> None:
    engine = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [engine.compress(bytes(1 << 24)) for _ in range(64)]
    server.listings, server.encoding = b"".join([*pieces, engine.flush()]), "gzip"
    with little_memory(8 << 20):
        assert "its list of files is compressed, which was not asked for" in failure()


def test_all_files_are_of_one_commit(server: Hub, client: Path) -> None:
    """The branch moves after the listing; what was listed is what comes, and what is remembered."""
    server.repositories["owner/name"].after = {"config.json": b"[]", "model.safetensors": b"new"}
    found = hub.locate("owner/name")
    assert found.weights.read_bytes() == BIG and found.config.read_bytes() == CONFIG
    asked = [r.path for r in server.requests if "/resolve/" in r.path]
    assert asked and all(f"/resolve/{COMMIT}/" in path for path in asked)
    assert (client / "models--owner--name" / "refs" / "main").read_text() == COMMIT
    assert found.weights.parent.name == COMMIT


def test_what_is_missing_comes_from_the_commit_that_is_there(server: Hub, client: Path) -> None:
    """A tokenizer is of the commit of its model, though the branch has moved since."""
    files = server.repositories["owner/name"].files
    files["vocab.txt"] = b"a"
    found = hub.locate("owner/name")
    server.repositories["owner/name"].moved = Repository({"vocab.txt": b"b", "other.txt": b"c"})
    (vocabulary,) = hub.find("owner/name", [("vocab.txt",)])
    assert vocabulary.read_bytes() == b"a" and vocabulary.parent == found.weights.parent
    (other,) = hub.find("owner/name", [("other.txt",)])  # which that commit lacks
    assert other.read_bytes() == b"c" and other.parent.name == MOVED


def test_a_source_stands_for_one_commit(server: Hub, client: Path) -> None:
    """What was located stays what it was, though the branch moves and another run follows it."""
    server.repositories["owner/name"].files["vocab.txt"] = b"a"
    source = hub.locate("owner/name")
    assert source.repository == f"owner/name@{COMMIT}" and source.directory is None
    assert hub.locate(source) is source
    server.repositories["owner/name"].moved = Repository({"vocab.txt": b"b"})
    (client / "models--owner--name" / "refs" / "main").write_text(MOVED)
    (other,) = hub.find("owner/name", [("vocab.txt",)])
    (vocabulary,) = hub.find(source, [("vocab.txt",)])
    assert (other.read_bytes(), vocabulary.read_bytes()) == (b"b", b"a")
    with pytest.raises(FileNotFoundError, match=f"'owner/name@{COMMIT}' is no"):
        hub.find(source, [("other.txt",)])


def test_a_commit_that_is_gone_is_asked_for_no_more(server: Hub, client: Path) -> None:
    ref = client / "models--owner--name" / "refs" / "main"
    ref.parent.mkdir(parents=True)
    for text in ("7" * 40, "no commit", "../../x", ""):
        ref.write_text(text)
        assert hub.locate("owner/name").weights.read_bytes() == BIG
        assert ref.read_text() == COMMIT


@pytest.mark.parametrize("name", ["o/m@/tmp/x", "o/m@.x", "o/m@a/../b", "o/m@a//b", "o/m@"])
def test_a_revision_is_no_path(name: str, offline: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no name of a model"):
        hub.locate(name)


def test_a_file_of_another_commit_is_refused(server: Hub, client: Path) -> None:
    server.commit = "6" * 40
    assert f"it gives model.safetensors of commit '{'6' * 40}', not of {COMMIT}" in failure()


TAGS = ["../../../evil", "/tmp/evil", "..", ".", ".hidden", "a/b", "a\\b", "x" * 300, "a b", "C:a"]


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_names_no_file_elsewhere(tag: str, server: Hub, client: Path, tmp_path: Path) -> None:
    server.tag = tag
    before = sorted(tmp_path.rglob("*"))
    assert "which is no tag of a file" in failure()
    assert [p for p in tmp_path.rglob("*") if not p.is_relative_to(client)] == [
        p for p in before if not p.is_relative_to(client)
    ]
    assert not list(client.rglob("*evil*"))


def test_more_bytes_than_were_announced_are_refused(server: Hub, client: Path) -> None:
    server.announced = 1000
    assert "it sends more than the 1,000 bytes that it announced" in failure()
    assert all(path.stat().st_size <= 1000 for path in client.rglob("*") if path.is_file())


# The whole way, and nothing on the way in.


@pytest.mark.parametrize("sharded", [False, True])
def test_a_model_from_a_hub(sharded: bool, server: Hub, client: Path, tmp_path: Path) -> None:
    params = make_params(GPT2)
    gpt2.save(params, tmp_path)
    if sharded:
        split(tmp_path / "model.safetensors")
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    server.repositories["openai-community/gpt2"] = Repository(files)
    for _ in range(2):
        loaded = gpt2.load("gpt2")
        assert loaded["config"].n_embd == GPT2.config.n_embd
        ours, theirs = dict(tree.named_leaves(loaded)), dict(tree.named_leaves(params))
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        server.stop()  # the second time, from the cache


def split(path: Path) -> None:
    """Cut a file of weights into two, with their index."""
    tensors = safetensors.torch.load_file(path)
    place = {name: SHARDS[i % 2] for i, name in enumerate(tensors)}
    for shard in SHARDS:
        part = {name: tensors[name] for name in tensors if place[name] == shard}
        safetensors.torch.save_file(part, path.with_name(shard))
    path.with_name(path.name + ".index.json").write_text(json.dumps({"weight_map": place}))
    path.unlink()


IMPORTS = """
import sys
seen = []
def watch(event, arguments):
    if event == "open" and not str(arguments[0]).endswith((".py", ".pyc", ".so")):
        seen.append(arguments[0])
    elif event.startswith(("socket.", "subprocess.", "os.mkdir", "os.remove", "os.rename")):
        seen.append(event)
sys.addaudithook(watch)
import fnlm
import fnlm.files.hub
print(seen, {"torch", "huggingface_hub", "numpy"} & set(sys.modules))
assert fnlm.files.hub.locate("tiny")
print("huggingface_hub" in sys.modules)
"""


def test_importing_does_nothing_and_paths_need_no_hub() -> None:
    command = [sys.executable, "-B", "-c", IMPORTS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[] set()\nFalse\n", done.stderr


def test_an_index_is_not_read_without_end(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    with index.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match=r"index.json is too large for an index of shards"):
        _hub_client.whole([index.name], lambda name: tmp_path / name)


@pytest.mark.usefixtures("client")
def test_adapters_come_by_name(server: Hub) -> None:
    folder = ROOT / "tests" / "fixtures" / "peft" / "gpt2"
    params = gpt2.load(folder / "base")
    contents = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    server.repositories["somebody/adapters"] = Repository(contents)
    found = peft.load(params, "somebody/adapters")
    expected = peft.load(params, folder / "adapter")
    for a, b in zip(*map(tree.leaves, (found, expected)), strict=True):
        assert torch.equal(a, b)
    server.repositories["somebody/nothing"] = Repository({"README.md": b""})
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        peft.load(params, "somebody/nothing")
