"""Ceph's S3 gateway of a test: one monitor, one storage daemon in memory, and RADOS Gateway, all on loopback."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from infra.errors import StoreUnavailable
from infra.processes.sessions import free_ports, start_session, terminate
from infra.s3 import seaweedfs

_PROGRAMS = {"radosgw": "radosgw", "ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "ceph": "ceph-common"}
_CONFIG = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{monitor}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
admin socket =
pid file =
mon data = {folder}/mon
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 0
mon data avail warn = 0
[client.admin]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw enable apis = s3
"""


def missing() -> str:
    """Why this machine cannot run Ceph; empty if it can."""
    packages = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    return f"not installed: Debian's {', '.join(packages)}" if packages else ""


@contextmanager
def running(folder: Path, access_key: str, secret_key: str) -> Generator[str]:
    """The endpoint of a gateway with one user, ended with the block."""
    monitor, gateway = free_ports(2)
    cluster, osd = str(uuid.uuid4()), str(uuid.uuid4())
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    (folder / "ceph.conf").write_text(_CONFIG.format(fsid=cluster, folder=folder, monitor=monitor, gateway=gateway))

    def run(program: str, *arguments: str) -> None:
        command = [program, "-c", "ceph.conf", *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)

    with ExitStack() as stack:

        def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
            command = [program, "-c", "ceph.conf", "-f", *arguments]
            log = folder / f"{program}.log"
            process = start_session(command, log=log, folder=folder, environment=dict(os.environ))
            stack.callback(terminate, process, 10)
            return process

        map_of_one = ["--create", "--addv", "a", f"[v2:127.0.0.1:{monitor}]", "--fsid", cluster, "map"]
        subprocess.run(["monmaptool", *map_of_one], cwd=folder, check=True, capture_output=True)
        run("ceph-mon", "-i", "a", "--mkfs", "--monmap", "map")
        start("ceph-mon", "-i", "a")
        run("ceph", "osd", "new", osd, "0")
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        # Without a key server the gateway asks the monitor in the clear, as `auth none` has it.
        admin = ["-n", "client.admin", "--no-mon-config", "--ms_mon_client_mode=crc"]
        keys = ["--access-key", access_key, "--secret-key", secret_key]
        run("radosgw-admin", *admin, "user", "create", "--uid=tests", "--display-name=tests", *keys)
        process = start("radosgw", *admin)
        url = f"http://127.0.0.1:{gateway}"
        _wait_ready(url, access_key, secret_key, folder / "radosgw.log", process)
        yield url


def _wait_ready(url: str, access_key: str, secret_key: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            seaweedfs.create_bucket(url, access_key, secret_key, "models")
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > until:
                raise StoreUnavailable(f"RADOS Gateway did not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.2)
