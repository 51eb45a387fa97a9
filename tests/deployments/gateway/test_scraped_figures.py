"""Prometheus scrapes a running stack: its figures are those of the requests that were sent, and all that is asked of it
by the dashboard and the alert rules is answered."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from deployments.gateway.state import Watch
from infra.processes.sessions import free_ports
from infra.s3.bucket import Bucket
from infra.settings import CHECKOUT
from infra.triton.client import TritonClient
from tasks.observed.tally import Look, Tally, look
from tasks.serving.contract import CONTRACT
from tasks.serving.figures import METRICS
from tasks.serving.settings import ServingSettings
from tasks.store.artifact_store import ArtifactStore
from tasks.store.identity import Identity
from tasks.targets.release import Intent, Result
from tasks.targets.target import Target
from tasks.triton.config import LLM
from tasks.triton.placement import release_names
from tasks.triton.repository import write_release
from tests.conftest import BUCKET
from tests.deployments.gateway.house import house, until
from tests.deployments.node.served import Served, served
from tests.fleet import Fleet

pytestmark = pytest.mark.slow

MODEL = "smollm2-135m"
RELEASE = 1
MONITORING = CHECKOUT / "infra/monitoring"
GATEWAY = "enginehouse_gateway_"
ABSENT = ("nv_trt_llm_",)
"""What only TensorRT-LLM's own backend has."""

grpc_client: Any = importlib.import_module("tritonclient.grpc")


@dataclass
class Scraped:
    """A Prometheus that reads the addresses of a node and a gateway. The others are where these are asked."""

    url: str
    addresses: dict[str, str]
    triton: str
    triton_grpc: str
    gateway: str
    gateway_grpc: str
    node: Served

    def ask(self, path: str, **query: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=query, timeout=30, trust_env=False).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return [(each["metric"], float(each["value"][1])) for each in self.ask("query", query=expression)["result"]]

    def text(self, name: str) -> str:
        return httpx.get(f"http://{self.addresses[name]}/metrics", timeout=30, trust_env=False).text

    def all_are_up(self) -> bool:
        with suppress(httpx.TransportError, ValueError):
            return len(self.query("up == 1")) == len(self.addresses)
        return False


def release_smollm2(node: Served, gguf: Path) -> None:
    """A public release of the real model, as a rebuild leaves it."""
    settings = ServingSettings("llamacpp", "engine/model.gguf", 4, 512, True, 60.0, contract=CONTRACT)
    folder = node.fleet.folder / "made"
    (folder / "engine").mkdir(parents=True)
    shutil.copyfile(gguf, folder / "engine" / "model.gguf")
    write_release(folder / "repository", settings)
    engine = Identity.of("build", 1, inputs={}, fields={"model": MODEL})
    repository = Identity.of("assemble", 1, inputs={"engine": engine}, fields={})
    node.fleet.publish("engine", MODEL, engine, folder / "engine")
    made = node.fleet.publish("repository", MODEL, repository, folder / "repository")

    def intent(number: int) -> Intent:
        return Intent(
            model=MODEL,
            release=number,
            repository=str(made),
            digest="d",
            recipe={},
            serving={"contract": CONTRACT, "request_timeout_s": 60},
            source="file:///nowhere",
            flow_run="some-run",
        )

    assert node.target.reserve(MODEL, intent).release == RELEASE
    node.target.conclude(MODEL, Result(release=RELEASE, state="passed"))
    node.target.move(MODEL, lambda current: current.promoted(RELEASE))


