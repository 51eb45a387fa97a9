"""An S3 server before the real one that ignores conditions, does not know them, or refuses those that hold."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@contextmanager
def unconditional(
    endpoint: str, s3: S3Client, *headers: str, status: int = 200, quoted: bool = False
) -> Generator[str]:
    """The endpoint of a server that ignores `headers`, or with another `status` answers that to each of them.

    `s3` is a client of the real one, at `endpoint`. With `quoted` it does so only where the value is in quotes.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(endpoint, s3, headers, status, quoted))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(
    endpoint: str, s3: S3Client, headers: tuple[str, ...], status: int, quoted: bool
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            values = [self.headers[header] for header in headers if header in self.headers and self.command == "PUT"]
            if not any(value.startswith('"') or not quoted for value in values):
                upstream = http.client.HTTPConnection(urlsplit(endpoint).netloc, timeout=30)
                kept = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                upstream.request(self.command, self.path, body, kept)
                answer = upstream.getresponse()
                self._answer(answer.status, dict(answer.getheaders()), answer.read())
                upstream.close()
            elif status != 200:
                self._answer(status, {}, b"")
            else:  # the header is signed, so the write must be signed again
                name, _, key = unquote(urlsplit(self.path).path).removeprefix("/").partition("/")
                etag = s3.put_object(Bucket=name, Key=key, Body=body)["ETag"]
                self._answer(200, {"ETag": etag}, b"")

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.send_header("Content-Length", headers.get("Content-Length", "0") if not body else str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = do_DELETE = do_HEAD = _pass

    return Handler
