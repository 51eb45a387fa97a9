"""A node's own figures, as a scrape finds them."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from deployments.node.figures import figures
from deployments.node.health import Health, HealthServer, ModelHealth
from infra.processes.sessions import free_ports

HEALTH = Health(
    node="one",
    target="local",
    ready=True,
    stale=True,
    models={
        "chat": ModelHealth(ready=True, answered=True, given_up=False, wanted=7, public=6),
        "lost": ModelHealth(ready=False, answered=False, given_up=True, wanted=None, public=None),
    },
)


def test_figures_are_those_of_ready() -> None:
    (port,) = free_ports(1)
    server = HealthServer(lambda: HEALTH, figures, "127.0.0.1", port)
    server.start()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
            assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
            lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/other", timeout=5)
    finally:
        server.stop()
    assert lines == [
        "enginehouse_node_ready 1.0",
        "enginehouse_node_state_stale 1.0",
        'enginehouse_node_model_ready{model="chat"} 1.0',
        'enginehouse_node_model_ready{model="lost"} 0.0',
        'enginehouse_node_model_given_up{model="chat"} 0.0',
        'enginehouse_node_model_given_up{model="lost"} 1.0',
        'enginehouse_node_model_wanted_release{model="chat"} 7.0',
        'enginehouse_node_model_public_release{model="chat"} 6.0',
    ]
