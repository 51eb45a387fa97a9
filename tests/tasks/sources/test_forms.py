"""Which files make a checkpoint of a training framework, and how a source that holds one is told."""

from __future__ import annotations

import pytest

from infra.errors import SourceError, UntrustedFile
from tasks.models.source import Source
from tasks.sources.names import select
from tests.standin.exporter import checkpoint

COMMIT = "a" * 40


def source(of: str, **changes: object) -> Source:
    tools = {"megatron": ("megatron-bridge==0.6.2", "hf://org/base@main"), "nemo2": ("nemo-toolkit==2.5.0", None)}
    exporter, like = tools[of]
    given = {"uri": f"hf://org/m@{COMMIT}", "trust": ["pickle"], "form": of, "exporter": exporter, "like": like}
    return Source.model_validate({**given, **changes})


@pytest.mark.parametrize("folder", ["", "iter_0000100/"])
def test_a_megatron_checkpoint_has_files_of_its_own(folder: str) -> None:
    names = [*checkpoint("megatron", b"", folder)]
    beside = ["README.md", "tokenizer/tokenizer.json", "wandb/run.log", "train.py", "latest_checkpointed_iteration.txt"]
    taken = select(source("megatron"), [*names, *beside])
    assert taken == [*names, "latest_checkpointed_iteration.txt"]


def test_of_several_iterations_the_last_one_is_taken() -> None:
    names = [name for number in (9, 100, 20) for name in checkpoint("megatron", b"", f"iter_{number:07}/")]
    assert {name.partition("/")[0] for name in select(source("megatron"), names)} == {"iter_0000100"}
    narrow = select(source("megatron", include=["iter_0000020/*"]), names)
    assert {name.partition("/")[0] for name in narrow} == {"iter_0000020"}


def test_a_nemo_2_checkpoint_is_weights_and_context() -> None:
    names = [*checkpoint("nemo2", b"")]
    assert select(source("nemo2"), [*names, "README.md", "context/evil.py", "weights/deep/x.distcp"]) == names


@pytest.mark.parametrize("lost", ["run_config.yaml", ".metadata", "__0_0.distcp"])
def test_what_a_megatron_checkpoint_lacks_is_named(lost: str) -> None:
    names = [name for name in checkpoint("megatron", b"") if name != lost]
    with pytest.raises(SourceError) as caught:
        select(source("megatron"), names)
    assert caught.value.code == "source-form" and lost.replace("__0_0", "*") in caught.value.message


def test_the_forms_are_not_mixed_up() -> None:
    for form, other in (("megatron", "nemo2"), ("nemo2", "megatron")):
        with pytest.raises(SourceError) as caught:
            select(source(form), [*checkpoint(other, b"")])
        assert caught.value.code == "source-form" and f"form: {other}" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([*checkpoint("megatron", b"")], "form: megatron"),
        ([*checkpoint("megatron", b"", "iter_0000001/")], "form: megatron"),
        ([*checkpoint("nemo2", b"")], "form: nemo2"),
        (["Llama.nemo", "README.md"], "NeMo 1"),
    ],
)
def test_a_source_that_holds_a_checkpoint_says_what_to_write(names: list[str], said: str) -> None:
    without_pickles = [name for name in names if not name.endswith(".pt")]
    with pytest.raises(SourceError) as caught:
        select(Source(uri="hf://org/m@main"), without_pickles)
    assert caught.value.code == "source-entry" and said in caught.value.hint
    if without_pickles != names:  # they run code, which is said first
        with pytest.raises(UntrustedFile):
            select(Source(uri="hf://org/m@main"), names)


@pytest.mark.parametrize(
    ("form", "changes", "said"),
    [
        ("megatron", {"trust": []}, "trust: [pickle]"),
        ("megatron", {"uri": "hf://org/m@main"}, "pinned revision"),
        ("megatron", {"uri": "ngc://nvidia/m@latest"}, "pinned revision"),
        ("megatron", {"like": None}, "needs like"),
        ("megatron", {"like": "s3://bucket/base"}, "needs like"),
        ("megatron", {"exporter": "nemo-toolkit==2.5.0"}, "megatron-bridge==VERSION"),
        ("megatron", {"exporter": None}, "megatron-bridge==VERSION"),
        ("megatron", {"exporter": "megatron-bridge"}, "exporter"),
        ("megatron", {"exporter": "megatron-bridge==0.5.1"}, "from 0.6.0 on"),
        ("nemo2", {"like": "hf://org/base@main"}, "drop `like`"),
        ("megatron", {"form": None}, "belong to a `form`"),
    ],
)
def test_a_form_needs_its_tool_and_trust(form: str, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        source(form, **changes)
    assert said in str(caught.value)
