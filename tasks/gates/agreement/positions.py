"""What comes next, by a candidate and another: one token each, after the same beginning of a text.

Nothing new is asked of an engine for it: a request for one token at temperature 0 is one of every contract. What the
releases have said before does not matter, so one difference brings no further ones, as it does in answers that run on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from infra.errors import TritonError
from infra.triton.client import Completion, TritonClient
from tasks.gates.agreement.passages import Passage
from tasks.gates.protocol import Served

ASKED_AGAIN = 1
"""How often both are asked again where their tokens differ. Where two tokens are equally likely, a batch of
another size rounds the one or the other way, and one release differs from itself: with one answer each, two equal
releases would differ at half of such places, with two each at one of eight."""


class CandidateFailed(Exception):
    """The candidate did not answer what the other one answered; `str` of it says how."""


class OtherFailed(Exception):
    """What it is compared with did not answer, so there is nothing to compare with."""


@dataclass(frozen=True)
class Position:
    """One place in a passage. `candidate` and `other` are the first tokens that each said, as text."""

    passage: str
    prefix: str
    candidate: str
    other: str
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


AskNext = Callable[[str], Token]
"""The next token after a beginning of a text. Raises CandidateFailed or OtherFailed, and TritonError that is
retryable."""


def counts_tokens(served: Served) -> bool:
    """Whether the contract of a release gives numbers of tokens."""
    return served.intent.serving.get("contract") == 2


def asker(
    client: TritonClient, served: Served, failure: type[CandidateFailed | OtherFailed], *, counts: bool
) -> AskNext:
    """Asks a release on one node, for the number of tokens too if `counts`."""

    def ask(prefix: str) -> Token:
        request: dict[str, str | int | float] = {"text_input": prefix, "max_tokens": 1, "temperature": 0.0}
        if counts:
            request["return_num_output_tokens"] = True
        try:
            return Token.of(client.generate(served.name, request), prefix)
        except TritonError as error:
            if error.retryable:
                raise
            raise failure(f"no answer after {prefix[-60:]!r}: {error.message}") from error

    return ask


def compare(
    passage: Passage, positions: int, candidate: AskNext, other: AskNext, *, candidate_first: bool
) -> list[Position]:
    """Ask both at each place of a passage, now the one first and now the other.

    Raises CandidateFailed, OtherFailed, and TritonError that is retryable.
    """
    compared: list[Position] = []
    for place, prefix in enumerate(passage.prefixes(positions)):
        ours, theirs = (_Said(partial(ask, prefix)) for ask in (candidate, other))
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
                other=theirs.first.text,
                agrees=ours.agrees_with(theirs),
                settled=ours.settled and theirs.settled,
            )
        )
    return compared


class _Said:
    """What one of both has said at one place, each time that it was asked."""

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
