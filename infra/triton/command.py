"""Command lines of Triton: by itself, with workers that TensorRT-LLM spawns, and with one process a rank.

Source of what TensorRT-LLM needs: `launch_triton_server.py` of tensorrtllm_backend v0.8.0 to v0.19.0, and of
TensorRT-LLM from 0.20 on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

CONTROL_HEADER = "enginehouse-control"
"""The header that carries the key of the restricted endpoints."""

RESTRICTED = ("model-repository", "model-config", "shared-memory", "statistics", "trace", "logging")
"""Endpoints that change the server or reveal the machine; inference, health and metadata stay open."""


EXIT_TIMEOUT_S = 65
"""How long running requests have on SIGTERM: the 60 seconds after which a release ends a request with an error unless
its model's file says otherwise, and a little more. So each ends by its answer or by that error."""

_MODELS = "--model-repository="
_KEY = f":{CONTROL_HEADER}="


@dataclass(frozen=True)
class Ports:
    """The ports of one server. It listens on loopback, or everywhere if other machines reach it at `address`."""

    http: int
    grpc: int
    metrics: int
    address: str = field(default="127.0.0.1", kw_only=True)

    @property
    def bind(self) -> str:
        return self.address if self.address == "127.0.0.1" else "0.0.0.0"


@dataclass(frozen=True)
class Server:
    """One Triton process. `shared_memory` begins the names of its shared memory regions; `options` come beside ours."""

    binary: Path
    models: Path
    backends: Path
    shared_memory: str
    ports: Ports
    control_key: str
    exit_timeout_s: int
    options: tuple[str, ...] = ()

    def argv(self, *load: str) -> tuple[str, ...]:
        """The command line: every control endpoint needs the key, and only the models `load` are loaded."""
        restriction = f"{','.join(RESTRICTED)}{_KEY}{self.control_key}"
        return (
            str(self.binary),
            f"{_MODELS}{self.models}",
            f"--backend-directory={self.backends}",
            f"--backend-config=python,shm-region-prefix-name={self.shared_memory}",
            # Configurations are complete. Triton would start every Python model once more to complete them.
            "--disable-auto-complete-config",
            "--model-control-mode=explicit",
            "--strict-readiness=false",
            f"--exit-timeout-secs={self.exit_timeout_s}",
            f"--http-address={self.ports.bind}",
            f"--http-port={self.ports.http}",
            f"--http-restricted-api={restriction}",
            f"--grpc-address={self.ports.bind}",
            f"--grpc-port={self.ports.grpc}",
            f"--grpc-restricted-protocol={restriction}",
            f"--metrics-address={self.ports.bind}",
            f"--metrics-port={self.ports.metrics}",
            *self.options,
            *(f"--load-model={name}" for name in load),
        )


def serves(arguments: Sequence[str], models: Path) -> bool:
    """Whether this is the command line of a Triton whose repository is `models`, or of the mpirun above it."""
    return f"{_MODELS}{models.resolve()}" in arguments


def key_of(arguments: Sequence[str]) -> str:
    """The control key in the command line of a Triton; empty if it has none."""
    return next((word.partition(_KEY)[2] for word in arguments if _KEY in word), "")


@dataclass(frozen=True)
class ServerCommand:
    """A command line, and the variables that it needs in addition to the installation's."""

    argv: tuple[str, ...]
    environment: Mapping[str, str]


def single(server: Server) -> ServerCommand:
    """Triton by itself: models on the CPU, engines of one GPU, and every model of the LLM API on one machine.

    Without mpirun: the LLM API spawns its workers from the model's own process, and two models under one mpirun would
    both be its rank 0.
    """
    return ServerCommand(server.argv(), {})


def orchestrator(server: Server, gpus: int, container: str) -> ServerCommand:
    """Triton whose TensorRT-LLM backend (0.9 and later) spawns one worker process a rank and model, on one machine.

    So engines of several GPUs are loaded and unloaded like any other model. `gpus` is how many Triton sees. `container`
    is the image's NVIDIA_TRITON_SERVER_VERSION: from 24.07 on Triton has options to leave their memory alone.
    """
    pools: tuple[str, ...] = ()
    if container and _release(container) > (24, 6):
        pools = (
            "--pinned-memory-pool-byte-size=0",
            "--enable-peer-access=false",
            *(f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(gpus)),
        )
    argv = (*_mpirun(server.exit_timeout_s), "-n", "1", *server.argv(), *pools)
    return ServerCommand(argv, {"TRTLLM_ORCHESTRATOR": "1"})


@dataclass(frozen=True)
class Group:
    """One Triton for each rank, on one machine: the engine that they load, and the ports of all ranks but the first."""

    engine: str
    others: tuple[Ports, ...]


def leader(server: Server, others: Sequence[Ports], engine: str, models: Sequence[str]) -> ServerCommand:
    """One Triton for each rank: how 0.8 serves an engine of several GPUs, and any version one on several nodes.

    Rank 0 is `server`. It loads `engine`, the model of the C++ backend, and `models`. Each of `others` has the ports of
    one more rank, which loads the engine alone; that load never returns, so the rank takes no control requests. The
    group is therefore started for its release and ended with it.
    """
    ranks = [server.argv(engine, *models)]
    for rank, ports in enumerate(others, start=1):
        ranks.append(replace(server, ports=ports, shared_memory=f"{server.shared_memory}{rank}-").argv(engine))
    argv = list(_mpirun(server.exit_timeout_s))
    for rank, arguments in enumerate(ranks):
        argv += [*([":"] if rank else []), "-n", "1", *arguments]
    return ServerCommand(tuple(argv), {})


def _mpirun(exit_timeout_s: int) -> tuple[str, ...]:
    """mpirun without defaults that harm Triton. Containers run as root.

    By default Open MPI starts no more workers than the machine has cores, binds one or two processes to a core each
    with all of their threads, and kills a second after SIGTERM (seen with 4.1.8 and 5.0.11).
    """
    return (
        *("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"),
        *("--mca", "odls_base_sigkill_timeout", str(exit_timeout_s)),
    )


def _release(container: str) -> tuple[int, ...]:
    return tuple(int(part) for part in container.split(".")[:2] if part.isdecimal())
