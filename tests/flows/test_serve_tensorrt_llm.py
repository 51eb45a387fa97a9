"""Engines of TensorRT-LLM and the LLM API, rolled out by the flow to a node in an image of stand-ins."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import yaml

from infra.errors import TritonError
from infra.processes.sessions import free_ports, start_session
from infra.settings import CHECKOUT
from infra.triton.client import TritonClient
from infra.triton.supervisor import NODE_GRACE_S
from tasks.targets.node_report import NodeReport
from tasks.targets.target import Target
from tests.flows.build_worker import PRODUCT, register, worker
from tests.processes import processes_that
from tests.standin import image, weights
from tests.tasks.lora.small_adapters import write_adapter

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

TEXT, TOKENS = "How do I count to nine", 16
LORA = {"target_modules": ["attn_q", "attn_k"], "max_rank": 8}
QUESTION = {"text_input": TEXT, "max_tokens": TOKENS, "temperature": 0.0}


class Node:
    """A node of a target of its own, in an image with TensorRT-LLM; it is started again in the same folder.

    `name` is that of the target, and of the model that it serves.
    """

    def __init__(self, house: House, folder: Path, image: image.Image, name: str) -> None:
        folder.mkdir()
        http, grpc, metrics = free_ports(3)
        self.house = house
        self.name = name
        self.target = Target(house.store.bucket, name)
        self.metrics = metrics
        self.client = TritonClient(f"127.0.0.1:{http}", grpc=f"127.0.0.1:{grpc}", timeout_s=30)
        self.folder = folder
        self._log = folder / "node.log"
        self._environment = {
            **house.environment,
            **house.variables,
            **image.environment,
            "ENGINEHOUSE_HOME": str(folder),
            "ENGINEHOUSE_TARGET": name,
            "ENGINEHOUSE_TRITON_HTTP": f"http://127.0.0.1:{http}",
            "ENGINEHOUSE_TRITON_GRPC": f"127.0.0.1:{grpc}",
            "ENGINEHOUSE_NODE_METRICS_PORT": str(metrics),
        }

    def start(self) -> None:
        self._started = datetime.now(UTC)
        command = [sys.executable, "-m", "deployments.node.agent"]
        self._process = start_session(command, log=self._log, folder=CHECKOUT, environment=self._environment)
        self.house.wait(lambda: self.report is not None, 60, "report")

    def stop(self) -> None:
        self._process.terminate()
        assert self._process.wait(NODE_GRACE_S) == 0, self._log.read_text()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def report(self) -> NodeReport | None:
        """The newest since it was started."""
        return next((report for report in self.target.nodes() if report.written > self._started), None)

    @property
    def triton_pid(self) -> int:
        return self.report.triton_pid if self.report is not None else 0

    @property
    def ranks(self) -> list[psutil.Process]:
        """Every Triton of an engine that has its own."""
        return self.processes("node/groups")

    def processes(self, below: str = "") -> list[psutil.Process]:
        """Every Triton of it, or those with something in a folder of it."""
        folder = str(self.folder / below)
        return processes_that(
            lambda process: process.name() == "tritonserver" and folder in " ".join(process.cmdline())
        )

    def wait_for(self, public: int, ready: set[int]) -> None:
        """Until it answers with `public`, and holds just `ready`."""

        def holds() -> bool:
            known = self.report.models.get(self.name) if self.report is not None else None
            states = {number: found.state for number, found in known.releases.items()} if known is not None else {}
            return known is not None and known.public == public and states == dict.fromkeys(ready, "ready")

        self.house.wait(holds, 60, f"release {public} that is public, of {ready}")

    def rebuild(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        return self.house.rebuild(self.name, *arguments, code=code)

    def roll_back(self) -> int:
        return json.loads(self.house.run("rollback", self.name, "--target", self.name, "--json"))["release"]


@contextmanager
def serving(
    house: House, folder: Path, name: str, version: str, adapters: tuple[str, ...] = ()
) -> Generator[tuple[Node, image.Image]]:
    """A node, a model that it is to serve, with `adapters` that requests may choose, and a worker for its engines."""
    modules = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64)}
    made_of = {each: write_adapter(folder / each, modules, layers=2, seed=at) for at, each in enumerate(adapters)}
    made = image.make(folder / "image-of-node", version, gpus=2)
    source = weights.make(folder / "llama")
    (source / "standin.json").write_text(json.dumps(image.speech(version)))
    path = house.catalogue / f"{name}.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "name": name,
                "source": {"uri": f"file://{source}"},
                "recipe": {
                    "kind": "trt-engine",
                    "runtime": {"tensorrt_llm": version, "gpu": PRODUCT, "arch": "sm90", "gpus": 2},
                    "max_batch_size": 4,
                    "max_input_len": 64,
                    "max_seq_len": 128,
                    "max_num_tokens": 128,
                    "fused_mlp": False,
                    # The stand-in of the backend reads no bfloat16.
                    **({"dtype": "float16", "lora": LORA} if adapters else {}),
                },
                "adapters": {each: f"file://{made}" for each, made in made_of.items()},
                "serving": {"chat_template": False},
                "targets": [name],
                "prompts": [
                    {
                        "name": "count",
                        "text": "Count to nine.",
                        "max_tokens": 8,
                        "temperature": 0.0,
                        "seed": 1,
                        "expect": {"min_tokens": 4, "stream_equals": True},
                    }
                ],
            }
        )
    )
    register()
    try:
        with worker(house, folder, version):
            node = Node(house, folder / "node", made, name)
            try:
                node.start()
                yield node, made
            finally:
                node.stop()
    finally:
        path.unlink()


@contextmanager
def asked(node: Node) -> Generator[list[str]]:
    """A client asks by the public name all the while, whole and streamed. Yields the answers; none may fail."""
    stop, answers, failures = threading.Event(), list[str](), list[str]()

    def ask() -> None:
        while not stop.is_set():
            try:
                streamed = node.client.generate_stream(node.name, {**QUESTION, "stream": True})
                answers.append("".join(piece.text for piece in streamed))
                answers.append(node.client.generate(node.name, QUESTION).text)
            except Exception as error:
                failures.append(repr(error))
            stop.wait(0.1)

    client = threading.Thread(target=ask)
    client.start()
    try:
        yield answers
    finally:
        stop.set()
        client.join()
    assert not failures, failures[:3]


def require_contract(node: Node) -> str:
    """Ask in every way that the contract has, and return the answer to the question."""
    client, name = node.client, node.name
    whole = client.generate(name, {**QUESTION, "return_log_probs": True})
    assert whole.text and 1 <= len(whole.log_probs) <= TOKENS
    streaming = {**QUESTION, "stream": True}
    assert "".join(piece.text for piece in client.generate_stream(name, streaming)) == whole.text
    with client.stream(name, streaming) as pieces:
        assert "".join(piece.text for piece in pieces) == whole.text
    prompted = client.generate(name, {**QUESTION, "exclude_input_in_output": False}).text
    assert prompted == TEXT + whole.text
    word = whole.text.split()[1]
    stopped = client.generate(name, {**QUESTION, "stop_words": [word]}).text
    assert stopped == whole.text.partition(word)[0]
    for wrong in ({"beam_width": 2}, {"nobody_knows": 1}, {"min_length": 2, "min_tokens": 2}):
        with pytest.raises(TritonError) as caught:
            client.generate(name, {**QUESTION, **wrong})
        assert caught.value.code == "triton-refused" and next(iter(wrong)) in caught.value.message
    return whole.text


def adapted(node: Node) -> list[str]:
    """The answers to the question with each of the adapters, which differ from one another and from the model's own."""
    answers = [node.client.generate(node.name, {**QUESTION, "lora_name": name}).text for name in ("", "french", "sql")]
    assert len(set(answers)) == 3
    with pytest.raises(TritonError) as caught:
        node.client.generate(node.name, {**QUESTION, "lora_name": "latin"})
    assert "'lora_name' is 'latin'; this model has french, sql" in caught.value.message
    return answers


