"""Settings: from the environment, then `enginehouse.toml`, then the embedded stack that `enginehouse up` started.

Every setting is one environment variable, so that a worker, a container and a shell are set up alike.
Secrets (S3 keys, hub tokens) are never settings of their own: they stay in the variables and files where
AWS and Hugging Face look for them.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import MutableMapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from infra.errors import SettingsError
from infra.triton.command import EXIT_TIMEOUT_S

CHECKOUT = Path(__file__).resolve().parent.parent


PoolType = Literal["process", "docker", "kubernetes"]
"""The type of a Prefect work pool: where the process of a run is started."""


def _words(value: object) -> object:
    """`a b`: a list in one variable."""
    return value.split() if isinstance(value, str) else value


def _pairs(value: object) -> object:
    """`a=1 b=2`: a table in one variable."""
    if not isinstance(value, str):
        return value
    pairs = [word.split("=", 1) for word in value.split()]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("each word has the form NAME=VALUE")
    return pairs


def _places(value: object) -> object:
    """`huggingface=env:VARIABLE mlflow=block:NAME`. No error repeats a word: somebody may have written a secret."""
    if not isinstance(value, str):
        return value
    places = [re.fullmatch("([^=]*)=(env|block):(.+)", word) for word in value.split()]
    if None in places:
        raise ValueError("each word names where a secret is: SENDER=env:VARIABLE, or SENDER=block:PREFECT_SECRET_BLOCK")
    return [place.groups() for place in places if place is not None]


def _without_key(address: str) -> str:
    if address and re.fullmatch(r"https?://[^@\s]+", address) is None:
        raise ValueError("the form is https://HOST, without a name and password: those have variables of their own")
    return address


_Server = Annotated[str, AfterValidator(_without_key)]
_Absolute = Annotated[Path, AfterValidator(Path.absolute)]
_Count = Annotated[int, Field(ge=1)]
_Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
_Cron = Annotated[str, AfterValidator(lambda text: "" if text == "never" else text)]
"""An expression in UTC; empty for never."""


# Deferred: `load` builds the one validator that a process needs, and this would be a second one.
@dataclass(frozen=True, config=ConfigDict(defer_build=True))
class Settings:
    """What Enginehouse needs to know of its surroundings, each field from the variable `ENGINEHOUSE_FIELD`.

    Paths are absolute.
    """

    home: _Absolute = CHECKOUT / ".enginehouse"
    """Folder for the embedded stack, the steps' workspaces and a node's files."""
    catalogue: _Absolute = CHECKOUT / "deployments" / "models"
    """Folder of the models' files."""
    catalogue_from: Literal["folder", "store"] = "folder"
    """Where runs on this machine read the models' files: that folder, or the store, where `deploy` puts them."""
    store: str = ""
    """`s3://bucket/prefix` that holds artifacts, records and targets."""
    store_one_writer: str = ""
    """The file that the processes of the only machine that writes to the store lock; `infra.s3.bucket` reads it."""
    mlflow: _Server = ""
    """`https://host` of the MLflow server of `models:/` and `mlflow-artifacts:/`, and of releases; empty for none."""
    target: str = "local"
    """The target of a node and of commands without `--target`."""
    triton_http: str = ""
    """`http://host:port` of a Triton that answers clients; empty if none is known."""
    triton_grpc: str = ""
    """`host:port` of the same Triton's gRPC."""
    triton: str = ""
    """Where NVIDIA's image has Triton, for a node that runs in one: `/opt/tritonserver`. Empty: the wheel's."""
    node_address: str = "127.0.0.1"
    """Address at which other machines reach this node's Triton, which then listens on every interface."""
    lease_seconds: float = 20.0
    """How long a lease lasts without being renewed."""
    toolchain: str = "local"
    """Where TensorRT-LLM is: `local`, `local:/path/python3`, `venv`, `venv:/path` or `docker:IMAGE@sha256:…`."""
    toolchain_examples: str = ""
    """Folder `examples` of a TensorRT-LLM checkout, if the toolchain has none at a usual place."""
    toolchain_index: str = ""
    """Index of the packages that a toolchain needs and the ordinary index lacks; `venv` needs it."""
    exporter: str = ""
    """Python that has Megatron-Bridge or NeMo 2, for sources of a `form`; empty if this machine converts none."""
    exporter_checkout: str = ""
    """Checkout of Megatron-Bridge whose `scripts/conversion` that Python runs."""
    signing_key: str = ""
    """File of the private key with which this machine signs the artifacts that it publishes; empty for none."""
    signing_public_key: str = ""
    """Files of public keys, as words: a node places only what was signed with the pair of one; empty for no check."""
    rebuilds: _Count = 4
    """How many runs of the deployment `rebuild` run at once; the others wait on the server."""
    pool_limits: Annotated[tuple[tuple[str, _Count], ...], BeforeValidator(_pairs)] = ()
    """Runs at once on a work pool, by its name. A pool that is not named has no limit."""
    pools: Annotated[tuple[tuple[str, PoolType], ...], BeforeValidator(_pairs)] = ()
    """The type of a work pool that `deploy` makes, by its name. A pool that is not named is a process pool."""
    gpu_hour_prices: Annotated[tuple[tuple[str, _Price], ...], BeforeValidator(_pairs)] = ()
    """What one GPU costs for an hour, by its architecture, in whatever currency, for the costs that `plan` names."""
    worker_image: str = ""
    """The image of runs on Docker and Kubernetes pools; `{tensorrt_llm}` in it stands for the version."""
    images: _Absolute = CHECKOUT / "infra" / "images.toml"
    """The file that lists which container image has which TensorRT-LLM."""
    gc_schedule: _Cron = "43 3 * * 0"
    """When garbage is collected."""
    watch_schedule: _Cron = "17 * * * *"
    """When new versions of TensorRT-LLM are looked for."""
    watch_indexes: _Words = ()
    """URLs of package indexes to ask besides pip's own."""
    watch_avoid: _Words = ()
    """Versions of TensorRT-LLM that are known to be broken, and left alone."""
    watch_parallel: _Count = 4
    """How many rebuilds the watch keeps going at once."""
    reconcile_schedule: _Cron = "*/15 * * * *"
    """When events that were missed, and runs that were lost, are looked for."""
    heartbeat_seconds: Annotated[int, Field(ge=30)] = 180
    """How often a run sends Prefect a heartbeat."""
    notify: str = ""
    """`TYPE/NAME` of the block on the Prefect server that notifies people of failures; empty for none."""
    webhook_secrets: Annotated[tuple[tuple[str, str, str], ...], BeforeValidator(_places)] = ()
    """Where the secret of each sender of webhooks is: `env` and a variable, or `block` and a Prefect Secret block."""
    gateway_http: str = ""
    """`http://host:port` where clients reach the gateway, which listens on this port, 8080 if none is set."""
    gateway_grpc: str = ""
    """`host:port` of the same gateway's gRPC; 8081 if none is set."""
    gateway_address: str = "127.0.0.1"
    """Address of this machine at which the gateway listens."""
    gateway_targets: _Words = ()
    """The targets that the gateway is the front of; empty for `target`. The first that has a model serves it."""
    gateway_keys: Path | None = None
    """File of the API keys' hashes; without one everybody may ask who reaches the gateway."""
    gateway_open: bool = False
    """Whether a gateway without keys may listen beyond loopback."""
    gateway_certificate: str = ""
    """File of the gateway's TLS certificate with its chain, in PEM form; empty for none."""
    gateway_certificate_key: str = ""
    """File of that certificate's private key, in PEM form."""
    gateway_requests: _Count = 1000
    """How many requests run at once through one gateway."""
    gateway_body_bytes: _Count = 8 << 20
    """The largest request, in bytes."""
    gateway_deadline_seconds: Annotated[float, Field(gt=0)] = 600.0
    """After how long a request ends by an error."""
    gateway_grace_seconds: Annotated[float, Field(ge=0)] = EXIT_TIMEOUT_S
    """How long running answers have on SIGTERM."""


