"""Running the stand-in's programs as tests do, and the names that they have."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests.standin import failures
from tests.standin.toolchain import Toolchain

BUILD, CONVERT, QUANTIZE, RUN = "trtllm-build", "convert_checkpoint.py", "quantize.py", "run.py"
CHAIN = ("0.8.0", "0.12.0", "1.2.1")
"""The versions that tests of whole programs take: each differs much from the one before."""


def run_tool(
    chain: Toolchain, tool: str, arguments: list[str], folder: Path, *, failure: str = "", ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HF_DATASETS_OFFLINE": "1", failures.VARIABLE: failure}
    command = chain.command(tool)
    if ranks > 1:
        command = [str(chain.folder / "bin/mpirun"), "--allow-run-as-root", "-n", str(ranks), *command]
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def convert_weights(chain: Toolchain, model: Path, folder: Path, *more: str, failure: str = "") -> str:
    ran = run_tool(
        chain, CONVERT, ["--model_dir", str(model), "--output_dir", "checkpoint", *more], folder, failure=failure
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def build_engine(chain: Toolchain, folder: Path, *more: str, failure: str = "") -> subprocess.CompletedProcess[str]:
    return run_tool(
        chain, BUILD, ["--checkpoint_dir", "checkpoint", "--output_dir", "engine", *more], folder, failure=failure
    )


def ask_engine(
    chain: Toolchain, model: Path, folder: Path, *more: str, failure: str = "", ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    arguments = [
        "--engine_dir",
        "engine",
        "--tokenizer_dir",
        str(model),
        "--max_output_len",
        "6",
        "--input_text",
        "one",
    ]
    return run_tool(chain, RUN, [*arguments, *more], folder, failure=failure, ranks=ranks)


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