def test_engines_follow_each_other_and_the_llm_api_follows_them(house: House, tmp_path: Path) -> None:
    """On 1.2, the last version that has engines, and so the one to leave them on."""
    with serving(house, tmp_path, "tiny-moving", "1.2.1", ("french", "sql")) as (node, _):
        machine = node.target.nodes()[0].machine
        assert [machine.tensorrt_llm, *(gpu.product for gpu in machine.gpus)] == ["1.2.1", PRODUCT, PRODUCT]
        first = node.rebuild()
        assert (first["state"], first["targets"]) == ("promoted", {node.name: 1})
        answer, triton = require_contract(node), node.triton_pid
        own = adapted(node)
        assert own[0] == answer and node.target.intent(node.name, 1).adapters.keys() == {"french", "sql"}

        with asked(node) as answers:
            # Of two GPUs, which the backend's own workers serve.
            second = node.rebuild("--recipe", "tp_size=2")
            assert (second["state"], second["release"]) == ("promoted", 2)
            node.wait_for(2, {1, 2})
        assert require_contract(node) == answer
        with asked(node) as more:
            assert node.roll_back() == 1
            node.wait_for(1, {1, 2})
        assert require_contract(node) == answer
        with asked(node) as most:
            third = node.rebuild("--recipe", "kind=llmapi")
            assert (third["state"], third["release"]) == ("promoted", 3)
            node.wait_for(3, {1, 3})
        assert require_contract(node) == answer and adapted(node)[0] == answer
        assert {*answers, *more, *most} == {answer} and len(answers) > 10
        assert node.triton_pid == triton
        releases = node.target.nodes()[0].models[node.name].releases
        assert [release.starts for release in releases.values()] == [1, 1]

        intent = node.target.intent(node.name, 3)
        changed = {change.field: (change.old, change.new) for change in intent.changes}
        assert changed["kind"] == ("trt-engine", "llmapi") and changed["fused_mlp"] == (False, None)
        assert intent.lost == {"fused_mlp": False}, "a field of the model's file that the LLM API does not have"
        assert "max_batch_size" not in changed


