"""NVIDIA's templates filled, on templates of our own and, if ENGINEHOUSE_TEST_TEMPLATES is set, on theirs.

The variable names a folder with one folder a version: VERSION/inflight_batcher_llm, or VERSION as a checkout.
"""

from __future__ import annotations

import gzip
import io
import lzma
import os
import re
import shutil
import string
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from infra.errors import TemplateError, UsageError
from tasks.models.catalogue import load_model
from tasks.triton.protobuf import ModelConfig, data_type, parse_config
from tasks.triton.upstream import fill_upstream
from tasks.triton.upstream_templates import MODELS, ArchiveLimits, opened_templates
from tasks.triton.upstream_values import upstream_values
from tasks.trtllm.serving import LoraCache, TensorRtServing

CATALOGUE = Path(__file__).parents[3] / "deployments" / "models"
NOTICE = "# Copyright of whoever wrote it.\n# Keep this.\n"


def parameter(key: str, value: str) -> str:
    return f'parameters: {{\n  key: "{key}"\n  value: {{ string_value: "{value}" }}\n}}\n'


def small_templates() -> dict[str, str]:
    """What the five templates of 0.19 are made of, in small."""
    batch = "max_batch_size: ${triton_max_batch_size}\n"
    logits = 'output [ { name: "context_logits" data_type: ${logits_datatype} dims: [ -1 ] } ]\n'
    return {
        "preprocessing": 'name: "preprocessing"\nbackend: "python"\n'
        + batch
        + "instance_group [ { count: ${preprocessing_instance_count} kind: KIND_CPU } ]\n"
        + "dynamic_batching { default_queue_policy: { max_queue_size: ${max_queue_size} } }\n"
        + parameter("tokenizer_dir", "${tokenizer_dir}")
        + parameter("gpt_model_path", "${engine_dir}")
        + parameter("multimodal_model_path", "${multimodal_model_path}")
        + parameter("add_special_tokens", "${add_special_tokens}"),
        "postprocessing": 'name: "postprocessing"\nbackend: "python"\n'
        + batch
        + "instance_group [ { count: ${postprocessing_instance_count} kind: KIND_CPU } ]\n"
        + parameter("tokenizer_dir", "${tokenizer_dir}"),
        "tensorrt_llm": NOTICE
        + '\nname: "tensorrt_llm"\nbackend: "${triton_backend}"\n'
        + batch
        + "model_transaction_policy { decoupled: ${decoupled_mode} }\n"
        + "dynamic_batching { preferred_batch_size: [ ${triton_max_batch_size} ]\n"
        + "  max_queue_delay_microseconds: ${max_queue_delay_microseconds} }\n"
        + logits
        + '# parameters: { key: "old" value: { string_value: "${in_a_comment}" } }\n'
        + parameter("gpt_model_type", "${batching_strategy}")
        + parameter("gpt_model_path", "${engine_dir}")
        + parameter("max_beam_width", "${max_beam_width}")
        + parameter("medusa_choices", "${medusa_choices}")
        + parameter("multi_block_mode", "${multi_block_mode}")
        + parameter("tokenizer_dir", "${tokenizer_dir}")
        + parameter("guided_decoding_backend", "${guided_decoding_backend}")
        + parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "no"),
        "tensorrt_llm_bls": 'name: "tensorrt_llm_bls"\nbackend: "python"\n'
        + batch
        + "model_transaction_policy { decoupled: ${decoupled_mode} }\n"
        + "instance_group [ { count: ${bls_instance_count} kind : KIND_CPU } ]\n"
        + parameter("accumulate_tokens", "${accumulate_tokens}"),
        "ensemble": 'name: "ensemble"\nplatform: "ensemble"\n' + batch + logits,
    }


def write_templates(folder: Path, templates: Mapping[str, str] | None = None) -> Path:
    for model, text in (templates or small_templates()).items():
        (folder / model).mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text(text)
    return folder


def values_for(parameters: TensorRtServing, version: str) -> dict[str, dict[str, str]]:
    return upstream_values(parameters, version, engine_folder="/e", tokenizer_folder="/t", max_batch_size=64)


def small_values(**changed: dict[str, str]) -> dict[str, dict[str, str]]:
    return values_for(TensorRtServing(extra=changed), "0.19.0")


def filled(output: Path) -> dict[str, ModelConfig]:
    """The five configurations; every file must be free of placeholders and parse."""
    texts = {model: (output / model / "config.pbtxt").read_text() for model in MODELS}
    assert not [model for model, text in texts.items() if "${" in text]
    return {model: parse_config(text) for model, text in texts.items()}


