"""A real MLflow server on loopback, in an environment of its own, and its own client, which registers models in it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from infra.processes.sessions import free_ports, terminate
from tests.own_environment import python_with
from tests.waiting import wait_for_server

MLFLOW = "mlflow==3.17.2"

_CLIENT = """
import json, sys, tempfile
from pathlib import Path
import mlflow
from mlflow import MlflowClient

request = json.load(sys.stdin)
client = MlflowClient()
answer = {}
if "log" in request:
    mlflow.set_experiment(request.get("experiment", "Default"))
    logged = mlflow.initialize_logged_model(name=request["log"])
    client.log_model_artifacts(logged.model_id, request["folder"])
    mlflow.finalize_logged_model(logged.model_id, "READY")
    answer = {"logged": logged.model_id, "place": mlflow.get_logged_model(logged.model_id).artifact_location}
if "register" in request:
    try:
        client.create_registered_model(request["register"])
    except mlflow.MlflowException:
        pass
    source = request.get("source") or f"models:/{answer['logged']}"
    made = client.create_model_version(request["register"], source, model_id=answer.get("logged"))
    answer["version"] = made.version
if "alias" in request:
    client.set_registered_model_alias(*request["alias"])
if "registered" in request:
    found = client.get_model_version_by_alias(*request["registered"])
    answer |= {"version": found.version, "source": found.source, "tags": found.tags}
    answer["versions"] = len(client.search_model_versions(f"name='{request['registered'][0]}'"))
if "download" in request:
    mlflow.artifacts.download_artifacts(artifact_uri=request["download"], dst_path=request["to"])
if "webhook" in request:
    from mlflow.entities.webhook import WebhookEvent
    events = [WebhookEvent.from_str(event) for event in request["events"]]
    client.create_webhook("enginehouse", request["webhook"], events, secret=request["secret"])
print(json.dumps(answer))
"""


class MlflowServer(NamedTuple):
    """`url` is the tracking server's."""

    url: str
    python: str
    environment: Mapping[str, str]

    def ask(self, **request: Any) -> Any:
        """Have MLflow's own client do what _CLIENT reads."""
        ran = subprocess.run(
            [self.python, "-c", _CLIENT],
            input=json.dumps(request),
            env={**self.environment, "MLFLOW_TRACKING_URI": self.url},
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout.strip().splitlines()[-1])


@contextmanager
def running_mlflow(folder: Path) -> Generator[MlflowServer]:
    """A server that keeps what it knows, and the artifacts that it gives out, in `folder`."""
    python = python_with(MLFLOW)
    (port,) = free_ports(1)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")},
        "HOME": str(folder),
        "no_proxy": "*",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": base64.urlsafe_b64encode(b"k" * 32).decode(),
        # Webhooks to loopback.
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",
    }
    command = [
        *(python, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")),
    ]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for_server(process, f"{url}/health", folder / "server.log", 80)
            yield MlflowServer(url, python, environment)
        finally:
            terminate(process, 20)
