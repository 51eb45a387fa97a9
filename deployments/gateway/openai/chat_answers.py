"""Answers to a chat: whole, or as a stream of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator

from .answers import stream, whole
from .chat import ChatRequest
from .errors import ApiError
from .generation import Piece
from .log_probs import TokenLogProb, chat_log_probs, tokens_of
from .reading import AnswerForm, AnswerReader, ChatReason
from .streams import Chunks, Head, Numbered
from .tool_formats.events import CallArguments, CallStart, Content, Event, Reasoning
from .usage import Usage


async def chat_answer(request: ChatRequest, head: Head, pieces: AsyncGenerator[Numbered, None]) -> dict[str, object]:
    """The whole answer. Raises ApiError where a generation fails."""
    choices = _choices(request, head)
    return await whole("chat.completion", head, choices, Usage(len(choices)), pieces)


def chat_stream(
    request: ChatRequest, head: Head, pieces: AsyncGenerator[Numbered, None]
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events. Raises ApiError before the first of them, and tells of an error after it."""
    choices = _choices(request, head)
    chunks = Chunks("chat.completion.chunk", head, include_usage=request.include_usage)
    return stream(chunks, choices, Usage(len(choices)), pieces)


def _choices(request: ChatRequest, head: Head) -> list[_Choice]:
    return [_Choice(head.id, number, request) for number in range(len(request.generations))]


class _Choice:
    """One choice of an answer, as far as it has come."""

    def __init__(self, answer: str, number: int, request: ChatRequest) -> None:
        self._answer = answer
        self._number = number
        self._form: AnswerForm = request.form
        self._log_probs = request.log_probs
        self._reader = AnswerReader(request.form)
        self._begun = False
        self._reason: ChatReason | None = None
        self._tokens: list[TokenLogProb] = []
        self._events: list[Event] = []

    def read(self, piece: Piece) -> list[Event]:
        """Takes the next piece. Returns what it makes known."""
        self._tokens += tokens_of(piece) if self._log_probs else []
        events = self._reader.feed(piece.text)
        if piece.finish_reason:
            events += self._reader.end()
            self._reason = self._reader.chat_reason(piece.finish_reason)
        self._events += events
        return events

    def chunks(self, piece: Piece) -> Iterator[dict[str, object]]:
        """The chunks that a piece makes. The log probabilities of text that is held come with the next chunk."""
        if not self._begun:
            self._begun = True
            yield self._chunk({"role": "assistant", "content": ""})
        for event in self.read(piece):
            yield self._chunk(self._delta(event))
        self._events.clear()
        if self._reason:
            yield self._chunk({})

    def require_end(self) -> ChatReason:
        """Raises ApiError where the pieces ended before the answer did."""
        if self._reason is None:
            raise ApiError("internal", f"choice {self._number} ended without a reason")
        return self._reason

    def body(self) -> dict[str, object]:
        """The choice of a whole answer."""
        reason = self.require_end()
        content = "".join(event.text for event in self._events if isinstance(event, Content))
        reasoning = "".join(event.text for event in self._events if isinstance(event, Reasoning))
        calls = self._calls()
        message: dict[str, object] = {"role": "assistant", "content": content or (None if calls else "")}
        message["refusal"] = None
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = calls
        return {
            "index": self._number,
            "message": message,
            "logprobs": self._taken_log_probs(),
            "finish_reason": reason,
        }

    def _calls(self) -> list[dict[str, object]]:
        starts = [event for event in self._events if isinstance(event, CallStart)]
        arguments: list[list[str]] = [[] for _ in starts]
        for event in self._events:
            if isinstance(event, CallArguments):
                arguments[event.index].append(event.text)
        return [self._call(start, "".join(parts)) for start, parts in zip(starts, arguments, strict=True)]

    def _call(self, start: CallStart, arguments: str) -> dict[str, object]:
        return {
            "id": self._form.call_id(self._answer, self._number, start.index),
            "type": "function",
            "function": {"name": start.name, "arguments": arguments},
        }

    def _delta(self, event: Event) -> dict[str, object]:
        match event:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning_content": text}
            case CallStart(index):
                return {"tool_calls": [{"index": index, **self._call(event, "")}]}
            case CallArguments(index, text):
                return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}

    def _chunk(self, delta: dict[str, object]) -> dict[str, object]:
        """The chunk without a delta is the last one."""
        return {
            "index": self._number,
            "delta": delta,
            "logprobs": self._taken_log_probs() if self._tokens else None,
            "finish_reason": None if delta else self._reason,
        }

    def _taken_log_probs(self) -> dict[str, object] | None:
        tokens, self._tokens = self._tokens, []
        return chat_log_probs(tokens) if self._log_probs else None
