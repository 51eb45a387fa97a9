"""The one address of a node that says whether what it is to serve answers: `GET /ready`, for load balancers and people,
and `GET /metrics`, for Prometheus.

Triton's own `/v2/health/ready` says that Triton runs, with or without models.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pydantic import BaseModel, ConfigDict

_CLIENT_SECONDS = 10.0

_log = logging.getLogger("enginehouse.node")


class ModelHealth(BaseModel):
    """One public name: `wanted` is the release that `current.json` names, `public` the one that answers now."""

    model_config = ConfigDict(frozen=True)

    ready: bool
    """Whether the wanted release has answered lately by the public name."""
    answered: bool
    """Whether it has since Triton started."""
    given_up: bool
    wanted: int | None
    """None if the record cannot be read and never could."""
    public: int | None
    error: str = ""


class Health(BaseModel):
    """The answer of `/ready`: status 200 if `ready`, else 503.

    A node is ready once each model has answered since Triton started, or is given up. Later it stays so while one model
    is down: the others go on answering.
    """

    model_config = ConfigDict(frozen=True)

    node: str
    target: str
    ready: bool
    stale: bool = False
    """Whether the store cannot be read: the last wanted state goes on."""
    error: str = ""
    models: dict[str, ModelHealth] = {}


class HealthServer:
    """Serves what `health` returns on `address` and `port`, and the `figures` of it; with port 0 it serves nothing."""

    def __init__(
        self, health: Callable[[], Health], figures: Callable[[Health], bytes], address: str, port: int
    ) -> None:
        self._health = health
        self._figures = figures
        self._address = address
        self._port = port
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """A port that is taken is logged: a node serves without this address rather than not at all."""
        if not self._port:
            return
        health, figures = self._health, self._figures

        class Handler(BaseHTTPRequestHandler):
            timeout = _CLIENT_SECONDS

            def do_GET(self) -> None:
                now = health()
                match self.path:
                    case "/ready":
                        self._answer(
                            200 if now.ready else 503, "application/json", now.model_dump_json(indent=2).encode()
                        )
                    case "/metrics":
                        self._answer(200, "text/plain; version=0.0.4; charset=utf-8", figures(now))
                    case _:
                        self.send_error(404)

            def _answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                return

        try:
            self._server = ThreadingHTTPServer((self._address, self._port), Handler)
        except OSError as error:
            _log.error("no health address on %s:%d: %s", self._address, self._port, error)
            return
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
