"""Words that end an answer and words that must not be in it: both by their text, however it falls into tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from .contract import RequestRefused
from .engine import Piece

MAX_CHOICES = 20_000
"""Of the grammar that bad words make: one word of 2,000 characters has 4,000, a thousand pairs of letters a million."""


class StopWords:
    """Cuts an answer at the first stop word. No part of it gets out, also when it comes in several pieces."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._held: list[Piece] = []
        self.stopped = False

    def push(self, piece: Piece) -> Piece:
        """What may go to the client now. Once a stop word is complete `stopped` is set and the rest is dropped."""
        self._held.append(piece)
        text = "".join(held.text for held in self._held)
        found = [at for at in (text.find(word) for word in self._words) if at >= 0]
        if found:
            self.stopped = True
            answer = self._release(min(found))
            self._held.clear()
            return answer
        return self._release(len(text) - self._begun(text))

    def flush(self) -> Piece:
        """What was held back, now that nothing follows."""
        return self._release(sum(len(held.text) for held in self._held))

    def _begun(self, text: str) -> int:
        """The length of the longest end of `text` with which a stop word begins."""
        longest = 0
        for word in self._words:
            for length in range(min(len(word) - 1, len(text)), longest, -1):
                if text.endswith(word[:length]):
                    longest = length
                    break
        return longest

    def _release(self, length: int) -> Piece:
        """The first `length` characters held. The log probability of a token leaves with its first character."""
        text, log_probs = "", list[float]()
        while self._held:
            piece, wanted = self._held[0], length - len(text)
            if len(piece.text) > wanted:
                if wanted:
                    text += piece.text[:wanted]
                    log_probs += piece.log_probs
                    self._held[0] = Piece(piece.text[wanted:])
                break
            text += piece.text
            log_probs += piece.log_probs
            del self._held[0]
        return Piece(text, tuple(log_probs))


def grammar_without(words: Sequence[str]) -> str:
    """A grammar (llama.cpp's GBNF) of every text in which none of `words` occurs.

    It is the Aho-Corasick automaton of the words: a state is the longest end of the text with which a word begins,
    and the step that would complete a word does not exist. Raises RequestRefused where it is too large.
    """
    steps, complete = _automaton(words)
    rules = ["root ::= s0"]
    for state, after in enumerate(steps):
        choices = ['""']
        choices += [f'"{_escaped(character)}" s{to}' for character, to in after.items() if not complete[to]]
        choices.append(f"[^{''.join(map(_escaped, after))}] s0")
        rules.append(f"s{state} ::= {' | '.join(choices)}")
    return "\n".join(rules)


def _automaton(words: Sequence[str]) -> tuple[list[dict[str, int]], list[bool]]:
    """By state, the steps that do not lead back to state 0, by their character; and whether a word ends there."""
    steps: list[dict[str, int]] = [{}]
    complete = [False]
    for word in words:
        state = 0
        for character in word:
            if character not in steps[state]:
                steps[state][character] = len(steps)
                steps.append({})
                complete.append(False)
            state = steps[state][character]
        complete[state] = True
    # Breadth first: the state of a shorter end of the text is finished before those of longer ones.
    shorter = [0] * len(steps)
    waiting = deque(steps[0].values())
    choices = len(steps[0])
    while waiting:
        state = waiting.popleft()
        complete[state] = complete[state] or complete[shorter[state]]
        for character, to in steps[state].items():
            shorter[to] = steps[shorter[state]].get(character, 0)
            waiting.append(to)
        steps[state] = steps[shorter[state]] | steps[state]
        choices += len(steps[state])
        if choices > MAX_CHOICES:
            raise RequestRefused(
                f"'bad_words' make a grammar of more than {MAX_CHOICES} choices: use fewer or shorter ones"
            )
    return steps, complete


def _escaped(character: str) -> str:
    return f"\\U{ord(character):08X}"
