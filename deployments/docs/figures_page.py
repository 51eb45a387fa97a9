"""Reference of the figures that Prometheus finds, and of the alerts on them, as the servers and the rules have them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import cast

import yaml

from deployments.docs.markdown import code, in_table, table
from deployments.gateway.figures import Figures
from deployments.node.figures import figures
from deployments.node.health import Health
from infra.settings import CHECKOUT
from tasks.serving.figures import METRICS, Metric

_ALERTS = CHECKOUT / "infra" / "monitoring" / "alerts.yaml"
_HEAD = """\
# Figures, alerts

What they mean to whom, their labels, and what each kind of model tells is in [Figures](../how-to/figures.md).
"""
_SHOWN = re.compile(r"# HELP (?P<name>\S+) (?P<help>.*)\n# TYPE \S+ (?P<type>\S+)")


def figures_page() -> Iterator[str]:
    """The lines of the page."""
    yield from _HEAD.splitlines()
    yield ""
    for title, rows in (
        ("Of a release, at its node's Triton", [_row(metric.name, _kind(metric), metric.help) for metric in METRICS]),
        ("Of the gateway", [*_served(Figures().text())]),
        ("Of a node", [*_served(figures(Health(node="", target="", ready=True)))]),
    ):
        yield from (f"## {title}", "")
        yield from table(("figure", "type", "meaning"), rows)
    yield from ("## Alerts", "", "`infra/monitoring/alerts.yaml` has the rules.", "")
    yield from table(("alert", "after", "says", "what to do first"), _alerts())


def _kind(metric: Metric) -> str:
    return "histogram" if metric.buckets else "counter" if metric.is_counter else "gauge"


def _row(name: str, kind: str, words: str) -> tuple[str, str, str]:
    return code(name), kind, in_table(words)


def _served(text: bytes) -> Iterator[tuple[str, str, str]]:
    """The figures of a server's own answer, without the moments at which counters began."""
    for found in _SHOWN.finditer(text.decode()):
        if not found["name"].endswith("_created"):
            yield _row(found["name"], found["type"], found["help"])


def _alerts() -> Iterator[tuple[str, str, str, str]]:
    document = yaml.safe_load(_ALERTS.read_text())
    for rule in (rule for group in document["groups"] for rule in group["rules"]):
        told = cast("dict[str, str]", rule["annotations"])
        yield code(rule["alert"]), str(rule.get("for", "")), _words(told["summary"]), _words(told["action"])


def _words(text: str) -> str:
    """A sentence of a rule, where `{{ $labels.model }}` stands for the model."""
    return in_table(re.sub(r"\{\{ \$(?:labels\.)?(\w+)[^}]*\}\}", r"«\1»", text))
