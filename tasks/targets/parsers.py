"""How a release's model writes its answers: what `serving` of a model's file says, as the record of the release has it.

Weights, chat template and these names move together, since they are of one release.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

ToolParserName: TypeAlias = Literal["llama3", "mistral", "qwen", "hermes", "qwen3_coder"]
"""The form of tool calls."""

ReasoningParserName: TypeAlias = Literal["think"]
"""`think`: reasoning comes first, between `<think>` and `</think>`; the first of them may be the template's."""


@dataclass(frozen=True)
class ModelParsers:
    """None: answers have no such parts, or nobody has said which."""

    tool_parser: ToolParserName | None = None
    reasoning_parser: ReasoningParserName | None = None

    @classmethod
    def of(cls, serving: Mapping[str, object]) -> ModelParsers:
        """Those of a record of `serving`. A name that only a later Enginehouse knows counts as none."""
        tool, reasoning = serving.get("tool_parser"), serving.get("reasoning_parser")
        return cls(
            cast(ToolParserName, tool) if tool in get_args(ToolParserName) else None,
            cast(ReasoningParserName, reasoning) if reasoning in get_args(ReasoningParserName) else None,
        )
