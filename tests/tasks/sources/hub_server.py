"""A Hugging Face hub on loopback, with faults: as much of its API as `huggingface_hub` needs to read models.

As on the real hub, the list of a gated repository's files is public and its files are not. Files of some types are in
LFS and are pinned by their sha256, the others by their git blob. It can be a mirror, which answers less.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from tests.tasks.sources.loopback import Loopback

_LFS = (".safetensors", ".gguf", ".bin", ".pt")


class Request(NamedTuple):
    method: str
    path: str
    range: str | None


@dataclass
class Repository:
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    references: dict[str, str] = field(default_factory=dict[str, str])
    gated: bool = False
    absent: set[str] = field(default_factory=set[str])  # files that are listed but do not exist
    sizes: dict[str, int] = field(default_factory=dict[str, int])  # of files that are listed as so large


class Hub(Loopback):
    """The fault switches may be set at any time."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.unavailable = 0  # how many of the next requests get a 503
        self.unavailable_for = ""  # … of those whose path holds this
        self.truncated = 0  # how many of the next downloads break off half way
        self.corrupted: set[str] = set()  # files that are served with a byte flipped
        self.leaves_out: set[str] = set()  # members of its JSON, and headers, that it does not have
        self.etag = ""  # the ETag of all files, in place of their digests
        self.page: bytes | None = None  # what it answers in place of JSON
        self.renamed: dict[str, str] = {}  # present names by former ones, from which it sends on
        super().__init__(_Server(self))

    def push(self, name: str, files: Mapping[str, bytes], *, reference: str = "main", gated: bool = False) -> str:
        """Commit `files` as the whole content of a repository's branch or tag. Returns the commit."""
        repository = self.repositories.setdefault(name, Repository(gated=gated))
        content = json.dumps({path: hashlib.sha256(data).hexdigest() for path, data in sorted(files.items())})
        commit = hashlib.sha1(f"{name} {len(repository.commits)} {content}".encode()).hexdigest()
        repository.commits[commit] = dict(files)
        repository.references[reference] = commit
        return commit

    def downloads(self) -> list[Request]:
        """The requests so far that asked for a file's bytes."""
        return [request for request in self.requests if request.method == "GET" and "/resolve/" in request.path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(Request(self.command, path, self.headers.get("Range")))
        if hub.unavailable and hub.unavailable_for in path:
            hub.unavailable -= 1
            self._send(503, b"", {})
            return
        for old, new in hub.renamed.items():
            if f"/{old}/" in path:
                self._send(307, b"", {"Location": self.path.replace(f"/{old}/", f"/{new}/")})
                return
        parts = path.strip("/").split("/")
        match parts:
            case ["api", "whoami-v2"]:
                known = self.headers.get("Authorization", "").removeprefix("Bearer ") in hub.tokens
                self._send(200, b'{"name": "somebody"}', {}) if known else self._error(401, "")
            case ["api", "models", owner, name, "revision", *revision]:
                self._information(f"{owner}/{name}", "/".join(revision))
            case [owner, name, "resolve", revision, *file]:
                self._file(f"{owner}/{name}", revision, "/".join(file))
            case _:
                self._error(404, "EntryNotFound")

    def _information(self, name: str, revision: str) -> None:
        found = self._commit(name, revision)
        if found is None:
            return
        repository, commit = found
        document = {
            "id": name,
            "sha": commit,
            "private": False,
            "gated": "manual" if repository.gated else False,
            "tags": ["safetensors", "license:llama3"] if repository.gated else ["safetensors"],
            "siblings": [
                self._sibling(path, data, repository.sizes.get(path, len(data)))
                for path, data in repository.commits[commit].items()
            ],
        }
        hub = self.server.hub
        document = {key: value for key, value in document.items() if key not in hub.leaves_out}
        self._send(200, hub.page or json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _sibling(self, path: str, data: bytes, size: int) -> dict[str, Any]:
        document: dict[str, Any] = {"rfilename": path, "size": size, "blobId": _blob(data)}
        if path.endswith(_LFS):
            sha256 = hashlib.sha256(data).hexdigest()
            document["lfs"] = {"size": size, "sha256": sha256, "pointerSize": 134}
        return {key: value for key, value in document.items() if key not in self.server.hub.leaves_out}

    def _file(self, name: str, revision: str, path: str) -> None:
        hub = self.server.hub
        found = self._commit(name, revision)
        if found is None:
            return
        repository, commit = found
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repository.gated and token not in hub.tokens:
            self._error(403 if token else 401, "GatedRepo")
            return
        data = repository.commits[commit].get(path)
        if data is None or path in repository.absent:
            self._error(404, "EntryNotFound")
            return
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(data)}"', "Accept-Ranges": "bytes"}
        if path.endswith(_LFS):
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(data))
        if hub.etag:
            headers.update({key: f'"{hub.etag}"' for key in headers if key.endswith("ETag")})
        if path in hub.corrupted:
            data = data[:-1] + bytes([data[-1] ^ 1])
        status, wanted = 200, self.headers.get("Range")
        if wanted is not None and self.command == "GET":
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        self._send(status, data, headers)

    def _commit(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.server.hub.repositories.get(name)
        if repository is None:
            self._error(404, "RepoNotFound")
            return None
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            self._error(404, "RevisionNotFound")
            return None
        return repository, commit

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        hub = self.server.hub
        self.send_response(status)
        for key, value in headers.items():
            if key not in hub.leaves_out:
                self.send_header(key, value)
        if self.command == "GET" or "Content-Length" not in hub.leaves_out:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.truncated and "/resolve/" in self.path:
            hub.truncated -= 1
            body = body[: len(body) // 2]
            self.close_connection = True
        self.wfile.write(body)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
