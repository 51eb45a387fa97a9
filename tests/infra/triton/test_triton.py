"""The real Triton: how it is started, what it keeps closed, how it ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import tritonclient.grpc as grpc  # pyright: ignore[reportMissingTypeStubs]

from infra.errors import SettingsError, TritonError
from infra.processes.sessions import free_ports
from infra.triton import server, wheel
from infra.triton.client import TritonClient
from infra.triton.command import CONTROL_HEADER, Ports

if TYPE_CHECKING:
    from tests.conftest import RunningTriton

CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 8
input [{ name: "text_input" data_type: TYPE_STRING dims: [1] }]
output [{ name: "text_output" data_type: TYPE_STRING dims: [1] }]
model_transaction_policy { decoupled: true }
instance_group [{ kind: KIND_CPU }]
"""

# Answers with the environment of the interpreter that it runs in.
MODEL = """
import json, os
import numpy as np
import triton_python_backend_utils as triton
from .beside import LINE

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            text = json.dumps([LINE, dict(os.environ)]).encode()
            tensor = triton.Tensor("text_output", np.array([[text]], dtype=np.object_))
            request.get_response_sender().send(triton.InferenceResponse([tensor]), flags=1)
"""

SECRETS = ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PREFECT_API_KEY", "ENGINEHOUSE_STORE")

GRPC_HEADER = f"triton-grpc-protocol-{CONTROL_HEADER}"

RESTRICTED_HTTP = (
    ("POST", "v2/repository/index"),
    ("POST", "v2/repository/models/echo/load"),
    ("POST", "v2/repository/models/echo/unload"),
    ("GET", "v2/models/echo/config"),
    ("GET", "v2/models/echo/stats"),
    ("GET", "v2/models/stats"),
    ("GET", "v2/systemsharedmemory/status"),
    ("POST", "v2/systemsharedmemory/region/any/register"),
    ("GET", "v2/cudasharedmemory/status"),
    ("GET", "v2/trace/setting"),
    ("POST", "v2/trace/setting"),
    ("POST", "v2/models/echo/trace/setting"),
    ("GET", "v2/logging"),
    ("POST", "v2/logging"),
)

RESTRICTED_GRPC: dict[str, tuple[Any, ...]] = {
    "get_model_repository_index": (),
    "load_model": ("echo",),
    "unload_model": ("echo",),
    "get_model_config": ("echo",),
    "get_inference_statistics": (),
    "get_system_shared_memory_status": (),
    "register_system_shared_memory": ("region", "/any", 8),
    "get_cuda_shared_memory_status": (),
    "get_trace_settings": (),
    "update_trace_settings": (),
    "get_log_settings": (),
    "update_log_settings": ({},),
}


def put_model(repository: Path) -> None:
    version = repository / "echo/1"
    version.mkdir(parents=True)
    (repository / "echo/config.pbtxt").write_text(CONFIG)
    (version / "model.py").write_text(MODEL)
    (version / "beside.py").write_text("LINE = 'imported from beside the model'\n")


@pytest.fixture(scope="module")
def triton(start_triton: Callable[[str], RunningTriton]) -> Iterator[RunningTriton]:
    with pytest.MonkeyPatch.context() as environment:
        for name in SECRETS:
            environment.setenv(name, "not for Triton")
        environment.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        started = start_triton("control")
    put_model(started.repository)
    started.client.load("echo")
    yield started


