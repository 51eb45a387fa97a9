"""Whether there is a version of TensorRT-LLM: by the lists of images, then by an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from pydantic import ValidationError

from infra.errors import SourceUnavailable, UsageError
from infra.images import OWN_TABLE
from tasks.trtllm.published import require_published
from tasks.trtllm.recipe import Runtime

LISTED = [Version(each) for each in ("1.1.0", "1.2.1", "1.2.2", "1.3.0")]


def runtime(version: str, **more: Any) -> Runtime:
    given = {"gpu": "NVIDIA H200", "arch": "sm90", "gpus": 1, **more}
    return Runtime.model_validate({"tensorrt_llm": version, **given})


def never() -> list[Version]:
    raise AssertionError("nobody is asked about a version that is known")


def test_a_version_that_is_on_a_list_exists(tmp_path: Path) -> None:
    assert require_published(runtime("1.2.1"), OWN_TABLE, never) == ""
    assert require_published(None, OWN_TABLE, never) == ""
    own = tmp_path / "images.toml"
    own.write_text('[[image]]\nreference = "mine:1"\ntensorrt_llm = "1.2.7"\n')
    assert require_published(runtime("1.2.7"), own, never) == ""
    assert require_published(runtime("1.2.2"), own, lambda: LISTED) == ""
    # What somebody built is on no list.
    for version in ("1.2.9+mine", "1.4.0.dev20260101"):
        assert require_published(runtime(version), own, never) == ""
    image = f"mine@sha256:{'a' * 64}"
    assert require_published(runtime("1.2.9", image=image), own, never) == ""


def test_a_version_that_nobody_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        require_published(runtime("1.2.9"), OWN_TABLE, lambda: LISTED)
    assert caught.value.code == "version-missing"
    assert "1.2.1, 1.2.2, 1.3.0" in caught.value.hint and "ENGINEHOUSE_IMAGES" in caught.value.hint


def test_an_index_that_is_away_refuses_nothing(tmp_path: Path) -> None:
    def away() -> list[Version]:
        raise SourceUnavailable("the package index did not answer")

    assert "did not answer" in require_published(runtime("1.2.9"), OWN_TABLE, away)
    assert "has none at all" in require_published(runtime("1.2.9"), OWN_TABLE, list)
    assert "no index was asked" in require_published(runtime("1.2.9"), tmp_path / "absent.toml", None)


def test_a_product_and_its_architecture_agree() -> None:
    with pytest.raises(ValidationError) as caught:
        runtime("1.2.1", gpu="NVIDIA A100-SXM4-80GB")
    (mistake,) = caught.value.errors()
    assert mistake["loc"] == ("arch",) and "is sm80, not sm90" in mistake["msg"]
    assert runtime("1.2.1", gpu="NVIDIA Z1").arch == "sm90"  # nobody knows that one
