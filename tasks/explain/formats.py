"""The formats of all records in the store, for other programs. `docs/reference/records.md` is for people."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from tasks.explain.seen_records import Seen
from tasks.finetuned.arrivals import Arrival, Sequence
from tasks.finetuned.records import CurrentWeights, TunedWeights
from tasks.finetuned.renamed import Renamed
from tasks.garbage.keep import Pin, Use
from tasks.models.published_catalogue import CatalogueFiles, PublishedCatalogue
from tasks.store.artifact import Manifest
from tasks.store.reference import ReferenceTokens
from tasks.targets.aliases import Aliases
from tasks.targets.approval import Approval, ApprovalRequest
from tasks.targets.current import Current
from tasks.targets.gate_record import GateRecord
from tasks.targets.move import Move
from tasks.targets.node_report import NodeReport
from tasks.targets.release import Intent, Result
from tasks.targets.retirement import Retirement
from tasks.targets.traffic import Shift, Traffic
from tasks.targets.watch_record import Watching, WatchOutcome
from tasks.targets.waves import WaveOutcome, Waves
from tasks.trtllm.images import ImageReport
from tasks.watch.record import WatchRecord


class IdentityDocument(BaseModel):
    """What `tasks.store.identity.Identity.of` makes."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = Field(alias="schema")
    step: str
    version: int
    inputs: dict[str, str]
    fields: dict[str, JsonValue]


class Lease(BaseModel):
    """What `tasks.store.lease.held` writes."""

    format_version: int = Field(alias="schema")
    holder: str | None
    nonce: str = ""
    seconds: float | None = None


FORMATS: dict[str, type[BaseModel]] = {
    "manifest": Manifest,
    "identity": IdentityDocument,
    "reference": ReferenceTokens,
    "intent": Intent,
    "gate": GateRecord,
    "result": Result,
    "approval-request": ApprovalRequest,
    "approval": Approval,
    "current": Current,
    "move": Move,
    "retirement": Retirement,
    "traffic": Traffic,
    "shift": Shift,
    "watching": Watching,
    "watched": WatchOutcome,
    "waves": Waves,
    "wave": WaveOutcome,
    "aliases": Aliases,
    "node": NodeReport,
    "lease": Lease,
    "pin": Pin,
    "use": Use,
    "toolchain": ImageReport,
    "watch": WatchRecord,
    "event": Arrival,
    "sequence": Sequence,
    "finetuned": TunedWeights,
    "weights": CurrentWeights,
    "renamed": Renamed,
    "fleet": Seen,
    "catalogue": CatalogueFiles,
    "published": PublishedCatalogue,
}
"""The class of each record, by the name that `enginehouse schema` takes."""


def schema(name: str) -> dict[str, JsonValue]:
    """The JSON schema (2020-12) of a record in the store."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **FORMATS[name].model_json_schema()}
