"""Kind `trt-engine` with the stand-in toolchain, without a flow: what its steps leave, and how they fail."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import pytest

from infra.errors import EnginehouseError, SettingsError, StepFailed, StoreUnavailable
from infra.s3.bucket import Bucket
from tasks.kinds.protocol import EngineKind
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.models.spec import Model
from tasks.serving.settings import ServingSettings
from tasks.steps.assemble import assemble
from tasks.steps.build import build
from tasks.steps.context import Context
from tasks.steps.convert import convert
from tasks.steps.plan import Plan
from tasks.steps.upload import upload
from tasks.steps.workspace import Workspace
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.store.reporter import Peak, Reporter
from tasks.triton.protobuf import parse_config
from tasks.trtllm.kv_cache import WORKSPACE_BYTES
from tasks.trtllm.limits import EngineLimits, engine_limits
from tests.standin import toolchain, weights

PRODUCT = "NVIDIA H100 80GB HBM3"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    return weights.make(tmp_path / "snapshot")


def model(version: str, **recipe: Any) -> Model:
    limits = {"max_batch_size": 4, "max_input_len": 64, "max_seq_len": 128, "max_num_tokens": 128}
    runtime = {"tensorrt_llm": version, "gpu": PRODUCT, "arch": "sm90", "gpus": 4, **recipe.pop("runtime", {})}
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://some/llama@main"},
            "recipe": {"kind": "trt-engine", "runtime": runtime, **limits, **recipe},
            "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, **changes: Any) -> toolchain.Toolchain:
    made = toolchain.make(tmp_path / "image", version, **changes)
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", made.setting)
    return made


def make(made_for: Model, snapshot: Path, tmp_path: Path, lines: list[str] | None = None) -> Path:
    """Convert and build in folders of their own; the engine's folder."""
    folders = [tmp_path / name for name in ("checkpoint", "engine", "scratch")]
    for folder in folders:
        folder.mkdir()
    checkpoint, engine, scratch = folders
    reporter = Reporter(say=(lines if lines is not None else list[str]()).append)
    TrtEngineKind(made_for).convert(snapshot, None, checkpoint, scratch, reporter)
    TrtEngineKind(made_for).build(checkpoint, engine, scratch, reporter)
    return engine


@pytest.mark.parametrize("version", ["0.8.0", "0.9.0", "0.11.0", "0.13.0", "0.16.0", "0.19.0", "0.20.0", "1.2.1"])
def test_every_version_makes_an_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Path, version: str
) -> None:
    image(tmp_path, monkeypatch, version)
    lines: list[str] = []
    engine = make(model(version, tp_size=2, pp_size=2), snapshot, tmp_path, lines)
    assert {path.name for path in engine.glob("rank*")} == {f"rank{rank}.engine" for rank in range(4)}
    limits = EngineLimits.from_json((engine / "limits.json").read_text())
    # A GPU has one of 2 layers, with 2 of 4 heads of 8 numbers of 2 bytes, keys and values.
    assert limits.cache_bytes_per_token == 2 * 1 * 2 * 8 * 2
    assert limits.weight_bytes == max(path.stat().st_size for path in engine.glob("rank*"))
    assert (limits.max_batch_size, limits.max_input_len, limits.max_seq_len, limits.max_beam_width) == (4, 64, 128, 1)
    assert limits.paged_kv_cache and limits.tokens_per_block == 64
    assert limits.max_num_tokens is None and engine_limits(engine).max_num_tokens == 128
    assert (engine / "tokenizer" / "tokenizer.json").is_file()
    assert any("Total time of building all engines" in line for line in lines)


@pytest.mark.parametrize(
    ("version", "quantization", "algorithm"),
    [
        ("0.8.0", "int8_wo", "W8A16"),
        ("0.12.0", "fp8_rowwise", "FP8_PER_CHANNEL_PER_TOKEN"),
        ("1.2.1", "int4_wo", "W4A16"),
    ],
)
def test_quantized_by_the_weights_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Path, version: str, quantization: str, algorithm: str
) -> None:
    image(tmp_path, monkeypatch, version)
    engine = make(model(version, quantization=quantization), snapshot, tmp_path)
    config = json.loads((engine / "config.json").read_text())
    assert config["pretrained_config"]["quantization"]["quant_algo"] == algorithm


