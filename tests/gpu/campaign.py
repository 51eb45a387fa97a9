"""What every part of the campaign has: the servers, the sizes, the table, and models that are made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.kinds.choice import engine_kind
from tasks.kinds.protocol import LIMITS_FILE
from tasks.models.catalogue import load_model
from tasks.store.artifact import ArtifactRef
from tests.gpu.house import GpuHouse
from tests.gpu.sizes import Network, Sizes
from tests.gpu.table import Table

SMALL, LARGE = "small", "large"
"""The names of the two models: SmolLM2 (tiny: random weights), and a Llama of random weights."""

# As served; its layers are those of its own file.
_SMALL_NETWORK = Network(576, 30, 9, 3, 1536, slots=8, context_tokens=1024)
_NO_SECTIONS: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Campaign:
    """`toolchain` is the Python of part 5, or empty. `folder` holds weights, checkpoints and the servers."""

    house: GpuHouse
    sizes: Sizes
    table: Table
    folder: Path
    toolchain: str

    def weights(self, model: str) -> Path:
        """The folder of a model in Hugging Face form."""
        folder = self.folder / "weights" / model
        if not (folder / "tokenizer.json").exists():
            self._make(model, folder)
        return folder

    def _make(self, model: str, folder: Path) -> None:
        if model == SMALL and self.sizes.on_gpu:
            gguf = os.environ.get("ENGINEHOUSE_GPU_GGUF") or str(_fetched())
            self.program("weights", "smollm2", gguf, str(folder))
            return
        if model == LARGE and self.sizes.on_gpu:
            tokenizer = self.weights(SMALL)
        else:
            tokenizer = tiny_tokenizer(self.folder / "weights" / "tokenizer")
        config = json.dumps(self.sizes.large.config)
        self.program("weights", "random", "Llama", str(tokenizer), str(folder), config)

    def program(self, name: str, *arguments: str, python: str = sys.executable) -> str:
        """Run a program of this package; its standard output."""
        command = [python, "-m", f"tests.gpu.{name}", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 0, f"{command} failed"
        return done.stdout

    def write(self, model: str, sections: Mapping[str, Any] = _NO_SECTIONS, **serving: Any) -> None:
        """Write the model's file, as it is, with further sections, or with changed fields of `serving`."""
        self.write_as(model, model, sections, **serving)

    def write_as(self, name: str, model: str, sections: Mapping[str, Any], **serving: Any) -> None:
        """The same under another name."""
        network = self.sizes.large if model == LARGE or not self.sizes.on_gpu else _SMALL_NETWORK
        self.house.write_model(name, self.weights(model), self.sizes, network, sections, **serving)

    def live(self, model: str) -> int:
        """The public release of a model, which is rebuilt if there is none."""
        known = self.house.target.current(model)[0].public
        if known is None:
            self.write(model)
            known = self.house.rebuild(model)["release"]
        assert known is not None
        return known

    def planned_bytes(self, model: str, release: int) -> int:
        """The memory that roll out counts for a release."""
        store = self.house.store
        repository = store.need(self.house.target.intent(model, release).artifact)
        engine = store.need(ArtifactRef.parse(repository.manifest.inputs["engine"]))
        kind = engine_kind(load_model(self.house.catalogue / f"{model}.yaml"))
        return kind.memory_bytes(engine.manifest.size + repository.manifest.size, store.read(engine, LIMITS_FILE))

    def download(self, report: dict[str, Any], step: str, folder: Path) -> Path:
        """The artifact that a step of a rebuild has left."""
        named = next(found["artifact"] for found in report["steps"] if found["name"] == step)
        store = self.house.store
        store.download(store.need(ArtifactRef.parse(named)), folder)
        return folder


def tiny_tokenizer(folder: Path) -> Path:
    """A tokenizer with every byte and a chat template."""
    from tests.standin import weights

    weights.make(folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "config.json").unlink()
    return folder


def _fetched() -> Path:
    from tests.conftest import fetched_gguf

    return fetched_gguf()
