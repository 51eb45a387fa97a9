"""Servers and hostile files that several tests of the steps need."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

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


@pytest.fixture(scope="session")
def signing_keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files of two key pairs, `ours` and `other`; the public keys have the suffix `.pub`."""
    folder = tmp_path_factory.mktemp("keys")
    found: dict[str, str] = {}
    for name in ("ours", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / name).write_bytes(key.private_bytes(*form))
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / f"{name}.pub").write_bytes(public)
        found |= {name: str(folder / name), f"{name}.pub": str(folder / f"{name}.pub")}
    return found
