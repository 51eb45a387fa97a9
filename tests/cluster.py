"""A real Kubernetes API server with its controllers and without nodes, asked over plain HTTP."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from infra.processes.background import taken
from infra.processes.sessions import free_ports
from infra.settings import CHECKOUT

PROGRAM = CHECKOUT.parent / "shared/kubernetes/apiserver"
"""The program that starts and stops one. ENGINEHOUSE_TEST_KUBERNETES names another."""


def missing(program: Path) -> str:
    """Why this machine cannot run one, or an empty text."""
    if not program.exists():
        return f"no API server at {program} (ENGINEHOUSE_TEST_KUBERNETES)"
    tools = [name for name in ("etcd", "openssl", "curl", "xz") if shutil.which(name) is None]
    return f"not installed: {', '.join(tools)} (etcd: Debian's etcd-server)" if tools else ""


@dataclass(frozen=True)
class Cluster:
    """An API server that is asked as an administrator, with the credentials of the file `kubeconfig`."""

    kubeconfig: Path
    client: httpx.Client

    def ask(self, method: str, path: str, body: object = None, **options: Any) -> Any:
        answer = self.client.request(method, path, json=body, **options)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def apply(self, document: dict[str, Any]) -> Any:
        """Server-side apply, as `kubectl apply --server-side` does it."""
        collection = _collection(document)
        return self.ask(
            "PATCH",
            f"{collection}/{document['metadata']['name']}",
            document,
            params={"fieldManager": "tests"},
            headers={"Content-Type": "application/apply-patch+yaml"},
        )

    def wait(self, path: str, found: Callable[[Any], bool], seconds: float = 60, **params: str) -> Any:
        """What `path` answers, once `found` is true of it."""
        until = time.monotonic() + seconds
        while not found(answer := self.ask("GET", path, params=params)):
            assert time.monotonic() < until, json.dumps(answer)
            time.sleep(0.2)
        return answer

    def kubeconfig_of(self, namespace: str, account: str, folder: Path) -> Path:
        """A kubeconfig with a token of this service account, and so with its rights alone."""
        body: dict[str, Any] = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token"
        document = yaml.safe_load(self.kubeconfig.read_text())
        document["users"][0]["user"] = {"token": self.ask("POST", path, body)["status"]["token"]}
        made = folder / f"{account}.kubeconfig"
        made.write_text(yaml.safe_dump(document))
        return made


@contextmanager
def running(program: Path, folder: Path) -> Generator[Cluster]:
    """A cluster that ends with the block."""
    (port,) = free_ports(1)
    while taken(range(port, port + 3)):
        (port,) = free_ports(1)
    started = subprocess.run(["bash", program, "start", folder, str(port)], capture_output=True, text=True, check=False)
    assert started.returncode == 0, started.stderr
    try:
        kubeconfig = Path(started.stdout.strip())
        document = yaml.safe_load(kubeconfig.read_text())
        cluster, user = document["clusters"][0]["cluster"], document["users"][0]["user"]
        with httpx.Client(
            base_url=cluster["server"],
            verify=ssl.create_default_context(cafile=cluster["certificate-authority"]),
            headers={"Authorization": f"Bearer {user['token']}"},
            timeout=30,
            trust_env=False,
        ) as client:
            yield Cluster(kubeconfig, client)
    finally:
        subprocess.run(["bash", program, "stop", folder], check=True)


def _collection(document: dict[str, Any]) -> str:
    version, kind = document["apiVersion"], document["kind"].lower()
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"
    namespace = document["metadata"].get("namespace")
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"
