"""A program that knocks at ports without any credential, as another user of the machine may. root becomes that user.

It reads from its input which ports there are, by name, and prints what it was let do, by the same names. Prefect's
paths and websockets are in the input too.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import ssl
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import httpx
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

NOBODY = 65534
grpc: Any = importlib.import_module("grpc")
triton: Any = importlib.import_module("tritonclient.grpc")

_NOWHERE = 9
EVIL = "http://evil.example"


def _client() -> httpx.Client:
    return httpx.Client(timeout=10.0, verify=False, trust_env=False)


def _ask(method: str, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
    with _client() as client:
        return client.request(method, url, headers=headers, json={})


def closed(port: int, asked: dict[str, Any]) -> Iterator[str]:
    """A port for others: it answers in no protocol to who has no certificate."""
    with suppress(httpx.TransportError):
        answer = _ask("GET", f"http://127.0.0.1:{port}/")
        if (answer.status_code, "HTTPS server" in answer.text) != (400, True):
            yield f"http {answer.status_code}"
    with suppress(httpx.TransportError):
        yield f"https {_ask('GET', f'https://127.0.0.1:{port}/').status_code}"
    for name, channel in _channels(port):
        call = channel.unary_unary("/filer_pb.SeaweedFiler/GetFilerConfiguration")
        try:
            call(b"", timeout=10)
            yield f"{name}: answered"
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                yield f"{name}: {error.code()}"


def _channels(port: int) -> Iterator[tuple[str, Any]]:
    yield "gRPC", grpc.insecure_channel(f"127.0.0.1:{port}")
    with suppress(OSError):
        shown = ssl.get_server_certificate(("127.0.0.1", port), timeout=10).encode()
        yield "gRPC with TLS", grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(shown))


def s3(port: int, asked: dict[str, Any]) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    for method, path in (
        *(("GET", "/"), ("GET", "/enginehouse"), ("PUT", "/enginehouse/targets/local/x"), ("DELETE", "/enginehouse/x")),
        *(("POST", "/?Action=AssumeRole&Version=2011-06-15"), ("POST", "/?Action=CreateAccessKey&Version=2010-05-08")),
    ):
        answer = _ask(method, url + path)
        if answer.status_code < 400:
            yield f"{method} {path} {answer.status_code}"
    yield from _foreign_page(f"{url}/enginehouse/x")


def _foreign_page(url: str) -> Iterator[str]:
    headers = {"Origin": EVIL, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x"}
    for method in ("OPTIONS", "GET"):
        if "access-control-allow-origin" in _ask(method, url, headers).headers:
            yield f"{method} from {EVIL}"


def prefect(port: int, asked: dict[str, Any]) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    with _client() as client:
        for method, path in asked["paths"]:
            answer = client.request(method, f"{url}/api{path}", json={})
            if answer.status_code != 401:
                yield f"{method} {path} {answer.status_code}"
        if client.get(f"{url}/api/health", headers={"Host": f"evil.example:{port}"}).status_code != 400:
            yield "called by a foreign name"
    yield from _foreign_page(f"{url}/api/flows/filter")
    for path in asked["sockets"]:
        for protocols in (None, ["prefect"]):
            if _socket_opens(f"ws://127.0.0.1:{port}/api{path}", protocols):
                yield f"websocket {path} {protocols}"


def _socket_opens(url: str, protocols: Any) -> bool:
    try:
        with connect(url, subprotocols=protocols, proxy=None, open_timeout=10) as opened:
            opened.send(json.dumps({"type": "auth", "token": "a:guess"}))
            return "auth_success" in str(opened.recv(10))
    except InvalidStatus as error:
        assert error.response.status_code in (401, 403)
    except (OSError, WebSocketException):
        pass
    return False


_CONTROL = (
    *(("POST", "repository/index"), ("POST", "repository/models/m/load"), ("POST", "repository/models/m/unload")),
    *(("GET", "models/m/config"), ("GET", "models/stats"), ("GET", "trace/setting"), ("GET", "logging")),
    *(("GET", "systemsharedmemory/status"), ("POST", "systemsharedmemory/region/m/register")),
)
"""What changes a Triton, or reveals its machine."""


def triton_http(port: int, asked: dict[str, Any]) -> Iterator[str]:
    for method, path in _CONTROL:
        answer = _ask(method, f"http://127.0.0.1:{port}/v2/{path}")
        if answer.status_code != 403:
            yield f"{method} {path} {answer.status_code}"


def gateway_http(port: int, asked: dict[str, Any]) -> Iterator[str]:
    """The models may be asked, as at Triton's own port; of all that changes or reveals a server there is nothing."""
    for method, path in _CONTROL:
        answer = _ask(method, f"http://127.0.0.1:{port}/v2/{path}")
        if answer.status_code not in (404, 405):
            yield f"{method} {path} {answer.status_code}"
    yield from _foreign_page(f"http://127.0.0.1:{port}/v2/models")
    if _ask("GET", f"http://127.0.0.1:{port}/v2/models", {"Host": f"evil.example:{port}"}).status_code != 400:
        yield "called by a foreign name"


