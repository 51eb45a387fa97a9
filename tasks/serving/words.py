"""Words that end an answer and words that must not be in it: both by their text, however it falls into tokens."""

from __future__ import annotations

from collections.abc import Sequence

from .contract import RequestRefused
from .engine import Piece

MAX_BAD_CHARACTERS = 2000
"""All bad words of one request together: the grammar grows with them, and none published comes near."""


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
        longest = max((len(word) for word in self._words), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(word.startswith(text[-length:]) for word in self._words):
                return length
        return 0

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
    and the step that would complete a word does not exist. Raises RequestRefused for too many words.
    """
    if sum(map(len, words)) > MAX_BAD_CHARACTERS:
        raise RequestRefused(f"'bad_words' hold more than {MAX_BAD_CHARACTERS} characters")
    states = {word[:length] for word in words for length in range(len(word))}
    number = {state: index for index, state in enumerate(sorted(states, key=lambda state: (len(state), state)))}
    rules = ["root ::= s0"]
    for state, index in number.items():
        choices, special = ['""'], ""
        for character in sorted({character for word in words for character in word}):
            after = state + character
            complete = any(after.endswith(word) for word in words)
            target = next((after[cut:] for cut in range(len(after) + 1) if after[cut:] in number), "")
            if complete or target:
                special += _escaped(character)
            if target and not complete:
                choices.append(f'"{_escaped(character)}" s{number[target]}')
        choices.append(f"[^{special}] s0")
        rules.append(f"s{index} ::= {' | '.join(choices)}")
    return "\n".join(rules)


def _escaped(character: str) -> str:
    return f"\\U{ord(character):08X}"
