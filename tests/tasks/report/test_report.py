"""The report of fixed records, in its three forms: by a snapshot, without a byte that does something, and bounded."""

from __future__ import annotations

import os
import re
from html.parser import HTMLParser
from pathlib import Path

import markdown as markdown_library
import pytest

from infra.s3.bucket import Bucket
from tasks.report.html import page
from tasks.report.markdown import markdown
from tasks.report.release import ReleaseReport, read_report
from tasks.report.sections import sections, title
from tasks.report.shown import shown
from tasks.report.stored import keep_page, page_of
from tasks.report.text import drawn, lines
from tasks.targets.approval import Approval
from tasks.targets.approvals import Approvals
from tasks.targets.current import Current
from tasks.targets.gate_record import Differing, Evidence, Figure, PromptResult
from tasks.targets.gate_records import GateRecords
from tasks.targets.observed import Observed
from tasks.targets.release import Result
from tasks.targets.target import Target
from tasks.targets.traffic import Canary, Traffic
from tasks.targets.watch_record import Watching
from tests.tasks.report.made_report import (
    after_the_gates,
    comparison,
    gate_records,
    histogram,
    intent,
    made_report,
    result_of,
)

PASSED = Result(release=7, state="passed", live=6)
_SNAPSHOTS = Path(__file__).parent / "snapshots"
HOSTILE = '</pre><script>alert(1)</script><img src=x onerror="a()">\x1b[2J\u202e" onload="b() &lt; ]]> --> ``` | `x`'


