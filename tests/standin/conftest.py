"""Weights and toolchains, toolchains once for all tests of the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.standin import facts, toolchain, weights
from tests.standin.toolchain import Toolchain


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a tiny Llama, in a folder that no test changes."""
    return weights.make(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def toolchains(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Toolchain]:
    """One of each version. They are not changed: a test that wants a failure chosen in a toolchain makes its own."""
    folder = tmp_path_factory.mktemp("toolchains")
    return {version: toolchain.make(folder / version, version) for version in facts.VERSIONS}
