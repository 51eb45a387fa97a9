"""`serving.json`: what a release tells the model that serves it. Written by `assemble`, read inside Triton."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from .contract import GenerationRequest, RequestRefused

FILE_NAME = "serving.json"

ADAPTER_FOLDER = "adapters"
"""In the version folder of an `llm`."""


@dataclass(frozen=True)
class Sampling:
    """What a request that does not say gets. `top_k` 0 and `top_p` 1 mean all tokens, `temperature` 0 greedy."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def of(self, request: GenerationRequest) -> Sampling:
        """What `request` gets: its own values where it has some, these where not."""
        given = {entry.name: getattr(request, entry.name) for entry in fields(self)}
        chosen = replace(self, **{name: value for name, value in given.items() if value is not None})
        if chosen.top_p == 0:
            # As in TensorRT-LLM: no top_p where there is a top_k, else the best token.
            return replace(chosen, top_k=chosen.top_k or 1, top_p=1.0)
        return chosen


@dataclass(frozen=True)
class ServingSettings:
    """How one release is served.

    `engine` names the engine; `engine_path` is what it loads, absolute or in the version folder. `slots` requests are
    generated at once, each with `context_tokens` tokens of prompt and answer together; further ones wait. `threads`
    None means all cores. A request that is not answered within `request_timeout_s` seconds, waiting included, fails.
    `tensorrt_llm` is the version of the engines that have one: names of inputs and arguments depend on it.
    `max_input_tokens` is what the engine takes as a prompt, where that is less than `context_tokens`. One that is not
    `decoupled` answers whole, without streams. `llm_arguments` are those of `tensorrt_llm.LLM`, by keyword, but for the
    path of the model. `guided_decoding` says that the engine can keep an answer to a guide. `max_tokens` is what a
    request gets that does not say; None is all that the context has room for. `contract` is what clients may send.
    `adapters` are the names of those that a request may choose; each has a folder of its name in ADAPTER_FOLDER.
    `draft_tokens` is how many a draft model guesses at once; 0 where there is none. `device` and `dtype` are PyTorch's,
    of the engine that runs on it: `cpu` or `cuda`, and `auto` for the type of the checkpoint. `planned_bytes` is the
    memory that the release was planned with.
    """

    engine: str
    engine_path: str
    slots: int
    context_tokens: int
    chat_template: bool
    request_timeout_s: float
    threads: int | None = None
    tensorrt_llm: str = ""
    max_input_tokens: int | None = None
    max_beam_width: int = 1
    decoupled: bool = True
    guided_decoding: bool = False
    llm_arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    contract: int = 1
    adapters: tuple[str, ...] = ()
    draft_tokens: int = 0
    device: str = ""
    dtype: str = ""
    planned_bytes: int | None = None

    def adapter_of(self, request: GenerationRequest) -> int | None:
        """The place in `adapters` of the one that a request chooses; None if it chooses none.

        Raises RequestRefused for one that the release does not have.
        """
        if not (name := request.lora_name):
            return None
        if name not in self.adapters:
            known = f"this model has {', '.join(self.adapters)}" if self.adapters else "this model has no adapters"
            raise RequestRefused(f"'lora_name' is {name[:100]!r}; {known}")
        return self.adapters.index(name)

    @property
    def most_prompt_tokens(self) -> int:
        """What a prompt may have, so that there is room for a token of the answer."""
        room = self.context_tokens - 1
        return min(self.max_input_tokens or room, room)

    @property
    def most_checked_tokens(self) -> int:
        """What a prompt, the answer so far and guesses of its next tokens may have together."""
        return self.max_input_tokens or self.context_tokens

    def most_output_tokens(self, request: GenerationRequest, prompt_tokens: int) -> int:
        """How many tokens the answer to a prompt of so many may have."""
        room = self.context_tokens - prompt_tokens
        wanted = request.max_tokens or self.max_tokens
        return room if wanted is None else min(wanted, room)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ServingSettings:
        """Raises ValueError for a field that is missing or unknown: a release must not half understand its own."""
        values = _known(cls, json.loads(text))
        try:
            values["adapters"] = tuple(values.get("adapters", ()))
            values["sampling"] = Sampling(**_known(Sampling, values.get("sampling", {})))
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"{FILE_NAME}: {error}") from error

    @classmethod
    def read(cls, folder: Path) -> ServingSettings:
        return cls.from_json((folder / FILE_NAME).read_text())


def _known(owner: type, values: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(values) - {entry.name for entry in fields(owner)}
    if unknown:
        raise ValueError(f"{FILE_NAME} holds unknown fields: {', '.join(sorted(unknown))}")
    return dict(values)
