"""Commands of the embedded stack: up, down, ui, env."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING

from deployments.cli.command import Add, print_json, say

if TYPE_CHECKING:
    from infra.settings import Settings


def add_stack_commands(add: Add) -> None:
    add("up", _up, "start the embedded stack, or whatever of it is missing", json=True)
    add("down", _down, "stop the embedded stack; its data stays", json=True)
    add("ui", _ui, "print where the Prefect UI is, and what its login asks for", json=True)
    add("env", _env, "print the variables with which other clients reach the stack, as export lines", json=True)


def _up(options: argparse.Namespace, settings: Settings) -> int:
    from dataclasses import asdict

    from deployments.stack import lifecycle
    from infra.s3.bucket import Bucket
    from infra.s3.conditional_writes import require_conditional_writes
    from infra.settings import activate, load

    lifecycle.up(settings, say)
    activate()
    require_conditional_writes(Bucket.at(load().store))
    if options.json:
        print_json([asdict(service) for service in lifecycle.status(settings)])
        return 0
    say(f"\nPrefect UI  {os.environ.get('PREFECT_API_URL', '').removesuffix('/api')}  (its login: `enginehouse ui`)")
    say("next: `enginehouse rebuild smollm2-135m`")
    return 0


def _down(options: argparse.Namespace, settings: Settings) -> int:
    from dataclasses import asdict

    from deployments.stack import lifecycle

    lifecycle.down(settings, say)
    if options.json:
        print_json([asdict(service) for service in lifecycle.status(settings)])
    return 0


def _ui(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.stack import lifecycle

    variables = lifecycle.environment(settings)
    url = variables["PREFECT_API_URL"].removesuffix("/api")
    login = variables.get("PREFECT_API_AUTH_STRING", "")  # none, while servers of an earlier version run
    if options.json:
        print_json({"url": url, "login": login})
    else:
        print(f"{url}\nlogin  {login}")
    return 0


def _env(options: argparse.Namespace, settings: Settings) -> int:
    from deployments.stack import lifecycle

    variables = lifecycle.environment(settings)
    if options.json:
        print_json(variables)
        return 0
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0
