"""`quantize.py`: calibrates a Llama and writes it as a checkpoint."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from tests.standin import checkpoint, failures, heads, llama
from tests.standin.checkpoint import Mapping, Quantization
from tests.standin.context import Context, Log

TOOL = "quantize.py"

_ALGORITHMS = {
    "fp8": "FP8",
    "fp8_pc_pt": "FP8_PER_CHANNEL_PER_TOKEN",
    "nvfp4": "NVFP4",
    "int8_sq": "W8A8_SQ_PER_CHANNEL",
    "int4_awq": "W4A16_AWQ",
    "w4a8_awq": "W4A8_AWQ",
    "int8_wo": "W8A16",
    "int4_wo": "W4A16",
    "full_prec": None,
}
_UNCALIBRATED = ("full_prec", "int8_wo", "int4_wo")


def run(arguments: argparse.Namespace, context: Context) -> None:
    log = Log("info")
    if arguments.model_dir is None:
        raise ValueError("One of source checkpoint (model_dir, nemo_ckpt_path) must be specified")
    if not context.visible_gpus():
        raise OSError("GPU is required for inference.")
    if getattr(arguments, "autoq_format", None):
        raise NotImplementedError("the stand-in mixes no precisions")
    loaded = llama.load(Path(arguments.model_dir), context, log, by_transformers=True)
    if arguments.qformat in _UNCALIBRATED and arguments.kv_cache_dtype is None:
        log.info(f"No quantization applied, export {arguments.dtype} model")
    else:
        _calibrate(arguments, context, log)
    _export(arguments, context, log, loaded)


def _calibrate(arguments: argparse.Namespace, context: Context, log: Log) -> None:
    size = arguments.calib_size
    if "awq" in arguments.qformat and size > 32:
        log.info(f"AWQ calibration could take longer with calib_size = {size}, Using calib_size=32 instead")
        size = 32
    log.info("Loading calibration dataset")
    # Up to 0.9 no flag names another dataset.
    _check_dataset(getattr(arguments, "calib_dataset", "cnn_dailymail"), context, log)
    log.info("Starting quantization...")
    failures.hang_workers_if_chosen(TOOL)
    failures.fail_if_chosen(TOOL, context)
    for batch in range(min(3, size)):
        log.info(f"Calibrating batch {batch}")
    log.info("Quantization done. Total time used: 0.01 s.")


def reach(dataset: str) -> None:
    """Raise if a dataset is not a folder and the Hub may not be asked. Fetches nothing."""
    if not Path(dataset).is_dir() and os.environ.get("HF_DATASETS_OFFLINE") == "1":
        raise ConnectionError(f"Couldn't reach '{dataset}' on the Hub (OfflineModeIsEnabled)")


def _check_dataset(name: str, context: Context, log: Log) -> None:
    """Known names come before folders, and a name is known by a part of it."""
    if "cnn_dailymail" in name or name == "pileval":
        reach(name)
    elif Path(name).is_dir() and context.since("0.11"):
        log.info(
            f"Recognized local dataset repo {name} for calibration; "
            "assuming the calibration data are in the train split and text column."
        )
    else:
        raise NotImplementedError(
            f"Unsupported dataset name or local repo directory: {name}." if context.since("0.11") else ""
        )


def _export(arguments: argparse.Namespace, context: Context, log: Log, loaded: llama.Llama) -> None:
    started = time.monotonic()
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    mapping = Mapping(arguments.tp_size, arguments.pp_size, getattr(arguments, "cp_size", 1))
    dtype = llama.dtype(loaded.config) if arguments.dtype == "auto" else arguments.dtype
    algorithm = _ALGORITHMS[arguments.qformat]
    settings: dict[str, Any] = {"exclude_modules": ["lm_head"]} if algorithm else {}
    if "awq" in arguments.qformat:
        settings |= {"group_size": arguments.awq_block_size, "has_zero_point": False, "pre_quant_scale": True}
    cache = arguments.kv_cache_dtype.upper() if arguments.kv_cache_dtype else None
    quantization = Quantization(algorithm, cache, tuple(settings.items()))
    config = checkpoint.config(loaded.config, context, dtype, mapping, quantization, {})
    if getattr(arguments, "medusa_model_dir", None) is not None:
        config = heads.with_heads(config, arguments)
    config["producer"] = {"name": "modelopt" if context.since("0.10") else "ammo", "version": context.release.modelopt}
    if failures.chosen(TOOL) == "wrong-config":
        config["dtype"] = "float32"
    checkpoint.save_config(folder, config)
    for rank in range(mapping.files):
        tensors = checkpoint.rank_tensors(loaded, rank, mapping, dtype, algorithm)
        checkpoint.save_rank(folder, rank, tensors, TOOL, last=rank == mapping.files - 1)
    log.info(f"Quantized model exported to {folder} \nTotal time used {time.monotonic() - started:.2f} s.")
