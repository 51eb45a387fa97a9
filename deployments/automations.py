"""Automations as they are wanted, in Prefect's own words, and as a server has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from deployments.desired import Automation, Ended, Run, Said
from deployments.difference import Fields

if TYPE_CHECKING:
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

_NOT_YET = UUID(int=0)


def automation(wanted: Automation, ids: Mapping[str, UUID]) -> AutomationCore:
    """As Prefect has it, with the ids of the deployments on its server. One that is still to be made has a null id."""
    from prefect.events.schemas.automations import AutomationCore

    match wanted.when:
        case Ended() as when:
            trigger = _ended(when, ids.get(when.of, _NOT_YET))
        case Said() as when:
            trigger = _trigger(expect={when.event}, match={"prefect.resource.id": "*"})
    return AutomationCore(
        name=wanted.name,
        description=wanted.description,
        trigger=trigger,
        actions=cast(Any, [_run(wanted.do, ids.get(wanted.do.deployment, _NOT_YET))]),
    )


def _ended(when: Ended, of: UUID) -> EventTrigger:
    related = [
        {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{when.tag}"},
        {"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{of}"},
    ]
    return _trigger(
        expect={f"prefect.flow-run.{state}" for state in when.states},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=related,
    )


def _trigger(**options: Any) -> EventTrigger:
    from prefect.events.schemas.automations import EventTrigger, Posture

    return EventTrigger(for_each={"prefect.resource.id"}, posture=Posture.Reactive, threshold=1, **options)


def _run(wanted: Run, deployment: UUID) -> Any:
    from prefect.events.actions import RunDeployment

    # Without the wrapper the payload would come as text.
    payload = {"__prefect_kind": "json", "value": _rendered("{{ event.payload | tojson }}")}
    parameters = {"event": _rendered("{{ event.id }}"), "payload": payload}
    return RunDeployment.model_validate(
        {"deployment_id": deployment, "parameters": parameters if wanted.with_event else None}
    )


def _rendered(template: str) -> dict[str, Any]:
    return {"__prefect_kind": "jinja", "template": template}


def automation_fields(there: AutomationCore | None) -> Fields | None:
    if there is None:
        return None
    told = there.model_dump(mode="json", include={"description", "trigger", "actions"})
    for name in ("after", "expect", "for_each"):  # sets, in any order
        if name in told["trigger"]:
            told["trigger"][name] = sorted(told["trigger"][name])
    told["trigger"].pop("id", None)
    return told