# The words of its option differ, up to 0.12 it names one file, and from 0.16 on there is none.
@pytest.mark.parametrize(("version", "shards"), [("0.8.0", 1), ("0.12.0", 1), ("0.15.0", 2), ("0.16.0", 2)])
def test_weights_that_are_quantized_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, shards: int
) -> None:
    snapshot = weights.make(
        tmp_path / "snapshot", shards=shards, torch_dtype="float16", quantization_config=weights.GPTQ
    )
    image(tmp_path, monkeypatch, version)
    engine = make(model(version, dtype="float16"), snapshot, tmp_path)
    quantization = json.loads((engine / "config.json").read_text())["pretrained_config"]["quantization"]
    assert quantization["quant_algo"] == "W4A16_GPTQ" and quantization["group_size"] == 32


@pytest.mark.parametrize(
    ("failure", "version", "code"),
    [
        ("convert_checkpoint.py:host-memory", "0.12.0", "host-memory"),
        ("trtllm-build:host-memory", "0.12.0", "host-memory"),
        ("trtllm-build:gpu-memory", "0.9.0", "gpu-memory"),
        ("trtllm-build:gpu-memory", "0.10.0", "gpu-memory"),
        ("trtllm-build:gpu-memory", "0.12.0", "gpu-memory"),
        ("trtllm-build:gpu-memory", "1.2.1", "gpu-memory"),
        ("run.py:gpu-memory", "0.16.0", "gpu-memory"),
        ("run.py:world-size", "0.8.0", "world-size"),
        ("run.py:world-size", "1.2.1", "world-size"),
        ("run.py:version", "0.12.0", "version-mismatch"),
        ("run.py:architecture", "0.12.0", "architecture-wrong"),
        ("convert_checkpoint.py:script-mismatch", "0.12.0", "script-mismatch"),
        ("trtllm-build:empty-rank", "0.12.0", "engine-unfit"),
        ("trtllm-build:wrong-config", "0.12.0", "engine-unfit"),
        ("run.py:silent-answer", "0.12.0", "engine-silent"),
    ],
)
def test_failures_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Path, failure: str, version: str, code: str
) -> None:
    tool, _, name = failure.partition(":")
    image(tmp_path, monkeypatch, version).fail(name, tool)
    with pytest.raises(StepFailed) as caught:
        make(model(version), snapshot, tmp_path)
    assert caught.value.code == code and caught.value.hint and not caught.value.retryable


def test_a_pointer_instead_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Path) -> None:
    image(tmp_path, monkeypatch, "0.12.0")
    weight = next(snapshot.glob("*.safetensors"))
    weight.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 4976698672\n")
    with pytest.raises(StepFailed) as caught:
        make(model("0.12.0"), snapshot, tmp_path)
    assert caught.value.code == "lfs-pointer"


@pytest.mark.parametrize(
    ("installed", "changes", "code", "facts"),
    [
        ("0.12.0", {"gpus": 0}, "runtime-differs", ("no GPU",)),
        ("0.12.0", {"architecture": "sm89"}, "runtime-differs", ("sm89", "sm90")),
        ("0.11.0", {}, "version-mismatch", ("0.11.0", "0.12.0")),
    ],
)
def test_another_worker_than_planned_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: str,
    changes: dict[str, Any],
    code: str,
    facts: tuple[str, ...],
) -> None:
    image(tmp_path, monkeypatch, installed, **changes)
    with pytest.raises(EnginehouseError) as caught:
        TrtEngineKind(model("0.12.0")).require_worker()
    assert caught.value.code == code and all(fact in caught.value.message for fact in facts)


