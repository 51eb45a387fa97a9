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
from flows.ui import artifact_key
from tasks.report.markdown import markdown_of
from tasks.report.release import ReleaseReport
from tasks.report.sections import told
from tasks.targets.references import ReleaseRef


async def show_request(report: ReleaseReport) -> None:
    """Leave the report of a candidate that waits as an artifact, with links to the form of the deployment `approve`."""
    await acreate_markdown_artifact(
        key=artifact_key("approval", report.intent.model, report.target),
        description=f"{report.intent.model} release {report.intent.release} on {report.target} waits for approval",
        markdown=page(report, await _deployment()),
    )


def page(report: ReleaseReport, deployment: UUID | None) -> str:
    """The report as Markdown, below the ways to decide; without links if the server has no deployment `approve`."""
    where = report.reference
    links = "" if deployment is None else f"{_links(where, deployment)}\n\n"
    on = f"{where.model} --release {where.release} --target {where.target}"
    return f"""# {where.model} release {where.release} on {where.target} waits for approval

{links}On a command line:

```
enginehouse approve {on} --note "…"
enginehouse reject {on} --note "…"
```

{markdown_of(told(report))}"""


def _links(where: ReleaseRef, deployment: UUID) -> str:
    asked = {"model": where.model, "release": where.release, "target": where.target}

    def link(decision: str) -> str:
        filled = quote(json.dumps({**asked, "decision": decision}), safe="")
        # From a page of an artifact: Prefect has two UIs, one of them in a folder, and a person stays in his.
        return f"../../deployments/deployment/{deployment}/run?parameters={filled}"

    return f"**[Approve]({link('approve')})** or **[reject]({link('reject')})**: a form, with room for a note."


async def _deployment() -> UUID | None:
    try:
        async with get_client() as client:
            return (await client.read_deployment_by_name(APPROVE.deployment)).id
    except (PrefectException, httpx.HTTPError):  # a server that `enginehouse deploy` has not been run for
        return None
