"""Identities: the digest of everything that goes into an artifact, known before anything runs.

A document names the step and its version, the identities of its inputs, and exactly those fields of recipe and
runtime that change its output. The manifest keeps the document, so that `why` can compare two of them field by field.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from pydantic import JsonValue

SCHEMA = 1


def canonical(document: object) -> bytes:
    """`document` as JSON: sorted keys, no spaces, UTF-8, no NaN. Equal documents give equal bytes."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


@dataclass(frozen=True)
class Identity:
    """What an artifact is made of. `digest` is the hexadecimal sha256 of the canonical document."""

    document: Mapping[str, JsonValue]

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(canonical(self.document)).hexdigest()

    @classmethod
    def of(
        cls, step: str, version: int, *, inputs: Mapping[str, Identity], fields: Mapping[str, JsonValue]
    ) -> Identity:
        """The identity of one step's output. Raise `version` when the step's code changes what it writes."""
        return cls(
            {
                "schema": SCHEMA,
                "step": step,
                "version": version,
                "inputs": {name: f"sha256:{identity.digest}" for name, identity in inputs.items()},
                "fields": dict(fields),
            }
        )