def test_another_tensorrt_must_be_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path, monkeypatch, "0.12.0")
    TrtEngineKind(model("0.12.0")).require_worker()
    TrtEngineKind(model("0.12.0", runtime={"tensorrt": "10.3"})).require_worker()
    with pytest.raises(StepFailed) as caught:
        TrtEngineKind(model("0.12.0", runtime={"tensorrt": "10.4.0"})).require_worker()
    assert caught.value.code == "runtime-differs" and "10.4.0" in caught.value.message


def test_no_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", f"local:{tmp_path}/none/python3")
    with pytest.raises(SettingsError) as caught:
        TrtEngineKind(model("0.12.0")).require_worker()
    assert caught.value.code == "toolchain-missing"


def test_identities_hold_what_changes_the_output_and_no_more() -> None:
    snapshot = Identity({"source": "some"})

    def identities(version: str = "0.12.0", **recipe: Any) -> tuple[str, str]:
        plan = Plan.of(model(version, **recipe), snapshot)
        return plan.checkpoint.digest, plan.engine.digest

    checkpoint, engine = identities()
    assert identities(max_batch_size=8)[0] == checkpoint and identities(max_batch_size=8)[1] != engine
    assert identities(dtype="float16")[0] != checkpoint
    assert identities("0.13.0")[0] != checkpoint
    assert identities(runtime={"gpu": "NVIDIA H200"}) == (checkpoint, identities(runtime={"gpu": "NVIDIA H200"})[1])
    assert identities(runtime={"gpu": "NVIDIA H200"})[1] != engine
    portable = [identities(portable=True, runtime={"gpu": gpu})[1] for gpu in (PRODUCT, "NVIDIA H200")]
    assert portable[0] == portable[1]
    # More GPUs in the server, or a calibration that nobody uses, change nothing.
    assert identities(runtime={"gpus": 8}) == identities(calibration={"size": 7}) == (checkpoint, engine)
    assert identities(quantization="fp8", calibration={"size": 7}) != identities(quantization="fp8")


def test_the_identity_of_a_repository_is_what_serves() -> None:
    snapshot = Identity({"source": "some"})

    def identity(version: str = "0.19.0", runtime: dict[str, Any] | None = None, **serving: Any) -> str:
        made = model(version, portable=True, runtime=runtime or {})
        served = {**made.model_dump(by_alias=True), "serving": serving}
        return Plan.of(Model.model_validate(served), snapshot).repository.digest

    same = identity()
    assert identity(tensorrt_llm={}) == identity(tensorrt_llm={"bls_instances": 3}) == same
    assert identity(runtime={"gpu": "NVIDIA H100 PCIe"}) == same  # as much memory
    assert identity(runtime={"gpu": "NVIDIA H200"}) != same
    assert identity(tensorrt_llm={"kv_cache_tokens": 4096}) != same
    assert identity(slots=4) != same


def test_the_timing_cache_comes_from_the_store_and_goes_back(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Path
) -> None:
    image(tmp_path, monkeypatch, "0.12.0")
    key = "timing-caches/10.3.0/nvidia-h100-80gb-hbm3.cache"
    store = ArtifactStore(bucket)
    (snapshot / "generation_config.json").write_text('{"eos_token_id": [1, 2], "temperature": 0.6}')
    for size in (4, 8):
        plan = Plan.of(model("0.12.0", max_batch_size=size), Identity({"source": "some"}))
        context = Context(store, Workspace(tmp_path / f"work-{size}"), "", 5.0)
        if size == 4:
            store.publish(
                plan.snapshots["snapshot"], plan.snapshot, snapshot, inputs={}, producer=context.producer("fetch")
            )
        convert(context, plan)
        build(context, plan)
        kept = bucket.get(key)
        assert kept is not None
        done = upload(context, plan)
        assert done.artifact is not None
        producer = done.artifact.manifest.producer
        assert producer.task == "build" and producer.runtime["tensorrt"] == "10.3.0"
        if size == 4:
            bucket.replace(key, b"of another build", kept.etag)
        made = assemble(context, plan).artifact
        assert made is not None and made.manifest.inputs == {"engine": str(plan.engine_ref)}
        paths = {file.path for file in made.manifest.files}
        assert {f"{name}/config.pbtxt" for name in ("tensorrt_llm", "llm", "release")} <= paths
        # Slots for 4 or 8 requests of 128 tokens each, of which the context of 2048 is cut.
        # Those of the weights, which the engine has kept.
        assert ServingSettings.from_json(store.read(made, "llm/1/serving.json").decode()).sampling.temperature == 0.6
        config = parse_config(store.read(made, "tensorrt_llm/config.pbtxt").decode())
        assert config.parameters["max_tokens_in_paged_kv_cache"].string_value == str(128 * size)
        assert config.parameters["gpt_model_path"].string_value == "engine"
        memory = TrtEngineKind(plan.model).memory_bytes(0, store.read(done.artifact, "limits.json"))
        # 2 layers with 4 heads of 8 numbers of 2 bytes, keys and values.
        assert memory > WORKSPACE_BYTES + 128 * size * (2 * 2 * 4 * 8 * 2)
    # The second build got what lay in the store and left its own there.
    assert kept is not None and kept.body != b"of another build"


