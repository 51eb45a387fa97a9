"""`enginehouse assemble`: a Triton repository for an engine that lies on this disk. No server, no store."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from packaging.version import InvalidVersion, Version

from infra.errors import UsageError
from infra.files import whole_folder
from tasks.kinds.engine_release import decoding_parameters
from tasks.kinds.protocol import RequestAdapters
from tasks.kinds.trt_engine import TrtEngineKind
from tasks.lora.config import FILES
from tasks.models.source import Source
from tasks.models.spec import Model
from tasks.serving.generation import files_in
from tasks.sources.dispatch import fetch, resolve
from tasks.triton.config import LLM, RELEASE, TENSORRT_LLM, TENSORRT_LLM_DRAFT
from tasks.triton.placement import write_model
from tasks.triton.repository import models_of
from tasks.triton.upstream import fill_upstream
from tasks.triton.upstream_values import upstream_values
from tasks.trtllm.limits import engine_limits
from tasks.trtllm.speculation import DRAFT_FOLDER


def assemble_native(model: Model, engine: Path, tokenizer: Path, output: Path) -> None:
    """Write `tensorrt_llm`, `llm` and the ensemble, called as the model is, for Triton to load as they are.

    They use the engine and the tokenizer where they are: the folders in the configurations are absolute, those given
    here. Adapters that requests choose are fetched. `output` appears whole or not at all. Raises UsageError, and as
    sources do.
    """
    kind = _engine_kind(model, engine, tokenizer)
    if output.exists():
        raise UsageError(f"{output} exists already", hint="remove it, or name another folder", code="output-exists")
    names = {name: name for name in (TENSORRT_LLM_DRAFT, TENSORRT_LLM, LLM)} | {RELEASE: model.name}
    limits = engine_limits(engine)
    if kind.draft_model() is not None:
        limits = limits.with_draft(engine_limits(engine / DRAFT_FOLDER))
    if model.name == LLM:
        raise UsageError(f"the public name is '{LLM}', and so is one of its models", hint="rename the model")
    with tempfile.TemporaryDirectory() as folder, whole_folder(output) as whole:
        relative = Path(folder) / "relative"
        adapters = RequestAdapters(_fetched(model, Path(folder) / "adapters"), engine.joinpath)
        files = files_in(tokenizer)
        kind.write_release(limits, files, relative, str(tokenizer.absolute()), adapters)
        for name in models_of(relative):
            write_model(relative / name, whole / names[name], names, engine)


def assemble_upstream(model: Model, templates: Path, engine: Path, tokenizer: Path, output: Path) -> None:
    """Fill NVIDIA's templates in `templates` for the engine in `engine`; `output` appears whole or not at all.

    Folders in the configurations are the absolute ones given here. Raises UsageError and TemplateError.
    """
    kind = _engine_kind(model, engine, tokenizer)
    version, limits = kind.recipe.runtime.tensorrt_llm, engine_limits(engine)
    if kind.draft_model() is not None:
        raise UsageError(
            "a draft model is no part of the upstream layout here",
            hint="leave --layout out: in the native one `llm` asks both engines",
            code="serving-unfit",
        )
    if model.adapters:
        raise UsageError(
            f"adapters have no names in the upstream layout, whose clients send weights: {', '.join(model.adapters)}",
            hint="leave --layout out, or remove `adapters`: recipe.lora and lora_cache stay",
            code="serving-unfit",
        )
    values = upstream_values(
        kind.parameters,
        version,
        engine_folder=str(engine.absolute()),
        tokenizer_folder=str(tokenizer.absolute()),
        max_batch_size=model.serving.slots,
        kv_cache_tokens=kind.cache_tokens(limits) if kind.parameters.kv_cache_bytes else None,
    )
    values["tensorrt_llm"] |= decoding_parameters(
        kind.recipe.runtime.version, kind.parameters, limits, kind.recipe.speculation
    )
    fill_upstream(templates, values, output, version)


def _fetched(model: Model, folder: Path) -> dict[str, Path]:
    """The adapters of a model's file, each in a folder of its own below `folder`."""
    for name, uri in model.adapters.items():
        fetch(resolve(Source(uri=uri, include=FILES)), folder / name, lambda done, total: None)
    return {name: folder / name for name in model.adapters}


def _engine_kind(model: Model, engine: Path, tokenizer: Path) -> TrtEngineKind:
    """The model of kind trt-engine. Raises UsageError where kind, engine and tokenizer do not go together."""
    kind = TrtEngineKind(model)
    _require_version(engine, kind.recipe.runtime.tensorrt_llm)
    if not tokenizer.is_dir():
        raise UsageError(f"there is no folder {tokenizer} with a tokenizer", hint="--tokenizer takes a folder")
    return kind


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
