"""Kind `trt-engine` through the whole flow, with the stand-in toolchain on a build worker of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from tasks.store.artifact import ArtifactRef
from tasks.trtllm.images import known_report
from tests.flows.build_worker import POOL, PRODUCT, register, worker
from tests.processes import processes_that, processes_with
from tests.standin import weights
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

STEPS = ("fetch", "convert", "build", "upload")


@pytest.fixture
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Weights of this test alone: models with the same ones share all that is made of them."""
    return weights.make(tmp_path / "llama", seed=request.node.name)


@pytest.fixture(scope="module")
def pool(house: House) -> str:
    register()
    return POOL


@pytest.fixture
def built(house: House) -> Iterator[Any]:
    """Makes a model's file, removed at the end."""
    made: list[Path] = []

    def make(name: str, source: Path, version: str, **recipe: Any) -> str:
        limits = {"max_batch_size": 4, "max_input_len": 64, "max_seq_len": 128, "max_num_tokens": 128}
        runtime = {"tensorrt_llm": version, "gpu": PRODUCT, "arch": "sm90", "gpus": 4, **recipe.pop("runtime", {})}
        document = {
            "name": name,
            "source": {"uri": f"file://{source}"},
            "recipe": {"kind": "trt-engine", "runtime": runtime, **limits, **recipe},
            "prompts": [{"name": "count", "text": "Count to nine.", "max_tokens": 8, "expect": {"min_tokens": 1}}],
        }
        path = house.catalogue / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        made.append(path)
        return name

    yield make
    for path in made:
        path.unlink()


def rebuild(house: House, name: str, *arguments: str, code: int = 0) -> dict[str, Any]:
    return house.rebuild(name, "--until", "upload", *arguments, code=code)


def states(report: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in report["steps"]}


@pytest.mark.parametrize(
    "version", ["0.8.0", *(pytest.param(each, marks=pytest.mark.long) for each in ("0.12.0", "1.2.1"))]
)
def test_engines_of_one_and_four_gpus(
    house: House, pool: str, source: Path, built: Any, tmp_path: Path, version: str
) -> None:
    with worker(house, tmp_path, version):
        for size in (1, 4):
            name = built(f"tiny-{size}", source, version, tp_size=size)
            report = rebuild(house, name)
            assert report["state"] == "built" and report["release"] is None
            assert states(report)["convert"] == states(report)["build"] == states(report)["upload"] == "Completed"
            engine = house.store.need(ArtifactRef.parse(report["steps"][-1]["artifact"]))
            paths = {file.path for file in engine.manifest.files}
            assert {"config.json", "limits.json", "tokenizer/tokenizer.json"} <= paths
            ranks = {path for path in paths if path.endswith(".engine")}
            assert ranks == {f"rank{rank}.engine" for rank in range(size)}
            config = json.loads(house.store.read(engine, "config.json"))
            assert config["version"] == version and config["pretrained_config"]["mapping"]["tp_size"] == size
            runtime = engine.manifest.producer.runtime
            assert runtime["tensorrt_llm"] == version and runtime["gpu"] == PRODUCT and runtime["driver"]
            assert engine.manifest.identity["fields"]["runtime"]["gpu"] == PRODUCT  # pyright: ignore
            assert states(rebuild(house, name)) == {"resolve": "Completed", **dict.fromkeys(STEPS, "Cached")}
    caches = {entry.key.split("/")[1] for entry in house.store.bucket.list("timing-caches/")}
    # 0.8 leaves none.
    assert version == "0.8.0" or engine.manifest.producer.runtime["tensorrt"] in caches


