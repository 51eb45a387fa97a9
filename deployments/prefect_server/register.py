"""Make a Prefect server have the work pools, deployments and automations that Enginehouse wants, and nothing else.

What is whose:

- Enginehouse's: of a deployment its entrypoint, pool, form, description, version, and the tags of its kind.
- Shared (`difference.py` beside this): types of pools, limits of pools and deployments, the schedule that Enginehouse
  made, what an automation does. A variable on the server, `enginehouse_deployed`, holds what was wanted at the last
  deploy.
- People's: all else. Further tags, default parameters, pauses, further schedules, job templates, whether an automation
  or a schedule is on; and every pool, deployment and automation of another name.
"""

from __future__ import annotations

from collections.abc import Callable

from deployments.prefect_server.changing import make
from deployments.prefect_server.desired import Desired
from deployments.prefect_server.difference import ResourceChange
from deployments.prefect_server.server import Server


async def deploy(
    wanted: Desired, show: Callable[[ResourceChange], None], *, dry_run: bool = False
) -> tuple[ResourceChange, ...]:
    """Compare, `show` every change, and then make them, unless `dry_run`.

    Raises SettingsError for a pool of another type and a block that is missing, and Prefect's own errors.
    """
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        server = await Server.read(client, wanted)
        changes = tuple(server.changes(wanted))
        for change in changes:
            show(change)
        if not dry_run:
            for change in changes:
                if change.action != "unchanged":
                    await make(client, server, change, wanted)
            await server.remember(client, wanted)
        return changes
