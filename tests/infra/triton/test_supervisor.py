"""A Triton is found again by its command line, and a stranger on its ports is not taken for it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from infra.errors import TritonError
from infra.processes.sessions import free_ports
from infra.triton.command import Ports
from infra.triton.supervisor import Ensured, Supervisor
from tests.processes import processes_with


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a supervisor leaves what it started to the next one
def test_one_triton_a_folder_and_none_of_a_stranger(tmp_path: Path) -> None:
    ports = Ports(*free_ports(3))

    def supervisor(folder: str) -> Supervisor:
        (tmp_path / folder / "models").mkdir(parents=True, exist_ok=True)
        return Supervisor(tmp_path / folder, tmp_path / folder / "models", ports)

    first = supervisor("one")
    try:
        assert first.ensure() is Ensured.STARTED
        # Nothing but the process says that it is there: no record, no clock.
        assert [path.name for path in (tmp_path / "one").iterdir() if path.is_file()] == ["triton.log"]
        second = supervisor("one")
        assert second.ensure() is Ensured.FOUND and second.pid == first.pid
        assert second.client.index() == (), "it knows the key"
        with pytest.raises(TritonError) as taken:
            supervisor("other").ensure()
        assert taken.value.code in ("triton-port-taken", "triton-start")
        assert processes_with(str(tmp_path / "other")) == []
        assert second.alive and second.ensure() is Ensured.NONE
        psutil.Process(second.pid).suspend()
        second.kill()
        assert second.ensure() is Ensured.STARTED and second.pid != first.pid
    finally:
        supervisor("one").stop()
