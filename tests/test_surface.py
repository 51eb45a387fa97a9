"""What others rely on: fields of records, commands with their options, deployments and automations, by a snapshot.

Words for people are no part of it. After a change that is meant, of which CHANGELOG.md then tells:
`ENGINEHOUSE_WRITE_SNAPSHOTS=1 pytest tests/test_surface.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import astuple
from io import StringIO
from pathlib import Path
from typing import Any, cast

from prefect.utilities.callables import parameter_schema

from deployments.cli.main import main
from deployments.prefect_server.automations import automation
from deployments.prefect_server.desired import desired
from infra import settings
from tasks.explain.formats import FORMATS, schema
from tasks.models.catalogue import load_catalogue

SNAPSHOT = Path(__file__).parent / "snapshots" / "surface.txt"
COMMANDS = (
    *(
        "init",
        "up",
        "down",
        "doctor",
        "status",
        "ui",
        "env",
        "plan",
        "assemble",
        "rebuild",
        "ask",
        "releases",
        "rollback",
    ),
    *("approve", "reject", "probe", "lineage", "why", "verify", "sign", "pin", "unpin", "gc", "schema"),
    *("report", "history", "logs", "export", "new", "diff", "rename", "retire"),
    *("deploy", "watch", "finetuned", "webhooks", "node", "gateway", "gateway-key", "load", "completion"),
)


def fields(document: dict[str, Any], definitions: dict[str, Any], name: str) -> Iterator[str]:
    """A line for each field of a record: its whole name, type and default. What classes are called does not count."""
    if "$ref" in document:
        document = definitions[document["$ref"].rpartition("/")[2]]
    for field, of_it in document.get("properties", {}).items():
        yield from fields(of_it, definitions, f"{name}.{field}")
    if "properties" in document:
        return
    inner = [each for each in document.get("anyOf", []) if "$ref" in each]
    inner += [each for each in (document.get("items"), document.get("additionalProperties")) if isinstance(each, dict)]
    words = {key: document[key] for key in sorted(document) if key not in _TOLD_OTHERWISE}
    yield f"{name}: {json.dumps(words)}"
    for each in inner:
        yield from fields(cast("dict[str, Any]", each), definitions, f"{name}[]")


_TOLD_OTHERWISE = ("title", "description", "items", "anyOf", "additionalProperties")


def records() -> Iterator[str]:
    for name in FORMATS:
        document = cast("dict[str, Any]", schema(name))
        yield f"# {name}, required: {', '.join(sorted(document.get('required', [])))}"
        yield from sorted(fields(document, document.get("$defs", {}), name))


def commands() -> Iterator[str]:
    for name in COMMANDS:
        told = StringIO()
        with redirect_stdout(told), suppress(SystemExit):
            main([name, "--help"])
        options = sorted({*re.findall(r"(?<![\w-])--[a-z-]+", told.getvalue())} - {"--help"})
        yield f"enginehouse {name} {' '.join(options)}"


def prefect() -> Iterator[str]:
    here = settings.load()
    wanted = desired(here, load_catalogue(here.catalogue).models.values())
    yield from (str(astuple(pool)) for pool in wanted.pools)
    for each in wanted.deployments:
        flow = getattr(__import__(each.module, fromlist=[each.flow]), each.flow)
        parameters = parameter_schema(flow).model_dump(exclude_unset=True)["properties"]
        yield f"{each.module}.{each.flow} {each.full_name} {each.pool} {each.schedule!r} {each.limit}"
        for name, about in parameters.items():
            yield f"  {name} {json.dumps({key: each for key, each in about.items() if key != 'description'})}"
    for each in wanted.automations:
        made = automation(each, {}).model_dump(mode="json", include={"name", "trigger", "actions"})
        made["trigger"].pop("id", None)
        for named in ("after", "expect", "for_each"):
            made["trigger"][named] = sorted(made["trigger"][named])
        made["actions"] = [{**action, "message": ""} for action in made["actions"]]
        yield json.dumps(made, sort_keys=True)


def test_the_surface_is_as_in_the_snapshot() -> None:
    text = "\n".join([*records(), *commands(), *prefect()]) + "\n"
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        SNAPSHOT.parent.mkdir(exist_ok=True)
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text()
