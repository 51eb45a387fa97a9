"""The Prefect server: whether it answers, lets this machine in, and has a version that the client here works with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.metadata import version

from packaging.version import Version
from pydantic import TypeAdapter

from deployments.doctor.check import Check, Finding, fine, notice, wrong
from deployments.doctor.prefect_api import prefect_api
from infra.settings import Settings

_TEXT = TypeAdapter(str)
_CLOUD = "https://api.prefect.cloud/"


def _look(_: Settings) -> Iterator[Finding]:
    with prefect_api() as api:
        if str(api.client.base_url).startswith(_CLOUD):
            yield fine("Prefect Cloud answers, which works with every client")
            return
        theirs, ours = Version(api.ask(_TEXT, "GET", "/admin/version")), Version(version("prefect"))
        mend = f"pip install prefect=={ours}, where the server runs, then start it anew"
        if theirs.major != ours.major:
            yield wrong("prefect-version", f"the server is Prefect {theirs}, and the client here is {ours}", mend)
        elif theirs.release[:2] < ours.release[:2]:
            yield notice("prefect-older", f"the server is Prefect {theirs}, older than the client here: {ours}", mend)
        else:
            yield fine(f"Prefect {theirs} at {os.environ['PREFECT_API_URL']}, the client is {ours}")


CHECK = Check("prefect", "the Prefect server: its answer, its credential and its version", _look)