def settings(config: ModelConfig) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def refused(code: str, templates: Path, values: Mapping[str, Mapping[str, str]], version: str = "0.19.0") -> str:
    """The message and hint of the refusal, which leaves nothing behind."""
    output = templates.parent / "out" / "models"
    with pytest.raises(TemplateError) as error:
        fill_upstream(templates, values, output, version)
    assert error.value.code == code
    assert error.value.hint
    assert not output.parent.exists() or not list(output.parent.iterdir())
    return f"{error.value.message} {error.value.hint}"


def test_bare_and_quoted_placeholders_are_filled(tmp_path: Path) -> None:
    fill_upstream(write_templates(tmp_path / "t"), small_values(), tmp_path / "out", "0.19.0")
    configs = filled(tmp_path / "out")
    assert {config.max_batch_size for config in configs.values()} == {64}
    engine = configs["tensorrt_llm"]
    assert engine.backend == "tensorrtllm"
    assert list(engine.dynamic_batching.preferred_batch_size) == [64]
    assert engine.output[0].data_type == data_type("FP32")
    assert settings(engine) == {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": "/e",
        "max_beam_width": "1",
        "tokenizer_dir": "/t",
        "guided_decoding_backend": "",  # its absence is fatal from 0.19 on
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
    }
    assert settings(configs["preprocessing"]) == {
        "tokenizer_dir": "/t",
        "gpt_model_path": "/e",
        "multimodal_model_path": "",  # likewise
    }
    assert (tmp_path / "out/tensorrt_llm/config.pbtxt").read_text().startswith(NOTICE)


@pytest.mark.parametrize(
    "value",
    [
        "0,1",
        "C:/a b/c:d",
        "back\\slash\\n",
        "says \"no\" and 'yes'",
        "{[0, 0], {1}}",
        "line\nline\ttab",
        "größer 模型 🙂",
        "$ and $name and $$",
        "",
        "# no comment",
    ],
)
def test_any_text_arrives_as_it_is(tmp_path: Path, value: str) -> None:
    values = small_values(tensorrt_llm={"medusa_choices": value})
    fill_upstream(write_templates(tmp_path / "t"), values, tmp_path / "out", "0.19.0")
    assert settings(filled(tmp_path / "out")["tensorrt_llm"])["medusa_choices"] == value


def test_an_unknown_key_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    templates = write_templates(tmp_path / "t")
    refusal = refused("template-unknown-key", templates, small_values(postprocessing={"tokenizer_type": "auto"}))
    assert "tokenizer_type" in refusal
    assert "postprocessing_instance_count, tokenizer_dir, triton_max_batch_size" in refusal
    # fill_template.py takes this one, to no effect.
    refused("template-unknown-key", templates, small_values(tensorrt_llm={"in_a_comment": "1"}))
    assert "tensorrt_llm_bls" in refused("template-unknown-key", templates, small_values(bls={"a": "1"}))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("tensorrt_llm", "engine_dir"),
        ("tensorrt_llm", "batching_strategy"),
        ("tensorrt_llm", "decoupled_mode"),
        ("preprocessing", "tokenizer_dir"),
        ("preprocessing", "preprocessing_instance_count"),
        ("postprocessing", "tokenizer_dir"),
        ("ensemble", "triton_max_batch_size"),
    ],
)
def test_what_nothing_loads_without_must_be_set(tmp_path: Path, model: str, name: str) -> None:
    values = small_values()
    del values[model][name]
    assert name in refused("template-unfilled", write_templates(tmp_path / "t"), values)


@pytest.mark.parametrize("line", ['default_model_filename: "${elsewhere}"\n', parameter("k", "${a}/${b}")])
def test_a_quoted_placeholder_that_is_no_parameter_of_its_own_must_be_set(tmp_path: Path, line: str) -> None:
    templates = small_templates()
    templates["ensemble"] += line
    refused("template-unfilled", write_templates(tmp_path / "t", templates), small_values())


def test_a_value_that_backends_take_for_a_placeholder_is_refused(tmp_path: Path) -> None:
    values = small_values(tensorrt_llm={"medusa_choices": "${medusa_choices}"})
    assert "medusa_choices" in refused("template-unfilled", write_templates(tmp_path / "t"), values)