# Beside Llama's: the config of the weights, and the recipe.
OTHERS: dict[str, list[tuple[str, dict[str, Any], dict[str, Any]]]] = {
    "0.12.0": [
        ("Qwen2ForCausalLM", {"model_type": "qwen2"}, {}),
        (
            "MixtralForCausalLM",
            {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
            {"tp_size": 2, "moe_tp_size": 1, "moe_ep_size": 2},
        ),
    ],
    "0.16.0": [("Gemma2ForCausalLM", {"model_type": "gemma2", "query_pre_attn_scalar": 256}, {"tp_size": 2})],
    "1.2.1": [("Qwen2ForCausalLM", {"model_type": "qwen2"}, {"architecture": "Qwen2ForCausalLM"})],
}


@pytest.mark.long
@pytest.mark.parametrize("version", OTHERS)
def test_engines_of_other_architectures(house: House, pool: str, built: Any, tmp_path: Path, version: str) -> None:
    with worker(house, tmp_path, version):
        for architecture, config, recipe in OTHERS[version]:
            name = f"tiny-{config['model_type']}-{version.replace('.', '-')}"
            source = weights.make(tmp_path / name, seed=name, architectures=[architecture], **config)
            report = rebuild(house, built(name, source, version, **recipe))
            assert report["state"] == "built"
            engine = house.store.need(ArtifactRef.parse(report["steps"][-1]["artifact"]))
            found = json.loads(house.store.read(engine, "config.json"))["pretrained_config"]
            assert found["architecture"] == architecture
            assert found["mapping"].get("moe_ep_size", 1) == recipe.get("moe_ep_size", 1)


@pytest.mark.long
def test_weights_that_are_quantized_already(house: House, pool: str, built: Any, tmp_path: Path) -> None:
    source = weights.make(tmp_path / "gptq", shards=1, torch_dtype="float16", quantization_config=weights.GPTQ)
    refused = rebuild(house, built("tiny-twice", source, "0.12.0", quantization="int8_wo"), code=2)
    assert refused["error"]["code"] == "weights-quantized" and "fetch" not in states(refused)
    name = built("tiny-gptq", source, "0.12.0", dtype="float16")
    with worker(house, tmp_path, "0.12.0"):
        report = rebuild(house, name)
    engine = house.store.need(ArtifactRef.parse(report["steps"][-1]["artifact"]))
    config = json.loads(house.store.read(engine, "config.json"))
    assert config["pretrained_config"]["quantization"]["quant_algo"] == "W4A16_GPTQ"
    # An undivisible model is an error of its plan, before anything is fetched.
    report = rebuild(house, built("tiny-thirds", source, "0.12.0", dtype="float16", tp_size=3), code=2)
    assert report["error"]["code"] == "weights-unfit" and "fetch" not in states(report)


@pytest.mark.long
def test_a_known_failure_reaches_the_user(house: House, pool: str, source: Path, built: Any, tmp_path: Path) -> None:
    name = built("tiny-failing", source, "0.12.0", max_batch_size=5)
    with worker(house, tmp_path, "0.12.0") as made:
        made.fail("gpu-memory", "trtllm-build")
        report = rebuild(house, name, code=1)
        assert report["error"]["code"] == "gpu-memory" and "max_batch_size" in report["error"]["hint"]
        # Nothing was uploaded, and nobody tried again what cannot succeed.
        assert states(report)["convert"] == "Completed" and states(report)["build"] == "Failed"
        assert "upload" not in states(report)
        made.fail("")
        again = rebuild(house, name)
        assert again["state"] == "built" and states(again)["convert"] == "Cached"


@pytest.mark.long
def test_a_worker_of_another_version_refuses(house: House, pool: str, source: Path, built: Any, tmp_path: Path) -> None:
    name = built("tiny-other", source, "0.11.0")
    with worker(house, tmp_path, "0.12.0"):
        report = rebuild(house, name, code=1)
    assert report["error"]["code"] == "version-mismatch"


@pytest.mark.long
def test_what_a_worker_reports_of_its_image_is_planned_with(
    house: House, pool: str, source: Path, built: Any, tmp_path: Path
) -> None:
    digest = "sha256:" + "ab" * 32
    name = built("tiny-image", source, "0.8.0", runtime={"image": f"some/image@{digest}"})
    with worker(house, tmp_path, "0.8.0", digest):
        reports = [rebuild(house, name) for _ in range(3)]
    reported = known_report(house.store.bucket, digest)
    assert reported is not None and reported.tensorrt == "9.2.0.post12.dev5"
    engines = [house.store.need(ArtifactRef.parse(report["steps"][-1]["artifact"])) for report in reports]
    planned = [engine.manifest.identity["fields"]["runtime"]["tensorrt"] for engine in engines]  # pyright: ignore
    assert planned == ["9.2.0", reported.tensorrt, reported.tensorrt]
    assert states(reports[1])["convert"] == states(reports[2])["build"] == "Cached"


def tools(folder: Path) -> list[psutil.Process]:
    """Processes of the toolchain below `folder`."""
    return processes_with(str(folder / "image"))


@pytest.mark.long
def test_no_tool_outlives_the_flow(house: House, pool: str, source: Path, built: Any, tmp_path: Path) -> None:
    name = built("tiny-killed", source, "0.12.0", tp_size=4, max_batch_size=6)
    with worker(house, tmp_path, "0.12.0") as made:
        made.fail("hang-workers", "trtllm-build")
        running = house.start("rebuild", name, "--until", "upload", "--json")
        house.wait(lambda: len(tools(tmp_path)) >= 5, 120, "build with four workers")
        flow = processes_that(
            lambda process: (
                "prefect.engine" in " ".join(process.cmdline())
                and process.environ().get("ENGINEHOUSE_TOOLCHAIN") == made.setting
            )
        )[0]
        flow.kill()
        house.wait(lambda: not tools(tmp_path), 5, "end of the toolchain's processes")
        made.fail("")
        output, errors = running.communicate(timeout=240 * PATIENCE)
        assert running.returncode == 0, errors
        assert json.loads(output)["state"] == "built"
