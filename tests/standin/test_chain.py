"""From weights to an answer: convert, build and run, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.standin import facts, safetensors, tools, weights
from tests.standin.context import Context
from tests.standin.programs import (
    BUILD,
    CHAIN,
    CONVERT,
    QUANTIZE,
    RUN,
    ask_engine,
    build_engine,
    convert_weights,
    read_json,
)
from tests.standin.toolchain import Toolchain

# The steps' own tests run the stand-in in `make test` already.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("version", CHAIN)
def test_weights_become_an_engine_that_answers(
    toolchains: dict[str, Toolchain], model: Path, tmp_path: Path, version: str, ranks: int
) -> None:
    chain, late = toolchains[version], version != "0.8.0"
    convert_weights(chain, model, tmp_path, "--dtype", "bfloat16", "--tp_size", str(ranks))
    checkpoint = tmp_path / "checkpoint"
    config = read_json(checkpoint / "config.json")
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
    built = build_engine(
        chain, tmp_path, "--max_batch_size", "8", "--gemm_plugin", "bfloat16", "--workers", str(ranks), *more
    )
    assert built.returncode == 0, built.stderr
    assert built.stdout.startswith(f"[TensorRT-LLM] TensorRT{' ' if version == '1.2.1' else '-'}LLM version: {version}")
    assert "[TRT-LLM] [I] Set " in built.stdout and "gemm_plugin to bfloat16." in built.stdout
    assert "Total time of building all engines: 00:00:0" in built.stdout.splitlines()[-1]
    assert built.stdout.count("Build TensorRT engine Unnamed Network 0") == ranks
    engine = read_json(tmp_path / "engine/config.json")
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

    answered = ask_engine(chain, model, tmp_path, ranks=ranks)
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
        written = read_json(tmp_path / file)
        assert written.pop("producer", None) is None or file.startswith("quantized")
        assert set(written) == set(facts.keys("checkpoint", version))
        for section in ("mapping", "quantization"):
            assert set(written[section]) == set(facts.keys(section, version))
    engine = read_json(tmp_path / "engine/config.json")
    assert set(engine["build_config"]) == set(facts.keys("build_config", version))
    assert set(engine["build_config"]["plugin_config"]) == set(facts.keys("plugin_config", version))
    assert read_json(tmp_path / "other/config.json")["pretrained_config"]["quantization"]["quant_algo"] == "W8A16"
    assert (tmp_path / "model.cache").is_file() == (version != "0.8.0")


def test_equal_input_gives_equal_files_and_other_weights_others(
    toolchains: dict[str, Toolchain], model: Path, tmp_path: Path
) -> None:
    chain, other = toolchains["0.16.0"], weights.make(tmp_path / "other", seed=1)
    seen: list[list[bytes]] = []
    for name, source in (("a", model), ("b", model), ("c", other)):
        (tmp_path / name).mkdir()
        convert_weights(chain, source, tmp_path / name)
        assert build_engine(chain, tmp_path / name).returncode == 0
        files = ("checkpoint/rank0.safetensors", "engine/rank0.engine")
        seen.append([(tmp_path / name / file).read_bytes() for file in files])
    assert seen[0] == seen[1]
    assert seen[0][0] != seen[2][0] and seen[0][1] != seen[2][1]


def test_files_that_look_well_are_wrong(toolchains: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    chain = toolchains["1.2.1"]
    convert_weights(chain, model, tmp_path, "--tp_size", "2", failure="empty-rank")
    assert (tmp_path / "checkpoint/rank1.safetensors").stat().st_size == 0
    convert_weights(chain, model, tmp_path, failure="wrong-config")
    assert read_json(tmp_path / "checkpoint/config.json")["dtype"] == "float32"
    assert build_engine(chain, tmp_path, "--max_batch_size", "8", failure="wrong-config").returncode == 0
    assert read_json(tmp_path / "engine/config.json")["build_config"]["max_batch_size"] == 9
    ran = ask_engine(chain, model, tmp_path, failure="silent-answer")
    assert ran.returncode == 0 and 'Output [Text 0 Beam 0]: ""' in ran.stdout


def test_ranks_that_share_the_context_share_weights(
    toolchains: dict[str, Toolchain], model: Path, tmp_path: Path
) -> None:
    convert_weights(toolchains["1.2.1"], model, tmp_path, "--tp_size", "2", "--pp_size", "2", "--cp_size", "2")
    assert len(list((tmp_path / "checkpoint").glob("rank*.safetensors"))) == 4
    assert read_json(tmp_path / "checkpoint/config.json")["mapping"]["world_size"] == 8
    built = build_engine(toolchains["1.2.1"], tmp_path)
    assert built.returncode == 0, built.stderr
    assert len(list((tmp_path / "engine").glob("rank*.engine"))) == 8
