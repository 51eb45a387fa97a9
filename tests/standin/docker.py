"""A stand-in for the program `docker`, used by tests alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from infra import settings

# Records each call. A container is a process of this machine with the image's environment alone, in which
# `python3` is the stand-in's, and a path that is not mounted is refused.
_DOCKER = f"""#!{sys.executable}
import json, os, subprocess, sys
calls, python, digests = sys.argv[0] + ".calls", {{python!r}}, {{digests!r}}
arguments = sys.argv[1:]
with open(calls, "a") as file:
    print(json.dumps([arguments, dict(os.environ)]), file=file)
if arguments[:2] == ["image", "inspect"]:
    if digests is None:
        sys.exit("Error response from daemon: No such image: " + arguments[-1])
    print(json.dumps(digests))
if arguments[0] == "run":
    at = next(i for i, argument in enumerate(arguments) if "@sha256:" in argument)
    mounts, environment, folder = [], {{{{"PATH": os.environ["PATH"]}}}}, "/"
    for option in arguments[1:at]:
        name, _, value = option.partition("=")
        if name == "--mount":
            parts = dict(part.partition("=")[::2] for part in value.split(","))
            assert parts["type"] == "bind" and parts["source"] == parts["target"] and os.path.exists(parts["source"])
            mounts.append(parts["source"])
        elif name == "--env":
            key, _, value = value.partition("=")
            environment[key] = value
        elif name == "--workdir":
            folder = value
    command = arguments[at + 1:]
    for argument in command:
        if argument.startswith({{guarded!r}}) and not any((argument + "/").startswith(mount + "/") for mount in mounts):
            sys.exit("no such file: " + argument)
    print("== Triton Inference Server ==", flush=True)
    command = [python if command[0] == "python3" else command[0], *command[1:]]
    sys.exit(subprocess.run(command, env=environment, cwd=folder).returncode)
"""


def put_in_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, python: str, digests: list[str] | None, guarded: Path
) -> Path:
    """Put a stand-in for docker into PATH; returns the file in which it records its calls.

    `python` runs in its containers, `digests` are those of its image, and paths below `guarded` or this checkout exist
    only if they are mounted.
    """
    text = _DOCKER.format(python=python, digests=digests, guarded=(str(guarded), str(settings.CHECKOUT)))
    program = folder / "program/docker"
    program.parent.mkdir(parents=True)
    program.write_text(text)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return program.with_name("docker.calls")


def calls(record: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Arguments and environment of each call."""
    return [(arguments, environment) for arguments, environment in map(json.loads, record.read_text().splitlines())]
