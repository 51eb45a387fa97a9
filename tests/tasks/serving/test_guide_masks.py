"""Guides as masks over the vocabulary, by the real library; Python's own readers of JSON and patterns judge them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest

from tasks.serving.contract import GenerationRequest, RequestRefused
from tasks.serving.guide_masks import Guide, Guides
from tests.tasks.serving.small_tokenizers import Adapter, byte_level, metaspace, sentencepiece, wordpiece

pytest.importorskip("llguidance", reason="the extra `transformers` is not installed: make test-reference")

Made = Callable[..., Guide]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "count": {"type": "integer", "minimum": 3, "maximum": 40},
        "tags": {"type": "array", "items": {"enum": ["un", "deux", None]}, "maxItems": 3},
    },
    "required": ["name", "count"],
    "additionalProperties": False,
}


def end_of(tokenizer: Adapter) -> int:
    return tokenizer.tokenizer.token_to_id("</s>")


@pytest.fixture
def made() -> Iterator[Made]:
    """Guides of a tokenizer."""
    opened: list[Guides] = []

    def made(tokenizer: Adapter, kind: str, text: str = "", end_ids: Sequence[int] | None = None, **also: Any) -> Guide:
        ends = [end_of(tokenizer)]
        guides = Guides(SimpleNamespace(backend_tokenizer=tokenizer.tokenizer), ends)
        opened.append(guides)
        request = GenerationRequest(guided_decoding_guide_type=kind, guided_decoding_guide=text, **also)
        guide = asyncio.run(guides.of(request, ends if end_ids is None else end_ids))
        assert guide is not None
        return guide

    yield made
    for guides in opened:
        guides.close()


def walked(guide: Guide, tokenizer: Adapter, seed: int, end_ids: Sequence[int]) -> str:
    """The text of an answer whose scores are random numbers."""
    random, ids = np.random.default_rng(seed), list[int]()
    for _ in range(400):
        # More than the vocabulary has, as some models have.
        scores = random.normal(size=tokenizer.size + 40)
        guide.forbid(scores)
        chosen = int(np.argmax(scores))
        assert np.isfinite(scores[chosen])
        guide.take(chosen)
        if chosen in end_ids:
            return tokenizer.decode(ids, skip_special_tokens=False)
        ids.append(chosen)
    raise AssertionError(f"no end: {tokenizer.decode(ids, skip_special_tokens=False)[:200]}")


@pytest.mark.parametrize("family", [byte_level, sentencepiece, metaspace])
@pytest.mark.parametrize(
    ("kind", "guide", "pattern"),
    [
        ("regex", r"(un|deux)-\d{2,4}!", r"(un|deux)-\d{2,4}!"),
        ("regex", "[é-ü]{3}🎉", "[é-ü]{3}🎉"),
        ("ebnf_grammar", 'root ::= "un" [0-9] [0-9]? "deux"', "un[0-9]{1,2}deux"),
        ("ebnf_grammar", 'root ::= "(" root ")" | "x"', r"\(*x\)*"),
        # As the gateway writes a choice.
        ("ebnf_grammar", r'root ::= "a\U0000002Db" | "\U0001F389\U00000022"', 'a-b|🎉"'),
        ("ebnf_grammar", r'root ::= [\x2d\u00e9]{4} "\"\\\n"', r'[-é]{4}"\\\n'),
        ("json_schema", '{"enum": ["un", "deux", "trois"]}', '"(un|deux|trois)"'),
    ],
)
def test_every_answer_keeps_to_its_guide(
    kind: str, guide: str, pattern: str, family: Callable[[], Adapter], made: Made
) -> None:
    tokenizer = family()
    for seed in range(3):
        answer = walked(made(tokenizer, kind, guide), tokenizer, seed, [end_of(tokenizer)])
        # Alone, the first token of some tokenizers has no space before it.
        assert re.fullmatch(pattern, answer.removeprefix(" ")), answer


def test_an_answer_to_a_schema_is_one_of_it(made: Made) -> None:
    tokenizer = byte_level()
    answers = [
        walked(made(tokenizer, "json_schema", json.dumps(SCHEMA)), tokenizer, seed, [end_of(tokenizer)])
        for seed in range(8)
    ]
    assert len(set(answers)) > 4
    for answer in answers:
        jsonschema.validate(json.loads(answer), SCHEMA)


def test_any_json_begins_as_json_does(made: Made) -> None:
    tokenizer = byte_level()
    scores = np.zeros(tokenizer.size)
    made(tokenizer, "json").forbid(scores)
    begins = {tokenizer.decode([token], skip_special_tokens=False)[0] for token in np.flatnonzero(scores == 0).tolist()}
    assert begins == set('[{"-0123456789tfn')


def test_an_end_of_the_requests_own_comes_where_the_answer_may_end(made: Made) -> None:
    tokenizer = byte_level()
    own = tokenizer.tokenizer.token_to_id("!")
    guide = made(tokenizer, "regex", "ab?", [own])
    (before, after, last) = (np.zeros(tokenizer.size) for _ in range(3))
    guide.forbid(before)
    assert np.isinf(before[[own, end_of(tokenizer)]]).all()
    guide.take(tokenizer.tokenizer.token_to_id("a"))
    guide.forbid(after)
    assert after[own] == 0 and np.isinf(after[end_of(tokenizer)])
    guide.take(tokenizer.tokenizer.token_to_id("b"))
    guide.forbid(last)
    assert np.flatnonzero(last == 0).tolist() == [own]


@pytest.mark.parametrize(
    ("kind", "guide", "also", "named"),
    [
        ("regex", "(", {}, "'guided_decoding_guide' cannot be honoured: .*unclosed group|invalid regex"),
        ("regex", "(?=a)b", {}, "'guided_decoding_guide' cannot be honoured"),
        ("ebnf_grammar", "root ::= (", {}, "'guided_decoding_guide' cannot be honoured: Expected '\\)'"),
        ("ebnf_grammar", 'other ::= "a"', {}, "'guided_decoding_guide' cannot be honoured: No 'root'"),
        ("ebnf_grammar", 'root ::= "a\\', {}, "'guided_decoding_guide' cannot be honoured"),
        ("ebnf_grammar", r'root ::= "\UFFFFFFFF"', {}, "'guided_decoding_guide' cannot be honoured"),
        ("ebnf_grammar", r'root ::= "\uD800"', {}, "'guided_decoding_guide' cannot be honoured"),
        ("ebnf_grammar", "start: /a/", {}, "'guided_decoding_guide' cannot be honoured"),
        ("json_schema", '{"not": {}}', {}, "'guided_decoding_guide' cannot be honoured: .*not"),
        ("json_schema", '{"type": "strin"}', {}, "'guided_decoding_guide' cannot be honoured: .*strin"),
        ("json_schema", '{"type": "string", "format": "nonsense"}', {}, "cannot be honoured: Unknown format"),
        ("json", "", {"min_tokens": 4}, "'min_tokens' must be 0 beside a guide"),
        ("json", "", {"end_ids": []}, "has no token that ends an answer"),
    ],
)
def test_what_cannot_be_followed_is_refused(
    kind: str, guide: str, also: dict[str, Any], named: str, made: Made
) -> None:
    with pytest.raises(RequestRefused, match=named):
        made(byte_level(), kind, guide, **also)


def test_a_tokenizer_whose_tokens_are_not_bytes_has_no_guides(made: Made) -> None:
    with pytest.raises(RequestRefused, match=r"the tokenizer of this model does not fit guides: .*WordPiece"):
        made(wordpiece(), "json")
    guides = Guides(object(), [1])
    with pytest.raises(RequestRefused, match="none of the library tokenizers"):
        asyncio.run(guides.of(GenerationRequest(guided_decoding_guide_type="json"), [1]))
    guides.close()


def test_without_the_package_guides_are_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestRefused, match="need the package llguidance"):
        made(byte_level(), "json")


@pytest.mark.parametrize(
    ("kind", "guide"),
    [
        ("ebnf_grammar", "root ::= " + '"a"? ' * 3000),
        ("ebnf_grammar", 'root ::= a a a\na ::= b b b | ""\nb ::= root "a" | "a" | ""'),
        ("regex", "(a|b|ab)*" * 1000),
        ("regex", "(.*a){40}"),
        ("regex", r"(\w{0,200}){0,200}"),
        ("json_schema", json.dumps({"anyOf": [{"type": "string", "pattern": f"^.{{{n},}}a"} for n in range(200)]})),
    ],
)
def test_no_guide_holds_its_neighbours_for_long(kind: str, guide: str, made: Made) -> None:
    tokenizer, slowest = byte_level(), 0.0
    try:
        followed = made(tokenizer, kind, guide)
        for _ in range(8):
            scores, begin = np.zeros(tokenizer.size), time.thread_time()
            followed.forbid(scores)
            slowest = max(slowest, time.thread_time() - begin)
            followed.take(int(np.argmax(scores)))
    except RequestRefused as error:
        assert "'guided_decoding_guide' cannot be honoured" in str(error)
    assert slowest < 2
