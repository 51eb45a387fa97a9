"""Run flows in this process, for the command line: the same flows, with the same parameters, as in the UI."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sys

import prefect.main  # configures Prefect's logging before it is changed below
from prefect.logging.handlers import PrefectConsoleHandler

from flows.rebuild import Refresh, Until, rebuild
from flows.report import Report, StepReport, collecting
from flows.rollback import rollback
from infra import settings
from infra.errors import EnginehouseError

assert prefect.main


def run_rebuild(
    model: str,
    recipe: dict[str, str],
    refresh: Refresh,
    targets: tuple[str, ...],
    *,
    recreate: bool,
    runtime: str,
    until: Until,
    watch: bool,
    as_json: bool,
) -> int:
    """Run the flow and print what it did. Returns the exit code."""
    _console(logging.INFO if watch else logging.CRITICAL)
    report = Report(model, on_step=_tell)
    error: BaseException | None = None
    with collecting(report):
        try:
            asyncio.run(rebuild(model, runtime, recipe, targets, refresh, recreate, until))
        except EnginehouseError as raised:
            error = raised
    report.url = _run_url(report.flow_run)
    if as_json:
        document = report.document()
        if error is not None:
            document["error"] = {"code": error.code, "message": error.message, "hint": error.hint}
        print(json.dumps(document, indent=1))
    else:
        print(f"{model} release {report.release}: {report.state}" if report.release else f"{model}: {report.state}")
        print(f"run   {report.url}")
        if error is None and report.release is not None and (triton := settings.load().triton_http):
            body = json.dumps({"text_input": "How do I count to nine in French?", "max_tokens": 64})
            print(f"ask   curl -s {triton}/v2/models/{model}/generate -d {shlex.quote(body)}")
    if error is not None:
        raise error
    return 0


def run_rollback(model: str, to: int | None, target: str | None, *, as_json: bool) -> int:
    quiet()
    release = asyncio.run(rollback(model, to, target))
    if as_json:
        print(json.dumps({"model": model, "release": release}))
    else:
        print(f"{model} answers with release {release}")
    return 0


def quiet() -> None:
    """Let Prefect print nothing here."""
    _console(logging.CRITICAL)


def _console(level: int) -> None:
    """What Prefect prints here; the server gets every log line all the same."""
    for name in ("prefect", ""):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(level)


def _tell(step: StepReport) -> None:
    print(f"{step.name:10} {step.state:12} {step.seconds:8.2f} s  {step.artifact or ''}", file=sys.stderr, flush=True)


def _run_url(flow_run: str) -> str:
    return f"{os.environ['PREFECT_API_URL'].removesuffix('/api')}/runs/flow-run/{flow_run}" if flow_run else ""
