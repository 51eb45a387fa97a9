"""NVIDIA's own clients, unchanged, against a model of kind llamacpp that is published by the names they know.

`ENGINEHOUSE_TEST_CLIENTS=DIR` names a folder with their sources by version; CONTRIBUTING.md says where they are from.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deployments.gateway.state import TargetState
from tasks.store.names import ALIASES
from tasks.triton.placement import write_public
from tests.deployments.gateway.house import House, house, node
from tests.tasks.kinds.served_kinds import CHAT, Kind, llamacpp
from tests.tasks.serving.test_serving import load, place, point

if TYPE_CHECKING:
    from tests.conftest import RunningTriton

pytestmark = pytest.mark.slow

VERSIONS = ("0.8.0", "0.9.0", "0.12.0", "0.16.0", "0.19.0")
PACKAGES = ("tritonclient[grpc,http]", "numpy", "pandas", "tabulate")
PROMPT, OTHER = "How do I count to nine in French?", "The sky is"
TOKENS = 6
# Runs a client's script as often as is asked for, each time as if by the command line, and says what it printed. Only
# `end_to_end_test.py` imports PyTorch, for a check of logits that is not run.
DRIVER = """
import contextlib, inspect, io, json, os, runpy, sys, traceback, types

def printed(work):
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            work()
    except SystemExit as end:
        said.write(f"exit {end.code}")
    except BaseException:
        said.write("RAISED " + traceback.format_exc())
    return said.getvalue()

def by_command_line(script, arguments):
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")

def unary(script, protocol, url, prompts, tokens):
    sys.modules["torch"] = types.ModuleType("torch")
    sys.argv = [script]
    sys.path.insert(0, os.path.dirname(os.path.dirname(script)))
    module = types.ModuleType("client")
    module.__file__ = script
    exec(compile(open(script).read(), script, "exec"), module.__dict__)
    module.FLAGS = types.SimpleNamespace(protocol=protocol, model_name="ensemble", streaming=False, verbose=False)
    client = module.utils.create_inference_server_client(protocol, url, concurrency=4, verbose=False)
    given = [client, prompts, [tokens] * len(prompts), module.FLAGS]
    module.test_performance(*given[:len([each for each in inspect.signature(module.test_performance).parameters
                                         if each != "use_llmapi"])])

works = {"by_command_line": by_command_line, "unary": unary}
print(json.dumps([printed(lambda: works[name](*given)) for name, given in json.load(sys.stdin)]))
"""


@dataclass(frozen=True)
class Call:
    """`refused` is the field that an error has to name; empty if the call is answered. `answers` prompts are read."""

    name: str
    arguments: tuple[str, ...]
    refused: str = ""
    since: str = "0.8.0"
    until: str = "0.19.0"
    prompts: tuple[str, ...] = (PROMPT,)


BOTH = (PROMPT, OTHER)
CALLS = (
    Call("plain", ()),
    Call("streaming", ("--streaming",)),
    # It keeps the last piece alone, which has no text but the reason of the end.
    Call("overwrite", ("--streaming", "--overwrite-output-text"), prompts=()),
    Call("words", ("--stop-words", "zzz", "yyy", "--bad-words", "xxx")),
    Call("penalties", (*("--repetition-penalty", "1.0"), *("--presence-penalty", "0"), *("--frequency-penalty", "0"))),
    Call("ids", ("--end-id", "2", "--pad-id", "2")),
    Call("bls", ("--model-name", "tensorrt_llm_bls")),
    Call("beam", ("--beam-width", "2"), refused="beam_width"),
    Call("bias", ("--embedding-bias-words", "x", "--embedding-bias-weights", "1"), refused="embedding_bias_w"),
    Call("context", ("--return-context-logits",), refused="context_logits"),
    Call("generation", ("--return-generation-logits",), refused="generation_logits"),
    Call("several", ("--prompt", json.dumps(BOTH)), since="0.12.0", prompts=BOTH),
    Call("batch", ("--prompt", json.dumps(BOTH), "--batch-inputs"), since="0.12.0", prompts=BOTH),
    Call("log probs", ("--return-log-probs",), since="0.16.0"),
    Call("exclude", ("--exclude-input-in-output",), since="0.16.0"),
    Call("sequences", ("--num-return-sequences", "2"), refused="num_return_sequences", since="0.16.0"),
    Call("stats", ("--return-kv-cache-reuse-stats",), refused="kv_cache", since="0.16.0", until="0.16.0"),
    Call("metrics", ("--return-perf-metrics",), refused="acceptance_rate|kv_cache_alloc_new_blocks", since="0.19.0"),
    Call("guided", ("--guided-decoding-guide-type", "json"), since="0.19.0", prompts=()),
)


def calls_of(version: str) -> list[Call]:
    at = VERSIONS.index(version)
    return [call for call in CALLS if VERSIONS.index(call.since) <= at <= VERSIONS.index(call.until)]


@pytest.fixture(scope="module")
def sources() -> Path:
    given = os.environ.get("ENGINEHOUSE_TEST_CLIENTS")
    if not given:
        pytest.skip("ENGINEHOUSE_TEST_CLIENTS names no folder with NVIDIA's clients, one folder a version")
    return Path(given)


@pytest.fixture(scope="module")
def run(sources: Path) -> Callable[[Sequence[Any]], list[str]]:
    """What each of these calls of the driver prints, in an environment of the clients' own, made once for this user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = cache / "enginehouse" / "tests" / "published-clients"
    python, done = str(folder / "bin" / "python"), folder / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        if subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=False).returncode:
            pytest.skip(f"no environment with {', '.join(PACKAGES)} could be made")
        done.touch()

    def printed(calls: Sequence[Any]) -> list[str]:
        given = json.dumps(calls)
        ran = subprocess.run(
            [python, "-c", DRIVER], input=given, capture_output=True, text=True, timeout=280, check=True
        )
        return json.loads(ran.stdout)

    return printed


