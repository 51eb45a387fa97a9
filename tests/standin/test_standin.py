"""The stand-in itself: is it as strict as the real tools, in their words? Tests of the steps use it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.standin import facts, failures, safetensors, toolchain, tools, weights
from tests.standin.context import Context
from tests.standin.toolchain import Toolchain

# The steps' own tests run it in `make test` already.
pytestmark = pytest.mark.slow

EVERY = [(version, tool) for version in facts.VERSIONS for tool in facts.TOOLS]
CHAIN = ("0.8.0", "0.12.0", "1.2.1")
BUILD, CONVERT, QUANTIZE, RUN = "trtllm-build", "convert_checkpoint.py", "quantize.py", "run.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights.make(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Toolchain]:
    folder = tmp_path_factory.mktemp("toolchains")
    return {version: toolchain.make(folder / version, version) for version in facts.VERSIONS}


def _run(
    chain: Toolchain, tool: str, arguments: list[str], folder: Path, *, failure: str = "", ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HF_DATASETS_OFFLINE": "1", failures.VARIABLE: failure}
    command = chain.command(tool)
    if ranks > 1:
        command = [str(chain.folder / "bin/mpirun"), "--allow-run-as-root", "-n", str(ranks), *command]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def _convert(chain: Toolchain, model: Path, folder: Path, *more: str, failure: str = "") -> str:
    ran = _run(
        chain, CONVERT, ["--model_dir", str(model), "--output_dir", "checkpoint", *more], folder, failure=failure
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def _build(chain: Toolchain, folder: Path, *more: str, failure: str = "") -> subprocess.CompletedProcess[str]:
    return _run(
        chain, BUILD, ["--checkpoint_dir", "checkpoint", "--output_dir", "engine", *more], folder, failure=failure
    )


def _ask(
    chain: Toolchain, model: Path, folder: Path, *more: str, failure: str = "", ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    arguments = [
        "--engine_dir",
        "engine",
        "--tokenizer_dir",
        str(model),
        "--max_output_len",
        "6",
        "--input_text",
        "one",
    ]
    return _run(chain, RUN, [*arguments, *more], folder, failure=failure, ranks=ranks)


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def _valid(row: dict[str, Any]) -> list[str]:
    if row.get("switch") or row.get("action") == "BooleanOptionalAction":
        return []
    value = {"int": "3", "float": "0.5", "KVCacheType": "Paged"}.get(row.get("type", ""), "text")
    if "choices" in row:
        value = str(row["choices"][0])
    return [value] * (row["nargs"] if isinstance(row.get("nargs"), int) else 1)


def _refused(tool: str, version: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        facts.parser(tool, version).parse_args(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def _required(tool: str, version: str) -> list[str]:
    return [
        part for flag, row in facts.flags(tool, version).items() if row.get("required") for part in (flag, *_valid(row))
    ]


@pytest.mark.parametrize(("version", "tool"), EVERY)
def test_a_version_takes_every_flag_of_its_table(version: str, tool: str) -> None:
    parser = facts.parser(tool, version)
    rows = facts.flags(tool, version)
    parser.parse_args([part for flag, row in rows.items() for part in (flag, *_valid(row))])
    for flag, row in rows.items():
        for alias in row.get("aliases", []):
            parser.parse_args([*_required(tool, version), alias, *_valid(row)])
        for choice in row.get("choices", []):
            if choice is not None:
                parser.parse_args([*_required(tool, version), flag, str(choice)])


@pytest.mark.parametrize(("version", "tool"), EVERY)
def test_a_version_refuses_what_it_does_not_have(version: str, tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    required = _required(tool, version)
    rows = facts.flags(tool, version)
    for other in facts.VERSIONS:
        for flag, row in facts.flags(tool, other).items():
            if not any(
                name.startswith(flag) for known, had in rows.items() for name in (known, *had.get("aliases", []))
            ):
                arguments = [*required, flag, *_valid(row)]
                assert _refused(tool, version, arguments, capsys).startswith(f"{tool}: error: unrecognized arguments: ")
    for flag, row in rows.items():
        said = _refused(tool, version, [*required, f"{flag}_x"], capsys)
        assert said == f"{tool}: error: unrecognized arguments: {flag}_x"
        names = "/".join([flag, *row.get("aliases", [])])
        if "choices" in row:
            said = _refused(tool, version, [*required, flag, "7"], capsys)
            assert f"argument {names}: invalid choice: " in said and repr(row["choices"][-1]) in said
        elif row.get("type") in ("int", "float", "KVCacheType"):
            said = _refused(tool, version, [*required, flag, "many"], capsys)
            assert said.endswith(f"argument {names}: invalid {row['type']} value: 'many'")


@pytest.mark.parametrize(
    ("tool", "flag", "value", "versions"),
    [
        (BUILD, "--gemm_plugin", "auto", ("0.11.0", "1.2.1")),
        (BUILD, "--gemm_plugin", "nvfp4", ("0.17.0", "1.2.1")),
        (BUILD, "--max_output_len", "512", ("0.8.0", "0.11.0")),
        (BUILD, "--max_seq_len", "512", ("0.11.0", "1.2.1")),
        (BUILD, "--use_fused_mlp", None, ("0.8.0", "0.12.0")),
        (BUILD, "--use_fused_mlp", "enable", ("0.13.0", "1.2.1")),
        (BUILD, "--kv_cache_type", "paged", ("0.13.0", "1.2.1")),
        (BUILD, "--paged_kv_cache", "enable", ("0.8.0", "1.2.1")),
        (BUILD, "--multi_block_mode", "enable", ("0.8.0", "0.11.0")),
        (BUILD, "--fast_build", None, ("0.12.0", "1.2.1")),
        (BUILD, "--timing_cache", "model.cache", ("0.8.0", "0.8.0")),
        (CONVERT, "--dtype", "auto", ("0.15.0", "1.2.1")),
        (CONVERT, "--cp_size", "2", ("0.16.0", "1.2.1")),
        (QUANTIZE, "--qformat", "nvfp4", ("0.17.0", "1.2.1")),
        (QUANTIZE, "--kv_cache_dtype", "fp8", ("0.8.0", "1.2.1")),
        (QUANTIZE, "--seed", "1", ("0.9.0", "1.2.1")),
    ],
)
def test_well_known_changes_are_in_the_table(
    tool: str, flag: str, value: str | None, versions: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, last = map(facts.numbers, versions)
    for version in facts.VERSIONS:
        arguments = [*_required(tool, version), flag, *([] if value is None else [value])]
        if first <= facts.numbers(version) <= last:
            facts.parser(tool, version).parse_args(arguments)
        else:
            _refused(tool, version, arguments, capsys)


def test_every_row_names_a_range_and_has_a_source() -> None:
    table = _json(Path(facts.__file__).with_name("cli.json"))
    assert set(table["tools"]) == set(facts.TOOLS)
    for rows in (rows for tool in table["tools"].values() for rows in tool.values()):
        bounds = [facts.numbers(bound) for row in rows for bound in row["versions"]]
        assert bounds == sorted(bounds) and all(bound in facts.VERSIONS for row in rows for bound in row["versions"])
    for rows in table["sources"].values():
        assert rows[0]["versions"][0] == facts.VERSIONS[0] and rows[-1]["versions"][1] == facts.VERSIONS[-1]
    assert set(table["commits"]) == {version for version in facts.VERSIONS if facts.numbers(version) < (0, 17)}


@pytest.mark.parametrize("version", CHAIN)
@pytest.mark.parametrize("tool", facts.TOOLS)
def test_the_program_refuses_with_exit_status_2(
    made: dict[str, Toolchain], tmp_path: Path, version: str, tool: str
) -> None:
    ran = _run(made[version], tool, [*_required(tool, version), "--no_such_flag", "1"], tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"usage: {tool} [-h]")
    assert ran.stderr.splitlines()[-1] == f"{tool}: error: unrecognized arguments: --no_such_flag 1"
    shown = _run(made[version], tool, ["--help"], tmp_path)
    assert shown.returncode == 0 and all(flag in shown.stdout for flag in facts.flags(tool, version))


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("version", CHAIN)
def test_weights_become_an_engine_that_answers(
    made: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, ranks: int
) -> None:
    chain, late = made[version], version != "0.8.0"
    _convert(chain, model, tmp_path, "--dtype", "bfloat16", "--tp_size", str(ranks))
    checkpoint = tmp_path / "checkpoint"
    config = _json(checkpoint / "config.json")
    assert (config["architecture"], config["dtype"]) == ("LlamaForCausalLM", "bfloat16")
    assert config["mapping"] | {"world_size": ranks, "tp_size": ranks, "pp_size": 1} == config["mapping"]
    assert config["quantization"]["quant_algo"] is None
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "config.json",
        *(f"rank{rank}.safetensors" for rank in range(ranks)),
    ]
    whole = safetensors.read(next(iter(sorted(model.glob("*.safetensors")))), sentences=False)
    parts = [safetensors.read(checkpoint / f"rank{rank}.safetensors", sentences=False) for rank in range(ranks)]
    gate = whole["model.layers.0.mlp.gate_proj.weight"]
    assert b"".join(part["transformer.layers.0.mlp.fc.weight"].data for part in parts) == gate.data
    assert parts[0]["transformer.layers.0.attention.qkv.weight"].shape == (128 // ranks, 64)

    more = ["--fast_build", "--output_timing_cache", "other.cache"] if late else []
    built = _build(
        chain, tmp_path, "--max_batch_size", "8", "--gemm_plugin", "bfloat16", "--workers", str(ranks), *more
    )
    assert built.returncode == 0, built.stderr
    assert built.stdout.startswith(f"[TensorRT-LLM] TensorRT{' ' if version == '1.2.1' else '-'}LLM version: {version}")
    assert "[TRT-LLM] [I] Set " in built.stdout and "gemm_plugin to bfloat16." in built.stdout
    assert "Total time of building all engines: 00:00:0" in built.stdout.splitlines()[-1]
    assert built.stdout.count("Build TensorRT engine Unnamed Network 0") == ranks
    engine = _json(tmp_path / "engine/config.json")
    assert list(engine) == ["version", "pretrained_config", "build_config"] and engine["version"] == version
    assert engine["pretrained_config"]["mapping"]["tp_size"] == ranks
    build = engine["build_config"]
    assert build["max_batch_size"] == 8 and build["plugin_config"]["gemm_plugin"] == "bfloat16"
    assert ("max_seq_len" in build, "max_output_len" in build) == (late, not late)
    assert build.get("kv_cache_type") == ("paged" if version == "1.2.1" else None)
    assert (tmp_path / "other.cache").is_file() == late
    names = {f"rank{rank}.engine" for rank in range(ranks)}
    if late:
        assert build["max_seq_len"] == 2048
        names |= {f"rank{rank}_managed_weights.safetensors" for rank in range(ranks)}
    assert {path.name for path in (tmp_path / "engine").iterdir()} == {"config.json", *names}
    assert all((tmp_path / "engine" / name).stat().st_size > 0 for name in names)

    answered = _ask(chain, model, tmp_path, ranks=ranks)
    assert answered.returncode == 0, answered.stderr
    assert 'Input [Text 0]: "<|begin_of_text|>one"\nOutput [Text 0 Beam 0]: "' in answered.stdout
    assert answered.stdout.count("Output [") == 1 and 'Beam 0]: ""' not in answered.stdout


@pytest.mark.parametrize("version", facts.VERSIONS)
def test_every_version_writes_its_own_keys(
    model: Path, tmp_path: Path, version: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which is faster than to start each tool."""
    monkeypatch.chdir(tmp_path)
    for tool, arguments in (
        (CONVERT, ["--model_dir", str(model), "--output_dir", "checkpoint", "--pp_size", "2"]),
        (BUILD, ["--checkpoint_dir", "checkpoint", "--output_dir", "engine"]),
        (QUANTIZE, ["--model_dir", str(model), "--output_dir", "quantized", "--qformat", "int8_wo"]),
        (BUILD, ["--checkpoint_dir", "quantized", "--output_dir", "other"]),
        (RUN, ["--engine_dir", "other", "--tokenizer_dir", str(model), "--max_output_len", "3"]),
    ):
        monkeypatch.setattr("sys.argv", [tool, *arguments])
        tools.main(tool, Context(version, "sm90", 1))
    assert "Output [Text 0 Beam 0]: " in capsys.readouterr().out
    for file in ("checkpoint/config.json", "quantized/config.json"):
        written = _json(tmp_path / file)
        assert written.pop("producer", None) is None or file.startswith("quantized")
        assert set(written) == set(facts.keys("checkpoint", version))
        for section in ("mapping", "quantization"):
            assert set(written[section]) == set(facts.keys(section, version))
    engine = _json(tmp_path / "engine/config.json")
    assert set(engine["build_config"]) == set(facts.keys("build_config", version))
    assert set(engine["build_config"]["plugin_config"]) == set(facts.keys("plugin_config", version))
    assert _json(tmp_path / "other/config.json")["pretrained_config"]["quantization"]["quant_algo"] == "W8A16"
    assert (tmp_path / "model.cache").is_file() == (version != "0.8.0")


