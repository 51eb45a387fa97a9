"""The base of every JSON record in the store. `formats.md` describes them, `enginehouse schema` prints them."""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict, field_validator

from infra.errors import FormatNewer
from tasks.store.identity import canonical


def require_known(version: int, newest: int, what: str) -> None:
    """Refuse a record of a version that this code does not know: it may mean something else by the same words.

    Raises FormatNewer.
    """
    if version > newest:
        raise FormatNewer(
            f"a {what} of version {version} is in the store, and this Enginehouse reads them up to {newest}",
            hint="a newer Enginehouse uses the same store: bring this one up to its version",
        )


class Record(BaseModel):
    """Frozen. Of its own version and older ones it ignores fields that it does not know: later code may add some."""

    model_config = ConfigDict(frozen=True, extra="ignore")

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
