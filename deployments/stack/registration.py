"""Registering the flows of the embedded stack with its Prefect server.

It runs as a program of its own (`python -m deployments.stack.registration`), so that it speaks to the server that its
environment names and never to that of the caller's Prefect profile.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from deployments.prefect_server.desired import Desired, desired
from deployments.prefect_server.register import deploy
from deployments.stack.home import Home
from deployments.stack.services import answers
from deployments.stack.starting import service_failed
from infra.errors import SpecError
from infra.processes import background, sessions
from infra.settings import CHECKOUT, Settings, load
from tasks.models.catalogue import load_catalogue

_TIMEOUT_S = 120.0


def wanted_by(settings: Settings) -> Desired:
    """What the embedded stack of these settings wants. A folder without a catalogue does not keep it down."""
    settings = replace(settings, pools=())  # its workers are processes
    try:
        return desired(settings, load_catalogue(settings.catalogue).models.values())
    except SpecError:
        return desired(settings, ())


def _sources_digest(wanted: Desired) -> str:
    """The digest of every file that the registration is made from; equal means that nothing is to be registered.

    The parameters' types may lie anywhere below the flows, so all of these files count.
    """
    digest = hashlib.sha256(f"{importlib.metadata.version('prefect')}\0{wanted}".encode())
    folders = [CHECKOUT / name for name in ("flows", "tasks", "infra", "deployments")]
    for path in sorted(path for folder in folders for path in folder.rglob("*.py")):
        digest.update(f"{path.relative_to(CHECKOUT)}\0".encode())
        digest.update(path.read_bytes())
    return f"sha256:{digest.hexdigest()}"


def register(settings: Settings, api: str, environment: Mapping[str, str]) -> None:
    """Register what is wanted of Prefect, unless the server has it as these sources and settings make it."""
    home, wanted = Home(settings.home), wanted_by(settings)
    record, digest = settings.home / "services" / "registered", _sources_digest(wanted)
    needed = [f"{api}/work_pools/{pool.name}" for pool in wanted.pools]
    needed += [f"{api}/deployments/name/{each.full_name}" for each in wanted.deployments]
    has = partial(answers, credential=environment["PREFECT_API_AUTH_STRING"])
    if record.exists() and record.read_text() == digest and all(map(has, needed)):
        return
    log = home.log("register")
    background.rotate(log)
    command = (sys.executable, "-P", "-m", "deployments.stack.registration")
    child = sessions.start_session(command, log=log, folder=settings.home, environment=environment)
    try:
        child.wait(_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        sessions.terminate(child, 5)
    if child.returncode != 0:
        raise service_failed("the flows could not be registered with Prefect", log)
    record.write_text(digest)


if __name__ == "__main__":
    asyncio.run(deploy(wanted_by(load()), lambda change: None))
