"""A name or a type for each rule on what the files of a snapshot may be called."""

from __future__ import annotations

import pytest

from infra.errors import SourceError, UntrustedFile
from tasks.models.source import Source
from tasks.sources.names import check_names, check_type, select

# What repositories carry beside a model: none of it is needed to serve it, and none runs where it is not taken.
BESIDE = (
    *(".eval_results/mmlu.yaml", "training.yaml", "imatrix.dat", "SmolLM2.imatrix", "SHA256SUMS", "Modelfile"),
    *("scores.csv", "demo.mp4", "onnx/model.onnx", "onnx/model.onnx_data", "tf_model.h5", "model.keras"),
    *("flax_model.msgpack", "model.tflite", "openvino/model.xml", "x.npy", "a.tar.gz", "Makefile", "data", ".env"),
    *(".cache/a.json", ".cache/model.safetensors", "tokenizer.model.v3", "README.html", "train.jsonl"),
)


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
    for name in (*BESIDE, "run.sh", "libcuda.so", "setup.exe"):
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


@pytest.mark.parametrize("name", [*BESIDE, ".gitattributes", "images/curve.PNG", ".gitignore"])
def test_what_cannot_run_code_is_left_out(name: str) -> None:
    needed = ["config.json", "model.safetensors"]
    assert select(Source(uri="hf://org/model@main"), [name, *needed]) == needed


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("modeling.py", "untrusted-python"),
        (".hidden/modeling.py", "untrusted-python"),
        ("onnx/pytorch_model.bin", "untrusted-pickle"),
        ("run.sh", "untrusted-type"),
        ("lib/plugin.SO", "untrusted-type"),
        ("LICENSE.sh", "untrusted-type"),
        (".git/hooks/install.ps1", "untrusted-type"),
    ],
)
def test_what_can_run_code_is_refused_wherever_it_lies(name: str, code: str) -> None:
    with pytest.raises(UntrustedFile) as caught:
        select(Source(uri="hf://org/model@main"), [name, "config.json", "model.safetensors"])
    assert caught.value.code == code and "include" in caught.value.hint


@pytest.mark.parametrize("name", BESIDE)
def test_what_include_asks_for_is_never_left_out(name: str) -> None:
    with pytest.raises(UntrustedFile) as caught:
        select(Source(uri="hf://org/model@main", include=("config.json", name)), [name, "config.json"])
    assert caught.value.code == "untrusted-type"


@pytest.mark.parametrize("names", [["notes.yaml"], ["config.json", "onnx/model.onnx"], ["README.md", "tf_model.h5"]])
def test_a_source_of_which_no_weights_are_left_says_what_it_holds(names: list[str]) -> None:
    with pytest.raises(SourceError) as caught:
        select(Source(uri="hf://org/model@main"), names)
    assert caught.value.code == "source-entry" and names[-1] in caught.value.hint


def test_select_takes_what_include_asks_for() -> None:
    names = ["config.json", "model.safetensors", "original/params.json", ".gitattributes", "curves.png"]
    source = Source(uri="hf://org/model@main")
    assert select(source, names) == ["config.json", "model.safetensors", "original/params.json"]
    assert select(source.model_copy(update={"include": ("*.json",)}), names) == ["config.json"]
    with pytest.raises(SourceError) as caught:
        select(source, [".gitattributes"])
    assert caught.value.code == "source-entry"


SPLIT = ["Q4/m-00001-of-00003.gguf", "Q4/m-00002-of-00003.gguf", "Q4/m-00003-of-00003.gguf"]


@pytest.mark.parametrize("include", [(), ("Q4/*",), (SPLIT[0],), (SPLIT[2],)])
def test_one_part_of_a_split_gguf_stands_for_all(include: tuple[str, ...]) -> None:
    names = [*SPLIT, "README.md"]
    taken = select(Source(uri="hf://org/model@main", include=include), names)
    assert [name for name in taken if name != "README.md"] == SPLIT


@pytest.mark.parametrize("include", [(), (SPLIT[0],)])
def test_missing_parts_are_named_before_any_download(include: tuple[str, ...]) -> None:
    with pytest.raises(SourceError) as caught:
        select(Source(uri="hf://org/model@main", include=include), [SPLIT[0], SPLIT[2], "m-00002-of-00003.gguf"])
    assert caught.value.code == "source-entry" and SPLIT[1] in caught.value.message
    assert SPLIT[2] not in caught.value.message
