"""A hostile file for each rule on what the files of a snapshot may hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFEndian, GGUFWriter

from infra.errors import SourceError, StepFailed, UntrustedFile
from tasks.gguf.reader import read_gguf
from tasks.sources.contents import check_content

MARKER = "must-not-exist"


class Payload:
    """Its pickle makes a folder when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, (MARKER,)


def zip_pickle() -> bytes:
    """What torch.save writes: a zip file with a pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload()))
    return buffer.getvalue()


PICKLES = {
    "zip": zip_pickle(),
    **{f"protocol-{number}": pickle.dumps(Payload(), protocol=number) for number in range(6)},
}


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1\n" % (b"a" * 64)


def refused(path: Path, name: str, content: bytes, trust: tuple[str, ...] = ()) -> str:
    path.write_bytes(content)
    with pytest.raises(UntrustedFile) as caught:
        check_content(path, name, trust)
    assert not Path(MARKER).exists()
    assert caught.value.hint
    return caught.value.code


@pytest.mark.parametrize("name", ["a.bin", "original/consolidated.00.pth"])
def test_a_trusted_pickle_passes_and_an_lfs_pointer_to_one_does_not(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(PICKLES["zip"])
    check_content(tmp_path / "file", name, ("pickle",))
    assert refused(tmp_path / "file", name, LFS_POINTER, ("pickle",)) == "lfs-pointer"


@pytest.mark.parametrize(
    "name",
    ["a.safetensors", "a.gguf", "a.json", "tokenizer.model", "a.txt", "a.md", "a.jinja", "a.tiktoken", "LICENSE"],
)
@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES.keys())
def test_a_pickle_under_any_other_name_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    code = refused(tmp_path / "file", name, content, ("pickle", "python"))
    assert code in ("untrusted-content", "untrusted-pickle")


@pytest.mark.parametrize(
    "document",
    [
        '{"auto_map": {"AutoModel": "modeling.Model"}}',
        '{"text_config": [{"auto_map": {}}]}',
        '{"\\u0061uto_map": {}}',
        '{"auto_map": {}, "auto_map": null, "a": 1}',
    ],
)
def test_an_auto_map_is_refused_unless_python_is_trusted(tmp_path: Path, document: str) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        for encoding in ("utf-8", "utf-16"):
            assert refused(tmp_path / "file", name, document.encode(encoding)) == "untrusted-python"
        check_content(tmp_path / "file", name, ("python",))
    (tmp_path / "file").write_text('{"note": "auto_map"}')
    check_content(tmp_path / "file", "config.json", ())


def test_sound_files_pass_and_the_same_with_a_flaw_do_not(
    tmp_path: Path, safetensors: Callable[..., bytes], gguf: bytes
) -> None:
    for name, sound, flawed in (
        ("a.safetensors", safetensors(), safetensors()[:-1]),
        ("a.gguf", gguf, gguf[1:]),
        ("config.json", b'{"a": [1, {"b": null}]}', b'{"a": [1, {"b": null}]'),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02", b"\x80\x02\n\x0e"),
        ("llama3/tokenizer.model", b"IQ== 0\nIg== 1\n", b"PK\x03\x04IQ== 0\n"),
        ("a.txt", "Straße\n".encode(), "Straße\n".encode("latin-1")),
        ("LICENSE", b"Copyright (c) somebody\n", b"Copyright (c) somebody\n\0"),
        ("chat_template.jinja", b"{% for message in messages %}{{ message }}{% endfor %}", b"{% for\xff %}"),
        ("empty.txt", b"", b"\0"),
    ):
        (tmp_path / "file").write_bytes(sound)
        check_content(tmp_path / "file", name, ())
        assert refused(tmp_path / "file", name, flawed) in ("untrusted-content", "untrusted-pickle")


def header(document: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int) -> dict[str, Any]:
    return {"a": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\0",
        header({}, length=2**63),
        header({}, length=3),
        header({}, length=0),
        header(b"[1, 2]"),
        header(b"not JSON"),
        header(b"[" * 100_000),
        header({"a": 1}),
        header({"a": {"data_offsets": ["0", "4"]}}, b"1234"),
        header(tensor(0, 5), b"1234"),
        header(tensor(3, 2), b"1234"),
        header(tensor(-1, 4), b"1234"),
        header(tensor(0, 4), b"1234" + pickle.dumps(Payload())),
    ],
)
def test_safetensors_must_be_what_they_say(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "file", "model.safetensors", content) == "untrusted-content"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(40),
        b"GGUF" + bytes(40),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    ],
)
def test_gguf_must_be_what_it_says(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "file", "model.gguf", content) == "untrusted-content"


def big_endian(path: Path) -> bytes:
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.BIG)
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize(("version", "what"), [(0, "big-endian"), (1, "old version 1"), (4, "newer version 4")])
def test_a_gguf_that_cannot_be_read_says_what_it_is(tmp_path: Path, version: int, what: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<III", version, 0, 1) + bytes(40) if version else big_endian(path))
    with pytest.raises(SourceError) as caught:
        check_content(path, "model.gguf", ())
    assert caught.value.code == "gguf-unsupported" and what in caught.value.message
    assert caught.value.hint and "Do not use" not in caught.value.hint and not caught.value.retryable
    with pytest.raises(StepFailed) as later:
        read_gguf(path)
    assert (later.value.code, later.value.hint) == (caught.value.code, caught.value.hint)


@pytest.mark.parametrize("content", [b"", b"{", b"import os", b"[" * 200_000, b"\xff\xfe\xfd"])
def test_json_must_be_json(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "file", "config.json", content) == "untrusted-content"


def test_json_has_a_limit(tmp_path: Path) -> None:
    content = b'{"a": "bcdefg"}'
    (tmp_path / "config.json").write_bytes(content)
    check_content(tmp_path / "config.json", "config.json", (), largest_json_bytes=len(content))
    with pytest.raises(UntrustedFile) as caught:
        check_content(tmp_path / "config.json", "config.json", (), largest_json_bytes=len(content) - 1)
    assert caught.value.code == "untrusted-content"


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\x01\0", b"caf\xe9", b"abc\0def", b"a" * 2**20 + b"\xc3"])
def test_text_must_be_text(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "file", "notes.txt", content) == "untrusted-content"


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "tokenizer.json", "tokenizer.model"])
def test_an_lfs_pointer_is_not_its_file(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path / "file", name, LFS_POINTER) == "lfs-pointer"


def test_json_of_too_many_values_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    # 63 MiB of them took 1.6 GiB and 48 s.
    values = b"[" + b"[]," * 4_000_000 + b"0]"
    started = time.process_time()
    assert refused(tmp_path / "file", "a.json", values) == "untrusted-content"
    header = b'{"a":' + values + b"}"
    tensors = struct.pack("<Q", len(header)) + header
    assert refused(tmp_path / "file", "a.safetensors", tensors) == "untrusted-content"
    assert time.process_time() - started < 2
