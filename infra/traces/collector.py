"""Where spans go, by the standard variables of OpenTelemetry.

Source: "OpenTelemetry Environment Variable Specification" and "OpenTelemetry Protocol Exporter" of its specification.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping

from infra.errors import SettingsError

ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
"""The whole address of the collector for spans. What Enginehouse starts gets it, whichever variable was set."""
SERVICE = "OTEL_SERVICE_NAME"

_ANY_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_EXPORTERS = "OTEL_TRACES_EXPORTER"
_PREFECT = "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY"
"""In spite of its name it is for every server (`prefect/telemetry/run_telemetry.py` of 3.8.8)."""
_DEFAULT = "http://localhost:4318"
_PATH = "/v1/traces"


def collector_url(environment: Mapping[str, str]) -> str:
    """Where spans are sent, empty for nowhere. Raises SettingsError, code `traces`, for what cannot be done.

    Spans are made if an endpoint is set or `otlp` is the exporter; OpenTelemetry's SDKs would do so by default too.
    """
    exporters = environment.get(_EXPORTERS, "").strip()
    own, general = environment.get(ENDPOINT, ""), environment.get(_ANY_ENDPOINT, "")
    off = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or exporters == "none"
    if off or not (own or general or exporters):
        return ""
    if exporters not in ("", "otlp"):
        raise SettingsError(
            f"{_EXPORTERS} is '{exporters}', and traces are sent by `otlp` alone",
            hint=f"{_EXPORTERS}=none for no traces",
            code="traces",
        )
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        if protocol := environment.get(variable, ""):
            if protocol.startswith("http/"):
                break
            raise SettingsError(
                f"{variable} is '{protocol}', and Triton sends traces over HTTP alone",
                hint=f"name the collector's port for HTTP, mostly 4318, or set {_EXPORTERS}=none for no traces",
                code="traces",
            )
    url = own or (general or _DEFAULT).rstrip("/") + _PATH
    if not url.startswith(("http://", "https://")):
        raise SettingsError(
            f"'{url}' is no address of a collector", hint=f"such as {_ANY_ENDPOINT}={_DEFAULT}", code="traces"
        )
    return url


def prefect_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What makes Prefect record its runs, if spans are sent anywhere. Raises as `collector_url` does."""
    return {_PREFECT: "true"} if collector_url(environment) else {}


def service_name(environment: Mapping[str, str], default: str) -> str:
    """What the spans of a process are said to be of."""
    return environment.get(SERVICE) or default


def require_sdk() -> None:
    """Raise SettingsError, code `traces-missing`, without the packages that send spans."""
    for package in ("opentelemetry.sdk", "opentelemetry.exporter"):
        if importlib.util.find_spec(package) is None:
            raise SettingsError(
                f"traces are asked for, and the package {package} is not installed",
                hint="pip install 'enginehouse[traces]', or set OTEL_TRACES_EXPORTER=none for no traces",
                code="traces-missing",
            )
