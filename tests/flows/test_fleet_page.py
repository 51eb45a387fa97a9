"""The page of the fleet in the Prefect UI."""

from __future__ import annotations

import re
from dataclasses import replace

from flows.fleet_page import page
from tasks.explain.fleet_view import Fleet, ModelRow, Newest, NodeRow, Run
from tasks.explain.staleness import Stale
from tasks.report.fleet_words import cells, details

RUN = Run("1f0c2f6e-33aa-4d2b-9d0f-000000000001", "rebuild", "llama3", "Running", 190.0)
LIVE = ModelRow(
    model="llama3",
    target="east",
    labels={},
    file="there",
    release=7,
    kind="trt-engine",
    runtime="1.1.0",
    age_s=3 * 86400.0,
    verdict="passed",
    watch="",
    newest=Newest(8, "refused", 310.0, "an answer with a | and a <b>"),
    nodes_ready=1,
    nodes=2,
    stale=(Stale("version", "TensorRT-LLM 1.2.1 is accepted"),),
    runs=(RUN,),
    alerts=("node two: no memory",),
)
NEVER = replace(LIVE, model="new", release=None, age_s=None, newest=None, nodes_ready=0, stale=(), runs=(), alerts=())
FLEET = Fleet((LIVE, NEVER), (NodeRow("two", "east", "silent", 320.0),), broken={}, runs=(RUN,))


def test_it_tells_what_status_tells_with_links() -> None:
    shown = page(FLEET)
    assert "## target east, 1 node" in shown
    # The same words as at a terminal; what others wrote is no markup.
    told = re.sub(r"&#(\d+);", lambda found: chr(int(found[1])), shown)
    for row in FLEET.models:
        assert all(cell in told for cell in cells(row))
        assert all(f"- {row.model}, **{each.label}**: " in told and each.text in told for each in details(row))
    assert "<b>" not in shown and "a | and" not in shown
    assert "| [llama3](../key/report-llama3-east) | @7 |" in told
    assert f"(../../runs/flow-run/{RUN.id})" in shown
    assert "| new | - |" in told  # never released: there is no report
    assert "node two of east: is silent for 5 min" in told


def test_an_empty_fleet_says_so() -> None:
    assert "no model is shown" in page(replace(FLEET, models=(), nodes=()))
