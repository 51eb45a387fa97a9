"""An export is verified by programs that know nothing of Enginehouse, in an environment that does not have it.

`ENGINEHOUSE_TEST_EXPORT_TOOLS` names its `bin`: a Python with cyclonedx-python-lib[json-validation], oras, and
model-signing with pyOpenSSL. Where Debian's `docker-registry` is there too, the release goes through it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from infra.processes.sessions import free_ports, terminate
from tasks.export.release import export
from tasks.store.artifact_store import ArtifactStore
from tasks.store.signing import signer
from tests.fleet import Fleet
from tests.tasks.export import stock_tools
from tests.tasks.export.released_model import released
from tests.tasks.targets.test_proof import signing_keys
from tests.waiting import wait_for_server

__all__ = ["signing_keys"]

TOOLS = os.environ.get("ENGINEHOUSE_TEST_EXPORT_TOOLS", "")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TOOLS, reason="ENGINEHOUSE_TEST_EXPORT_TOOLS names no environment"),
]

_CONFIGURATION = """\
version: 0.1
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
log: {{level: warn}}
"""


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """`host:port` of a registry; empty where there is no program."""
    program = Path(TOOLS) / "docker-registry"
    if not program.exists():
        yield ""
        return
    (port,) = free_ports(1)
    (tmp_path / "registry.yml").write_text(_CONFIGURATION.format(root=tmp_path / "registry", port=port))
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen(
            [program, "serve", tmp_path / "registry.yml"], stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_for_server(process, f"http://127.0.0.1:{port}/v2/", tmp_path / "registry.log", 10)
            yield f"127.0.0.1:{port}"
        finally:
            terminate(process, 10)


def test_stock_tools_verify_an_export(
    fleet: Fleet, tmp_path: Path, signing_keys: dict[str, str], registry: str
) -> None:
    sign = signer(signing_keys["ours"])
    signing = replace(fleet, store=ArtifactStore(fleet.store.bucket, sign), target=replace(fleet.target, sign=sign))
    released(signing, tmp_path / "weights")
    folder = tmp_path / "out"
    export(fleet.target, "tiny", 1, folder, signing_key=signing_keys["ours"], public_keys=signing_keys["ours.pub"])
    summed = subprocess.run(["sha256sum", *(folder / "oci/blobs/sha256").iterdir()], capture_output=True, text=True)
    for line in summed.stdout.splitlines():
        digest, path = line.split()
        assert Path(path).name == digest
    print(f"sha256sum: {len(summed.stdout.splitlines())} blobs are called what they are")
    (tmp_path / "pulled").mkdir()
    command = [f"{TOOLS}/python", "-I", stock_tools.__file__, folder, signing_keys["ours.pub"], tmp_path / "pulled"]
    done = subprocess.run([*command, *filter(None, [registry])], capture_output=True, text=True, cwd=tmp_path)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == (10 if registry else 6)
