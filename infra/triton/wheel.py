"""Triton from the wheel `nvidia-pytriton`: the real server (2.51) with the Python backend, but in pieces.

This module puts the backend's folder together. The stub process needs the shared libpython of this interpreter.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from infra.errors import SettingsError

SAME_IMAGE = "24.10"
"""NVIDIA's image with the same Triton, 2.51."""

PYTHON_LIBRARY = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"


@dataclass(frozen=True)
class Wheel:
    """The paths of its parts: `libraries` goes into LD_LIBRARY_PATH, `backend` holds the Python backend's files."""

    binary: Path
    backend: Path
    stub: Path
    libraries: tuple[Path, ...]


def locate() -> Wheel:
    """Triton's parts in the installed wheel. Raises SettingsError if something is missing on this machine."""
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
    wheel = Wheel(
        binary=server / "bin/tritonserver",
        backend=server / "backends/python",
        stub=stub,
        libraries=(
            Path(str(distribution.locate_file("nvidia_pytriton.libs"))),
            *_python_library_folder(version),
        ),
    )
    for path in (wheel.binary, wheel.backend, wheel.stub):
        if not path.exists():
            raise SettingsError(
                f"the wheel nvidia-pytriton has no {path.relative_to(server)}",
                hint="use Python 3.11 or 3.12 and install the version that requirements.lock names",
                code="triton-missing",
            )
    return wheel


def assemble_backend(wheel: Wheel, folder: Path) -> Path:
    """Make the backend directory `folder`: links to the wheel's files and this interpreter's stub. Returns it."""
    backend = folder / "python"
    backend.mkdir(parents=True, exist_ok=True)
    for source in (*(path for path in wheel.backend.iterdir() if path.is_file()), wheel.stub):
        link = backend / source.name
        link.unlink(missing_ok=True)
        link.symlink_to(source)
    return folder


def _python_library_folder(version: str) -> tuple[Path, ...]:
    """The folder of libpython, or nothing if the dynamic linker finds it by itself."""
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
