"""`prefect.yaml`: the same deployments for `prefect deploy --all`, where a team keeps to Prefect's own command.

That command makes deployments alone, with the forms as the flows have them: without the catalogue's choices.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, cast

import yaml
from pydantic import JsonValue

from deployments.prefect_server.desired import Deployment, Desired
from deployments.prefect_server.resources import SLUG, description, flow_of

_HEAD = """\
# The deployments of Enginehouse, for `prefect deploy --all`. Made by `enginehouse deploy --prefect-yaml`: make it anew
# when the pools of the catalogue or a setting change. Run that command where Enginehouse is installed.
#
# Prefect has no place here for work pools, which come first, and for automations:
{pools}
# `enginehouse deploy` makes them all, and gives the forms the catalogue's names as choices.
"""


def prefect_file(wanted: Desired) -> str:
    """The text of a `prefect.yaml` with the deployments that are wanted. Imports the flows."""
    pools = "\n".join(f"#   prefect work-pool create {pool.name} --type {pool.type}" for pool in wanted.pools)
    document: dict[str, JsonValue] = {
        "name": "enginehouse",
        "prefect-version": importlib.metadata.version("prefect"),
        # The flows are installed where they run: nothing is built, pushed or pulled.
        "build": None,
        "push": None,
        "pull": [],
        "deployments": [_entry(each) for each in wanted.deployments],
    }
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return f"{_HEAD.format(pools=pools)}\n{text}"


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as lines."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return cast(Any, self).represent_scalar("tag:yaml.org,2002:str", text, style=style)  # which has no types


_Dumper.add_representer(str, _Dumper.represent_text)


def _entry(wanted: Deployment) -> dict[str, JsonValue]:
    entry: dict[str, JsonValue] = {
        "name": wanted.name,
        "entrypoint": wanted.entrypoint,
        "description": description(flow_of(wanted)),
        "tags": [*wanted.tags],
        "work_pool": {"name": wanted.pool},
        "enforce_parameter_schema": True,
        "build": None,
        "push": None,
        "pull": [],
    }
    if wanted.schedule:
        entry["schedules"] = [{"cron": wanted.schedule, "timezone": "UTC", "slug": SLUG}]
    if wanted.limit is not None:
        entry["concurrency_limit"] = {"limit": wanted.limit, "collision_strategy": "ENQUEUE"}
    return entry
