"""Engines of TensorRT-LLM and the LLM API, rolled out by the flow to a node in an image of stand-ins."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from infra.errors import TritonError
from infra.processes import free_ports, launch
from infra.settings import CHECKOUT
from infra.triton.client import TritonClient
from tasks.records import NodeReport, Target
from tests.flows.build_worker import PRODUCT, register, worker
from tests.standin import image, weights

if TYPE_CHECKING:
    from conftest import House

pytestmark = pytest.mark.slow

VERSION = "1.2.1"
"""The last one that has engines, and so the one to leave them on."""
NAME, TARGET = "tiny-served", "gpus"
QUESTION = {"text_input": "How do I count to nine", "max_tokens": 16, "temperature": 0.0}


@dataclass
class Node:
    """A node of a target of its own, in the image; `start` starts it anew in the same folder."""

    house: House
    folder: Path
    environment: dict[str, str]
    http: str
    grpc: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> Target:
        return Target(self.house.store.bucket, TARGET)

    @property
    def client(self) -> TritonClient:
        return TritonClient(self.http, grpc=self.grpc, timeout_s=30)

    def report(self) -> NodeReport:
        return self.target.nodes()[0]

    def start(self) -> None:
        command = [sys.executable, "-m", "deployments.node"]
        log = self.folder / "node.log"
        self.process = launch(command, log=log, folder=CHECKOUT, environment=self.environment)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(60)
        assert code == (0 if number == signal.SIGTERM else -number), (self.folder / "node.log").read_text()

    def wait_for(self, public: int, ready: set[int]) -> None:
        """Until the node answers with `public`, and holds just `ready`."""

        def holds() -> bool:
            nodes = self.target.nodes()
            known = nodes[0].models.get(NAME) if nodes else None
            return (
                known is not None
                and known.public == public
                and {number: found.state for number, found in known.releases.items()} == dict.fromkeys(ready, "ready")
            )

        self.house.wait(holds, 60, f"node with {public} public")


@pytest.fixture(scope="module")
def node(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("node")
    made = image.make(folder / "image", VERSION, gpus=2)
    http, grpc, metrics = free_ports(3)
    environment = {
        **house.environment,
        **house.variables,
        **made.environment,
        "ENGINEHOUSE_HOME": str(folder),
        "ENGINEHOUSE_TARGET": TARGET,
        "ENGINEHOUSE_TRITON_HTTP": f"http://127.0.0.1:{http}",
        "ENGINEHOUSE_TRITON_GRPC": f"127.0.0.1:{grpc}",
        "ENGINEHOUSE_NODE_METRICS_PORT": str(metrics),
    }
    node = Node(house, folder, environment, f"127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    node.start()
    try:
        house.wait(lambda: bool(node.target.nodes()), 60, "report")
        yield node
    finally:
        node.stop()


@pytest.fixture(scope="module")
def served(house: House, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A model that is to be served there, and a worker that builds its engines."""
    folder = tmp_path_factory.mktemp("served")
    source = weights.make(folder / "llama")
    (source / "standin.json").write_text(json.dumps(image.speech(VERSION)))
    document = {
        "name": NAME,
        "source": {"uri": f"file://{source}"},
        "recipe": {
            "kind": "trt-engine",
            "runtime": {"tensorrt_llm": VERSION, "gpu": PRODUCT, "arch": "sm90", "gpus": 2},
            "max_batch_size": 4,
            "max_input_len": 64,
            "max_seq_len": 128,
            "max_num_tokens": 128,
        },
        "serving": {"chat_template": False},
        "targets": [TARGET],
        "prompts": [
            {"name": "count", "text": "Count to nine.", "max_tokens": 8, "expect": {"min_tokens": 1}},
            {
                "name": "streams",
                "text": "How do I count",
                "max_tokens": 12,
                "seed": 1,
                "expect": {"stream_equals": True},
            },
        ],
    }
    path = house.catalogue / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(document))
    register()
    with worker(house, folder, VERSION):
        yield NAME
    path.unlink()