def test_equal_input_gives_equal_files_and_other_weights_others(
    made: dict[str, Toolchain], model: Path, tmp_path: Path
) -> None:
    chain, other = made["0.16.0"], weights.make(tmp_path / "other", seed=1)
    seen: list[list[bytes]] = []
    for name, source in (("a", model), ("b", model), ("c", other)):
        (tmp_path / name).mkdir()
        _convert(chain, source, tmp_path / name)
        assert _build(chain, tmp_path / name).returncode == 0
        files = ("checkpoint/rank0.safetensors", "engine/rank0.engine")
        seen.append([(tmp_path / name / file).read_bytes() for file in files])
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0] and seen[0][1] != seen[2][1]


@pytest.mark.parametrize(
    ("version", "flags", "algorithm", "cache"),
    [
        ("0.8.0", ["--use_weight_only", "--weight_only_precision", "int4"], "W4A16", None),
        ("0.12.0", ["--use_fp8_rowwise", "--fp8_kv_cache"], "FP8_PER_CHANNEL_PER_TOKEN", "FP8"),
        ("1.2.1", ["--use_weight_only", "--weight_only_precision", "int4_awq"], "W4A16_AWQ", None),
    ],
)
def test_weights_are_quantized_while_they_are_converted(
    made: dict[str, Toolchain],
    model: Path,
    tmp_path: Path,
    version: str,
    flags: list[str],
    algorithm: str,
    cache: str | None,
) -> None:
    _convert(made[version], model, tmp_path, *flags)
    found = _json(tmp_path / "checkpoint/config.json")["quantization"]
    assert (found["quant_algo"], found["kv_cache_quant_algo"]) == (algorithm, cache)
    assert _build(made[version], tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("version", "flags", "algorithm", "said"),
    [
        (
            "0.11.0",
            ["--qformat", "fp8", "--kv_cache_dtype", "fp8", "--calib_dataset", "{data}"],
            "FP8",
            "Calibrating batch 0",
        ),
        ("0.13.0", ["--qformat", "int4_awq", "--calib_dataset", "{data}"], "W4A16_AWQ", "Using calib_size=32 instead"),
        ("1.2.1", ["--qformat", "nvfp4", "--calib_dataset", "{data}", "--tp_size", "2"], "NVFP4", "Recognized local"),
        ("1.2.1", ["--qformat", "int8_wo"], "W8A16", "No quantization applied, export auto model"),
    ],
)
def test_a_model_is_calibrated(
    made: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, flags: list[str], algorithm: str, said: str
) -> None:
    arguments = [
        "--model_dir",
        str(model),
        "--output_dir",
        "checkpoint",
        *(flag.format(data=tmp_path) for flag in flags),
    ]
    ran = _run(made[version], QUANTIZE, arguments, tmp_path)
    assert ran.returncode == 0 and said in ran.stdout, ran.stderr
    assert "Quantized model exported to checkpoint" in ran.stdout
    assert _json(tmp_path / "checkpoint/config.json")["quantization"]["quant_algo"] == algorithm
    assert _build(made[version], tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("version", "flags", "last"),
    [
        ("0.9.0", [], "quantize.py: error: the following arguments are required: --model_dir"),
        ("0.12.0", [], "ValueError: One of source checkpoint (model_dir, nemo_ckpt_path) must be specified"),
        (
            "1.2.1",
            ["--qformat", "fp8", "--calib_dataset", "mine"],
            "Unsupported dataset name or local repo directory: mine.",
        ),
        ("0.8.0", ["--qformat", "fp8"], "Couldn't reach 'cnn_dailymail' on the Hub (OfflineModeIsEnabled)"),
        ("0.13.0", ["--qformat", "fp8"], "Couldn't reach 'cnn_dailymail' on the Hub (OfflineModeIsEnabled)"),
    ],
)
def test_quantize_refuses(
    made: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, flags: list[str], last: str
) -> None:
    ran = _run(made[version], QUANTIZE, ["--model_dir", str(model), *flags] if flags else [], tmp_path)
    assert ran.returncode in (1, 2) and ran.stderr.rstrip().endswith(last)


