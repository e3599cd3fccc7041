"""The hub's client: files of a repository from its cache or the network, by huggingface_hub.

huggingface_hub is imported inside the functions: loading from a directory does not need it.
"""

import errno
import hashlib
import io
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

T = TypeVar("T")

_COMMIT = "[0-9a-f]{40}"

# Bytes of what comes from strangers.
_LARGEST_INDEX = 1 << 22
_LARGEST_LISTING = 1 << 22
_LARGEST_UNANNOUNCED = 1 << 30  # of a file whose size the hub does not announce


class Reason(Exception):
    """The reason why the hub gave no files, for the error message."""


def whole(names: Sequence[str], get: Callable[[str], Path | None]) -> tuple[Path, ...] | None:
    """Return the paths of a set of files, with the shards of an index among them; or None."""
    names, paths = list(names), []
    for name in names:
        if (path := get(name)) is None:
            return None
        paths.append(path)
        if name.endswith(".index.json"):
            names += _shards(path)  # the loop goes on with them
    return tuple(paths)


def _shards(index: Path) -> list[str]:
    """Return the files that an index names, all of which must lie beside it."""
    if index.stat().st_size > _LARGEST_INDEX:
        raise ValueError(f"{index} is too large for an index of shards: get it again")
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{index} is no index of shards ({type(error).__name__}): get it again"
        ) from None
    for name in files:
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name, re.ASCII):
            raise ValueError(f"{index} names the file {name!r}, which is not a file beside it")
    return sorted(files)


def cached(repository: str, revision: str) -> Callable[[str], Path | None]:
    """Return a function from a file name to its path in the hub's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    def get(name: str) -> Path | None:
        path = try_to_load_from_cache(repository, name, revision=revision)
        return Path(path) if isinstance(path, str) else None

    return get


def download(
    repository: str, revision: str, choices: Sequence[tuple[str, ...]]
) -> tuple[Path, ...]:
    """Return the first complete set of files, downloaded after one request for the listing.

    All files are of the one commit in the answer, even if the branch moves meanwhile; the commit
    of the branch in the cache is preferred, where it has a complete set.
    """
    from huggingface_hub.errors import RevisionNotFoundError

    ref = _folder(repository) / "refs" / revision
    cached_commit = ref.read_text() if ref.is_file() else ""
    names: list[str] = []
    commits = (cached_commit, revision) if re.fullmatch(_COMMIT, cached_commit) else (revision,)
    for asked in commits:
        try:
            commit, names = listed(_listing(repository, asked))
        except RevisionNotFoundError:
            if asked == revision:
                raise
            continue
        if paths := _of_commit(repository, commit, names, choices):
            if asked == revision != commit:
                ref.parent.mkdir(parents=True, exist_ok=True)
                ref.write_text(commit)
            return paths
    some = ", ".join(names[:8])[:400] or "no files"
    raise Reason(f"it holds {some}{' ...' if len(names) > 8 else ''}")


def _of_commit(
    repository: str, commit: str, available: Sequence[str], choices: Sequence[tuple[str, ...]]
) -> tuple[Path, ...] | None:
    """Return the first complete set of the files of a commit, downloaded; or None."""

    def get(name: str) -> Path:
        if name not in available:
            raise Reason(f"{repository} lacks {name}, which its index names")
        return _file(repository, commit, name)

    complete = (names for names in choices if set(names) <= set(available))
    return next((paths for names in complete if (paths := whole(names, get))), None)


def _listing(repository: str, revision: str) -> bytes:
    """Return the hub's answer about a repository, unparsed, within a time limit."""
    seconds = _patience()
    return _within(seconds, lambda: _answer(repository, revision, seconds))


def _answer(repository: str, revision: str, seconds: float) -> bytes:
    """Return the hub's answer, which may be neither long nor compressed."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    url = f"{constants.ENDPOINT}/api/models/{repository}/revision/{quote(revision, safe='')}"
    headers = build_hf_headers(library_name="fnlm") | {"Accept-Encoding": "identity"}
    session: Any = get_session()
    to_close: Any = nullcontext()
    if callable(getattr(session, "stream", None)):  # httpx
        answer = session.stream("GET", url, headers=headers, timeout=seconds)
    else:  # before huggingface_hub 1.0, requests: each thread has a session of its own
        answer = session.get(url, headers=headers, timeout=seconds, stream=True)
        to_close = session
    content = bytearray()
    with to_close, answer as response:
        hf_raise_for_status(response)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Reason("its list of files is compressed, which was not asked for")
        pieces = response.iter_bytes if hasattr(response, "iter_bytes") else response.iter_content
        for piece in pieces(1 << 16):
            content += piece
            if len(content) > _LARGEST_LISTING:
                raise Reason(f"its list of files has more than {_LARGEST_LISTING:,} bytes")
    return bytes(content)


def listed(content: bytes) -> tuple[str, list[str]]:
    """Return the commit and the file names in a hub's answer about a repository."""
    try:
        about = json.loads(content)
        commit = about["sha"]
        names = [file["rfilename"] for file in about["siblings"] or ()]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Reason("its answer is no list of files: is HF_ENDPOINT a hub?") from error
    if not isinstance(commit, str) or not re.fullmatch(_COMMIT, commit):
        raise Reason(f"its list of files is of commit {commit!r:.80}, which is none")
    if not all(isinstance(name, str) for name in names):
        raise Reason("its list of files has names that are no text")
    return commit, names


