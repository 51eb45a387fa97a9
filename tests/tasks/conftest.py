"""Servers and hostile files that several tests of the steps need."""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from hub_server import Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face hub of its own for each test, and no token of this machine's user for its client."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    specification = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    with module.Hub() as running:
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