def test_a_store_that_is_away_for_the_timing_cache_costs_no_build(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Path
) -> None:
    image(tmp_path, monkeypatch, "0.12.0")
    plan = Plan.of(model("0.12.0"), Identity({"source": "some"}))
    context = Context(ArtifactStore(bucket), Workspace(tmp_path / "work"), "", 5.0)
    context.store.publish(
        plan.snapshots["snapshot"], plan.snapshot, snapshot, inputs={}, producer=context.producer("fetch")
    )
    convert(context, plan)
    refused: list[str] = []

    def away(self: Bucket, key: str, body: bytes) -> str:
        refused.append(key)
        raise StoreUnavailable(f"S3 answered 503 for '{key}'")

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "create", away)
        build(context, plan)
    assert [key.split("/")[0] for key in refused] == ["timing-caches"]
    assert upload(context, plan).artifact is not None


class Measured(TrtEngineKind):
    """Converts, and reports memory of a GPU: this machine has none, and a tool may end before the first sample."""

    def convert(
        self,
        snapshot: Path,
        adapter: Path | None,
        output: Path,
        scratch: Path,
        reporter: Reporter,
        draft: Path | None = None,
    ) -> Peak:
        super().convert(snapshot, adapter, output, scratch, reporter, draft)
        return Peak(gpu_bytes=7 << 30)


class Idle(TrtEngineKind):
    """Finds the checkpoint of the first try, and need not convert."""

    def convert(
        self,
        snapshot: Path,
        adapter: Path | None,
        output: Path,
        scratch: Path,
        reporter: Reporter,
        draft: Path | None = None,
    ) -> Peak:
        raise AssertionError("the checkpoint of the first try was not found")


class FirstTry(Plan):
    @cached_property
    def kind(self) -> EngineKind:
        return Measured(self.model)


class SecondTry(Plan):
    @cached_property
    def kind(self) -> EngineKind:
        return Idle(self.model)


class NoUploads(ArtifactStore):
    """A store that answers questions and takes no files."""

    def publish(self, *arguments: object, **options: object) -> NoReturn:
        raise StoreUnavailable("S3 answered 503")


def test_an_upload_that_is_tried_again_keeps_what_the_tool_took(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Path
) -> None:
    image(tmp_path, monkeypatch, "0.12.0")
    plan = FirstTry.of(model("0.12.0"), Identity({"source": "some"}))
    context = Context(ArtifactStore(bucket), Workspace(tmp_path / "work"), "", 5.0)
    context.store.publish(
        plan.snapshots["snapshot"], plan.snapshot, snapshot, inputs={}, producer=context.producer("fetch")
    )
    with pytest.raises(StoreUnavailable):
        convert(replace(context, store=NoUploads(bucket)), plan)
    done = convert(context, SecondTry.of(plan.model, plan.snapshot))
    assert done.artifact is not None
    producer = done.artifact.manifest.producer
    assert (producer.task, producer.peak_gpu_bytes) == ("convert", 7 << 30) and producer.runtime["driver"]
