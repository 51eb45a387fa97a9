"""Reports what a toolchain holds: runs under the toolchain's interpreter, and prints JSON as its last line.

It needs the standard library of Python 3.10, and `infra/gpu.py` at its place in a checkout. It imports none of the
packages that it reports: importing torch or tensorrt_llm takes seconds and gigabytes, and fails without a GPU.

Usage: report_probe.py [EXAMPLES_FOLDER ...]
"""

from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
import runpy
import shutil
import sys
import sysconfig
from pathlib import Path

GPU_PROBE = Path(__file__).resolve().parent.parent / "gpu.py"


def main(examples: list[str]) -> None:
    gpu = runpy.run_path(str(GPU_PROBE), run_name="gpu")
    package = _package("tensorrt_llm")
    torch = _package("torch")
    found = {
        "tensorrt_llm": _version("tensorrt-llm"),
        "tensorrt_llm_source": _assigned(package, "__version__"),
        "tensorrt": _version("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        "cuda": _assigned(torch, "cuda"),
        "torch": _version("torch"),
        "modelopt": _version("nvidia-modelopt", "nvidia-ammo"),
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "free_host_bytes": _free_host_bytes(),
        "gpus": dataclasses.asdict(gpu["probe"]()),
        "build": _program("trtllm-build"),
        "examples": {str(folder): _scripts(folder) for folder in _examples(examples, package)},
    }
    print(json.dumps(found))


def _version(*names: str) -> str:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _package(name: str) -> Path | None:
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def _assigned(package: Path | None, name: str) -> str:
    """The string that `version.py` of `package` assigns to `name`; empty if it assigns none."""
    if package is None or not (package / "version.py").is_file():
        return ""
    for statement in ast.parse((package / "version.py").read_text()).body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        value = getattr(statement, "value", None)
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
    return ""


def _program(name: str) -> str:
    """The path of a program that this interpreter's packages installed. PATH may hold another toolchain's."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or ""


def _examples(wanted: list[str], package: Path | None) -> list[Path]:
    # NVIDIA's containers have the examples in /app, a checkout has them beside the package.
    usual = [Path("/app/examples"), Path("/app/tensorrt_llm/examples")]
    beside = [package.parent / "examples"] if package is not None else []
    return [folder for folder in (*map(Path, wanted), *usual, *beside) if folder.is_dir()]


def _scripts(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


def _free_host_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