@pytest.mark.parametrize(
    ("version", "last"),
    [("0.8.0", "HeaderTooLarge"), ("0.12.0", "HeaderTooLarge"), ("1.2.1", "header too large")],
)
def test_a_pointer_instead_of_weights_is_no_header(
    made: dict[str, Toolchain], tmp_path: Path, version: str, last: str
) -> None:
    source = weights.make(tmp_path / "weights")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    (source / "model-00002-of-00002.safetensors").write_text(pointer)
    ran = _run(made[version], CONVERT, ["--model_dir", str(source)], tmp_path)
    words = f"safetensors_rust.SafetensorError: Error while deserializing header: {last}"
    assert ran.returncode == 1 and ran.stderr.splitlines()[-1] == words


def test_missing_and_misshapen_weights_are_noticed(made: dict[str, Toolchain], tmp_path: Path) -> None:
    wide = weights.make(tmp_path / "wide")
    (wide / "config.json").write_text(json.dumps(_json(wide / "config.json") | {"intermediate_size": 96}))
    for version, words in (
        ("0.8.0", "RuntimeError: Error(s) in loading state_dict for LlamaForCausalLM:"),
        ("0.12.0", "Auto padding failed."),
    ):
        ran = _run(made[version], CONVERT, ["--model_dir", str(wide)], tmp_path)
        assert ran.returncode == 1 and words in ran.stderr
    short = weights.make(tmp_path / "short")
    (short / "config.json").write_text(json.dumps(_json(short / "config.json") | {"num_hidden_layers": 3}))
    ran = _run(made["0.8.0"], CONVERT, ["--model_dir", str(short)], tmp_path)
    assert ran.returncode == 0 and "Some weights of LlamaForCausalLM were not initialized" in ran.stderr
    ran = _run(made["0.12.0"], CONVERT, ["--model_dir", str(short)], tmp_path)
    assert ran.returncode == 1 and "KeyError: 'transformer.layers.2.input_layernorm.weight'" in ran.stderr