@pytest.fixture(scope="module")
def scraped(
    seaweedfs: tuple[str, str, str], smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scraped]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not here: Debian's package of this name")
    folder = tmp_path_factory.mktemp("scraped")
    url, access_key, secret_key = seaweedfs
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", url)
        patch.setenv("AWS_ACCESS_KEY_ID", access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", secret_key)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        bucket = Bucket.at(f"s3://{BUCKET}/scraped-{folder.parent.name}-{time.time_ns()}")
        fleet = Fleet(ArtifactStore(bucket), Target(bucket, "test"), folder / "fleet")
        watch = Watch([fleet.target])
        with served(fleet, folder / "one") as node, house(watch=watch) as gateway:
            watch.start()
            release_smollm2(node, smollm2_gguf)
            http, grpc, metrics, health = (f"127.0.0.1:{port}" for port in node.ports)
            made = Scraped(
                "",
                {
                    "enginehouse-triton": metrics,
                    "enginehouse-node": health,
                    "enginehouse-gateway": gateway.url.removeprefix("http://"),
                },
                f"http://{http}",
                grpc,
                gateway.url,
                gateway.grpc,
                node,
            )
            node.wait(lambda: gateway.generate("Hi", model=MODEL).status_code == 200, "answer", 240)
            with prometheus(program, folder, made):
                yield made


@contextmanager
def prometheus(program: str, folder: Path, scraped: Scraped) -> Generator[None]:
    jobs = [{"job_name": name, "static_configs": [{"targets": [where]}]} for name, where in scraped.addresses.items()]
    every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    document = {"global": every, "rule_files": [str(MONITORING / "alerts.yaml")], "scrape_configs": jobs}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(document))
    (port,) = free_ports(1)
    command = [program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
    scraped.url = f"http://127.0.0.1:{port}"
    try:
        until(scraped.all_are_up, "scrape of every address", 120)
        yield
    finally:
        process.terminate()
        process.wait(20)


def reported(scraped: Scraped) -> Look:
    """What the node says in the store."""
    report = scraped.node.target.node_report("one")
    assert report is not None
    return look([report])


@dataclass
class Sent:
    """What the clients know of their requests."""

    reasons: Counter[str] = field(default_factory=Counter[str])
    tokens_in: int = 0
    tokens_out: int = 0
    streams: int = 0
    by_gateway: int = 0

    def heard(self, tokens_in: int, tokens_out: int, reason: str, *, stream: bool, gateway: bool) -> None:
        self.reasons[reason] += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out
        self.streams += stream
        self.by_gateway += gateway


COUNTED = {"return_num_input_tokens": True, "return_num_output_tokens": True}
COUNT = "Count from one to ninety in English words, each on a line of its own."


def generate(url: str, sent: Sent, *, gateway: bool, **fields: Any) -> None:
    body = {"text_input": "Name three colours.", "temperature": 0.0, "max_tokens": 12, **COUNTED, **fields}
    streams = bool(fields.get("stream"))
    path = f"{url}/v2/models/{MODEL}/{'generate_stream' if streams else 'generate'}"
    answer = httpx.post(path, json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line] if streams else [answer.text]
    pieces = [json.loads(line) for line in lines]
    tokens_out = sum(piece["num_output_tokens"] for piece in pieces)
    sent.heard(pieces[-1]["num_input_tokens"], tokens_out, pieces[-1]["finish_reason"], stream=streams, gateway=gateway)


def chat(url: str, sent: Sent, *, stream: bool) -> None:
    messages = [{"role": "user", "content": "Name a colour."}]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "max_tokens": 12, "temperature": 0.0}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120, trust_env=False)
    assert answer.status_code == 200, answer.text
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    found = [json.loads(event) for event in events] if stream else [answer.json()]
    (usage,) = [each["usage"] for each in found if each.get("usage")]
    (reason,) = [choice["finish_reason"] for each in found for choice in each["choices"] if choice["finish_reason"]]
    sent.heard(usage["prompt_tokens"], usage["completion_tokens"], reason, stream=True, gateway=True)


def over_grpc(address: str, sent: Sent, *, gateway: bool) -> None:
    def tensor(name: str, datatype: str, value: object, kind: Any) -> Any:
        made = grpc_client.InferInput(name, [1, 1], datatype)
        made.set_data_from_numpy(np.array([[value]], dtype=kind))
        return made

    inputs = [
        tensor("text_input", "BYTES", b"Name a colour.", np.object_),
        tensor("max_tokens", "INT32", 12, np.int32),
        tensor("temperature", "FP32", 0.0, np.float32),
        *(tensor(name, "BOOL", True, np.bool_) for name in ("stream", *COUNTED)),
    ]
    found: list[Any] = []

    def note(result: Any, error: Any) -> None:
        found.append((result, error))

    client = grpc_client.InferenceServerClient(address)
    client.start_stream(callback=note)
    client.async_stream_infer(MODEL, inputs, enable_empty_final_response=True)
    until = time.monotonic() + 120
    while not (found and (found[-1][1] or found[-1][0].get_response().parameters["triton_final_response"].bool_param)):
        assert time.monotonic() < until
        time.sleep(0.02)
    client.close()
    assert not any(error for _, error in found)
    pieces = [result for result, _ in found if result.as_numpy("num_output_tokens") is not None]
    tokens_out = sum(int(piece.as_numpy("num_output_tokens").sum()) for piece in pieces)
    (tokens_in,) = {int(piece.as_numpy("num_input_tokens")[0, 0]) for piece in pieces}
    reason = pieces[-1].as_numpy("finish_reason")[0, 0].decode()
    sent.heard(tokens_in, tokens_out, reason, stream=True, gateway=gateway)


