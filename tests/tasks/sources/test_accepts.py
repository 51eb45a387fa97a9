"""Which sources an event may name, by the patterns of a model's file."""

from __future__ import annotations

import pytest

from tasks.models.spec import Model
from tasks.sources.accepts import accepted


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
    everything = model("hf://**", "s3://**", "ngc://**")
    assert accepted(everything, "hf://a/b@c") and accepted(everything, "ngc://nvidia/llama@1.0")
    assert not accepted(everything, "file:///models/a.gguf")
    assert not accepted(everything, "pip://a@1/b.gguf")
