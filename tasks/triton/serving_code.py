"""What of Enginehouse's own code is part of each repository artifact, and so of its identity.

Apart from `repository`, which writes the artifact: who asks for an identity needs neither Triton's client nor numpy.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tasks.store.identity import canonical

REPOSITORY_VERSION = 4
"""Raise it when `write_release` or the tables behind it change what is written beside the serving code."""

_SERVING = Path(__file__).resolve().parent.parent / "serving"


def serving_code() -> list[Path]:
    """The files that run inside Triton."""
    return sorted(_SERVING.glob("*.py"))


def serving_code_digest() -> str:
    """sha256 over these files: part of the identity of every repository."""
    return hashlib.sha256(
        canonical({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in serving_code()})
    ).hexdigest()