def triton_grpc(port: int, asked: dict[str, Any]) -> Iterator[str]:
    yield from _controlled_by_grpc(port, ("This protocol is restricted",))


def gateway_grpc(port: int, asked: dict[str, Any]) -> Iterator[str]:
    yield from _controlled_by_grpc(port, ("Method not found", "does not exist"))


def _controlled_by_grpc(port: int, refusals: tuple[str, ...]) -> Iterator[str]:
    """What is done, or refused by other words than these."""
    client = triton.InferenceServerClient(f"127.0.0.1:{port}")
    calls: dict[str, Callable[[], Any]] = {
        "index": client.get_model_repository_index,
        "load": lambda: client.load_model("m", config="{}", files={"file:1/model.py": b""}),
        "unload": lambda: client.unload_model("m"),
        "config": lambda: client.get_model_config("m"),
        "statistics": client.get_inference_statistics,
        "shared memory": client.get_system_shared_memory_status,
        "trace": client.get_trace_settings,
        "logging": lambda: client.update_log_settings({"log_file": "/tmp/x"}),
    }
    for name, call in calls.items():
        try:
            call()
            yield name
        except triton.InferenceServerException as error:
            if not any(words in str(error) for words in refusals):
                yield f"{name}: {error}"


def readable(port: int, asked: dict[str, Any]) -> Iterator[str]:
    """Triton's figures, or whether the node's models answer: everybody may read them, and nobody change them."""
    answer = _ask("POST", f"http://127.0.0.1:{port}/metrics")
    if answer.status_code < 400:
        yield f"POST /metrics {answer.status_code}"


def control_channel(port: int, asked: dict[str, Any]) -> Iterator[str]:
    """A worker's port for the runs that it has started, each of which knows a token."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as knock:
        knock.sendall(b"0" * 64 + b"\n")
        with suppress(ConnectionError):
            if heard := knock.recv(100):
                yield repr(heard)


KNOCKS: dict[str, Callable[[int, dict[str, Any]], Iterator[str]]] = {
    "s3": s3,
    **dict.fromkeys(("s3-grpc", "master", "master-grpc", "volume", "volume-grpc"), closed),
    **dict.fromkeys(("filer", "filer-grpc", "admin", "admin-grpc"), closed),
    "prefect": prefect,
    **dict.fromkeys(("worker-default", "worker-build-cpu"), control_channel),
    "triton-http": triton_http,
    "triton-grpc": triton_grpc,
    "gateway-http": gateway_http,
    "gateway-grpc": gateway_grpc,
    **dict.fromkeys(("triton-metrics", "node-health"), readable),
}
"""By the name of the port. A new port of the stack needs its line here: what may a stranger do there?"""


def _become_nobody() -> None:
    # What is imported late is imported by this: the interpreter may lie where the other user may not look.
    for knock in (control_channel, closed, triton_http, triton_grpc, gateway_http):
        with suppress(OSError, httpx.TransportError):
            list(knock(_NOWHERE, {}))
    _socket_opens(f"ws://127.0.0.1:{_NOWHERE}", None)
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def main() -> None:
    asked = json.load(sys.stdin)
    if os.getuid() == 0:
        _become_nobody()
    let_in = {name: list(KNOCKS[name](port, asked)) for name, port in asked["ports"].items()}
    json.dump({"user": os.getuid(), "let in": let_in}, sys.stdout)


if __name__ == "__main__":
    main()
