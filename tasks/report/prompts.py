"""The test prompts with their answers: each with what was asked and expected, and with its answer as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from tasks.models.spec import Expectations, Prompt
from tasks.report.blocks import Answers, Block, Section, Table, Words
from tasks.report.shown import MOST_ROWS, first
from tasks.targets.gate_record import PromptResult


def prompt_sections(prompts: Iterable[Prompt], results: Iterable[PromptResult]) -> Iterator[Section]:
    """A table of them all, then each by itself. A result of a prompt that the file has no more has only its name."""
    asked = {prompt.name: prompt for prompt in prompts}
    kept, more = first(tuple(results), MOST_ROWS)
    rows = tuple((each.prompt, "yes" if each.passed else "no", f"{each.seconds:.3g}", each.node) for each in kept)
    yield Section("Test prompts", (Table(("prompt", "passed", "seconds", "node"), rows),))
    for each in kept:
        yield Section(each.prompt, tuple(_told(asked, each)))
    if more:
        yield Section("And more", (Words(f"{more} more answers are in its record, result.json."),))


def _told(asked: Mapping[str, Prompt], each: PromptResult) -> Iterator[Block]:
    yield from (Words(f"Failed: {failure}") for failure in each.failures)
    prompt = asked.get(each.prompt)
    if prompt is not None:
        yield Words(f"Expected: {expected(prompt.expect)}")
    yield Answers("" if prompt is None else prompt.text, each.answer, "", "", f"From {each.node}:")


def expected(expect: Expectations) -> str:
    """The expectations as the model's file writes them."""
    written = expect.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in written.items())
