"""The reference of a model: its weights before they are quantized, and what reads them on this machine.

What reads them is the code that serves them inside Triton. So prompts, templates and tokens are those of a release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import JsonValue

from tasks.kinds.torch_memory import CONTEXT_BYTES
from tasks.models.recipe import TransformersRecipe
from tasks.models.spec import Model

if TYPE_CHECKING:
    from tasks.serving.engine import Engine

_ROOM = 1.25
"""For the weights and one pass of a passage through them."""
_CONTEXT_TOKENS = 8192
"""More than the longest passage has, of 20,000 characters. The engine takes memory for all of it when it is loaded."""


class Reference(Protocol):
    """What answers as the weights do before they are quantized."""

    @property
    def model(self) -> Model:
        """The model whose checkpoint answers. Its weights are those of the model that is asked for the reference."""
        ...

    def fields(self) -> Mapping[str, JsonValue]:
        """What changes its answers, beside the checkpoint."""
        ...

    def lacking(self) -> str:
        """What this machine lacks to read the checkpoint. Empty if it lacks nothing."""
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

    def lacking(self) -> str:
        return ""  # a plan of this kind takes the versions of what it needs

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


@dataclass(frozen=True)
class TransformersReference:
    """A checkpoint of Hugging Face as it is, in its own type, read by PyTorch with one plain pass after the other."""

    model: Model
    """Of kind `transformers`."""

    @classmethod
    def of(cls, model: Model, *, on_gpu: bool) -> TransformersReference:
        """That of a model whose weights are a checkpoint of Hugging Face, whatever its kind makes of them.

        With `on_gpu` it is read on the GPU, where there is one.
        """
        # One request at a time takes no memory that anybody planned, so nobody needs to know what a token takes.
        recipe = TransformersRecipe(kind="transformers", device="auto" if on_gpu else "cpu", cache_bytes_per_token=1)
        return cls(model.model_copy(update={"recipe": recipe}))

    def fields(self) -> Mapping[str, JsonValue]:
        """Without versions and device. Whatever machine can read it then finds what another one has read: these change
        a token here and there, as far less than a margin is."""
        serving = self.model.serving
        return {
            "kind": self.model.kind,
            "chat_template": serving.chat_template,
            "defaults": serving.defaults.model_dump(mode="json", exclude_none=True),
        }

    def lacking(self) -> str:
        missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
        return f"the package {' and '.join(missing)}" if missing else ""

    def load(self, checkpoint: Path) -> Engine:
        from tasks.kinds.answers import sampling_of
        from tasks.serving.generation import files_in
        from tasks.serving.llmapi import ENGINE_PATH
        from tasks.serving.settings import ServingSettings
        from tasks.serving.transformers_engine import Transformers

        serving = self.model.serving
        settings = ServingSettings(
            engine="transformers",
            engine_path=str(checkpoint),
            slots=1,
            context_tokens=min(serving.context_tokens, _CONTEXT_TOKENS),
            chat_template=serving.chat_template,
            request_timeout_s=serving.request_timeout_s,
            sampling=sampling_of(serving, files_in(checkpoint)),
            device=self._device(checkpoint),
            dtype="auto",
        )
        return Transformers(checkpoint, settings, {ENGINE_PATH: str(checkpoint)})

    def _device(self, checkpoint: Path) -> str:
        """A GPU that has room for the weights beside what others hold there, else the CPU."""
        torch: Any = import_module("torch")
        assert isinstance(self.model.recipe, TransformersRecipe)
        if self.model.recipe.device == "cpu" or not torch.cuda.is_available():
            return "cpu"
        weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
        free, _ = torch.cuda.mem_get_info()
        return "cuda" if free > _ROOM * weights + CONTEXT_BYTES else "cpu"