class _Elements(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def printed(report: ReleaseReport) -> str:
    return "\n".join(lines(title(report), sections(report))) + "\n"


def hostile() -> ReleaseReport:
    """Every text that somebody else writes does its worst."""
    prompt = PromptResult(prompt=HOSTILE, node="n", passed=False, answer=HOSTILE, seconds=1, failures=(HOSTILE,))
    evidence = Evidence(
        comparisons=(comparison(measure=HOSTILE, method=HOSTILE, unit=HOSTILE),),
        failures=(HOSTILE,),
        gaps=(HOSTILE,),
        figures=(Figure(name=HOSTILE, unit=HOSTILE, candidate=1),),
        histograms=(histogram().model_copy(update={"measure": HOSTILE, "unit": HOSTILE}),),
        differing=(Differing(question=HOSTILE, candidate=HOSTILE, other=HOSTILE + "?", note=HOSTILE),),
        prompts=(prompt,),
        notes=(HOSTILE,),
    )
    records = tuple(record.model_copy(update={"evidence": evidence}) for record in gate_records())
    before = made_report()
    told = before.intent.model_copy(update={"source": HOSTILE, "adapters": {HOSTILE: HOSTILE}})
    after = after_the_gates()
    return made_report(
        intent=told,
        gates=records,
        result=result_of(records),
        why=HOSTILE,
        request=after["request"],
        approval=after["approval"].model_copy(update={"by": HOSTILE, "note": HOSTILE}),
        shift=after["shift"].model_copy(update={"strategy": HOSTILE, "reason": HOSTILE}),
        watch=after["watch"].model_copy(update={"reason": HOSTILE, "observed": Observed(ended={HOSTILE: 1})}),
    )


@pytest.mark.parametrize("form", ["html", "md", "txt"])
def test_the_report_is_as_in_the_snapshot(form: str) -> None:
    report = made_report()
    text = {
        "html": lambda: page_of(report),
        "md": lambda: markdown(title(report), sections(report)),
        "txt": lambda: printed(report),
    }[form]()
    snapshot = _SNAPSHOTS / f"report.{form}"
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.write_text(text, encoding="utf-8")
    assert text == snapshot.read_text(encoding="utf-8")


def test_the_verdict_stands_first_and_the_commands_last() -> None:
    found = sections(made_report())
    assert [found[0].title, found[-1].title] == ["Verdict", "Commands"]
    text = printed(made_report())
    assert text.splitlines()[3].startswith("  refused: performance: time_to_first_token 131 %")
    assert "enginehouse why tiny@7 --against tiny@6 --target prod" in text
    assert "enginehouse rollback" not in text  # it was refused, and is not live


def test_what_has_no_verdict_yet_and_no_release_before() -> None:
    report = made_report(result=None, gates=(), before=None, why="", made_of=())
    text = printed(report)
    assert "open: no gate has decided yet" in text and "No release was live." in text
    assert page_of(report).count("<section>") == len(sections(report))


def test_the_page_runs_nothing_and_asks_for_nothing_whatever_was_recorded() -> None:
    harmless = _Elements(page_of(made_report()))
    found = _Elements(page_of(hostile()))
    assert {tag for tag, _ in found.elements} <= {tag for tag, _ in harmless.elements}
    for tag, attributes in found.elements:
        assert tag not in ("script", "img", "iframe", "link", "a", "form")
        assert not {"src", "href", "style", "srcset"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert "<script>alert(1)</script>" in found.text  # it is there, to be read
    assert "\x1b" not in page_of(hostile()) and "\u202e" not in page_of(hostile())


def test_a_terminal_gets_no_character_that_does_something() -> None:
    text = printed(hostile())
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text) and "\\x1b[2J" in text
    assert printed(made_report()).isprintable() or "\x1b" not in text


def test_markdown_shows_what_was_recorded_and_means_none_of_it() -> None:
    text = markdown(title(hostile()), sections(hostile()))
    made = markdown_library.markdown(text, extensions=["tables", "fenced_code"])
    elements = _Elements(made).elements
    assert not {"script", "img", "a", "iframe"} & {tag for tag, _ in elements}
    assert not any(name.startswith("on") for _, attributes in elements for name in attributes)


def test_a_release_with_too_much_to_tell_has_a_page_of_a_bounded_size() -> None:
    long = "x<" * 50_000
    evidence = Evidence(
        comparisons=tuple(comparison(measure=long) for _ in range(500)),
        figures=tuple(Figure(name=long, candidate=1) for _ in range(500)),
        histograms=(histogram(),) * 100,
        differing=tuple(Differing(question=long, candidate=long, other=long, note=long) for _ in range(100)),
        notes=(long,) * 500,
    )
    report = made_report(gates=(gate_records()[1].model_copy(update={"evidence": evidence}),))
    text = page(title(report), sections(report))
    assert len(text) < 1_000_000 and "440 more comparisons are in its record, gates/agreement.json" in text
    assert "80 more pairs are in its record, gates/agreement.json" in text


def test_a_text_is_cut_with_the_number_of_what_is_left_out() -> None:
    assert shown("abc", 3) == "abc"
    assert shown("abcd" * 1000, 3) == "abc … and 3,997 more characters"
    assert shown("a\r\nb\x00\x9b\ud800") == "a\nb\\x00\\x9b\\ud800"


def test_an_interval_is_drawn_where_it_lies() -> None:
    assert re.fullmatch(r"!─*├?.*●.*", drawn(comparison()))
    better = drawn(comparison(difference=0.03, lower=0.02, upper=0.04, margin=0.01))
    assert better.index("!") < better.index("|") < better.index("├") < better.index("●") < better.index("┤")
    unknown = drawn(comparison(lower=None, upper=None))
    assert unknown[0] == "←" and unknown[-1] == "→"


def test_what_came_after_the_gates_is_told_in_its_order() -> None:
    report = made_report(**after_the_gates(), result=PASSED)
    titles = [section.title for section in sections(report)]
    assert titles[5:] == ["Approval", "Requests as a candidate", "Watch", "Made from", "Commands"]
    text = printed(report)
    assert "ada@desk" in text and "looked at <b>both</b>" in text and "2026-05-04 03:02:01 UTC" in text
    assert "passed: canary, at last 25.0% of the requests" in text
    assert "refused: returned after 93 s: errors 5.8 %, and 0.1 % before" in text
    assert "Release 6 got the public name back." in text and "ended with internal" in text and "191" in text
    assert "looked at &lt;b&gt;both&lt;/b&gt;" in page_of(report) and "<b>" not in page_of(report)
    assert "&#60;b&#62;both" in markdown(title(report), sections(report))


def test_what_goes_on_now_is_told_too() -> None:
    waiting = {"request": after_the_gates()["request"], "current": Current(public=6, candidates=(7,))}
    traffic = Traffic(canary=Canary(release=7, share=0.05))
    report = made_report(**waiting, result=PASSED, traffic=traffic)
    text = printed(report)
    assert report.state == "waiting" and "Nobody has decided yet." in text and "within 24 h" in text
    assert "Now: 5.0% of the requests go to it." in text
    watched = printed(made_report(result=PASSED, watching=Watching(release=7, previous=6)))
    assert "Now: it is watched, with release 6 to give the name back to." in watched


def test_a_release_that_its_canary_refused_did_not_pass() -> None:
    refused = after_the_gates()["shift"].model_copy(update={"state": "refused", "reason": "errors 9 %"})
    report = made_report(shift=refused, result=PASSED)
    text = printed(report)
    assert report.state == "refused" and "Now: refused." in text and "at last 25.0% of the requests: errors 9 %" in text
    assert "enginehouse rollback tiny --to 7" not in text
    assert "enginehouse rollback tiny --to 7" in printed(made_report(result=PASSED))


@pytest.fixture
def target(bucket: Bucket) -> Target:
    return Target(bucket, "prod")


def test_it_is_read_from_the_records_and_kept_once(target: Target) -> None:
    made = target.reserve("tiny", lambda number: intent(release=number, live=None))
    for record in gate_records():
        GateRecords(target, "tiny", made.release).create(record)
    target.conclude("tiny", result_of(gate_records()).model_copy(update={"release": made.release}))
    report = read_report(target, made, now=False)
    assert (report.state, report.before, report.why) == (None, None, "")
    assert [gate.gate for gate in report.gates] == sorted(["smoke", "agreement", "performance"])
    assert [(str(each.ref), each.manifest) for each in report.made_of] == [(made.repository, None)]
    assert keep_page(target, report) and not keep_page(target, report)
    stored = target.bucket.get("targets/prod/tiny/1/report.html")
    assert stored is not None and stored.body.decode() == page_of(read_report(target, made, now=False))
    assert target.releases("tiny") == [1] and target.listed().models == {}  # nobody takes it for another record
    target.bucket.put("targets/prod/tiny/1/shift.json", b"{}")
    target.bucket.put("targets/prod/tiny/traffic.json", b"[]")  # each costs its own part of the report
    decided = Approval(release=1, state="rejected", by="ada@desk", created=intent().created)
    Approvals(target, "tiny", 1).decide(decided)
    now = read_report(target, made, now=True)
    assert (now.shift, now.traffic, now.watching, now.approval) == (None, None, None, decided)
    assert (now.state, now.document()["public"]) == ("refused", None)
