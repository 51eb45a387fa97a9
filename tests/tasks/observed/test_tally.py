"""What all nodes of a target count of one release, between two moments."""

from __future__ import annotations

import json

from tasks.observed.tally import Look, Tally, look, total
from tasks.targets.node_report import NodeReport
from tasks.targets.observed import NodeObserved, Observed


def node(stopped: int, epoch: str = "a", failed: int = 0, release: int = 7) -> NodeObserved:
    ended = {"stop": stopped, **({"internal": failed} if failed else {})}
    return NodeObserved(epoch=epoch, models={"chat": {release: Observed(ended=ended, first={"0.04": stopped})}})


def ends(observed: Observed) -> dict[str, int]:
    return observed.ended


def test_nodes_add_up_and_one_that_starts_again_counts_from_zero() -> None:
    first: Look = {"one": node(10), "two": node(5)}
    tally = Tally("chat", 7, first)
    assert ends(tally.add({"one": node(12), "two": node(5)})) == {"stop": 2}
    assert ends(tally.add({"one": node(3, "b", failed=1), "two": node(6)})) == {"internal": 1, "stop": 4}
    assert ends(tally.add({"two": node(6)})) == {}, "a node that is away"
    assert ends(tally.add({"one": node(4, "b", failed=1), "two": node(6)})) == {"stop": 1}
    assert ends(tally.observed) == {"internal": 1, "stop": 7}
    assert tally.observed.first == {"0.04": 7}


def test_a_new_node_counts_from_its_second_look_and_a_release_that_nobody_asked_is_zero() -> None:
    tally = Tally("chat", 8, {"one": node(10)})
    assert not tally.add({"one": node(11), "new": node(100, release=8)})
    assert ends(tally.add({"one": node(11), "new": node(103, release=8)})) == {"stop": 3}


def test_counters_that_began_again_within_an_epoch_are_seen() -> None:
    tally = Tally("chat", 7, {"one": node(10)})
    assert ends(tally.add({"one": node(4)})) == {"stop": 4}


def test_reports_of_before_have_nothing_and_old_readers_go_on() -> None:
    report = NodeReport(
        node="one",
        target="t",
        http="",
        grpc="",
        triton_pid=1,
        memory_total_bytes=1,
        memory_available_bytes=1,
        observed=node(3),
    )
    assert NodeReport.read(report.model_dump_json().encode()) == report
    assert total(look([report]), "chat", 7).ended == {"stop": 3}
    document = json.loads(report.model_dump_json())
    del document["observed"]
    assert look([NodeReport.read(json.dumps(document).encode())]) == {}
