"""What is found wrong with a checkpoint or an engine after its tool ended well, and what failures are called."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra.errors import StepFailed
from infra.processes.child import Outcome
from tasks.models.recipe import TrtEngineRecipe
from tasks.trtllm.tools.check import add_tokenizer, check_checkpoint, check_engine, copy_tokenizer
from tasks.trtllm.tools.failures import require_success

RUNTIME = {"tensorrt_llm": "0.16.0", "gpu": "NVIDIA H200", "arch": "sm90", "gpus": 4}


def recipe(**changes: Any) -> TrtEngineRecipe:
    return TrtEngineRecipe.model_validate({"kind": "trt-engine", "runtime": RUNTIME, "tp_size": 2, **changes})


def pretrained(quantization: str | None = None) -> dict[str, Any]:
    return {"mapping": {"tp_size": 2, "pp_size": 1}, "quantization": {"quant_algo": quantization}}


def engine(folder: Path, config: dict[str, Any] | None = None, **limits: int) -> Path:
    built = {"max_batch_size": 64, "max_input_len": 4096, "max_seq_len": 8192, "max_beam_width": 1, **limits}
    (folder / "config.json").write_text(
        json.dumps({"pretrained_config": config or pretrained(), "build_config": built})
    )
    for rank in range(2):
        (folder / f"rank{rank}.engine").write_bytes(b"engine")
    return folder


def lose_a_rank(folder: Path) -> None:
    (folder / "rank1.engine").unlink()


def empty_a_rank(folder: Path) -> None:
    (folder / "rank1.engine").write_bytes(b"")


def lose_the_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def tear_the_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def hollow_the_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def test_a_whole_engine_passes(tmp_path: Path) -> None:
    check_engine(recipe(), engine(tmp_path))
    with pytest.raises(StepFailed):
        check_engine(recipe(tp_size=4), tmp_path)


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (lose_a_rank, ("rank1.engine", "missing")),
        (empty_a_rank, ("rank1.engine", "empty")),
        (lose_the_config, ("config.json",)),
        (tear_the_config, ("config.json",)),
        (hollow_the_config, ("config.json",)),
        (partial(engine, max_batch_size=32), ("max_batch_size is 32", "64")),
        (partial(engine, max_seq_len=4097), ("max_seq_len is 4097", "8192")),
        (partial(engine, config={"mapping": {"tp_size": 1, "pp_size": 1}}), ("tp_size is 1", "2")),
    ],
)
def test_an_engine_that_is_not_what_was_asked_for(
    tmp_path: Path, spoil: Callable[[Path], object], facts: tuple[str, ...]
) -> None:
    spoil(engine(tmp_path))
    with pytest.raises(StepFailed) as caught:
        check_engine(recipe(), tmp_path)
    assert caught.value.code == "engine-unfit" and not caught.value.retryable
    assert all(fact in caught.value.message for fact in facts)


def test_managed_weights_lie_beside_a_fast_build(tmp_path: Path) -> None:
    engine(tmp_path)
    with pytest.raises(StepFailed) as caught:
        check_engine(recipe(fast_build=True), tmp_path)
    assert caught.value.code == "engine-unfit" and "rank0_managed_weights.safetensors" in caught.value.message
    for rank in range(2):
        (tmp_path / f"rank{rank}_managed_weights.safetensors").write_bytes(b"weights")
    check_engine(recipe(fast_build=True), tmp_path)


def test_up_to_0_10_the_answer_has_a_limit_of_its_own(tmp_path: Path) -> None:
    engine(tmp_path, max_output_len=1)
    old = recipe(runtime={**RUNTIME, "tensorrt_llm": "0.10.0"})
    with pytest.raises(StepFailed) as caught:
        check_engine(old, tmp_path)
    assert caught.value.code == "engine-unfit" and "max_output_len is 1" in caught.value.message
    check_engine(old, engine(tmp_path, max_output_len=4096, max_seq_len=1))


def test_a_checkpoint_that_was_not_quantized(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(pretrained()))
    for rank in range(2):
        (tmp_path / f"rank{rank}.safetensors").write_bytes(b"weights")
    check_checkpoint(recipe(), tmp_path)
    with pytest.raises(StepFailed) as caught:
        check_checkpoint(recipe(quantization="fp8"), tmp_path)
    assert caught.value.code == "checkpoint-unfit" and "fp8" in caught.value.message
    (tmp_path / "config.json").write_text(json.dumps(pretrained("FP8")))
    check_checkpoint(recipe(quantization="fp8"), tmp_path)


def test_a_model_without_tokenizer(tmp_path: Path) -> None:
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text("{}")
    with pytest.raises(StepFailed) as caught:
        copy_tokenizer(source, tmp_path)
    assert caught.value.code == "tokenizer-missing" and not (tmp_path / "tokenizer").exists()
    (source / "tokenizer.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"weights")
    copy_tokenizer(source, tmp_path)
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == ["config.json", "tokenizer.json"]


@pytest.mark.parametrize(
    "family",
    [
        ("tokenizer.json",),
        ("tokenizer.model",),  # SentencePiece, or tiktoken as Llama 3 has it below original/
        ("spiece.model",),
        ("tiktoken.model",),
        ("qwen.tiktoken",),
        ("tekken.json",),
        ("vocab.json", "merges.txt"),
        ("vocab.txt",),
    ],
)
def test_tokenizers_of_every_family_are_copied_with_all_that_is_beside_them(
    tmp_path: Path, family: tuple[str, ...]
) -> None:
    beside = ("chat_template.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja")
    for name in (*family, *beside, "generation_config.json"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_text(name)
    # From the weights to the checkpoint, and from there to the engine.
    source = tmp_path / "model"
    for target in ("checkpoint", "engine"):
        (tmp_path / target).mkdir()
        copy_tokenizer(source, tmp_path / target)
        source = tmp_path / target / "tokenizer"
    copied = {str(path.relative_to(source)): path.read_text() for path in source.rglob("*") if path.is_file()}
    assert copied == {name: name for name in (*family, *beside, "generation_config.json")}


def test_files_that_a_tool_has_written_stay(tmp_path: Path) -> None:
    for folder, name in (("model", "config.json"), ("model", "tekken.json"), ("made", "config.json")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(folder)
    add_tokenizer(tmp_path / "model", tmp_path / "made")
    assert {path.name: path.read_text() for path in (tmp_path / "made").iterdir()} == {
        "config.json": "made",
        "tekken.json": "model",
    }


@pytest.mark.parametrize(
    ("code", "exit_code", "output"),
    [
        ("arguments-unrecognized", 2, "trtllm-build: error: unrecognized arguments: --max_output_len 100"),
        ("arguments-unrecognized", 2, "error: argument --gemm_plugin: invalid choice: 'auto' (choose from 'float16')"),
        ("gpu-memory", 1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("gpu-memory", 1, "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
        ("gpu-memory", 1, "[TRT] [E] Requested amount of GPU memory (17179869184 bytes) could not be allocated."),
        ("host-memory", -9, "[TRT-LLM] [I] Build TensorRT engine Unnamed Network 0"),
        ("host-memory", 1, "MemoryError"),
        ("version-mismatch", 1, "6: The engine plan file is not compatible with this version of TensorRT, expecting"),
        ("version-mismatch", 1, "Error Code 1: Serialization (... failed.Version tag does not match. Note: Current"),
        ("version-mismatch", 1, "undefined symbol: _ZNK12tensorrt_llm8executor8Response11getErrorMsgB5cxx11Ev"),
        (
            "architecture-wrong",
            1,
            "6: The engine plan file is generated on an incompatible device, expecting compute 8.0 got compute 8.9",
        ),
        ("world-size", 1, "Assertion failed: mpiSize == tp * pp (...)"),
        ("world-size", 1, "ValueError: world_size must equal to pp_size * cp_size * tp_size, but got 1 != 4"),
        ("world-size", 1, "AssertionError: Engine world size (4) != Runtime world size (1)"),
        ("script-mismatch", 1, "ImportError: cannot import name 'infer_dtype' from 'tensorrt_llm._utils'"),
        ("script-mismatch", 1, "TypeError: __init__() got an unexpected keyword argument 'moe_tp_size'"),
        ("lfs-pointer", 1, "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge"),
        ("format-unsupported", 1, "ValueError: Unsupported quantization format: nvfp4"),
        ("template-unfilled", 1, "inference.ModelConfig: 322:16: Expected integer or identifier, got: $"),
        ("hub-offline", 1, "huggingface_hub.errors.OfflineModeIsEnabled: Cannot reach the hub: offline mode"),
        ("disk-full", 1, "OSError: [Errno 28] No space left on device"),
        ("tool-failed", 1, "something that nobody has seen before"),
    ],
)
def test_known_failures_have_names(code: str, exit_code: int, output: str) -> None:
    with pytest.raises(StepFailed) as caught:
        require_success("trtllm-build", Outcome(exit_code, 1.0, 3 << 30, 0, f"some line\n{output}\n"))
    error = caught.value
    assert error.code == code and error.hint
    # Out of memory is never tried again unchanged; a disk may have room again.
    assert error.retryable == (code == "disk-full")


def test_the_output_of_a_tool_counts_only_if_it_failed() -> None:
    output = "Unsupported quantization format: x"
    require_success("trtllm-build", Outcome(0, 1.0, 0, 0, output))
    with pytest.raises(StepFailed) as caught:
        require_success("trtllm-build", Outcome(1, 1.0, 0, 0, output))
    assert caught.value.code == "format-unsupported"
