"""What comes next, by two releases: one token each, after the same beginning of a text.

Nothing new is asked of an engine for it: a request for one token at temperature 0 is one of every contract. What the
releases have said before does not matter, so one difference brings no further ones, as it does in answers that run on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from infra.errors import TritonError
from infra.triton.client import Completion, TritonClient
from tasks.gates.agreement.passages import Passage
from tasks.gates.protocol import Served

ASKED_AGAIN = 1
"""How often both releases are asked again where their tokens differ. Where two tokens are equally likely, a batch of
another size rounds the one or the other way, and one release differs from itself: with one answer each, two equal
releases would differ at half of such places, with two each at one of eight."""


class CandidateFailed(Exception):
    """The candidate did not answer what the live release answered; `str` of it says how."""


class LiveFailed(Exception):
    """The live release did not answer, so there is nothing to compare with."""


@dataclass(frozen=True)
class Position:
    """One place in a passage. `candidate` and `live` are the first tokens that each said, as text."""

    passage: str
    prefix: str
    candidate: str
    live: str
    agrees: bool
    settled: bool
    """Whether both said the same again, where they were asked again."""


@dataclass(frozen=True)
class Token:
    """What a request for one token brought. Part of a character has no text, and neither has the end of the answer:
    these two are told apart by the number of tokens, which contract 1 does not give."""

    text: str
    count: int | None

    @classmethod
    def of(cls, answer: Completion, prefix: str) -> Token:
        return cls(answer.text.removeprefix(prefix), answer.tokens)


class Ask(Protocol):
    def __call__(self, served: Served, prefix: str) -> Token:
        """The next token of a release after a beginning of a text. Raises TritonError."""
        ...


def asker(client: TritonClient, candidate: Served, live: Served) -> Ask:
    """Asks the releases of one node. Counts of tokens are asked for if both have a contract that gives them."""
    counts = all(served.intent.serving.get("contract") == 2 for served in (candidate, live))

    def ask(served: Served, prefix: str) -> Token:
        request: dict[str, str | int | float] = {"text_input": prefix, "max_tokens": 1, "temperature": 0.0}
        if counts:
            request["return_num_output_tokens"] = True
        return Token.of(client.generate(served.name, request), prefix)

    return ask


def compare(
    passage: Passage, positions: int, candidate: Served, live: Served, ask: Ask, *, candidate_first: bool
) -> list[Position]:
    """Ask both releases at each place of a passage, now the one first and now the other.

    Raises CandidateFailed, LiveFailed, and TritonError that is retryable.
    """
    compared: list[Position] = []
    for place, prefix in enumerate(passage.prefixes(positions)):
        theirs = _Said(lambda prefix=prefix: _answer(ask, live, prefix, LiveFailed))
        ours = _Said(lambda prefix=prefix: _answer(ask, candidate, prefix, CandidateFailed))
        pair = (ours, theirs) if candidate_first ^ (place % 2 == 1) else (theirs, ours)
        for said in pair:
            said.more()
        for _ in range(ASKED_AGAIN):
            if ours.agrees_with(theirs):
                break
            for said in pair:
                said.more()
        compared.append(
            Position(
                passage=passage.name,
                prefix=prefix,
                candidate=ours.first.text,
                live=theirs.first.text,
                agrees=ours.agrees_with(theirs),
                settled=ours.settled and theirs.settled,
            )
        )
    return compared


def _answer(ask: Ask, served: Served, prefix: str, failure: type[CandidateFailed | LiveFailed]) -> Token:
    try:
        return ask(served, prefix)
    except TritonError as error:
        if error.retryable:
            raise
        raise failure(f"no answer after {prefix[-60:]!r}: {error.message}") from error


class _Said:
    """What one release has said at one place, each time that it was asked."""

    def __init__(self, ask: Callable[[], Token]) -> None:
        self._ask = ask
        self._tokens: list[Token] = []

    @property
    def first(self) -> Token:
        return self._tokens[0]

    @property
    def settled(self) -> bool:
        return len(set(self._tokens)) == 1

    def more(self) -> None:
        self._tokens.append(self._ask())

    def agrees_with(self, other: _Said) -> bool:
        """Whether a token of the one is one of the other's."""
        return not set(self._tokens).isdisjoint(other._tokens)
