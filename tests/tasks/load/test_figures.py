"""From outcomes to figures, by hand."""

from __future__ import annotations

import math
from random import Random
from xml.etree import ElementTree

import numpy as np
import pytest

from tasks.load.buckets import Buckets, filled
from tasks.load.collected import Collected
from tasks.load.outcome import FailureKind, Outcome
from tasks.load.percentiles import needed, percentile_of
from tasks.load.picture import picture
from tasks.load.summary import Figures, Summary, summary
from tasks.load.text import lines


def outcome(
    number: int,
    first: float | None,
    ended: float,
    *,
    intended: float = 0.0,
    tokens: int | None = 11,
    failure: FailureKind | None = None,
    late: float = 0.001,
) -> Outcome:
    """Moments after the intended one."""
    return Outcome(
        number,
        100 + intended,
        100 + intended + late,
        100 + intended + late,
        None if first is None else 100 + intended + first,
        100 + intended + ended,
        output_tokens=tokens,
        input_tokens=7,
        failure=failure,
        message=f"{failure} of {number}" if failure else "",
    )


def figures(found: Summary, name: str) -> Figures:
    return next(each for each in found.figures if each.metric.name == name)


def test_the_formulas() -> None:
    collected = Collected(warm_up=1)
    collected.outcome(outcome(0, 9.0, 9.5))  # to warm up
    collected.gap(0, 9.0)
    collected.outcome(outcome(1, 0.2, 1.2))
    collected.outcome(outcome(2, 0.4, 0.9, intended=1.0, tokens=6))
    collected.outcome(outcome(3, None, 0.1, intended=2.0, tokens=None, failure="limited"))
    collected.gap(1, 0.1)
    found = summary(collected, {"time_to_first_token": 300}, most_lateness_ms=10)
    assert (found.requests, found.answered, found.warm_up) == (3, 2, 1)
    assert found.benchmark_duration_s == pytest.approx(2.1)
    assert figures(found, "time_to_first_token").mean == pytest.approx(300)
    assert figures(found, "request_latency").most == pytest.approx(1200)
    assert figures(found, "inter_token_latency").mean == pytest.approx(100)  # 1000 / 10 and 500 / 5
    assert figures(found, "inter_chunk_latency").mean == pytest.approx(100)
    assert figures(found, "input_sequence_length").mean == 7
    assert found.request_throughput == pytest.approx(2 / 2.1)
    assert found.output_token_throughput == pytest.approx(17 / 2.1)
    assert (found.good_requests, found.goodput) == (1, pytest.approx(1 / 2.1))
    assert [(each.kind, each.count, each.first_message) for each in found.failures] == [("limited", 1, "limited of 3")]


def test_a_request_that_ran_out_of_time_counts_as_slow_and_other_failures_do_not_count() -> None:
    collected = Collected(warm_up=0)
    collected.outcome(outcome(0, 0.1, 0.2))
    collected.outcome(outcome(1, None, 30.0, tokens=None, failure="timeout"))
    collected.outcome(outcome(2, None, 0.001, tokens=None, failure="refused"))
    found = summary(collected, {"time_to_first_token": 60_000}, most_lateness_ms=10)
    assert figures(found, "time_to_first_token").most == pytest.approx(30_000)
    assert figures(found, "time_to_first_token").count == 2
    assert found.good_requests == 1  # whatever the limit


def test_percentiles_need_so_many_requests() -> None:
    """The numbers of statistics: n requests below a limit say that of the percentile with 95 or 99 % confidence."""
    assert [needed(95, 0.95), needed(95), needed(99), needed(99.9), needed(50)] == [59, 90, 459, 4603, 7]
    collected = Collected(warm_up=0)
    for number in range(458):
        collected.outcome(outcome(number, number / 1000, 1.0))
    told = {each.which: each.value for each in figures(_summary(collected), "time_to_first_token").percentiles}
    assert told[99] is None and told[95] == pytest.approx(percentile_of([*range(458)], 95))
    collected.outcome(outcome(458, 0.458, 1.0))
    told = {each.which: each.value for each in figures(_summary(collected), "time_to_first_token").percentiles}
    assert told[99] == pytest.approx(percentile_of([*range(459)], 99))
    assert told[99.9] is None


def _summary(collected: Collected) -> Summary:
    return summary(collected, {}, most_lateness_ms=10)


def test_buckets_are_right_to_a_thousandth() -> None:
    random = Random(5)
    times = sorted(random.lognormvariate(-4, 1.5) for _ in range(5000))
    made = filled(times)
    for which in (1, 50, 90, 99, 99.9):
        assert made.percentile(which) == pytest.approx(times[math.ceil(len(times) * which / 100) - 1], rel=0.0011)
    assert (made.least, made.most) == (times[0], times[-1])
    assert made.mean == pytest.approx(np.mean(times))


def test_buckets_take_what_is_nothing_and_what_is_endless() -> None:
    made = filled([0.0, 1e-9, 1e9])
    assert made.count == 3 and made.percentile(100) > 86_000
    assert Buckets().count == 0


def test_the_lateness_is_that_of_the_sender_or_of_the_loop() -> None:
    collected = Collected(warm_up=0)
    collected.outcome(outcome(0, 0.5, 0.6, late=0.02))
    assert not _summary(collected).lateness.on_time
    collected = Collected(warm_up=0)
    collected.outcome(outcome(0, 0.5, 0.6))
    assert _summary(collected).lateness.on_time
    collected.late(0.5)
    assert not _summary(collected).lateness.on_time


def test_the_text_has_80_columns_and_says_what_is_too_little() -> None:
    collected = Collected(warm_up=0)
    for number in range(30):
        collected.outcome(outcome(number, 1234.5, 98765.4, intended=float(number), tokens=None))
    collected.outcome(outcome(30, None, 1.0, failure="failed"))
    found = summary(collected, {"time_to_first_token": 300, "request_latency": 5000}, given_up=2, most_lateness_ms=0.5)
    text = [*lines(found)]
    assert max(map(len, text)) <= 80
    whole = "\n".join(text)
    for told in ("too few: p90 takes 44 requests", "given up: 2", "1 failed", "no tokens", "REFUSED", "goodput = "):
        assert told in whole
    assert "30 answered, 1 failed" in whole


def test_without_an_answer_there_is_a_text_a_document_and_a_picture() -> None:
    collected = Collected(warm_up=0)
    collected.outcome(outcome(0, None, 0.1, tokens=None, failure="unreachable"))
    found = summary(collected, {"request_latency": 5}, most_lateness_ms=10)
    assert found.document()["request_count"] == 0 and found.document()["goodput"] == 0
    assert "1 failed" in "\n".join(lines(found))
    ElementTree.fromstring(picture("m", found, collected))
    nothing = Collected(warm_up=0)
    ElementTree.fromstring(picture("m", _summary(nothing), nothing))
    assert _summary(nothing).benchmark_duration_s == 0


@pytest.mark.parametrize("count", [1, 12, 3000])
def test_the_picture_stands_alone_and_its_curve_ends_where_the_numbers_do(count: int) -> None:
    collected = Collected(warm_up=0)
    random = Random(1)
    for number in range(count):
        first = random.lognormvariate(-2, 0.5)
        collected.outcome(outcome(number, first, first + 0.5, intended=number / 10))
    text = picture("<m> & co", _summary(collected), collected)
    root = ElementTree.fromstring(text)
    words = "".join(root.itertext())
    assert "<m> & co" in words and ("p99.9" not in words) and ("p99" in words) == (count == 3000)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    drawn = len(root.findall("{*}circle"))
    assert drawn == min(2 * count, 4000) and len(text) < 600_000
