"""Errors that no other test comes to, since the machines of the tests are sound. Each is raised where it is made."""

from __future__ import annotations

import asyncio
import ctypes
import dataclasses
import importlib
import importlib.util
import os
import shutil
import socket
import sys
import sysconfig
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.states import Failed

from deployments.cli.main import main
from deployments.doctor import disk, gpus, nodes, python
from deployments.doctor.table import named
from deployments.gateway.tensors import decode
from deployments.node import loading
from deployments.node.agent import run_node
from deployments.node.engine_groups import EngineGroup
from deployments.node.known import KnownRelease
from deployments.node.loading import Loading
from deployments.stack.home import Home
from deployments.stack.services import Service
from deployments.stack.starting import Start
from flows.approve import approve
from flows.failure import error_of
from infra.errors import EnginehouseError, SettingsError, StepFailed, TritonError, UsageError
from infra.gpu import GpuReport
from infra.processes import child
from infra.processes.sessions import free_ports
from infra.processes.supervised_child import Report, SupervisedChild
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT, Settings
from infra.traces.collector import require_sdk
from infra.triton import wheel
from infra.triton.client import GrpcStream, TritonClient
from infra.triton.command import Ports
from infra.triton.supervisor import Supervisor
from tasks.explain.why import why
from tasks.kinds.choice import engine_kind
from tasks.models.catalogue import load_model
from tasks.store.artifact import ArtifactRef
from tasks.store.signing import Sign, Statement
from tasks.targets.node_report import NodeReport


def _raise(error: Exception) -> Any:
    def raises(*_: object, **__: object) -> Any:
        raise error

    return raises


def _says(value: Any = None) -> Any:
    def says(*_: object, **__: object) -> Any:
        return value

    return says


def code_of(error: pytest.ExceptionInfo[EnginehouseError]) -> str:
    return error.value.code


def test_an_output_that_json_has_no_form_for() -> None:
    with pytest.raises(EnginehouseError) as caught:
        decode("BF16", b"\0\0")
    assert code_of(caught) == "answer-malformed"


def test_an_approval_of_nobody() -> None:
    with pytest.raises(UsageError) as caught:
        asyncio.run(approve.fn("tiny", "approve", by=" "))
    assert code_of(caught) == "approval-by"


def test_a_child_flow_that_failed_without_a_code() -> None:
    assert error_of(Failed(message="Task run encountered an exception"), "the build").code == "build-failed"


def test_a_check_of_the_doctor_that_there_is_not() -> None:
    with pytest.raises(UsageError) as caught:
        named(["stoer"])
    assert code_of(caught) == "check-missing" and "store" in caught.value.hint


def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", _says(False))
    assert disk.disk(tmp_path, 1).code == "disk-denied"


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", _says(SimpleNamespace(total=64 << 20, free=1 << 50)))
    assert "shared-memory" in [finding.code for finding in disk.CHECK.look(Settings())]


def test_a_gpu_that_nothing_can_use() -> None:
    report = GpuReport(driver="580.1", cuda="13.0", gpus=(), problem="Driver/library version mismatch")
    assert [finding.code for finding in gpus.gpus(report, has_device=True)] == ["gpu-unusable"]


def test_a_node_that_reports_an_error() -> None:
    report = NodeReport(
        node="one", target="t", http="", grpc="", triton_pid=1, memory_total_bytes=1, memory_available_bytes=1,
        error="the store is away",
    )  # fmt: skip
    assert "node-error" in [finding.code for finding in nodes.of_node(report)]


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.python_version", _says("3.9.1"))
    assert "python-version" in [finding.code for finding in python.CHECK.look(Settings())]


def test_a_python_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", _says(str(tmp_path)))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(wheel, "_linker_cache", _says(""))
    with pytest.raises(SettingsError) as caught:
        wheel.locate()
    assert code_of(caught) == "libpython-missing"


def test_a_machine_without_openmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", _raise(OSError("no such file")))
    home = Home(tmp_path)
    home.make()
    service = Service("s3", "", {}, 1, 1, _raise(AssertionError()), _says(True))
    with pytest.raises(SettingsError) as caught:
        Start(home, {"s3": service}, _says()).prepare(0)
    assert code_of(caught) == "library-missing"


def test_options_of_a_load_that_make_no_sense(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "tiny", "--timeout", "0", "--address", "127.0.0.1:1"]) == 2
    assert "[load-options]" in capsys.readouterr().err


def test_an_artifact_whose_manifest_is_not_there(bucket: Bucket) -> None:
    with pytest.raises(UsageError) as caught:
        why(bucket, ArtifactRef("engine", "0" * 64))
    assert code_of(caught) == "manifest-missing"