@pytest.fixture(scope="module")
def triton(
    request: pytest.FixtureRequest,
    smollm2_gguf: Path,
    start_triton: Callable[[str], RunningTriton],
    tmp_path_factory: pytest.TempPathFactory,
) -> RunningTriton:
    """A Triton with a model of kind llamacpp, which has the published names too."""
    kind: Kind = llamacpp(smollm2_gguf)
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        started = start_triton("published")
    place(started, kind, CHAT, 1, kind.releases[CHAT, 1], tmp_path_factory.mktemp("model"))
    load(started, CHAT, 1)
    point(started, CHAT, 1)
    for alias in ALIASES:
        write_public(started.repository, CHAT, 1, alias)
        started.client.load(alias)
    return started


@pytest.fixture(scope="module")
def gateway(triton: RunningTriton) -> Iterator[House]:
    aliases: dict[str, str] = dict.fromkeys(ALIASES, CHAT)
    with house() as made:
        answering = node("one", triton.client.grpc, {CHAT: 1}, aliases=aliases)
        made.watch.tell(TargetState("test", {CHAT: 1}, (answering,), aliases))
        yield made


@pytest.fixture(scope="module")
def expected(triton: RunningTriton) -> dict[str, str]:
    """How the answer to each prompt begins, up to the first character that a client may print in another form."""
    found: dict[str, str] = {}
    for prompt in BOTH:
        text = triton.client.generate(CHAT, {"text_input": prompt, "max_tokens": TOKENS, "temperature": 0.0}).text
        beginning = re.match(r"[\w ,.]+", text)
        assert beginning is not None and len(beginning[0]) > 8
        found[prompt] = beginning[0][:20]
    return found


def test_there_are_seventy_calls_of_which_a_cpu_model_answers_forty_six() -> None:
    calls = [call for version in VERSIONS for call in calls_of(version)]
    assert (len(calls), sum(not call.refused for call in calls)) == (70, 46)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("door", ["triton", "gateway"])
def test_streams(
    sources: Path,
    run: Callable[[Sequence[Any]], list[str]],
    triton: RunningTriton,
    gateway: House,
    expected: dict[str, str],
    door: str,
    version: str,
) -> None:
    url = triton.client.grpc if door == "triton" else gateway.grpc
    script = sources / version / "inflight_batcher_llm" / "client" / "end_to_end_grpc_client.py"
    every = ["--url", url, "--prompt", PROMPT, "--output-len", str(TOKENS), "--temperature", "0"]
    calls = calls_of(version)
    said = run([["by_command_line", [str(script), [*every, *call.arguments]]] for call in calls])
    wrong = {call.name: text for call, text in zip(calls, said, strict=True) if not is_right(call, text, expected)}
    assert not wrong, "\n".join(f"--- {name}\n{text}" for name, text in wrong.items())


def is_right(call: Call, said: str, expected: dict[str, str]) -> bool:
    error = "Received an error from server" in said
    if "RAISED" in said or error != bool(call.refused):
        return False
    if call.refused:
        return bool(re.search(call.refused, said.partition("Received an error from server")[2]))
    return all(expected[prompt] in said.replace("\\n", "\n") for prompt in call.prompts)


@pytest.mark.parametrize("version", VERSIONS)
def test_unary_calls_at_the_gateway(
    sources: Path, run: Callable[[Sequence[Any]], list[str]], gateway: House, version: str
) -> None:
    script = str(sources / version / "tools" / "inflight_batcher_llm" / "end_to_end_test.py")
    ways = (("http", gateway.url.removeprefix("http://")), ("grpc", gateway.grpc))
    for said in run([["unary", [script, protocol, url, [*BOTH, PROMPT], TOKENS]] for protocol, url in ways]):
        assert "RAISED" not in said and "Total Latency" in said, said
