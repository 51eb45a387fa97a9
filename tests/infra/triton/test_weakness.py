"""What is said of an old Triton."""

from __future__ import annotations

import pytest

from infra.triton.weakness import triton_release, weakness
from infra.triton.wheel import SAME_IMAGE


@pytest.mark.parametrize("release", ["24.10", "25.06", "25.06.1", "23.12", "25.6"])
def test_releases_that_a_chunked_body_ends_are_warned_of(release: str) -> None:
    assert "CVE-2025-23310" in weakness(release) and release in weakness(release)


@pytest.mark.parametrize("release", ["25.07", "25.10", "26.01", "", "own-build"])
def test_later_and_unknown_ones_are_not(release: str) -> None:
    assert weakness(release) == ""


def test_the_release_is_the_images_own_or_what_the_wheel_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "25.08")
    assert triton_release(of_image=True) == "25.08"
    assert triton_release(of_image=False) == SAME_IMAGE
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION")
    assert triton_release(of_image=True) == ""
