"""Files of a repository on the hub: out of its cache, or else from the network, by huggingface_hub.

huggingface_hub is imported inside the functions: whoever loads from a directory never needs it.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_LARGEST_INDEX = 1 << 26  # bytes; it comes from strangers


class Reason(Exception):
    """Why the hub did not give the files, in words for the message."""


def whole(names: Sequence[str], get: Callable[[str], Path | None]) -> tuple[Path, ...] | None:
    """The paths of a set of files, with the shards that an index among them names; or None."""
    names, paths = list(names), []
    for name in names:
        if (path := get(name)) is None:
            return None
        paths.append(path)
        if name.endswith(".index.json"):
            names += _shards(path)  # the loop comes to them
    return tuple(paths)


def _shards(index: Path) -> list[str]:
    """The files that an index names, all beside it: an index comes from strangers."""
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
    """A function from the name of a file to where the hub's cache has it."""
    from huggingface_hub import try_to_load_from_cache

    def get(name: str) -> Path | None:
        path = try_to_load_from_cache(repository, name, revision=revision)
        return Path(path) if isinstance(path, str) else None

    return get


def download(
    repository: str, revision: str, choices: Sequence[tuple[str, ...]]
) -> tuple[Path, ...]:
    """Ask which files there are, once and not for long, and download the first complete set."""
    from huggingface_hub import HfApi

    seconds = _patience()
    try:
        about = _within(
            seconds, lambda: HfApi().model_info(repository, revision=revision, timeout=seconds)
        )
    except json.JSONDecodeError as error:
        raise Reason("its answer is no list of files: is HF_ENDPOINT a hub?") from error
    there = [file.rfilename for file in about.siblings or ()]

    def get(name: str) -> Path:
        if name not in there:
            raise Reason(f"{repository} lacks {name}, which its index names")
        return _file(repository, revision, name)

    for names in choices:
        if set(names) <= set(there) and (paths := whole(names, get)):
            return paths
    some = ", ".join(there[:8]) or "no files"
    raise Reason(f"it holds {some}{' ...' if len(there) > 8 else ''}")


def _patience() -> int:
    """How many seconds the hub may take to answer."""
    from huggingface_hub import constants

    return constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else 5


def _within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of a call, waited for only so long.

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


def _file(repository: str, revision: str, name: str) -> Path:
    """Download a file into the hub's cache.

    huggingface_hub begins again what an earlier run left unfinished. A large file, whose tag is
    its SHA-256, is therefore fetched here; hf_hub_download then finds it among the cache's blobs.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(repository, name, revision=revision)
    about = get_hf_file_metadata(url, timeout=_patience(), library_name="fnlm")
    if about.size and re.fullmatch(r"[0-9a-f]{64}", about.etag or ""):
        _resume(url, repository, name, str(about.etag), about.size)
    path = hf_hub_download(repository, name, revision=revision, library_name="fnlm")
    return Path(path)


def _resume(url: str, repository: str, name: str, tag: str, size: int) -> None:
    """Bring a file of a known SHA-256 into the cache, going on where an earlier run stopped."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    cache = Path(constants.HF_HUB_CACHE)
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    blob = cache / folder / "blobs" / tag
    part = blob.with_name(f"{tag}.fnlm.incomplete")
    lock = cache / ".locks" / folder / f"{tag}.lock"
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if blob.exists():
            return
        with part.open("ab") as file:
            _check_room(part, size - file.tell(), name)
            while (have := file.tell()) < size:
                try:
                    http_get(
                        url, file, resume_size=have, expected_size=size, displayed_filename=name,
                        headers=build_hf_headers(library_name="fnlm"),
                    )  # fmt: skip
                except failures():
                    if file.tell() == have:
                        raise
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != tag:
            part.unlink()
            raise OSError(f"the bytes of {url} have SHA-256 {digest}, not {tag}: download it again")
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
    """What can go wrong on the network, by whichever HTTP client huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    return (Reason, *HfHubHTTPError.__bases__, OSError, HFValidationError)


def why(error: Exception, repository: str, revision: str) -> str:
    """What an error of the hub means to the one who asked."""
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
