"""Reference of the errors: every code, what is said with it, and what helps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from deployments.docs.markdown import escaped
from deployments.docs.raised import CLASSES, FINDING, Raised, raised
from deployments.docs.told import TOLD
from deployments.gateway.refusals import status_of
from infra.errors import EnginehouseError, GatewayError

_HEAD = """\
# Errors

An error says what happened, its code in brackets, and after an empty line, behind `hint:`, what to do next. Where
`--json` is asked for, stdout has `{"error": {"code": …, "message": …, "hint": …}}`. Codes stay, and words may change.
`«name»` stands for what is filled in.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | wrong use: the command, a model's file, a setting or a source |
| 3 | a gate or a person refused a candidate |
| 4 | a gate could not decide, or a person has to |

**Tried again** says that the same call may succeed later: a step of a run is then retried by itself.
"""


def errors_page() -> Iterator[str]:
    """The lines of the page: a heading for each code, by which other pages and programs link to it."""
    yield from _HEAD.splitlines()
    yield ""
    for code, places in groupby(raised(), key=lambda place: place.code):
        yield from _section(code, tuple(places))


def _section(code: str, places: tuple[Raised, ...]) -> Iterator[str]:
    yield f"## {code}"
    yield ""
    yield f"{'; '.join(_kinds(code, places))}."
    yield ""
    told = TOLD.get(code)
    if told is not None and told.means:
        yield from (told.means, "")
    says = {place.says: [each.remedy for each in places if each.says == place.says] for place in places}
    for text, remedies in says.items():
        helps = " Or: ".join(escaped(_sentence(remedy)) for remedy in dict.fromkeys(filter(None, remedies)))
        if text:
            yield f"- {escaped(_sentence(text))}" + (f"<br>**Then:** {helps}" if helps else "")
        elif helps:
            yield f"- **Then:** {helps}"
    if told is not None and told.remedy:
        yield f"- **Then:** {escaped(told.remedy)}"
    yield ""


def _kinds(code: str, places: Iterable[Raised]) -> Iterator[str]:
    """What kind of error it is, from where: exit code, whether it is tried again, status of HTTP."""
    names = list(dict.fromkeys(place.error for place in places))
    for name in names:
        if name == FINDING:
            yield "A finding of `enginehouse doctor`"
            continue
        error = CLASSES.get(name, EnginehouseError)
        ends = "" if error is GatewayError else f", exit code {error.exit_code}"
        yield f"`{error.__name__}`{ends}{', tried again' if error.retryable else ''}"
    answered = status_of(EnginehouseError("", code=code))
    if any(place.path.startswith("deployments/gateway") for place in places) and answered.http != 500:
        yield f"at the gateway {answered.http}, over gRPC `{answered.grpc}`"


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "…", ":", "?")) else f"{text}."
