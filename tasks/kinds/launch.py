"""How Triton serves a model of TensorRT-LLM: in one process, with spawned workers, or as one process a rank."""

from __future__ import annotations

from packaging.version import InvalidVersion, Version

from tasks.kinds.serving_mode import ServingMode
from tasks.trtllm.recipe import LlmApiRecipe, TrtEngineRecipe
from tasks.trtllm.serving import TensorRtServing

# The backend spawns workers from 0.9 on, and is gone with 1.3. Source: launch_triton_server.py of the backend's v0.8.0
# and v0.9.0, and the release notes of 1.3.
_FIRST_ORCHESTRATOR = (0, 9)
_WITHOUT_ENGINES = (1, 3)


def serving_mode(recipe: TrtEngineRecipe | LlmApiRecipe) -> ServingMode:
    """Which it will be on a node of the recipe's runtime; known while the recipe is parsed."""
    version, world_size = recipe.runtime.version, recipe.world_size
    if isinstance(recipe, LlmApiRecipe):
        return ServingMode("single", "the LLM API starts the workers of its GPUs itself")
    if world_size == 1:
        return ServingMode("single", "one GPU")
    if version.release >= _FIRST_ORCHESTRATOR:
        return ServingMode(
            "orchestrator",
            f"{world_size} GPUs: the backend spawns a worker for each, so a candidate can lie beside the live release",
        )
    return ServingMode(
        "leader",
        f"{world_size} GPUs: TensorRT-LLM {version} has one Triton process a rank, those above 0 hear no control, and "
        "so a node starts a group of servers for the engine, beside its own Triton, and ends it with the release",
        world_size,
    )


def orchestrated_gpus(tensorrt_llm: str, gpus: int) -> int:
    """On how many GPUs a node's Triton is to spawn workers: on all `gpus`, or on none where it need not, or cannot.

    `tensorrt_llm` is the node's version, empty where it has none.
    """
    try:
        release = Version(tensorrt_llm).release
    except InvalidVersion:
        return 0
    return gpus if gpus > 1 and _FIRST_ORCHESTRATOR <= release < _WITHOUT_ENGINES else 0


def gpus_taken(recipe: TrtEngineRecipe | LlmApiRecipe, serving: TensorRtServing | None) -> tuple[int, ...]:
    """The GPUs of a node that a release takes, each once, as CUDA numbers those that it shows."""
    if isinstance(recipe, TrtEngineRecipe) and serving is not None and serving.gpu_device_ids:
        return tuple(sorted({gpu for instance in serving.gpu_device_ids for gpu in instance}))
    return tuple(range(recipe.world_size))
