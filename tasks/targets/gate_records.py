"""Where the evidence of the gates lies: one record a gate and candidate, created once."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.store.cell import WriteOnce
from tasks.store.names import segment
from tasks.targets.gate_record import GateRecord
from tasks.targets.target import Target


@dataclass(frozen=True)
class GateRecords:
    """The records of the gates of one release."""

    target: Target
    model: str
    release: int

    @property
    def _folder(self) -> str:
        return f"{self.target.prefix}{self.model}/{self.release}/gates/"

    def _of(self, gate: str) -> WriteOnce[GateRecord]:
        return WriteOnce(self.target.bucket, f"{self._folder}{segment(gate)}.json", GateRecord)

    def read(self, gate: str) -> GateRecord | None:
        """The record of a gate; None while it has none."""
        return self._of(gate).read()

    def create(self, record: GateRecord) -> GateRecord:
        """Write a record once; returns the one that counts, which is the first."""
        return self._of(record.gate).create(record)

    def all(self) -> list[GateRecord]:
        """All records, in the order in which they were made."""
        names = [
            entry.key.removeprefix(self._folder).removesuffix(".json")
            for entry in self.target.bucket.list(self._folder)
        ]
        found = [record for name in names if (record := self.read(name)) is not None]
        return sorted(found, key=lambda record: record.created)
