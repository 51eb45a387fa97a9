"""Commands with which a person decides on a candidate that waits: approve, reject. The record needs no Prefect."""

from __future__ import annotations

import argparse
import getpass
import os
import platform
from typing import TYPE_CHECKING, Literal

from deployments.cli.command import Add, importing_prefect, print_json, say
from deployments.cli.prefect_calls import ask_prefect
from infra.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from infra.settings import Settings
    from tasks.steps.approve import Decided


def add_approval_commands(add: Add) -> None:
    for name, command, text in (
        ("approve", _approve, "let a candidate that waits for a person have the public name"),
        ("reject", _reject, "keep a candidate that waits for a person from the public name"),
    ):
        sub = add(name, command, text, json=True)
        sub.add_argument("model")
        sub.add_argument("--release", type=int, metavar="N", help="by default the newest one that waits")
        sub.add_argument("--target", default="", help="where it waits")
        sub.add_argument("--note", default="", help="why, for the record")
        sub.add_argument("--by", default="", metavar="WHO", help="who decides; by default the user of this machine")


def _approve(options: argparse.Namespace, settings: Settings) -> int:
    return _decide("approved", options, settings)


def _reject(options: argparse.Namespace, settings: Settings) -> int:
    return _decide("rejected", options, settings)


def _decide(state: Literal["approved", "rejected"], options: argparse.Namespace, settings: Settings) -> int:
    from infra.s3.bucket import Bucket
    from tasks.finetuned.rejected import note_rejected
    from tasks.steps.approve import decide
    from tasks.targets.target import Target

    target = Target(Bucket.at(settings.store), options.target or settings.target)
    made = decide(target, options.model, options.release, state, options.by or _user(), options.note)
    started = ""
    if state == "approved":
        started = _go_on(made, settings)
    else:
        note_rejected(target, settings.catalogue, made.model, made.approval.release, made.parameters)
    if options.json:
        about = made.approval.model_dump(mode="json", include={"release", "state", "by", "note", "created"})
        print_json(
            {"model": made.model, "target": target.name, **about, "first": made.first, "flow_run": started or None}
        )
    else:
        print(made)
        if started:
            print(f"run   {os.environ['PREFECT_API_URL'].removesuffix('/api')}/runs/flow-run/{started}")
    return 0


def _user() -> str:
    try:
        return f"{getpass.getuser()}@{platform.node()}"
    except (OSError, KeyError) as error:  # a container's user without a name
        raise UsageError("this user has no name", hint="say who decides with --by", code="approval-by") from error


def _go_on(made: Decided, settings: Settings) -> str:
    """Start the rebuild that promotes it; returns its id, or nothing where no Prefect server takes it."""
    try:
        with importing_prefect(settings):
            from flows.approve import go_on

        return ask_prefect(
            go_on(made),
            "did not take the rebuild that promotes it",
            hint="is it up, and does it have the deployments (`enginehouse deploy`)?",
        )
    except UsageError as error:
        if not isinstance(error, SettingsError) and error.code != "prefect-missing":
            raise
        say(
            f"{error.message}\n\nhint: the approval is on record; `enginehouse rebuild {made.model}` promotes it, and "
            "`reconcile` does once the server is up"
        )
        return ""
