"""Settings: from the environment, then `enginehouse.toml`, then the embedded stack that `enginehouse up` made.

Every setting is one environment variable, so that a worker, a container and a shell are set up alike.
Secrets (S3 keys, hub tokens) are never settings of their own: they stay in the variables and files where
AWS and Hugging Face look for them.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from infra.errors import SettingsError

CHECKOUT = Path(__file__).resolve().parent.parent

PoolType = Literal["process", "docker", "kubernetes"]
"""Of a Prefect work pool: where a run's process is started."""


@dataclass(frozen=True)
class Settings:
    """What Enginehouse needs to know of its surroundings. Paths are absolute."""

    home: Path
    """Folder for the embedded stack, the steps' workspaces and a node's files."""
    catalogue: Path
    """Folder of the models' files."""
    store: str
    """`s3://bucket/prefix` that holds artifacts, records and targets."""
    target: str
    """The target that a node without `--target` belongs to, and whose address `ask` uses."""
    triton_http: str
    """`http://host:port` of a Triton that answers clients; empty where none is known."""
    triton_grpc: str
    """`host:port` of the same Triton's gRPC."""
    triton: str
    """Where NVIDIA's image has Triton, for a node that runs in one: `/opt/tritonserver`. Empty: the wheel's."""
    node_address: str
    """Address at which clients and gates on other machines reach this node's Triton; then it listens everywhere."""
    lease_seconds: float
    """How long a lease lives that nobody renews."""
    toolchain: str
    """Where TensorRT-LLM is: `local`, `local:/path/python3`, `venv`, `venv:/path` or `docker:IMAGE@sha256:…`."""
    toolchain_examples: str
    """Folder `examples` of a TensorRT-LLM checkout, where the toolchain's own is not at a usual place."""
    toolchain_index: str
    """Package index of what the ordinary one lacks of a toolchain; `venv` needs it."""
    signing_key: str
    """File of the private key with which this machine signs the artifacts that it publishes; empty for none."""
    signing_public_key: str
    """File of the public key without whose signature a node places nothing; empty for none."""
    rebuilds: int
    """How many runs of the deployment `rebuild` go at once; the others wait on the server."""
    pool_limits: tuple[tuple[str, int], ...]
    """Runs at once on a work pool, by its name. A pool that is not named has no limit."""
    pools: tuple[tuple[str, PoolType], ...]
    """The type of a work pool that `deploy` makes, by its name. A pool that is not named is a process pool."""
    worker_image: str
    """The image of runs on Docker and Kubernetes pools; `{tensorrt_llm}` in it stands for the version."""
    images: Path
    """The file that says which container image carries which TensorRT-LLM."""
    gc_schedule: str
    """When garbage is collected: cron in UTC, or empty for never."""
    watch_schedule: str
    """Cron expression in UTC by which new versions of TensorRT-LLM are looked for; empty: never."""
    watch_indexes: tuple[str, ...]
    """URLs of package indexes to ask besides pip's own."""
    watch_avoid: tuple[str, ...]
    """Versions of TensorRT-LLM that are known to be broken, and left alone."""
    watch_parallel: int
    """How many rebuilds the watch keeps going at once."""
    reconcile_schedule: str
    """When events that were missed, and runs that were lost, are looked for: cron in UTC, or empty for never."""
    heartbeat_seconds: int
    """How often a run tells Prefect that it lives; one that has missed three has crashed."""
    notify: str
    """`TYPE/NAME` of the notification block on the Prefect server that tells people of failures; empty: none does."""
    webhook_secrets: tuple[tuple[str, str, str], ...]
    """Of each sender of webhooks where its secret is: `env` and a variable, or `block` and a Prefect Secret block."""


