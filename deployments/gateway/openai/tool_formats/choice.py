"""The formats by the names that a model's file has for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from tasks.targets.parsers import ToolParserName

from .events import ToolParser
from .hermes import hermes
from .llama3 import llama3
from .mistral import mistral
from .qwen3_coder import qwen3_coder

Schemas: TypeAlias = Mapping[str, Mapping[str, object]]

TOOL_PARSERS: Mapping[ToolParserName, Callable[[Schemas], ToolParser]] = {
    "llama3": llama3,
    "mistral": mistral,
    "qwen": hermes,
    "hermes": hermes,
    "qwen3_coder": qwen3_coder,
}
"""Each takes the schemas of the arguments by the names of the tools."""


def arguments_key(name: ToolParserName | None) -> str:
    """How the format calls the arguments of a call."""
    return "parameters" if name == "llama3" else "arguments"
