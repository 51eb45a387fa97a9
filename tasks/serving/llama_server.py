"""llama.cpp's server as a child process: started, watched, ended where a request holds it, and started again.

llama.cpp runs all requests in one loop, and no deadline reaches what it does in one pass of it: a grammar of a few
bytes can take for ever there (`x ::= "a" x "b" | "a" x "c" | "a"` has 2^n ways to go on after n letters). A template
holds a thread for ever in the same way. Neither can be foreseen; both end with their process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import select
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from .contract import PromptTooLong, RequestRefused
from .engine import MAX_RUNNING, EngineFailed, EngineUnavailable

HTTP_THREADS = MAX_RUNNING + 16
"""A running or waiting request takes one of llama.cpp's HTTP threads; a few are left for what needs no slot."""

CONTROL_TIMEOUT_S = 10.0
"""For what needs no slot: tokens, templates, properties. A template takes milliseconds."""

STUCK_S = 2.0
"""CPU time that a pass of llama.cpp's loop may take on one thread alone, the others idle: the cost of grammars.

Eight requests with grammars of a thousand choices take half of it. What all threads compute together, prompts above
all, does not count, however long it takes on a busy machine.
"""

STUCK_WITH_ONE_THREAD_S = 30.0
"""The same where all is computed on one thread: a pass may hold a prompt's part too (`SMALL_BATCH` in the program)."""

_GLANCE_S = 0.5
"""How often a long pass is looked at. Shorter ones, nearly all, cost nothing."""

_RESTART_PAUSES_S = (0.0, 1.0, 5.0, 30.0)
"""Before each further attempt to start; the last one for all that follow."""

_RESTART_WAIT_S = 60.0
"""What a request waits for a server that is being started again."""

_PROGRAM = Path(__file__).with_name("llama_program.py")


