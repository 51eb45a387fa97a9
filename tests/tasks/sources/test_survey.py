"""The facts of a source through each scheme, before anything large is fetched."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import SourceError
from tasks.models.spec import Source
from tasks.serving.generation import GenerationConfig
from tasks.sources.dispatch import resolve
from tasks.sources.resolved import Access
from tasks.sources.survey import survey, survey_source
from tasks.weights.facts import WeightsFacts
from tests.tasks.weights.configs import GEMMA_3_4B, LLAMA_3_1_8B, text

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from tests.tasks.sources.hub_server import Hub

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"


@pytest.fixture
def files(safetensors: Callable[..., bytes]) -> dict[str, bytes]:
    index = {"weight_map": dict(zip("ab", SHARDS, strict=True))}
    return {
        "config.json": text(LLAMA_3_1_8B),
        "hf_quant_config.json": json.dumps({"quantization": {"quant_algo": "FP8"}}).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"chat_template": "{{ messages }}"}',
        "generation_config.json": b'{"eos_token_id": [1, 107], "temperature": 0.6}',
        **dict.fromkeys(SHARDS, safetensors(elements=300_000)),
    }


def put(folder: Path, files: dict[str, bytes]) -> Source:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return Source(uri=f"file://{folder}")


def both_ways(source: Source, access: Access) -> WeightsFacts | None:
    """As a rebuild asks, which has resolved the source, and as a plan does."""
    found = survey(resolve(source, access), access)
    assert found == survey_source(source, access)
    return found


def check(found: WeightsFacts | None, files: dict[str, bytes]) -> None:
    assert found is not None and (found.architecture, found.layers) == ("LlamaForCausalLM", 32)
    assert str(found.quantization) == "modelopt (FP8)"
    assert found.bytes == 2 * len(files[SHARDS[0]])
    assert found.has_template and found.generation == GenerationConfig((1, 107), {"temperature": 0.6})


def test_a_hub_is_asked_for_small_files_alone(hub: Hub, files: dict[str, bytes]) -> None:
    hub.push("org/model", files)
    check(both_ways(Source(uri="hf://org/model@main"), Access(hub_endpoint=hub.url)), files)
    asked = {request.path.rpartition("/")[2] for request in hub.downloads()}
    small = {"hf_quant_config.json", "model.safetensors.index.json", "tokenizer_config.json", "generation_config.json"}
    assert asked == {"config.json", *small}


def test_a_bucket(s3: S3Client, files: dict[str, bytes]) -> None:
    bucket = f"survey-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=bucket)
    for name, content in files.items():
        s3.put_object(Bucket=bucket, Key=f"tuned/{name}", Body=content)
    check(both_ways(Source(uri=f"s3://{bucket}/tuned"), Access(s3=s3)), files)


def test_a_folder_whose_weights_a_plan_does_not_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    source = put(tmp_path, files)
    check(both_ways(source, Access()), files)
    with (tmp_path / SHARDS[0]).open("r+b") as shard:
        shard.truncate(2**42)  # a hole: nobody could read it in time
    found = survey_source(source)
    assert found is not None and found.bytes == 2**42 + len(files[SHARDS[1]])


def test_sources_without_a_config(tmp_path: Path, files: dict[str, bytes], gguf: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(gguf)
    assert both_ways(Source(uri=f"file://{tmp_path}/model.gguf"), Access()) is None
    narrow = put(tmp_path / "more", files).model_copy(update={"include": ("*.safetensors",)})
    assert both_ways(narrow, Access()) is None
    wheel = Source(uri="pip://some@1.0/model/config.json", sha256="ab" * 32)
    assert survey_source(wheel) is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({SHARDS[1]: POINTER}, "lfs-pointer"),
        ({"config.json": POINTER}, "lfs-pointer"),
        ({"config.json": b"{}"}, "config-unreadable"),
        ({SHARDS[1]: None}, "shards-missing"),
        ({"generation_config.json": b'{"top_p": 7}'}, "generation-unfit"),
    ],
)
def test_what_is_wrong_is_found_before_the_fetch(
    tmp_path: Path, files: dict[str, bytes], changes: dict[str, bytes | None], code: str
) -> None:
    changed = {name: content for name, content in (files | changes).items() if content is not None}
    source = put(tmp_path, changed)
    with pytest.raises(SourceError) as planned:
        survey_source(source)
    with pytest.raises(SourceError) as rebuilt:
        survey(resolve(source))
    assert planned.value.code == rebuilt.value.code == code and planned.value.hint


def test_a_model_of_several_parts(tmp_path: Path, safetensors: Callable[..., bytes]) -> None:
    found = both_ways(put(tmp_path, {"config.json": text(GEMMA_3_4B), "model.safetensors": safetensors()}), Access())
    assert found is not None and (found.model_type, found.heads) == ("gemma3_text", 8)
    assert found.has_template is False and found.generation == GenerationConfig()
