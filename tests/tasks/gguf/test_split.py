"""Models in several files, as `gguf` itself splits them, against the same models in one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter

from infra.errors import StepFailed
from tasks.gguf.conversion import dequantize, quantize
from tasks.gguf.limits import model_limits
from tasks.gguf.parts import parts_of
from tasks.gguf.reader import read_gguf
from tests.tasks.gguf.small_models import Array, Type, blocks, finish, weights, write
from tests.tasks.gguf.test_conversion import GENERATE

PARTS = tuple(f"model-0000{number}-of-00003.gguf" for number in (1, 2, 3))
Content = dict[str, tuple[Array, Type | None]]

CONTENT: Content = {
    "token_embd.weight": (blocks(Type.Q8_0, 33, 2), Type.Q8_0),
    "blk.0.attn_norm.weight": (weights(64, seed=1), None),
    "blk.0.ffn_up.weight": (blocks(Type.Q4_K, 5, 1), Type.Q4_K),
    "blk.1.ffn_up.weight": (weights(7, 33, seed=2), None),
    "output.weight": (blocks(Type.Q4_1, 33, 2), Type.Q4_1),
}


def ignore(_done: int, _total: int) -> None:
    pass


def write_part(path: Path, content: Content, number: int, *, count: int = 3, total: int = len(CONTENT)) -> Path:
    """A later part, as `gguf-split` of llama.cpp writes it: with its number from 0, and the default alignment."""
    writer = GGUFWriter(path, "llama")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    writer.add_int32("split.tensors.count", total)
    finish(writer, content)
    return path


def numbered(writer: GGUFWriter) -> None:
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 3)
    writer.add_int32("split.tensors.count", len(CONTENT))


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A folder with a model of three parts."""
    folder = tmp_path / "split"
    folder.mkdir()
    write(folder / "model.gguf", CONTENT, tensors_per_part=2)
    assert sorted(path.name for path in folder.iterdir()) == list(PARTS)
    return folder


def refused(first: Path, out: Path) -> StepFailed:
    with pytest.raises(StepFailed) as caught:
        dequantize(first, out, "float16", ignore)
    assert caught.value.hint and not out.exists()
    return caught.value


def test_names_of_parts() -> None:
    assert parts_of(PARTS[1]) == PARTS
    assert parts_of(f"Q4/{PARTS[2]}")[0] == f"Q4/{PARTS[0]}"
    for whole in ("a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", "a-00001-of-00000.gguf"):
        assert parts_of(whole) == (whole,)
    assert parts_of("model-00001-of-00002.safetensors") == ("model-00001-of-00002.safetensors",)


