"""`enginehouse assemble`: a Triton repository for an engine that lies on this disk. No server, no store."""

from __future__ import annotations

import json
from pathlib import Path

from packaging.version import InvalidVersion, Version

from infra.errors import UsageError
from tasks.spec import Model
from tasks.triton.upstream import fill_upstream
from tasks.triton.upstream_values import upstream_values
from tasks.trtllm.recipe import TrtEngineRecipe
from tasks.trtllm.serving import TensorRtServing


def assemble_upstream(model: Model, templates: Path, engine: Path, tokenizer: Path, version: str, output: Path) -> None:
    """Fill NVIDIA's templates in `templates` for the engine in `engine`; `output` appears whole or not at all.

    Folders in the configurations are the absolute ones given here. Raises UsageError and TemplateError.
    """
    if not isinstance(model.recipe, TrtEngineRecipe):
        raise UsageError(f"{model.name} is of kind {model.recipe.kind}, and NVIDIA's templates serve kind trt-engine")
    _require_version(engine, version)
    if not tokenizer.is_dir():
        raise UsageError(f"there is no folder {tokenizer} with a tokenizer", hint="--tokenizer takes a folder")
    values = upstream_values(
        model.serving.tensorrt_llm or TensorRtServing(),
        version,
        engine_folder=str(engine.absolute()),
        tokenizer_folder=str(tokenizer.absolute()),
        max_batch_size=model.serving.slots,
    )
    fill_upstream(templates, values, output, version)


def _require_version(engine: Path, version: str) -> None:
    """That the engine was built by `version`: no server compares them, and another one's engine fails or misbehaves."""
    try:
        built = str(json.loads((engine / "config.json").read_text())["version"])
        same = Version(built) == Version(version)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, InvalidVersion) as error:
        raise UsageError(
            f"{engine}/config.json does not say which TensorRT-LLM built the engine: {error}",
            hint="--engine takes the folder that trtllm-build wrote, --runtime its version",
            code="engine-unreadable",
        ) from error
    if not same:
        raise UsageError(
            f"the engine was built by TensorRT-LLM {built}, and {version} is to serve it",
            hint="engines do not move between versions: build it anew, or give --runtime its own version",
            code="version-mismatch",
        )