@contextmanager
def asked(node: Node) -> Generator[list[str]]:
    """Two clients ask by the public name all the while. Yields the answers; none may fail."""
    stop, answers, failures = threading.Event(), list[str](), list[str]()

    def ask(stream: bool) -> None:
        while not stop.is_set():
            try:
                if stream:
                    request = {**QUESTION, "stream": True}
                    answers.append("".join(piece.text for piece in node.client.generate_stream(NAME, request)))
                else:
                    answers.append(node.client.generate(NAME, QUESTION).text)
            except Exception as error:
                failures.append(repr(error))
            stop.wait(0.05)

    clients = [threading.Thread(target=ask, args=(stream,)) for stream in (False, True)]
    for client in clients:
        client.start()
    try:
        yield answers
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert not failures, failures[:3]


def require_contract(client: TritonClient) -> str:
    """Ask in every way that the contract has, and return the answer to the question."""
    whole = client.generate(NAME, {**QUESTION, "return_log_probs": True})
    assert whole.text and 1 <= len(whole.log_probs) <= QUESTION["max_tokens"]
    streaming = {**QUESTION, "stream": True}
    assert "".join(piece.text for piece in client.generate_stream(NAME, streaming)) == whole.text
    with client.stream(NAME, streaming) as pieces:
        assert "".join(piece.text for piece in pieces) == whole.text
    prompted = client.generate(NAME, {**QUESTION, "exclude_input_in_output": False}).text
    assert prompted == QUESTION["text_input"] + whole.text
    word = whole.text.split()[1]
    stopped = client.generate(NAME, {**QUESTION, "stop_words": [word]}).text
    assert stopped == whole.text.partition(word)[0]
    for wrong in ({"beam_width": 2}, {"nobody_knows": 1}, {"min_length": 2, "min_tokens": 2}):
        with pytest.raises(TritonError, match=next(iter(wrong))):
            client.generate(NAME, {**QUESTION, **wrong})
    return whole.text


def test_engines_follow_each_other_and_the_llm_api_follows_them(house: House, node: Node, served: str) -> None:
    machine = node.report().machine
    assert [machine.tensorrt_llm, *(gpu.product for gpu in machine.gpus)] == [VERSION, PRODUCT, PRODUCT]
    triton = node.report().triton_pid

    first = house.rebuild(served)
    assert (first["state"], first["targets"]) == ("promoted", {TARGET: 1})
    said = require_contract(node.client)
    node.wait_for(1, {1})

    with asked(node) as answers:
        # Of two GPUs, which the backend's own workers serve.
        second = house.rebuild(served, "--recipe", "tp_size=2")
        assert (second["state"], second["release"]) == ("promoted", 2)
        node.wait_for(2, {1, 2})
        assert require_contract(node.client) == said
        assert json.loads(house.run("rollback", served, "--target", TARGET, "--json"))["release"] == 1
        node.wait_for(1, {1, 2})
        assert require_contract(node.client) == said

        third = house.rebuild(served, "--recipe", "kind=llmapi")
        assert (third["state"], third["release"]) == ("promoted", 3)
        node.wait_for(3, {1, 3})
        assert require_contract(node.client) == said
    assert set(answers) == {said} and len(answers) > 20
    assert node.report().triton_pid == triton
    assert [node.report().models[NAME].releases[number].starts for number in (1, 3)] == [1, 1]

    intent = node.target.intent(served, 3)
    changed = {change.field for change in intent.changes}
    assert {"kind"} <= changed, intent
    print(intent.changes, intent.lost)

    node.stop(signal.SIGKILL)
    node.start()
    with asked(node):  # its Triton was left alone, and is found again
        house.wait(lambda: node.process is not None and node.report().models[NAME].public == 3, 60, "report")
        node.wait_for(3, {1, 3})
    assert node.report().triton_pid == triton
    node.stop()
    node.start()
    house.wait(lambda: node.report().triton_pid != triton, 60, "new Triton")
    node.wait_for(3, {1, 3})
    assert require_contract(node.client) == said
