"""As much of a Prefect server's API as the checks ask, on loopback: it refuses what a real one refuses.

Paths, bodies and answers are those of Prefect 3.8.8; `test_deploy.py` has the same checks ask a real server.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.tasks.sources.loopback import Loopback

CREDENTIAL = "enginehouse:only-on-loopback"


@dataclass
class Pool:
    type: str = "process"
    is_paused: bool = False
    workers: list[str] = field(default_factory=list[str])
    """Those that are online; every pool has one that is not."""


class PrefectDouble(Loopback):
    def __init__(self) -> None:
        self.version = "3.8.8"
        self.pools: dict[str, Pool] = {}
        self.deployments: set[str] = set()
        super().__init__(_Server(self))

    @property
    def api(self) -> str:
        return f"{self.url}/api"

    def deploy(self, pools: Sequence[str], deployments: Sequence[str]) -> None:
        """What `enginehouse deploy` makes."""
        for name in pools:
            self.pools.setdefault(name, Pool())
        self.deployments.update(deployments)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, double: PrefectDouble) -> None:
        self.double = double
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/api/ready":
            self._send(200, {"message": "OK"})
        elif not self._is_let_in():
            self._send(401, {"exception_message": "Unauthorized"})
        else:
            found = self.path == "/api/admin/version"
            self._send(200 if found else 404, self.server.double.version if found else {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        double, parts = self.server.double, self.path.removeprefix("/api/").split("/")
        if not self._is_let_in():
            self._send(401, {"exception_message": "Unauthorized"})
        elif parts == ["work_pools", "filter"]:
            names = body["work_pools"]["name"]["any_"]
            self._send(200, [self._pool(name, pool) for name, pool in double.pools.items() if name in names])
        elif parts == ["deployments", "filter"]:
            names = body["deployments"]["name"]["any_"]
            self._send(200, [{"id": name, "name": name} for name in double.deployments if name in names])
        elif parts[0] == "work_pools" and parts[2:] == ["workers", "filter"] and parts[1] in double.pools:
            online = [{"name": name, "status": "ONLINE"} for name in double.pools[parts[1]].workers]
            self._send(200, [*online, {"name": "gone", "status": "OFFLINE"}])
        else:
            self._send(404, {"detail": "Not Found"})

    def _pool(self, name: str, pool: Pool) -> dict[str, object]:
        return {"id": name, "name": name, "type": pool.type, "is_paused": pool.is_paused, "status": "READY"}

    def _is_let_in(self) -> bool:
        wanted = f"Basic {base64.b64encode(CREDENTIAL.encode()).decode()}"
        return self.headers["Authorization"] == wanted

    def _send(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
