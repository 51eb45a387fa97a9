"""The history of a model: in the store's order, bounded, and whole although processes die between move and record."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from infra.errors import TritonError, UsageError
from tasks.explain.history import Event, history, history_lines
from tasks.steps.promote import promote, roll_back
from tasks.targets.approval import Approval
from tasks.targets.approvals import Approvals
from tasks.targets.current import Current
from tasks.targets.move import Move
from tasks.targets.move_records import MoveRecords
from tasks.targets.traffic import Shift, shift
from tests.fleet import Fleet


def told(fleet: Fleet, limit: int = 100) -> list[tuple[str, int | None, int | None]]:
    events = history(fleet.target, "tiny", limit).events
    return [(event.what, event.release, event.instead_of) for event in events]


def a_move(number: int, release: int) -> Move:
    return Move(number=number, kind="promoted", release=release, instead_of=None, by="somebody@host")


def moved(move: Callable[[], object]) -> None:
    """Have the name moved. No node is there to follow, which is said after the move."""
    with pytest.raises(TritonError) as caught:
        move()
    assert caught.value.code == "no-live-node"


def promoted(fleet: Fleet, release: int, run: str = "") -> None:
    moved(lambda: promote(fleet.target, "tiny", release, flow_run=run))


@pytest.fixture
def three(fleet: Fleet) -> Fleet:
    """Two releases that passed and one that was refused, of one repository; none is public."""
    made = fleet.rebuild()
    for passed in (True, True, False):
        fleet.release(made, passed=passed, public=False)
    return fleet


def test_it_tells_who_moved_the_name_when_and_why(three: Fleet) -> None:
    promoted(three, 1, "run-1")
    promoted(three, 2, "run-2")
    promoted(three, 2, "run-3")  # moves nothing, and is no event
    moved(lambda: roll_back(three.target, "tiny", flow_run="run-4", reason="slow\nat night"))
    moves = [event for event in told(three) if event[0] in ("promoted", "rolled back")]
    assert moves == [("rolled back", 1, 2), ("promoted", 2, 1), ("promoted", 1, None)]
    assert {*told(three)} >= {("made", 1, None), ("passed", 2, None), ("refused", 3, None)}
    found = history(three.target, "tiny")
    newest = next(event for event in found.events if event.what == "rolled back")
    assert (newest.run, newest.reason) == ("run-4", "slow\nat night") and "@" in newest.by
    line = next(line for line in history_lines(found) if "rolled back" in line)
    assert line.endswith(f"release 1 instead of 2  {newest.by}, run run-4  slow at night")
    record = MoveRecords(three.target, "tiny").read(3)
    assert record is not None and (record.kind, record.release, record.instead_of) == ("rolled back", 1, 2)
    document = found.document()
    assert document["earlier"] == 0 and isinstance(document["events"], list) and len(document["events"]) == 9


def test_a_move_whose_writer_died_is_told_and_recorded_by_the_next(three: Fleet) -> None:
    promoted(three, 1)
    three.target.bucket.delete("targets/test/tiny/moves/000001.json")  # as if it had died before
    assert ("promoted", 1, None) in told(three)
    promoted(three, 2)
    records = MoveRecords(three.target, "tiny")
    first, second = records.read(1), records.read(2)
    assert first is not None and second is not None and (first.release, second.release) == (1, 2)


def test_the_wanted_state_carries_moves_until_they_are_recorded() -> None:
    moved = Current().with_move(a_move(1, 1), recorded=0).with_move(a_move(1, 2), recorded=0)
    assert [(each.number, each.release) for each in moved.moves] == [(1, 1), (2, 2)]
    assert [each.number for each in moved.with_move(a_move(1, 3), recorded=2).moves] == [3]
    # An earlier version dropped what it does not know: the number goes on from the records.
    assert [each.number for each in Current().with_move(a_move(1, 3), recorded=7).moves] == [8]


def test_numbers_go_on_where_an_earlier_version_has_written_the_wanted_state(three: Fleet) -> None:
    promoted(three, 1)
    three.target.move("tiny", lambda current: current.model_copy(update={"moves": ()}))
    promoted(three, 2)
    second = MoveRecords(three.target, "tiny").read(2)
    assert second is not None and second.release == 2


def test_it_tells_who_decided_and_what_became_of_a_canary(three: Fleet) -> None:
    shift(three.target, "tiny", 2).create(
        Shift(release=2, strategy="canary", state="refused", reason="too slow", share=0.5)
    )
    refused = next(event for event in history(three.target, "tiny").events if event.reason == "canary: too slow")
    assert (refused.what, refused.release) == ("refused", 2)
    Approvals(three.target, "tiny", 1).decide(Approval(release=1, state="approved", by="ann@desk", note="looks right"))
    decided = next(event for event in history(three.target, "tiny").events if event.what == "approved")
    assert (decided.release, decided.by, decided.reason) == (1, "ann@desk", "looks right")


def test_only_the_newest_are_read(three: Fleet) -> None:
    found = history(three.target, "tiny", 2)
    assert (len(found.events), found.earlier) == (2, 4)
    assert [*history_lines(found)][-1] == "4 earlier records; --limit shows more"
    with pytest.raises(UsageError) as caught:
        history(three.target, "nothing")
    assert caught.value.code == "release-missing"


def test_an_event_is_told_on_one_line(three: Fleet) -> None:
    found = history(three.target, "tiny")
    assert all(isinstance(event, Event) for event in found.events)
    assert all("\n" not in line for line in history_lines(found))