@pytest.mark.parametrize(
    ("version", "arguments", "words"),
    [
        ("0.12.0", [], "AttributeError: 'NoneType' object has no attribute 'lower'"),
        ("0.12.0", ["--checkpoint_dir", "nowhere"], "No such file or directory: 'nowhere/config.json'"),
        (
            "1.2.1",
            ["--checkpoint_dir", "checkpoint", "--streamingllm", "enable"],
            "StreamingLLM is no longer supported",
        ),
        (
            "0.12.0",
            ["--checkpoint_dir", "checkpoint", "--gather_context_logits", "--max_draft_len", "4"],
            "is not support",
        ),
        (
            "0.8.0",
            ["--checkpoint_dir", "lost"],
            'FileNotFoundError: No such file or directory: "lost/rank0.safetensors"',
        ),
        ("0.12.0", ["--checkpoint_dir", "lost"], "AssertionError"),
        ("0.8.0", ["--checkpoint_dir", "gpt"], "RuntimeError: Unsupported model architecture: GptForCausalLM"),
        ("0.12.0", ["--checkpoint_dir", "gpt"], "AssertionError: Unsupported model architecture: GptForCausalLM"),
        ("0.12.0", ["--checkpoint_dir", "cut"], "Required but not provided tensors:{'lm_head.weight'}"),
        ("0.12.0", ["--checkpoint_dir", "lost", "--workers", "2"], "Engine building failed, please check error log."),
    ],
)
def test_a_build_refuses(
    made: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, arguments: list[str], words: str
) -> None:
    _convert(made[version], model, tmp_path)
    config = _json(tmp_path / "checkpoint/config.json")
    tensors = safetensors.read(tmp_path / "checkpoint/rank0.safetensors", sentences=False)
    del tensors["lm_head.weight"]
    for name, changes in (("lost", {}), ("gpt", {"architecture": "GptForCausalLM"}), ("cut", {})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config | changes))
    safetensors.write(tmp_path / "cut/rank0.safetensors", tensors)
    ran = _run(made[version], BUILD, arguments, tmp_path)
    assert ran.returncode == 1 and words in ran.stderr
    assert not (tmp_path / "engine_outputs/rank0.engine").exists()


