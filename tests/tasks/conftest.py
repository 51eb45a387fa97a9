"""Servers and hostile files that several tests of the steps need."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.tasks.sources.hub_server import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face hub of its own for each test, and no token of this machine's user for its client."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with Hub() as running:
        yield running


@pytest.fixture(scope="session")
def safetensors() -> Callable[..., bytes]:
    """Makes a small sound safetensors file; `fill` is the byte that its one tensor is made of."""

    def make(fill: int = 1, elements: int = 1000) -> bytes:
        entry = {"dtype": "U8", "shape": [elements], "data_offsets": [0, elements]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "weight": entry}).encode()
        return struct.pack("<Q", len(header)) + header + bytes([fill]) * elements

    return make


@pytest.fixture(scope="session")
def gguf() -> bytes:
    """The header of a GGUF without tensors, and some bytes more."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(64)
