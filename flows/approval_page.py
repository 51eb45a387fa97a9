"""What a person sees of a candidate that waits: the gates, what changed, and where to approve or reject it."""

from __future__ import annotations

import json
from urllib.parse import quote
from uuid import UUID

import httpx
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException

from flows.names import APPROVE
from flows.ui import artifact_key, gate_rows
from tasks.targets.release import Intent, Result


async def show_request(intent: Intent, result: Result, target: str) -> None:
    """Leave the report of a candidate that waits as an artifact, with links to the form of the deployment `approve`."""
    await acreate_markdown_artifact(
        key=artifact_key("approval", intent.model, target),
        description=f"{intent.model} release {intent.release} on {target} waits for approval",
        markdown=page(intent, result, target, await _deployment()),
    )


def page(intent: Intent, result: Result, target: str, deployment: UUID | None) -> str:
    """The report as Markdown; without links if the server has no deployment `approve`."""
    changes = "\n".join(f"- {change}" for change in intent.changes) or "- nothing, or none was live"
    beside = "no release is live" if intent.live is None else f"release {intent.live} is live"
    links = "" if deployment is None else f"{_links(intent, target, deployment)}\n\n"
    on = f"{intent.model} --release {intent.release} --target {target}"
    return f"""# {intent.model} release {intent.release} on {target} waits for approval

{links}On a command line:

```
enginehouse approve {on} --note "…"
enginehouse reject {on} --note "…"
```

The gates say **{result.state}**; {beside}. Made from `{intent.source}`.

| gate | verdict | samples | why |
|---|---|---|---|
{gate_rows(result)}
Changed from the release that was live:

{changes}
"""


def _links(intent: Intent, target: str, deployment: UUID) -> str:
    asked = {"model": intent.model, "release": intent.release, "target": target}

    def link(decision: str) -> str:
        # The page decodes the parameters once more than its address is.
        filled = quote(quote(json.dumps({**asked, "decision": decision}), safe=""), safe="")
        return f"/deployments/deployment/{deployment}/run?parameters={filled}"

    return f"**[Approve]({link('approve')})** or **[reject]({link('reject')})**: a form, with room for a note."


async def _deployment() -> UUID | None:
    try:
        async with get_client() as client:
            return (await client.read_deployment_by_name(APPROVE.deployment)).id
    except (PrefectException, httpx.HTTPError):  # a server that `enginehouse deploy` has not been run for
        return None
