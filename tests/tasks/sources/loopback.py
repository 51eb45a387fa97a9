"""Servers of tests, on a free port of loopback."""

from __future__ import annotations

import threading
from http.server import HTTPServer
from typing import Self


class Loopback:
    """Use as a context manager: the server answers until its end."""

    def __init__(self, server: HTTPServer, scheme: str = "http") -> None:
        self._server = server
        self.url = f"{scheme}://127.0.0.1:{server.server_address[1]}"
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
