"""Alert rules, scrape configurations and the dashboard, without a running stack."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from deployments.gateway.figures import Figures
from deployments.node.figures import figures
from deployments.node.health import Health
from infra.settings import CHECKOUT
from tasks.serving.figures import CACHE, METRICS, RUNNING, WAITING

MONITORING = CHECKOUT / "infra/monitoring"
ALERTS = MONITORING / "alerts.yaml"

RELEASE = 'model="chat",release="7",instance="one"'
FIRING: dict[str, dict[str, str]] = {
    "EnginehouseNoTokens": {
        f"num_requests_running{{{RELEASE}}}": "1x30",
        f"num_requests_waiting{{{RELEASE}}}": "0x30",
        f"generation_tokens_total{{{RELEASE}}}": "100x30",
        f'request_finish_total{{{RELEASE},finished_reason="stop"}}': "4x30",
    },
    "EnginehouseErrors": {
        f'request_finish_total{{{RELEASE},finished_reason="stop"}}': "0+60x30",
        f'request_finish_total{{{RELEASE},finished_reason="internal"}}': "0+6x30",
    },
    "EnginehouseGatewayErrors": {
        'enginehouse_gateway_requests_total{model="chat",outcome="ok"}': "0+60x30",
        'enginehouse_gateway_requests_total{model="chat",outcome="node-lost"}': "0+6x30",
    },
    "EnginehouseFirstTokenSlow": {
        f'time_to_first_token_seconds_bucket{{{RELEASE},le="5"}}': "0+1x30",
        f'time_to_first_token_seconds_bucket{{{RELEASE},le="10"}}': "0+9x30",
        f'time_to_first_token_seconds_bucket{{{RELEASE},le="+Inf"}}': "0+9x30",
    },
    "EnginehouseQueue": {
        f"num_requests_waiting{{{RELEASE}}}": "9x30",
        f"num_request_max{{{RELEASE}}}": "4x30",
    },
    "EnginehouseNodeNotReady": {'enginehouse_node_ready{instance="one"}': "0x30"},
    "EnginehouseModelNotReady": {'enginehouse_node_model_ready{instance="one",model="chat"}': "0x30"},
    "EnginehouseStoreAway": {'enginehouse_gateway_state_stale{instance="one"}': "1x30"},
    "EnginehouseTargetDown": {'up{instance="one",job="enginehouse-node"}': "0x30"},
}
"""By alert, series of a minute a step in which it fires."""

QUIET: dict[str, dict[str, str]] = {
    "EnginehouseNoTokens": FIRING["EnginehouseNoTokens"] | {f"generation_tokens_total{{{RELEASE}}}": "0+10x30"},
    "EnginehouseErrors": {
        f'request_finish_total{{{RELEASE},finished_reason="stop"}}': "0+600x30",
        f'request_finish_total{{{RELEASE},finished_reason="internal"}}': "0+6x30",
        f'request_finish_total{{{RELEASE},finished_reason="cancelled"}}': "0+600x30",
    },
    "EnginehouseQueue": FIRING["EnginehouseQueue"] | {f"num_requests_waiting{{{RELEASE}}}": "8x30"},
    "EnginehouseFirstTokenSlow": {
        f'time_to_first_token_seconds_bucket{{{RELEASE},le="5"}}': "0+9x30",
        f'time_to_first_token_seconds_bucket{{{RELEASE},le="+Inf"}}': "0+9x30",
    },
    "EnginehouseStoreAway": {
        'enginehouse_gateway_state_stale{instance="one"}': "0x30",
        'enginehouse_node_state_stale{instance="two"}': "0x30",
    },
}


@pytest.fixture(scope="module")
def promtool() -> str:
    if (found := shutil.which("promtool")) is None:
        pytest.skip("promtool is not here: Debian's package prometheus")
    return found


def rules() -> list[dict[str, Any]]:
    (group,) = cast("dict[str, Any]", yaml.safe_load(ALERTS.read_text()))["groups"]
    return group["rules"]


def test_each_alert_says_what_to_do() -> None:
    assert [rule["alert"] for rule in rules()] == list(FIRING)
    for rule in rules():
        assert set(rule["annotations"]) == {"summary", "action"} and rule["for"]
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_each_alert_fires_when_it_should_and_not_else(promtool: str, tmp_path: Path) -> None:
    def case(of_alerts: dict[str, dict[str, str]], fires: bool) -> dict[str, Any]:
        found = [
            # Each with a model and an instance of its own.
            {"series": one.replace('"chat"', f'"{name}"').replace('"one"', f'"{name}"'), "values": values}
            for name, series in of_alerts.items()
            for one, values in series.items()
        ]
        expected = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in of_alerts] if fires else []
        expression = 'count by (alertname) (ALERTS{alertstate="firing"})'
        return {
            "interval": "1m",
            "input_series": found,
            "promql_expr_test": [{"expr": expression, "eval_time": "20m", "exp_samples": expected}],
        }

    test = tmp_path / "test.yaml"
    cases = [case(FIRING, True), case(QUIET, False)]
    test.write_text(yaml.safe_dump({"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": cases}))
    done = subprocess.run([promtool, "test", "rules", str(test)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def scrapes(name: str) -> dict[str, dict[str, Any]]:
    document = cast("dict[str, Any]", yaml.safe_load((MONITORING / name).read_text()))
    return {job["job_name"]: job for job in document["scrape_configs"]}


def test_the_scrape_configurations_are_prometheus_s(promtool: str, tmp_path: Path) -> None:
    shutil.copy(ALERTS, tmp_path)
    for name in ("prometheus-compose.yaml", "prometheus-kubernetes.yaml"):
        document = cast("dict[str, Any]", yaml.safe_load((MONITORING / name).read_text()))
        for job in document["scrape_configs"]:
            # Debian builds its Prometheus without a cluster's discovery.
            job.pop("kubernetes_sd_configs", None)
        (tmp_path / name).write_text(yaml.safe_dump(document))
        done = subprocess.run([promtool, "check", "config", str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_scraped_is_what_the_services_listen_on() -> None:
    compose = cast("dict[str, Any]", yaml.safe_load((CHECKOUT / "infra/compose.yaml").read_text()))["services"]
    node = compose["node"]["environment"]
    targets = {job: each["static_configs"][0]["targets"] for job, each in scrapes("prometheus-compose.yaml").items()}
    assert targets == {
        "enginehouse-triton": [f"node:{node['ENGINEHOUSE_NODE_METRICS_PORT']}"],
        "enginehouse-node": [f"node:{node['ENGINEHOUSE_NODE_HEALTH_PORT']}"],
        "enginehouse-gateway": ["gateway:8080"],
    }
    pods = {
        document["spec"]["template"]["metadata"]["labels"]["app"]: {
            port["name"]
            for container in document["spec"]["template"]["spec"]["containers"]
            for port in container.get("ports", ())
        }
        for name in ("node", "gateway")
        for document in yaml.safe_load_all((CHECKOUT / f"infra/kubernetes/{name}.yaml").read_text())
        if document["kind"] in ("StatefulSet", "Deployment")
    }
    for job in scrapes("prometheus-kubernetes.yaml").values():
        app, port = (each["regex"] for each in job["relabel_configs"] if each.get("action") == "keep")
        assert port in pods[app], f"{app} has the ports {pods[app]}"


def panels() -> Iterator[dict[str, Any]]:
    yield from json.loads((MONITORING / "dashboard.json").read_text())["panels"]


def test_the_panels_of_the_dashboard_fit_and_ask_its_own_variables() -> None:
    document = json.loads((MONITORING / "dashboard.json").read_text())
    variables = {each["name"] for each in document["templating"]["list"]} | {"__rate_interval"}
    taken: set[tuple[int, int]] = set()
    ids: list[int] = []
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
        ids.append(panel["id"])
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables
    assert len(ids) == len(set(ids)) > 10


PROTOCOL = {
    "TotalQueuedRequests": (WAITING.name, "nv_trt_llm_request_metrics{request_type=waiting}"),
    "TotalRunningRequests": (RUNNING.name, "nv_trt_llm_request_metrics{request_type=scheduled}"),
    "KVCacheUtilization": (CACHE.name, "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}"),
    "BlockSize": ("not given", "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=tokens_per}"),
    "NumGPUBlocks": ("not given", "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=max}"),
    "LoRA": ("not given", "not given"),
}
"""Each line of the model server protocol of the Gateway API Inference Extension (proposal 003): what our engines give,
and what it asks of a Triton with TensorRT-LLM's backend."""


