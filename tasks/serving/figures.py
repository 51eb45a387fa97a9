"""What is counted of every answer, whatever engine makes it: plain numbers, of which `metrics` makes Prometheus's.

The names are those of NVIDIA's NIM for LLMs; `request_queue_time_seconds` is vLLM's, since NIM has none.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import get_args

from .contract import FinishReason
from .engine import MAX_RUNNING, Piece
from .failures import FailureCode

UNCOUNTED = "enginehouse-asks"
"""The id of the requests by which a node sees whether a model answers. They are nobody's, and in no figure."""

Ending = FinishReason | FailureCode
"""How a request ends: by its answer, or by an error."""

ANSWERED: tuple[Ending, ...] = ("stop", "length", "stop_words")
ENDINGS: tuple[Ending, ...] = (*ANSWERED, *get_args(FailureCode))

_MOST_KEPT = 1 << 16
"""Of what nobody takes: more than come between two times that somebody does."""

_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
"""From a first token out of a cache to the longest answer, each about twice the one before."""
_GAP_SECONDS = (0.001, 0.002, 0.004, 0.006, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.25, 0.5, 1, 2.5)
_TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True)
class Metric:
    """A figure as Prometheus knows it: a histogram where it has `buckets`, a counter by the ending of its name, else a
    gauge. `by_ending` gives it the label `finished_reason`."""

    name: str
    help: str
    buckets: tuple[float, ...] = ()
    by_ending: bool = False

    @property
    def is_counter(self) -> bool:
        return self.name.endswith("_total")


FIRST = Metric("time_to_first_token_seconds", "From a request's arrival to its first token.", _SECONDS)
GAP = Metric(
    "time_per_output_token_seconds",
    "The time between two tokens of an answer, as the mean of the answer: one observation for each.",
    _GAP_SECONDS,
)
WHOLE = Metric("e2e_request_latency_seconds", "From a request's arrival to the end of its answer.", _SECONDS)
QUEUE = Metric(
    "request_queue_time_seconds",
    "From a request's arrival until fewer requests ran before it than run at once.",
    _SECONDS,
)
PROMPT = Metric("request_prompt_tokens", "Tokens of the prompt of each answer.", _TOKENS)
GENERATION = Metric("request_generation_tokens", "Tokens of each answer.", _TOKENS)
PROMPT_TOTAL = Metric("prompt_tokens_total", "Tokens of all prompts that were read.")
GENERATION_TOTAL = Metric("generation_tokens_total", "Tokens that came, also of answers that did not end.")
FINISHED = Metric("request_finish_total", "Requests that ended, by how they did.", by_ending=True)
SUCCESS = Metric("request_success_total", "Requests that were answered.")
FAILURE = Metric("request_failure_total", "Requests that ended by an error, also those whose clients left.")
RUNNING = Metric("num_requests_running", "Requests that are being generated.")
WAITING = Metric("num_requests_waiting", "Requests that wait until fewer run.")
MOST = Metric("num_request_max", "Requests that are generated at the same time at most.")
CACHE = Metric("gpu_cache_usage_perc", "The part of the cache of keys and values that is used: 1 is all of it.")

METRICS = (
    *(FIRST, GAP, WHOLE, QUEUE, PROMPT, GENERATION),
    *(PROMPT_TOTAL, GENERATION_TOTAL, FINISHED, SUCCESS, FAILURE),
    *(RUNNING, WAITING, MOST, CACHE),
)


def share_of(slots: int, instance: int, instances: int) -> int:
    """The slots of an engine that one of the processes before it counts as its own: all of them add up."""
    return slots // instances + (instance < slots % instances)


class Figures:
    """Of one engine that generates `slots` requests at once, and starts others in the order in which they came.

    One event loop changes them. Any thread may read them, and another one takes what was `observed` and `ended`.
    """

    def __init__(self, slots: int = MAX_RUNNING) -> None:
        self.slots = slots
        self.observed: deque[tuple[Metric, float]] = deque(maxlen=_MOST_KEPT)
        self.ended: deque[Ending] = deque(maxlen=_MOST_KEPT)
        self.prompt_tokens = 0
        self.generated_tokens = 0
        self.running: dict[Row, None] = {}
        self.waiting: dict[Row, None] = {}

    def row(self, arrived: float) -> Row:
        """A request that arrived then, by the monotonic clock."""
        row = Row(self, arrived)
        if len(self.running) < self.slots:
            self.start(row)
        else:
            self.waiting[row] = None
        return row

    def refused(self, ending: Ending) -> None:
        """A request that the engine does not hear of. From any thread."""
        self.ended.append(ending)

    def start(self, row: Row) -> None:
        self.waiting.pop(row, None)
        self.running[row] = None
        self.observed.append((QUEUE, time.monotonic() - row.arrived))

    def forget(self, row: Row) -> None:
        self.waiting.pop(row, None)
        self.running.pop(row, None)
        while self.waiting and len(self.running) < self.slots:
            self.start(next(iter(self.waiting)))


class Row:
    """One request, from its arrival to its end."""

    __slots__ = ("_ended", "_figures", "_first_at", "_first_tokens", "_last_at", "arrived", "prompt_tokens", "tokens")

    def __init__(self, figures: Figures, arrived: float) -> None:
        self._figures = figures
        self._ended = False
        self._first_at = self._last_at = 0.0
        self._first_tokens = 0
        self.arrived = arrived
        self.prompt_tokens = 0
        self.tokens = 0

    def came(self, piece: Piece, *, streams: bool) -> None:
        """Count a piece of the answer. An answer that `streams` not may come whole, and tells no first token then."""
        if new := piece.output_tokens:
            self._last_at = piece.at
            if not self.tokens:
                self._begin(new, known=streams or new == 1 or piece.finish_reason is None)
            self.tokens += new
            self._figures.generated_tokens += new
        if not self.prompt_tokens:
            self.prompt_tokens = piece.input_tokens
            self._figures.prompt_tokens += piece.input_tokens
        if piece.finish_reason is not None:
            self.end(piece.finish_reason)

    def end(self, ending: Ending) -> None:
        """The first time counts."""
        if self._ended:
            return
        self._ended = True
        self._figures.forget(self)
        self._figures.ended.append(ending)
        if ending not in ANSWERED:
            return
        observed = self._figures.observed
        observed.append((WHOLE, time.monotonic() - self.arrived))
        observed.append((PROMPT, self.prompt_tokens))
        observed.append((GENERATION, self.tokens))
        if (later := self.tokens - self._first_tokens) > 0:
            observed.append((GAP, (self._last_at - self._first_at) / later))

    def _begin(self, tokens: int, *, known: bool) -> None:
        self._first_at, self._first_tokens = self._last_at, tokens
        if self in self._figures.waiting:  # the engine began it earlier than expected
            self._figures.start(self)
        if known:
            self._figures.observed.append((FIRST, self._first_at - self.arrived))
