"""What the two kinds of TensorRT-LLM share: where they are built and served, and what a release of them takes."""

from __future__ import annotations

from tasks.kinds.build_machine import BuildMachine
from tasks.kinds.launch import gpus_taken, serving_mode
from tasks.kinds.serving_mode import ServingMode
from tasks.models.spec import Model
from tasks.store.identity import Identity
from tasks.trtllm.kv_cache import gpu_memory_bytes
from tasks.trtllm.limits import EngineLimits
from tasks.trtllm.recipe import LlmApiRecipe, TrtEngineRecipe
from tasks.trtllm.serving import UPSTREAM_ONLY, TensorRtServing


class TensorRtLlmKind:
    def pool(self, model: Model) -> str:
        return f"build-{_recipe(model).runtime.arch}"

    def build_machine(self, model: Model) -> BuildMachine:
        recipe = _recipe(model)
        runtime, portable = recipe.runtime, isinstance(recipe, TrtEngineRecipe) and recipe.portable
        return BuildMachine(
            gpus=recipe.world_size,
            product="" if portable else runtime.gpu,
            tensorrt_llm=runtime.tensorrt_llm,
            image=runtime.image or "",
        )

    def serving_mode(self, model: Model) -> ServingMode:
        return serving_mode(_recipe(model))

    def gpus(self, model: Model) -> tuple[int, ...]:
        return gpus_taken(_recipe(model), model.serving.tensorrt_llm)

    def repository_identity(self, model: Model, engine: Identity) -> Identity:
        from tasks.triton.repository import REPOSITORY_VERSION, serving_code_digest

        runtime, serving = _recipe(model).runtime, model.serving
        parameters = serving.tensorrt_llm or TensorRtServing()
        return Identity.of(
            "assemble",
            REPOSITORY_VERSION,
            inputs={"engine": engine},
            fields={
                "kind": model.recipe.kind,
                "serving": {
                    **serving.model_dump(mode="json", exclude={"tensorrt_llm"}),
                    "tensorrt_llm": parameters.model_dump(mode="json", exclude=set(UPSTREAM_ONLY)),
                },
                "code": f"sha256:{serving_code_digest()}",
                "runtime": {
                    "tensorrt_llm": runtime.tensorrt_llm,
                    # The KV cache's size follows from it.
                    "gpu_memory_bytes": runtime.gpu_memory_bytes or gpu_memory_bytes(runtime.gpu),
                },
            },
        )

    def memory_bytes(self, model: Model, engine_bytes: int, limits: bytes) -> int:
        from tasks.kinds.engine_release import release_memory_bytes

        return release_memory_bytes(model, EngineLimits.from_json(limits))


def _recipe(model: Model) -> TrtEngineRecipe | LlmApiRecipe:
    assert isinstance(model.recipe, TrtEngineRecipe | LlmApiRecipe)
    return model.recipe
