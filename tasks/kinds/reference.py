"""The reference of a model: its weights before they are quantized, and what reads them on this machine.

What reads them is the code that serves them inside Triton. So prompts, templates and tokens are those of a release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from pydantic import JsonValue

from tasks.models.spec import Model
from tasks.serving.engine import Engine


class Reference(Protocol):
    """What answers as the weights do before they are quantized."""

    @property
    def model(self) -> Model:
        """The model whose checkpoint answers. Its weights are those of the model that is asked for the reference."""
        ...

    def fields(self) -> Mapping[str, JsonValue]:
        """What changes its answers, beside the checkpoint."""
        ...

    def load(self, checkpoint: Path) -> Engine:
        """The checkpoint, ready to answer one request at a time. Raises EngineFailed."""
        ...


@dataclass(frozen=True)
class LlamaCppReference:
    """The 16-bit GGUF that `convert` makes, read by llama.cpp on the CPU."""

    model: Model
    file: str
    """Of the checkpoint."""

    def fields(self) -> Mapping[str, JsonValue]:
        serving = self.model.serving
        return {
            "kind": self.model.kind,
            "chat_template": serving.chat_template,
            "defaults": serving.defaults.model_dump(mode="json", exclude_none=True),
            "runtime": {"xllamacpp": version("xllamacpp")},
        }

    def load(self, checkpoint: Path) -> Engine:
        from tasks.serving.llamacpp import LlamaCpp
        from tasks.serving.settings import Sampling, ServingSettings

        serving = self.model.serving
        return LlamaCpp(
            checkpoint,
            ServingSettings(
                engine="llamacpp",
                engine_path=self.file,
                slots=1,
                context_tokens=serving.context_tokens,
                chat_template=serving.chat_template,
                request_timeout_s=serving.request_timeout_s,
                sampling=Sampling(**serving.defaults.model_dump(exclude_none=True)),
            ),
        )
