"""A name or a type for each rule on what the files of a snapshot may be called."""

from __future__ import annotations

import pytest

from infra.errors import SourceError, UntrustedFile
from tasks.models.spec import Source
from tasks.sources.names import check_names, check_type, is_left_out, select


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
    with pytest.raises(UntrustedFile) as caught:
        check_type(name, ("pickle",))
    assert caught.value.code == "untrusted-python"
    assert "trust: [python]" in caught.value.hint
    check_type(name, ("python",))


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.pkl", "a.pickle", "a.ckpt", "a.CKPT", "a.joblib"])
def test_pickles_are_refused_unless_trusted(name: str) -> None:
    with pytest.raises(UntrustedFile) as caught:
        check_type(name, ("python",))
    assert caught.value.code == "untrusted-pickle"
    assert "trust: [pickle]" in caught.value.hint
    check_type(name, ("pickle",))


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


def test_plain_names_pass_until_one_comes_twice() -> None:
    names = ["a.json", "b/a.json", "b/c/a.json", "ä.json", "..a", "a..b", "...", "a b.json"]
    check_names(names)
    for name in names:
        with pytest.raises(UntrustedFile) as caught:
            check_names([*names, name])
        assert caught.value.code == "untrusted-name"


def test_files_for_a_repository_s_readers_are_left_out() -> None:
    assert all(map(is_left_out, [".gitattributes", "images/curve.PNG", ".gitignore"]))
    assert not any(map(is_left_out, ["README.md", "config.json", "run.py", "png"]))


def test_select_takes_what_include_asks_for() -> None:
    names = ["config.json", "model.safetensors", "original/params.json", ".gitattributes", "curves.png"]
    source = Source(uri="hf://org/model@main")
    assert select(source, names) == ["config.json", "model.safetensors", "original/params.json"]
    assert select(source.model_copy(update={"include": ("*.json",)}), names) == ["config.json"]
    with pytest.raises(SourceError) as caught:
        select(source, [".gitattributes"])
    assert caught.value.code == "source-entry"
