"""Whole GGUF files dequantized and quantized, against `gguf` on whole tensors."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import dequantize as decode_blocks  # pyright: ignore[reportUnknownVariableType]
from gguf.quants import quantize as encode_blocks  # pyright: ignore[reportUnknownVariableType]

from infra.errors import StepFailed
from tasks.gguf.conversion import dequantize, quantize
from tasks.gguf.limits import model_limits
from tasks.gguf.reader import read_gguf
from tasks.gguf.tensor_types import QUANTIZATIONS
from tests.tasks.gguf import small_models
from tests.tasks.gguf.small_models import Array, blocks, weights, write

Type = GGMLQuantizationType
# Every block type that gguf decodes.
QUANTIZED = [
    *(Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K),
    *(Type.Q6_K, Type.IQ1_S, Type.IQ1_M, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S, Type.IQ3_XXS, Type.IQ3_S),
    *(Type.IQ4_NL, Type.IQ4_XS, Type.TQ1_0, Type.TQ2_0, Type.MXFP4, Type.NVFP4),
]


SMALL_CHUNK = 512
"""Elements. The tiny tensors of these tests then take several chunks, the last of them short."""


def ignore(_done: int, _total: int) -> None:
    pass


def decoded(data: Array, kind: Type) -> Array:
    with np.errstate(all="ignore"):
        return cast(Array, decode_blocks(data, kind))


def encoded(data: Array, kind: Type) -> Array:
    return cast(Array, encode_blocks(data.astype(np.float32), kind))


def tensors(path: Path) -> dict[str, tuple[Type, Array]]:
    return {tensor.name: (tensor.tensor_type, tensor.data) for tensor in GGUFReader(path).tensors}


def metadata(path: Path) -> dict[str, tuple[list[GGUFValueType], object]]:
    return {field.name: (field.types, field.contents()) for field in GGUFReader(path).fields.values()}


@pytest.fixture
def spacious(tmp_path: Path) -> Iterator[Path]:
    """A folder for files too large to be left behind."""
    folder = tmp_path / "spacious"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    content: dict[str, tuple[Array, Type | None]] = {
        f"blk.{kind.value}.ffn_up.weight": (blocks(kind, 5, 1280 // GGML_QUANT_SIZES[kind][0]), kind)
        for kind in QUANTIZED
    }
    content["blk.0.attn_norm.weight"] = (weights(64), None)
    content["blk.0.attn_k.bias"] = (weights(64).astype(np.float16), None)
    content["blk.0.ffn_gate_inp.weight"] = (blocks(Type.Q8_0, 4, 2), Type.Q8_0)
    content["blk.0.table"] = (np.arange(12, dtype=np.int32).reshape(3, 4), None)
    content["blk.0.ffn_gate.weight"] = (weights(7, 1001), None)
    content["blk.0.ffn_down.weight"] = (encoded(weights(9, 70), Type.BF16), Type.BF16)
    return write(tmp_path / "quantized.gguf", content, lambda writer: writer.add_quantization_version(2))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return small_models.checkpoint(tmp_path)


@pytest.mark.parametrize(("dtype", "kind", "file_type"), [("float16", Type.F16, 1), ("bfloat16", Type.BF16, 32)])
def test_every_type_dequantizes_as_gguf_does_on_whole_tensors(
    quantized: Path, tmp_path: Path, dtype: str, kind: Type, file_type: int
) -> None:
    dequantize(quantized, tmp_path / "out.gguf", dtype, ignore, chunk_elements=SMALL_CHUNK)
    before, after = tensors(quantized), tensors(tmp_path / "out.gguf")
    assert list(before) == list(after)
    float32 = {"blk.0.attn_norm.weight", "blk.0.attn_k.bias", "blk.0.ffn_gate_inp.weight"}
    for name, (old, data) in before.items():
        new, result = after[name]
        if name == "blk.0.table":
            assert new == Type.I32
            expected = data
        else:
            assert new == (Type.F32 if name in float32 else kind)
            expected = encoded(decoded(data, old), new)
        assert result.shape == expected.shape
        assert result.tobytes() == expected.tobytes(), name
    assert metadata(tmp_path / "out.gguf")["general.file_type"] == ([GGUFValueType.UINT32], file_type)


def test_metadata_is_copied_with_its_types_and_order(quantized: Path, tmp_path: Path) -> None:
    dequantize(quantized, tmp_path / "out.gguf", "float16", ignore)
    before, after = metadata(quantized), metadata(tmp_path / "out.gguf")
    before["general.file_type"] = ([GGUFValueType.UINT32], LlamaFileType.MOSTLY_F16.value)
    assert after == before
    assert list(after) == list(before)


def test_missing_quantization_version_is_added(checkpoint: Path, tmp_path: Path) -> None:
    quantize(checkpoint, tmp_path / "out.gguf", "q8_0", ignore)
    before, after = metadata(checkpoint), metadata(tmp_path / "out.gguf")
    assert after.pop("general.quantization_version") == ([GGUFValueType.UINT32], 2)
    assert after["general.file_type"] == ([GGUFValueType.UINT32], 7)
    assert after["GGUF.kv_count"][1] == cast(int, before["GGUF.kv_count"][1]) + 1


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_quantize_equals_gguf_on_whole_tensors(
    checkpoint: Path, tmp_path: Path, quantization: str, caplog: pytest.LogCaptureFixture
) -> None:
    quantize(checkpoint, tmp_path / "out.gguf", quantization, ignore, chunk_elements=SMALL_CHUNK)
    kind, file_type = QUANTIZATIONS[quantization]
    after = tensors(tmp_path / "out.gguf")
    blockless = kind in (Type.F16, Type.BF16)
    assert {name: new for name, (new, _) in after.items()} == {
        "token_embd.weight": kind if blockless else Type.Q8_0,
        "blk.0.ffn_norm.weight": Type.F32,
        "blk.0.ffn_up.weight": kind,
        "blk.0.ffn_up_exps.weight": kind,
        "blk.0.ffn_odd.weight": kind if blockless else Type.F16,
        "blk.0.ssm_conv1d.weight": Type.F32,
    }
    for name, (old, data) in tensors(checkpoint).items():
        new, result = after[name]
        assert result.tobytes() == encoded(decoded(data, old), new).tobytes(), name
    assert metadata(tmp_path / "out.gguf")["general.file_type"][1] == file_type
    assert ("blk.0.ffn_odd.weight becomes float16" in caplog.text) is not blockless


def test_output_matrix_takes_eight_bits_and_embeddings_beside_it_do_not(tmp_path: Path) -> None:
    matrix = weights(8, 64).astype(np.float16)
    source = write(tmp_path / "untied.gguf", {"token_embd.weight": (matrix, None), "output.weight": (matrix, None)})
    quantize(source, tmp_path / "out.gguf", "q4_0", ignore)
    types = {name: kind for name, (kind, _) in tensors(tmp_path / "out.gguf").items()}
    assert types == {"token_embd.weight": Type.Q4_0, "output.weight": Type.Q8_0}


def test_same_input_gives_same_bytes_and_progress_ends_at_the_total(checkpoint: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    for name in ("one.gguf", "two.gguf"):
        quantize(
            checkpoint,
            tmp_path / name,
            "q5_1",
            lambda done, total: steps.append((done, total)),
            chunk_elements=SMALL_CHUNK,
        )
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    written = read_gguf(tmp_path / "two.gguf").tensor_bytes
    assert steps[-1] == (written, written)
    assert steps[: len(steps) // 2] == sorted(set(steps))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.gguf", "one.gguf", "two.gguf"]


def test_custom_alignment_is_kept(tmp_path: Path) -> None:
    source = write(
        tmp_path / "aligned.gguf",
        {f"blk.{i}.ffn_up.weight": (weights(3, 32).astype(np.float16), None) for i in range(3)},
        lambda writer: writer.add_custom_alignment(256),
    )
    quantize(source, tmp_path / "out.gguf", "q4_1", ignore)
    assert {tensor.offset % 256 for tensor in read_gguf(tmp_path / "out.gguf").tensors} == {0}
    assert list(tensors(tmp_path / "out.gguf")) == list(tensors(source))
    assert (tmp_path / "out.gguf").stat().st_size % 256 == 0


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, "bfloat16"), (np.inf, "bfloat16"), (-70000.0, "float16")])
def test_weights_the_type_cannot_hold_are_refused(tmp_path: Path, value: float, dtype: str) -> None:
    matrix = weights(40, 64)
    matrix[39, 63] = value
    source = write(tmp_path / "wild.gguf", {"blk.0.ffn_up.weight": (matrix, None)})
    with pytest.raises(StepFailed) as caught:
        dequantize(source, tmp_path / "out.gguf", dtype, ignore, chunk_elements=SMALL_CHUNK)
    assert caught.value.code == "weights-out-of-range" and "blk.0.ffn_up.weight" in caught.value.message
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == [source]


def test_quantized_source_and_unknown_choices_are_refused(quantized: Path, tmp_path: Path) -> None:
    for attempt in (
        lambda: quantize(quantized, tmp_path / "out.gguf", "q8_0", ignore),
        lambda: quantize(quantized, tmp_path / "out.gguf", "q3_k", ignore),
        lambda: dequantize(quantized, tmp_path / "out.gguf", "int8", ignore),
    ):
        with pytest.raises(StepFailed) as caught:
            attempt()
        assert caught.value.code == "gguf-unsupported"
        assert caught.value.hint
    assert list(tmp_path.iterdir()) == [quantized]


def test_type_without_decoder_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "q8_1.gguf", {"blk.0.ffn_up.weight": (blocks(Type.Q8_1, 2, 2), Type.Q8_1)})
    with pytest.raises(StepFailed) as caught:
        dequantize(source, tmp_path / "out.gguf", "float16", ignore)
    assert caught.value.code == "gguf-unsupported" and "Q8_1" in caught.value.message


def test_missing_source_and_missing_folder_have_codes(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed) as caught:
        quantize(tmp_path / "absent.gguf", tmp_path / "out.gguf", "q8_0", ignore)
    assert caught.value.code == "gguf-unreadable"
    with pytest.raises(StepFailed) as caught:
        quantize(checkpoint, tmp_path / "absent" / "out.gguf", "q8_0", ignore)
    assert caught.value.code == "write-failed"


def test_full_disk_is_found_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the kernel refuses in the same call."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    steps: list[int] = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StepFailed) as caught:
            quantize(checkpoint, tmp_path / "out.gguf", "q8_0", lambda done, _: steps.append(done))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "disk-full"
    assert caught.value.hint
    assert not steps
    assert list(tmp_path.iterdir()) == [checkpoint]


MEASURED = """
import sys, threading, time
from pathlib import Path
from tasks.gguf.conversion import dequantize, quantize

