"""`run.py` of the stand-in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.standin import toolchain
from tests.standin.programs import (
    ask_engine,
    build_engine,
    convert_weights,
)
from tests.standin.toolchain import Toolchain

# The steps' own tests run the stand-in in `make test` already.
pytestmark = pytest.mark.slow


def test_an_engine_of_another_tensorrt_or_architecture_does_not_load(
    toolchains: dict[str, Toolchain], model: Path, tmp_path: Path
) -> None:
    ada = toolchain.make(tmp_path / "ada", "0.8.0", architecture="sm89")
    convert_weights(ada, model, tmp_path)
    assert build_engine(ada, tmp_path).returncode == 0
    for version, words in (
        (
            "0.8.0",
            "[TensorRT-LLM][ERROR] 6: The engine plan file is generated on an incompatible device, expecting "
            "compute 9.0 got compute 8.9, please rebuild.",
        ),
        (
            "1.2.1",
            "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not compatible "
            "with this version of TensorRT, expecting library version 10.14.1.48 got 9.2.0.post12.dev5, ",
        ),
    ):
        ran = ask_engine(toolchains[version], model, tmp_path)
        assert ran.returncode == 1 and words in ran.stderr
    ran = ask_engine(toolchains["0.8.0"], model, tmp_path, "--use_py_session")
    assert "[TRT] [E] 6: The engine plan file is generated on an incompatible device" in ran.stderr


def test_an_engine_lacks_a_file_or_a_rank(toolchains: dict[str, Toolchain], model: Path, tmp_path: Path) -> None:
    chain = toolchains["0.12.0"]
    convert_weights(chain, model, tmp_path, "--tp_size", "2")
    assert build_engine(chain, tmp_path, failure="empty-rank").returncode == 0
    assert (tmp_path / "engine/rank1.engine").stat().st_size == 0
    ran = ask_engine(chain, model, tmp_path)
    assert "MPI size 1 != TP size 2 * PP size 1 * CP Size 1" in ran.stderr.splitlines()[-1]
    ran = ask_engine(chain, model, tmp_path, "--use_py_session")
    assert ran.stderr.splitlines()[-1] == "AssertionError: Engine world size (2 * 1) != Runtime world size (1)"
    ran = ask_engine(chain, model, tmp_path, ranks=2)
    assert ran.returncode == 1 and "Error Code 1: Serialization" in ran.stderr
    # Whole, so that only the other rank fails: the first that does ends both.
    (tmp_path / "engine/rank0.engine").replace(tmp_path / "engine/rank1.engine")
    ran = ask_engine(chain, model, tmp_path, ranks=2)
    assert ran.returncode == 1 and "Error opening engine file: engine/rank0.engine" in ran.stderr