@pytest.mark.parametrize("value", ["TYPE_FP9", "TYPE_FP32 is_shape_tensor: true", "", "'64'", "6,4"])
def test_a_bare_placeholder_takes_no_text(tmp_path: Path, value: str) -> None:
    values = small_values(ensemble={"logits_datatype": value})
    refused("template-invalid", write_templates(tmp_path / "t"), values)


def test_a_template_that_does_not_parse_is_refused(tmp_path: Path) -> None:
    templates = small_templates()
    templates["ensemble"] += "unheard_of: 1\n"
    written = write_templates(tmp_path / "t", templates)
    assert "unheard_of" in refused("template-invalid", written, small_values())
    (written / "ensemble/config.pbtxt").write_bytes(b"\xff")
    assert "ensemble/config.pbtxt" in refused("template-invalid", written, small_values())


def test_a_parameter_that_the_backend_of_the_version_does_not_read_is_refused(tmp_path: Path) -> None:
    templates = write_templates(tmp_path / "t")
    values = small_values(tensorrt_llm={"multi_block_mode": "True"})
    assert "0.15" in refused("template-unknown-key", templates, values, "0.13.0")
    fill_upstream(templates, values, tmp_path / "cpp", "0.15.0")
    values["tensorrt_llm"]["triton_backend"] = "python"
    fill_upstream(templates, values, tmp_path / "python", "0.13.0")
    assert settings(filled(tmp_path / "python")["tensorrt_llm"])["multi_block_mode"] == "True"


@pytest.mark.parametrize("version", ["0.7.1", "1.3.0"])
def test_a_version_without_these_templates_is_refused(tmp_path: Path, version: str) -> None:
    assert version in refused("template-missing", write_templates(tmp_path / "t"), small_values(), version)


def test_the_five_folders_are_copied_and_nothing_else(tmp_path: Path) -> None:
    templates = write_templates(tmp_path / "t")
    for name in (
        "tensorrt_llm_bls/1/lib/decode.py",
        "preprocessing/1/model.py",
        "ensemble/1/.tmp",
        "gpt/config.pbtxt",
        "README.md",
        "preprocessing/1/__pycache__/model.cpython-310.pyc",
    ):
        (templates / name).parent.mkdir(parents=True, exist_ok=True)
        (templates / name).write_bytes(name.encode() + b"\xff\r\n")
    fill_upstream(templates, small_values(), tmp_path / "out", "0.19.0")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {f"{model}/config.pbtxt" for model in MODELS} | {
        "tensorrt_llm_bls/1/lib/decode.py",
        "preprocessing/1/model.py",
        "ensemble/1/.tmp",
    }
    copied = (tmp_path / "out/preprocessing/1/model.py").read_bytes()
    assert copied == (templates / "preprocessing/1/model.py").read_bytes()
    assert all((tmp_path / "out" / model / "1").is_dir() for model in MODELS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "t"]


def test_an_output_that_is_there_already_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError) as error:
        fill_upstream(write_templates(tmp_path / "t"), small_values(), tmp_path / "out", "0.19.0")
    assert error.value.code == "output-exists"
    assert not list((tmp_path / "out").iterdir())


def test_a_link_or_pipe_among_the_templates_is_refused(tmp_path: Path) -> None:
    templates = write_templates(tmp_path / "t")
    odd = templates / "ensemble/1"
    odd.symlink_to("/etc")
    assert str(odd) in refused("template-invalid", templates, small_values())
    odd.unlink()
    os.mkfifo(odd)
    assert str(odd) in refused("template-invalid", templates, small_values())


@pytest.mark.parametrize(
    "place",
    ["", "inflight_batcher_llm", "all_models/inflight_batcher_llm", "triton_backend/all_models/inflight_batcher_llm"],
)
def test_templates_are_found_in_a_checkout(tmp_path: Path, place: str) -> None:
    root = write_templates(tmp_path / "checkout" / place)
    with opened_templates(tmp_path / "checkout") as found:
        assert found.samefile(root)


def test_missing_templates_are_named(tmp_path: Path) -> None:
    refused("template-missing", tmp_path / "nowhere", small_values())
    templates = small_templates()
    del templates["tensorrt_llm_bls"]
    assert "tensorrt_llm_bls" in refused("template-missing", write_templates(tmp_path / "t", templates), small_values())


Packed = list[tuple[str, bytes]]


def packed(prefix: str = "") -> Packed:
    return [(f"{prefix}{model}/config.pbtxt", text.encode()) for model, text in small_templates().items()]


