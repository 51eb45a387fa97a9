"""Speculation: decoding that checks guessed tokens. What guesses them, in which versions, and how each kind serves it.

Sources: examples/{medusa,eagle,lookahead,draft_target_model} of TensorRT-LLM 0.10 to 1.2; commands/build.py for the
modes of an engine; model_instance_state.cc of tensorrtllm_backend for the decoding modes (medusa from 0.10, eagle and
lookahead from 0.16, lookahead with its sizes from 0.19); llm_args.py of 1.0 to 1.4 for the LLM API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from packaging.version import Version
from pydantic import Field, JsonValue, field_validator

from infra.frozen import Spec
from tasks.trtllm.releases import FIRST_LLM_API, LAST, in_span

Mode = Literal["draft_tokens_external", "medusa", "eagle", "lookahead_decoding", "explicit_draft_tokens"]
"""As trtllm-build names them: a draft model, heads of Medusa or of Eagle, n-grams of the answer itself, ReDrafter."""

DRAFT_FOLDER = "draft"
"""What guesses, in the folder of the engine or checkpoint that checks it."""

_Positive = Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class _Served:
    """From which release on each kind serves a mode; None for never. `decoding` is the C++ backend's decoding mode."""

    trt_engine: str | None
    llmapi: str | None
    decoding: str = ""
    needs: str = ""
    """What the weights of its `source` are, for people; empty if it has none."""


_SERVED: Mapping[str, _Served] = {
    "draft_tokens_external": _Served("0.10", FIRST_LLM_API, needs="the draft model"),
    "medusa": _Served("0.10", None, "medusa", needs="the heads of Medusa"),
    "eagle": _Served("0.16", FIRST_LLM_API, "eagle", needs="the heads of Eagle, of Eagle 3 for the LLM API"),
    "lookahead_decoding": _Served("0.19", None, "lookahead"),
    "explicit_draft_tokens": _Served(None, None),
}

DECODING_MODES = {"medusa": "0.10", "eagle": "0.16", "redrafter": "0.16", "lookahead": "0.19"}
"""The first release whose C++ backend runs each decoding mode of speculation, from an engine that was built for it."""

WITH_WEIGHTS = ("DraftTarget", "Draft_Target", "Eagle", "Eagle3", "PARD", "DFlash", "DSpark")
"""Types of the LLM API that load weights of their own, which only a recipe's `source` fetches and places."""

_FIRST_BY_TAG = "1.3"
"""From here on the LLM API reads `decoding_type` by the names of its classes' tags; before, by those of from_dict."""


@dataclass(frozen=True)
class Draft:
    """Where the weights that guess come from: an address, and the kinds of file in it that may run code."""

    uri: str
    trust: tuple[Literal["python", "pickle"], ...]
    is_model: bool
    """Whether `config.json` describes them as a model. That of Medusa's heads does not."""


