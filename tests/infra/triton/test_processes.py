"""The processes of models, which are told by their command lines alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infra.triton.processes import memory_of_models, model_processes
from tests.waiting import wait

MIB = 1 << 20
HOLDS = """
import subprocess, sys, time
held = b"x" * ({mib} << 20)
{more}
print("held", flush=True)
sys.stdin.read()
"""
STARTS = """
child = subprocess.Popen([{python!r}, "-c", "held = b'x' * (30 << 20); print('held', flush=True); input()"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
"""


def test_memory_is_that_of_all_processes_below_a_model(tmp_path: Path) -> None:
    running: list[subprocess.Popen[str]] = []
    for name, mib, more in (("small", 20, ""), ("large", 60, STARTS)):
        code = tmp_path / "models" / name / "1" / "model.py"
        code.parent.mkdir(parents=True)
        code.write_text(HOLDS.format(mib=mib, more=more.format(python=sys.executable)))
        arguments = ["/opt/triton_python_backend_stub", str(code)]
        pipe = subprocess.PIPE
        running.append(subprocess.Popen(arguments, executable=sys.executable, stdin=pipe, stdout=pipe, text=True))
    try:
        for process in running:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
        held = memory_of_models(tmp_path / "models")
        assert held.keys() == {"small", "large"}
        assert 20 * MIB < held["small"] < 60 * MIB and 90 * MIB < held["large"] < 160 * MIB
        (only,) = model_processes(tmp_path / "models" / "small")
        assert only.pid == running[0].pid
    finally:
        for process in running:
            process.communicate("")
    wait(lambda: memory_of_models(tmp_path / "models") == {}, "end of the processes")
