"""Where a gate's passages or questions are."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from infra.frozen import Spec

FILE_SCHEME = "file://"
_SET = re.compile(r"file:///[^?#]*[^/?#]|s3://[a-z0-9][a-z0-9.-]+/[^?#]*[^/?#]")


class SetSource(Spec):
    """A file that a gate reads: passages, or questions with known answers."""

    uri: str = Field(description="file:///… where the flow runs, or s3://bucket/key.")
    sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="Pins its bytes. Empty: as it is then.")

    @field_validator("uri")
    @classmethod
    def _is_one_file(cls, uri: str) -> str:
        if not _SET.fullmatch(uri):
            raise ValueError("is neither file:///folder/name nor s3://bucket/key")
        return uri
