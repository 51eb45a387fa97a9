"""A package index on loopback, as pip reads one: PEP 691's JSON, or PEP 503's HTML to those who cannot read it."""

from __future__ import annotations

import html
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_JSON = "application/vnd.pypi.simple.v1+json"


@dataclass
class IndexServer:
    """`files` are names by project, with the reason of a yanked one, or None."""

    port: int = 0
    files: dict[str, dict[str, str | None]] = field(default_factory=dict[str, dict[str, str | None]])
    speaks_json: bool = True
    broken: bool = False
    requests: list[str] = field(default_factory=list[str])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/simple"

    def release(self, version: str, *, yanked: str | None = None) -> None:
        """One wheel and one source archive of tensorrt-llm."""
        project = self.files.setdefault("tensorrt-llm", {})
        project[f"tensorrt_llm-{version}-cp312-cp312-linux_x86_64.whl"] = yanked
        project[f"tensorrt_llm-{version}.tar.gz"] = yanked


@contextmanager
def index_server() -> Generator[IndexServer]:
    index = IndexServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            index.requests.append(self.path)
            files = index.files.get(self.path.removeprefix("/simple/").strip("/"))
            if index.broken or files is None:
                self.send_error(500 if index.broken else 404)
                return
            if index.speaks_json and _JSON in self.headers["Accept"]:
                kind = _JSON
                listed = [
                    {"filename": name, "url": name, "yanked": False if why is None else why or True}
                    for name, why in files.items()
                ]
                body = json.dumps({"meta": {"api-version": "1.0"}, "name": "project", "files": listed})
            else:
                kind = "text/html"
                anchors = (
                    f'<a href="../../packages/{name}#sha256=0"{_yanked(why)}>{name}</a><br/>'
                    for name, why in files.items()
                )
                body = f"<!DOCTYPE html><html><body>{''.join(anchors)}</body></html>"
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        index.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield index
        finally:
            server.shutdown()
            thread.join()


def _yanked(why: str | None) -> str:
    return "" if why is None else f' data-yanked="{html.escape(why)}"'
