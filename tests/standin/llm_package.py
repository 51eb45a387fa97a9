"""Installs the stand-in for the package `tensorrt_llm`, and writes checkpoints for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.standin.guide import pieces

_STANDIN = Path(__file__).parent
_FILES = ("llm_api.py", "llm_args.py", "llm_args.json", "llm_lora.py", "backend_sampler.py", "guide.py")


def install(folder: Path) -> None:
    """Make `folder`/tensorrt_llm, with the names that the real package has."""
    package = folder / "tensorrt_llm"
    package.mkdir(parents=True)
    for name in _FILES:
        shutil.copyfile(_STANDIN / name, package / name)
    (package / "executor.py").write_text("from .llm_lora import LoRARequest\n")
    (package / "__init__.py").write_text(
        "from . import llmapi\nfrom .llm_api import LLM, RequestError, SamplingParams\n"
    )
    (package / "llmapi").mkdir()
    (package / "llmapi/__init__.py").write_text("from ..llm_args import GuidedDecodingParams\n")
    (package / "llmapi/llm_args.py").write_text("from ..llm_args import DecodingBaseConfig\n")


def write_checkpoint(
    folder: Path, version: str, tokenizer: Any, texts: Sequence[str], *, endless: int, token_seconds: float
) -> None:
    """Write what the stand-in of `version` loads: a model made from `texts`, of which the last `endless` have no end.

    One token of each running request takes `token_seconds`. `tokenizer` is one of the package tokenizers, in which
    `</s>` ends a text.
    """
    end_id = tokenizer.token_to_id("</s>")
    corpus: list[list[int]] = [tokenizer.encode(text).ids for text in texts]
    for text in corpus[: len(corpus) - endless]:
        text.append(end_id)
    write_model(folder, version, tokenizer, corpus, token_seconds)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end_id}))


def write_model(
    folder: Path, version: str, tokenizer: Any, corpus: Sequence[Sequence[int]], token_seconds: float
) -> None:
    """Write a model made from texts as tokens; what ends its answers stands elsewhere."""
    for name, document in (
        (
            "standin.json",
            {
                "tensorrt_llm": version,
                "corpus": corpus,
                "pieces": pieces(tokenizer),
                "token_seconds": token_seconds,
            },
        ),
        ("config.json", {"vocab_size": tokenizer.get_vocab_size(), "model_type": "llama"}),
    ):
        (folder / name).write_text(json.dumps(document))
