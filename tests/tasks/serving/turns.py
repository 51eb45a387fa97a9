"""Models whose answer ends with a turn, which their tokenizer's own end token is not: Gemma and Phi-3.

Names and numbers of the special tokens, and the `eos_token_id` of the generation config, are theirs
(google/gemma-2-2b-it, microsoft/Phi-3-mini-4k-instruct); the vocabulary below is that of the small tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers

from tests.tasks.kinds.served_kinds import write_tokenizer
from tests.tasks.serving.small_tokenizers import SPECIAL, byte_level

QUESTION = "Which city?"
ANSWER = " Paris"
_AFTER = "Human: how are you? Assistant: fine, and you? " * 4
"""What the model says after its turn, for as long as nobody stops it."""


@dataclass(frozen=True)
class Family:
    """`special` are tokens by their names, `{}` in `rendered` is the text of a user."""

    name: str
    special: Mapping[str, int]
    bos: str
    eos: str
    turn: str
    end_ids: tuple[int, ...]
    rendered: str
    template: str

    def __str__(self) -> str:
        return self.name

    def tokenizer(self) -> Any:
        return _tokenizer(self.name)

    @property
    def generation_config(self) -> dict[str, Any]:
        return {"bos_token_id": self.special[self.bos], "eos_token_id": [*self.end_ids]}

    def write(self, folder: Path, **changes: Any) -> Path:
        """Its tokenizer and generation config in `folder`; `changes` go into `tokenizer_config.json`."""
        configuration = {
            "bos_token": self.bos,
            "eos_token": self.eos,
            "unk_token": None,
            "chat_template": self.template,
        }
        write_tokenizer(folder, self.tokenizer(), **{**configuration, **changes})
        (folder / "generation_config.json").write_text(json.dumps(self.generation_config))
        return folder

    def corpus(self) -> list[list[int]]:
        """What a model of it has read: the answer, the end of its turn, and how it would go on."""
        rendered = self.rendered.format(QUESTION)
        return [self.tokenizer().encode(rendered + ANSWER + self.turn + _AFTER, add_special_tokens=False).ids]


GEMMA = Family(
    "gemma",
    {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 106, "<end_of_turn>": 107},
    bos="<bos>",
    eos="<eos>",
    turn="<end_of_turn>",
    end_ids=(1, 107),
    rendered="<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    template="{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n"
    "{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
)
PHI_3 = Family(
    "phi-3",
    {"<s>": 1, "<|endoftext|>": 32000, "<|assistant|>": 32001, "<|end|>": 32007, "<|user|>": 32010},
    bos="<s>",
    eos="<|endoftext|>",
    turn="<|end|>",
    end_ids=(32000, 32001, 32007),
    rendered="<|user|>\n{}<|end|>\n<|assistant|>\n",
    template="{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
)
TURNS: Mapping[str, Family] = {family.name: family for family in (GEMMA, PHI_3)}


@cache
def _tokenizer(name: str) -> Any:
    """The small byte-level tokenizer, numbered anew around the special tokens, with names between that mean nothing."""
    special = TURNS[name].special
    document = json.loads(byte_level().tokenizer.to_str())
    pieces = iter([piece for piece in document["model"]["vocab"] if piece not in SPECIAL])
    by_number = {number: token for token, number in special.items()}
    size = max(*special.values(), len(document["model"]["vocab"]) + len(special)) + 1
    vocabulary = {by_number.get(number) or next(pieces, f"<unused{number}>"): number for number in range(size)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    document["added_tokens"] = [
        {"id": number, "content": token, **flags} for token, number in sorted(special.items(), key=lambda item: item[1])
    ]
    document["model"]["vocab"] = vocabulary
    return tokenizers.Tokenizer.from_str(json.dumps(document))