def leave(url: str, model: str) -> None:
    """A client over HTTP that is gone after its first piece."""
    body = {"text_input": COUNT, "max_tokens": 150, "temperature": 0.0, "stream": True}
    with httpx.stream(
        "POST", f"{url}/v2/models/{model}/generate_stream", json=body, timeout=60, trust_env=False
    ) as answer:
        next(answer.iter_lines())


def totals(scraped: Scraped) -> dict[str, float]:
    """Of the release, by the name of the sample; by its label where a counter has one."""
    found: dict[str, float] = {}
    for labels, value in scraped.query(f'{{__name__!~".*_bucket",model="{MODEL}",release=~"{RELEASE}|"}}'):
        label = labels.get("finished_reason") or labels.get("outcome")
        name = f"{labels['__name__']} {label}" if label else labels["__name__"]
        found[name] = found.get(name, 0) + value
    return found


def grown(after: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


def reasons(of: dict[str, float], name: str) -> dict[str, float]:
    return {key.removeprefix(f"{name} "): value for key, value in of.items() if key.startswith(f"{name} ")}


def settled(scraped: Scraped, ended: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The figures once they say that all has `ended`, and have said the same twice."""
    until, last = time.monotonic() + 120, {}
    while True:
        now = totals(scraped)
        if now == last and ended(now):
            return now
        assert time.monotonic() < until, now
        last = now
        time.sleep(1.2)


def test_figures_add_up_to_the_requests(scraped: Scraped) -> None:
    triton, gateway = scraped.triton, scraped.gateway
    grpc = {True: scraped.gateway_grpc, False: scraped.triton_grpc}
    before = settled(scraped, lambda now: now["num_requests_running"] == 0)
    tally = Tally(MODEL, RELEASE, reported(scraped))
    sent = Sent()
    work: list[Callable[[], None]] = []
    for url, by_gateway in ((triton, False), (gateway, True)):
        for fields in ({}, {"stream": True}, {"stop_words": ["e"]}, {"stream": True, "stop_words": ["a", "e"]}):
            work.append(lambda url=url, g=by_gateway, fields=fields: generate(url, sent, gateway=g, **fields))
        work.append(lambda g=by_gateway: over_grpc(grpc[g], sent, gateway=g))
    work += [lambda stream=stream: chat(gateway, sent, stream=stream) for stream in (False, True)]
    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(each) for each in work]:
            done.result()
    for url in (triton, gateway):
        assert httpx.post(f"{url}/v2/models/{MODEL}/generate", json={"text_input": "a", "max_tokens": 0}).is_error
    sent.reasons["invalid"] += 2

    def have_ended(now: dict[str, float]) -> bool:
        ends = reasons(grown(now, before), "request_finish_total")
        return sum(ends.values()) >= sent.reasons.total()

    answered = sent.reasons.total() - 2
    now = grown(settled(scraped, have_ended), before)
    assert reasons(now, "request_finish_total") == sent.reasons and sent.reasons["stop_words"] >= 2
    assert (now["request_success_total"], now["request_failure_total"]) == (answered, 2)
    assert (now["prompt_tokens_total"], now["generation_tokens_total"]) == (sent.tokens_in, sent.tokens_out)
    for name, total in (("request_prompt_tokens", sent.tokens_in), ("request_generation_tokens", sent.tokens_out)):
        assert (now[f"{name}_count"], now[f"{name}_sum"]) == (answered, total)
    for name in ("e2e_request_latency_seconds", "request_queue_time_seconds"):
        assert now[f"{name}_count"] == answered
    # An answer that is no stream and comes whole, on a busy machine, tells neither.
    assert sent.streams <= now["time_to_first_token_seconds_count"] <= answered
    assert sent.streams <= now["time_per_output_token_seconds_count"] + sent.reasons["stop_words"] <= answered + 4
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "time_per_output_token_seconds"):
        assert 0 <= now[f"{name}_sum"] < now["e2e_request_latency_seconds_sum"]
    assert now[f"{GATEWAY}requests_total ok"] == sent.by_gateway
    assert now[f"{GATEWAY}requests_total triton-refused"] == 1
    assert now[f"{GATEWAY}e2e_request_latency_seconds_count"] == sent.by_gateway
    assert sum(reasons(now, f"{GATEWAY}request_finish_total").values()) == sent.by_gateway

    def is_reported() -> bool:
        tally.add(reported(scraped))
        return sum(tally.observed.ended.values()) >= sent.reasons.total()

    until(is_reported, "report of what clients saw", 30)
    observed = tally.observed
    assert observed.ended == sent.reasons
    assert sum(observed.first.values()) == now["time_to_first_token_seconds_count"]
    assert sum(observed.gap.values()) == now["time_per_output_token_seconds_count"]


def test_clients_that_leave_are_counted(scraped: Scraped) -> None:
    before = settled(scraped, lambda now: now["num_requests_running"] == 0)
    leave(scraped.gateway, MODEL)
    # Triton tells a model itself of a client that is gone.
    llm = release_names(MODEL, RELEASE)[LLM]
    request = {"text_input": COUNT, "max_tokens": 150, "temperature": 0.0, "stream": True}
    with TritonClient(scraped.triton, grpc=scraped.triton_grpc).stream(llm, request) as pieces:
        next(iter(pieces))
    now = grown(settled(scraped, lambda now: now["num_requests_running"] == 0), before)
    ends = reasons(now, "request_finish_total")
    assert sum(ends.values()) == 2 and ends["cancelled"] >= 1
    assert now[f"{GATEWAY}requests_total client-left"] == 1
    assert now["time_to_first_token_seconds_count"] == 2 and now["generation_tokens_total"] >= 2


def test_every_query_of_the_dashboard_and_of_the_rules_is_answered(scraped: Scraped) -> None:
    document = json.loads((MONITORING / "dashboard.json").read_text())
    empty: list[str] = []
    for panel in document["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$model", ".*").replace("$__rate_interval", "5m")
            if not scraped.query(expression):
                empty.append(target["expr"])
    assert all(any(name in each for name in ABSENT) for each in empty), empty
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        scraped.query(rule["expr"])
    (evaluated,) = scraped.ask("rules")["groups"]
    assert {rule["health"] for rule in evaluated["rules"]} == {"ok"}
    assert [rule["name"] for rule in evaluated["rules"]] == [rule["alert"] for rule in group["rules"]]


def test_every_figure_of_the_table_is_there_and_promtool_finds_no_fault(scraped: Scraped) -> None:
    told = scraped.text("enginehouse-triton")
    for metric in METRICS:
        kind = "histogram" if metric.buckets else "counter" if metric.is_counter else "gauge"
        assert f"# TYPE {metric.name} {kind}" in told
    tool = shutil.which("promtool")
    assert tool is not None
    rules = subprocess.run([tool, "check", "rules", str(MONITORING / "alerts.yaml")], capture_output=True, text=True)
    assert rules.returncode == 0, rules.stderr
    for name in scraped.addresses:
        checked = subprocess.run([tool, "check", "metrics"], input=scraped.text(name), capture_output=True, text=True)
        # Triton's own names are not ours to change.
        faults = [line for line in checked.stderr.splitlines() if line and not line.startswith("nv_")]
        assert faults == [], f"{name}: {faults}"


def test_a_node_s_own_requests_are_in_no_figure(scraped: Scraped) -> None:
    name = release_names(MODEL, RELEASE)[LLM]
    asked = f'nv_inference_request_success{{model="{name}",version="1"}} '

    def of_triton() -> float:
        return float(scraped.text("enginehouse-triton").partition(asked)[2].partition("\n")[0])

    before, counted = of_triton(), totals(scraped)
    until(lambda: of_triton() > before, "request of the node's own", 90)
    time.sleep(2.5)
    assert grown(totals(scraped), counted).get("request_success_total", 0) == 0


def test_a_model_that_is_loaded_again_takes_no_figures_from_itself_and_ends_no_triton(scraped: Scraped) -> None:
    """Triton loads the new one before the old one ends, and what is deleted twice ends Triton."""
    llm = release_names(MODEL, RELEASE)[LLM]
    (triton,) = scraped.node.tritons()
    program = scraped.node.models / llm / "1" / "model.py"
    program.chmod(0o644)
    program.write_text(program.read_text() + "\n")
    scraped.node.triton.load(llm)

    def replicas() -> set[str]:
        own = scraped.query(f'num_request_max{{model="{MODEL}"}}')
        return {labels["replica"] for labels, _ in own}

    until(lambda: replicas() == {"0_0-1"}, "figures of the new one alone", 60)
    before = totals(scraped)
    generate(scraped.triton, Sent(), gateway=False)
    until(lambda: grown(totals(scraped), before).get("request_success_total") == 1, "request that is counted", 60)
    assert triton.is_running() and scraped.node.tritons() == [triton]
