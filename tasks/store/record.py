"""The base of every JSON record in the store. `enginehouse schema` prints them, `docs/reference/records.md` tells."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from infra.errors import FormatNewer
from tasks.store.identity import canonical


def require_known(version: int, newest: int, what: str) -> None:
    """Raise FormatNewer if `version` is above `newest`: a later version may mean something else by the same fields.

    `what` names the record in the message.
    """
    if version > newest:
        raise FormatNewer(
            f"the store has a {what} of version {version}, and this Enginehouse reads versions up to {newest}",
            hint="a newer Enginehouse writes to the same store: update this one to its version",
        )


class Record(BaseModel):
    """Frozen. Unknown fields are ignored, because later code may add fields within a version.

    Its validator is built when the first record is read or made: a command needs few of all records.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)

    newest: ClassVar[int] = 1
    """The version that this code writes, and the newest that it reads."""

    schema_version: int = 1

    @field_validator("schema_version")
    @classmethod
    def _is_known(cls, version: int) -> int:
        require_known(version, cls.newest, cls.__name__.lower())
        return version


def record_bytes(record: Record) -> bytes:
    """A record as it lies in the store: canonical JSON, so that equal records have equal ETags."""
    return canonical(record.model_dump(mode="json"))
