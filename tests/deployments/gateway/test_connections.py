"""Clients that send too slowly, too much, or too often, over real sockets: others are answered meanwhile."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest

from deployments.gateway import bodies as bodies_module
from deployments.gateway.bodies import Bodies
from deployments.gateway.connections import Connections
from deployments.gateway.serve import Gateway, Options
from deployments.gateway.triton_routes import triton_routes
from tests.deployments.gateway.house import MODEL, House, house, post, until

PATH = f"/v2/models/{MODEL}/generate"
BODY = json.dumps({"text_input": "hello", "max_tokens": 4}).encode()
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """With shorter times than clients are given."""
    monkeypatch.setattr(Connections, "__init__", _hasty(Connections.__init__))
    monkeypatch.setattr(Bodies, "__init__", _impatient(Bodies.__init__))
    with house(options=Options(body_bytes=1 << 20)) as made:
        made.add_node("one")
        made.public()
        yield made


def _hasty(init: object) -> object:
    def hasty(self: Connections, most: int) -> None:
        init(self, 40, head_s=0.6, linger_s=1.0)  # type: ignore[operator]

    return hasty


def _impatient(init: object) -> object:
    def impatient(self: Bodies, largest: int) -> None:
        init(self, largest, memory=3 << 20, patience_s=1.0)  # type: ignore[operator]

    return impatient