def ask_http(triton: RunningTriton, method: str, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", triton.ports.http, timeout=20)
    try:
        connection.request(method, f"/{path}", "{}" if method == "POST" else None, headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize(("method", "path"), RESTRICTED_HTTP)
def test_control_over_http_needs_the_key(triton: RunningTriton, method: str, path: str) -> None:
    assert ask_http(triton, method, path, {}) == 403
    assert ask_http(triton, method, path, {CONTROL_HEADER: "guess"}) == 403
    assert triton.client.ready("echo")


@pytest.mark.parametrize("call", RESTRICTED_GRPC)
def test_control_over_grpc_needs_the_key(triton: RunningTriton, call: str) -> None:
    library: Any = grpc
    client = library.InferenceServerClient(f"127.0.0.1:{triton.ports.grpc}")
    for headers in (None, {GRPC_HEADER: "guess"}):
        with pytest.raises(Exception, match="restricted"):  # Triton's own word
            getattr(client, call)(*RESTRICTED_GRPC[call], headers=headers)
    client.close()
    assert triton.client.ready("echo")


def test_the_key_opens_control_over_http_and_grpc(triton: RunningTriton) -> None:
    assert [(model.name, model.state) for model in triton.client.index()] == [("echo", "READY")]
    library: Any = grpc
    client = library.InferenceServerClient(f"127.0.0.1:{triton.ports.grpc}")
    client.load_model("echo", headers={GRPC_HEADER: triton.key})
    client.close()


def test_code_in_a_load_request_does_not_run_without_the_key(triton: RunningTriton) -> None:
    body = {"parameters": {"config": "{}", "file:1/model.py": "aW1wb3J0IG9z"}}
    stranger = TritonClient(f"127.0.0.1:{triton.ports.http}")
    with pytest.raises(TritonError) as refusal:
        stranger.load("intruder")
    assert refusal.value.code == "triton-restricted"
    connection = http.client.HTTPConnection("127.0.0.1", triton.ports.http, timeout=20)
    connection.request("POST", "/v2/repository/models/intruder/load", json.dumps(body))
    assert connection.getresponse().status == 403
    connection.close()


def test_models_see_no_secret_and_import_the_environments_packages(triton: RunningTriton) -> None:
    line, environment = json.loads(triton.client.generate("echo", {"text_input": "?"}).text)
    assert line == "imported from beside the model"
    assert not [name for name in environment if name.startswith(("AWS_", "HF_", "PREFECT_", "ENGINEHOUSE_"))]
    assert triton.key not in json.dumps(environment)


def test_the_wheel_has_the_release_that_is_warned_of(triton: RunningTriton) -> None:
    connection = http.client.HTTPConnection(f"127.0.0.1:{triton.ports.http}", timeout=10)
    connection.request("GET", "/v2")
    version = json.load(connection.getresponse())["version"]
    connection.close()
    # Triton's minor version counts the images' months: 2.51 is in 24.10.
    year, month = map(int, wheel.SAME_IMAGE.split("."))
    assert version.startswith(f"2.{51 + 12 * (year - 24) + month - 10}.")


def test_no_bytecode_is_written(triton: RunningTriton) -> None:
    assert triton.client.ready("echo")
    assert not list(triton.repository.rglob("__pycache__"))
    assert not list(triton.work.rglob("__pycache__"))


def test_listens_on_loopback_alone(triton: RunningTriton) -> None:
    listening = [
        entry.laddr
        for entry in psutil.Process(triton.process.pid).net_connections("tcp")
        if entry.status == psutil.CONN_LISTEN
    ]
    assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    assert {address.port for address in listening} == {triton.ports.http, triton.ports.grpc, triton.ports.metrics}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_it(start_triton: Callable[[str], RunningTriton], how: signal.Signals) -> None:
    triton = start_triton("ending")
    put_model(triton.repository)
    triton.client.load("echo")
    children = psutil.Process(triton.process.pid).children(recursive=True)
    assert children
    triton.process.send_signal(how)
    assert triton.process.wait(10) == (0 if how is signal.SIGTERM else -signal.SIGKILL)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert not list(Path("/dev/shm").glob(f"{server.shared_memory_prefix(triton.work)}*"))


def test_the_next_start_drops_shared_memory_of_a_killed_group(start_triton: Callable[[str], RunningTriton]) -> None:
    triton = start_triton("killed")
    put_model(triton.repository)
    triton.client.load("echo")
    os.killpg(triton.process.pid, signal.SIGKILL)
    triton.process.wait(10)
    prefix = f"{server.shared_memory_prefix(triton.work)}*"
    left = set(Path("/dev/shm").glob(prefix))
    assert left
    ports = Ports(*free_ports(3))
    again = server.start_server(triton.repository, triton.work, triton.log, ports=ports, control_key="k")
    try:
        assert not left & set(Path("/dev/shm").glob(prefix))
    finally:
        again.kill()
        again.wait(10)


def test_missing_libpython_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_folder(name: str) -> None:
        return None

    monkeypatch.setattr(sysconfig, "get_config_var", no_folder)
    monkeypatch.setattr(sys, "base_prefix", "/nowhere")
    monkeypatch.setattr(wheel, "_linker_cache", lambda: "")
    with pytest.raises(SettingsError) as missing:
        wheel.locate()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"libpython{version}.so.1.0" in missing.value.message
    assert f"libpython{version}" in missing.value.hint


def test_silence_is_retryable_and_refusals_are_not(triton: RunningTriton) -> None:
    silent = TritonClient(f"127.0.0.1:{free_ports(1)[0]}", grpc=f"127.0.0.1:{free_ports(1)[0]}")
    assert not silent.live()
    with pytest.raises(TritonError) as unreachable:
        silent.generate("echo", {"text_input": "?"})
    assert unreachable.value.retryable and unreachable.value.code == "triton-unreachable"
    with pytest.raises(TritonError) as unreachable:
        silent.stream("echo", {"text_input": "?"})
    assert unreachable.value.retryable and unreachable.value.code == "triton-unreachable"
    with pytest.raises(TritonError) as unknown:
        triton.client.generate("nobody", {"text_input": "?"})
    assert not unknown.value.retryable and unknown.value.code == "triton-unknown-model"


def test_a_model_that_cannot_load_has_its_reason_shown(triton: RunningTriton) -> None:
    shutil.copytree(triton.repository / "echo", triton.repository / "broken")
    config = triton.repository / "broken/config.pbtxt"
    config.write_text(CONFIG.replace('"echo"', '"broken"'))
    (triton.repository / "broken/1/beside.py").write_text("raise RuntimeError('no such engine')\n")
    with pytest.raises(TritonError) as refused:
        triton.client.load("broken")
    assert refused.value.code == "triton-refused" and "no such engine" in refused.value.message
    until = time.monotonic() + 15
    while not any(model.name == "broken" and "no such engine" in model.reason for model in triton.client.index()):
        assert time.monotonic() < until
        time.sleep(0.05)
    shutil.rmtree(triton.repository / "broken")
