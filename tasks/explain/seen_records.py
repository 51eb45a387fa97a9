"""Records that are read again only after they have changed: `fleet.json` keeps what they said, by their ETags.

A listing shows the ETag of every record. So whoever looks at a whole fleet reads this one object, and beside it only
the records whose ETag is another than when somebody looked last. What it says counts with that ETag alone: the object
may be old, lost or unwritable, and the answer is the same, only later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from infra.errors import FormatNewer, StoreError
from infra.s3.bucket import Bucket, Entry
from tasks.store.inventory import in_parallel
from tasks.store.record import Record, record_bytes

KEY = "fleet.json"

RecordT = TypeVar("RecordT", bound=Record)


class SeenRecord(BaseModel):
    """What the record with this ETag said, without what a look at the fleet does not need."""

    model_config = ConfigDict(frozen=True)

    etag: str
    record: dict[str, JsonValue]


class Seen(Record):
    """The records that were read when somebody looked last, by their keys."""

    records: dict[str, SeenRecord] = Field(default_factory=dict[str, SeenRecord])


@dataclass
class SeenRecords:
    """The records of one look. `unreadable` has, by key, what is wrong with those that could not be read."""

    bucket: Bucket
    before: Mapping[str, SeenRecord] = field(default_factory=dict[str, SeenRecord])
    now: dict[str, SeenRecord] = field(default_factory=dict[str, SeenRecord])
    unreadable: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def load(cls, bucket: Bucket) -> SeenRecords:
        """What somebody kept last; nothing if that is not there, cannot be read, or is not for these credentials."""
        with suppress(ValidationError, StoreError):
            stored = bucket.get(KEY)
            if stored is not None:
                return cls(bucket, Seen.model_validate_json(stored.body).records)
        return cls(bucket)

    def again(self) -> SeenRecords:
        """The next look, which knows what this one has read."""
        return SeenRecords(self.bucket, dict(self.now))

    def read(self, entries: Iterable[Entry], record: type[RecordT], *, without: set[str]) -> dict[str, RecordT]:
        """The records of a listing, by key. Those that are gone meanwhile, or cannot be read, are left out.

        `without` are fields that have a default and that nobody asks for: they are not kept, and so not returned.
        """
        wanted = list(entries)
        known = {entry.key: self._known(entry, record) for entry in wanted}
        new = [entry for entry in wanted if known[entry.key] is None]
        read = in_parallel(lambda entry: self._fetched(entry.key, record, without), new) if new else []
        found = {**known, **{entry.key: each for entry, each in zip(new, read, strict=True)}}
        return {key: each for key, each in found.items() if each is not None}

    def keep(self) -> None:
        """Let the next look know, here or elsewhere. Who may only read the store keeps nothing."""
        if self.now != self.before:
            with suppress(StoreError):
                self.bucket.put(KEY, record_bytes(Seen(records=self.now)))

    def _known(self, entry: Entry, record: type[RecordT]) -> RecordT | None:
        seen = self.before.get(entry.key)
        if seen is None or not entry.etag or seen.etag != entry.etag:
            return None
        with suppress(ValidationError, FormatNewer):
            found = record.model_validate(seen.record)
            self.now[entry.key] = seen
            return found
        return None

    def _fetched(self, key: str, record: type[RecordT], without: set[str]) -> RecordT | None:
        stored = self.bucket.get(key)
        if stored is None:
            return None
        try:
            found = record.model_validate_json(stored.body)
        except (ValidationError, FormatNewer) as error:
            self.unreadable[key] = error.message if isinstance(error, FormatNewer) else "it is no such record"
            return None
        self.now[key] = SeenRecord(etag=stored.etag, record=found.model_dump(mode="json", exclude=without))
        return record.model_validate(self.now[key].record)