_VARIABLES = {field.name: f"ENGINEHOUSE_{field.name.upper()}" for field in fields(Settings)}
_FORM = TypeAdapter(Settings)


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
    home = Path(environment.get("ENGINEHOUSE_HOME") or Settings.home)
    try:
        stack = json.loads(stack_environment_file(home).read_text())
    except FileNotFoundError:
        return
    for name, value in stack.items():
        environment.setdefault(name, value)


def load() -> Settings:
    """The settings of this process; call `activate` first. Raises SettingsError for a value of the wrong form."""
    given = {name: os.environ[variable] for name, variable in _VARIABLES.items() if os.environ.get(variable)}
    try:
        return _FORM.validate_python(given)
    except ValidationError as error:
        # Without the values: they may hold passwords.
        wrong = {
            f"{_VARIABLES[str(each['loc'][0])]}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors(include_url=False, include_input=False)
        }
        raise SettingsError(
            "; ".join(sorted(wrong)), hint="correct it in the environment, or in enginehouse.toml"
        ) from None


def _from_toml(path: Path) -> dict[str, str]:
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    values: dict[str, str] = {}
    for key, value in table.items():
        if key.lower() not in _VARIABLES:
            known = ", ".join(sorted(_VARIABLES))
            raise SettingsError(f"{path}: unknown setting '{key}'", hint=f"known settings: {known}")
        values[_VARIABLES[key.lower()]] = _as_variable(value)
    return values


def _as_variable(value: object) -> str:
    """A list as words, a table as `name=value` words: so one variable can hold it too."""
    if isinstance(value, list):
        return " ".join(map(str, cast("list[object]", value)))
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in cast("dict[str, object]", value).items())
    return str(value)