def anonymous():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("no RssAnon")

folder = Path(sys.argv[1])
before = peak = anonymous()
def measure(done, total):
    global peak
    peak = max(peak, anonymous())
dequantize(folder / "big.gguf", folder / "checkpoint.gguf", "float16", measure)
quantize(folder / "checkpoint.gguf", folder / "engine.gguf", "q4_0", measure)
print(peak - before)
"""


@pytest.mark.slow
def test_memory_stays_flat_on_a_file_of_600_mb(spacious: Path) -> None:
    """Anonymous memory (RssAnon), for pages of the mapped file count as resident too but can be dropped.
    One tensor holds half of the file, so a whole tensor in memory would show."""
    half = np.zeros((9500, 34 * 1000), np.uint8)
    write(spacious / "big.gguf", {f"blk.{i}.ffn_up.weight": (half, Type.Q8_0) for i in range(2)})
    assert (spacious / "big.gguf").stat().st_size > 600e6
    command = [sys.executable, "-c", MEASURED, str(spacious)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert int(ran.stdout) < 100e6


GENERATE = """
import json, sys
import xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx = 256
parameters.warmup = False
server = xllamacpp.Server(parameters)
request = {"prompt": "The capital of France is", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
print(json.dumps(server.handle_completions(request)))
"""


@pytest.mark.slow
def test_real_model_runs_at_eight_and_four_bits(smollm2_gguf: Path, spacious: Path) -> None:
    dequantize(smollm2_gguf, spacious / "checkpoint.gguf", "float16", ignore)
    source, checkpoint = tensors(smollm2_gguf), tensors(spacious / "checkpoint.gguf")
    for name, (old, data) in source.items():
        new, result = checkpoint[name]
        assert np.array_equal(encoded(decoded(data, old), new), result), name
    for quantization in ("q8_0", "q4_0"):
        engine = spacious / f"{quantization}.gguf"
        quantize(spacious / "checkpoint.gguf", engine, quantization, ignore)
        ran = subprocess.run(
            [sys.executable, "-c", GENERATE, str(engine)],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        answer = json.loads(ran.stdout)
        assert answer["usage"]["completion_tokens"] >= 8
        assert len(answer["choices"][0]["text"].split()) >= 4
    for name, (new, data) in tensors(spacious / "q8_0.gguf").items():
        old, values = checkpoint[name]
        assert np.array_equal(encoded(decoded(values, old), new), data), name
    assert model_limits(engine).cache_bytes_per_token == 30 * 3 * (64 + 64) * 2
