"""What llama.cpp's threads do while they wait for one another: the real GNU OpenMP, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Prints the CPU seconds that teams take whose threads wait 20 times for 20 ms: at first, alone, beside others, alone.
PROGRAM = """
import ctypes, json, os, sys, time
from pathlib import Path
openmp = ctypes.CDLL("libgomp.so.1")
from tasks.serving.llama_program import Spinning

stat, cores = Path(sys.argv[1]), os.sched_getaffinity(0)

def others_have_had(ticks):
    stat.write_text("".join(f"cpu{core} {ticks} 0 0 0 0 0 0 0 0 0\\n" for core in cores))

@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def one_is_late(_):
    if openmp.omp_get_thread_num() == 0:
        time.sleep(0.02)

def waiting():
    started = time.process_time()
    for _ in range(20):
        openmp.GOMP_parallel(one_is_late, None, len(cores), 0)
    return time.process_time() - started

def looked(times):
    for _ in range(times):
        spinning.look()
    time.sleep(0.3)
    return waiting()

others_have_had(0)
spinning = Spinning(len(cores), stat)
seconds = [looked(0), looked(3)]
others_have_had(1_000_000)
seconds += [looked(1), looked(3)]
print(json.dumps(seconds))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="where all threads share one core, none ever spins")
def test_threads_spin_while_they_wait_but_not_where_others_want_their_cores(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if "OMP" not in name}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "stat")]
    done = subprocess.run(command, env=environment, check=True, text=True, stdout=subprocess.PIPE, timeout=60)
    first, alone, shared, again = json.loads(done.stdout)
    assert min(alone, again) > 3 * max(first, shared), done.stdout
