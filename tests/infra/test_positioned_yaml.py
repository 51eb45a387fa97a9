"""Documents that no reader should build."""

from __future__ import annotations

import random
import time
from typing import Any, cast

import pytest
import yaml

from infra import positioned_yaml
from infra.positioned_yaml import MAX_CHARACTERS, MAX_DEPTH, read_yaml

NINES = "\n".join(
    ["a0: &a0 [0]", *(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, 10))]
)


@pytest.mark.parametrize(
    ("text", "line", "named"),
    [
        (NINES, 6, "values"),
        ("a: 1\nb: &a [*a]", 2, "*a is part"),
        ("a: &a {b: {c: *a}}", 1, "*a is part"),
        ("[" * 100_000, 1, "deeper"),
        ("- " * 100_000, 1, "deeper"),
        ("{a: " * 100_000, 1, "deeper"),
        ("a: " + "b" * MAX_CHARACTERS, 1, "characters"),
        ("a: *b", 1, "alias"),
    ],
    ids=["nines", "itself", "within", "brackets", "dashes", "braces", "long", "unknown"],
)
def test_a_document_that_grows_is_a_problem_with_its_line(text: str, line: int, named: str) -> None:
    started = time.process_time()
    document, (problem,) = read_yaml(text)
    assert document is None
    assert problem.line == line
    assert named in problem.message
    assert time.process_time() - started < 1


def test_aliases_and_levels_within_the_limits_are_read() -> None:
    text = f"a: &a {{b: 1}}\nc: *a\nd: {'[' * (MAX_DEPTH - 1)}{']' * (MAX_DEPTH - 1)}"
    document, problems = read_yaml(text)
    assert document is not None and not problems
    assert cast(dict[str, Any], document.value)["c"] == {"b": 1}


PIECES = [
    *" \t-?:[]{}a\n\r\u2028\ufeff,&!'\"|>#",
    *("- ", "? ", ": ", "\n- ", "\n  ", "\n    ", "a: ", "[a: ", "{a: ", "---\n", "!t ", "&a "),
    *("*a", "[*a]", ".*", '"*"'),
]


def test_what_is_taken_for_plain_is_neither_deep_nor_has_aliases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents of random pieces, with limits that they reach: whoever is told by characters is told by events too."""
    monkeypatch.setattr(positioned_yaml, "MAX_DEPTH", 8)
    monkeypatch.setattr(positioned_yaml, "MAX_VALUES", 60)
    plain, pieces = 0, random.Random(0)
    for _ in range(4000):
        text = "".join(pieces.choices(PIECES, k=pieces.randint(1, 18)))
        if not positioned_yaml.is_plain(text):
            continue
        try:
            assert positioned_yaml.excess(text) is None, repr(text)
            events = list(yaml.parse(text, Loader=yaml.CSafeLoader))
        except yaml.YAMLError:
            continue
        plain += 1
        assert not any(isinstance(event, yaml.AliasEvent) for event in events), repr(text)
    assert plain > 300


def test_a_document_is_what_pyyaml_makes_of_it() -> None:
    """Documents of random pieces, with values that are no text, and keys that are merged."""
    read, pieces = 0, random.Random(0)
    values = ("1", "true", "1.5", "~", "2020-01-01", "<<: ", "!!str ", "!!set ", "!!seq ", "!!map ", "&a {b: c}", "b: ")
    for _ in range(12_000):
        text = "".join(pieces.choices([*PIECES, *values], k=pieces.randint(1, 12)))
        document, _ = read_yaml(text)
        if document is not None:
            assert repr(document.value) == repr(yaml.load(text, yaml.CSafeLoader)), repr(text)
            read += 1
    assert read > 2000
