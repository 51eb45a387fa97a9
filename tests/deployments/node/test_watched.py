"""Releases on a real Triton that are well when they are promoted, and later are not: the watch gives the name back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.errors import GateRefused
from tasks.models.spec import Model
from tasks.steps import promote as promoting
from tasks.steps.watch import begin, watch
from tasks.targets.target import Target
from tasks.targets.watch_record import WatchOutcome, WatchRecords
from tests.deployments.node.served import Served, served
from tests.fleet import Fleet

pytestmark = [pytest.mark.slow, pytest.mark.long]

NAME = "tiny"
LEAKS = """
def leak():
    held = []
    while True:
        held.append(b"x" * (2 << 20))
        time.sleep(0.4)

threading.Thread(target=leak, daemon=True).start()
"""
MODEL = Model.model_validate(
    {
        "name": NAME,
        "source": {"uri": "hf://org/base@main"},
        "recipe": {"kind": "llamacpp"},
        "prompts": [{"name": "name", "text": "what", "max_tokens": 4, "expect": {"contains": [NAME]}}],
        "watch": {"for": 200, "probe_every": 5},
    }
)


DIES = "threading.Timer(60, lambda: os._exit(3)).start()"


@pytest.fixture
def node(fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    # The store has no whole repository of these models, which is for rollbacks to look at.
    monkeypatch.setattr(promoting, "_require_servable", Target.intent)
    with served(fleet, tmp_path / "home") as made:
        made.release(NAME)
        made.wait_for(NAME, 1)
        yield made


def returned(node: Served, begin_with: str) -> WatchOutcome:
    """What comes of the watch over a release that runs this once it is loaded."""
    node.release(NAME, begin=begin_with, public=False)
    node.wait(lambda: node.state(NAME, 2) == "ready", "candidate")
    begin(node.target, MODEL, 2)
    node.target.move(NAME, lambda current: current.promoted(2))
    node.wait_for(NAME, 2)
    with pytest.raises(GateRefused) as refused:
        watch(node.target, MODEL, 2, say=print)
    assert refused.value.code == "watch-returned"
    node.wait_for(NAME, 1, 10)
    outcome = WatchRecords(node.target, NAME).outcome(2)
    assert outcome is not None and outcome.state == "returned"
    return outcome


def test_a_slow_leak_of_memory_is_returned(node: Served) -> None:
    """Every client gets an answer all the time."""
    outcome = returned(node, LEAKS)
    assert outcome.reason.startswith("memory of its processes"), outcome
    assert outcome.probes > 5 and all(each.p_worse > 0.5 for each in outcome.comparisons[:-1])
    assert outcome.comparisons[-1].candidate > outcome.comparisons[-1].other > 0


def test_a_crash_after_a_minute_is_returned(node: Served) -> None:
    outcome = returned(node, DIES)
    assert outcome.seconds > 30 and "died" in outcome.reason, outcome
