"""A stand-in for Megatron-Bridge's conversion worker and for NeMo 2's exporter: an interpreter with one of them.

It takes the arguments of `scripts/conversion/run_conversion.py export --device cpu` and no others, wants the files that
the real one reads, and writes a model of Hugging Face form. The weights are those in the checkpoint: a shard of the
stand-in holds a safetensors file. Written from Megatron-Bridge's `scripts/conversion` and from `nemo/lightning/io`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

_BRIDGE = """
import argparse, json, pathlib, shutil, sys
parser = argparse.ArgumentParser(allow_abbrev=False)
commands = parser.add_subparsers(dest="command", required=True)
export = commands.add_parser("export", allow_abbrev=False)
export.add_argument("--device", choices=("cpu", "gpu"), required=True)
for name in ("--hf-model", "--megatron-path", "--hf-path"):
    export.add_argument(name, required=True)
export.add_argument("--torch-dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
for name in ("--trust-remote-code", "--overwrite", "--no-progress", "--not-strict"):
    export.add_argument(name, action="store_true")
given = parser.parse_args()
checkpoint, like, output = map(pathlib.Path, (given.megatron_path, given.hf_model, given.hf_path))
if not checkpoint.exists():
    raise FileNotFoundError(f"Megatron checkpoint does not exist: {checkpoint}")
if not list(checkpoint.glob("**/run_config.yaml")):
    raise FileNotFoundError(f"Could not find run_config.yaml in {checkpoint}.")
if output.exists() and any(output.iterdir()):
    raise FileExistsError(f"{output} is not empty")
iterations = [path for path in checkpoint.iterdir() if path.name.startswith("iter_")]
folder = max(iterations, key=lambda path: int(path.name.removeprefix("iter_")), default=checkpoint)
if not (folder / "run_config.yaml").is_file():
    raise FileNotFoundError(f"Could not find run_config.yaml in {checkpoint}.")
for name in (".metadata", "common.pt"):
    (folder / name).read_bytes()
config = json.loads((like / "config.json").read_text())
output.mkdir(parents=True)
(output / "config.json").write_text(json.dumps(config))
for path in like.iterdir():
    if path.name.startswith("tokenizer"):
        shutil.copy(path, output)
(shard,) = folder.glob("*.distcp")
shutil.copy(shard, output / "model.safetensors")
"""

_NEMO = """
import pathlib, shutil
def export_ckpt(path, target, output_path=None, overwrite=False, load_connector=None):
    path, output = pathlib.Path(path), pathlib.Path(output_path)
    if target != "hf":
        raise ValueError(f"No exporter found for {target}")
    if output.exists() and not overwrite:
        raise FileExistsError(f"Output path {output} exists")
    for name in ("context/io.json", "context/model.yaml", "weights/.metadata", "weights/common.pt"):
        (path / name).read_bytes()
    output.mkdir(parents=True)
    shutil.copy(path / "context" / "nemo_tokenizer" / "tokenizer.json", output)
    (output / "config.json").write_text('@CONFIG@')
    (shard,) = (path / "weights").glob("*.distcp")
    shutil.copy(shard, output / "model.safetensors")
    return output
"""


_SIZES = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 4, "max_position_embeddings": 4096}
_CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], **_SIZES})


class Exporter(NamedTuple):
    """`python` is an interpreter that has the tool, `checkout` the folder with its scripts; empty for NeMo 2."""

    python: str
    checkout: str


def make(folder: Path, distribution: str, version: str) -> Exporter:
    """An environment with this distribution alone: `megatron-bridge` or `nemo-toolkit`."""
    site = folder / "site"
    record = site / f"{distribution.replace('-', '_')}-{version}.dist-info" / "METADATA"
    record.parent.mkdir(parents=True)
    record.write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    if distribution == "nemo-toolkit":
        package = site / "nemo" / "collections" / "llm"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(dedent(_NEMO).replace("@CONFIG@", _CONFIG))
        return Exporter(str(python), "")
    worker = folder / "checkout" / "scripts" / "conversion" / "run_conversion.py"
    worker.parent.mkdir(parents=True)
    worker.write_text(dedent(_BRIDGE))
    return Exporter(str(python), str(folder / "checkout"))


def checkpoint(form: str, weights: bytes, folder: str = "") -> dict[str, bytes]:
    """The files of a checkpoint that these tools export, below `folder`."""
    files = {"__0_0.distcp": weights, ".metadata": b"\x80\x02.", "common.pt": b"PK", "metadata.json": b"{}"}
    if form == "nemo2":
        context = {"io.json": b"{}", "model.yaml": b"_target_: nemo\n", "nemo_tokenizer/tokenizer.json": b"{}"}
        weighted = {f"weights/{name}": data for name, data in files.items()}
        return weighted | {f"context/{name}": data for name, data in context.items()}
    return {f"{folder}{name}": data for name, data in {**files, "run_config.yaml": b"model: {}\n"}.items()}


def reference() -> dict[str, bytes]:
    """A model like the checkpoint, with other weights."""
    return {"config.json": _CONFIG.encode(), "tokenizer.json": b"{}", "model.safetensors": b"\x02" + bytes(7) + b"{}"}