class LlamaServer:
    """One process. `wanted` are the parameters of `llama_program`, without the key."""

    def __init__(self, wanted: Mapping[str, object]) -> None:
        self._key = secrets.token_urlsafe(32)
        # Isolated: the folder holds modules of a package, not what programs import.
        command = [sys.executable, "-I", str(_PROGRAM)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._address = ""
        self._wanted = {**wanted, "key": self._key, "http_threads": HTTP_THREADS}
        self._stuck_s = STUCK_WITH_ONE_THREAD_S if wanted["threads"] == 1 else STUCK_S
        self._lock = threading.Lock()
        self._guided = 0
        self._to_prove = False
        self.stuck = False
        """Whether it was ended because a guide held its loop."""

    def wait_ready(self) -> None:
        """Raise EngineFailed where llama.cpp cannot load the model."""
        assert self._process.stdin and self._process.stdout
        # Closed by `end`, from another thread; then nothing is to be read either.
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(self._wanted).encode() + b"\n")
        with self._process.stdout as answers:
            line = answers.readline()
        answer = json.loads(line) if line else {"error": f"its process ended with {self._process.wait()}"}
        if "error" in answer:
            self.end()
            raise EngineFailed(f"llama.cpp cannot load {self._wanted['model']}: {answer['error']}")
        self._address = answer["address"]

    def call(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """What needs no slot, and therefore no time: a process that takes it is ended."""
        try:
            with contextlib.closing(self._send(path, body)) as connection:
                return _answer(connection.getresponse())
        except TimeoutError as error:
            self.end()
            raise EngineFailed(f"llama.cpp did not answer {path} within {CONTROL_TIMEOUT_S:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise self.failed(f"llama.cpp did not answer {path}: {error}") from error

    @property
    def address(self) -> tuple[str, int]:
        """Its host and its port."""
        host, _, port = self._address.rpartition(":")
        return host, int(port)

    def request(self, path: str, body: bytes) -> bytes:
        """An HTTP request with this body, as it goes over the wire."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._address}\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body

    def _send(self, path: str, body: Mapping[str, Any] | None) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._address, timeout=CONTROL_TIMEOUT_S)
        headers = {"Authorization": f"Bearer {self._key}", "Connection": "close"}
        text = None if body is None else json.dumps(body)
        connection.request("GET" if text is None else "POST", path, text, headers)
        return connection

    @contextlib.contextmanager
    def guided(self) -> Generator[None]:
        """While a request with a grammar runs, the loop is watched, and until it has come round once more."""
        with self._lock:
            self._guided += 1
            self._to_prove = True
        try:
            yield
        finally:
            with self._lock:
                self._guided -= 1

    def comes_round(self) -> bool:
        """Whether the loop ends its pass, which is waited for. If a guide holds it there, the process is ended."""
        with self._lock:
            if not self._to_prove:
                return True
            self._to_prove = self._guided > 0
        try:
            with contextlib.closing(self._send("/metrics", None)) as connection:
                if self._answers(connection):
                    return True
        except (OSError, http.client.HTTPException):
            return True
        self.stuck = True
        self.end()
        return False

    def _answers(self, connection: http.client.HTTPConnection) -> bool:
        alone, before = 0.0, None
        while not select.select([connection.sock], [], [], _GLANCE_S)[0]:
            now = self._cpu_by_thread()
            if before is not None:
                used = sorted((seconds - before.get(thread, 0.0) for thread, seconds in now.items()), reverse=True)
                alone += max(0.0, used[0] - sum(used[1:])) if used else 0.0
            if alone > self._stuck_s:
                return False
            before = now
        return True

    def _cpu_by_thread(self) -> dict[str, float]:
        tick = os.sysconf("SC_CLK_TCK")
        seconds: dict[str, float] = {}
        for task in Path(f"/proc/{self._process.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):
                # utime and stime, the 14th and 15th field; the second, in brackets, may hold spaces.
                fields = task.read_text().rpartition(")")[2].split()
                seconds[task.parent.name] = (int(fields[11]) + int(fields[12])) / tick
        return seconds

    @property
    def is_ready(self) -> bool:
        return bool(self._address) and not self.is_gone()

    def is_gone(self, within_s: float = 0.0) -> bool:
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def failed(self, message: str) -> EngineFailed:
        """What broke a connection: the end of the process, which the next one mends, or a fault."""
        # Its sockets close a moment before it can be waited for.
        return EngineUnavailable("llama.cpp has ended and starts again") if self.is_gone(1.0) else EngineFailed(message)

    def end(self) -> None:
        """At once, whatever it does. Repeatedly, from any thread."""
        assert self._process.stdin
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()


class LlamaServers:
    """One server at any time: the next one starts when the last has ended. Raises EngineFailed if the first cannot."""

    def __init__(self, wanted: Mapping[str, object]) -> None:
        self._wanted = wanted
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._failure = ""
        self._server = LlamaServer(wanted)
        self._server.wait_ready()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def get(self) -> LlamaServer:
        """The one that runs, after a wait where it is being started. Raises EngineUnavailable."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._server.is_ready or self._failure or self._closed.is_set(), _RESTART_WAIT_S
            )
            if not self._server.is_ready:
                raise EngineUnavailable(self._failure or "llama.cpp starts again")
            return self._server

    def close(self) -> None:
        with self._changed:
            self._closed.set()
            self._server.end()
            self._changed.notify_all()
        self._keeper.join()

    def _keep(self) -> None:
        while not self._closed.wait(_GLANCE_S):
            if self._server.is_gone():
                print("llama.cpp has ended and starts again", file=sys.stderr, flush=True)
                self._replace()
            else:
                self._server.comes_round()

    def _replace(self) -> None:
        for pause in chain(_RESTART_PAUSES_S, repeat(_RESTART_PAUSES_S[-1])):
            self._closed.wait(pause)
            with self._changed:
                self._server.end()
                if self._closed.is_set():
                    return
                self._server = LlamaServer(self._wanted)
            failure = ""
            try:
                self._server.wait_ready()
            except EngineFailed as error:
                failure = str(error)
            with self._changed:
                self._failure = failure
                self._changed.notify_all()
            if not failure:
                return


def _answer(response: http.client.HTTPResponse) -> Any:
    with response:
        body = response.read()
    if response.status != 200:
        raise refusal(response.status, body)
    return json.loads(body)


def refusal(status: int, body: bytes) -> RequestRefused | EngineFailed:
    """What an answer says that is none: whether the request is to blame, or llama.cpp."""
    text = body.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return EngineFailed(f"llama.cpp answered {status}: {text[:200]}")
    if error.get("type") == "exceed_context_size_error":
        return PromptTooLong(f"the prompt has {error['n_prompt_tokens']} tokens; it may have {error['n_ctx'] - 1}")
    if status == 400:
        named = "'guided_decoding_guide' cannot be honoured: " if "grammar" in error["message"] else ""
        return RequestRefused(named + error["message"])
    return EngineFailed(f"llama.cpp answered {status}: {error['message']}")
