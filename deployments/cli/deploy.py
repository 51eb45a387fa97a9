"""`enginehouse deploy`: the difference to a Prefect server, printed first and then made."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter

import httpx
from prefect.exceptions import PrefectHTTPStatusError

from deployments.prefect_server.desired import desired
from deployments.prefect_server.difference import ResourceChange, lines
from deployments.prefect_server.register import deploy
from infra.errors import SettingsError
from infra.s3.bucket import Bucket
from infra.s3.conditional_writes import require_conditional_writes
from infra.settings import Settings
from tasks.models.catalogue import load_catalogue


def run_deploy(here: Settings, *, dry_run: bool, as_json: bool) -> int:
    """Returns the exit code. Raises SpecError for a catalogue with mistakes, SettingsError where Prefect says no."""
    if here.store and not dry_run:
        require_conditional_writes(Bucket.at(here.store))
    wanted = desired(here, load_catalogue(here.catalogue).values())
    stream = sys.stderr if as_json else sys.stdout

    def tell(change: ResourceChange) -> None:
        for line in lines(change):
            print(line, file=stream, flush=True)

    try:
        changes = asyncio.run(deploy(wanted, tell, dry_run=dry_run))
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        raise SettingsError(
            f"the Prefect server at {os.environ['PREFECT_API_URL']} did not do it: {error}",
            hint="is it up, does it let you in (PREFECT_API_AUTH_STRING), and is it a Prefect 3?",
            code="prefect-failed",
        ) from error
    if as_json:
        print(json.dumps([change.document() for change in changes], indent=1))
    count = Counter(change.action for change in changes)
    said = ", ".join(f"{count[action]} {action}" for action in ("created", "changed", "unchanged"))
    print(f"\n{said}{' if this were no dry run' if dry_run else ''}", file=stream)
    return 0