def test_a_split_model_is_converted_as_if_it_were_whole(split: Path, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", CONTENT)
    steps: list[tuple[int, int]] = []
    for source, name in ((whole, "one"), (split / PARTS[0], "two")):
        dequantize(source, tmp_path / f"{name}.gguf", "float16", lambda done, total: steps.append((done, total)))
        quantize(tmp_path / f"{name}.gguf", tmp_path / f"{name}-q8.gguf", "q8_0", ignore)
    for name in ("{}.gguf", "{}-q8.gguf"):
        assert (tmp_path / name.format("two")).read_bytes() == (tmp_path / name.format("one")).read_bytes()
    assert steps[: len(steps) // 2] == steps[len(steps) // 2 :]
    assert not [key for key in GGUFReader(tmp_path / "two.gguf").fields if key.startswith("split.")]
    assert model_limits(split / PARTS[0]) == model_limits(whole)


def test_parts_have_their_own_alignment_and_the_first_may_hold_no_tensor(tmp_path: Path) -> None:
    """`gguf-split` keeps the alignment in the first part, and `--no-tensor-first-split` leaves it without a tensor."""

    def aligned(writer: GGUFWriter) -> None:
        writer.add_custom_alignment(256)

    def first(writer: GGUFWriter) -> None:
        aligned(writer)
        numbered(writer)

    whole = write(tmp_path / "whole.gguf", CONTENT, aligned)
    write(tmp_path / PARTS[0], {}, first)
    names = list(CONTENT)
    for number, part in ((1, names[:3]), (2, names[3:])):
        write_part(tmp_path / PARTS[number], {name: CONTENT[name] for name in part}, number)
    for source, name in ((whole, "one.gguf"), (tmp_path / PARTS[0], "two.gguf")):
        dequantize(source, tmp_path / name, "bfloat16", ignore)
    assert (tmp_path / "two.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()


@pytest.mark.parametrize("lost", [PARTS[1:2], PARTS[1:]])
def test_missing_parts_are_named(split: Path, tmp_path: Path, lost: tuple[str, ...]) -> None:
    for name in lost:
        (split / name).unlink()
    error = refused(split / PARTS[0], tmp_path / "out.gguf")
    assert error.code == "gguf-parts"
    assert [name for name in PARTS[1:] if name in error.message] == list(lost)


def test_parts_of_another_model_are_named(split: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write(other / "model.gguf", {**CONTENT, "blk.9.more.weight": (weights(64), None)}, tensors_per_part=2)
    other_count = write_part(tmp_path / "four.gguf", {}, 1, count=4)
    no_part = write(tmp_path / "none.gguf", {"blk.0.more.weight": (weights(64), None)})
    right = (split / PARTS[1]).read_bytes()
    for wrong in (split / PARTS[2], split / PARTS[0], other / PARTS[1], other_count, no_part):
        shutil.copy(wrong, split / PARTS[1])
        error = refused(split / PARTS[0], tmp_path / "out.gguf")
        assert error.code == "gguf-parts" and PARTS[1] in error.message
        (split / PARTS[1]).write_bytes(right)
    assert len(read_gguf(split / PARTS[0]).tensors) == len(CONTENT)


@pytest.mark.parametrize("names", [("blk.0.ffn_up.weight",), ("blk.0.ffn_up.weight", "token_embd.weight")])
def test_parts_whose_tensors_do_not_add_up_are_refused(split: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    """One has too few tensors, the other one that the first part has already."""
    write_part(split / PARTS[1], {name: CONTENT[name] for name in names}, 1)
    assert refused(split / PARTS[0], tmp_path / "out.gguf").code == "gguf-parts"


def test_a_later_part_and_a_renamed_first_one_are_refused(split: Path, tmp_path: Path) -> None:
    error = refused(split / PARTS[1], tmp_path / "out.gguf")
    assert error.code == "gguf-unsupported" and "part 2 of a model of 3" in error.message
    error = refused((split / PARTS[0]).rename(split / "renamed.gguf"), tmp_path / "out.gguf")
    assert error.code == "gguf-unsupported" and "-00001-of-00003.gguf" in error.hint


@pytest.mark.slow
def test_llama_cpp_reads_the_same_parts_and_gives_the_same_answer(smollm2_gguf: Path, tmp_path: Path) -> None:
    model = GGUFReader(smollm2_gguf)
    writer = GGUFWriter(tmp_path / "model.gguf", "llama", split_max_tensors=len(model.tensors) // 3 + 1)
    for key, field in model.fields.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[-1] if kind is GGUFValueType.ARRAY else None)
    for tensor in model.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    dequantize(tmp_path / PARTS[0], tmp_path / "joined.gguf", "float16", ignore)
    dequantize(smollm2_gguf, tmp_path / "whole.gguf", "float16", ignore)
    assert (tmp_path / "joined.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    answers: list[str] = []
    for path in (tmp_path / PARTS[0], smollm2_gguf):
        command = [sys.executable, "-c", GENERATE, str(path)]
        ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
        answers.append(json.loads(ran.stdout)["choices"][0]["text"])
    assert answers[0] == answers[1] and len(answers[0].split()) >= 4
