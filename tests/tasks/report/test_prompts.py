"""The test prompts with their answers, as the Prefect UI shows them."""

from __future__ import annotations

from tasks.models.spec import Expectations, Prompt
from tasks.report.markdown import markdown
from tasks.report.prompts import prompt_sections
from tasks.targets.gate_record import PromptResult

ASKED = Prompt(name="french", text="Count | in French.", max_tokens=8, expect=Expectations(contains=("un", "deux")))
ANSWER = "un\n```\n" + "x" * 500
RESULTS = (
    PromptResult(prompt="french", node="one", passed=False, answer=ANSWER, seconds=0.25, failures=("no deux",)),
    PromptResult(prompt="of before", node="two", passed=True, answer="yes", seconds=1.5, failures=()),
)


def test_each_answer_stands_whole_beside_what_was_expected() -> None:
    shown = markdown("tiny release 7", tuple(prompt_sections((ASKED,), RESULTS)))
    assert "| french | no | 0.25 | one |" in shown and "| of before | yes | 1.5 | two |" in shown
    assert "Failed: no deux" in shown and "Count | in French." in shown and f"````text\n{ANSWER}\n````" in shown
    assert 'Expected: contains: &#91;"un", "deux"&#93;' in shown
    assert shown.count("Expected: ") == 1  # the file has the other prompt no more
