"""`enginehouse assemble` in the native layout, for the engines of every version; and against NVIDIA's own models."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from packaging.version import Version

from deployments.cli.assemble import assemble_native
from deployments.cli.main import main
from infra.settings import CHECKOUT
from tasks.models.catalogue import load_model
from tasks.models.overrides import override
from tasks.models.recipe import TrtEngineRecipe
from tasks.models.spec import Model
from tasks.serving.backend_inputs import adapter_inputs
from tasks.serving.settings import ServingSettings
from tasks.trtllm.backend.parameters import LEFT_OUT_UNSET
from tasks.trtllm.releases import minor
from tests.standin import engine as standin
from tests.standin.facts import VERSIONS
from tests.tasks.lora.small_adapters import write_adapter
from tests.tasks.triton.upstream_only import UPSTREAM_ONLY, reason

message: Any = importlib.import_module("tritonclient.grpc.model_config_pb2")

CATALOGUE = CHECKOUT / "deployments" / "models"
UPSTREAM_MODELS = Path(__file__).parents[2] / "tasks" / "triton" / "upstream_models.json"
UPSTREAM: dict[str, Any] = json.loads(UPSTREAM_MODELS.read_text())["models"]
# Since TensorRT-LLM's c2e65b8, in 0.20.
RENAMED = {"min_length": "min_tokens", "random_seed": "seed"}


def assemble(tmp_path: Path, version: str, *changed: str, model: str = "llama3-8b-by-hand", code: int = 0) -> Path:
    recipe = override(load_model(CATALOGUE / f"{model}.yaml"), tensorrt_llm=version).model.recipe
    assert isinstance(recipe, TrtEngineRecipe)
    engine, tokenizer, output = tmp_path / "engine", tmp_path / "tokenizer", tmp_path / "models"
    if not engine.exists():
        standin.make(recipe, engine)
        tokenizer.mkdir()
        (tokenizer / "chat_template.jinja").write_text("{{ messages[0].content }}")
    given = ("--engine", str(engine), "--tokenizer", str(tokenizer), "--output", str(output))
    assert main(["assemble", model, *given, "--runtime", version, *changed]) == code
    return output


def read(folder: Path) -> dict[str, Any]:
    found = sorted(folder.glob("*/config.pbtxt"))
    configs = {path.parent.name: text_format.Parse(path.read_text(), message.ModelConfig()) for path in found}
    assert all(config.name == name for name, config in configs.items())
    return configs


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def upstream_tensors(model: str, sort: str, version: str) -> Iterator[tuple[str, str, list[int], str]]:
    """Name, type, dims and flags of what NVIDIA's model has; of 0.20 and later as 0.19 but for the new names."""
    wanted = min(minor(Version(version)), (0, 19))
    for name, rows in UPSTREAM[model][sort].items():
        for (first, last), kind, dims, flags in rows:
            if minor(Version(first)) <= wanted <= minor(Version(last)):
                renamed = name in RENAMED and minor(Version(version)) >= (0, 20)
                yield RENAMED[name] if renamed else name, kind, dims, flags


def upstream_parameters(model: str, version: str) -> set[str]:
    wanted = min(minor(Version(version)), (0, 19))
    return {
        name
        for name, rows in UPSTREAM[model]["parameters"].items()
        if any(minor(Version(first)) <= wanted <= minor(Version(last)) for first, last in rows)
    }


def told_of(tensor: Any) -> set[str]:
    flags = {"optional": tensor.optional, "reshape": tensor.HasField("reshape"), "ragged": tensor.allow_ragged_batch}
    return {flag for flag, value in flags.items() if value}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_against_its_own_models(tmp_path: Path, version: str) -> None:
    configs = read(assemble(tmp_path, version))
    assert set(configs) == {"tensorrt_llm", "llm", "llama3-8b-by-hand"}
    # What NVIDIA has in five models is in three: the clients' side of two of them is the ensemble.
    ours = {
        "tensorrt_llm": configs["tensorrt_llm"],
        "ensemble": configs["llama3-8b-by-hand"],
        "tensorrt_llm_bls": configs["llm"],
        "preprocessing": configs["llm"],
        "postprocessing": configs["llm"],
    }
    for model, config in ours.items():
        for sort in ("input", "output"):
            have = {tensor.name: tensor for tensor in getattr(config, sort)}
            for name, kind, dims, flags in upstream_tensors(model, f"{sort}s", version):
                if name not in have:
                    assert reason(model, name), f"{model}: {sort} {name}"
                    continue
                tensor = have[name]
                assert not kind or tensor.data_type == message.DataType.Value(f"TYPE_{kind}")
                assert len(tensor.dims) == len(dims)
                assert all(-1 in pair or pair[0] == pair[1] for pair in zip(tensor.dims, dims, strict=True))
                if model == "tensorrt_llm":
                    assert list(tensor.dims) == dims
                    assert sort == "output" or told_of(tensor) == set(flags.split()), name
        absent = upstream_parameters(model, version) - config.parameters.keys()
        if model == "tensorrt_llm":
            assert absent <= set(LEFT_OUT_UNSET)
        else:
            assert not [name for name in absent if not reason(model, name)], model


