"""NVIDIA's registry NGC on loopback, with faults: as much of its interface as ngcsdk 4.37 asks for to read models.

One server is the registry, the login for keys of the old form, and the storage that signed addresses lead to. As on
NGC, a guest asks at other addresses than who has a key, and sees public models alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.tasks.sources.loopback import Loopback

KEY = "nvapi-only-on-loopback"
OLD_KEY = "b25seS1vbi1sb29wYmFjaw"
TOKEN = "token-of-the-old-key"


class Request(NamedTuple):
    path: str
    authorization: str
    range: str | None


@dataclass
class NgcModel:
    versions: dict[str, dict[str, bytes]] = field(default_factory=dict[str, dict[str, bytes]])
    latest: str = ""
    public: bool = False
    terms: bool = False  # terms of use that nobody has accepted


class Ngc(Loopback):
    """The fault switches may be set at any time."""

    def __init__(self, certificates: Path | None = None) -> None:
        """With a folder of `infra.s3.own_certificate` it speaks TLS."""
        self.models: dict[str, NgcModel] = {}
        self.requests: list[Request] = []
        self.unavailable = 0  # how many of the next requests get a 503
        self.truncated = 0  # how many of the next downloads break off half way
        self.expired = 0  # how many of the next downloads get the 403 of an address that has expired
        self.corrupted: set[str] = set()  # files that are served with a byte flipped
        self.without_digest: set[str] = set()
        self.status: dict[str, str | None] = {}  # by version, where it is not complete
        self.page_size = 500
        self.moved_to = ""  # the server that it redirects everything to
        self.ignores_range = False
        server = _Server(self)
        if certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificates / "own.crt", certificates / "own.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        super().__init__(server, "http" if certificates is None else "https")

    def upload(self, model: str, version: str, files: Mapping[str, bytes], *, public: bool = False) -> None:
        """Add a version of the model `org/name` or `org/team/name`, which becomes its latest."""
        known = self.models.setdefault(model, NgcModel(public=public))
        known.versions[version] = dict(files)
        known.latest = version

    def downloads(self) -> list[Request]:
        """The requests so far that asked for a file's bytes."""
        return [request for request in self.requests if request.path.startswith("/storage/")]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, ngc: Ngc) -> None:
        self.ngc = ngc
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:  # a client that goes away
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        ngc, parts = self.server.ngc, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        path = unquote(parts.path)
        ngc.requests.append(Request(self.path, self.headers.get("Authorization", ""), self.headers.get("Range")))
        if ngc.moved_to:
            return self._send(302, b"", {"Location": ngc.moved_to + self.path})
        if ngc.unavailable:
            ngc.unavailable -= 1
            return self._send(503, b"")
        match path.strip("/").split("/"):
            case ["token"]:
                return self._login(parse_qs(parts.query))
            case ["storage", signature, org, group, name, version, *file]:
                key = "/".join(filter(None, (org, group.removeprefix("-"), name)))
                return self._bytes(signature, key, version, "/".join(file))
            case ["v2", "org", org, "team", team, "models", name, *rest]:
                return self._registry(f"{org}/{team}/{name}", rest, query, guest=False)
            case ["v2", "org", org, "models", name, *rest]:
                return self._registry(f"{org}/{name}", rest, query, guest=False)
            case ["v2", "models", "org", org, "team", team, name, version, "files"]:
                return self._registry(f"{org}/{team}/{name}", [version, "files"], query, guest=True)
            case ["v2", "models", "org", org, name, version, "files"]:
                return self._registry(f"{org}/{name}", [version, "files"], query, guest=True)
            case ["v2", "models", org, team, name, *rest] if team != "versions" and name != "versions":
                return self._registry(f"{org}/{team}/{name}", rest, query, guest=True)
            case ["v2", "models", org, name, *rest]:
                return self._registry(f"{org}/{name}", rest, query, guest=True)
            case _:
                return self._send(404, b"")

    def do_POST(self) -> None:
        """What NVIDIA's client asks about a key before it uses it."""
        body = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())
        if self.path == "/v3/keys/get-caller-info" and body.get("credentials") == [KEY]:
            return self._json({"orgName": "nvidia", "type": "SERVICE_KEY"})
        return self._send(401, b"")

    def _login(self, query: Mapping[str, list[str]]) -> None:
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        scopes = query.get("scope", [])
        if scheme != "Basic" or base64.b64decode(given).decode() != f"$oauthtoken:{OLD_KEY}":
            return self._send(401, b"")
        if query.get("service") != ["ngc"] or not all(scope.startswith("group/ngc:") for scope in scopes):
            return self._send(400, b"")
        return self._json({"token": TOKEN, "expires_in": 600})

    def _registry(self, name: str, rest: list[str], query: Mapping[str, str], *, guest: bool) -> None:
        ngc, model = self.server.ngc, self.server.ngc.models.get(name)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not guest and token not in (KEY, TOKEN):
            return self._send(401, b"")
        if model is None or (guest and not model.public):
            return self._send(404, b"")
        match rest:
            case []:
                return self._json({"model": {"name": name.rpartition("/")[2], "latestVersionIdStr": model.latest}})
            case ["versions", version] if version in model.versions:
                document = {"versionId": version, "status": ngc.status.get(version, "UPLOAD_COMPLETE")}
                return self._json({"modelVersion": document})
            case ["versions", version, "files"] if version in model.versions:
                return self._send(412, b"") if model.terms else self._list(model.versions[version], query)
            case [version, "files"] if version in model.versions:
                names = [query["path"]] if "path" in query else list(model.versions[version])
                if any(each not in model.versions[version] for each in names):
                    return self._send(404, b"")
                org, *team, last = name.split("/")
                folder = f"{ngc.url}/storage/signed-{len(ngc.requests)}/{org}/-{'/'.join(team)}/{last}/{version}"
                return self._json({"urls": [f"{folder}/{each}" for each in names], "filepath": names})
            case _:
                return self._send(404, b"")

    def _list(self, files: Mapping[str, bytes], query: Mapping[str, str]) -> None:
        ngc, size, page = self.server.ngc, self.server.ngc.page_size, int(query.get("page-number", "0"))
        entries: list[dict[str, Any]] = []
        for name, data in list(files.items())[page * size : (page + 1) * size]:
            entry: dict[str, Any] = {"path": name, "sizeInBytes": len(data), "createdDate": "2026-11-01T00:00:00.000Z"}
            if name not in ngc.without_digest:
                entry["sha256_base64"] = base64.b64encode(hashlib.sha256(data).digest()).decode()
            entries.append(entry)
        pages = {"index": page, "totalPages": -(-len(files) // size), "totalResults": len(files), "size": size}
        self._json({"requestStatus": {"statusCode": "SUCCESS"}, "modelFiles": entries, "paginationInfo": pages})

    def _bytes(self, signature: str, name: str, version: str, file: str) -> None:
        ngc = self.server.ngc
        if ngc.expired:
            ngc.expired -= 1
            return self._send(403, b"")
        if "Authorization" in self.headers or not signature.startswith("signed-"):
            return self._send(400, b"")  # as S3 refuses two ways of signing at once
        data = ngc.models[name].versions[version][file]
        if file in ngc.corrupted:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted, status, headers = self.headers.get("Range"), 200, {"Accept-Ranges": "bytes"}
        if wanted is not None and not ngc.ignores_range:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else len(data)
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            status, data = 206, data[int(first) : end]
        return self._send(status, data, headers)

    def _json(self, document: Mapping[str, Any]) -> None:
        self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        ngc = self.server.ngc
        breaks_off = bool(ngc.truncated and body and self.path.startswith("/storage/"))
        ngc.truncated -= breaks_off
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if breaks_off else body)
        self.close_connection = self.close_connection or breaks_off
