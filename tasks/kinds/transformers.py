"""Kind `transformers`: a Hugging Face checkpoint as it is, served by PyTorch; slow, and the reference of the others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from infra.errors import StepFailed, UsageError
from infra.files import link_all, replace_file
from tasks.kinds.answers import require_one
from tasks.kinds.build_machine import BuildMachine
from tasks.kinds.protocol import (
    LIMITS_FILE,
    NO_ADAPTERS,
    PlannedCache,
    PlannedMemory,
    RequestAdapters,
    by_role,
    limits_in,
)
from tasks.kinds.reference import Reference, TransformersReference
from tasks.kinds.serving_mode import ServingMode
from tasks.kinds.torch_memory import TorchLimits, cache_numbers, dtype_bytes, is_known_dtype
from tasks.lora.config import FILES, AdapterConfig, check_requested
from tasks.lora.merge import merged
from tasks.lora.requested import read_requested
from tasks.models.recipe import TransformersRecipe
from tasks.models.spec import Model
from tasks.serving.generation import Files
from tasks.store.artifact import Manifest
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter
from tasks.targets.node_report import Machine
from tasks.triton.serving_code import REPOSITORY_VERSION, serving_code_digest
from tasks.trtllm.fits import Found, Planned, differences
from tasks.trtllm.tools.check import require_tokenizer, require_weights
from tasks.weights.classes import has_own_code, is_known
from tasks.weights.config import facts_of
from tasks.weights.facts import WeightsFacts

SLOW = (
    "kind transformers is a reference, and slow: requests take turns, a pass of the model each; "
    "only answers that show no more than tokens are computed together"
)

_CONVERT_VERSION = 1
_BUILD_VERSION = 1
_ADAPTERS_VERSION = 1


class TransformersKind:
    reads_config: ClassVar[bool] = True

    def __init__(self, model: Model) -> None:
        assert isinstance(model.recipe, TransformersRecipe)
        self.model = model
        self.recipe = model.recipe

    def require_weights(self, facts: WeightsFacts) -> None:
        """Raises UsageError also with `architecture-unfit` and `cache-unknown`."""
        if has_own_code(facts.model_type) or not is_known(facts.model_type):
            raise UsageError(
                f"transformers itself has no models of type {facts.model_type or 'no name'}, and code that lies beside "
                "weights is never run",
                hint="take a kind that serves it, or a checkpoint that was converted to a class of transformers",
                code="architecture-unfit",
            )
        if facts.quantization is not None:
            raise _unfit(f"they are quantized already: {facts.quantization}", "take the weights before that")
        if not is_known_dtype(facts.dtype):
            raise _unfit(f"config.json names the type {facts.dtype}", "they may be float32, bfloat16 or float16")
        if cache_numbers(facts) is None and self.recipe.cache_bytes_per_token is None:
            why = facts.unclear or "its heads do not keep keys and values of their own"
            raise UsageError(
                f"the memory of the KV cache is not known: {why}",
                hint="measure it, and give recipe.cache_bytes_per_token",
                code="cache-unknown",
            )
        if facts.has_template is not None:
            require_one(self.model.serving, has_one=facts.has_template)

    def planned_cache(self, facts: WeightsFacts) -> PlannedCache:
        numbers, given = cache_numbers(facts), self.recipe.cache_bytes_per_token
        each = given or (None if numbers is None else numbers * dtype_bytes(self.recipe.dtype, facts))
        return PlannedCache(each, tokens=self._cached_tokens, notes=tuple(self._notes(facts)))

    def planned_memory(self, facts: WeightsFacts) -> PlannedMemory | None:
        cache = self.planned_cache(facts)
        if facts.bytes is None or cache.bytes_per_token is None:
            return None
        limits = TorchLimits.planned(facts)
        each = dtype_bytes(self.recipe.dtype, facts)
        total, kept = self._memory_bytes(limits), self._cached_tokens * cache.bytes_per_token
        weights = limits.weights * each
        return PlannedMemory(weights, kept, total - weights - kept)

    def _notes(self, facts: WeightsFacts) -> Iterator[str]:
        yield SLOW
        context = self.model.serving.context_tokens
        if facts.context is not None and context > facts.context:
            yield f"the model was made for {facts.context} tokens, and serving.context_tokens is {context}"

    @property
    def _cached_tokens(self) -> int:
        return self.model.serving.slots * self.model.serving.context_tokens

    def pool(self) -> str:
        return f"build-{self.recipe.arch or 'cpu'}"

    def build_machine(self) -> BuildMachine:
        return BuildMachine()

    def commands(self, facts: WeightsFacts | None = None) -> tuple[tuple[str, ...], ...]:
        return ()

    def tool_release(self) -> None:
        return None

    def require_worker(self) -> None:
        """Nothing is needed: no number of the weights is changed, and none is read."""

    def serving_mode(self) -> ServingMode:
        return ServingMode("single", "one GPU" if self.recipe.on_gpu else "on the CPU")

    def gpus(self) -> tuple[int, ...]:
        return (0,) if self.recipe.on_gpu else ()

    def fits(self, engine: Manifest, machine: Machine) -> list[str]:
        if not self.recipe.on_gpu:
            return []
        return differences(Planned(architecture=self.recipe.arch or "", gpus=self.gpus()), Found.on_node(machine))

    def runtime(self) -> Mapping[str, str]:
        return {}

    def draft_model(self) -> None:
        return None

    def reference(self) -> Reference:
        return TransformersReference.of(self.model, on_gpu=self.recipe.on_gpu)

    def checkpoint_identity(self, inputs: Mapping[str, Identity]) -> Identity:
        return Identity.of("convert", _CONVERT_VERSION, inputs=inputs, fields={"kind": "transformers"})

    def engine_identity(self, checkpoint: Identity, draft: Identity | None = None) -> Identity:
        # `dtype` and `device` are the release's: the same files serve all of them.
        return Identity.of("build", _BUILD_VERSION, inputs={"checkpoint": checkpoint}, fields={"kind": "transformers"})

    def repository_identity(self, engine: Identity, adapters: Mapping[str, Identity]) -> Identity:
        return Identity.of(
            "assemble",
            REPOSITORY_VERSION,
            inputs={"engine": engine, **by_role(adapters)},
            fields={
                **({"adapters": _ADAPTERS_VERSION} if adapters else {}),
                "kind": "transformers",
                "recipe": self.recipe.model_dump(mode="json", exclude={"kind", "device", "arch"}),
                "device": self._device,
                "serving": self.model.serving.model_dump(mode="json", exclude={"aliases", "tensorrt_llm"}),
                "code": f"sha256:{serving_code_digest()}",
            },
        )

    @property
    def _device(self) -> str:
        return "cuda" if self.recipe.on_gpu else "cpu"

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
        self.require_weights(facts_of(snapshot))
        if adapter is not None:
            snapshot = merged(snapshot, adapter, scratch / "merged")
        link_all(snapshot, output)
        require_weights(output)
        require_tokenizer(output)
        return Peak()

    def build(
        self, checkpoint: Path, output: Path, scratch: Path, reporter: Reporter, draft: Path | None = None
    ) -> Peak:
        facts = facts_of(checkpoint)
        context = self.model.serving.context_tokens
        if facts.context is not None and context > facts.context:
            raise StepFailed(
                f"serving.context_tokens is {context}, and the model was made for {facts.context}",
                hint="lower serving.context_tokens in the model's file",
                code="context-too-long",
            )
        link_all(checkpoint, output)
        # Not into a file of this name that may lie there: it would be the checkpoint's, under another name.
        replace_file(output / LIMITS_FILE, TorchLimits.of(checkpoint, facts).to_json().encode())
        return Peak()

    def assemble(self, engine: Files, output: Path, adapters: RequestAdapters = NO_ADAPTERS) -> None:
        from tasks.kinds.answers import require_template, sampling_of
        from tasks.serving.settings import ServingSettings
        from tasks.triton.config import ENGINE_FOLDER
        from tasks.triton.repository import adapter_folder, write_release

        serving, known = self.model.serving, TorchLimits.from_json(limits_in(engine))
        require_template(serving, engine)
        write_release(
            output,
            ServingSettings(
                engine="transformers",
                engine_path=ENGINE_FOLDER,
                slots=serving.slots,
                context_tokens=serving.context_tokens,
                chat_template=serving.chat_template,
                request_timeout_s=serving.request_timeout_s,
                sampling=sampling_of(serving, engine),
                max_tokens=serving.max_tokens,
                contract=serving.contract,
                adapters=adapters.names,
                device=self._device,
                dtype=self.recipe.dtype,
                planned_bytes=self._memory_bytes(known),
            ),
            engine_in_place=True,
        )
        for name in adapters.names:
            read_requested(adapters.folders[name])
            folder = adapter_folder(output, name)
            for file in FILES:
                shutil.copyfile(adapters.folders[name] / file, folder / file)

    def memory_bytes(self, engine_bytes: int, limits: bytes) -> int:
        known = TorchLimits.from_json(limits)
        # Adapters, which are in the repository, and the tokenizer.
        return self._memory_bytes(known) + max(0, engine_bytes - known.weight_file_bytes)

    def _memory_bytes(self, known: TorchLimits) -> int:
        each = self.recipe.cache_bytes_per_token or known.cache_bytes_per_token(self.recipe.dtype)
        assert each is not None, "require_weights has asked for it"
        return known.memory_bytes(
            self.recipe.dtype,
            cache_bytes=self._cached_tokens * each,
            prompt_tokens=self.model.serving.context_tokens,
            on_gpu=self.recipe.on_gpu,
        )


def _unfit(what: str, hint: str) -> UsageError:
    return UsageError(f"kind transformers cannot serve these weights: {what}", hint=hint, code="weights-unfit")
