"""Commands about what a Prefect server has and receives: deploy, finetuned, webhooks."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deployments.cli.command import Add, add_recipe, importing_prefect, overrides, print_json, say
from deployments.cli.prefect_calls import ask_prefect

if TYPE_CHECKING:
    from pydantic import JsonValue

    from deployments.prefect_server.difference import ResourceChange
    from infra.settings import Settings


def add_prefect_commands(add: Add) -> None:
    sub = add(
        "deploy",
        _deploy,
        "make a Prefect server have the pools, deployments and automations that are wanted",
        json=True,
    )
    other = sub.add_mutually_exclusive_group()
    other.add_argument("--dry-run", action="store_true", help="print the difference, and change nothing")
    other.add_argument(
        "--prefect-yaml",
        metavar="FILE",
        help="write the same deployments as a file for Prefect's own command, and ask no server; - is stdout",
    )

    sub = add("finetuned", _finetuned, "announce new weights of a model, which is then rebuilt with them", json=True)
    add_recipe(sub)
    weights = sub.add_mutually_exclusive_group(required=True)
    weights.add_argument("--source", metavar="URI", help="hf:// or s3://, as the model's file accepts it")
    weights.add_argument("--revision", help="branch, tag or commit of the model's own repository")

    sub = add("webhooks", _webhooks, "receive webhooks of Hugging Face, MLflow and others as such announcements")
    sub.add_argument("--host", default="127.0.0.1", help="where to listen; a proxy with TLS belongs before any other")
    sub.add_argument("--port", type=int, default=8310)


def _deploy(options: argparse.Namespace, settings: Settings) -> int:
    """Print the difference to a Prefect server, and then make it."""
    if options.prefect_yaml:
        return _write_prefect_file(options.prefect_yaml, settings)

    from collections import Counter

    from deployments.cli.columns import print_fitted

    with importing_prefect(settings):
        from deployments.prefect_server.desired import desired
        from deployments.prefect_server.difference import lines
        from deployments.prefect_server.register import deploy
        from infra.s3.bucket import Bucket
        from infra.s3.conditional_writes import require_conditional_writes
        from tasks.models.catalogue import load_catalogue
        from tasks.models.published_catalogue import difference, files_in, publish

    files, bucket = files_in(settings.catalogue), Bucket.at(settings.store) if settings.store else None
    published = None if bucket is None else difference(bucket, files)
    if bucket is not None and not options.dry_run:
        require_conditional_writes(bucket)
    catalogue = load_catalogue(settings.catalogue)
    wanted = desired(settings, catalogue.models.values())
    stream = sys.stderr if options.json else sys.stdout

    def show(change: ResourceChange) -> None:
        print_fitted(lines(change), stream=stream)

    changes = ask_prefect(
        deploy(wanted, show, dry_run=options.dry_run),
        "did not make the changes",
        hint="is it up, does it let you in (PREFECT_API_AUTH_STRING), and is it a Prefect 3?",
    )
    if bucket is not None and not options.dry_run:
        publish(bucket, files)
    if published is not None:
        print(published, file=stream)
    if options.json:
        print_json([change.document() for change in changes])
    count = Counter(change.action for change in changes)
    summary = ", ".join(f"{count[action]} {action}" for action in ("created", "changed", "unchanged"))
    print(f"\n{summary}{' if this were no dry run' if options.dry_run else ''}", file=stream)
    catalogue.require_whole()  # what the others need is there; of these models nobody knows it
    return 0


def _write_prefect_file(file: str, settings: Settings) -> int:
    from deployments.prefect_server.desired import desired
    from deployments.prefect_server.prefect_file import prefect_file
    from tasks.models.catalogue import load_catalogue

    catalogue = load_catalogue(settings.catalogue)
    text = prefect_file(desired(settings, catalogue.models.values()))
    if file == "-":
        sys.stdout.write(text)
    else:
        Path(file).write_text(text, "utf-8")
        say(f"{file} is for `prefect deploy --all --prefect-file {file}`")
    catalogue.require_whole()
    return 0


def _finetuned(options: argparse.Namespace, settings: Settings) -> int:
    """Announce new weights by the same event that anybody may send to Prefect's API."""
    from uuid import uuid4

    from deployments.cli.columns import print_fitted

    with importing_prefect(settings):
        from deployments.prefect_server.announce import send
        from infra.traces.propagation import is_traceparent
        from tasks.finetuned.event import changed_by, read_event
        from tasks.models.catalogue import load_catalogue

    payload: dict[str, JsonValue] = {
        "model": options.model,
        "source": options.source,
        "revision": options.revision,
        "recipe": dict(overrides(options)),
        "sender": "command",
        # Where whoever calls is in a trace, as OpenTelemetry's programs hand it on to others.
        "traceparent": found if is_traceparent(found := os.environ.get("TRACEPARENT", "")) else None,
    }
    event = read_event({name: value for name, value in payload.items() if value is not None})
    catalogue = load_catalogue(settings.catalogue)
    catalogue.require_readable(event.model)
    _, uri = changed_by(event, catalogue.models)
    id = uuid4()
    ask_prefect(
        send(id, event), "did not take the event", hint="is it up, and does it let you in (PREFECT_API_AUTH_STRING)?"
    )
    if options.json:
        print(json.dumps({"event": str(id), "model": options.model, "source": uri}))
    else:
        print_fitted([f"{options.model}: new weights from {uri}, announced as event {id}"])
        say("what becomes of it: the run `finetuned` in the Prefect UI")
    return 0


def _webhooks(options: argparse.Namespace, settings: Settings) -> int:
    with importing_prefect(settings):
        from deployments.webhooks.receiver import run_webhooks

    return run_webhooks(settings, options.host, options.port)
