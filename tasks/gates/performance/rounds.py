"""Which prompts are sent in which order: rounds, in each of which both releases get the same prompts in turns.

The order turns with each round of a node (ABBA), so a machine that becomes slower costs both the same. Prompts and
answers are drawn once, and dealt out so that every round has as many short and long ones as every other: blocks that
are alike, whatever was drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from statistics import median

from tasks.load.lengths import parse_lengths
from tasks.load.prompts import Prompt, drawn_prompt
from tasks.models.gate_specs.performance import PerformanceSpec


@dataclass(frozen=True)
class Item:
    """A prompt, and which of the strata it belongs to: empty where all have one length."""

    number: int
    prompt: Prompt
    stratum: str


@dataclass(frozen=True)
class Round:
    """`node` is the place of the node among those of the trial."""

    number: int
    node: int
    candidate_first: bool
    items: tuple[Item, ...]


def rounds_of(asked: PerformanceSpec, nodes: int) -> tuple[Round, ...]:
    """The rounds, the same for the same seed."""
    random = Random(f"{asked.seed}/rounds")
    prompts, answers = parse_lengths(asked.prompt_tokens), parse_lengths(asked.answer_tokens)
    lengths = [(prompts.draw(random), answers.draw(random)) for _ in range(asked.requests)]
    middle = median(each for each, _ in lengths), median(each for _, each in lengths)
    drawn = sorted((_stratum(each, middle), each) for each in lengths)
    dealt: list[list[Item]] = [[] for _ in range(asked.rounds)]
    for number, (stratum, (prompt, answer)) in enumerate(drawn):
        dealt[number % asked.rounds].append(Item(number, drawn_prompt(random, prompt, answer), stratum))
    for items in dealt:
        random.shuffle(items)
    return tuple(
        Round(number, number % nodes, (number // nodes) % 2 == 0, tuple(items)) for number, items in enumerate(dealt)
    )


def _stratum(lengths: tuple[int, int], middle: tuple[float, float]) -> str:
    words = [
        f"{'long' if length > half else 'short'} {what}"
        for length, half, what in zip(lengths, middle, ("prompts", "answers"), strict=True)
    ]
    return ", ".join(words)
