"""Kind `llamacpp`: GGUF in, a 16-bit checkpoint, quantized to the recipe's type, served by llama.cpp on the CPU."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar

from infra.errors import SettingsError, StepFailed
from tasks.gguf.parts import parts_of
from tasks.kinds.build_machine import BuildMachine
from tasks.kinds.protocol import LIMITS_FILE, NO_ADAPTERS, PlannedCache, RequestAdapters, by_role, limits_in
from tasks.kinds.reference import LlamaCppReference, Reference
from tasks.kinds.serving_mode import ServingMode
from tasks.lora.config import AdapterConfig, check_requested
from tasks.models.recipe import LlamaCppRecipe
from tasks.models.spec import Model
from tasks.serving.generation import Files
from tasks.store.artifact import Manifest
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter
from tasks.targets.node_report import Machine
from tasks.triton.serving_code import REPOSITORY_VERSION, serving_code_digest
from tasks.weights.facts import WeightsFacts

MODEL_FILE = "model.gguf"

_CONVERT_VERSION = 1
_BUILD_VERSION = 1
_ADAPTERS_VERSION = 1

# llama.cpp's compute buffers beside weights and KV cache: 110 to 180 MB, measured with batches of 512 tokens on
# SmolLM2-135M. They grow with the vocabulary, not with the weights.
_WORKSPACE_BYTES = 256 << 20


def _installed(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        raise SettingsError(
            f"kind llamacpp needs the package {distribution}", hint="pip install -e '.[llamacpp]'"
        ) from None


class LlamaCppKind:
    reads_config: ClassVar[bool] = False

    def __init__(self, model: Model) -> None:
        assert isinstance(model.recipe, LlamaCppRecipe)
        self.model = model
        self.recipe = model.recipe

    def require_weights(self, facts: WeightsFacts) -> None:
        return None

    def planned_cache(self, facts: WeightsFacts) -> PlannedCache:
        return PlannedCache()

    def planned_memory(self, facts: WeightsFacts) -> None:
        return None

    def pool(self) -> str:
        return "build-cpu"

    def build_machine(self) -> BuildMachine:
        return BuildMachine()

    def commands(self, facts: WeightsFacts | None = None) -> tuple[tuple[str, ...], ...]:
        return ()

    def require_worker(self) -> None:
        _installed("gguf")

    def tool_release(self) -> None:
        return None

    def serving_mode(self) -> ServingMode:
        return ServingMode("single", "on the CPU")

    def gpus(self) -> tuple[int, ...]:
        return ()

    def fits(self, engine: Manifest, machine: Machine) -> list[str]:
        return []

    def runtime(self) -> Mapping[str, str]:
        return {"gguf": _installed("gguf"), "architecture": "cpu"}

    def draft_model(self) -> None:
        return None

    def reference(self) -> Reference:
        return LlamaCppReference(self.model, MODEL_FILE)

    def checkpoint_identity(self, inputs: Mapping[str, Identity]) -> Identity:
        return Identity.of(
            "convert",
            _CONVERT_VERSION,
            inputs=inputs,
            fields={
                "kind": "llamacpp",
                "dtype": self.recipe.dtype,
                "runtime": {"gguf": _installed("gguf")},
            },
        )

    def engine_identity(self, checkpoint: Identity, draft: Identity | None = None) -> Identity:
        return Identity.of(
            "build",
            _BUILD_VERSION,
            inputs={"checkpoint": checkpoint},
            fields={
                "kind": "llamacpp",
                "quantization": self.recipe.quantization,
                "runtime": dict(self.runtime()),
            },
        )

    def repository_identity(self, engine: Identity, adapters: Mapping[str, Identity]) -> Identity:
        return Identity.of(
            "assemble",
            REPOSITORY_VERSION,
            inputs={"engine": engine, **by_role(adapters)},
            fields={
                **({"adapters": _ADAPTERS_VERSION} if adapters else {}),
                "serving": self.model.serving.model_dump(mode="json", exclude={"aliases", "tensorrt_llm"}),
                "code": f"sha256:{serving_code_digest()}",
                "runtime": {"xllamacpp": _installed("xllamacpp")},
            },
        )

    def check_adapter(self, config: AdapterConfig) -> None:
        check_requested(config)

    def kept(self) -> Mapping[str, str]:
        return {}

    def convert(
        self,
        snapshot: Path,
        adapter: Path | None,
        output: Path,
        scratch: Path,
        reporter: Reporter,
        draft: Path | None = None,
    ) -> Peak:
        from tasks.gguf.conversion import dequantize
        from tasks.lora.gguf_merge import merge_gguf

        found = [path for path in sorted(snapshot.rglob("*.gguf")) if path.name == parts_of(path.name)[0]]
        if len(found) != 1:
            raise StepFailed(
                f"kind llamacpp takes exactly one model in GGUF, and the snapshot holds {len(found)}",
                hint="narrow it with `source.include`",
                code="snapshot-unfit",
            )
        dequantize(found[0], output / MODEL_FILE, self.recipe.dtype, reporter.progress)
        if adapter is not None:
            merge_gguf(output / MODEL_FILE, adapter)
        return Peak()

    def build(
        self, checkpoint: Path, output: Path, scratch: Path, reporter: Reporter, draft: Path | None = None
    ) -> Peak:
        from tasks.gguf.conversion import quantize
        from tasks.gguf.limits import model_limits

        limits = model_limits(checkpoint / MODEL_FILE)
        if self.model.serving.context_tokens > limits.context_length:
            raise StepFailed(
                f"serving.context_tokens is {self.model.serving.context_tokens}, and the model was trained for "
                f"{limits.context_length}",
                hint="lower serving.context_tokens in the model's file",
                code="context-too-long",
            )
        quantize(checkpoint / MODEL_FILE, output / MODEL_FILE, self.recipe.quantization, reporter.progress)
        (output / LIMITS_FILE).write_text(json.dumps(asdict(limits), indent=1, sort_keys=True))
        return Peak()

    def assemble(self, engine: Files, output: Path, adapters: RequestAdapters = NO_ADAPTERS) -> None:
        from tasks.kinds.answers import require_one
        from tasks.lora.gguf_adapter import write_gguf_adapter
        from tasks.serving.llamacpp import ADAPTER_FILE
        from tasks.serving.settings import Sampling, ServingSettings
        from tasks.triton.config import ENGINE_FOLDER
        from tasks.triton.repository import adapter_folder, write_release

        serving = self.model.serving
        require_one(serving, has_one=bool(json.loads(limits_in(engine))["has_chat_template"]))
        write_release(
            output,
            ServingSettings(
                engine="llamacpp",
                engine_path=f"{ENGINE_FOLDER}/{MODEL_FILE}",
                slots=serving.slots,
                context_tokens=serving.context_tokens,
                chat_template=serving.chat_template,
                request_timeout_s=serving.request_timeout_s,
                sampling=Sampling(**serving.defaults.model_dump(exclude_none=True)),
                max_tokens=serving.max_tokens,
                contract=serving.contract,
                adapters=adapters.names,
            ),
        )
        for name in adapters.names:
            folder = adapter_folder(output, name)
            write_gguf_adapter(adapters.engine_file(MODEL_FILE), adapters.folders[name], folder / ADAPTER_FILE)

    def memory_bytes(self, engine_bytes: int, limits: bytes) -> int:
        per_token = int(json.loads(limits)["cache_bytes_per_token"])
        serving = self.model.serving
        return engine_bytes + serving.slots * serving.context_tokens * per_token + _WORKSPACE_BYTES
