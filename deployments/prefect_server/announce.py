"""Fine-tuning events on their way to a Prefect server."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client
from pydantic import JsonValue

from tasks.finetuned.event import EVENT, Event


async def send(id: UUID, event: Event) -> None:
    """Send an event to Prefect, whose automation starts the flow `finetuned`. Raises the client's own errors."""
    async with get_client() as client:
        await client.request("POST", "/events", json=[document(id, event)])


def document(id: UUID, event: Event) -> dict[str, JsonValue]:
    """An event as `POST /api/events` takes it."""
    return {
        "id": str(id),
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": f"enginehouse.model.{event.model}"},
        "payload": event.model_dump(mode="json", exclude_none=True),
    }
