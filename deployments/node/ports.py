"""The ports of a node and of its Triton, as variables name them."""

from __future__ import annotations

from collections.abc import Mapping

from infra.errors import SettingsError
from infra.settings import Settings
from infra.triton.command import Ports

_HEALTH = "ENGINEHOUSE_NODE_HEALTH_PORT"
_METRICS = "ENGINEHOUSE_NODE_METRICS_PORT"


def ports_of(settings: Settings, environment: Mapping[str, str]) -> Ports:
    """Where Triton listens. Raises SettingsError, code `node-ports`, for a variable that names no port."""
    return Ports(
        http=_port("ENGINEHOUSE_TRITON_HTTP", settings.triton_http),
        grpc=_port("ENGINEHOUSE_TRITON_GRPC", settings.triton_grpc),
        metrics=_port(_METRICS, environment.get(_METRICS, "")),
        address=settings.node_address,
    )


def health_port(environment: Mapping[str, str]) -> int:
    """Where the node itself answers; 0 for nowhere. Raises as `ports_of` does."""
    text = environment.get(_HEALTH, "")
    return _port(_HEALTH, text) if text else 0


def _port(name: str, text: str) -> int:
    port = text.rpartition(":")[2]
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        found = f"'{text}'" if text else "not set"
        raise SettingsError(
            f"{name} names no port, which a node needs: it is {found}",
            hint="the ports of a node are in docs/how-to/own-servers.md; `enginehouse up` runs a node by itself",
            code="node-ports",
        )
    return int(port)
