"""What xgrammar does in TensorRT-LLM, for the stand-ins: it allows only tokens with which an answer can still match.

It takes JSON values and regular expressions of any form, schemas that are an `enum`, and grammars that are a choice of
literals. It refuses everything else that xgrammar knows.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

_STRING = r'"(?:[^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"'
_JSON = (
    rf"(?<value>{_STRING}|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null"
    r"|\[\s*(?:(?&value)(?:\s*,\s*(?&value))*)?\s*\]"
    rf"|\{{\s*(?:{_STRING}\s*:\s*(?&value)(?:\s*,\s*{_STRING}\s*:\s*(?&value))*)?\s*\}})"
)


class Guide:
    """`pieces` has the text of every token. Raises ValueError for a guide that does not compile."""

    def __init__(self, kind: str, guide: str, pieces: Sequence[str], end_id: int) -> None:
        try:
            self._pattern: Any = regex.compile(_pattern(kind, guide))
        except regex.error as error:
            raise ValueError(f"Regex parsing error: {error}") from error
        self._pieces = pieces
        self._end_id = end_id

    def allowed(self, answer: Sequence[int]) -> npt.NDArray[np.bool_]:
        """Which of the tokens may follow those of the answer."""
        text = "".join(self._pieces[token] for token in answer)
        allowed = np.array([bool(piece) and self._matches(text + piece, partial=True) for piece in self._pieces])
        allowed[self._end_id] = self._matches(text, partial=False)
        return allowed

    def _matches(self, text: str, *, partial: bool) -> bool:
        return self._pattern.fullmatch(text, partial=partial) is not None


def pieces(tokenizer: Any) -> list[str]:
    """The texts of a tokenizer's tokens. Empty for markers, and for tokens that are not whole characters."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.get_vocab_size())]
    return ["" if "\ufffd" in text else text for text in texts]


def _pattern(kind: str, guide: str) -> str:
    if kind == "json":
        return _JSON
    if kind == "regex":
        return guide
    if kind == "json_schema":
        schema = json.loads(guide)
        if set(schema) != {"enum"}:
            raise ValueError(f"the stand-in knows no schema but an enum: {guide}")
        choices = [json.dumps(choice) for choice in schema["enum"]]
    elif kind == "ebnf_grammar":
        name, _, rule = guide.partition("::=")
        if name.strip() != "root":
            raise ValueError("The root rule with name root is not found in the grammar.")
        choices = [str(ast.literal_eval(literal.strip())) for literal in rule.split("|")]
    else:
        raise ValueError(f"Unsupported guide type: {kind}.")
    return "|".join(regex.escape(choice) for choice in choices)