_DEFAULTS = {
    "ENGINEHOUSE_HOME": str(CHECKOUT / ".enginehouse"),
    "ENGINEHOUSE_CATALOGUE": str(CHECKOUT / "deployments" / "models"),
    "ENGINEHOUSE_STORE": "",
    "ENGINEHOUSE_STORE_ONE_WRITER": "",  # read where the bucket is opened, as the store's endpoint is
    "ENGINEHOUSE_TARGET": "local",
    "ENGINEHOUSE_TRITON_HTTP": "",
    "ENGINEHOUSE_TRITON_GRPC": "",
    "ENGINEHOUSE_TRITON": "",
    "ENGINEHOUSE_NODE_ADDRESS": "127.0.0.1",
    "ENGINEHOUSE_LEASE_SECONDS": "20",
    "ENGINEHOUSE_TOOLCHAIN": "local",
    "ENGINEHOUSE_TOOLCHAIN_EXAMPLES": "",
    "ENGINEHOUSE_TOOLCHAIN_INDEX": "",
    "ENGINEHOUSE_SIGNING_KEY": "",
    "ENGINEHOUSE_SIGNING_PUBLIC_KEY": "",
    "ENGINEHOUSE_REBUILDS": "4",
    "ENGINEHOUSE_POOL_LIMITS": "",
    "ENGINEHOUSE_POOLS": "",
    "ENGINEHOUSE_WORKER_IMAGE": "",
    "ENGINEHOUSE_IMAGES": str(CHECKOUT / "infra" / "images.toml"),
    "ENGINEHOUSE_GC_SCHEDULE": "43 3 * * 0",
    "ENGINEHOUSE_WATCH_SCHEDULE": "17 * * * *",
    "ENGINEHOUSE_WATCH_INDEXES": "",
    "ENGINEHOUSE_WATCH_AVOID": "",
    "ENGINEHOUSE_WATCH_PARALLEL": "4",
    "ENGINEHOUSE_RECONCILE_SCHEDULE": "*/15 * * * *",
    "ENGINEHOUSE_HEARTBEAT_SECONDS": "180",
    "ENGINEHOUSE_NOTIFY": "",
    "ENGINEHOUSE_WEBHOOK_SECRETS": "",
}


def stack_environment_file(home: Path) -> Path:
    """The file in which `enginehouse up` keeps the variables of its stack (mode 0600: it holds the S3 key)."""
    return home / "environment.json"


def activate(environment: MutableMapping[str, str] | None = None) -> None:
    """Fill `environment` (default: this process's) from `enginehouse.toml` and from the embedded stack.

    What is already set wins. The embedded stack counts only where neither a store nor a Prefect server
    is named, so that a shell set up for production never mixes with it.
    """
    environment = os.environ if environment is None else environment
    for name, value in _from_toml(Path.cwd() / "enginehouse.toml").items():
        environment.setdefault(name, value)
    if environment.get("ENGINEHOUSE_STORE") or environment.get("PREFECT_API_URL"):
        return
    home = Path(environment.get("ENGINEHOUSE_HOME", _DEFAULTS["ENGINEHOUSE_HOME"]))
    try:
        stack = json.loads(stack_environment_file(home).read_text())
    except FileNotFoundError:
        return
    for name, value in stack.items():
        environment.setdefault(name, value)


