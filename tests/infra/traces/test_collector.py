"""Where spans go, by the standard variables."""

from __future__ import annotations

import subprocess
import sys

import pytest

from infra.errors import SettingsError
from infra.traces.collector import collector_url, prefect_environment
from infra.traces.propagation import is_traceparent
from infra.triton.tracing import Tracing

BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
OWN = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, ""),
        ({"OTEL_SERVICE_NAME": "mine"}, ""),
        ({BASE: "http://c:4318"}, "http://c:4318/v1/traces"),
        ({BASE: "http://c:4318/"}, "http://c:4318/v1/traces"),
        ({BASE: "http://c:4318", OWN: "https://d/x"}, "https://d/x"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://localhost:4318/v1/traces"),
        ({BASE: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({BASE: "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, ""),
        ({BASE: "http://c:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "http://c:4318/v1/traces"),
        (
            {
                BASE: "http://c:4318",
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            "http://c:4318/v1/traces",
        ),
    ],
)
def test_spans_go_where_the_variables_say(variables: dict[str, str], url: str) -> None:
    assert collector_url(variables) == url
    assert bool(prefect_environment(variables)) == bool(url)


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "console"}, "OTEL_TRACES_EXPORTER is 'console'"),
        ({BASE: "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'"),
        ({BASE: "collector:4318"}, "'collector:4318/v1/traces' is no address"),
    ],
)
def test_what_cannot_be_done_is_an_error_at_the_start(variables: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Tracing.of(variables)
    assert caught.value.code == "traces" and named in caught.value.message and caught.value.hint


def test_triton_gets_a_collector_and_the_variables_of_its_exporter_alone() -> None:
    assert Tracing.of({"AWS_SECRET_ACCESS_KEY": "x"}) == Tracing()
    tracing = Tracing.of({BASE: "http://c", "OTEL_BSP_SCHEDULE_DELAY": "9", "OTEL_SERVICE_NAME": "mine", "HOME": "/"})
    assert tracing.environment == {
        BASE: "http://c",
        OWN: "http://c/v1/traces",
        "OTEL_BSP_SCHEDULE_DELAY": "9",
        "OTEL_SERVICE_NAME": "mine",
    }
    assert "--trace-config=opentelemetry,url=http://c/v1/traces" in tracing.options
    assert "--trace-config=opentelemetry,resource=service.name=mine" in tracing.options
    assert "--trace-config=rate=0" in tracing.options  # else it would record every request


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        (f"00-{'a' * 32}-{'b' * 16}-01", True),
        (f"00-{'0' * 32}-{'b' * 16}-01", False),
        (f"00-{'a' * 32}-{'0' * 16}-01", False),
        (f"ff-{'a' * 32}-{'b' * 16}-01", False),
        (f"00-{'A' * 32}-{'b' * 16}-01", False),
        (f"00-{'a' * 32}-{'b' * 16}-01\n", False),
        ("", False),
    ],
)
def test_traceparents(text: str, is_one: bool) -> None:
    assert is_traceparent(text) is is_one


def test_nothing_of_opentelemetry_is_imported_without_a_collector() -> None:
    program = """
import sys
import deployments.gateway.serve, infra.triton.server
from infra.traces.propagation import current_traceparent
with deployments.gateway.serve.tracing() as traced:
    assert traced is deployments.gateway.serve.untraced
assert current_traceparent() == ""
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run([sys.executable, "-c", program], env={}, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
