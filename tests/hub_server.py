"""A hub on 127.0.0.1: the part of its protocol that loading a model by name uses.

Small files are served at once; weights, as on the real hub, by a redirect to another host, which
must not see the token. An answer can be made to break off, to see whether a download goes on.
"""

import hashlib
import json
import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple, cast
from urllib.parse import unquote, urlsplit

COMMIT = "5" * 40
MOVED = "6" * 40  # of a branch that has moved
TOKEN = "hf_" + "t" * 34
LARGE = (".safetensors", ".bin")


class Request(NamedTuple):
    """What was asked for."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Repository:
    """The files of a repository, and who may read them."""

    files: dict[str, bytes]
    gated: bool = False  # may be listed, its files need the token
    private: bool = False  # to be seen with the token only
    after: dict[str, bytes] | None = None  # the files of the branch once it was listed
    moved: "Repository | None" = None  # what the branch is now; this is what it was


@dataclass
class Cut:
    """How an answer breaks off: after so many bytes, with a farewell, without one, or in silence.

    `then` is the status of all later answers with the same content; None stands for good ones.
    """

    after: int
    how: str = "close"  # or "reset" or "stall"
    then: int | None = None


@dataclass
class Hub:
    """A running server; what it serves may change while it runs."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    cuts: dict[str, Cut] = field(default_factory=dict)  # by the name of the file
    listings: bytes | None = None  # the answer to all questions for files
    encoding: str = ""  # that of the listings
    commit: str = ""  # what files are said to be of, if not of theirs
    tag: str = ""  # of all files, if not their own
    announced: int | None = None  # the size of large files, if not their own
    url: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Hub":
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingTCPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        # Polled often: closing waits for the end of a poll.
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


def etag(name: str, content: bytes) -> str:
    """The hub's tag of a file: SHA-256 of a large one, git's name of a small one."""
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/agent-harnesses":  # asked for by huggingface_hub when it likes
            return self.fail(404, "NotFound")
        token = self.headers["Authorization"]
        self.hub.requests.append(Request(self.command, path, self.headers["Range"], token))
        if token not in (None, f"Bearer {TOKEN}"):
            return self.fail(401, "", "Invalid credentials in Authorization header")
        if match := re.fullmatch(r"/cdn/(.+?)@(.+)", path):
            return self.content(match[2], self.hub.repositories[match[1]].files[match[2]])
        api = re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        match = cast("re.Match[str]", api or file)
        repository = self.hub.repositories.get(match[1])
        if repository is None or (repository.private and not token):
            return self.fail(404 if token else 401, "RepoNotFound")
        if match[2] not in (None, "main", COMMIT, MOVED if repository.moved else COMMIT):
            return self.fail(404, "RevisionNotFound")
        commit = COMMIT
        if repository.moved and match[2] != COMMIT:
            repository, commit = repository.moved, MOVED
        if api:
            return self.listing(match[1], repository, commit)
        if repository.gated and not token:
            return self.fail(401, "GatedRepo")
        files = repository.files
        if match[2] != COMMIT and repository.after is not None:
            files = repository.after
        if match[3] not in files:
            return self.fail(404, "EntryNotFound")
        return self.file(match[1], match[3], files[match[3]], commit)

    def listing(self, name: str, repository: Repository, commit: str) -> None:
        siblings = [{"rfilename": file} for file in repository.files]
        about: dict[str, Any] = {"id": name, "modelId": name, "sha": commit, "siblings": siblings}
        about |= {"private": repository.private, "gated": repository.gated, "tags": []}
        content = self.hub.listings if self.hub.listings is not None else json.dumps(about).encode()
        headers = {"Content-Type": "application/json", "Content-Encoding": self.hub.encoding}
        self.answer(200, content, headers)

    def file(self, repository: str, name: str, content: bytes, commit: str) -> None:
        tag = f'"{self.hub.tag or etag(name, content)}"'
        headers = {"X-Repo-Commit": self.hub.commit or commit, "ETag": tag}
        if not name.endswith(LARGE):
            return self.answer(200, content, headers)
        host = self.hub.url.replace("127.0.0.1", "localhost")
        size = len(content) if self.hub.announced is None else self.hub.announced
        headers |= {"X-Linked-Etag": tag, "X-Linked-Size": str(size)}
        return self.answer(302, b"", headers | {"Location": f"{host}/cdn/{repository}@{name}"})

    def content(self, name: str, content: bytes) -> None:
        headers = {"Accept-Ranges": "bytes"}
        cut = self.hub.cuts.get(name)
        if cut is not None and cut.after < 0:  # it has been used
            if cut.then is not None:
                return self.fail(cut.then, "")
            cut = None
        status, start = 200, 0
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or ""):
            status, start = 206, int(match[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.answer(status, content[start:], headers, cut)

    def fail(self, status: int, code: str, message: str = "") -> None:
        self.answer(status, b"", {"X-Error-Code": code, "X-Error-Message": message})

    def answer(
        self, status: int, content: bytes, headers: dict[str, str], cut: Cut | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(content if cut is None else content[: cut.after])
        if cut is not None:
            cut.after = -1
            self.break_off(cut.how)

    def break_off(self, how: str) -> None:
        self.wfile.flush()
        if how == "stall":
            self.hub.stalled.set()
            self.hub.go_on.wait(60)
        if how == "reset":
            linger = struct.pack("ii", 1, 0)  # close() then sends a reset instead of an end
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            time.sleep(0.05)  # what is on its way would be lost with the connection
            socket.close(self.connection.detach())
        self.close_connection = True
