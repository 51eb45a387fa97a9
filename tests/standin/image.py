"""An image like NVIDIA's for TensorRT-LLM: the wheel's real Triton, with stand-ins for all that needs a GPU.

Its backend `tensorrtllm` is `backend_model.py`, which Triton runs in its Python backend. Its interpreter has the
stand-ins for `tensorrt_llm` and for the driver's library.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from infra.triton import wheel
from tests.standin import llm_package, toolchain, weights
from tests.standin.guide import pieces

_STANDIN = Path(__file__).parent
_PACKAGE = "standin_backend"
_TOKEN_SECONDS = 0.005
_TEXTS = (
    "Count to nine. one two three, un deux trois, and the French do count to nine.",
    "How do I count to nine in French? un, deux, trois: I do count to nine, and the French do.",
)


@dataclass(frozen=True)
class Image:
    """`environment` is what a node in the image needs besides its own; `driver` and `backend` hold the stand-ins."""

    environment: Mapping[str, str]
    driver: Path
    backend: Path

    def abort_a_load(self, words: str) -> None:
        """Make the next load of an engine end Triton with `words` in its log, as a failed assertion does."""
        (self.backend / "abort").write_text(words)

    def leave_free(self, size: int) -> None:
        """Make each GPU report `size` free bytes from now on."""
        fresh = self.driver / "fresh"
        fresh.write_text(str(size))
        fresh.rename(self.driver / "free_bytes")


def speech(version: str) -> dict[str, Any]:
    """`standin.json` for the tokenizer of `weights`: the texts that a model of TensorRT-LLM `version` was made from."""
    tokenizer: Any = tokenizers.Tokenizer.from_str(json.dumps(weights.tokenizer_file()))
    corpus = [[*tokenizer.encode(text).ids, weights.CONFIG["eos_token_id"]] for text in _TEXTS]
    return {
        "tensorrt_llm": version,
        "corpus": corpus,
        "pieces": pieces(tokenizer),
        "token_seconds": _TOKEN_SECONDS,
    }


def make(folder: Path, version: str, *, gpus: int) -> Image:
    """Lay out an image at `folder`, with TensorRT-LLM `version`, on a machine with `gpus` GPUs."""
    parts, root = wheel.locate(), folder / "tritonserver"
    (root / "bin").mkdir(parents=True)
    (root / "bin/tritonserver").symlink_to(parts.binary)
    # Copies: a backend that is a Python model may have no library outside its folder.
    shutil.copytree(wheel.assemble_backend(parts, folder / "links"), root / "backends")
    (root / "backends/tensorrtllm").mkdir()
    # Triton imports it as a module of its own, not as part of a package.
    (root / "backends/tensorrtllm/model.py").write_text(f"from {_PACKAGE}.backend_model import TritonPythonModel\n")
    python = toolchain.make(folder / "python", version, gpus=gpus)
    packages = python.packages
    # The tools' packages raise when they are imported. Models import these, or the real ones of this environment.
    for name in ("tensorrt_llm", "torch", "torch-*", "transformers-*"):
        for found in packages.glob(name):
            shutil.rmtree(found)
    llm_package.install(packages)
    backend = packages / _PACKAGE
    backend.mkdir()
    for name in ("backend_model.py", "backend_lora.py", "backend_sampler.py", "guide.py"):
        shutil.copyfile(_STANDIN / name, backend / name)
    (backend / "standin.json").write_text(json.dumps(speech(version)))
    (packages / "more.pth").write_text(sysconfig.get_path("purelib"))
    driver = folder / "driver"
    driver.mkdir()
    shutil.copyfile(packages / "pynvml.py", driver / "pynvml.py")
    own = str(Path(sys.prefix, "bin"))
    return Image(
        {
            "ENGINEHOUSE_TRITON": str(root),
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, parts.libraries)),
            "NVIDIA_TRITON_SERVER_VERSION": "24.10",
            "PATH": os.pathsep.join([own, str(python.python.parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(driver), os.environ.get("PYTHONPATH", "")]),
        },
        driver,
        backend,
    )