@pytest.mark.long
def test_a_draft_model_guesses_what_the_engine_checks(house: House, tmp_path: Path) -> None:
    """The answer is that of the engine alone, in fewer steps."""
    with serving(house, tmp_path, "tiny-guessing", "1.2.1") as (node, _):
        node.rebuild()
        answer = require_contract(node)
        draft = weights.make(tmp_path / "draft", seed="draft", num_hidden_layers=1)
        (draft / "standin.json").write_text(json.dumps(image.speech("1.2.1")))
        path = house.catalogue / f"{node.name}.yaml"
        document = yaml.safe_load(path.read_text())
        document["recipe"]["speculation"] = {
            "mode": "draft_tokens_external",
            "max_draft_len": 4,
            "source": f"file://{draft}",
        }
        path.write_text(yaml.safe_dump(document))
        with asked(node) as answers:
            second = node.rebuild()
            assert (second["state"], second["release"]) == ("promoted", 2)
            node.wait_for(2, {1, 2})
        made = [(step["name"], step["state"]) for step in second["steps"] if step["name"] in ("convert", "upload")]
        # Those of the draft model, then those of the engine, whose checkpoint is that of the first release.
        assert made == [
            ("convert", "Completed"),
            ("upload", "Completed"),
            ("convert", "Cached"),
            ("upload", "Completed"),
        ]
        assert {*answers} == {answer} and len(answers) > 10
        before = {name: executions(node, name) for name in ("tensorrt_llm", "tensorrt_llm_draft")}
        whole = node.client.generate(node.name, {**QUESTION, "return_num_output_tokens": True})
        assert whole.text == answer
        assert "".join(piece.text for piece in node.client.generate_stream(node.name, {**QUESTION, "stream": True}))
        steps, guesses = (executions(node, name) - before[name] for name in before)
        assert whole.tokens is not None and 0 < guesses <= steps < 2 * whole.tokens, "several tokens at once"
        with pytest.raises(TritonError, match="served with a draft model"):
            node.client.generate(node.name, {**QUESTION, "presence_penalty": 0.5})