def test_lengths_are_clipped_to_each_other(made: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    _convert(made["0.16.0"], model, tmp_path)
    built = _build(
        made["0.16.0"], tmp_path, "--max_input_len", "900", "--max_seq_len", "512", "--paged_kv_cache", "disable"
    )
    assert "max_input_len is 900 is larger than max_seq_len 512, clipping it to max_seq_len" in built.stdout
    assert "Option --paged_kv_cache is deprecated, use --kv_cache_type=paged/disabled instead." in built.stdout
    build = _json(tmp_path / "engine/config.json")["build_config"]
    assert (build["max_input_len"], build["max_seq_len"], build["kv_cache_type"]) == (512, 512, "CONTINUOUS")


def test_a_tool_is_killed_by_the_kernel(made: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    chain = made["0.12.0"]
    for tool in (CONVERT, QUANTIZE):
        arguments = ["--model_dir", str(model), *(["--qformat", "fp8"] if tool == QUANTIZE else [])]
        arguments += ["--calib_dataset", str(tmp_path)]
        assert _run(chain, tool, arguments, tmp_path, failure="host-memory").returncode == -signal.SIGKILL
    _convert(chain, model, tmp_path, "--tp_size", "2")
    assert _build(chain, tmp_path, failure="host-memory").returncode == -signal.SIGKILL
    # The kernel takes a worker then, and the tool lives to tell.
    built = _build(chain, tmp_path, "--workers", "2", failure="host-memory")
    assert built.returncode == 1
    assert "concurrent.futures.process.BrokenProcessPool" in built.stderr
    assert built.stderr.rstrip().endswith("AssertionError: Engine building failed, please check error log.")


@pytest.mark.parametrize(
    ("version", "code", "said", "last"),
    [
        ("0.8.0", 1, "2: [virtualMemoryBuffer.cpp::resizePhysical::140] Error Code 2: OutOfMemory", "not 'NoneType'"),
        ("0.11.0", 0, "Error Code 2: OutOfMemory (Requested size was 24793579520 bytes.)", ""),
        (
            "0.12.0",
            1,
            "Error Code 10: Internal Error (Could not find any implementation for node",
            "check the error log.",
        ),
    ],
)
def test_a_build_finds_no_gpu_memory(
    made: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, code: int, said: str, last: str
) -> None:
    _convert(made[version], model, tmp_path)
    built = _build(made[version], tmp_path, failure="gpu-memory")
    assert built.returncode == code and said in built.stderr
    assert "[TRT] [W] Requested amount of GPU memory (24793579520 bytes) could not be allocated." in built.stderr
    assert code == 0 or built.stderr.rstrip().endswith(last)
    engine = tmp_path / "engine/rank0.engine"
    assert not engine.exists() or engine.stat().st_size == 0


@pytest.mark.parametrize(
    ("version", "tool", "failure", "last"),
    [
        ("0.12.0", CONVERT, "gpu-memory", "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        ("1.2.1", CONVERT, "gpu-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
        (
            "0.12.0",
            CONVERT,
            "script-mismatch",
            "TypeError: Mapping.__init__() got an unexpected keyword argument 'moe_tp_size'",
        ),
        (
            "1.2.1",
            CONVERT,
            "script-mismatch",
            "ImportError: cannot import name 'infer_dtype' from 'tensorrt_llm._utils'",
        ),
        ("0.8.0", CONVERT, "world-size", "ValueError: world_size must equal to pp_size * tp_size"),
        ("0.16.0", BUILD, "world-size", "ValueError: world_size must equal to pp_size * cp_size * tp_size, but got 3"),
        ("1.2.1", BUILD, "world-size", "ValueError: world_size must equal to tp_size * pp_size * cp_size, but got 3"),
        ("0.8.0", RUN, "world-size", "Assertion failed: mpiSize == tp * pp"),
        ("1.2.1", RUN, "world-size", "Assertion failed: MPI size 2 != TP size 1 * PP size 1 * CP Size 1"),
        ("0.8.0", RUN, "version", "[TensorRT-LLM][ERROR] Assertion failed: Failed to deserialize cuda engine."),
        ("1.2.1", RUN, "architecture", "[TensorRT-LLM][ERROR] Assertion failed: Failed to deserialize cuda engine."),
        ("1.2.1", RUN, "gpu-memory", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate"),
    ],
)
def test_a_failure_ends_a_tool_in_its_own_words(
    made: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, tool: str, failure: str, last: str
) -> None:
    chain = made[version]
    if tool != CONVERT:
        _convert(chain, model, tmp_path)
    if tool == RUN:
        assert _build(chain, tmp_path).returncode == 0
        ran = _ask(chain, model, tmp_path, failure=failure)
    elif tool == BUILD:
        ran = _build(chain, tmp_path, failure=failure)
    else:
        ran = _run(chain, tool, ["--model_dir", str(model)], tmp_path, failure=failure)
    assert ran.returncode == 1
    assert "Traceback (most recent call last):" in ran.stderr and last in ran.stderr.splitlines()[-1]


def test_an_engine_of_another_tensorrt_or_architecture_does_not_load(
    made: dict[str, Toolchain], model: Path, tmp_path: Path
) -> None:
    ada = toolchain.make(tmp_path / "ada", "0.8.0", architecture="sm89")
    _convert(ada, model, tmp_path)
    assert _build(ada, tmp_path).returncode == 0
    for version, words in (
        (
            "0.8.0",
            "[TensorRT-LLM][ERROR] 6: The engine plan file is generated on an incompatible device, expecting "
            "compute 9.0 got compute 8.9, please rebuild.",
        ),
        (
            "1.2.1",
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible "
            "with this version of TensorRT, expecting library version 10.14.1.48 got 9.2.0.post12.dev5, ",
        ),
    ):
        ran = _ask(made[version], model, tmp_path)
        assert ran.returncode == 1 and words in ran.stderr
    ran = _ask(made["0.8.0"], model, tmp_path, "--use_py_session")
    assert "[TRT] [E] 6: The engine plan file is generated on an incompatible device" in ran.stderr


def test_an_engine_lacks_a_file_or_a_rank(made: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    chain = made["0.12.0"]
    _convert(chain, model, tmp_path, "--tp_size", "2")
    assert _build(chain, tmp_path, failure="empty-rank").returncode == 0
    assert (tmp_path / "engine/rank1.engine").stat().st_size == 0
    ran = _ask(chain, model, tmp_path)
    assert "MPI size 1 != TP size 2 * PP size 1 * CP Size 1" in ran.stderr.splitlines()[-1]
    ran = _ask(chain, model, tmp_path, "--use_py_session")
    assert ran.stderr.splitlines()[-1] == "AssertionError: Engine world size (2 * 1) != Runtime world size (1)"
    ran = _ask(chain, model, tmp_path, ranks=2)
    assert ran.returncode == 1 and "Error Code 1: Serialization" in ran.stderr
    # Whole, so that only the other rank fails: the first that does ends both.
    (tmp_path / "engine/rank0.engine").replace(tmp_path / "engine/rank1.engine")
    ran = _ask(chain, model, tmp_path, ranks=2)
    assert ran.returncode == 1 and "Error opening engine file: engine/rank0.engine" in ran.stderr


def test_files_that_look_well_are_wrong(made: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    chain = made["1.2.1"]
    _convert(chain, model, tmp_path, "--tp_size", "2", failure="empty-rank")
    assert (tmp_path / "checkpoint/rank1.safetensors").stat().st_size == 0
    _convert(chain, model, tmp_path, failure="wrong-config")
    assert _json(tmp_path / "checkpoint/config.json")["dtype"] == "float32"
    assert _build(chain, tmp_path, "--max_batch_size", "8", failure="wrong-config").returncode == 0
    assert _json(tmp_path / "engine/config.json")["build_config"]["max_batch_size"] == 9
    ran = _ask(chain, model, tmp_path, failure="silent-answer")
    assert ran.returncode == 0 and 'Output [Text 0 Beam 0]: ""' in ran.stdout


def test_a_machine_without_gpus_quantizes_and_builds_nothing(model: Path, tmp_path: Path) -> None:
    chain = toolchain.make(tmp_path / "chain", "0.12.0", gpus=0)
    ran = _run(chain, QUANTIZE, ["--model_dir", str(model), "--qformat", "int8_wo"], tmp_path)
    assert ran.returncode == 1 and ran.stderr.endswith("OSError: GPU is required for inference.\n")
    _convert(chain, model, tmp_path)
    assert _build(chain, tmp_path).stderr.endswith("ValueError: max_workers must be greater than 0\n")


def test_a_failure_is_chosen_in_the_toolchain_too(model: Path, tmp_path: Path) -> None:
    chain = toolchain.make(tmp_path / "chain", "0.12.0")
    chain.fail("gpu-memory", BUILD)
    _convert(chain, model, tmp_path)
    assert _build(chain, tmp_path).returncode == 1
    chain.fail("")
    assert _build(chain, tmp_path).returncode == 0
    chain.fail("no-such")
    assert "the stand-in has no failure 'no-such'" in _build(chain, tmp_path).stderr


def test_a_tool_hangs(made: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    command = [*made["0.12.0"].command(CONVERT), "--model_dir", str(model)]
    environment = {failures.VARIABLE: f"{CONVERT}:hang"}
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=1.5)


@pytest.fixture
def hanging(made: dict[str, Toolchain], model: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    _convert(made["0.12.0"], model, tmp_path)
    environment = {"PATH": os.environ["PATH"], failures.VARIABLE: "hang-workers"}
    command = [*made["0.12.0"].command(BUILD), "--checkpoint_dir", "checkpoint"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    started = psutil.Process(process.pid)
    yield process
    for child in (*started.children(recursive=True), started):
        child.kill()
    process.wait()


def test_workers_hang_one_of_them_in_a_session_of_its_own(hanging: subprocess.Popen[bytes]) -> None:
    ours, started = os.getsid(0), psutil.Process(hanging.pid)
    end = time.monotonic() + 30
    while time.monotonic() < end:
        workers = [child for child in started.children() if "spawn_main" in " ".join(child.cmdline())]
        if len(workers) == 4 and sum(os.getsid(worker.pid) != ours for worker in workers) == 1:
            break
        time.sleep(0.1)
    else:
        pytest.fail("no four workers, one of them in a session of its own")
    assert hanging.poll() is None


def test_ranks_that_share_the_context_share_weights(made: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    _convert(made["1.2.1"], model, tmp_path, "--tp_size", "2", "--pp_size", "2", "--cp_size", "2")
    assert len(list((tmp_path / "checkpoint").glob("rank*.safetensors"))) == 4
    assert _json(tmp_path / "checkpoint/config.json")["mapping"]["world_size"] == 8
    built = _build(made["1.2.1"], tmp_path)
    assert built.returncode == 0, built.stderr
    assert len(list((tmp_path / "engine").glob("rank*.engine"))) == 8
