"""What lm-evaluation-harness leaves with `--log_samples`: its prompts, and the answers that it wanted.

Each line has the requests of one document (`arguments`) and what was wanted (`target`). Answers that were written are
scored here as the model's file says, since a line does not say how the task did it; of a choice between continuations
the right one is `target`. The continuations are offered as choices with letters: the probability of a given text is
nothing that clients can ask for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import cast

from pydantic import JsonValue

from infra.errors import UsageError
from tasks.gates.quality.questions import LETTERS, Question, named, read_question
from tasks.gates.sets import SetText, lines_of, problem_at
from tasks.models.gate_specs.quality import SampleScorer

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def is_samples(found: SetText) -> bool:
    """Whether a set is of this form: its first line has `arguments` and `target`."""
    first = next(iter(lines_of(found)), (0, dict[str, JsonValue]()))[1]
    return {"arguments", "target"} <= first.keys()


def questions_of_samples(found: SetText, scorer: SampleScorer | None) -> tuple[Question, ...]:
    """The questions of a file. Several filters of one document are one question.

    Raises UsageError `set-invalid`, and `scorer-missing` if answers are written and `scorer` is None.
    """
    questions: dict[str, tuple[int, Question]] = {}
    for number, line in lines_of(found):
        name = f"document {line.get('doc_id', number)}"
        questions.setdefault(name, (number, _question(found, number, name, line, scorer)))
    return named(found, list(questions.values()))


def _question(
    found: SetText, number: int, name: str, line: Mapping[str, JsonValue], scorer: SampleScorer | None
) -> Question:
    requests = _requests(found, number, line)
    target = line.get("target")
    context, first = requests[0]
    if isinstance(first, Mapping):
        return _written(found, number, name, context, cast("Mapping[str, JsonValue]", first), target, scorer)
    continuations = [str(continuation) for _, continuation in requests]
    right = _place(target, continuations)
    if len({before for before, _ in requests}) > 1:
        raise problem_at(
            found, number, "has another context for each continuation, and clients can ask for none of them"
        )
    if right is None or not 1 < len(continuations) <= len(LETTERS):
        raise problem_at(found, number, f"is neither a written answer nor a choice of 2 to {len(LETTERS)}")
    choices = [continuation.strip() for continuation in continuations]
    return read_question(found, number, {"name": name, "prompt": context, "choices": choices, "choice": right})


def _requests(found: SetText, number: int, line: Mapping[str, JsonValue]) -> list[tuple[str, JsonValue]]:
    """The pairs of arguments: a list of lists, or since version 0.4.3 objects `gen_args_0` with `arg_0` and `arg_1`."""
    arguments = line.get("arguments")
    if isinstance(arguments, dict):
        tables = [value for _, value in sorted(arguments.items(), key=lambda item: _index(item[0]))]
        pairs = [[table.get("arg_0"), table.get("arg_1")] for table in tables if isinstance(table, dict)]
    else:
        pairs = [pair[:2] for pair in cast("list[JsonValue]", arguments or []) if isinstance(pair, list)]
    requests = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2 and isinstance(pair[0], str) and pair[0]]
    if not requests or len(requests) < len(pairs):
        raise problem_at(found, number, "has no `arguments` with a context and what follows it")
    return cast("list[tuple[str, JsonValue]]", requests)


def _index(name: str) -> int:
    return int("".join(filter(str.isdigit, name)) or 0)


def _written(
    found: SetText,
    number: int,
    name: str,
    context: str,
    settings: Mapping[str, JsonValue],
    target: JsonValue,
    scorer: SampleScorer | None,
) -> Question:
    if scorer is None:
        raise UsageError(
            f"{found.name} has answers that are written, and does not say how its task scored them",
            hint="say `scorer: exact`, `contains` or `numeric` in the model's file",
            code="scorer-missing",
        )
    until = settings.get("until")
    stop = [until] if isinstance(until, str) else until if isinstance(until, list) else []
    question: dict[str, object] = {"name": name, "prompt": context, "stop": [each for each in stop if each]}
    if isinstance(most := settings.get("max_gen_toks"), int):
        question["max_tokens"] = most
    wanted = _texts(target)
    if scorer == "numeric":
        numbers = _NUMBER.findall(str(target))
        if not numbers:
            raise problem_at(found, number, f"has no number in its target {str(target)[:80]!r}")
        question["numeric"] = float(numbers[-1].replace(",", ""))
    elif scorer == "exact":
        question["exact"] = wanted
    else:  # one of them, where `contains` of a question wants each
        question["regex"] = "|".join(re.escape(each) for each in wanted)
    return read_question(found, number, question)


def _texts(target: JsonValue) -> tuple[str, ...]:
    """The right answers: one, or those of a list, which lm-evaluation-harness writes as Python does."""
    if isinstance(target, str) and target.startswith("["):
        try:
            target = cast("JsonValue", ast.literal_eval(target))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return (target,)
    return tuple(str(each) for each in target) if isinstance(target, list) else (str(target),)


def _place(target: JsonValue, continuations: list[str]) -> int | None:
    """The right one: by its place, or by what it says."""
    if isinstance(target, str) and not target.isdigit():
        stripped = [continuation.strip() for continuation in continuations]
        return stripped.index(target.strip()) if target.strip() in stripped else None
    place = int(target) if isinstance(target, int | str) and not isinstance(target, bool) else -1
    return place if 0 <= place < len(continuations) else None
