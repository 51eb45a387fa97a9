"""The facts of a source through each scheme, before anything large is fetched."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from infra.errors import SourceError
from tasks.models.source import Source
from tasks.serving.generation import GenerationConfig
from tasks.sources.contents import LARGEST_JSON_BYTES
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


def both_ways(source: Source, access: Access) -> WeightsFacts:
    """As a rebuild asks, which has resolved the source, and as a plan does."""
    found = survey(resolve(source, access), access)
    assert found == survey_source(source, access)
    return found


def check(found: WeightsFacts, files: dict[str, bytes]) -> None:
    assert (found.architecture, found.layers) == ("LlamaForCausalLM", 32)
    assert str(found.quantization) == "modelopt (FP8)"
    assert found is not None and found.bytes == 2 * len(files[SHARDS[0]])
    assert found.has_template and found.generation == GenerationConfig((1, 107), {"temperature": 0.6})


def test_a_hub_is_asked_for_small_files_alone(hub: Hub, files: dict[str, bytes]) -> None:
    hub.push("org/model", files)
    check(both_ways(Source(uri="hf://org/model@main"), Access(hub_endpoint=hub.url)), files)
    asked = {request.path.rpartition("/")[2] for request in hub.downloads()}
    small = {"hf_quant_config.json", "model.safetensors.index.json", "tokenizer_config.json", "generation_config.json"}
    # A tokenizer of two bytes could be a pointer.
    assert asked == {"config.json", "tokenizer.json", *small}


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


def refused(source: Source) -> SourceError:
    """The same for a rebuild and for a plan."""
    with pytest.raises(SourceError) as planned:
        survey_source(source)
    with pytest.raises(SourceError) as rebuilt:
        survey(resolve(source))
    assert planned.value.code == rebuilt.value.code and planned.value.hint
    assert planned.value.message == rebuilt.value.message and planned.value.message.startswith(f"{source.uri}: ")
    return planned.value


def test_sources_that_are_no_weights_with_their_config(tmp_path: Path, files: dict[str, bytes], gguf: bytes) -> None:
    folder = put(tmp_path / "one", {"config.json": files["config.json"], "model.gguf": gguf})
    for source in (folder, Source(uri=f"{folder.uri}/model.gguf")):
        error = refused(source)
        assert error.code == "weights-missing" and "model.gguf" in error.message and "llamacpp" in error.hint
    bare = put(tmp_path / "bare", {name: files[name] for name in ("config.json", "tokenizer.json")})
    assert refused(bare).code == "weights-missing"
    narrow = put(tmp_path / "more", files).model_copy(update={"include": ("*.safetensors",)})
    assert refused(narrow).code == "config-unreadable"
    wheel = Source(uri="pip://some@1.0/model/config.json", sha256="ab" * 32)
    with pytest.raises(SourceError) as caught:
        survey_source(wheel)
    assert caught.value.code == "config-unreadable" and "one file" in caught.value.message


def test_a_config_that_nobody_reads_because_it_is_too_large(tmp_path: Path, files: dict[str, bytes]) -> None:
    source = put(tmp_path, files)
    with (tmp_path / "config.json").open("r+b") as config:
        config.truncate(LARGEST_JSON_BYTES + 1)
    assert refused(source).code == "config-unreadable"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({SHARDS[1]: POINTER}, "lfs-pointer"),
        ({"config.json": POINTER}, "lfs-pointer"),
        ({"config.json": b"{}"}, "config-unreadable"),
        ({"tokenizer.json": POINTER}, "lfs-pointer"),
        ({"config.json": b"[]"}, "config-unreadable"),
        ({SHARDS[1]: None}, "shards-missing"),
        ({SHARDS[1]: None, "model.safetensors.index.json": None}, "shards-missing"),
        ({"generation_config.json": b'{"top_p": 7}'}, "generation-unfit"),
        ({"generation_config.json": b'{"temperature": 1%s}' % (b"0" * 400)}, "generation-unfit"),
        ({"generation_config.json": b'{"eos_token_id": 4294967296}'}, "generation-unfit"),
    ],
)
def test_what_is_wrong_is_found_before_the_fetch(
    tmp_path: Path, files: dict[str, bytes], changes: dict[str, bytes | None], code: str
) -> None:
    changed = {name: content for name, content in (files | changes).items() if content is not None}
    assert refused(put(tmp_path, changed)).code == code


def test_a_model_of_several_parts(tmp_path: Path, safetensors: Callable[..., bytes]) -> None:
    found = both_ways(put(tmp_path, {"config.json": text(GEMMA_3_4B), "model.safetensors": safetensors()}), Access())
    assert (found.model_type, found.heads) == ("gemma3_text", 8)
    assert found.has_template is False and found.generation == GenerationConfig()
