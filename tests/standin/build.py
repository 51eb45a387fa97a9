"""`trtllm-build`: reads a checkpoint and writes an engine for each rank, with `--workers` in processes."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.standin import failures, layers, safetensors
from tests.standin.build_config import build_config, fit
from tests.standin.checkpoint import suffixes
from tests.standin.context import Context, Log, clock, tensorrt
from tests.standin.facts import keys
from tests.standin.layers import BUILT_SINCE
from tests.standin.safetensors import Tensor

TOOL = "trtllm-build"
MAGIC = b"ftrt"
"""How an engine file begins. A line of JSON follows, with what the engine was built for."""

_WITH_HEADS = {"medusa": "MedusaForCausalLM", "eagle": "EagleForCausalLM"}


@dataclass(frozen=True)
class Job:
    """What the build of every rank gets."""

    context: Context
    arguments: argparse.Namespace
    checkpoint: Path | None
    """None if only a model config is given; weights are then made up."""
    model: dict[str, Any]
    build: dict[str, Any]


def run(arguments: argparse.Namespace, context: Context) -> None:
    log = Log(arguments.log_level)
    started = time.monotonic()
    _check(arguments, context, log)
    Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
    workers = min(context.visible_gpus(), arguments.workers)
    build = build_config(arguments, context, log)
    source: str = arguments.checkpoint_dir if arguments.checkpoint_dir is not None else arguments.model_config
    alone = source.lower().endswith(".json")
    model: dict[str, Any] = json.loads((Path(source) if alone else Path(source) / "config.json").read_text())
    if arguments.logits_dtype is not None:
        model["logits_dtype"] = arguments.logits_dtype
    quantization: dict[str, Any] = model.get("quantization") or {}
    algorithm = quantization.get("quant_algo")
    # From 0.13 on such a layer is left as it is.
    if not context.since("0.13") and arguments.use_fused_mlp and algorithm not in (None, "FP8"):
        raise ValueError(f"Unsupported quant algo: {algorithm}")
    job = Job(context, arguments, None if alone else Path(source), model, build)
    failures.hang_workers_if_chosen(TOOL)
    _each(model["mapping"]["world_size"], workers, job)
    log.info(f"Total time of building all engines: {clock(time.monotonic() - started)}")


def _check(arguments: argparse.Namespace, context: Context, log: Log) -> None:
    # The real tool looks for a key that always exists, so it always warns.
    if context.since("0.19"):
        log.warning(
            "Option --gather_generation_logits is deprecated, a build flag is not required anymore. "
            "Use --output_generation_logits at runtime instead."
        )
    gathers = arguments.gather_context_logits or arguments.gather_all_token_logits
    if context.since("0.10") and gathers and arguments.max_draft_len > 0:
        raise RuntimeError(
            "Gather context logits is not support with draft len > 0. If want to get the accepted tokens' logits "
            "from target model, please just enable gather_generation_logits"
        )
    if context.since("0.13") and hasattr(arguments, "paged_kv_cache"):
        log.warning("Option --paged_kv_cache is deprecated, use --kv_cache_type=paged/disabled instead.")
    if context.since("0.9") and arguments.multiple_profiles == "enable" and arguments.opt_num_tokens is not None:
        raise RuntimeError(
            "multiple_profiles is enabled, while opt_num_tokens is set. "
            "They are not supposed to be working in the same time for now."
        )


def _each(ranks: int, workers: int, job: Job) -> None:
    if workers == 1:
        for rank in range(ranks):
            _build(rank, job)
        return
    failed = False
    with ProcessPoolExecutor(max_workers=workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(_build_in_worker, rank, job) for rank in range(ranks)]):
            try:
                future.result()
            except Exception:
                traceback.print_exc()
                failed = True
    assert not failed, "Engine building failed, please check error log."


def _build_in_worker(rank: int, job: Job) -> None:
    job.context.banner()
    _build(rank, job)


def _build(rank: int, job: Job) -> None:
    context, arguments = job.context, job.arguments
    log = Log(arguments.log_level)
    _check_model(rank, job)
    tensors = _weights(rank, job, log)
    build = fit(job.build, job.model, context, log)
    network = "Unnamed Network 0"
    if context.since("0.13"):
        log.info("Total time of constructing network from module object 0.01 seconds")
    if context.since("0.12"):
        log.info("Total optimization profiles added: 1")
    if context.since("0.13"):
        log.info(f"Total time to initialize the weights in network {network}: 00:00:00")
    log.info(f"Build TensorRT engine {network}")
    tensorrt("I", "[GraphReduction] The approximate region cut reduction algorithm is called.")
    failures.fail_if_chosen(TOOL, context)
    engine: bytes | None = None
    if failures.chosen(TOOL) == "gpu-memory":
        failures.no_gpu_memory_for_the_engine(context, log)
    else:
        engine = _engine(rank, job, tensors, build)
        log.info(f"Total time of building {network}: 00:00:00")
    if rank == 0 and build.get("output_timing_cache") is not None:
        _save_timing_cache(build, context, log)
    if context.since("0.12"):
        log.info("Build phase peak memory: 64.00 MB, children: 0.00 MB")
    _save(rank, job, build, engine, tensors, log)


def _check_model(rank: int, job: Job) -> None:
    architecture, build = job.model["architecture"], job.build
    if job.context.since("1.2"):
        assert not build["plugin_config"]["streamingllm"], (
            "StreamingLLM is no longer supported because attention sink cannot work with the non-cyclic kv cache "
            "kernel & runtime changes."
        )
    if job.context.since("0.15"):
        assert not build["plugin_config"]["pp_reduce_scatter"] or architecture == "MixtralForCausalLM", (
            "PP reduce scatter is only supported in the mixtral model."
        )
    mode = getattr(job.arguments, "speculative_decoding_mode", None)
    if mode in _WITH_HEADS and architecture != _WITH_HEADS[mode]:
        raise AttributeError(
            f"'{architecture.removesuffix('ForCausalLM')}Config' object has no attribute 'max_draft_len'"
        )
    assert rank < job.model["mapping"]["world_size"]
    if architecture not in BUILT_SINCE or not job.context.since(BUILT_SINCE[architecture]):
        words = f"Unsupported model architecture: {architecture}"
        raise AssertionError(words) if job.context.since("0.11") else RuntimeError(words)
    # What the network of a family reads, and the config of another converter lacks.
    for name in ("qwen_type", "seq_length") if architecture.startswith("Q") else ():
        if name not in job.model:
            raise AttributeError(f"'PretrainedConfig' object has no attribute '{name}'")
    if architecture == "Gemma2ForCausalLM":
        assert job.model.get("query_pre_attn_scalar") is not None


def _weights(rank: int, job: Job, log: Log) -> dict[str, Tensor]:
    if job.checkpoint is None:
        return {}
    tensor, parts = job.model["mapping"]["tp_size"], job.model["mapping"].get("cp_size", 1)
    # Ranks that differ only in their part of the context have the same weights.
    rank = rank % tensor + rank // (tensor * parts) * tensor
    path = job.checkpoint / f"rank{rank}.safetensors"
    if job.context.since("0.11"):
        assert path.is_file()
    provided = safetensors.read(path, sentences=job.context.since("1.0"))
    expected = _expected(rank, job.model)
    missing, more = expected - provided.keys(), provided.keys() - expected
    if not job.context.since("0.9"):
        if missing or more:
            words = "Provided tensor names are different from those expected by the engine."
            words += f"\nExpected but not provided tensors: {missing}" if missing else ""
            words += f"\nProvided but not expected tensors: {more}" if more else ""
            raise RuntimeError(words)
    elif missing and not job.context.since("0.10"):
        raise AssertionError(f"Expected but not provided tensors:{missing}")
    elif missing:
        raise RuntimeError(f"Required but not provided tensors:{missing}")
    if more:
        log.warning(f"Provided but not expected tensors: {more}")
    return provided


def _expected(rank: int, model: dict[str, Any]) -> set[str]:
    """The names that the file of `rank` must have."""
    architecture = model["architecture"]
    if model.get("qwen_type") == "qwen2":
        architecture = "Qwen2ForCausalLM"
    matrices = layers.matrices(model, architecture)
    stages = model["mapping"]["pp_size"]
    stage = rank // model["mapping"]["tp_size"]
    more = suffixes(model["quantization"]["quant_algo"])
    wanted = {"transformer.vocab_embedding.weight"} if stage == 0 else set[str]()
    if stage == stages - 1:
        wanted |= {"transformer.ln_f.weight", "lm_head.weight"}
    for layer in range(model["num_hidden_layers"] // stages):
        prefix = f"transformer.layers.{layer}."
        wanted |= {prefix + name for name in layers.others(model, architecture)}
        wanted |= {f"{prefix}{name}.{suffix}" for name in matrices for suffix in ("weight", *more)}
    return wanted


def _engine(rank: int, job: Job, tensors: dict[str, Tensor], build: dict[str, Any]) -> bytes:
    """The bytes of an engine. Equal input gives equal bytes, which the real builder does not promise."""
    built_for = {
        "tensorrt": job.context.release.tensorrt,
        "compute": job.context.compute,
        "rank": rank,
        "weights": hashlib.sha256(b"".join(tensor.data for tensor in tensors.values())).hexdigest(),
        "build": hashlib.sha256(json.dumps(build, sort_keys=True).encode()).hexdigest(),
    }
    return MAGIC + json.dumps(built_for).encode() + b"\n" + bytes(4096)


def _save_timing_cache(build: dict[str, Any], context: Context, log: Log) -> None:
    given = build.get("input_timing_cache")
    known = Path(given).read_bytes() if given and Path(given).is_file() else b""
    path = Path(build["output_timing_cache"])
    # A cache grows with each measurement, and the stand-in makes one a build.
    path.write_bytes(known + f"{context.release.tensorrt} {context.compute}\n".encode())
    log.info(f"Timing cache serialized to {path}")


def _save(
    rank: int, job: Job, build: dict[str, Any], engine: bytes | None, tensors: dict[str, Tensor], log: Log
) -> None:
    folder, context = Path(job.arguments.output_dir), job.context
    if rank == 0:
        _save_config(folder, job, build)
    path = folder / f"rank{rank}.engine"
    if engine is not None or not context.since("0.10"):
        log.info(f"Serializing engine to {path}...")
        with path.open("wb") as file:
            if failures.chosen(TOOL) != "empty-rank" or rank != job.model["mapping"]["world_size"] - 1:
                # Up to 0.9 a failed build reaches this line too: a TypeError, and an empty file.
                file.write(engine)  # pyright: ignore[reportArgumentType]
        log.info("Engine serialized. Total time: 00:00:00")
    if build["plugin_config"].get("manage_weights"):
        managed = folder / f"rank{rank}_managed_weights.safetensors"
        log.info(f"Serializing {len(tensors)} managed weights to {managed}...")
        safetensors.write(managed, tensors)


def _save_config(folder: Path, job: Job, build: dict[str, Any]) -> None:
    model = dict(job.model)
    if job.context.since("0.9"):
        model = keys("checkpoint", job.context.version) | model
    if failures.chosen(TOOL) == "wrong-config":
        build = build | {"max_batch_size": build["max_batch_size"] + 1}
    content = {"version": job.context.version, "pretrained_config": model, "build_config": build}
    (folder / "config.json").write_text(json.dumps(content, indent=4))
