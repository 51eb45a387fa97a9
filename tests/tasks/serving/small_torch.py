"""Small models of several families in PyTorch, with random numbers, as transformers saves them, and engines of them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.serving.contract import GenerationRequest
from tasks.serving.engine import Engine
from tasks.serving.llmapi import ENGINE_PATH
from tasks.serving.settings import Sampling, ServingSettings
from tests.tasks.kinds.served_kinds import write_tokenizer
from tests.tasks.serving.asked import Loop
from tests.tasks.serving.small_tokenizers import byte_level

PROMPT = "How do I count?"
TOKENS = 40
SETTINGS = ServingSettings(
    "transformers",
    "engine",
    slots=2,
    context_tokens=256,
    chat_template=False,
    request_timeout_s=60.0,
    threads=1,
    sampling=Sampling(temperature=0.0),
    contract=2,
    device="cpu",
    dtype="auto",
)

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,
}
FAMILIES: Mapping[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    # Every second layer looks back so far, which is less than the tests' answers are long.
    "Gemma2": {"sliding_window": 16, "query_pre_attn_scalar": 12},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
"""What differs between the configurations of each family."""


def write_model(folder: Path, family: str, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> Path:
    """A model of that family, with a tokenizer that has every byte; `changes` go into its configuration."""
    torch: Any = importlib.import_module("torch")
    transformers: Any = importlib.import_module("transformers")
    tokenizer = byte_level()
    end = tokenizer.tokenizer.token_to_id("</s>")
    config = getattr(transformers, f"{family}Config")(
        **{**_SIZES, **FAMILIES[family], **changes}, vocab_size=tokenizer.size, bos_token_id=1, eos_token_id=end
    )
    torch.manual_seed(seed)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(getattr(torch, dtype))
    model.generation_config.eos_token_id = end
    model.save_pretrained(folder)
    return write_tokenizer(folder, tokenizer.tokenizer)


class Engines:
    """Engines of checkpoints, started in this process and freed with it. `folder` has adapters."""

    def __init__(self, loop: Loop, folder: Path) -> None:
        self._loop, self._folder = loop, folder
        self._started: list[Engine] = []

    def __call__(self, checkpoint: Path, **settings: Any) -> Any:
        served: Any = importlib.import_module("tasks.serving.transformers_engine")
        parameters = {ENGINE_PATH: str(checkpoint)}
        engine: Engine = served.Transformers(self._folder, replace(SETTINGS, **settings), parameters)
        self._started.append(engine)
        return engine

    def close(self) -> None:
        self._loop.close(*self._started)


def answer(loop: Loop, engine: Engine, text: str = PROMPT, **fields: Any) -> tuple[str, list[float], str]:
    """The text, its log probabilities, and why it ended."""
    given: dict[str, Any] = {"max_tokens": TOKENS, **fields}
    pieces = list(loop.ask(engine, GenerationRequest(text_input=text, **given)))
    return (
        "".join(piece.text for piece in pieces),
        [value for piece in pieces for value in piece.log_probs],
        str(pieces[-1].finish_reason),
    )
