"""A hostile file, name or address for each sentence of the Trust section that sources answer for."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.errors import UntrustedFile
from tasks.models.spec import Model
from tasks.sources.trust import accepted, check_content, check_names, check_type, is_furniture

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


def refused(path: Path, name: str, content: bytes, trust: tuple[str, ...] = ()) -> str:
    path.write_bytes(content)
    with pytest.raises(UntrustedFile) as caught:
        check_content(path, name, trust)
    assert not Path(MARKER).exists()
    assert caught.value.hint
    return caught.value.code


def test_file_types_are_an_allow_list() -> None:
    for name in (
        "model-00001-of-00002.safetensors",
        "model.gguf",
        "config.json",
        "original/params.json",
        "vocab.txt",
        "tokenizer.model",
        "cl100k.tiktoken",
        "chat_template.jinja",
        "README.md",
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
    ):
        check_type(name, ())
    for name in (
        "run.sh",
        "model.onnx",
        "libcuda.so",
        "a.tar.gz",
        "Makefile",
        "data",
        "x.npy",
        ".env",
        ".cache/a.json",
    ):
        with pytest.raises(UntrustedFile) as caught:
            check_type(name, ("python", "pickle"))
        assert caught.value.code == "untrusted-type"


@pytest.mark.parametrize("name", ["a.py", "sub/modeling_llama.PY", "a.pyc", "notebook.ipynb"])
def test_python_is_refused_unless_trusted(name: str) -> None:
    with pytest.raises(UntrustedFile, match="Python") as caught:
        check_type(name, ("pickle",))
    assert caught.value.code == "untrusted-python"
    assert "trust: [python]" in caught.value.hint
    check_type(name, ("python",))


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.pkl", "a.pickle", "a.ckpt", "a.CKPT", "a.joblib"])
def test_pickles_are_refused_by_name_unless_trusted(tmp_path: Path, name: str) -> None:
    with pytest.raises(UntrustedFile, match="pickle") as caught:
        check_type(name, ("python",))
    assert caught.value.code == "untrusted-pickle"
    check_type(name, ("pickle",))
    (tmp_path / "file").write_bytes(PICKLES["zip"])
    check_content(tmp_path / "file", name, ("pickle",))


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


def test_sound_files_pass(tmp_path: Path, safetensors: Callable[..., bytes], gguf: bytes) -> None:
    for name, content in {
        "a.safetensors": safetensors(),
        "a.gguf": gguf,
        "config.json": b'{"a": [1, {"b": null}]}',
        "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02",
        "llama3/tokenizer.model": b"IQ== 0\nIg== 1\n",
        "a.txt": "Straße\n".encode(),
        "LICENSE": b"Copyright (c) somebody\n",
        "chat_template.jinja": b"{% for message in messages %}{{ message }}{% endfor %}",
        "empty.txt": b"",
    }.items():
        (tmp_path / "file").write_bytes(content)
        check_content(tmp_path / "file", name, ())


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
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0),
    ],
)
def test_gguf_must_be_what_it_says(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "file", "model.gguf", content) == "untrusted-content"


@pytest.mark.parametrize("content", [b"", b"{", b"import os", b"[" * 200_000, b"\xff\xfe\xfd"])
def test_json_must_be_json(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "file", "config.json", content) == "untrusted-content"


def test_json_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.trust._LARGEST_JSON", 10)
    assert refused(tmp_path / "file", "config.json", b'{"a": "bcdefg"}') == "untrusted-content"


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\x01\0", b"caf\xe9", b"abc\0def", b"a" * 2**20 + b"\xc3"])
def test_text_must_be_text(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path / "file", "notes.txt", content) == "untrusted-content"


@pytest.mark.parametrize("name", ["model.safetensors", "model.gguf", "tokenizer.json", "tokenizer.model"])
def test_an_lfs_pointer_is_not_its_file(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1\n" % (b"a" * 64)
    assert refused(tmp_path / "file", name, pointer) == "lfs-pointer"


@pytest.mark.parametrize(
    "names",
    [
        [""],
        ["/etc/passwd"],
        ["../a.json"],
        ["a/../../b.json"],
        ["a/./b.json"],
        ["a//b.json"],
        ["a/"],
        ["a\\b.json"],
        ["C:\\a.json"],
        ["a\0.json"],
        ["a\n.json"],
        ["a\u202egnp.json"],
        ["a" * 256],
        ["a.json", "a.json"],
        ["a.json", "A.JSON"],
        ["ß.json", "SS.json"],
        ["\u00e9.json", "e\u0301.json"],
        ["a", "a/b.json"],
        ["A", "a/b.json"],
    ],
)
def test_names_are_relative_and_meet_nowhere(names: list[str]) -> None:
    with pytest.raises(UntrustedFile) as caught:
        check_names(names)
    assert caught.value.code == "untrusted-name"


def test_plain_names_pass() -> None:
    check_names(["a.json", "b/a.json", "b/c/a.json", "ä.json", "..a", "a..b", "...", "a b.json"])


def test_furniture_is_told_from_what_is_served() -> None:
    assert all(map(is_furniture, [".gitattributes", "images/curve.PNG", ".gitignore"]))
    assert not any(map(is_furniture, ["README.md", "config.json", "run.py", "png"]))


def model(*accepts: str) -> Model:
    return Model.model_validate(
        {
            "name": "tiny",
            "source": {"uri": "hf://org/model@main"},
            "accepts": list(accepts),
            "recipe": {"kind": "llamacpp"},
            "prompts": [{"name": "one", "text": "Hello", "max_tokens": 4, "expect": {"min_tokens": 1}}],
        }
    )


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/tuned-1@main", True),
        ("s3://weights/tuned/run-7/", True),
        ("s3://weights/tuned/run-7/step/100", False),
        ("hf://org/model@main", False),
        ("hf://other/tuned-1@main", False),
        ("hf://org/tuned-1/../../other/evil@main", False),
        ("hf://org/tuned-1@refs/pr/6", False),
        ("s3://weights/tuned/../secret", False),
        ("s3://weights-of-others/tuned/run-7", False),
        ("file:///etc/passwd", False),
        ("pip://evil@1/a.gguf", False),
        ("https://org/tuned-1", False),
        ("", False),
    ],
)
def test_events_name_only_what_the_models_file_accepts(uri: str, expected: bool) -> None:
    assert accepted(model("hf://org/tuned-*", "s3://weights/tuned/*"), uri) is expected
    assert not accepted(model(), uri)


def test_no_pattern_lets_files_or_packages_in() -> None:
    everything = model("hf://**", "s3://**")
    assert accepted(everything, "hf://a/b@c")
    assert not accepted(everything, "file:///models/a.gguf")
    assert not accepted(everything, "pip://a@1/b.gguf")
