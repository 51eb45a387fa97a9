"""`enginehouse plan`, on a machine that has nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from deployments.cli.bounded import within
from deployments.cli.main import main
from deployments.cli.plan import Preview
from deployments.cli.plan_document import cost_of
from infra.errors import SourceUnavailable, UsageError
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from tasks.explain.expected_time import forecast
from tasks.explain.planned_steps import PlannedStep, StepName
from tasks.models.catalogue import load_model
from tasks.models.overrides import override
from tasks.store.artifact import ArtifactRef
from tasks.targets.target import Target
from tests.fleet import Fleet
from tests.index_server import index_server
from tests.tasks.explain.test_outlook import make, report
from tests.tasks.weights.configs import CACHE_BYTES, DEEPSEEK_V3, plain, text


@dataclass(frozen=True)
class Done:
    """What the command left."""

    returncode: int
    stdout: str
    stderr: str


def surroundings(**environment: str) -> dict[str, str]:
    """The environment of a machine that has neither a stack nor the internet."""
    foreign = ("AWS_", "PREFECT_", "ENGINEHOUSE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    nothing = {
        "ENGINEHOUSE_HOME": "/nonexistent",
        "PREFECT_API_URL": "http://127.0.0.1:9/api",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "",
    }
    return {**kept, **nothing, **environment}


def run(*arguments: str, **environment: str) -> Done:
    out, err = StringIO(), StringIO()
    surrounded = mock.patch.dict(os.environ, surroundings(**environment), clear=True)
    with surrounded, redirect_stdout(out), redirect_stderr(err):
        code = main(["plan", *arguments])
    return Done(code, out.getvalue(), err.getvalue())


def plan(*arguments: str, **environment: str) -> dict[str, Any]:
    """The plan, without its weights where no source can be asked."""
    done = run(*arguments, "--json", *([] if environment else ["--offline"]), **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("version", ["0.8.0", "0.16.0", "0.17.0", "1.2.1"])
def test_engines_are_planned_with_what_is_known_of_the_version(version: str) -> None:
    document = plan("llama3-70b-instruct", "--runtime", version)
    assert document["kind"] == "trt-engine" and document["pool"] == "build-sm90"
    assert document["runtime"]["tensorrt_llm"] == version and document["runtime"]["assumed"]
    assert document["options"]["exact"] == (version in ("0.8.0", "0.16.0"))
    quantize, build, check = document["commands"]
    assert quantize[:2] == ["python3", "examples/quantization/quantize.py"]
    assert quantize[quantize.index("--tp_size") + 1] == "4"
    assert build[0] == "trtllm-build"
    assert check[:4] == ["mpirun", "--allow-run-as-root", "-n", "4"]


@pytest.mark.parametrize("version", ["1.3.0", "1.3.0rc22", "1.4.0rc1"])
def test_from_1_3_on_there_is_nothing_to_build(version: str) -> None:
    document = plan("llama3-8b-by-hand", "--runtime", version)
    assert document["kind"] == "llmapi" and document["commands"] == []
    assert document["translated"]["lost"] == {
        "paged_context_fmha": False,
        "fused_mlp": False,
        "serving.tensorrt_llm.decoupled": False,
        "serving.tensorrt_llm.exclude_input_in_output": True,
    }
    assert document["translated"]["moved"]["tokens_per_block"] == "llm_args.kv_cache_config.tokens_per_block"


def test_for_people() -> None:
    done = run("llama3-8b-instruct", "--runtime", "0.19.0", "--recipe", "quantization=int8_wo")
    assert done.returncode == 0 and "[source-unavailable]: what its weights are is not known" in done.stderr
    lines = done.stdout.splitlines()
    assert any("known only from the nearest sources" in line for line in lines)
    assert any(line.startswith("python3 examples/llama/convert_checkpoint.py ") for line in lines)
    assert "kind llamacpp, built on pool build-cpu" in run("smollm2-135m").stdout


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """A model with 671 GB of weights: holes, of which nobody reads a byte."""
    weights, folder = tmp_path / "weights", tmp_path / "models"
    weights.mkdir()
    folder.mkdir()
    (weights / "config.json").write_bytes(text(DEEPSEEK_V3))
    (weights / "chat_template.jinja").write_text("{{ messages[0].content }}")
    (weights / "generation_config.json").write_text('{"eos_token_id": [1, 107], "temperature": 0.6, "top_p": 0.95}')
    with (weights / "model.safetensors").open("wb") as file:
        file.truncate(671 * 10**9)
    runtime = {"tensorrt_llm": "1.2.1", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 8}
    document = {
        "name": "deepseek",
        "source": {"uri": f"file://{weights}"},
        "recipe": {"kind": "llmapi", "runtime": runtime, "tp_size": 8},
        "serving": {"slots": 64, "context_tokens": 8192, "defaults": {"temperature": 0.3}},
        "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
    }
    (folder / "deepseek.yaml").write_text(json.dumps(document))
    return folder


def test_what_weights_say_is_part_of_the_plan(catalogue: Path) -> None:
    document = plan("deepseek", ENGINEHOUSE_CATALOGUE=str(catalogue))
    weights = document["weights"]
    assert weights["architecture"] == "DeepseekV3ForCausalLM" and weights["bytes"] == 671 * 10**9
    assert weights["quantization"] == "fp8 (blocks of 128 x 128)" and weights["experts"] == 256
    assert document["kv_cache"]["bytes_per_token"] == 70_272 and document["kv_cache"]["tokens"] == 524_288
    shown = " ".join(run("deepseek", ENGINEHOUSE_CATALOGUE=str(catalogue)).stdout.split())
    assert "DeepseekV3ForCausalLM, 61 layers, 128 heads" in shown and "524288 tokens planned" in shown
    assert "weights" not in plan("deepseek", "--offline", ENGINEHOUSE_CATALOGUE=str(catalogue))
    # What the model's file sets is above what the weights say.
    assert document["answers"]["of_weights"] == {"temperature": 0.6, "top_p": 0.95}
    assert document["answers"]["sampling"]["temperature"] == 0.3 and document["answers"]["sampling"]["top_p"] == 0.95
    assert document["answers"]["end_ids"] == [1, 107]
    assert "answers: temperature 0.3 by the model's file, top_p 0.95 by generation_config.json" in shown
    unknown = plan("deepseek", "--offline", ENGINEHOUSE_CATALOGUE=str(catalogue))["answers"]
    assert unknown["of_weights"] is None and unknown["sampling"]["top_p"] == 1
    refused = run("deepseek", "--recipe", "tp_size=6", ENGINEHOUSE_CATALOGUE=str(catalogue))
    assert refused.returncode == 2 and "[weights-unfit]" in refused.stderr and "tp_size 1, 2, 4, 8" in refused.stderr
    (catalogue.parent / "weights/chat_template.jinja").unlink()
    refused = run("deepseek", ENGINEHOUSE_CATALOGUE=str(catalogue))
    assert refused.returncode == 2 and "[template-missing]" in refused.stderr


def test_what_guesses_the_tokens_is_planned_with_them(tmp_path: Path) -> None:
    qwen = CACHE_BYTES["qwen2.5-7b"][0]
    sizes = {"num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 896}
    for name, config in (("large", qwen), ("small", qwen | sizes), ("bert", qwen | {"architectures": ["BertModel"]})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_bytes(text(config))
        (tmp_path / name / "model.safetensors").write_bytes(bytes(4096))
    (tmp_path / "models").mkdir()
    for kind in ("trt-engine", "llmapi"):
        for draft in ("small", "bert"):
            speculation = {"mode": "draft_tokens_external", "max_draft_len": 5, "source": f"file://{tmp_path}/{draft}"}
            runtime = {"tensorrt_llm": "1.2.1", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1}
            document = {
                "name": f"{kind}-{draft}",
                "source": {"uri": f"file://{tmp_path}/large"},
                "recipe": {"kind": kind, "runtime": runtime, "speculation": speculation},
                "serving": {"chat_template": False},
                "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
            }
            (tmp_path / "models" / f"{kind}-{draft}.yaml").write_text(json.dumps(document))
        catalogue = str(tmp_path / "models")
        planned = plan(f"{kind}-small", ENGINEHOUSE_CATALOGUE=catalogue)
        # 28 layers with 4 heads of 128 numbers, and 24 layers with 2 heads of 64.
        assert planned["kv_cache"]["bytes_per_token"] == 57_344 + 12_288
        assert planned["weights"]["draft"]["architecture"] == "Qwen2ForCausalLM"
        scripts = [command[1] for command in planned["commands"] if command[0] == "python3" and "convert" in command[1]]
        assert scripts == ["examples/models/core/qwen/convert_checkpoint.py"] * (2 if kind == "trt-engine" else 0)
        refused = run(f"{kind}-bert", ENGINEHOUSE_CATALOGUE=catalogue)
        assert refused.returncode == 2 and "the draft model: BertModel is an encoder" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("nothing",), "model-missing", "'nothing'"),
        (("llama3-8b-instruct", "--runtime", "x1"), "spec-invalid", "'x1'"),
        (("llama3-8b-instruct", "--runtime", "0.7.1"), "spec-invalid", "0.8 to 1.2"),
        (
            ("llama3-8b-instruct", "--runtime", "0.11.0", "--recipe", "quantization=fp8_rowwise"),
            "spec-invalid",
            "0.12 to 1.2",
        ),
        (("llama3-8b-instruct", "--recipe", "quantization=nvfp4"), "spec-invalid", "sm100"),
        (("smollm2-135m", "--runtime", "1.2.1"), "usage", "llamacpp"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], code: str, named: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2 and f"[{code}]" in done.stderr and named in done.stderr


def test_as_a_program_of_its_own() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "deployments.cli.main", "plan"]
    for model, code in (("smollm2-135m", 0), ("nothing", 2)):
        done = subprocess.run([*command, model], env=surroundings(), capture_output=True, text=True, check=False)
        assert done.returncode == code and "Traceback" not in done.stderr
        imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
        assert "tasks.steps.plan" in imported, "and nothing that takes longer than all that a plan needs"
        assert not {"prefect", "numpy", "tritonclient", "grpc", "asyncio", "psutil", "ssl", "boto3"} & imported


def test_a_rebuild_does_not_change_the_kind_in_silence() -> None:
    model = load_model(CHECKOUT / "deployments" / "models" / "llama3-8b-by-hand.yaml")
    with pytest.raises(UsageError) as caught:
        override(model, tensorrt_llm="1.3.0")
    assert caught.value.code == "kind-changes"
    for line in ("  kind: llmapi", "    tensorrt_llm: 1.3.0", "  max_seq_len: 2048", "# fused_mlp has no counterpart"):
        assert line in caught.value.hint.splitlines()


@pytest.mark.parametrize(("version", "mode"), [("0.8.0", "leader"), ("0.9.0", "orchestrator"), ("1.3.0", "single")])
def test_how_a_model_on_four_gpus_is_served(version: str, mode: str) -> None:
    document = plan("llama3-70b-instruct", "--runtime", version)["serving"]
    assert document["mode"] == mode and document["why"]
    assert document["environment"] == ({"TRTLLM_ORCHESTRATOR": "1"} if mode == "orchestrator" else {})
    servers = [argument for argument in document["launch"] if argument.endswith("/tritonserver")]
    assert len(servers) == (4 if mode == "leader" else 1)
    engines = [argument for argument in document["launch"] if argument == "--load-model=tensorrt_llm"]
    assert len(engines) == (4 if mode == "leader" else 0)
    shown = run("llama3-70b-instruct", "--runtime", version).stdout.splitlines()
    assert any(line.startswith(f"served in mode {mode}") for line in shown)


def test_the_converter_follows_from_what_the_weights_name(tmp_path: Path) -> None:
    weights, folder = tmp_path / "weights", tmp_path / "models"
    weights.mkdir()
    folder.mkdir()
    (weights / "config.json").write_bytes(text(CACHE_BYTES["qwen2.5-7b"][0] | {"architectures": ["Qwen2ForCausalLM"]}))
    (weights / "model.safetensors").write_bytes(bytes(4096))
    (weights / "chat_template.jinja").write_text("{{ messages[0].content }}")
    document = {
        "name": "qwen",
        "source": {"uri": f"file://{weights}"},
        "recipe": {
            "kind": "trt-engine",
            "runtime": {"tensorrt_llm": "0.16.0", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1},
        },
        "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
    }
    (folder / "qwen.yaml").write_text(json.dumps(document))
    catalogue = str(folder)
    planned = plan("qwen", ENGINEHOUSE_CATALOGUE=catalogue)
    assert planned["architecture"] == planned["weights"]["architecture"] == "Qwen2ForCausalLM"
    assert planned["commands"][0][1] == "examples/qwen/convert_checkpoint.py"
    unasked = run("qwen", "--offline", ENGINEHOUSE_CATALOGUE=catalogue).stdout
    assert "architecture: not named in the recipe, so LlamaForCausalLM is shown" in unasked
    for arguments, code, named in (
        (("--runtime", "0.9.0"), "architecture-unfit", "builds no engines of Qwen2ForCausalLM"),
        (("--recipe", "architecture=LlamaForCausalLM"), "architecture-differs", "names Qwen2ForCausalLM"),
    ):
        refused = run("qwen", *arguments, ENGINEHOUSE_CATALOGUE=catalogue)
        assert refused.returncode == 2 and f"[{code}]" in refused.stderr and named in refused.stderr


def write_model(folder: Path, name: str, config: dict[str, Any], size: int, **recipe: Any) -> None:
    """A model with so many bytes of weights, which are a hole."""
    weights = folder.parent / f"weights-{name}"
    weights.mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (weights / "config.json").write_bytes(text(config))
    (weights / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with (weights / "model.safetensors").open("wb") as file:
        file.truncate(size)
    runtime = {"tensorrt_llm": "1.2.1", "gpu": "NVIDIA H100 80GB HBM3", "arch": "sm90", "gpus": 8}
    document = {
        "name": name,
        "source": {"uri": f"file://{weights}"},
        "recipe": {"kind": "trt-engine", **recipe, "runtime": {**runtime, **recipe.get("runtime", {})}},
        "prompts": [{"name": "count", "text": "Count.", "max_tokens": 4, "expect": {"min_tokens": 1}}],
    }
    (folder / f"{name}.yaml").write_text(json.dumps(document))


def test_what_cannot_be_is_refused_with_what_would_do(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    llama = plain("LlamaForCausalLM", "llama", 126, 128, 8, 16384, vocab_size=128256)
    write_model(folder, "large", llama, 811_706_777_600, quantization="fp8", runtime={"gpus": 1})
    write_model(folder, "wrong", llama, 4096, runtime={"gpu": "NVIDIA A100-SXM4-80GB"})
    catalogue = str(folder)
    refused = run("large", ENGINEHOUSE_CATALOGUE=catalogue)
    assert refused.returncode == 2 and "[gpu-too-small]" in refused.stderr and "tp_size 8" in refused.stderr
    answered = run("large", "--json", ENGINEHOUSE_CATALOGUE=catalogue)
    assert json.loads(answered.stdout)["error"]["code"] == "gpu-too-small"
    refused = run("wrong", ENGINEHOUSE_CATALOGUE=catalogue)
    assert refused.returncode == 2 and "[spec-invalid]" in refused.stderr and "is sm80, not sm90" in refused.stderr
    with index_server() as index:
        for version in ("1.2.1", "1.2.2", "1.3.0"):
            index.release(version)
        refused = run("llama3-8b-instruct", "--runtime", "2.0.0", PIP_INDEX_URL=index.url)
        assert refused.returncode == 2 and "[version-missing]" in refused.stderr and "1.2.2, 1.3.0" in refused.stderr
        assert run("llama3-8b-by-hand", "--runtime", "1.2.2", PIP_INDEX_URL=index.url).returncode == 0
    # Nobody was asked, or nobody answers: it is said, and not refused.
    for done in (
        run("llama3-8b-instruct", "--runtime", "2.0.0", "--offline"),
        run("llama3-8b-instruct", "--runtime", "2.0.0"),
    ):
        assert done.returncode == 0 and "whether there is a TensorRT-LLM 2.0.0 is not known" in done.stderr


def test_the_whole_catalogue_in_a_table(catalogue: Path) -> None:
    (catalogue / "zz.yaml").write_text("name: [")
    write_model(catalogue, "huge", DEEPSEEK_V3 | {"quantization_config": None}, 10**13, kind="llmapi")
    table = run(ENGINEHOUSE_CATALOGUE=str(catalogue)).stdout.splitlines()
    assert table[0].split() == ["MODEL", "KIND", "ON", "MEMORY", "LIVE", "TO", "MAKE"]
    assert max(map(len, table)) <= 80
    rows = {line.split()[0]: line for line in table[1:] if not line.startswith(" ")}
    assert [*rows] == ["deepseek", "huge", "zz"]
    assert rows["deepseek"].split()[1:] == ["llmapi", "8", "x", "sm90", "115.4/140", "GiB", "?", "?"]
    assert rows["huge"].endswith("refused") and rows["zz"].endswith("refused")
    assert any("[gpu-too-small]" in line for line in table) and any("[spec-invalid]" in line for line in table)
    found = {
        each["model"]: each for each in json.loads(run("--json", ENGINEHOUSE_CATALOGUE=str(catalogue)).stdout)["models"]
    }
    assert found["deepseek"]["memory"]["weights"] == 671 * 10**9 // 8
    assert found["huge"]["error"]["code"] == "gpu-too-small" and found["zz"]["error"]["code"] == "spec-invalid"
    assert run("--runtime", "1.2.1", ENGINEHOUSE_CATALOGUE=str(catalogue)).returncode == 2


def of_store(bucket: Bucket) -> dict[str, str]:
    aws = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    return {**aws, "ENGINEHOUSE_STORE": f"s3://{bucket.name}/{bucket.prefix.rstrip('/')}"}


def test_what_the_store_says_of_steps_time_and_nodes(bucket: Bucket, fleet: Fleet, tmp_path: Path) -> None:
    smollm = load_model(CHECKOUT / "deployments/models/smollm2-135m.yaml")
    local = replace(fleet, target=Target(bucket, "local"))
    local.release(make(bucket, smollm, tmp_path / "files", 30.0))
    report(local.target)
    environment = of_store(bucket)
    arguments = ("smollm2-135m", "--recipe", "quantization=q4_0")
    shown = run(*arguments, **environment)
    assert shown.returncode == 0 and max(map(len, shown.stdout.splitlines())) <= 80, shown.stderr
    snapshot = Path(__file__).parent / "snapshots" / "plan.txt"
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        snapshot.write_text(shown.stdout)
    assert shown.stdout == snapshot.read_text()
    document = json.loads(run(*arguments, "--json", **environment).stdout)
    assert [step["state"] for step in document["steps"]] == ["cached", "cached", "to make", "to make"]
    assert document["steps"][2]["seconds"] == {"expected": 30.0, "low": 20.0, "high": 45.0, "by": "earlier runs"}
    assert document["targets"][0]["live"] == 1 and document["compared_with"]["live"]
    assert document["targets"][0]["nodes"][0]["node"] == "one"
    refused = run("smollm2-135m", "--target", "nowhere", **environment)
    assert refused.returncode == 2 and "[target-without-node]" in refused.stderr
    assert "targets with nodes: local" in refused.stderr
    away = run("smollm2-135m", **{**environment, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"})
    assert away.returncode == 0 and "what the store has is not known" in away.stderr


def test_a_price_makes_a_cost() -> None:
    llama = load_model(CHECKOUT / "deployments/models/llama3-70b-instruct.yaml")
    names: tuple[StepName, ...] = ("convert", "build", "assemble")
    steps = [PlannedStep(step, "to make", ArtifactRef("engine", "0" * 64)) for step in names]
    time = forecast(steps, {"convert": [1800.0], "build": [1800.0], "assemble": [9000.0]}, None, gpus=4)
    assert cost_of(Preview(llama), time, {"sm90": 2.5}) == (6.67, 10.0, 15.0)
    assert cost_of(Preview(llama), time, {"sm100": 2.5}) is None


def test_who_hangs_is_not_waited_for() -> None:
    with pytest.raises(SourceUnavailable) as caught:
        within(0.05, "the store", threading.Event().wait)
    assert caught.value.code == "no-answer"
    with pytest.raises(ZeroDivisionError):
        within(5, "the store", lambda: 1 // 0)
