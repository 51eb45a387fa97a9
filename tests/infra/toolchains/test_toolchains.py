from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra import settings
from infra.errors import SettingsError
from infra.gpu import Gpu, GpuReport
from infra.toolchains.choose import toolchain
from infra.toolchains.docker import DockerToolchain
from infra.toolchains.finding import GPU_PROBE, PROBE
from infra.toolchains.interpreter import InterpreterToolchain
from infra.toolchains.toolchain import ToolchainReport, require
from infra.toolchains.versions import Versions
from tests.standin import docker

DIGEST = "sha256:" + "ab" * 32
IMAGE = f"registry.example/tritonserver@{DIGEST}"

# A stand-in for the driver, as the toolchain's own pynvml sees it.
PYNVML = """
class NVMLError(Exception): pass
class NVMLError_LibraryNotFound(NVMLError): pass
class NVMLError_DriverNotLoaded(NVMLError): pass
class NVMLError_NoPermission(NVMLError): pass
class Memory: total, free = 80, 79
nvmlInit = nvmlShutdown = lambda: None
nvmlSystemGetDriverVersion = lambda: b"550.54.15"
nvmlSystemGetCudaDriverVersion_v2 = lambda: 12040
nvmlDeviceGetCount = lambda: 1
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetCudaComputeCapability = lambda handle: (9, 0)
nvmlDeviceGetMemoryInfo = lambda handle: Memory
nvmlDeviceGetName = lambda handle: b"NVIDIA H100 80GB HBM3"
nvmlDeviceGetUUID = lambda handle: b"GPU-1"
"""
GPUS = GpuReport("550.54.15", "12.4", (Gpu(0, "NVIDIA H100 80GB HBM3", "sm90", 80, 79, "GPU-1"),), "")

INSTALLED = {
    "tensorrt_llm": "0.17.0.post1",
    "tensorrt": "10.8.0.43",
    "torch": "2.6.0a0+df5bbc09d1.nv24.12",
    "nvidia_modelopt": "0.21.1",
    "transformers": "4.45.1",
}

# A tool that prints how it was called.
TOOL = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([sys.argv, dict(os.environ), os.getcwd()]))
"""


def _stand_in(folder: Path, installed: Mapping[str, str] = INSTALLED, source: str = "0.17.0") -> Path:
    """An environment that looks like one with TensorRT-LLM, whose packages must not be imported."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python3.*/site-packages")
    for name, version in installed.items():
        information = packages / f"{name}-{version}.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    versions = {"torch": "from typing import Optional\n__version__ = '2.6.0'\ncuda: Optional[str] = '12.6'\n"}
    if source:
        versions["tensorrt_llm"] = f'__version__ = "{source}"\n'
    for name, text in versions.items():
        (packages / name).mkdir()
        (packages / name / "__init__.py").write_text(f"raise SystemExit('{name} was imported')\n")
        (packages / name / "version.py").write_text(text)
    (packages / "pynvml.py").write_text(PYNVML)
    _program(folder / "bin/trtllm-build", TOOL)
    return folder


def _program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _examples(folder: Path, *scripts: str) -> Path:
    for script in scripts:
        _program(folder / script, TOOL)
    return folder


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _stand_in(tmp_path_factory.mktemp("toolchain") / "environment")


