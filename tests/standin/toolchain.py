"""An environment that looks like one with TensorRT-LLM, whose tools are the stand-in's.

chain = toolchain.make(tmp_path / "toolchain", "0.12.0")
monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", chain.setting)
chain.fail("gpu-memory", "trtllm-build")
"""

from __future__ import annotations

import venv
from dataclasses import dataclass
from pathlib import Path

from tests.standin import converters, failures, heads
from tests.standin.facts import RELEASES, TOOLS, flags, numbers

_CHECKOUT = Path(__file__).resolve().parent.parent.parent

_PROGRAM = """#!{python}
\"\"\"A stand-in for {tool} of TensorRT-LLM {version}, used by tests alone.\"\"\"
import sys

sys.path.insert(0, {checkout!r})

from tests.standin.context import Context
from tests.standin.tools import main

if __name__ == "__main__":
    main({tool!r}, Context({version!r}, {architecture!r}, {gpus}))
"""

# mpirun [options] PROGRAM ... [: [options] PROGRAM ...]: waits for all ranks, ends with the first code that is not 0.
# Like Open MPI's it marks its children, gives each a process group of its own, and ends the others if one fails.
_MPIRUN = """#!{python}
\"\"\"A stand-in for Open MPI's mpirun, used by tests alone.\"\"\"
import itertools, os, signal, subprocess, sys, time

VALUES = {{"-n": 1, "-np": 1, "--bind-to": 1, "--mca": 2}}
programs = []
for separator, words in itertools.groupby(sys.argv[1:], lambda word: word == ":"):
    if not separator:
        arguments, count = list(words), 1
        while arguments[0].startswith("-"):
            option = arguments.pop(0)
            values = [arguments.pop(0) for _ in range(VALUES.get(option, 0))]
            if option in ("-n", "-np"):
                count = int(values[0])
        programs += [arguments] * count
size = str(len(programs))
ranks = [
    subprocess.Popen(program, process_group=0, env=os.environ | dict(
        OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_LOCAL_RANK=str(rank), OMPI_COMM_WORLD_SIZE=size,
        PMIX_RANK=str(rank), PMIX_NAMESPACE="standin-" + str(os.getpid())))
    for rank, program in enumerate(programs)
]
running, first = {{rank.pid for rank in ranks}}, 0
while running:
    pid, status = os.wait()
    running.discard(pid)
    code = os.waitstatus_to_exitcode(status)
    if code and not first:
        first = code if code > 0 else 128 - code
        for number in (signal.SIGTERM, signal.SIGKILL) if running else ():
            for other in running:
                os.killpg(other, number)
            time.sleep(0.2)
sys.exit(first)
"""

# The package that asks the driver.
_PYNVML = """import pathlib
class NVMLError(Exception): pass
class NVMLError_LibraryNotFound(NVMLError): pass
class NVMLError_DriverNotLoaded(NVMLError): pass
class NVMLError_NoPermission(NVMLError): pass
class NVMLError_NotSupported(NVMLError): pass
class Memory: total, free = 80 << 30, 79 << 30
def nvmlDeviceGetMemoryInfo(handle):
    memory, chosen = Memory(), pathlib.Path(__file__).with_name("free_bytes")
    memory.free = int(chosen.read_text()) if chosen.is_file() else memory.free
    return memory
nvmlInit = nvmlShutdown = lambda: None
nvmlSystemGetDriverVersion = lambda: "575.51.03"
nvmlSystemGetCudaDriverVersion_v2 = lambda: 12090
nvmlDeviceGetCount = lambda: {gpus}
nvmlDeviceGetHandleByIndex = lambda index: index
nvmlDeviceGetCudaComputeCapability = lambda handle: ({major}, {minor})
nvmlDeviceGetName = lambda handle: {product!r}
nvmlDeviceGetUUID = lambda handle: "GPU-" + str(handle)
nvmlDeviceGetComputeRunningProcesses = nvmlDeviceGetGraphicsRunningProcesses = lambda handle: []
"""