def pack(path: Path, files: Packed) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files:
                archive.writestr(name, content)
        return path
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    compress = {".tar": bytes, ".gz": gzip.compress, ".xz": lzma.compress}[path.suffix]
    path.write_bytes(compress(buffer.getvalue()))
    return path


@pytest.mark.parametrize("name", ["t.zip", "t.tar", "t.tar.gz", "t.tar.xz"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "./",
        "inflight_batcher_llm/",
        "backend-0.8.0/all_models/inflight_batcher_llm/",
        "all_models/inflight_batcher_llm/",
    ],
)
def test_templates_are_found_in_an_archive(tmp_path: Path, name: str, prefix: str) -> None:
    elsewhere = [("backend-0.8.0/README.md", b""), ("tensorrt_llm/__init__.py", b"")] if "all_models" in prefix else []
    fill_upstream(pack(tmp_path / name, elsewhere + packed(prefix)), small_values(), tmp_path / "out", "0.19.0")
    assert filled(tmp_path / "out")["ensemble"].max_batch_size == 64
    assert not (tmp_path / "out/tensorrt_llm/__init__.py").exists()


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize("name", ["../ensemble/1/x", "/ensemble/1/x", "ensemble/../../x", "a/../../x"])
def test_a_name_that_leads_out_of_an_archive_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    archive = pack(tmp_path / f"t{suffix}", [*packed(), (name, b"x")])
    assert "leads out" in refused("template-invalid", archive, small_values())


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_a_name_that_is_there_twice_is_refused(tmp_path: Path, suffix: str) -> None:
    archive = pack(tmp_path / f"t{suffix}", [*packed(), *packed()[:1]])
    assert "twice" in refused("template-invalid", archive, small_values())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_device_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive = pack(tmp_path / "t.tar", packed())
    with tarfile.open(archive, "a") as appended:
        info = tarfile.TarInfo("ensemble/1/x")
        info.type, info.linkname = kind, "ensemble/config.pbtxt"
        appended.addfile(info)
    assert "link" in refused("template-invalid", archive, small_values())


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "t.zip", packed())
    with zipfile.ZipFile(archive, "a") as appended:
        info = zipfile.ZipInfo("ensemble/1/x")
        info.external_attr = 0o120777 << 16
        appended.writestr(info, "/etc/passwd")
    assert "link" in refused("template-invalid", archive, small_values())