def test_an_environment_reports_what_is_installed_in_it(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    report = InterpreterToolchain(stand_in / "bin/python", container_digest=DIGEST).report()
    assert report.model_copy(update={"free_host_bytes": 0}) == ToolchainReport(
        tensorrt_llm="0.17.0.post1",
        tensorrt="10.8.0.43",
        cuda="12.6",
        torch="2.6.0a0+df5bbc09d1.nv24.12",
        modelopt="0.21.1",
        transformers="4.45.1",
        python=".".join(map(str, sys.version_info[:3])),
        container_digest=DIGEST,
        free_host_bytes=0,
        gpus=GPUS,
    )
    assert report.free_host_bytes > 1 << 20
    assert json.loads(report.model_dump_json())["gpus"]["gpus"]


def test_the_toolchain_sees_the_gpus_that_are_visible(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    report = InterpreterToolchain(stand_in / "bin/python").report()
    assert report.gpus.gpus == () and "CUDA_VISIBLE_DEVICES" in report.gpus.problem


def test_old_names_of_distributions_are_found(tmp_path: Path) -> None:
    old = {"tensorrt_llm": "0.8.0", "tensorrt_cu12": "10.0.1", "nvidia_ammo": "0.7.4"}
    report = InterpreterToolchain(_stand_in(tmp_path / "old", old, source="") / "bin/python").report()
    assert (report.tensorrt_llm, report.tensorrt, report.modelopt) == ("0.8.0", "10.0.1", "0.7.4")
    assert report.transformers == ""


def test_a_checkout_that_is_not_installed_is_found_with_its_examples(tmp_path: Path) -> None:
    environment = _stand_in(tmp_path / "checkout", {}, source="1.2.1")
    (packages,) = environment.glob("lib/python3.*/site-packages")
    script = _examples(packages / "examples", "run.py") / "run.py"
    checkout = InterpreterToolchain(environment / "bin/python")
    assert checkout.report().tensorrt_llm == "1.2.1"
    command = checkout.command("run.py", [], inputs=[], outputs=[], folder=tmp_path)
    assert command.argv == (str(environment / "bin/python"), str(script))


def test_a_wheel_and_a_checkout_of_other_versions_are_not_mixed(tmp_path: Path) -> None:
    environment = _stand_in(tmp_path / "mixed", INSTALLED, source="0.18.0")
    with pytest.raises(SettingsError) as caught:
        InterpreterToolchain(environment / "bin/python").report()
    assert caught.value.code == "toolchain-broken"
    assert "0.17.0.post1" in caught.value.message and "0.18.0" in caught.value.message


@pytest.mark.parametrize(
    ("program", "output"),
    [
        ("echo 'no such library: libfoo' >&2; exit 3", "no such library: libfoo"),
        ("echo 'Welcome!'", "Welcome!"),
        ('echo \'{"tensorrt_llm": "0.8.0"}\'', "0.8.0"),
        ("kill -9 $$", "-9"),
    ],
)
def test_an_interpreter_that_does_not_answer_is_quoted(tmp_path: Path, program: str, output: str) -> None:
    python = _program(tmp_path / "python3", f"#!/bin/sh\n{program}\n")
    with pytest.raises(SettingsError) as caught:
        InterpreterToolchain(python).report()
    assert caught.value.code == "toolchain-broken" and output in caught.value.message


def test_an_environment_without_tensorrt_llm_or_interpreter_is_missing(tmp_path: Path) -> None:
    bare = _stand_in(tmp_path / "bare", {"torch": "2.6.0"}, source="")
    for python in (bare / "bin/python", tmp_path / "nowhere"):
        with pytest.raises(SettingsError) as caught:
            InterpreterToolchain(python).report()
        assert caught.value.code == "toolchain-missing" and caught.value.hint
        assert str(python) in caught.value.message


@pytest.mark.parametrize(
    ("script", "tool"),
    [
        ("llama/convert_checkpoint.py", "llama/convert_checkpoint.py"),
        ("models/core/llama/convert_checkpoint.py", "llama/convert_checkpoint.py"),
        ("models/contrib/baichuan/convert_checkpoint.py", "baichuan/convert_checkpoint.py"),
        ("quantization/quantize.py", "quantization/quantize.py"),
        ("run.py", "run.py"),
    ],
)
def test_a_script_is_found_in_the_layout_of_its_version(stand_in: Path, tmp_path: Path, script: str, tool: str) -> None:
    examples = _examples(tmp_path / "examples", script, "models/core/qwen/convert_checkpoint.py")
    command = InterpreterToolchain(stand_in / "bin/python", examples).command(
        tool, ["--output_dir", "/out"], inputs=[], outputs=[], folder=tmp_path
    )
    assert command.argv == (str(stand_in / "bin/python"), str(examples / script), "--output_dir", "/out")
    assert command.container == ""


def test_a_tool_that_the_version_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = _stand_in(tmp_path / "late", {"tensorrt_llm": "1.3.0"}, source="")
    (environment / "bin/trtllm-build").unlink()
    # Another toolchain's program does not count.
    monkeypatch.setenv("PATH", str(_program(tmp_path / "other/trtllm-build", TOOL).parent))
    late = InterpreterToolchain(environment / "bin/python", _examples(tmp_path / "examples", "run.py"))
    for tool in ("trtllm-build", "llama/convert_checkpoint.py"):
        with pytest.raises(SettingsError) as caught:
            late.command(tool, [], inputs=[], outputs=[], folder=tmp_path)
        assert caught.value.code == "tool-missing" and tool in caught.value.message
    assert "v1.3.0" in caught.value.hint


def test_a_tool_runs_with_an_environment_of_its_own(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "PREFECT_API_KEY", "SOMETHING_ELSE", "PYTHONPATH"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/lib")
    command = InterpreterToolchain(stand_in / "bin/python").command(
        "trtllm-build", ["--workers", "2"], inputs=[], outputs=[], folder=tmp_path
    )
    ran = subprocess.run(command.argv, env=dict(command.environment), cwd=tmp_path, capture_output=True, check=True)
    argv, environment, folder = json.loads(ran.stdout)
    assert argv == [str(stand_in / "bin/trtllm-build"), "--workers", "2"]
    assert folder == environment["HOME"] == str(tmp_path)
    assert environment["PATH"].split(os.pathsep)[0] == str(stand_in / "bin")
    assert (environment["CUDA_VISIBLE_DEVICES"], environment["LD_LIBRARY_PATH"]) == ("0", "/opt/lib")
    assert all(environment[name] == "1" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"))
    assert "secret" not in environment.values()


def test_an_image_is_asked_and_run_by_its_digest(
    stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("LANG", "C.UTF-8")
    for name in ("LC_ALL", "TZ", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    work, weights, engine = (tmp_path / name for name in ("work", "weights", "engine"))
    for folder in (work, weights, engine):
        folder.mkdir()
    examples = _examples(tmp_path / "examples", "models/core/llama/convert_checkpoint.py")
    record = docker.put_in_path(
        tmp_path,
        monkeypatch,
        python=str(stand_in / "bin/python"),
        digests=[IMAGE, "other@sha256:" + "00" * 32],
        guarded=tmp_path,
    )
    image = DockerToolchain(IMAGE, examples)
    report = image.report()
    assert (report.tensorrt_llm, report.container_digest, report.gpus) == ("0.17.0.post1", DIGEST, GPUS)

    command = image.command(
        "llama/convert_checkpoint.py",
        ["--model_dir", str(weights), "--output_dir", str(engine)],
        inputs=[weights, engine],
        outputs=[engine],
        folder=work,
    )
    assert re.fullmatch(r"enginehouse-[0-9a-f]{16}", command.container)
    assert [argument.replace(command.container, "NAME") for argument in command.argv] == [
        *("docker", "run", "--rm", "--init", "--pull=never", "--name=NAME", "--gpus=all", "--network=none"),
        *(f"--user={os.getuid()}:{os.getgid()}", f"--workdir={work}"),
        *("--shm-size=16g", "--ulimit=memlock=-1", "--ulimit=stack=67108864"),
        *(f"--mount=type=bind,source={path},target={path}" for path in (work, engine)),
        *(f"--mount=type=bind,source={path},target={path},readonly" for path in (weights, examples)),
        *("--env=LANG=C.UTF-8", f"--env=HOME={work}", "--env=USER=enginehouse"),
        *("--env=HF_HUB_OFFLINE=1", "--env=TRANSFORMERS_OFFLINE=1", "--env=HF_DATASETS_OFFLINE=1"),
        *(IMAGE, "python3", str(examples / "models/core/llama/convert_checkpoint.py")),
        *("--model_dir", str(weights), "--output_dir", str(engine)),
    ]
    ran = subprocess.run(command.argv, env=dict(command.environment), capture_output=True, text=True, check=True)
    argv, environment, folder = json.loads(ran.stdout.splitlines()[-1])
    assert argv[1:] == ["--model_dir", str(weights), "--output_dir", str(engine)] and folder == str(work)
    assert "secret" not in environment.values()

    (inspected, _), (probed, _), _ = docker.calls(record)
    assert inspected == ["image", "inspect", "--format", "{{json .RepoDigests}}", IMAGE]
    assert all(f"--mount=type=bind,source={path},target={path},readonly" in probed for path in (PROBE, GPU_PROBE))
    assert all("secret" not in environment.values() for _, environment in docker.calls(record))


def test_a_container_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = _program(tmp_path / "python3", "#!/bin/sh\necho no driver; exit 1\n")
    record = docker.put_in_path(tmp_path / "bin", monkeypatch, python=str(python), digests=[IMAGE], guarded=tmp_path)
    with pytest.raises(SettingsError) as caught:
        DockerToolchain(IMAGE).report()
    assert caught.value.code == "toolchain-broken" and "no driver" in caught.value.message
    _, (probed, _), (ended, _) = docker.calls(record)
    assert ended == ["kill", probed[4].removeprefix("--name=")]


@pytest.mark.parametrize(
    ("digests", "code"), [(None, "toolchain-missing"), (["other@sha256:" + "00" * 32], "toolchain-broken")]
)
def test_an_image_that_is_not_here_or_is_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digests: list[str] | None, code: str
) -> None:
    record = docker.put_in_path(tmp_path, monkeypatch, python="python3", digests=digests, guarded=tmp_path)
    with pytest.raises(SettingsError) as caught:
        DockerToolchain(IMAGE).report()
    assert caught.value.code == code
    assert len(docker.calls(record)) == 1


def test_a_machine_without_docker_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError) as caught:
        DockerToolchain(IMAGE).report()
    assert caught.value.code == "toolchain-missing" and "docker" in caught.value.message


@pytest.mark.parametrize(
    "image", ["tritonserver:25.01-trtllm-python-py3", "tritonserver", "a@sha256:12", f"--privileged@{DIGEST}", DIGEST]
)
def test_an_image_without_digest_is_refused(image: str) -> None:
    with pytest.raises(SettingsError) as caught:
        DockerToolchain(image)
    assert caught.value.code == "image-unpinned"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("", InterpreterToolchain(Path("/usr/bin/python3"), container_digest=DIGEST)),
        ("local", InterpreterToolchain(Path("/usr/bin/python3"), container_digest=DIGEST)),
        ("local:/opt/python3", InterpreterToolchain(Path("/opt/python3"), container_digest=DIGEST)),
        ("venv:/opt/trt", InterpreterToolchain(Path("/opt/trt/bin/python"))),
        (f"docker:{IMAGE}", DockerToolchain(IMAGE)),
    ],
)
def test_the_setting_names_the_toolchain(
    monkeypatch: pytest.MonkeyPatch, spec: str, expected: InterpreterToolchain | DockerToolchain
) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", spec)
    monkeypatch.delenv("ENGINEHOUSE_TOOLCHAIN_EXAMPLES", raising=False)
    monkeypatch.setenv("ENGINEHOUSE_CONTAINER_DIGEST", DIGEST)
    assert toolchain(settings.load(), "0.8.0") == expected
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN_EXAMPLES", "/src/examples")
    assert toolchain(settings.load(), "0.8.0") == dataclasses.replace(expected, examples=Path("/src/examples"))


@pytest.mark.parametrize("spec", ["local:", "local:python3", "venv:", "venv:trt", "docker", "docker:", "conda", "/opt"])
def test_a_setting_of_no_known_form_is_refused(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", spec)
    with pytest.raises(SettingsError) as caught:
        toolchain(settings.load(), "0.8.0")
    assert caught.value.code == "settings"


def test_another_version_than_the_wanted_is_refused() -> None:
    def report(version: str) -> ToolchainReport:
        versions = Versions.taken_from({"tensorrt_llm": version}).by_name
        gpus = GpuReport("", "", (), "")
        return ToolchainReport(**versions, container_digest="", free_host_bytes=0, gpus=gpus)

    for version, wanted in (("0.17.0.post1", "0.17.0.post1"), ("1.2.0rc2", "1.2.0.rc2"), ("1.0", "1.0.0")):
        require(report(version), wanted)
    for version, wanted in (("0.17.0.post1", "0.17.0"), ("1.0.0+nv1", "1.0.0"), ("1.2.0rc2", "1.2.0")):
        with pytest.raises(SettingsError) as caught:
            require(report(version), wanted)
        assert caught.value.code == "version-mismatch" and version in caught.value.message
