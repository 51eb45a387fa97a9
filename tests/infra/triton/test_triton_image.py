"""Triton as NVIDIA's image has it: a folder with the wheel's own server, and an interpreter that is not this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.errors import SettingsError
from infra.processes.sessions import free_ports, terminate
from infra.triton import installation, wheel
from infra.triton.client import TritonClient
from infra.triton.command import Ports
from infra.triton.server import start_server
from infra.triton.supervisor import Ensured, Supervisor

CONFIG = """
name: "echo"
backend: "python"
max_batch_size: 8
input [{ name: "text_input" data_type: TYPE_STRING dims: [1] }]
output [{ name: "text_output" data_type: TYPE_STRING dims: [1] }]
instance_group [{ kind: KIND_CPU }]
"""
MODEL = """
import json, os, sys
import numpy as np
import only_in_the_image
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        text = json.dumps([sys.prefix, dict(os.environ)]).encode()
        tensor = triton.Tensor("text_output", np.array([[text]], dtype=np.object_))
        return [triton.InferenceResponse([tensor]) for _ in requests]
"""
# Marks its child as Open MPI does, gives it a process group of its own, and outlives it.
MPIRUN = """#!{python}
import json, os, subprocess, sys, time
json.dump(sys.argv[1:], open({record!r}, "w"))
program = sys.argv[sys.argv.index("-n") + 2:]
marks = dict(OMPI_COMM_WORLD_RANK="0", OMPI_MCA_ess="^singleton", PMIX_RANK="0")
code = subprocess.Popen(program, env=os.environ | marks, process_group=0).wait()
time.sleep(60)
sys.exit(code)
"""


@dataclass(frozen=True)
class Image:
    root: Path
    python: Path
    mpirun_record: Path


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    parts = wheel.locate()
    root, python = folder / "tritonserver", folder / "python"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tritonserver").symlink_to(parts.binary)
    wheel.assemble_backend(parts, root / "backends")
    venv.create(python, symlinks=True)
    (packages,) = python.glob("lib/python3*/site-packages")
    # numpy comes through a .pth file, as packages of images do.
    (packages / "more.pth").write_text(sysconfig.get_path("purelib"))
    (packages / "only_in_the_image.py").write_text("")
    record = folder / "mpirun.json"
    (python / "bin/mpirun").write_text(MPIRUN.format(python=sys.executable, record=str(record)))
    (python / "bin/mpirun").chmod(0o755)
    with pytest.MonkeyPatch.context() as environment:
        own = str(Path(sys.prefix, "bin"))
        environment.setenv("PATH", os.pathsep.join([own, str(python / "bin"), os.environ["PATH"]]))
        environment.setenv("LD_LIBRARY_PATH", os.pathsep.join(map(str, parts.libraries)))
        environment.setenv("NVIDIA_TRITON_SERVER_VERSION", "24.10")
        environment.setenv("HF_TOKEN", "not for Triton")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "not for Triton")
        yield Image(root, python / "bin/python3", record)


@pytest.fixture
def start(image: Image, tmp_path: Path) -> Iterator[Callable[[int], tuple[TritonClient, subprocess.Popen[bytes]]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(orchestrated_gpus: int) -> tuple[TritonClient, subprocess.Popen[bytes]]:
        version = tmp_path / "models/echo/1"
        version.mkdir(parents=True)
        (version.parent / "config.pbtxt").write_text(CONFIG)
        (version / "model.py").write_text(MODEL)
        (tmp_path / "work").mkdir()
        ports = Ports(*free_ports(3))
        process = start_server(
            tmp_path / "models",
            tmp_path / "work",
            tmp_path / "log",
            ports=ports,
            control_key="key",
            root=image.root,
            orchestrated_gpus=orchestrated_gpus,
        )
        started.append(process)
        client = TritonClient(f"127.0.0.1:{ports.http}", key="key")
        until = time.monotonic() + 60
        while not client.live():
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.05)
        return client, process

    yield start
    for process in started:
        terminate(process, 10)


def asked(client: TritonClient) -> tuple[str, dict[str, str]]:
    client.load("echo")
    prefix, environment = json.loads(client.generate("echo", {"text_input": "?"}).text)
    return prefix, environment


def test_models_run_in_a_copy_of_the_images_interpreter(
    start: Callable[[int], tuple[TritonClient, subprocess.Popen[bytes]]], tmp_path: Path
) -> None:
    client, _ = start(0)
    prefix, environment = asked(client)
    assert Path(prefix) == tmp_path / "work/python"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID" and environment["HF_HUB_OFFLINE"] == "1"
    assert environment["NVIDIA_TRITON_SERVER_VERSION"] == "24.10"
    assert "not for Triton" not in environment.values()
    assert not list((tmp_path / "models").rglob("__pycache__"))


def test_an_orchestrator_is_one_rank_and_its_python_models_are_none(
    start: Callable[[int], tuple[TritonClient, subprocess.Popen[bytes]]], image: Image
) -> None:
    client, process = start(1)
    _, environment = asked(client)
    assert environment["TRTLLM_ORCHESTRATOR"] == "1"
    assert not [name for name in environment if name.startswith(("OMPI_", "PMIX_"))]
    arguments = json.loads(image.mpirun_record.read_text())
    place = arguments.index("-n")
    assert arguments[place : place + 3] == ["-n", "1", str(image.root / "bin/tritonserver")]
    # mpirun's child is in another process group than mpirun.
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    terminate(process, 10)
    for child in children:
        wait_until_over(child)


def wait_until_over(process: psutil.Process) -> None:
    until = time.monotonic() + 15
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a keeper leaves what it started to the next one
def test_a_keeper_looks_at_triton_and_not_at_the_mpirun_above_it(image: Image, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()

    def keeper() -> Supervisor:
        return Supervisor(tmp_path, tmp_path / "models", ports, root=image.root, orchestrated_gpus=1)

    ports = Ports(*free_ports(3))
    first = keeper()
    try:
        assert first.ensure() is Ensured.STARTED
        triton = psutil.Process(first.pid)
        assert triton.name() == "tritonserver"
        assert keeper().ensure() is Ensured.FOUND
        triton.kill()
        wait_until_over(triton)
        assert first.ensure() is Ensured.STARTED
        second = psutil.Process(first.pid)
        mpirun = second.parent()
        assert mpirun is not None
        mpirun.kill()
        wait_until_over(mpirun)
        # A new keeper finds a Triton without mpirun on its ports.
        first = keeper()
        assert first.ensure() is Ensured.STARTED and first.pid != second.pid
        wait_until_over(second)
    finally:
        first.stop()


def test_the_images_python_is_not_that_of_enginehouse(image: Image) -> None:
    assert installation.image_python() == image.python


def test_a_folder_without_triton_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as missing:
        installation.of_image(tmp_path, tmp_path)
    assert missing.value.code == "triton-missing" and f"{tmp_path}/bin/tritonserver" in missing.value.message
    assert "/opt/tritonserver" in missing.value.hint