def test_the_inference_extension_finds_each_line_of_its_protocol_or_is_told_that_it_is_not_there() -> None:
    rows = {
        cells[0].split(" ")[0].rstrip(":"): cells
        for line in (CHECKOUT / "docs/how-to/figures.md").read_text().partition("## The Gateway API")[2].splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split(" | ")]) == 3
    }
    for line, (ours, of_backend) in PROTOCOL.items():
        assert ours in rows[line][1] and of_backend in rows[line][2], line
    gauges = {metric.name for metric in METRICS if not metric.buckets and not metric.is_counter}
    assert {ours for ours, _ in PROTOCOL.values()} - {"not given"} <= gauges, "the protocol wants gauges"


def names_of_ours() -> set[str]:
    """Every figure, by the name of its family."""
    told = Figures().text().decode() + figures(Health(node="one", target="local", ready=True)).decode()
    found = {line.split()[2] for line in told.splitlines() if line.startswith("# TYPE ")}
    return {metric.name for metric in METRICS} | {name for name in found if not name.endswith("_created")}


def test_the_page_has_every_figure_and_no_other() -> None:
    page = (CHECKOUT / "docs/how-to/figures.md").read_text().partition("## The Gateway API")[0]
    named = {
        name
        for line in page.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert named == names_of_ours()


def test_rules_and_panels_ask_for_figures_that_there_are() -> None:
    expressions = [rule["expr"] for rule in rules()]
    expressions += [target["expr"] for panel in panels() for target in panel.get("targets", ())]
    known = names_of_ours() | {"up", "nv_trt_llm_kv_cache_block_metrics"}
    for expression in expressions:
        bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|by \([^)]*\)", " ", expression)
        asked = {re.sub(r"_bucket$", "", name) for name in re.findall(r"\b[a-z][a-z0-9]*_[a-z0-9_]+\b", bare)}
        assert asked - {"histogram_quantile"} <= known, expression
