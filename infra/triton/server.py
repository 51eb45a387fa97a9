"""Triton from the wheel `nvidia-pytriton`: where its parts lie, and how it is started.

The wheel holds the real server (2.51) with the Python backend, but not installed: the backend's folder is put
together here, and the stub process needs the shared libpython of this interpreter.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra import processes
from infra.background import MARKER
from infra.errors import SettingsError

CONTROL_HEADER = "enginehouse-control"
"""The header that carries the key of the restricted endpoints."""

RESTRICTED = ("model-repository", "model-config", "shared-memory", "statistics", "trace", "logging")
"""Whatever changes the server or tells of the machine; inference, health and metadata stay open."""

PYTHON_LIBRARY = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"

# What a child may inherit. Everything else, credentials first of all, stays with the parent.
_INHERITED = ("HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", MARKER)


@dataclass(frozen=True)
class TritonPaths:
    """Where Triton lies: `libraries` goes into LD_LIBRARY_PATH, `backend` holds the Python backend's files."""

    binary: Path
    backend: Path
    stub: Path
    libraries: tuple[Path, ...]


@dataclass(frozen=True)
class Ports:
    """The loopback ports of one server."""

    http: int
    grpc: int
    metrics: int


def locate() -> TritonPaths:
    """Triton's parts in the installed wheel. Raises SettingsError for what is missing on this machine."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        distribution = importlib.metadata.distribution("nvidia-pytriton")
    except importlib.metadata.PackageNotFoundError as error:
        raise SettingsError(
            "Triton is not installed",
            hint="install the extra: pip install -e '.[embedded]'",
            code="triton-missing",
        ) from error
    server = Path(str(distribution.locate_file("pytriton/tritonserver")))
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    paths = TritonPaths(
        binary=server / "bin/tritonserver",
        backend=server / "backends/python",
        stub=stub,
        libraries=(
            Path(str(distribution.locate_file("nvidia_pytriton.libs"))),
            *_python_library_folder(version),
        ),
    )
    for path in (paths.binary, paths.backend, paths.stub):
        if not path.exists():
            raise SettingsError(
                f"the wheel nvidia-pytriton has no {path.relative_to(server)}",
                hint="use Python 3.11 or 3.12 and install the version that requirements.lock names",
                code="triton-missing",
            )
    return paths


def launch(
    repository: Path,
    work: Path,
    log: Path,
    *,
    ports: Ports,
    control_key: str,
    exit_timeout_s: int = 5,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start Triton on loopback with nothing loaded and every control endpoint behind `control_key`.

    `repository` holds the models, `work` the assembled backend; both must be absolute or relative to the current
    folder and may not lie in each other. `log` is appended to. Triton gets a minimal environment plus
    `environment`, a session of its own, and at most `exit_timeout_s` seconds for running requests on SIGTERM.
    The key shows in the process list of this machine: it keeps clients out, not other users of the machine.
    """
    paths = locate()
    shared_memory = shared_memory_prefix(work)
    _clear_shared_memory(shared_memory)
    restriction = f"{','.join(RESTRICTED)}:{CONTROL_HEADER}={control_key}"
    command = [
        str(paths.binary),
        f"--model-repository={repository.resolve()}",
        f"--backend-directory={_assemble_backend(paths, work).resolve()}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory}",
        "--model-control-mode=explicit",
        "--strict-readiness=false",
        f"--exit-timeout-secs={exit_timeout_s}",
        "--http-address=127.0.0.1",
        f"--http-port={ports.http}",
        f"--http-restricted-api={restriction}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={ports.grpc}",
        f"--grpc-restricted-protocol={restriction}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={ports.metrics}",
    ]
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    # The stub takes its environment from the first python3 of PATH, and from nothing else.
    path = os.pathsep.join([str(_serving_environment(work) / "bin"), "/usr/local/bin:/usr/bin:/bin"])
    return processes.launch(
        command,
        log=log,
        folder=work,
        environment={
            **inherited,
            "PATH": path,
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, paths.libraries)),
            # For processes that a model starts; the stub itself ignores it.
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        },
    )


def _python_library_folder(version: str) -> tuple[Path, ...]:
    """The folder of libpython, or nothing where the dynamic linker finds it by itself."""
    for name in ("LIBDIR", "LIBPL"):
        folder = sysconfig.get_config_var(name)
        if folder and (Path(folder) / PYTHON_LIBRARY).exists():
            return (Path(folder),)
    bundled = Path(sys.base_prefix) / "lib"
    if (bundled / PYTHON_LIBRARY).exists():
        return (bundled,)
    if PYTHON_LIBRARY in _linker_cache():
        return ()
    raise SettingsError(
        f"Triton's Python backend needs {PYTHON_LIBRARY}, which neither this interpreter nor the system has",
        hint=f"install it: apt-get install libpython{version}",
        code="libpython-missing",
    )


def _linker_cache() -> str:
    # ldconfig lies in /sbin, which is not in every user's PATH.
    for program in ("/sbin/ldconfig", "/usr/sbin/ldconfig"):
        if Path(program).exists():
            return subprocess.run([program, "-p"], capture_output=True, text=True, check=False).stdout
    return ""


def _assemble_backend(paths: TritonPaths, work: Path) -> Path:
    """The backend directory in `work`: links to the wheel's files and this interpreter's stub."""
    backends = work / "backends"
    folder = backends / "python"
    folder.mkdir(parents=True, exist_ok=True)
    for source in (*(path for path in paths.backend.iterdir() if path.is_file()), paths.stub):
        link = folder / source.name
        link.unlink(missing_ok=True)
        link.symlink_to(source)
    return backends


def _serving_environment(work: Path) -> Path:
    """The virtual environment in `work` of the models' interpreters: this one's packages, and no `__pycache__`.

    A `__pycache__` in a model's folder counts as a change, so the next reload of an ensemble above it would load the
    model anew. The stub runs isolated: it ignores PYTHONDONTWRITEBYTECODE and PYTHONPATH, and read-only folders do
    not stop root. But it finds its environment by the python3 in PATH and runs that one's `.pth` files.
    """
    folder = work / "python"
    venv.create(folder, symlinks=True, clear=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}, scheme="venv")
    lines = ("import sys; sys.dont_write_bytecode = True", sysconfig.get_path("purelib"))
    (Path(packages) / "enginehouse.pth").write_text("\n".join(lines) + "\n")
    return folder


def shared_memory_prefix(work: Path) -> str:
    """How the names of a server's shared memory regions begin; one prefix a work folder."""
    return f"enginehouse-{hashlib.sha256(bytes(work.resolve())).hexdigest()[:12]}-"


def _clear_shared_memory(prefix: str) -> None:
    """Drop what a killed server left behind."""
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
