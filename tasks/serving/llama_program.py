"""llama.cpp's server in a process of its own, which `llama_server` starts, watches and ends.

Run as a program: one line of JSON on stdin says what to serve, one line on stdout says where, or why not. It ends with
its stdin, so it outlives nobody, however that one ends.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

REQUEST_MEMORY_BYTES = 4 * 2**30
"""What requests may take beside the loaded model. The stacks of 272 HTTP threads alone may be 2 GiB; a template that
doubles a string is ended by it, and not by the machine's memory."""


SMALL_BATCH = 64
"""Tokens of prompts in a pass of the loop with one thread, so that passes stay short: seconds for 8 billion weights."""

SHARED_CORES = 0.4
"""So many cores, beyond the free ones, have to be busy with others before they count as shared.

What brings a request here and its answer to the client takes 0.1 to 0.2. One busy process on 2 cores takes half of one.
"""

_LOOK_S = 0.2
_QUIET_LOOKS = 3
"""How often others are looked for, and how often none is found before threads spin again. A look costs 0.1 ms."""


class Spinning:
    """Lets `threads` threads of OpenMP spin while they wait for one another, but not where others want their cores.

    They wait some hundred times for each token, for microseconds. Waking a thread takes longer: on 2 cores, with no
    other process, threads that spin (GNU's default, up to 3 ms) give 102 tokens/s of SmolLM2 135M to one stream and
    201 to eight, threads that sleep at once 37 and 97. But a thread whose core somebody else has keeps the others
    spinning for nothing: beside two busy processes 8 and 22 tokens/s, where sleeping gives 42 and 101.

    OpenMP reads its policy once, at its start. But GNU's spins a hundred times at most while it has more threads than
    the process has cores (GOMP_SPINCOUNT in its manual), so a team that does nothing is held while cores are shared.
    """

    def __init__(self, threads: int, stat: Path = Path("/proc/stat")) -> None:
        cores = os.sched_getaffinity(0)
        self._names = {f"cpu{core}" for core in cores}
        self._free = max(0, len(cores) - threads)
        # The one that llama.cpp has loaded, whatever its file is called.
        maps = Path("/proc/self/maps").read_text().splitlines()
        path = next((line.split(maxsplit=5)[5] for line in maps if "/libgomp" in line), None)
        self._openmp = None if path is None else ctypes.CDLL(path)
        self._stat = stat
        self._before = self._now()
        self._quiet = 0
        self._released: threading.Event | None = None
        # A model that is loaded is warmed up before anyone looks.
        self._sleep()

    def look(self) -> None:
        """What has others kept busy since the last look? Their threads, and other machines on this hardware."""
        now = self._now()
        seconds, others = (after - before for after, before in zip(now, self._before, strict=True))
        self._before = now
        shared = others > (self._free + SHARED_CORES) * seconds
        self._quiet = 0 if shared else self._quiet + 1
        if shared and self._released is None:
            self._sleep()
        elif self._released is not None and self._quiet >= _QUIET_LOOKS:
            self._released.set()
            self._released = None

    def _sleep(self) -> None:
        if self._openmp is not None:
            self._released = threading.Event()
            threading.Thread(target=self._hold, args=(self._openmp, self._released), daemon=True).start()

    def _hold(self, openmp: ctypes.CDLL, released: threading.Event) -> None:
        """Have one thread more than cores. They end with the thread that started them, this one."""
        does_nothing = openmp.omp_get_thread_num
        openmp.GOMP_parallel(does_nothing, None, self._free + 2, 0)
        released.wait()

    def _now(self) -> tuple[float, float]:
        """The time, and the seconds of CPU that others have taken."""
        ticks = 0
        for line in self._stat.read_text().splitlines():
            name, *fields = line.split()
            if name in self._names:
                user, nice, system, _, _, interrupt, softirq, stolen = map(int, fields[:8])
                ticks += user + nice + system + interrupt + softirq + stolen
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    # Whatever else is printed is a log.
    os.dup2(2, 1)
    wanted: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    library: Any = importlib.import_module("xllamacpp")
    spinning = Spinning(wanted["threads"])
    try:
        server = _serve(library, wanted)
    except RuntimeError as error:
        print(json.dumps({"error": str(error)}), file=answer, flush=True)
        return
    # llama.cpp stops at SIGTERM and SIGINT. Here its owner alone decides, also where a whole group is signalled.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    most = _data_bytes() + REQUEST_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    # A request that ends the process must not fill the disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    address = str(server.listening_address).removeprefix("http://")
    print(json.dumps({"address": address}), file=answer, flush=True)
    while not select.select([sys.stdin], [], [], _LOOK_S)[0]:
        spinning.look()
    # Threads of llama.cpp may be busy for ever; nothing waits for them.
    os._exit(0)


def _serve(library: Any, wanted: dict[str, Any]) -> Any:
    """The server of a `LlamaServer`'s parameters. Raises RuntimeError where llama.cpp cannot load the model."""
    parameters = library.CommonParams()
    parameters.model.path = wanted["model"]
    parameters.n_parallel = wanted["slots"]
    parameters.n_ctx = wanted["slots"] * wanted["context_tokens"]
    parameters.cpuparams.n_threads = wanted["threads"]
    parameters.cpuparams_batch.n_threads = wanted["threads"]
    # A request says which one it wants: llama.cpp runs those that want another in a batch of their own.
    parameters.lora_adapters = [library.CommonAdapterLoraInfo(path, 0.0) for path in wanted["adapters"]]
    if wanted["threads"] == 1:
        parameters.n_batch = parameters.n_ubatch = SMALL_BATCH
    # The same prompt and seed must give the same text, whatever a slot held before.
    parameters.cache_prompt = False
    parameters.cache_ram_mib = 0
    parameters.slot_prompt_similarity = 0.0
    parameters.fit_params = False
    # Warnings and errors only: the level above tells of requests.
    parameters.verbosity = 2
    parameters.api_keys = [wanted["key"]]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.n_threads_http = wanted["http_threads"]
    parameters.ui = False
    parameters.endpoint_slots = False
    # What `llama_server` asks to see whether the loop comes round.
    parameters.endpoint_metrics = True
    return library.Server(parameters)


def _data_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