def _patience() -> int:
    """Return how many seconds the hub may take to answer."""
    from huggingface_hub import constants

    return constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else 5


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of a call, within a time limit.

    The limits of an HTTP client hold for each address of a host, and not for looking up its name:
    where a firewall swallows what is sent, they add up to minutes.
    """
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:  # the caller's to handle, whatever it is
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=seconds)
    except TimeoutError as error:
        if answer.done():
            raise
        raise Reason(f"no answer in {seconds} s (HF_HUB_ETAG_TIMEOUT sets the limit)") from error


def _file(repository: str, commit: str, name: str) -> Path:
    """Return the path of a file of a commit in the hub's cache, downloaded if need be.

    huggingface_hub itself would restart an unfinished download, and use the server's ETag as a file
    name unchecked.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    if path := cached(repository, commit)(name):
        return path
    url = hf_hub_url(repository, name, revision=commit)
    about = get_hf_file_metadata(url, timeout=_patience(), library_name="fnlm")
    tag = about.etag or ""
    if about.commit_hash != commit:
        raise Reason(f"it gives {name} of commit {about.commit_hash!r:.80}, not of {commit}")
    if not re.fullmatch(r"[0-9A-Za-z][\w+=-]{0,199}", tag, re.ASCII):
        raise Reason(f"it tags {name} as {tag!r:.200}, which is no tag of a file")
    if about.size is not None and about.size < 0:
        raise Reason(f"it says that {name} has {about.size} bytes")
    blob = _folder(repository) / "blobs" / tag
    _fetch(url, blob, name, about.size)
    pointer = _folder(repository) / "snapshots" / commit / name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    part = pointer.with_name(f".{name}.{os.getpid()}.part")
    try:
        os.symlink(os.path.relpath(blob, pointer.parent), part)
    except OSError:  # a file system without links
        shutil.copyfile(blob, part)
    os.replace(part, pointer)
    return pointer


def _folder(repository: str) -> Path:
    """Return the folder of a repository in the hub's cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


class _Bounded(io.FileIO):
    """A file that raises if it grows beyond the announced size."""

    def __init__(self, path: Path, most: int) -> None:
        super().__init__(path, "ab")
        self.most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.most:
            raise Reason(f"it sends more than the {self.most:,} bytes that it announced")
        return super().write(data)


def _fetch(url: str, blob: Path, name: str, size: int | None) -> None:
    """Download a file into the cache; one whose tag is its SHA-256 resumes where a run stopped."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    checked = re.fullmatch(r"[0-9a-f]{64}", blob.name) is not None
    part = blob.with_name(f"{blob.name}.fnlm.incomplete")
    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{blob.name}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        if not checked:
            part.unlink(missing_ok=True)
        with _Bounded(part, _LARGEST_UNANNOUNCED if size is None else size) as file:
            _check_room(part, (size or 0) - file.tell(), name)
            while size is None or file.tell() < size:
                received = file.tell()
                try:
                    http_get(
                        url, cast(Any, file), resume_size=received, expected_size=size,
                        displayed_filename=name, headers=build_hf_headers(library_name="fnlm"),
                    )  # fmt: skip
                except failures():
                    if file.tell() == received or not checked:
                        raise  # no progress, or no checksum to resume by
                if size is None:
                    break
        with part.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        if checked and digest != blob.name:
            part.unlink()
            raise OSError(
                f"the bytes of {url} have SHA-256 {digest}, not {blob.name}: download it again"
            )
        os.replace(part, blob)


def _check_room(path: Path, size: int, name: str) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OSError(
            errno.ENOSPC,
            f"{name} needs {size:,} bytes and the disk of the hub's cache has {free:,}: make room, "
            "or set HF_HUB_CACHE to a folder on another disk",
            str(path.parent),
        )


def failures() -> tuple[type[Exception], ...]:
    """Return the network errors of the HTTP client that huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (Reason, *HfHubHTTPError.__bases__, OSError, HFValidationError)


def why(error: Exception, repository: str, revision: str) -> str:
    """Return the meaning of an error of the hub, for the message."""
    from huggingface_hub import constants, errors

    if isinstance(error, Reason):
        return str(error)
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        return f"it is gated: ask for access on {page}, then set HF_TOKEN"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private: then set HF_TOKEN"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return "the token is refused: set HF_TOKEN to a valid one, or unset it"
    if status is not None:
        return f"it answered with HTTP status {status}"
    return " ".join(f"{type(error).__name__}: {error}".split())
