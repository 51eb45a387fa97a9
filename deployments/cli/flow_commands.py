"""Commands that run a flow in this process: rebuild, rollback, watch.

They run the same flows, with the same parameters, as the deployments in the Prefect UI do.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING

from deployments.cli.command import (
    Add,
    Answered,
    add_recipe,
    error_document,
    importing_prefect,
    overrides,
    print_json,
    say,
)
from deployments.cli.people import short
from deployments.cli.prefect_calls import require_prefect, run_flow
from infra.errors import EnginehouseError, GateUndecided, UsageError

if TYPE_CHECKING:
    from deployments.cli.columns import Cell
    from flows.report import Report, RunningStep, StepReport
    from infra.settings import Settings
    from tasks.steps.promote import RolledBack
    from tasks.targets.target import Target


def add_flow_commands(add: Add) -> None:
    sub = add("rebuild", _rebuild, "bring a model from its source to its public name", json=True)
    add_recipe(sub)
    sub.add_argument("--runtime", metavar="VERSION", default="", help="build with this version of TensorRT-LLM")
    sub.add_argument(
        "--until", choices=("upload",), default="promote", help="build into the store, and roll nothing out"
    )
    sub.add_argument(
        "--refresh",
        choices=("fetch", "convert", "build", "assemble"),
        default="nothing",
        help="run this step, and all after it, even if the store has the result",
    )
    sub.add_argument("--target", action="append", default=[], help="roll out to this target; may be repeated")
    sub.add_argument(
        "--recreate",
        action="store_true",
        help="if memory is short, unload the live release before the new one loads",
    )
    sub.add_argument("--watch", action="store_true", help="show the run's log while it runs")

    sub = add("rollback", _rollback, "give the public name back to an earlier release", json=True)
    sub.add_argument("model")
    sub.add_argument("--to", type=int, metavar="N", help="number of the release; by default the previous one")
    sub.add_argument(
        "--from", type=int, metavar="N", dest="instead_of", help="do nothing if another release is live than this one"
    )
    sub.add_argument("--target", default=None)
    sub.add_argument("--reason", default="", help="why; `enginehouse history` tells it")

    sub = add("watch", _watch, "look for new versions of TensorRT-LLM once, and rebuild what takes them", json=True)
    sub.add_argument("--dry-run", action="store_true", help="print what would be rebuilt, and start nothing")
    sub.add_argument("--retry", action="append", default=[], metavar="MODEL", help="try again one whose rebuild failed")


def _rebuild(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.cli.running import showing

    recipe = overrides(options)
    with importing_prefect(settings):
        require_prefect()
        _print_logs_from(logging.INFO if options.watch else logging.CRITICAL)
        from flows.rebuild import rebuild
        from flows.report import Report, collecting

    _require_model(options, recipe, settings)
    report = Report(options.model) if options.json else Report(options.model, on_step=_print_step)
    refused: EnginehouseError | None = None
    with collecting(report), showing(report.running, quiet=options.json or options.watch):
        try:
            run_flow(
                rebuild(
                    options.model,
                    options.runtime,
                    recipe,
                    tuple(options.target),
                    options.refresh,
                    options.recreate,
                    options.until,
                )
            )
        except EnginehouseError as error:
            refused = error
    if report.waiting and refused is None:
        refused = _waiting(report)
    if report.flow_run:
        report.url = f"{os.environ['PREFECT_API_URL'].removesuffix('/api')}/runs/flow-run/{report.flow_run}"
    if options.json:
        document = report.document()
        if refused is not None:
            document["error"] = dict(error_document(refused))
        print_json(document)
    else:
        _print_report(report, "" if refused is not None else settings.triton_http)
    if refused is not None:
        raise Answered(refused) if options.json else refused
    if recipe and report.state == "promoted" and not options.json:
        fields = " and ".join(recipe)
        say(
            f"\nhint: the next rebuild without --recipe goes by the model's file again: write {fields} there to keep it"
        )
    return 0


def _require_model(options: argparse.Namespace, recipe: dict[str, str], settings: Settings) -> None:
    """Raise what the flow would raise of a name or a field that is not there: it would leave a failed run behind.

    A catalogue that is published is read by the flow alone.
    """
    from tasks.models.catalogue import catalogue_entry
    from tasks.models.overrides import override

    if settings.catalogue_from == "folder":
        written = catalogue_entry(settings.catalogue, options.model)
        override(written, recipe=recipe, tensorrt_llm=options.runtime or None)


def _waiting(report: Report) -> EnginehouseError:
    asked = " or ".join(
        f"`enginehouse {decision} {report.model} --target {report.waiting[0]}`" for decision in ("approve", "reject")
    )
    return GateUndecided(
        report.asks,
        hint=f"{asked}; the live release was not touched",
        code="approval-needed",
    )


def _print_step(step: StepReport) -> None:
    say(f"{step.name:10} {step.state:12} {step.seconds:8.2f} s  {short(step.artifact or '')}")


def _print_report(report: Report, triton: str) -> None:
    """Print what came of a rebuild, and how to ask the Triton at `triton` for the model, if there is one."""
    release = f" release {report.release}" if report.release else ""
    print(f"{report.model}{release}: {report.state}")
    print(f"run   {report.url}")
    if report.release is not None and triton:
        body = json.dumps({"text_input": "How do I count to nine in French?", "max_tokens": 64})
        print(f"ask   curl -s {triton}/v2/models/{report.model}/generate -d {shlex.quote(body)}")


def _rollback(options: argparse.Namespace, settings: Settings) -> int:
    """Roll back as a run on the Prefect server, and without one where that does not answer: clients wait."""
    from deployments.cli.running import showing
    from flows.report import Report

    report = Report(options.model)
    with report.runs("rollback") as step, showing(report.running, quiet=options.json):
        done = _rolled_back(options, settings, step)
    if options.json:
        print(json.dumps({"model": options.model, "release": done.release, "from": done.instead_of}))
    else:
        print(f"{options.model} answers with release {done.release}, instead of {done.instead_of or 'none'}")
    return 0


def _rolled_back(options: argparse.Namespace, settings: Settings, step: RunningStep) -> RolledBack:
    from infra.s3.bucket import Bucket
    from tasks.steps.promote import RolledBack
    from tasks.targets.target import Target

    target = Target(Bucket.at(settings.store), options.target or settings.target)
    before = target.current(options.model)[0].public
    try:
        return _roll_back_in_a_run(options, settings)
    except UsageError as error:
        if error.code not in ("prefect-missing", "prefect-failed"):
            raise
        say(f"{error.message}: no run keeps this rollback, `enginehouse history {options.model}` does")
        now = target.current(options.model)[0].public
        # The server may have failed after the name had moved. A second rollback would go further back.
        return _roll_back_here(options, target, step) if now in (None, before) else RolledBack(now, before)


def _roll_back_in_a_run(options: argparse.Namespace, settings: Settings) -> RolledBack:
    with importing_prefect(settings):
        require_prefect(busy=False)  # clients wait, and a rollback needs no server
        _print_logs_from(logging.CRITICAL)
        from flows.rollback import rollback

    return run_flow(rollback(options.model, options.to, options.target, options.instead_of, options.reason))


def _roll_back_here(options: argparse.Namespace, target: Target, step: RunningStep) -> RolledBack:
    from tasks.steps.promote import roll_back

    def tell(line: str) -> None:
        step.said = line

    return roll_back(target, options.model, options.to, options.instead_of, reason=options.reason, say=tell)


def _watch(options: argparse.Namespace, settings: Settings) -> int:
    from dataclasses import asdict

    with importing_prefect(settings):
        require_prefect()
        _print_logs_from(logging.CRITICAL)
        from flows.ui import watch_lines
        from flows.watch_releases import watch_releases

    watched = run_flow(watch_releases(options.dry_run, options.retry))
    if options.json:
        print_json(asdict(watched))
        return 0
    if watched.rows:
        from deployments.cli.columns import print_table

        print_table(_WATCH_HEADS, [_watch_cells(line) for line in watch_lines(watched.rows)])
    if not watched.rows:
        print("no model follows TensorRT-LLM: write `updates: {policy: stable}` into the file of one that shall")
    what = "would start" if options.dry_run else "started"
    say(f"rebuilds {what}: {', '.join(start.model for start in watched.starts) or 'none'}")
    return 0


_WATCH_HEADS = ("VERSION", "VERDICT", "MODELS")


def _watch_cells(line: Mapping[str, str | int]) -> list[Cell]:
    from deployments.cli.columns import Cell

    version = f"{line['has now']} → {line['version']}" if line["has now"] else "-"
    below = filter(None, (str(line["names"]), str(line["reason"])))
    return [Cell(version), Cell(str(line["verdict"])), Cell(str(line["models"])), *map(Cell, below)]


def _print_logs_from(level: int) -> None:
    """Let Prefect print log lines of `level` and above; the server gets all of them."""
    import prefect.main  # configures Prefect's logging, which is changed below
    from prefect.logging.handlers import PrefectConsoleHandler

    assert prefect.main
    for name in ("prefect", ""):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(level)