class Speculation(Spec):
    """Decoding that checks guessed tokens."""

    mode: Mode = Field(description="What guesses, as trtllm-build names it.")
    max_draft_len: int = Field(ge=1, description="Tokens that are guessed at once.")
    source: str | None = Field(default=None, description="Of the draft model, or of the heads; a folder as `source`.")
    trust: tuple[Literal["python", "pickle"], ...] = Field(default=(), description="As that of `source`.")
    choices: tuple[tuple[int, ...], ...] = Field(
        default=(), description="The tree of guesses of Medusa or Eagle, a path each. Empty: the backend's own."
    )
    num_heads: _Positive = Field(default=4, description="Heads of Medusa, or layers of Eagle.")
    window_size: _Positive = Field(default=4, description="Of lookahead: n-grams that are guessed in a step.")
    ngram_size: _Positive = Field(default=3, description="Of lookahead: tokens of each.")
    verification_set_size: _Positive = Field(default=4, description="Of lookahead: n-grams that are checked in a step.")

    @field_validator("choices")
    @classmethod
    def _is_a_tree(cls, choices: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
        for path in choices:
            if not path or (len(path) > 1 and path[:-1] not in choices):
                raise ValueError(f"{list(path)} hangs on no other path: name {list(path[:-1])} too")
        return choices

    @property
    def draft(self) -> Draft | None:
        return None if self.source is None else Draft(self.source, self.trust, self.mode != "medusa")

    @property
    def converted(self) -> dict[str, JsonValue] | None:
        """What a converter is told of it: it enters the checkpoint's identity. None if it is told nothing."""
        if self.mode not in ("medusa", "eagle"):
            return None
        return {"mode": self.mode, "max_draft_len": self.max_draft_len, "num_heads": self.num_heads}

    @property
    def decoded(self) -> dict[str, JsonValue] | None:
        """What the backend alone is told of it: it enters the repository's identity. None if it is told nothing."""
        if self.mode == "lookahead_decoding":
            return self.model_dump(include={"window_size", "ngram_size", "verification_set_size"})
        return {"choices": [list(path) for path in self.choices]} if self.choices else None

    @property
    def lookahead_tokens(self) -> int:
        """Tokens that lookahead guesses with these sizes (`calculateSpeculativeResource` of the executor)."""
        first = 0 if self.window_size == 1 else self.ngram_size - 2
        return first + (self.window_size - 1 + self.verification_set_size) * (self.ngram_size - 1)


def check_speculation(kind: Literal["trt-engine", "llmapi"], version: Version, given: Speculation) -> None:
    """Raise ValueError if `version` does not serve it by this kind. The text names versions and kinds that would do."""
    served = _SERVED[given.mode]
    first = served.trt_engine if kind == "trt-engine" else served.llmapi
    if first is None or not in_span(version, first):
        raise ValueError(f"{given.mode} is not served by kind {kind} of TensorRT-LLM {version}: {_who(given.mode)}")
    if served.needs and given.source is None:
        raise ValueError(f"{given.mode} needs weights of its own: `source` names {served.needs}")
    if not served.needs and given.source is not None:
        raise ValueError(f"{given.mode} guesses without weights: remove `source`")
    if given.choices and (kind == "llmapi" or not given.converted):
        raise ValueError(f"choices are of Medusa and Eagle in kind trt-engine, not of {given.mode} in kind {kind}")
    if len(given.choices) > given.max_draft_len:
        raise ValueError(f"{len(given.choices)} choices are more than max_draft_len {given.max_draft_len}")
    if given.mode == "lookahead_decoding" and given.max_draft_len < given.lookahead_tokens:
        raise ValueError(
            f"max_draft_len {given.max_draft_len} is too small: windows of {given.window_size}, n-grams of "
            f"{given.ngram_size} and {given.verification_set_size} to verify guess {given.lookahead_tokens}"
        )


def backend_speculation(version: Version, mode: str, given: Speculation | None) -> dict[str, str]:
    """The parameters of the C++ backend for an engine of decoding mode `mode`, which may be empty.

    `given` has what the engine does not say. Raises ValueError for a mode that the version's backend does not know.
    """
    if not mode:
        return {}
    first = DECODING_MODES[mode]
    if not in_span(version, first):
        if mode == "medusa":  # 0.8 and 0.9 know by the engine
            return {}
        raise ValueError(f"the backend of TensorRT-LLM {version} does not serve {mode}: {first} to {LAST} do")
    parameters = {"decoding_mode": mode}
    if given is not None and given.choices and mode in ("medusa", "eagle"):
        paths = ", ".join("{" + ", ".join(map(str, path)) + "}" for path in given.choices)
        parameters[f"{mode}_choices"] = paths
    if mode == "lookahead":
        sizes = given or Speculation(mode="lookahead_decoding", max_draft_len=1)
        parameters |= {
            "lookahead_window_size": str(sizes.window_size),
            "lookahead_ngram_size": str(sizes.ngram_size),
            "lookahead_verification_set_size": str(sizes.verification_set_size),
        }
    return parameters


def llm_speculation(version: Version, given: Speculation) -> dict[str, JsonValue]:
    """`speculative_config` of the LLM API, with the weights' folder in the checkpoint's own."""
    by_tag = in_span(version, _FIRST_BY_TAG)
    names = ("Draft_Target", "Eagle3") if by_tag else ("DraftTarget", "Eagle")
    return {
        "decoding_type": names[given.mode == "eagle"],
        "max_draft_len": given.max_draft_len,
        "speculative_model" if by_tag else "speculative_model_dir": DRAFT_FOLDER,
    }


def _who(mode: str) -> str:
    served = _SERVED[mode]
    kinds = [f"trt-engine of {served.trt_engine} to {LAST}"] if served.trt_engine else []
    kinds += [f"llmapi of {served.llmapi} and later"] if served.llmapi else []
    if kinds:
        return f"{' and '.join(kinds)} do" if len(kinds) > 1 else f"{kinds[0]} does"
    return "no kind does; medusa and eagle are the nearest"