@pytest.mark.parametrize("limit", ["members", "bytes", "template_bytes"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_an_archive_beyond_the_limits_is_refused(tmp_path: Path, suffix: str, limit: str) -> None:
    archive, files = pack(tmp_path / f"t{suffix}", packed()), packed()
    largest = len(files) if limit == "members" else sum(len(content) for _, content in files)
    with opened_templates(archive, ArchiveLimits(**{limit: largest})) as root:
        assert all((root / name).is_file() for name, _ in files)
    with pytest.raises(TemplateError) as error, opened_templates(archive, ArchiveLimits(**{limit: largest - 1})):
        pass
    assert error.value.code == "template-invalid" and str(largest - 1) in error.value.message


def test_a_file_that_is_no_whole_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    refused("template-invalid", tmp_path / "text", small_values())
    archive = pack(tmp_path / "t.tar.gz", packed())
    archive.write_bytes(archive.read_bytes()[:-200])
    refused("template-invalid", archive, small_values())
    refused("template-missing", pack(tmp_path / "other.zip", [("README.md", b"")]), small_values())


def test_parameters_have_the_names_of_their_version() -> None:
    parameters = TensorRtServing(
        decoupled=True,
        kv_cache_fraction=0.5,
        attention_window=(512,),
        gpu_device_ids=((0, 1),),
        extra={"tensorrt_llm": {"decoding_mode": "top_k"}},
    )
    old, new = values_for(parameters, "0.11.0"), values_for(parameters, "0.19.0")
    assert old["tensorrt_llm"] == {
        "triton_max_batch_size": "64",
        "decoupled_mode": "True",
        "engine_dir": "/e",
        "batching_strategy": "inflight_fused_batching",
        "max_beam_width": "1",
        "max_queue_delay_microseconds": "0",
        "kv_cache_free_gpu_mem_fraction": "0.5",
        "max_attention_window_size": "512",
        "gpu_device_ids": "0,1",
        "decoding_mode": "top_k",
    }
    assert new["tensorrt_llm"] == old["tensorrt_llm"] | {"tokenizer_dir": "/t"}
    assert new["preprocessing"] == old["preprocessing"] | {"engine_dir": "/e"}
    between = values_for(parameters, "0.12.0")
    assert (between["tensorrt_llm"], between["preprocessing"]) == (old["tensorrt_llm"], new["preprocessing"])
    assert old["tensorrt_llm_bls"]["decoupled_mode"] == "True"


@pytest.mark.parametrize(
    ("wanted", "last_without", "first"),
    [
        ({"host_cache_bytes": 0}, "0.9.0", "0.10.0"),
        ({"lora_cache": LoraCache()}, "0.8.0", "0.9.0"),
        ({"queue_size": 0}, "0.11.0", "0.12.0"),
        ({"attention_window": (512, 1024)}, "0.12.0", "0.13.0"),
    ],
)
def test_a_setting_that_the_version_lacks_is_refused_naming_the_versions_with_it(
    wanted: dict[str, Any], last_without: str, first: str
) -> None:
    parameters = TensorRtServing(**wanted)
    with pytest.raises(UsageError) as error:
        values_for(parameters, last_without)
    assert error.value.code == "serving-unfit"
    assert next(iter(wanted)) in error.value.message
    assert f"{first.removesuffix('.0')} and later" in error.value.hint
    assert values_for(parameters, first)


def test_a_cache_in_bytes_is_the_tokens_that_it_holds() -> None:
    serving = TensorRtServing(kv_cache_bytes=2**30)
    values = upstream_values(
        serving, "1.2.1", engine_folder="/e", tokenizer_folder="/t", max_batch_size=64, kv_cache_tokens=8192
    )
    assert values["tensorrt_llm"]["max_tokens_in_paged_kv_cache"] == "8192"


def test_templates_have_one_instance_of_the_engine() -> None:
    with pytest.raises(TemplateError) as error:
        values_for(TensorRtServing(gpu_device_ids=((0,), (1,))), "0.19.0")
    assert error.value.code == "template-unknown-key" and "gpu_device_ids" in error.value.message


def test_an_extra_value_that_a_parameter_sets_is_refused() -> None:
    with pytest.raises(TemplateError) as error:
        small_values(tensorrt_llm={"engine_dir": "/other"})
    assert error.value.code == "template-unknown-key" and "engine_dir" in error.value.message


# NVIDIA's own templates.

VERSIONS = ("0.8.0", "0.9.0", "0.12.0", "0.16.0", "0.19.0")


@pytest.fixture(params=VERSIONS)
def real(request: pytest.FixtureRequest) -> tuple[Path, str]:
    return real_templates(request.param), request.param


def real_templates(version: str) -> Path:
    given = os.environ.get("ENGINEHOUSE_TEST_TEMPLATES")
    if not given:
        pytest.skip("ENGINEHOUSE_TEST_TEMPLATES names no folder with NVIDIA's templates, one folder a version")
    return Path(given) / version


def raw(templates: Path) -> dict[str, str]:
    with opened_templates(templates) as root:
        return {model: (root / model / "config.pbtxt").read_text() for model in MODELS}


def uncommented(text: str) -> str:
    return re.sub(r"(?m)^\s*#.*$", "", text)


def test_real_with_the_least_that_is_needed(tmp_path: Path, real: tuple[Path, str]) -> None:
    templates, version = real
    fill_upstream(templates, values_for(TensorRtServing(), version), tmp_path / "out", version)
    configs = filled(tmp_path / "out")
    assert {config.max_batch_size for config in configs.values()} == {64}
    engine = settings(configs["tensorrt_llm"])
    assert (engine["gpt_model_path"], engine["gpt_model_type"]) == ("/e", "inflight_fused_batching")
    assert configs["tensorrt_llm"].backend == "tensorrtllm"
    # Kept empty: the keys that a version reads with no regard to their absence.
    release = Version(version).release
    guided = {"tokenizer_dir": "/t", "xgrammar_tokenizer_info_path": "", "guided_decoding_backend": ""}
    assert {key: engine[key] for key in guided if key in engine} == (guided if release >= (0, 19) else {})
    visual = "multimodal_model_path" if release >= (0, 19) else "visual_model_path"
    empty = [key for key, value in settings(configs["preprocessing"]).items() if not value]
    assert empty == ([visual] if release >= (0, 12) else [])
    with opened_templates(templates) as root:
        for model in MODELS:
            for path in (root / model).rglob("*.py"):
                assert (tmp_path / "out" / path.relative_to(root)).read_bytes() == path.read_bytes()


def test_real_with_everything_set(tmp_path: Path, real: tuple[Path, str]) -> None:
    """Each value is where the template puts it: the same as plain substitution, each placeholder with its own value."""
    templates, version = real
    texts = {model: uncommented(text) for model, text in raw(templates).items()}
    values: dict[str, dict[str, str]] = {}
    for model, text in texts.items():
        names = sorted(set(re.findall(r"\$\{(\w+)\}", text)))
        values[model] = {name: f"<{model}> {name}, a:b" for name in names}
        bare = sorted(set(re.findall(r"\$\{(\w+)\}", re.sub(r'"[^"\n]*"', "", text))))
        types = ["TYPE_BF16", "TYPE_FP32", "TYPE_FP16"]
        for number, name in enumerate(bare, 2):
            values[model][name] = types.pop() if "data" in name else "true" if name == "decoupled_mode" else str(number)
    # Of 0.12 only the Python backend reads all of its template.
    if "triton_backend" in values["tensorrt_llm"]:
        values["tensorrt_llm"]["triton_backend"] = "python"
    fill_upstream(templates, values, tmp_path / "out", version)
    assert filled(tmp_path / "out") == {
        model: parse_config(string.Template(text).substitute(values[model])) for model, text in texts.items()
    }


def test_real_agrees_with_the_published_procedure(tmp_path: Path) -> None:
    """Field by field, for Llama 3 8B on 0.8.0, but for five parameters that fill_template.py got no value for."""
    tokenizer, engine = "Meta-Llama-3-8B-Instruct", "/models/tensorrt_llm/1"
    commands = {
        "preprocessing": f"tokenizer_dir:{tokenizer},tokenizer_type:auto,triton_max_batch_size:64,"
        "preprocessing_instance_count:1",
        "postprocessing": f"tokenizer_dir:{tokenizer},tokenizer_type:auto,triton_max_batch_size:64,"
        "postprocessing_instance_count:1",
        "tensorrt_llm_bls": "triton_max_batch_size:64,decoupled_mode:False,bls_instance_count:1,"
        "accumulate_tokens:False",
        "ensemble": "triton_max_batch_size:64",
        "tensorrt_llm": "triton_max_batch_size:64,decoupled_mode:False,max_beam_width:1,"
        f"engine_dir:{engine},max_tokens_in_paged_kv_cache:2560,max_attention_window_size:2560,"
        "kv_cache_free_gpu_mem_fraction:0.5,exclude_input_in_output:True,enable_kv_cache_reuse:False,"
        "batching_strategy:inflight_fused_batching,max_queue_delay_microseconds:0",
    }
    templates = real_templates("0.8.0")
    published: dict[str, ModelConfig] = {}
    left: dict[str, list[str]] = {}
    for model, text in raw(templates).items():
        arguments = dict(pair.split(":") for pair in commands[model].split(","))
        config = parse_config(string.Template(text).safe_substitute(arguments))
        left[model] = sorted(key for key, value in settings(config).items() if "${" in value)
        for key in left[model]:
            del config.parameters[key]
        published[model] = config
    by_hand = load_model(CATALOGUE / "llama3-8b-by-hand.yaml").serving
    assert by_hand.tensorrt_llm is not None
    values = upstream_values(
        by_hand.tensorrt_llm,
        "0.8.0",
        engine_folder=engine,
        tokenizer_folder=tokenizer,
        max_batch_size=by_hand.slots,
    )
    fill_upstream(templates, values, tmp_path / "out", "0.8.0")
    assert filled(tmp_path / "out") == published
    assert {model: keys for model, keys in left.items() if keys} == {
        "tensorrt_llm": [
            "batch_scheduler_policy",
            "enable_chunked_context",
            "enable_trt_overlap",
            "gpu_device_ids",
            "normalize_log_probs",
        ],
    }


def test_real_out_of_an_archive(tmp_path: Path, real: tuple[Path, str]) -> None:
    templates, version = real
    shutil.make_archive(str(tmp_path / "t"), "gztar", templates)
    values = values_for(TensorRtServing(), version)
    fill_upstream(tmp_path / "t.tar.gz", values, tmp_path / "archive", version)
    fill_upstream(templates, values, tmp_path / "folder", version)
    assert filled(tmp_path / "archive") == filled(tmp_path / "folder")