@pytest.mark.long
def test_a_node_that_comes_back_serves_what_it_served(house: House, tmp_path: Path) -> None:
    with serving(house, tmp_path, "tiny-returning", "1.2.1") as (node, made):
        node.rebuild()
        answer, triton = require_contract(node), node.triton_pid
        with asked(node):
            node.kill()
            node.start()
            node.wait_for(1, {1})
        assert node.triton_pid == triton, "it was left alone, and is found again"
        os.kill(triton, signal.SIGKILL)
        house.wait(lambda: node.triton_pid not in (0, triton), 60, "new Triton")
        node.wait_for(1, {1})
        assert require_contract(node) == answer
        triton = node.triton_pid
        made.abort_a_load("CUDA runtime error in ::cudaMallocAsync(ptr, n, mCudaStream->get()): out of memory")
        refused = node.rebuild("--recipe", "max_batch_size=2", code=3)
        assert "[gpu-memory]" in refused["error"]["message"]
        house.wait(lambda: node.triton_pid not in (0, triton), 60, "Triton after the one that the candidate ended")
        node.wait_for(1, {1})
        assert require_contract(node) == answer
        made.leave_free(1 << 20)
        house.wait(lambda: free_bytes(node) == 1 << 20, 30, "report of the memory")
        short = node.rebuild("--recipe", "max_batch_size=2", code=1)["error"]
        assert short["code"] == "memory-short" and "on a GPU" in short["message"]
        node.stop()
        node.start()
        node.wait_for(1, {1})
        assert require_contract(node) == answer


@pytest.mark.long
def test_an_engine_in_leader_mode_has_servers_of_its_own(house: House, tmp_path: Path) -> None:
    with serving(house, tmp_path, "tiny-leading", "0.8.0") as (node, made):
        node.rebuild()
        answer, triton = require_contract(node), node.triton_pid
        assert node.ranks == []
        with asked(node) as answers:
            second = node.rebuild("--recipe", "tp_size=2")
            assert (second["state"], second["release"]) == ("promoted", 2)
            node.wait_for(2, {1, 2})
        assert require_contract(node) == answer
        assert {*answers} == {answer} and len(answers) > 10
        ranks = node.ranks
        assert len(ranks) == 2

        with asked(node):
            node.kill()
            node.start()
            node.wait_for(2, {1, 2})
        assert node.ranks == ranks, "they were left alone, and are found again"

        ranks[1].kill()
        house.wait(lambda: state(node, 2) == "loading", 60, "report of the ranks that have ended")
        node.wait_for(2, {1, 2})
        assert require_contract(node) == answer
        assert len(node.ranks) == 2 and not {*node.ranks} & {*ranks}

        with asked(node):
            made.abort_a_load("CUDA runtime error in ::cudaMallocAsync(ptr, n, mCudaStream->get()): out of memory")
            refused = node.rebuild("--recipe", "tp_size=2", "--recipe", "max_batch_size=2", code=3)
            assert "[gpu-memory]" in refused["error"]["message"]
            node.wait_for(2, {1, 2})
            assert node.roll_back() == 1
            node.wait_for(1, {1, 2})
        assert require_contract(node) == answer
        assert node.triton_pid == triton, "no engine of several GPUs takes it along"

        os.kill(triton, signal.SIGKILL)
        house.wait(lambda: node.triton_pid not in (0, triton), 60, "new Triton")
        node.wait_for(1, {1, 2})
        assert len(node.ranks) == 2
        node.stop()
        assert node.processes() == [], "nothing of it outlives the node"
        node.start()
        node.wait_for(1, {1, 2})
        assert len(node.ranks) == 2
        with asked(node):
            assert node.rebuild("--recipe", "max_batch_size=2")["release"] == 4
            node.wait_for(4, {1, 4})
        assert node.ranks == [], "they end with their release"


def executions(node: Node, relative: str) -> int:
    """Requests that a model of release 2 has answered, as Triton counts them."""
    counter = f'nv_inference_request_success{{model="{node.name}--r2--{relative}",version="1"}} '
    with urllib.request.urlopen(f"http://127.0.0.1:{node.metrics}/metrics") as answered:
        (line,) = (line for line in answered.read().decode().splitlines() if line.startswith(counter))
    return int(float(line.removeprefix(counter)))


def state(node: Node, release: int) -> str:
    known = node.report.models[node.name].releases.get(release) if node.report is not None else None
    return known.state if known is not None else ""


def free_bytes(node: Node) -> int:
    return node.report.machine.gpus[0].free_bytes if node.report is not None else -1
