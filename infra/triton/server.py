"""Starting Triton: which installation, which command line, in an environment of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from infra.processes import sessions
from infra.triton import command, installation
from infra.triton.command import Group, Ports, Server
from infra.triton.tracing import Tracing


def start_server(
    repository: Path,
    work: Path,
    log: Path,
    *,
    ports: Ports,
    control_key: str,
    root: Path | None = None,
    orchestrated_gpus: int = 0,
    group: Group | None = None,
    exit_timeout_s: int = command.EXIT_TIMEOUT_S,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start Triton on loopback, with nothing loaded and every control endpoint behind `control_key`.

    `repository` holds the models, `work` the models' interpreter; neither may lie in the other. `log` is appended to.
    `root` is the folder of Triton in NVIDIA's image; without it, the wheel's is started. With `orchestrated_gpus`,
    TensorRT-LLM runs its engines on so many GPUs in workers of its own. With `group`, one Triton is started for each
    rank; once the first is live, all have loaded the group's engine. Triton gets a minimal environment plus
    `environment`, a session of its own, and at most `exit_timeout_s` seconds for running requests on SIGTERM.

    The key shows in the process list of this machine: it keeps clients out, not other users of the machine.
    Raises SettingsError if parts of the installation are missing, and code `traces`.
    """
    tracing = Tracing.of(os.environ)
    found = installation.of_image(root, work) if root is not None else installation.of_wheel(work)
    shared_memory = shared_memory_prefix(work)
    _clear_shared_memory(shared_memory)
    server = Server(
        binary=found.binary,
        models=repository.resolve(),
        backends=found.backends.resolve(),
        shared_memory=shared_memory,
        ports=ports,
        control_key=control_key,
        exit_timeout_s=exit_timeout_s,
        options=tracing.options,
    )
    if group is not None:
        started = command.leader(server, group.others, group.engine, ())
    elif orchestrated_gpus:
        started = command.orchestrator(server, orchestrated_gpus, found.container)
    else:
        started = command.single(server)
    return sessions.start_session(
        started.argv,
        log=log,
        folder=work,
        environment={
            **found.environment,
            **started.environment,
            **tracing.environment,
            # For processes that a model starts; the stub itself ignores it.
            "PYTHONDONTWRITEBYTECODE": "1",
            **(environment or {}),
        },
    )


def shared_memory_prefix(work: Path) -> str:
    """The beginning of the names of a server's shared memory regions; each work folder has its own."""
    return f"enginehouse-{hashlib.sha256(bytes(work.resolve())).hexdigest()[:12]}-"


def _clear_shared_memory(prefix: str) -> None:
    """Remove the regions that a killed server has left."""
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
