"""Where the files of a release lie on a node, for each set of models that a release may have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from packaging.version import Version

from tasks.serving.settings import ServingSettings
from tasks.triton.backend_config import tensorrt_llm_config
from tasks.triton.config import llm_config
from tasks.triton.llm_processes import chosen_processes, own_cores
from tasks.triton.placement import EngineServer, place_release, placed_models, withdraw_release
from tasks.triton.protobuf import parse_config
from tasks.triton.repository import write_release
from tasks.trtllm.serving import TensorRtServing


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    folder = tmp_path / "artifacts" / "engine"
    (folder / "tokenizer").mkdir(parents=True)
    for name in ("rank0.engine", "config.json", "tokenizer/tokenizer.json"):
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "node" / "models"
    folder.mkdir(parents=True)
    return folder


def files(folder: Path) -> set[str]:
    """Without the serving code, which is the same for all."""
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {path for path in found if not path.endswith(".py")}


def test_the_backend_reads_an_engine_where_the_node_keeps_it(tmp_path: Path, engine: Path, models: Path) -> None:
    config = tensorrt_llm_config(
        Version("0.19.0"), TensorRtServing(), engine_folder="engine", max_batch_size=8, kv_cache_tokens=4096
    )
    settings = ServingSettings("tensorrt_llm", "tokenizer", 8, 512, True, 60.0, tensorrt_llm="0.19.0")
    write_release(tmp_path / "artifact", settings, instances=2, tensorrt_llm=config)
    before = {path: path.stat().st_ino for path in engine.rglob("*")}
    place_release(tmp_path / "artifact", engine, models, "m", 7, grpc="127.0.0.1:1")
    assert placed_models(models, "m", 7) == ("m--r7--tensorrt_llm", "m--r7--llm", "m--r7")
    assert files(models / "m--r7--tensorrt_llm") == {"config.pbtxt"}
    assert files(models / "m--r7--llm") == {"config.pbtxt", "1/serving.json", "1/tokenizer/tokenizer.json"}
    placed = {folder.name: parse_config((folder / "config.pbtxt").read_text()) for folder in models.iterdir()}
    assert placed["m--r7--tensorrt_llm"].parameters["gpt_model_path"].string_value == str(engine)
    assert placed["m--r7--llm"].parameters["tensorrt_llm_model_name"].string_value == "m--r7--tensorrt_llm"
    assert placed["m--r7--llm"].instance_group[0].count == 2
    assert [step.model_name for step in placed["m--r7"].ensemble_scheduling.step] == ["m--r7--llm"] * 2
    # Triton wants a version folder even where there is nothing to put into it.
    assert all((folder / "1").is_dir() for folder in models.iterdir())
    assert {path: path.stat().st_ino for path in engine.rglob("*")} == before
    read_only = [engine / "rank0.engine", models / "m--r7--llm/1/tokenizer/tokenizer.json", models / "m--r7--llm/1"]
    assert not any(path.stat().st_mode & 0o222 for path in read_only)
    withdraw_release(models, "m", 7)
    assert not list(models.iterdir()) and (engine / "rank0.engine").is_file()


def test_an_engine_with_a_server_of_its_own_is_put_before_that(tmp_path: Path, engine: Path, models: Path) -> None:
    config = tensorrt_llm_config(
        Version("0.8.0"), TensorRtServing(), engine_folder="engine", max_batch_size=8, kv_cache_tokens=4096
    )
    settings = ServingSettings("tensorrt_llm", "tokenizer", 8, 512, True, 60.0, tensorrt_llm="0.8.0")
    write_release(tmp_path / "artifact", settings, tensorrt_llm=config)
    server = EngineServer(tmp_path / "node/groups/m--r7/models", "127.0.0.1:4711")
    server.models.mkdir(parents=True)
    place_release(tmp_path / "artifact", engine, models, "m", 7, grpc="127.0.0.1:1", server=server)
    # What the node's Triton has to load and let go.
    assert placed_models(models, "m", 7) == ("m--r7--llm", "m--r7")
    assert [folder.name for folder in server.models.iterdir()] == ["m--r7--tensorrt_llm"]
    placed = parse_config((server.models / "m--r7--tensorrt_llm/config.pbtxt").read_text())
    assert placed.parameters["gpt_model_path"].string_value == str(engine)
    calling = parse_config((models / "m--r7--llm/config.pbtxt").read_text()).parameters
    assert calling["tensorrt_llm_model_name"].string_value == "m--r7--tensorrt_llm"
    assert calling["tensorrt_llm_server"].string_value == "127.0.0.1:4711"
    assert files(models / "m--r7--llm") == {"config.pbtxt", "1/serving.json", "1/tokenizer/tokenizer.json"}


def test_other_kinds_hold_their_engine(tmp_path: Path, engine: Path, models: Path) -> None:
    write_release(tmp_path / "artifact", ServingSettings("llamacpp", "engine/model.gguf", 8, 512, True, 60.0))
    place_release(tmp_path / "artifact", engine, models, "m", 1, grpc="")
    assert placed_models(models, "m", 1) == ("m--r1--llm", "m--r1")
    assert {"1/engine/rank0.engine", "1/engine/tokenizer/tokenizer.json"} <= files(models / "m--r1--llm")
    assert parse_config((models / "m--r1--llm/config.pbtxt").read_text()).parameters == {}


@pytest.mark.parametrize(
    ("slots", "cores", "processes"), [(256, 16, 8), (256, 2, 1), (96, 16, 3), (8, 64, 1), (999, 64, 8)]
)
def test_a_node_chooses_the_processes_of_llm(slots: int, cores: int, processes: int) -> None:
    assert chosen_processes(slots, cores) == processes


@pytest.mark.parametrize(("instances", "found"), [(None, 4), (1, 1), (3, 3)])
def test_a_node_chooses_only_where_the_release_leaves_it(
    tmp_path: Path, engine: Path, models: Path, instances: int | None, found: int
) -> None:
    config = tensorrt_llm_config(
        Version("0.19.0"), TensorRtServing(), engine_folder="engine", max_batch_size=128, kv_cache_tokens=4096
    )
    settings = ServingSettings("tensorrt_llm", "tokenizer", 128, 512, True, 60.0, tensorrt_llm="0.19.0")
    artifact = tmp_path / "artifact"
    write_release(artifact, settings, instances=instances, tensorrt_llm=config)
    written = (artifact / "llm/config.pbtxt").read_text()
    place_release(artifact, engine, models, "m", 7, grpc="127.0.0.1:1", cores=8)
    placed = parse_config((models / "m--r7--llm/config.pbtxt").read_text())
    assert placed.instance_group[0].count == found
    assert (artifact / "llm/config.pbtxt").read_text() == written


def test_a_release_of_an_earlier_enginehouse_keeps_its_one_process(tmp_path: Path, engine: Path, models: Path) -> None:
    artifact = tmp_path / "artifact"
    write_release(artifact, ServingSettings("tensorrt_llm", "tokenizer", 256, 512, True, 60.0))
    for instances, tickets in ((1, True), (2, False)):
        (artifact / "llm/config.pbtxt").write_text(llm_config(instances=instances, tickets=tickets))
        place_release(artifact, engine, models, "m", instances, grpc="", cores=64)
        placed = parse_config((models / f"m--r{instances}--llm/config.pbtxt").read_text())
        assert placed.instance_group[0].count == instances


def test_the_cores_of_a_container_are_those_that_it_may_use(tmp_path: Path) -> None:
    limit, all_cores = tmp_path / "cpu.max", len(os.sched_getaffinity(0))
    for text, cores in (("max 100000", all_cores), ("100000 100000", 1), ("50000 100000", 1), ("odd", all_cores)):
        limit.write_text(text + "\n")
        assert own_cores(limit) == cores
    assert own_cores(tmp_path / "none") == all_cores


def test_a_release_that_was_not_placed_to_the_end_is_none(tmp_path: Path, engine: Path, models: Path) -> None:
    write_release(tmp_path / "artifact", ServingSettings("llamacpp", "engine/model.gguf", 8, 512, True, 60.0))
    place_release(tmp_path / "artifact", engine, models, "m", 1, grpc="")
    (models / "m--r1").rename(tmp_path / "gone")
    assert placed_models(models, "m", 1) == ()
    place_release(tmp_path / "artifact", engine, models, "m", 1, grpc="")
    assert placed_models(models, "m", 1) == ("m--r1--llm", "m--r1")
    assert placed_models(models, "m", 2) == ()
