"""Tokens of a request: those of a prompt count once, however many choices it has."""

from __future__ import annotations

from .generation import Piece


class Usage:
    """The counts so far. Generation number i belongs to prompt number i // `choices_per_prompt`."""

    def __init__(self, choices_per_prompt: int) -> None:
        self._choices_per_prompt = choices_per_prompt
        self._prompts: dict[int, int] = {}
        self._completion = 0

    def add(self, number: int, piece: Piece) -> None:
        self._prompts[number // self._choices_per_prompt] = piece.num_input_tokens
        self._completion += piece.num_output_tokens

    def body(self) -> dict[str, int]:
        prompt = sum(self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
        }