def test_no_reason_is_given_for_what_is_there() -> None:
    found: set[str] = set()
    for model, sorts in UPSTREAM.items():
        found |= {name for tensors in sorts.values() for name in tensors if model != "tensorrt_llm"}
    listed = {name for entry in UPSTREAM_ONLY for name in entry.names.split()}
    # 0.20 and later have these, which no tag did.
    new = {"return_num_input_tokens", "return_num_output_tokens", "num_input_tokens", "num_output_tokens"}
    assert listed - found == {"*"} | new
    assert not reason("tensorrt_llm", "input_ids")


def test_by_hand_has_the_published_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the five `fill_template.py` commands of the published procedure set, one by one."""
    output = assemble(tmp_path, "0.8.0")
    assert capsys.readouterr().out.splitlines()[-1] == str(output)
    configs = read(output)
    engine = configs["tensorrt_llm"]
    # triton_max_batch_size, of all five.
    assert {config.max_batch_size for config in configs.values()} == {64}
    assert not engine.model_transaction_policy.decoupled
    assert engine.dynamic_batching.max_queue_delay_microseconds == 0
    published = {
        "max_beam_width": "1",
        "gpt_model_path": str(tmp_path / "engine"),
        "max_tokens_in_paged_kv_cache": "2560",
        "max_attention_window_size": "2560",
        "kv_cache_free_gpu_mem_fraction": "0.5",
        "exclude_input_in_output": "True",
        "enable_kv_cache_reuse": "False",
        "gpt_model_type": "inflight_fused_batching",
    }
    assert parameters(engine).items() >= published.items()
    # What it leaves as `${…}` the backend takes for its defaults, which are written out here.
    assert {key: value for key, value in parameters(engine).items() if key not in published} == {
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "enable_trt_overlap": "False",
        "normalize_log_probs": "True",
        "enable_chunked_context": "False",
        "gpu_device_ids": "",
    }
    serving = ServingSettings.read(output / "llm" / "1")
    # tokenizer_dir and tokenizer_type auto; one instance of what they call preprocessing, postprocessing and BLS.
    assert serving.engine_path == str(tmp_path / "tokenizer")
    assert configs["llm"].instance_group[0].count == 1


def test_a_repository_that_triton_loads_as_it_is(tmp_path: Path) -> None:
    output = assemble(tmp_path, "1.2.1", model="llama3-8b-instruct")
    configs = read(output)
    assert [step.model_name for step in configs["llama3-8b-instruct"].ensemble_scheduling.step] == ["llm", "llm"]
    assert parameters(configs["llm"]) == {"tensorrt_llm_model_name": "tensorrt_llm"}
    assert configs["tensorrt_llm"].model_transaction_policy.decoupled
    assert all((output / name / "1").is_dir() for name in configs)
    serving = ServingSettings.read(output / "llm" / "1")
    assert (serving.engine, serving.tensorrt_llm, serving.max_input_tokens) == ("tensorrt_llm", "1.2.1", 4096)
    # 64 slots of 8192 tokens of 128 KiB are 64 GiB: more than 0.45 of an H200 without weights and workspace.
    tokens = int(parameters(configs["tensorrt_llm"])["max_tokens_in_paged_kv_cache"])
    weights = (tmp_path / "engine/rank0.engine").stat().st_size
    assert tokens == (int(143771 * 2**20 * 0.45) - weights - 3 * 2**30) // 131072


@pytest.mark.parametrize(
    ("changed", "code", "named"),
    [
        (("--runtime", "0.9.0"), "version-mismatch", "0.9.0"),
        (("--runtime", "1.3.0"), "kind-changes", "1.3.0"),
        (("--engine", "/nonexistent"), "engine-unreadable", "/nonexistent/config.json"),
        (("--tokenizer", "/nonexistent"), "usage", "/nonexistent"),
        (("--templates", "/nonexistent"), "usage", "--templates"),
        (("--layout", "upstream"), "usage", "--templates"),
    ],
)
def test_wrong_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: tuple[str, ...], code: str, named: str
) -> None:
    output = assemble(tmp_path, "0.8.0", *changed, code=2)
    error = capsys.readouterr().err
    assert f"[{code}]" in error and named in error
    assert not output.exists() and not list(tmp_path.glob(".models-*"))


def test_a_folder_that_is_no_engine_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "engine" / "config.json").write_text('{"version": "0.8.0"}')
    assemble(tmp_path, "0.8.0", code=2)
    assert "[engine-unreadable]" in capsys.readouterr().err


def test_an_output_that_exists_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = assemble(tmp_path, "0.8.0")
    before = sorted(output.rglob("*"))
    assemble(tmp_path, "0.8.0", code=2)
    assert "[output-exists]" in capsys.readouterr().err and sorted(output.rglob("*")) == before


def test_adapters_of_the_model_s_file_are_in_it(tmp_path: Path) -> None:
    document = load_model(CATALOGUE / "llama3-8b-by-hand.yaml").model_dump(by_alias=True)
    document["recipe"]["runtime"]["tensorrt_llm"] = "0.12.0"
    document["recipe"]["lora"] = {"target_modules": ["attn_q"], "max_rank": 8}
    adapter = write_adapter(tmp_path / "sql", {"self_attn.q_proj": (4096, 4096)}, layers=1, seed=1)
    document["adapters"] = {"sql": f"file://{adapter}"}
    model = Model.model_validate(document)
    assert isinstance(model.recipe, TrtEngineRecipe)
    standin.make(model.recipe, tmp_path / "engine")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/chat_template.jinja").write_text("{{ messages[0].content }}")
    assemble_native(model, tmp_path / "engine", tmp_path / "tokenizer", tmp_path / "models")
    version = tmp_path / "models" / "llm" / "1"
    assert ServingSettings.read(version).adapters == ("sql",)
    inputs = adapter_inputs(version / "adapters" / "sql")
    assert inputs["lora_weights"].shape == (1, 1, 4 * 8192) and inputs["lora_config"].tolist() == [[[1, 0, 4]]]
    # The engine refuses weights of another type than its own.
    bits = {"bfloat16": ("TYPE_BF16", "uint16"), "float16": ("TYPE_FP16", "float16")}[model.recipe.dtype]
    config = read(tmp_path / "models")["tensorrt_llm"]
    (tensor,) = (tensor for tensor in config.input if tensor.name == "lora_weights")
    assert (message.DataType.Name(tensor.data_type), inputs["lora_weights"].dtype.name) == bits


@pytest.mark.parametrize(
    ("version", "changes", "mode"),
    [
        ("0.12.0", {"architecture": "MedusaForCausalLM"}, "medusa"),
        ("0.9.0", {"architecture": "MedusaForCausalLM"}, ""),  # its backend goes by the engine
        ("1.2.1", {"speculative_decoding_mode": 8}, "lookahead"),
    ],
)
def test_an_engine_that_was_built_for_speculation_is_told_so(
    tmp_path: Path, version: str, changes: dict[str, Any], mode: str
) -> None:
    shutil.rmtree(assemble(tmp_path, version))
    path = tmp_path / "engine/config.json"
    config = json.loads(path.read_text())
    for section in ("pretrained_config", "build_config"):
        config[section] |= {name: value for name, value in changes.items() if name in config[section]}
    path.write_text(json.dumps(config))
    told = parameters(read(assemble(tmp_path, version))["tensorrt_llm"])
    assert told["decoding_mode"] == mode
    assert (told.get("lookahead_window_size", "") != "") == (mode == "lookahead")


def test_an_engine_whose_backend_does_not_decode_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(assemble(tmp_path, "0.15.0"))
    path = tmp_path / "engine/config.json"
    config = json.loads(path.read_text())
    config["pretrained_config"]["architecture"] = "EagleForCausalLM"
    path.write_text(json.dumps(config))
    assemble(tmp_path, "0.15.0", code=2)
    assert "does not serve eagle: 0.16 to 1.2 do" in capsys.readouterr().err