def test_a_node_with_a_name_that_is_none() -> None:
    environment = {"ENGINEHOUSE_NODE_METRICS_PORT": "3"}
    with pytest.raises(SettingsError) as caught:
        run_node(Settings(triton_http="http://127.0.0.1:1", triton_grpc="127.0.0.1:2"), environment, name="a/b")
    assert code_of(caught) == "node-name"


@pytest.mark.parametrize(
    ("triton", "environment"),
    [
        ("", {"ENGINEHOUSE_NODE_METRICS_PORT": "3"}),
        ("http://127.0.0.1", {"ENGINEHOUSE_NODE_METRICS_PORT": "3"}),
        ("http://127.0.0.1:1", {}),
        ("http://127.0.0.1:1", {"ENGINEHOUSE_NODE_METRICS_PORT": "99999"}),
        ("http://127.0.0.1:1", {"ENGINEHOUSE_NODE_METRICS_PORT": "3", "ENGINEHOUSE_NODE_HEALTH_PORT": "no"}),
    ],
)
def test_a_node_without_its_ports(triton: str, environment: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        run_node(Settings(triton_http=triton, triton_grpc="127.0.0.1:2"), environment)
    assert code_of(caught) == "node-ports"


def test_processes_that_sigkill_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = SupervisedChild.end

    def leaves_one(self: SupervisedChild, grace_s: float) -> Report | None:
        report = end(self, grace_s)
        return None if report is None else dataclasses.replace(report, left=(4242,))

    monkeypatch.setattr(SupervisedChild, "end", leaves_one)
    with pytest.raises(StepFailed) as caught:
        child.run(["/bin/true"], folder=tmp_path, environment={}, timeout_s=30, on_line=_says())
    assert code_of(caught) == "processes-left"


def test_signing_without_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(SettingsError) as caught:
        Sign(str(tmp_path / "key.pem"))(Statement("engine/00", {}))
    assert code_of(caught) == "signature-library"


def test_a_snapshot_without_a_gguf(tmp_path: Path) -> None:
    kind = engine_kind(load_model(CHECKOUT / "deployments/models/smollm2-135m.yaml"))
    with pytest.raises(StepFailed) as caught:
        kind.convert(tmp_path, None, tmp_path, tmp_path, SimpleNamespace())  # pyright: ignore[reportArgumentType]
    assert code_of(caught) == "snapshot-unfit"


def test_traces_without_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", _says())
    with pytest.raises(SettingsError) as caught:
        require_sdk()
    assert code_of(caught) == "traces-missing"


def test_an_input_that_the_model_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata = SimpleNamespace(inputs=[SimpleNamespace(name="text_input", datatype="BYTES")])
    client = SimpleNamespace(get_model_metadata=_says(metadata), close=_says(), stop_stream=_says())
    library = SimpleNamespace(InferenceServerClient=_says(client), InferenceServerException=ConnectionError)
    monkeypatch.setattr(importlib, "import_module", _says(library))
    with pytest.raises(TritonError) as caught:
        GrpcStream("127.0.0.1:1", "tiny", {"txt_input": "a"}, 1.0)
    assert code_of(caught) == "triton-invalid"


def test_a_model_that_is_not_loaded_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TritonError) as caught:
        TritonClient(f"127.0.0.1:{silent.getsockname()[1]}").load("tiny", timeout_s=0.1)
    assert code_of(caught) == "triton-load-timeout"


def test_an_engine_whose_servers_run_and_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "ensure", _says())
    monkeypatch.setattr(TritonClient, "ready", _says(False))
    with pytest.raises(TritonError) as caught:
        EngineGroup(tmp_path, "tiny--r1--tensorrt_llm", (Ports(*free_ports(3)),), None).start()
    assert code_of(caught) == "triton-not-ready"


def test_a_release_that_triton_does_not_unload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def unload(self, name: str) -> None:
            pass

        def index(self) -> Sequence[Any]:
            return [SimpleNamespace(name="tiny--r1", state="UNLOADING")]

    monkeypatch.setattr(loading, "_UNLOAD_SECONDS", 0.0)
    monkeypatch.setattr(loading, "placed_folders", _says(["tiny--r1"]))
    servers: Any = SimpleNamespace(triton=Stuck(), groups=SimpleNamespace(end=_says()))
    release = KnownRelease()
    copies: Any = SimpleNamespace()
    Loading(copies, tmp_path, 1.0, threading.Semaphore(1)).unload(servers, "tiny", 1, release)
    assert "[triton-unload]" in release.error
