"""The gateway as people run it: the command, its settings, TLS, and its end."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.cli.main import main
from deployments.gateway.keys import Keys
from deployments.gateway.serve import Options
from infra import settings
from infra.errors import SettingsError
from infra.processes.sessions import free_ports, start_session, terminate
from infra.s3.own_certificate import write
from infra.settings import CHECKOUT
from tests.deployments.gateway.house import MODEL, house, until
from tests.deployments.gateway.test_state import report
from tests.fleet import Fleet

grpc: Any = importlib.import_module("grpc")
messages: Any = importlib.import_module("tritonclient.grpc.service_pb2")
service: Any = importlib.import_module("tritonclient.grpc.service_pb2_grpc")


@contextmanager
def command(fleet: Fleet, folder: Path, **more: str) -> Generator[tuple[subprocess.Popen[bytes], int, Path]]:
    """`enginehouse gateway` as a process: itself, its HTTP port and its log."""
    http, rpc = free_ports(2)
    bucket, log = fleet.target.bucket, folder / "gateway.log"
    environment = os.environ | {
        "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix}",
        "ENGINEHOUSE_TARGET": fleet.target.name,
        "ENGINEHOUSE_GATEWAY_HTTP": f"http://127.0.0.1:{http}",
        "ENGINEHOUSE_GATEWAY_GRPC": f"127.0.0.1:{rpc}",
        **more,
    }
    arguments = [sys.executable, "-c", "import sys; from deployments.cli.main import main; sys.exit(main())", "gateway"]
    process = start_session(arguments, log=log, folder=CHECKOUT, environment=environment)
    try:
        until(lambda: process.poll() is not None or _opens(http), "gateway", 60)
        yield process, http, log
    finally:
        terminate(process, 0)


def _opens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def status(port: int, path: str) -> int:
    return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False, timeout=10).status_code


def test_the_command_serves_what_the_store_says_and_ends_on_sigterm(fleet: Fleet, tmp_path: Path) -> None:
    fleet.release(fleet.rebuild(MODEL))
    with house() as nodes, command(fleet, tmp_path) as (process, port, log):
        assert status(port, "/health") == 200
        assert status(port, "/ready") == 503, "a public name that no node answers for"
        one = nodes.add_node("one")
        report(fleet.target, "one", {MODEL: (1, {1: "ready"})}, one.port)
        assert until(lambda: status(port, "/ready") == 200, "ready gateway") < 3
        body = {"text_input": "hello", "max_tokens": 4}
        url = f"http://127.0.0.1:{port}/v2/models/{MODEL}/generate"
        answer = httpx.post(url, json=body, trust_env=False, headers={"x-request-id": "mine"})
        assert answer.json()["text_output"] == "hello" and one.asked == [(f"{MODEL}--r1--llm", "hello")]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, log.read_text()
    written = log.read_text()
    assert "request=mine key=- model=tiny release=1 node=test/one outcome=ok" in written
    assert "Traceback" not in written and "hello" not in written


def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_head() -> None:
    """By default TCP holds the body back until then: 40 ms on a connection that is kept."""
    with house() as made:
        made.add_node("one")
        made.public()
        with made.client() as client:
            answers = [client.get("/v2/models") for _ in range(40)]
    assert min(answer.elapsed.total_seconds() for answer in answers[20:]) < 0.03


def test_a_port_that_is_taken_is_an_error(fleet: Fleet, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with command(fleet, tmp_path, ENGINEHOUSE_GATEWAY_HTTP=where) as (process, _, log):
            assert process.wait(20) == 2
    assert "[port-taken]" in log.read_text() and "Traceback" not in log.read_text()


def test_without_keys_it_stays_on_loopback_unless_that_is_said() -> None:
    beyond = replace(settings.Settings(), gateway_address="0.0.0.0")
    with pytest.raises(SettingsError) as refused:
        Options.of(beyond)
    assert refused.value.code == "gateway-open" and "ENGINEHOUSE_GATEWAY_KEYS" in refused.value.hint
    assert Options.of(replace(beyond, gateway_open=True)).address == "0.0.0.0"
    assert Options.of(replace(beyond, gateway_keys=Path("/keys"))).address == "0.0.0.0"
    assert Options.of(replace(beyond, gateway_address="127.0.0.2")).http_port == 8080
    assert Options.of(replace(beyond, gateway_address="::1", gateway_grpc="[::1]:99")).grpc_port == 99


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"gateway_certificate": "/x"}, "gateway-tls"),
        ({"gateway_certificate_key": "/x"}, "gateway-tls"),
        ({"gateway_http": "http://gateway"}, "settings"),
        ({"gateway_grpc": "gateway:http"}, "settings"),
    ],
)
def test_settings_that_cannot_be(changes: Mapping[str, str], code: str) -> None:
    with pytest.raises(SettingsError) as refused:
        Options.of(replace(settings.Settings(), **changes))  # pyright: ignore[reportArgumentType]
    assert refused.value.code == code


def test_tls_by_files(tmp_path: Path) -> None:
    write(tmp_path)
    certificate = tmp_path / "own.crt"
    options = Options(certificate=str(certificate), key=str(tmp_path / "own.key"))
    with house(options=options) as made:
        made.add_node("one")
        made.public()
        url = f"https://127.0.0.1:{made.gateway.http_port}/v2/models/{MODEL}/generate"
        trust = ssl.create_default_context(cafile=str(certificate))
        body = {"text_input": "over TLS", "max_tokens": 4}
        answer = httpx.post(url, json=body, verify=trust, trust_env=False)
        assert answer.json()["text_output"] == "over TLS"
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(made.grpc, credentials) as channel:
            assert service.GRPCInferenceServiceStub(channel).ServerReady(messages.ServerReadyRequest()).ready
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{made.gateway.http_port}/health", trust_env=False)


def test_on_loopback_it_is_called_by_its_own_names_alone(tmp_path: Path) -> None:
    with house() as made, made.client() as client:
        for name, expected in (("127.0.0.1", 200), ("localhost:8080", 200), ("evil.example", 400), ("", 400)):
            assert client.get("/health", headers={"Host": name}).status_code == expected, name
    file = tmp_path / "keys.yaml"
    file.write_text("keys: []")
    with house(keys=Keys(file)) as made, made.client() as client:
        assert client.get("/health", headers={"Host": "evil.example"}).status_code == 200
        assert client.get("/v2/models", headers={"Host": "evil.example"}).status_code == 401


def test_the_command_that_makes_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gateway-key", "search", "--model", "tiny", "--requests", "3"]) == 0
    told = capsys.readouterr()
    secret = told.out.strip()
    file = tmp_path / "keys.yaml"
    file.write_text("keys:\n" + told.err[told.err.index("- name") :])
    found = Keys(file).find(f"Bearer {secret}")
    assert found is not None and (found.name, found.models, found.requests) == ("search", ("tiny",), 3)
    assert secret not in told.err
    assert main(["gateway-key", "search", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["entry"].keys() == {"name", "sha256"} and document["key"].startswith("eh-")
    assert main(["gateway-key", "two words"]) == 2
