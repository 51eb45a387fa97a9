"""The installations of Triton, the wheel's and the one in NVIDIA's image, and the environment of their processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra.errors import SettingsError
from infra.processes.background import MARKER
from infra.triton import wheel

# The variables that a child inherits. All others, credentials above all, stay with the parent.
_INHERITED = (
    "HOME",
    "LANG",
    "LC_ALL",
    "TMPDIR",
    "TZ",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    MARKER,
)

# Variables of NVIDIA's images, without which their TensorRT-LLM does not find CUDA, TensorRT, Open MPI and UCX. Those
# of NCCL and TensorRT-LLM help people who search for the reason of a failure. Source: Dockerfile.triton.trt_llm_backend
# of tensorrtllm_backend, build.py of the server, and the banner of the images.
_OF_THE_IMAGE = (
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "CUDA_HOME",
    "CUDA_MODULE_LOADING",
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_TRITON_SERVER_VERSION",
    "TRITON_SERVER_VERSION",
    "TRT_ROOT",
    "OPAL_PREFIX",
    "OMPI_MCA_coll_hcoll_enable",
    "UCX_MEM_EVENTS",
    "UCX_TLS",
    "TCMALLOC_RELEASE_RATE",
    "NCCL_DEBUG",
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_SHM_DISABLE",
    "NCCL_IB_DISABLE",
    "NCCL_SOCKET_IFNAME",
    "TLLM_LOG_LEVEL",
)

# NVML numbers GPUs by their place on the bus, CUDA does by their speed unless it is set. Nothing is fetched.
_FOR_TENSORRT_LLM = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

# mpirun marks its child as a rank, and the processes of Triton's models, which may spawn workers, inherit the mark. Two
# marked processes are the same rank, and the spawning of one of them fails. Open MPI 5 spawns for root only with these
# variables, which mpirun does not pass on. Both seen with Open MPI 4.1.8 and 5.0.11.
_NO_RANK = (
    "import os; list(map(os.environ.pop, [name for name in os.environ "
    "if 'PMIX_RANK' in os.environ and name.startswith(('OMPI_', 'PMIX_', 'PMI_'))]))"
)
_ROOT_MAY_SPAWN = "import os; os.environ.update(PRTE_ALLOW_RUN_AS_ROOT='1', PRTE_ALLOW_RUN_AS_ROOT_CONFIRM='1')"
_NO_BYTECODE = "import sys; sys.dont_write_bytecode = True"


@dataclass(frozen=True)
class Installation:
    """A Triton that can be started. `environment` is the whole one: nothing else is inherited."""

    binary: Path
    backends: Path
    environment: Mapping[str, str]

    @property
    def container(self) -> str:
        """The release of NVIDIA's image, such as 24.07; empty for the wheel."""
        return self.environment.get("NVIDIA_TRITON_SERVER_VERSION", "")


def of_wheel(work: Path) -> Installation:
    """The wheel's Triton, with its backend and its models' interpreter in `work`. Raises SettingsError."""
    parts = wheel.locate()
    python = work / "python"
    venv.create(python, symlinks=True, clear=True)
    _write_site(python, [_NO_BYTECODE, sysconfig.get_path("purelib")])
    return Installation(
        binary=parts.binary,
        backends=wheel.assemble_backend(parts, work / "backends"),
        environment={
            **_inherited(_INHERITED),
            "PATH": os.pathsep.join([str(python / "bin"), "/usr/local/bin:/usr/bin:/bin"]),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, parts.libraries)),
        },
    )


def of_image(root: Path, work: Path) -> Installation:
    """The Triton that NVIDIA's image has at `root`, mostly /opt/tritonserver, with its models' interpreter in `work`.

    Raises SettingsError `triton-missing` if `root` has no Triton, or the image has no Python.
    """
    binary, backends = root / "bin/tritonserver", root / "backends"
    for path in (binary, backends):
        if not path.exists():
            raise SettingsError(
                f"ENGINEHOUSE_TRITON is {root}, but there is no {path}",
                hint="in NVIDIA's images it is /opt/tritonserver; leave it empty for the Triton of the wheel",
                code="triton-missing",
            )
    python = work / "python"
    folders = _make_like(image_python(), python)
    packages = (f"import site; site.addsitedir({folder!r})" for folder in folders)
    _write_site(python, [_NO_BYTECODE, _NO_RANK, _ROOT_MAY_SPAWN, *packages])
    return Installation(
        binary=binary,
        backends=backends,
        environment={
            **_inherited((*_INHERITED, *_OF_THE_IMAGE)),
            **_FOR_TENSORRT_LLM,
            "PATH": os.pathsep.join([str(python / "bin"), os.environ.get("PATH", os.defpath)]),
        },
    )


def image_python() -> Path:
    """The interpreter of the image that this process runs in: the first python3 of PATH that is not this process's own.

    Raises SettingsError `triton-missing` if there is none.
    """
    own = Path(sys.prefix, "bin")
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        found = Path(folder, "python3")
        if found.is_file() and not (own.is_dir() and own.samefile(folder)):
            return found
    raise SettingsError(
        "this image has no python3 but Enginehouse's own, and Triton's models need one",
        hint="put the folder of the image's python3 into PATH",
        code="triton-missing",
    )


def _make_like(original: Path, folder: Path) -> list[str]:
    """Make a virtual environment of the interpreter `original`. Returns the folders of the original's packages.

    `--system-site-packages` would take the wrong packages if the image's python3 is itself of a virtual environment.
    """
    try:
        made = [str(original), "-m", "venv", "--without-pip", "--symlinks", "--clear", str(folder)]
        subprocess.run(made, check=True, capture_output=True, text=True)
        asked = [str(original), "-c", "import json, site; print(json.dumps(site.getsitepackages()))"]
        return json.loads(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SettingsError(
            f"the image's interpreter {original} does not work: {getattr(error, 'stderr', '') or error}",
            hint="it must be a whole Python 3, with the module venv",
            code="triton-missing",
        ) from error


def _write_site(python: Path, lines: Sequence[str]) -> None:
    """Have the models' interpreters run `lines`, or search the paths among them, when they start.

    A `__pycache__` in a model's folder counts as a change, so the next reload of an ensemble above it would load the
    model again. The stub runs isolated: it ignores PYTHONDONTWRITEBYTECODE and PYTHONPATH, and read-only folders do
    not stop root. But it takes the first python3 in PATH for its environment and runs the `.pth` files of that one.
    """
    (packages,) = python.glob("lib/python3*/site-packages")
    (packages / "enginehouse.pth").write_text("\n".join(lines) + "\n")


def _inherited(names: Sequence[str]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}