_PRODUCTS = {
    "sm80": "NVIDIA A100-SXM4-80GB",
    "sm89": "NVIDIA L40S",
    "sm90": "NVIDIA H100 80GB HBM3",
    "sm100": "NVIDIA B200",
}


@dataclass(frozen=True)
class Toolchain:
    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin/python3"

    @property
    def setting(self) -> str:
        """The value of ENGINEHOUSE_TOOLCHAIN that chooses it."""
        return f"local:{self.python}"

    @property
    def examples(self) -> Path:
        """The scripts, beside the package as in a checkout, where Enginehouse finds them without a setting."""
        return self.packages / "examples"

    @property
    def packages(self) -> Path:
        (found,) = self.folder.glob("lib/python3.*/site-packages")
        return found

    def command(self, tool: str) -> list[str]:
        """The command that starts `tool`, one of `facts.TOOLS`, or `qwen/convert_checkpoint.py`."""
        if tool == "trtllm-build":
            return [str(self.folder / "bin" / tool)]
        if tool == "convert_checkpoint.py":
            tool = "llama/convert_checkpoint.py"
        (script,) = self.examples.rglob(tool)
        return [str(self.python), str(script)]

    def install(self, *modules: str) -> None:
        """Add empty modules, which some converters import."""
        for module in modules:
            (self.packages / f"{module}.py").touch()

    def fail(self, failure: str, tool: str | None = None) -> None:
        """Make every tool, or one, fail from now on. An empty name ends it."""
        (self.folder / failures.FILE).write_text(f"{tool}:{failure}" if tool and failure else failure)


def make(folder: Path, version: str, *, architecture: str = "sm90", gpus: int = 4) -> Toolchain:
    """An environment at `folder` with TensorRT-LLM `version`, on a machine with `gpus` GPUs of one architecture."""
    venv.create(folder, symlinks=True)
    made = Toolchain(folder)
    packages = made.examples.parent
    release = RELEASES[version]
    modelopt = "nvidia_modelopt" if numbers(version) >= (0, 10) else "nvidia_ammo"
    for name, installed in (
        ("tensorrt_llm", version),
        ("tensorrt", release.tensorrt),
        ("torch", release.torch),
        (modelopt, release.modelopt),
        ("transformers", release.transformers),
    ):
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {installed}\n"
        _write(packages / f"{name}-{installed}.dist-info/METADATA", metadata)
    for name, text in (
        ("tensorrt_llm", f'__version__ = "{version}"\n'),
        ("torch", f"__version__ = {release.torch!r}\ncuda: str = {release.cuda!r}\n"),
    ):
        _write(packages / name / "__init__.py", f"raise ImportError('this {name} is a stand-in')\n")
        _write(packages / name / "version.py", text)
    digits = architecture.removeprefix("sm")
    product = _PRODUCTS.get(architecture, f"NVIDIA {architecture}")
    _write(packages / "pynvml.py", _PYNVML.format(gpus=gpus, major=digits[:-1], minor=digits[-1], product=product))
    further = [f"{name}/convert_checkpoint.py" for name in converters.of_version(numbers(version)[:2])]
    further += heads.TOOLS if flags(heads.EAGLE, version) else heads.TOOLS[:1]
    for tool in (*TOOLS, *(each for each in further if not each.startswith("llama/"))):
        text = _PROGRAM.format(
            python=made.python,
            tool=tool,
            version=version,
            checkout=str(_CHECKOUT),
            architecture=architecture,
            gpus=gpus,
        )
        _write(_place(tool, made, version), text, executable=True)
    _write(folder / "bin/mpirun", _MPIRUN.format(python=made.python), executable=True)
    return made


def _place(tool: str, made: Toolchain, version: str) -> Path:
    if tool == "trtllm-build":
        return made.folder / "bin" / tool
    if tool in heads.TOOLS:
        return made.examples / tool
    if tool.endswith("convert_checkpoint.py"):
        return made.examples / converters.script(tool.rpartition("/")[0] or "llama", numbers(version)[:2])
    return made.examples / ("quantization" if tool == "quantize.py" else "") / tool


def _write(path: Path, text: str, *, executable: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if executable:
        path.chmod(0o755)
