"""Automations as they are wanted, in the form that Prefect has for them, and as a server has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import UUID

from pydantic import JsonValue

from deployments.prefect_server.desired import (
    FAILURES,
    Automation,
    Crash,
    Ended,
    Notify,
    Received,
    RunDeployment,
    Silent,
    Troubled,
)
from deployments.prefect_server.difference import Fields
from flows.names import WAITING

if TYPE_CHECKING:
    from prefect.events.actions import ChangeFlowRunState, SendNotification
    from prefect.events.actions import RunDeployment as RunDeploymentAction
    from prefect.events.schemas.automations import AutomationCore, EventTrigger

_NOT_YET = UUID(int=0)


def automation(wanted: Automation, ids: Mapping[str, UUID]) -> AutomationCore:
    """The automation in Prefect's form. `ids` are the server's, of deployments and blocks by name.

    A deployment that is yet to be made has a null id.
    """
    from prefect.events.schemas.automations import AutomationCore

    match wanted.when:
        case Ended() as when:
            trigger = _ended(when, ids.get(when.of, _NOT_YET))
        case Received() as when:
            trigger = _trigger("Reactive", expect={when.event})
        case Silent() as when:
            trigger = _silent(when)
        case Troubled() as when:
            trigger = _trigger(
                "Reactive",
                expect={f"prefect.flow-run.{state}" for state in (*FAILURES, "Crashed", WAITING)},
                match={"prefect.resource.id": "prefect.flow-run.*"},
                match_related=_of_flows(when.flows),
            )
    match wanted.do:
        case RunDeployment() as do:
            action = _run(do, ids.get(do.deployment, _NOT_YET))
        case Crash() as do:
            action = _crash(do)
        case Notify() as do:
            action = _notify(ids.get(do.block, _NOT_YET))
    return AutomationCore(
        name=wanted.name, description=wanted.description, trigger=trigger, actions=cast(Any, [action])
    )


def _ended(when: Ended, of: UUID) -> EventTrigger:
    related = [{"prefect.resource.role": "deployment", "prefect.resource.id": f"prefect.deployment.{of}"}]
    if when.tag:
        related.insert(0, {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{when.tag}"})
    return _trigger(
        "Reactive",
        expect={f"prefect.flow-run.{state}" for state in when.states},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=related,
    )


def _silent(when: Silent) -> EventTrigger:
    return _trigger(
        "Proactive",
        after={"prefect.flow-run.heartbeat"},
        # The next heartbeat, or any state: a run may end in a state of a name of its own, or pause.
        expect={"prefect.flow-run.*"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=_of_flows(when.flows),
        within=when.seconds,
    )


def _of_flows(names: tuple[str, ...]) -> dict[str, JsonValue]:
    return {"prefect.resource.role": "flow", "prefect.resource.name": list(names)}


def _trigger(posture: Literal["Reactive", "Proactive"], **options: object) -> EventTrigger:
    from prefect.events.schemas.automations import EventTrigger

    return EventTrigger.model_validate(
        {"posture": posture, "for_each": {"prefect.resource.id"}, "threshold": 1, **options}
    )


def _run(wanted: RunDeployment, deployment: UUID) -> RunDeploymentAction:
    from prefect.events.actions import RunDeployment

    # Without the wrapper the payload would come as text.
    payload = {"__prefect_kind": "json", "value": _rendered("{{ event.payload | tojson }}")}
    parameters = {"event": _rendered("{{ event.id }}"), "payload": payload}
    return RunDeployment.model_validate(
        {
            "deployment_id": deployment,
            "parameters": parameters if wanted.with_event else None,
            "schedule_after": wanted.after_seconds,
        }
    )


def _crash(wanted: Crash) -> ChangeFlowRunState:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState

    return ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=wanted.message, force=False)


def _notify(block: UUID) -> SendNotification:
    from prefect.events.actions import SendNotification

    return SendNotification(
        block_document_id=block,
        subject="Enginehouse: {{ flow_run.name }}: {{ flow_run.state.name }}",
        body="{{ flow_run.state.message }}\n\n{{ flow_run|ui_url }}",
    )


def _rendered(template: str) -> dict[str, JsonValue]:
    return {"__prefect_kind": "jinja", "template": template}


def automation_fields(found: AutomationCore | None) -> Fields | None:
    if found is None:
        return None
    document = found.model_dump(mode="json", include={"description", "trigger", "actions"})
    for name in ("after", "expect", "for_each"):  # sets, in any order
        if name in document["trigger"]:
            document["trigger"][name] = sorted(document["trigger"][name])
    document["trigger"].pop("id", None)
    return document
