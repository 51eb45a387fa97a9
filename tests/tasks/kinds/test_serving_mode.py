"""How a model is served, and whether a node is what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.kinds.choice import engine_kind
from tasks.kinds.protocol import EngineKind
from tasks.kinds.serving_mode import orchestrated_gpus
from tasks.models.catalogue import load_model
from tasks.models.recipe import RECIPES
from tasks.models.spec import Serving
from tasks.store.artifact import Manifest
from tasks.targets.node_report import Machine, NodeGpu, NodeReport, ReleaseReport
from tasks.trtllm.fits import differences
from tasks.trtllm.serving import TensorRtServing

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
RUNTIME = {"gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 8}


def kind(name: str, version: str, parameters: TensorRtServing | None = None, **fields: Any) -> EngineKind:
    document = {"kind": name, "runtime": {"tensorrt_llm": version, **RUNTIME}, **fields}
    serving = Serving(tensorrt_llm=parameters)
    model = load_model(CATALOGUE / "llama3-8b-instruct.yaml")
    recipe = RECIPES[name].model_validate(document)
    return engine_kind(model.model_copy(update={"recipe": recipe, "serving": serving}))


def engine(version: str, parameters: TensorRtServing | None = None, **fields: Any) -> EngineKind:
    return kind("trt-engine", version, parameters, **fields)


def llmapi(version: str, **fields: Any) -> EngineKind:
    return kind("llmapi", version, **fields)


@pytest.mark.parametrize(
    ("served", "mode", "ranks"),
    [
        (engine("0.8.0"), "single", 0),
        (engine("1.2.1"), "single", 0),
        (engine("0.8.0", tp_size=2), "leader", 2),
        (engine("0.8.0", tp_size=2, pp_size=2), "leader", 4),
        (engine("0.9.0", tp_size=2), "orchestrator", 0),
        (engine("1.2.1", tp_size=2, pp_size=2), "orchestrator", 0),
        (llmapi("1.2.1", tp_size=4), "single", 0),
        (llmapi("1.3.0"), "single", 0),
    ],
)
def test_how_a_recipe_is_served(served: EngineKind, mode: str, ranks: int) -> None:
    found = served.serving_mode()
    assert (found.mode, found.ranks) == (mode, ranks)
    assert found.why


@pytest.mark.parametrize(
    ("version", "gpus", "orchestrated"),
    [("", 4, 0), ("0.8.0", 4, 0), ("0.9.0", 4, 4), ("0.9.0", 1, 0), ("1.2.1", 8, 8), ("1.3.0", 8, 0), ("1.1.0", 0, 0)],
)
def test_on_which_nodes_the_backend_spawns_workers(version: str, gpus: int, orchestrated: int) -> None:
    assert orchestrated_gpus(version, gpus) == orchestrated


def test_which_gpus_a_release_takes() -> None:
    assert engine("1.2.1", tp_size=2).gpus() == (0, 1)
    chosen = TensorRtServing(gpu_device_ids=((2, 3), (5, 2)))
    assert engine("1.2.1", chosen, tp_size=2).gpus() == (2, 3, 5)


def machine(architecture: str = "sm90", product: str = "NVIDIA H200", count: int = 2, **fields: str) -> Machine:
    gpu = NodeGpu(product=product, architecture=architecture, memory_bytes=1, free_bytes=1)
    versions = {"tensorrt_llm": "0.17.0", "tensorrt": "10.8.0.43", **fields}
    return Machine.model_validate({"gpus": (gpu,) * count, **versions})


BUILT = {"tensorrt_llm": "0.17.0", "tensorrt": "10.8.0.43", "gpu": "NVIDIA H200", "architecture": "sm90"}


@pytest.mark.parametrize(
    ("built", "node", "portable", "words"),
    [
        ({}, machine(), False, None),
        ({"tensorrt": "10.8.0"}, machine(), False, None),
        ({}, machine(tensorrt="10.8"), False, None),
        ({"tensorrt": "10.8.0.44"}, machine(), False, "TensorRT 10.8.0.43, and 10.8.0.44 is needed"),
        ({}, machine(tensorrt="10.9.0"), False, "TensorRT 10.9.0, and 10.8.0.43 is needed"),
        ({}, machine(tensorrt=""), False, "no TensorRT that it knows of"),
        ({}, machine(tensorrt_llm="0.17.0.post1"), False, "TensorRT-LLM 0.17.0.post1, and 0.17.0 is needed"),
        ({}, machine(tensorrt_llm=""), False, "no TensorRT-LLM that it knows of, and 0.17.0 is needed"),
        ({}, machine(architecture="sm100"), True, "its GPUs are sm100, and sm90 is needed"),
        ({}, machine(product="NVIDIA H100"), False, "its GPUs are NVIDIA H100, and NVIDIA H200 is needed"),
        ({}, machine(product="NVIDIA H100"), True, None),
        ({}, machine(count=1), False, "its last GPU is number 0, and the engine takes number 1"),
    ],
)
def test_what_keeps_an_engine_from_a_node(
    built: dict[str, str], node: Machine, portable: bool, words: str | None
) -> None:
    told = differences({**BUILT, **built}, node, (0, 1), portable=portable)
    assert told == [] if words is None else len(told) == 1 and words in told[0]


def test_a_node_without_gpu_and_image_fits_no_engine() -> None:
    told = differences(BUILT, Machine(gpu_problem="no NVIDIA driver is installed"), (0,), portable=False)
    assert [len(told), told[-1]] == [3, "it has no GPU: no NVIDIA driver is installed"]


def test_only_the_gpus_that_are_taken_count() -> None:
    mixed = machine().model_copy(update={"gpus": (*machine().gpus, *machine(architecture="sm80").gpus)})
    assert differences(BUILT, mixed, (0, 1), portable=False) == []
    assert differences(BUILT, mixed, (1, 2), portable=False) == ["its GPUs are sm80, and sm90 is needed"]


def test_reports_of_the_version_before_are_read() -> None:
    report = {"node": "n", "target": "t", "http": "", "grpc": "", "triton_pid": 1}
    report |= {"memory_total_bytes": 2, "memory_available_bytes": 1}
    assert NodeReport.model_validate_json(json.dumps(report)).machine == Machine()
    assert ReleaseReport.model_validate({"state": "failed", "error": "e", "starts": 1}).hint == ""


def test_a_model_of_the_llm_api_needs_its_version_and_architecture_wherever_it_was_made() -> None:
    served, manifest = llmapi("1.2.1"), Manifest.model_construct()
    fitting = machine(tensorrt_llm="1.2.1", product="any")
    assert served.fits(manifest, fitting) == []
    assert served.fits(manifest, fitting.model_copy(update={"tensorrt_llm": "1.1.0"}))
    assert served.fits(manifest, Machine())
