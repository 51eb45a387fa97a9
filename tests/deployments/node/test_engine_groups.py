"""The servers that engines have for themselves, in an image of stand-ins: the real Triton, once for each rank."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from packaging.version import Version

from deployments.node.engine_groups import EngineGroup, EngineGroups
from infra.errors import TritonError
from tasks.models.recipe import TrtEngineRecipe
from tasks.serving.called import CALLED_MODEL, CALLED_SERVER, CalledModel
from tasks.serving.settings import ServingSettings
from tasks.triton.backend_config import tensorrt_llm_config
from tasks.triton.placement import place_release
from tasks.triton.repository import write_release
from tasks.trtllm.serving import TensorRtServing
from tests.processes import processes_that, processes_with
from tests.standin import engine, image

# A node leaves what it started to the next one.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]

VERSION = "0.8.0"
ENGINE = "m--r1--tensorrt_llm"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = image.make(tmp_path / "image", VERSION, gpus=2)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    return Path(made.environment["ENGINEHOUSE_TRITON"])


@pytest.fixture
def groups(tmp_path: Path, root: Path) -> Iterator[EngineGroups]:
    made = EngineGroups(tmp_path / "node/groups", root)
    yield made
    made.close()
    EngineGroups(tmp_path / "node/groups", root).close()
    assert processes(tmp_path) == []


def processes(folder: Path) -> list[psutil.Process]:
    return processes_with(f"{folder}/node")


def ranks(folder: Path) -> list[psutil.Process]:
    return processes_that(lambda one: one.name() == "tritonserver" and f"{folder}/node" in " ".join(one.cmdline()))


def placed(groups: EngineGroups, folder: Path, processes: int) -> EngineGroup:
    """A group of so many processes for an engine of two GPUs."""
    recipe = TrtEngineRecipe.model_validate(
        {
            "kind": "trt-engine",
            "runtime": {"tensorrt_llm": VERSION, "gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 2},
            "tp_size": 2,
        }
    )
    built = engine.make(recipe, folder / "engine")
    (built / "tokenizer").mkdir()
    config = tensorrt_llm_config(
        Version(VERSION), TensorRtServing(), engine_folder="engine", max_batch_size=4, kv_cache_tokens=4096
    )
    settings = ServingSettings("tensorrt_llm", "tokenizer", 4, 512, True, 60.0, tensorrt_llm=VERSION)
    write_release(folder / "artifact", settings, tensorrt_llm=config)
    (folder / "node/models").mkdir(parents=True)
    group = groups.of("m", 1, processes)
    place_release(folder / "artifact", built, folder / "node/models", "m", 1, grpc="", server=group.server)
    return group


def answer(group: EngineGroup) -> list[int]:
    inputs = {
        "input_ids": np.array([[4, 5, 6]], dtype=np.int32),
        "input_lengths": np.array([[3]], dtype=np.int32),
        "request_output_len": np.array([[8]], dtype=np.int32),
        "runtime_top_k": np.array([[1]], dtype=np.int32),
        "streaming": np.array([[True]]),
    }

    async def asking() -> list[int]:
        model = CalledModel({CALLED_MODEL: ENGINE, CALLED_SERVER: group.server.grpc})
        found: list[int] = []
        async for responses in model.call("1", inputs, ["output_ids", "sequence_length"]):
            for response in responses:
                assert not response.failure
                found += response.tensors["output_ids"][0, 0].tolist()
        await model.close()
        return found

    return asyncio.run(asking())


def test_an_engine_answers_as_long_as_each_of_its_ranks_lives(groups: EngineGroups, root: Path, tmp_path: Path) -> None:
    group = placed(groups, tmp_path, 2)
    assert groups.lost("m", 1)
    group.start()
    first, tokens = ranks(tmp_path), answer(group)
    assert len(first) == 2 and tokens and not groups.lost("m", 1)
    first[1].kill()
    first[1].wait(10)
    assert groups.lost("m", 1)
    group.start()
    second = ranks(tmp_path)
    assert len(second) == 2 and not {*first} & {*second} and answer(group) == tokens

    again = EngineGroups(tmp_path / "node/groups", root)
    again.find([("m", 1)])
    assert not again.lost("m", 1) and ranks(tmp_path) == second
    assert again.of("m", 1, 2).server == group.server
    again.end("m", 1)
    assert processes(tmp_path) == [] and not group.folder.exists()


def test_what_nobody_wants_any_more_ends(groups: EngineGroups, root: Path, tmp_path: Path) -> None:
    placed(groups, tmp_path, 2).start()
    EngineGroups(tmp_path / "node/groups", root).find([("m", 2)])
    assert processes(tmp_path) == [] and not list((tmp_path / "node/groups").iterdir())


def test_a_group_with_a_rank_too_many_does_not_start(groups: EngineGroups, tmp_path: Path) -> None:
    group = placed(groups, tmp_path, 3)
    with pytest.raises(TritonError) as caught:
        group.start()
    assert caught.value.code == "world-size" and "MPI size 3 != TP size 2" in caught.value.message
    assert processes(tmp_path) == []


def test_the_engine_of_a_group_cannot_be_let_go_and_loaded_again(groups: EngineGroups, tmp_path: Path) -> None:
    """In the stand-in as in the real one: why a group comes and goes with its release."""
    group = placed(groups, tmp_path, 2)
    group.start()
    client = group.supervisor.client
    client.unload(ENGINE)
    with pytest.raises(TritonError):
        client.load(ENGINE, timeout_s=30)
    for rank in ranks(tmp_path):
        rank.wait(10)
    assert groups.lost("m", 1)


@pytest.mark.parametrize("by", ["this node", "the next"])
def test_a_group_ends_while_it_starts(groups: EngineGroups, root: Path, tmp_path: Path, by: str) -> None:
    group = placed(groups, tmp_path, 2)
    with ThreadPoolExecutor(1) as pool:
        starting = pool.submit(group.start)
        until = time.monotonic() + 20
        while not ranks(tmp_path):
            assert time.monotonic() < until
            time.sleep(0.02)
        (groups if by == "this node" else EngineGroups(tmp_path / "node/groups", root)).close()
        with pytest.raises(TritonError) as caught:
            starting.result(20)
    assert caught.value.code == "triton-start"
    assert processes(tmp_path) == [] and not group.folder.exists()


def test_no_group_begins_after_the_end(groups: EngineGroups, tmp_path: Path) -> None:
    group = placed(groups, tmp_path, 2)
    groups.close()
    with pytest.raises(TritonError) as caught:
        group.start()
    assert caught.value.code == "triton-start"
    with pytest.raises(TritonError) as caught:
        groups.of("m", 1, 2)
    assert caught.value.code == "triton-unreachable" and caught.value.retryable and not group.folder.exists()