def load() -> Settings:
    """The settings of this process; call `activate` first. Raises SettingsError for a value of the wrong form."""

    def value(name: str) -> str:
        return os.environ.get(name) or _DEFAULTS[name]

    try:
        lease_seconds = float(value("ENGINEHOUSE_LEASE_SECONDS"))
    except ValueError:
        raise SettingsError("ENGINEHOUSE_LEASE_SECONDS is not a number of seconds") from None
    return Settings(
        home=Path(value("ENGINEHOUSE_HOME")).absolute(),
        catalogue=Path(value("ENGINEHOUSE_CATALOGUE")).absolute(),
        store=value("ENGINEHOUSE_STORE"),
        target=value("ENGINEHOUSE_TARGET"),
        triton_http=value("ENGINEHOUSE_TRITON_HTTP"),
        triton_grpc=value("ENGINEHOUSE_TRITON_GRPC"),
        triton=value("ENGINEHOUSE_TRITON"),
        node_address=value("ENGINEHOUSE_NODE_ADDRESS"),
        lease_seconds=lease_seconds,
        toolchain=value("ENGINEHOUSE_TOOLCHAIN"),
        toolchain_examples=value("ENGINEHOUSE_TOOLCHAIN_EXAMPLES"),
        toolchain_index=value("ENGINEHOUSE_TOOLCHAIN_INDEX"),
        signing_key=value("ENGINEHOUSE_SIGNING_KEY"),
        signing_public_key=value("ENGINEHOUSE_SIGNING_PUBLIC_KEY"),
        rebuilds=_count("ENGINEHOUSE_REBUILDS", value("ENGINEHOUSE_REBUILDS")),
        pool_limits=_pool_limits(value("ENGINEHOUSE_POOL_LIMITS")),
        pools=_pools(value("ENGINEHOUSE_POOLS")),
        worker_image=value("ENGINEHOUSE_WORKER_IMAGE"),
        images=Path(value("ENGINEHOUSE_IMAGES")).absolute(),
        gc_schedule=_schedule(value("ENGINEHOUSE_GC_SCHEDULE")),
        watch_schedule=_schedule(value("ENGINEHOUSE_WATCH_SCHEDULE")),
        watch_indexes=tuple(value("ENGINEHOUSE_WATCH_INDEXES").split()),
        watch_avoid=tuple(value("ENGINEHOUSE_WATCH_AVOID").split()),
        watch_parallel=_count("ENGINEHOUSE_WATCH_PARALLEL", value("ENGINEHOUSE_WATCH_PARALLEL")),
        reconcile_schedule=_schedule(value("ENGINEHOUSE_RECONCILE_SCHEDULE")),
        heartbeat_seconds=_count("ENGINEHOUSE_HEARTBEAT_SECONDS", value("ENGINEHOUSE_HEARTBEAT_SECONDS"), 30),
        notify=value("ENGINEHOUSE_NOTIFY"),
        webhook_secrets=_secrets(value("ENGINEHOUSE_WEBHOOK_SECRETS")),
    )


def _schedule(text: str) -> str:
    return "" if text == "never" else text


def _count(name: str, text: str, least: int = 1) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise SettingsError(f"{name} is {text!r}, not a number from {least} on")
    return int(text)


def _pool_limits(text: str) -> tuple[tuple[str, int], ...]:
    """`build-sm90=2 build-sm100=1`."""
    items = (item.partition("=") for item in text.split())
    return tuple((pool, _count("ENGINEHOUSE_POOL_LIMITS", limit)) for pool, _, limit in items)


def _secrets(text: str) -> tuple[tuple[str, str, str], ...]:
    """`huggingface=env:VARIABLE mlflow=block:NAME`. Never told back: somebody may have written a secret itself."""
    found: list[tuple[str, str, str]] = []
    for item in text.split():
        name, _, place = item.partition("=")
        kind, _, where = place.partition(":")
        if kind not in ("env", "block") or not where:
            raise SettingsError(
                "ENGINEHOUSE_WEBHOOK_SECRETS says where secrets are, not what they are",
                hint="SENDER=env:VARIABLE, or SENDER=block:NAME for a Prefect Secret block",
            )
        found.append((name, kind, where))
    return tuple(found)


def _pools(text: str) -> tuple[tuple[str, PoolType], ...]:
    """`default=process build-sm90=kubernetes`."""
    items = tuple((pool, type) for pool, _, type in (item.partition("=") for item in text.split()))
    for pool, type in items:
        if type not in get_args(PoolType):
            known = ", ".join(get_args(PoolType))
            raise SettingsError(f"ENGINEHOUSE_POOLS: {pool} is of type {type!r}", hint=f"a type is one of {known}")
    return cast("tuple[tuple[str, PoolType], ...]", items)


def _from_toml(path: Path) -> dict[str, str]:
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    values: dict[str, str] = {}
    for key, value in table.items():
        name = f"ENGINEHOUSE_{key.upper()}"
        if name not in _DEFAULTS:
            known = ", ".join(sorted(n.removeprefix("ENGINEHOUSE_").lower() for n in _DEFAULTS))
            raise SettingsError(f"{path}: unknown setting '{key}'", hint=f"known settings: {known}")
        values[name] = _as_variable(value)
    return values


def _as_variable(value: object) -> str:
    """A list as words, a table as `name=value` words: so one variable can hold it too."""
    if isinstance(value, list):
        return " ".join(map(str, cast("list[object]", value)))
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in cast("dict[str, object]", value).items())
    return str(value)
