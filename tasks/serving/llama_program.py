"""llama.cpp's server in a process of its own, which `llama_server` starts, watches and ends.

Run as a program: one line of JSON on stdin says what to serve, one line on stdout says where, or why not. It ends with
its stdin, so it outlives nobody, however that one ends.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

REQUEST_MEMORY_BYTES = 4 * 2**30
"""What requests may take beside the loaded model. The stacks of 272 HTTP threads alone may be 2 GiB; a template that
doubles a string is ended by it, and not by the machine's memory."""


SMALL_BATCH = 64
"""Tokens of prompts in a pass of the loop with one thread, so that passes stay short: seconds for 8 billion weights."""


def main() -> None:
    answer = os.fdopen(os.dup(1), "w")
    # Whatever else is printed is a log.
    os.dup2(2, 1)
    wanted: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    try:
        server = _serve(wanted)
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
    sys.stdin.buffer.read()
    # Threads of llama.cpp may be busy for ever; nothing waits for them.
    os._exit(0)


def _serve(wanted: dict[str, Any]) -> Any:
    """The server of a `LlamaServer`'s parameters. Raises RuntimeError where llama.cpp cannot load the model."""
    library: Any = importlib.import_module("xllamacpp")
    parameters = library.CommonParams()
    parameters.model.path = wanted["model"]
    parameters.n_parallel = wanted["slots"]
    parameters.n_ctx = wanted["slots"] * wanted["context_tokens"]
    parameters.cpuparams.n_threads = wanted["threads"]
    parameters.cpuparams_batch.n_threads = wanted["threads"]
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
