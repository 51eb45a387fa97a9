"""A Docker daemon of a test, and an image that has nothing of its own: containers see this machine's programs."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.processes.sessions import start_session, terminate
from infra.settings import CHECKOUT

# What a Python of this machine needs of it, at its own place.
_SYSTEM = ("/bin", "/lib", "/lib64", "/usr", "/etc/ld.so.cache", "/etc/ssl")


def missing() -> str:
    """Why this machine cannot run a daemon; empty if it can."""
    tools = [name for name in ("docker", "dockerd") if shutil.which(name) is None]
    if tools:
        return f"not installed: {', '.join(tools)} (Debian's docker.io)"
    return "" if os.getuid() == 0 else "dockerd needs root"


@dataclass(frozen=True)
class Daemon:
    host: str

    def docker(self, *arguments: str, stdin: bytes = b"") -> str:
        ran = subprocess.run(["docker", "-H", self.host, *arguments], input=stdin, capture_output=True, check=False)
        assert ran.returncode == 0, ran.stderr.decode()
        return ran.stdout.decode()

    def make_image(self, name: str) -> None:
        """An image of empty folders, for the mounts of `volumes`."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            for folder in ("dev", "etc", "proc", "sys", "tmp", "opt", "var/lib"):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
                tar.addfile(entry)
        self.docker("import", "-", name, stdin=archive.getvalue())

    def inspect(self, flow_run: str) -> list[dict[str, Any]]:
        """What the daemon knows of the containers of a flow run."""
        ids = self.docker("ps", "--all", "--quiet", "--filter", f"label=io.prefect.flow-run-id={flow_run}").split()
        return [each for id in ids for each in json.loads(self.docker("inspect", id))]


def volumes() -> list[str]:
    """Read-only mounts, by which the image's `/opt/enginehouse/bin/python` is this interpreter, with this checkout."""
    places = {place: place for place in _SYSTEM if Path(place).exists()} | {str(CHECKOUT): str(CHECKOUT)}
    if not sys.base_prefix.startswith("/usr"):
        places[sys.base_prefix] = sys.base_prefix
    return [f"{place}:{at}:ro" for place, at in {**places, sys.prefix: "/opt/enginehouse"}.items()]


@contextmanager
def running() -> Generator[Daemon | None]:
    """A daemon without networks of its own; None where the kernel lets none start."""
    folder = Path(tempfile.mkdtemp(prefix="enginehouse-docker-"))  # a socket's path is short
    host = f"unix://{folder}/socket"
    options = ("--bridge=none", "--iptables=false", "--ip6tables=false")
    command = ["dockerd", *options, f"--data-root={folder}/data", f"--exec-root={folder}/exec", "-H", host]
    process = start_session(
        [*command, f"--pidfile={folder}/pid"], log=folder / "log", folder=folder, environment=dict(os.environ)
    )
    try:
        until = time.monotonic() + 30
        while not Path(f"{folder}/socket").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        yield Daemon(host) if Path(f"{folder}/socket").exists() and process.poll() is None else None
    finally:
        terminate(process, 20)
        subprocess.run(["umount", f"{folder}/exec/netns/default"], capture_output=True, check=False)
        shutil.rmtree(folder, ignore_errors=True)
