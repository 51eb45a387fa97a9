"""Moments, lengths, prompts and traces: the same for the same seed, and refused where they are malformed."""

from __future__ import annotations

import statistics
from itertools import islice, pairwise, repeat
from pathlib import Path
from random import Random

import pytest

from infra.errors import UsageError
from tasks.load.arrivals import at_rate
from tasks.load.lengths import Lengths, parse_lengths
from tasks.load.prompts import Prompt, drawn_prompts, prompts_of_file
from tasks.load.trace import read_trace, replayed


def moments(arrivals: str, seed: int, count: int = 4000) -> list[float]:
    assert arrivals in ("constant", "poisson")
    asks = at_rate(arrivals, 20, seed, repeat(Prompt("", 1)))
    return [ask.after_s for ask in islice(asks, count) if ask.after_s is not None]


def test_a_constant_rate_has_equal_steps() -> None:
    found = moments("constant", 1)
    assert found[0] == 0 and found[-1] == 3999 / 20


def test_steps_of_a_poisson_process_are_exponential_and_repeat_with_the_seed() -> None:
    found = moments("poisson", 1)
    steps = [after - before for before, after in pairwise(found)]
    assert statistics.mean(steps) == pytest.approx(0.05, rel=0.06)
    assert statistics.stdev(steps) == pytest.approx(0.05, rel=0.06)  # as large as the mean
    assert sum(step > 0.05 for step in steps) / len(steps) == pytest.approx(0.368, abs=0.03)
    assert found == moments("poisson", 1) != moments("poisson", 2)


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [("128", 128, 0), ("uniform:50,150", 100, 29), ("normal:200,20", 200, 20), ("lognormal:100,0.5", 113, 60)],
)
def test_lengths_have_the_distribution(text: str, mean: float, deviation: float) -> None:
    lengths, random = parse_lengths(text), Random(3)
    drawn = [lengths.draw(random) for _ in range(4000)]
    assert statistics.mean(drawn) == pytest.approx(mean, rel=0.05)
    assert statistics.pstdev(drawn) == pytest.approx(deviation, rel=0.1)
    assert str(lengths) == text


def test_a_length_is_at_least_one() -> None:
    assert min(Lengths("normal", 1, 50).draw(Random(number)) for number in range(50)) == 1


@pytest.mark.parametrize(
    "text",
    ["", "0", "x", "-4", "uniform:5", "uniform:9,5", "fixed:4,4", "gamma:1,2", "normal:5", "lognormal:5,9", "1e9"],
)
def test_lengths_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_lengths(text)
    assert error.value.code == "load-lengths"


def test_prompts_have_their_lengths_repeat_with_the_seed_and_begin_differently() -> None:
    found = [*islice(drawn_prompts(1, parse_lengths("40"), parse_lengths("uniform:1,9")), 50)]
    assert found == [*islice(drawn_prompts(1, parse_lengths("40"), parse_lengths("uniform:1,9")), 50)]
    assert {len(prompt.text.split()) for prompt in found} == {39}
    assert len({prompt.text[:8] for prompt in found}) == 50
    assert {prompt.output_tokens for prompt in found} == {*range(1, 10)}


def test_prompts_of_a_file_come_over_and_over(tmp_path: Path) -> None:
    plain, lines = tmp_path / "p.txt", tmp_path / "p.jsonl"
    plain.write_text("one\n\ntwo\n")
    lines.write_text('{"prompt": "a\\nb", "output_tokens": 3}\n{"prompt": "c"}\n')
    assert [each.text for each in islice(prompts_of_file(plain, 1, parse_lengths("5")), 3)] == ["one", "two", "one"]
    assert [*islice(prompts_of_file(lines, 1, parse_lengths("5")), 2)] == [Prompt("a\nb", 3), Prompt("c", 5)]


@pytest.mark.parametrize("text", ["", "[]", '{"text": "a"}', '{"prompt": "a", "output_tokens": 0}', "{", "[" * 100_000])
def test_a_file_of_prompts_that_is_malformed_is_refused(tmp_path: Path, text: str) -> None:
    (file := tmp_path / "p.jsonl").write_text(text)
    with pytest.raises(UsageError) as error:
        next(prompts_of_file(file, 1, parse_lengths("5")))
    assert error.value.code == "load-prompts"


def test_a_trace_is_replayed_with_its_moments_and_lengths(tmp_path: Path) -> None:
    (file := tmp_path / "t.jsonl").write_text(
        '{"timestamp": 5000, "input_length": 12, "output_length": 3, "hash_ids": [1]}\n'
        '{"timestamp": 5250.5, "prompt": "hello", "output_length": 4}\n'
    )
    first, second = replayed(read_trace(file), 1, 2.0)
    assert (first.after_s, second.after_s) == (0, 0.12525)
    assert len(first.prompt.text.split()) == 11 and first.prompt.output_tokens == 3
    assert second.prompt == Prompt("hello", 4)


@pytest.mark.parametrize(
    "line",
    [
        '{"input_length": 1, "output_length": 1}',
        '{"timestamp": 3, "input_length": 0, "output_length": 1}',
        '{"timestamp": 3, "output_length": 1}',
        '{"timestamp": 3, "input_length": 1}',
        '{"timestamp": 1, "input_length": 1, "output_length": 1}',
        '{"timestamp": true, "input_length": 1, "output_length": 1}',
        '{"timestamp": NaN, "input_length": 1, "output_length": 1}',
        '{"timestamp": 3, "prompt": 4, "output_length": 1}',
    ],
)
def test_a_trace_that_is_malformed_is_refused(tmp_path: Path, line: str) -> None:
    (file := tmp_path / "t.jsonl").write_text(f'{{"timestamp": 2, "input_length": 1, "output_length": 1}}\n{line}\n')
    with pytest.raises(UsageError) as error:
        read_trace(file)
    assert error.value.code == "load-trace"
    assert ":2" in error.value.message


@pytest.mark.parametrize("text", [None, ""])
def test_no_trace_is_refused(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "t.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UsageError) as error:
        read_trace(file)
    assert error.value.code == "load-trace"
