"""`run.py`: loads an engine and a tokenizer, and answers prompts with words of the tokenizer."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tests.standin import failures
from tests.standin.build import MAGIC
from tests.standin.context import Context, runtime, tensorrt

TOOL = "run.py"

_LONGEST_ANSWER = 12
"""In words."""


def run(arguments: argparse.Namespace, context: Context) -> None:
    folder = Path(arguments.engine_dir)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    model, build = config["pretrained_config"], config["build_config"]
    tokenizer = _Tokenizer(arguments.tokenizer_dir)
    rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
    _check_world(model["mapping"], arguments, context)
    engine = _load(folder / f"rank{rank}.engine", arguments, context)
    managed = folder / f"rank{rank}_managed_weights.safetensors"
    if build["plugin_config"].get("manage_weights") and not managed.is_file():
        raise _assertion(f"Error opening engine file: {managed}", "utils.cpp:55")
    failures.hang_workers_if_chosen(TOOL)
    failures.fail_if_chosen(TOOL, context)
    if rank:
        return
    if not arguments.use_py_session:
        built = f"Engine version {config['version']} found in the config file"
        runtime("INFO", f"{built}, assuming engine(s) built by new builder API.")
    # In every version only models other than a Llama have prompt templates.
    for number, prompt in enumerate(arguments.input_text):
        if len(prompt.split()) > build["max_input_len"]:
            raise RuntimeError(
                f"Prompt length ({len(prompt.split())}) exceeds maximum input length ({build['max_input_len']}). "
                "Set log level to info and check TRTGptModel logs for how maximum input length is set"
            )
        print(f'Input [Text {number}]: "{tokenizer.begin}{prompt}"')
        for beam in range(arguments.num_beams):
            words = tokenizer.words(f"{engine}{prompt}{beam}", min(arguments.max_output_len, _LONGEST_ANSWER))
            print(f'Output [Text {number} Beam {beam}]: "{words}"', flush=True)


class _Tokenizer:
    """The words of a `tokenizer.json`, and the token that begins a prompt."""

    def __init__(self, folder: str | None) -> None:
        path = Path(folder or "meta-llama/Llama-2-7b-hf") / "tokenizer.json"
        if not path.is_file():
            raise OSError(
                f"Can't load tokenizer for '{path.parent}'. If you were trying to load it from "
                "'https://huggingface.co/models', make sure you don't have a local directory with the same name. "
                f"Otherwise, make sure '{path.parent}' is the correct path to a directory containing all relevant "
                "files for a LlamaTokenizerFast tokenizer."
            )
        vocabulary: dict[str, int] = json.loads(path.read_text())["model"]["vocab"]
        words = (token.strip("\u0120\u2581") for token in vocabulary)
        self._words = sorted({word for word in words if len(word) > 1 and word.isascii() and word.isalpha()})
        settings = path.with_name("tokenizer_config.json")
        stored: dict[str, Any] = json.loads(settings.read_text()) if settings.is_file() else {}
        begin = stored.get("bos_token") if stored.get("add_bos_token", True) else None
        self.begin: str = begin["content"] if isinstance(begin, dict) else begin or ""

    def words(self, seed: str, count: int) -> str:
        if failures.chosen(TOOL) == "silent-answer":
            return ""
        digest = hashlib.shake_128(seed.encode()).digest(2 * count)
        picks = (int.from_bytes(digest[at : at + 2]) for at in range(0, len(digest), 2))
        return " ".join(self._words[pick % len(self._words)] for pick in picks)


def _check_world(mapping: dict[str, Any], arguments: argparse.Namespace, context: Context) -> None:
    tensor, pipeline, parts = mapping["tp_size"], mapping["pp_size"], mapping.get("cp_size", 1)
    ranks = int(os.environ.get("OMPI_COMM_WORLD_SIZE", "1")) + (failures.chosen(TOOL) == "world-size")
    if ranks == tensor * pipeline * parts:
        return
    if arguments.use_py_session:
        raise AssertionError(f"Engine world size ({tensor} * {pipeline}) != Runtime world size ({ranks})")
    words = f"MPI size {ranks} != TP size {tensor} * PP size {pipeline} * CP Size {parts}"
    raise _assertion(words if context.since("0.10") else "mpiSize == tp * pp", "worldConfig.cpp:97")


def _load(path: Path, arguments: argparse.Namespace, context: Context) -> str:
    """The beginning of the engine file in hex. Logs and raises if it is for another TensorRT or GPU."""
    if not path.is_file():
        raise _assertion(f"Error opening engine file: {path}", "utils.cpp:55")
    text = path.read_bytes()
    reason = ""
    if not text.startswith(MAGIC):
        reason = (
            "1: [stdArchiveReader.cpp::stdArchiveReaderInitCommon::47] Error Code 1: Serialization (Serialization "
            "assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current "
            "Version: 237, Serialized Engine Version: 0)"
        )
    else:
        built: dict[str, str] = json.loads(text[len(MAGIC) :].partition(b"\n")[0])
        failure = failures.chosen(TOOL)
        library = "9.2.0.4" if failure == "version" else built["tensorrt"]
        compute = "8.9" if failure == "architecture" else built["compute"]
        if library != context.release.tensorrt:
            reason = (
                "The engine plan file is not compatible with this version of TensorRT, expecting library version "
                f"{context.release.tensorrt} got {library}, please rebuild."
            )
        elif compute != context.compute:
            reason = (
                "The engine plan file is generated on an incompatible device, expecting compute "
                f"{context.compute} got compute {compute}, please rebuild."
            )
        if reason:
            api = f"IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error ({reason})"
            reason = api if context.since("0.10") else f"6: {reason}"
    if not reason:
        return text[:512].hex()
    broken = (
        "2: [engine.cpp::deserializeEngine::1148] Error Code 2: Internal Error "
        "(Assertion engine->deserialize(start, size, allocator, runtime) failed. )"
    )
    for line in [reason] if context.since("0.10") else [reason, broken]:
        if arguments.use_py_session:
            tensorrt("E", line)
        else:
            runtime("ERROR", line)
    raise _assertion("Failed to deserialize cuda engine.", "tllmRuntime.cpp:239")


def _assertion(words: str, place: str) -> RuntimeError:
    return RuntimeError(f"[TensorRT-LLM][ERROR] Assertion failed: {words} ({place})")
