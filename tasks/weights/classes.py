"""transformers' configuration classes: which types of models are known, and what a class says by itself.

A `config.json` leaves out what equals the default of its class, above all in `text_config`: that of gemma-3-4b-it names
no heads. `class_defaults.json` is made from transformers' own classes (`tests/tasks/weights/test_classes.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

from pydantic import JsonValue

from tasks.weights.fields import Fields

# The language models whose own code, not transformers, defines their class. Such a file says everything itself.
_OWN_CODE = frozenset(
    {
        *("arctic", "baichuan", "chatglm", "deepseek", "grok-1", "internlm", "internlm2", "internlm3", "kimi_k2"),
        *("minicpm", "nemotron-nas", "orion", "qwen", "skywork", "xverse"),
    }
)
# Where a model of several parts keeps its language model.
_LANGUAGE = ("text_config", "llm_config", "language_config")


class _Classes(NamedTuple):
    defaults: Mapping[str, Mapping[str, JsonValue]]
    """The defaults by type."""
    language: Mapping[str, str]
    """The type of the language model in a model of several parts."""


@cache
def _classes() -> _Classes:
    document = json.loads(Path(__file__).with_name("class_defaults.json").read_text())
    return _Classes(
        cast("dict[str, dict[str, JsonValue]]", document["defaults"]), cast("dict[str, str]", document["language"])
    )


def is_known(model_type: str) -> bool:
    """Whether it is known what the fields of such a language model mean."""
    return model_type in _OWN_CODE or model_type in _classes().defaults


def has_own_code(model_type: str) -> bool:
    """Whether its class is known, and is in no release of transformers but in code beside the weights."""
    return model_type in _OWN_CODE


def language_model(config: Fields) -> tuple[str, Fields]:
    """The type of the language model in a `config.json`, and its fields with the defaults of its class."""
    whole = config.text("model_type")
    inner = next((found for name in _LANGUAGE if (found := config.object(name))), None)
    if inner is not None:
        model_type = inner.text("model_type") or _classes().language.get(whole, whole)
        return model_type, Fields(inner.values, _classes().defaults.get(model_type, {}))
    # Before 4.52 transformers wrote the language model of Qwen2-VL at the top, under the type of the whole.
    model_type = _classes().language.get(whole, whole)
    return model_type, Fields(config.values, _classes().defaults.get(model_type, {}))
