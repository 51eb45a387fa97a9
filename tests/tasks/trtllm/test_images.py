"""What an image holds: reported by a stand-in toolchain, kept in a real store, planned with elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments.cli.main import main
from infra.errors import SettingsError, SpecError, StepFailed, UsageError
from infra.s3.bucket import Bucket
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.models.catalogue import load_model
from tasks.models.overrides import in_image, override
from tasks.models.spec import Model
from tasks.steps.plan import Plan
from tasks.store.identity import Identity
from tasks.trtllm.images import image_key, keep_report, known_report, reported_image
from tests.standin import docker, toolchain

DIGEST, OTHER = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
IMAGE = f"registry.example/tritonserver@{DIGEST}"
RUNTIME = {"container": DIGEST, "tensorrt_llm": "0.12.0", "tensorrt": "10.3.0.26", "gpu": "NVIDIA H100", "gpus": "8"}


def entry(version: str = "0.12.0", **runtime: Any) -> dict[str, Any]:
    hardware = {"gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 4}
    return {
        "name": "tiny",
        "source": {"uri": "hf://some/llama@main"},
        "recipe": {"kind": "trt-engine", "runtime": {"tensorrt_llm": version, **hardware, **runtime}},
        "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
    }


def model(version: str = "0.12.0", **runtime: Any) -> Model:
    return Model.model_validate(entry(version, **runtime))


@pytest.fixture
def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("ENGINEHOUSE_CATALOGUE", str(folder))
    return folder


@pytest.fixture
def store(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setenv("ENGINEHOUSE_STORE", f"s3://{bucket.name}/{bucket.prefix}")
    return bucket


def write(catalogue: Path, document: dict[str, Any]) -> None:
    (catalogue / "tiny.yaml").write_text(yaml.safe_dump(document))


def planned(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", "tiny", "--offline", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["runtime"]


def test_the_first_report_of_an_image_counts(bucket: Bucket) -> None:
    assert keep_report(bucket, {**RUNTIME, "container": ""}) is None
    first = keep_report(bucket, RUNTIME)
    assert first is not None and first == keep_report(bucket, {**RUNTIME, "gpus": "2"}) == known_report(bucket, DIGEST)
    record = bucket.get(f"toolchains/sha256-{'ab' * 32}.json")
    assert record is not None and "H100" not in record.body.decode()
    with pytest.raises(SettingsError) as caught:
        keep_report(bucket, {**RUNTIME, "tensorrt": "10.4.0", "torch": "2.4.0"})
    assert caught.value.code == "report-differs" and image_key(DIGEST) in caught.value.hint
    assert all(part in caught.value.message for part in ("tensorrt 10.4.0", "10.3.0.26", "torch 2.4.0"))
    assert known_report(bucket, DIGEST) == first and known_report(bucket, OTHER) is None


def test_a_report_is_planned_with_in_full(bucket: Bucket) -> None:
    keep_report(bucket, RUNTIME)
    for recipe in (model(image=IMAGE), model(image=IMAGE, tensorrt="10.3")):
        found = in_image(recipe, reported_image(bucket, recipe.recipe.planned_runtime))
        assert Model.model_validate(found.model_dump(mode="json", by_alias=True)) == found
        engine = Plan.of(found, Identity({})).engine
        assert engine.document["fields"]["runtime"]["tensorrt"] == "10.3.0.26"  # pyright: ignore
        assert engine == Plan.of(model(tensorrt="10.3.0.26"), Identity({})).engine
    for recipe in (model(), model(image=IMAGE.replace("ab", "ef"))):
        assert in_image(recipe, reported_image(bucket, recipe.recipe.planned_runtime)) is recipe


@pytest.mark.parametrize(
    ("version", "runtime", "field", "held"),
    [
        ("0.13.0", {}, "recipe.runtime.tensorrt_llm", "0.12.0"),
        ("0.12.0", {"tensorrt": "10.4"}, "recipe.runtime.tensorrt", "10.3.0.26"),
    ],
)
def test_a_recipe_that_its_image_contradicts(
    bucket: Bucket, version: str, runtime: dict[str, str], field: str, held: str
) -> None:
    with pytest.raises(UsageError) as caught:
        in_image(model(version, **runtime), keep_report(bucket, RUNTIME))
    assert caught.value.code == "version-mismatch" and "recipe.runtime.image" in caught.value.hint
    assert f"{field} is" in caught.value.message and held in caught.value.message


def test_an_image_is_named_by_digest_and_is_of_one_version(catalogue: Path) -> None:
    write(catalogue, entry(image="tritonserver:25.01-trtllm-python-py3"))
    with pytest.raises(SpecError) as caught:
        load_model(catalogue / "tiny.yaml")
    assert "recipe.runtime.image: " in caught.value.message
    moved = override(model(image=IMAGE, tensorrt="10.3.0"), tensorrt_llm="0.13.0").model.recipe.planned_runtime
    assert moved is not None and (moved.image, moved.tensorrt) == (None, None)


def test_a_worker_in_another_image_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", toolchain.make(tmp_path / "image", "0.12.0").setting)
    for digest in ("", DIGEST):
        monkeypatch.setenv("ENGINEHOUSE_CONTAINER_DIGEST", digest)
        # Each worker is a process of its own, which asks once.
        monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / digest))
        TrtEngineKind(model(image=IMAGE)).require_worker()
    monkeypatch.setenv("ENGINEHOUSE_HOME", str(tmp_path / OTHER))
    monkeypatch.setenv("ENGINEHOUSE_CONTAINER_DIGEST", OTHER)
    TrtEngineKind(model()).require_worker()
    with pytest.raises(StepFailed) as caught:
        TrtEngineKind(model(image=IMAGE)).require_worker()
    assert caught.value.code == "runtime-differs" and OTHER in caught.value.message and DIGEST in caught.value.message


def test_what_a_probe_finds_is_planned_with(
    store: Bucket,
    catalogue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(catalogue, entry("0.8.0", image=IMAGE))
    before = planned(capsys)
    assert (before["tensorrt"], before["assumed"], before["image"]) == ("9.2.0", True, IMAGE)
    made = toolchain.make(tmp_path / "image", "0.8.0")
    docker.put_in_path(tmp_path, monkeypatch, python=str(made.python), digests=[IMAGE], guarded=tmp_path / "models")
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", f"docker:{IMAGE}")
    assert main(["probe", "--json"]) == 0
    output, told = capsys.readouterr()
    report = json.loads(output)
    assert report["container_digest"] == DIGEST and len(report["gpus"]["gpus"]) == 4
    assert image_key(DIGEST[:19]) in told  # `--long` has all of it
    after = planned(capsys)
    assert (after["tensorrt"], after["assumed"]) == ("9.2.0.post12.dev5", False)
    assert main(["plan", "tiny", "--offline"]) == 0
    assert "TensorRT 9.2.0.post12.dev5 in" in " ".join(capsys.readouterr().out.split())

    # A worker in that image says the same of itself, and one that only claims to be it is told so.
    monkeypatch.setenv("ENGINEHOUSE_CONTAINER_DIGEST", DIGEST)
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", made.setting)
    assert main(["probe"]) == 0
    assert "NVIDIA H100 80GB HBM3 (sm90)" in capsys.readouterr().out
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", toolchain.make(tmp_path / "other", "0.9.0").setting)
    assert main(["probe"]) == 2
    assert "[report-differs]" in capsys.readouterr().err


def test_planning_and_probing_go_on_without_a_store(
    store: Bucket,
    catalogue: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ENGINEHOUSE_TOOLCHAIN", toolchain.make(tmp_path / "image", "0.12.0").setting)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    write(catalogue, entry(image=IMAGE))
    assert main(["plan", "tiny", "--offline"]) == 0
    output, told = capsys.readouterr()
    assert "(assumed)" in output and "[store-unavailable]: what an image holds is assumed" in told
    monkeypatch.setenv("ENGINEHOUSE_STORE", "")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # no embedded stack either
    monkeypatch.setenv("ENGINEHOUSE_CONTAINER_DIGEST", DIGEST)
    assert main(["plan", "tiny", "--offline"]) == main(["probe"]) == 0
    monkeypatch.setenv("ENGINEHOUSE_CONTAINER_DIGEST", "25.01-py3")
    assert main(["probe"]) == 2
