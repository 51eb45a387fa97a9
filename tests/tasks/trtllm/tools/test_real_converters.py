"""The table of converters, and every planned command, against the argument parsers of TensorRT-LLM itself.

ENGINEHOUSE_TEST_TENSORRT_LLM is a folder with a checkout of each version that is to be asked, `0.8.0` to `0.16.0` and
`1.2.1`, of which `examples` and `tensorrt_llm` are read. Nothing of them runs but what makes a parser.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import pytest
from packaging.version import Version
from pydantic import ValidationError

from infra.errors import UsageError
from tasks.kinds.choice import engine_kind
from tasks.trtllm.architectures import convert_script, moved_script
from tasks.trtllm.tools.options import CONVERTERS, span
from tasks.weights.config import read_facts
from tests.tasks.trtllm.model_files import ENGINES, SERVED, model_file

CHECKOUTS = os.environ.get("ENGINEHOUSE_TEST_TENSORRT_LLM", "")
REAL = tuple(version for version in ENGINES if Path(CHECKOUTS, version, "examples").is_dir() and CHECKOUTS)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # each script starts an interpreter of its own
    pytest.mark.skipif(not REAL, reason="ENGINEHOUSE_TEST_TENSORRT_LLM names no checkouts of TensorRT-LLM"),
]

# Taken by the parser, and then without any effect.
IDLE = {("0.8.0", "llama", "--fp8_kv_cache")}
# The checkouts of 0.12 to 0.16 are the last ones before the release. These came with the release.
RELEASED = {("0.13.0", "llama", "--weight_only_precision")}

SMALL = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 64}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}

RECIPES: tuple[dict[str, Any], ...] = (
    {},
    {"dtype": "float16"},
    {"tp_size": 2},
    {"tp_size": 2, "pp_size": 2},
    {"cp_size": 2},
    {"tp_size": 2, "moe_tp_size": 1, "moe_ep_size": 2},
    {"quantization": "int8_wo"},
    {"quantization": "int4_wo", "tp_size": 4},
    {"quantization": "fp8_rowwise"},
    {"quantization": "fp8", "kv_cache_dtype": "fp8"},
    {"quantization": "int4_awq"},
    {"quantization": "int8_sq", "tp_size": 2},
    {"kv_cache_dtype": "fp8"},
    {"kv_cache_dtype": "int8"},
    {"kv_cache_dtype": "int8", "calibration": {"dataset": "/data/texts", "size": 32}},
)


class RealParser:
    """A script of one version, whose parser answers in a process of its own."""

    def __init__(self, version: str, script: str, stack: ExitStack) -> None:
        checkout = Path(CHECKOUTS, version)
        self.script = checkout / "examples" / script
        self._program = [sys.executable, str(Path(__file__).with_name("real_parser.py")), str(checkout)]
        self._stack = stack

    @cached_property
    def _process(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*self._program, str(self.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self._stack.enter_context(process)

    def ask(self, question: object) -> Any:
        asked, answers = self._pipes
        asked.write(json.dumps(question) + "\n")
        asked.flush()
        # Scripts print before they parse: their version, for one.
        while not (line := answers.readline()).startswith(("{", '"', "null")):
            assert line, f"{self.script} answers nothing"
        return json.loads(line)

    @property
    def _pipes(self) -> tuple[IO[str], IO[str]]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        return process.stdin, process.stdout


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("version", REAL)
def test_the_table_has_the_options_of_each_parser(version: str, stack: ExitStack) -> None:
    converters = 0
    for converter, options in CONVERTERS.items():
        script = moved_script(convert_script(converter, Version(version)), Version(version))
        parser = RealParser(version, script, stack)
        known = {option: found for option in options if (found := span(converter, option, Version(version)))}
        if not parser.script.is_file():
            assert not known, (converter, version)
            continue
        converters += 1
        real = parser.ask("options")
        lacking = {option for option in real if (version, converter, option) not in IDLE}
        assert lacking == set(known), (converter, lacking ^ set(known))
        for option, read in known.items():
            row = real[option]
            assert read.switch == row.get("switch", False), (converter, option)
            assert set(read.aliases) == set(row.get("aliases", ())), (converter, option)
            if (version, converter, option) not in RELEASED:
                assert set(read.choices) == set(row.get("choices", ())), (converter, option)
            default = row.get("default")
            if isinstance(default, int | float):
                assert float(read.default or "nan") == default, (converter, option)
            elif isinstance(default, str):
                assert read.default == default, (converter, option)
    assert converters >= 11


@pytest.mark.parametrize("version", REAL)
def test_each_planned_command_is_taken_by_its_own_parser(version: str, stack: ExitStack) -> None:
    parsers: dict[str, RealParser] = {}
    taken = refused_by_plan = quantized = 0
    for served in SERVED:
        for recipe in RECIPES:
            try:
                argv = engine_kind(model_file(served, version, **recipe)).commands()[0]
            except ValidationError:
                refused_by_plan += 1
                continue
            assert argv[0] == "python3"
            script = argv[1].removeprefix("examples/")
            parser = parsers.setdefault(script, RealParser(version, script, stack))
            assert parser.ask(list(argv[2:])) is None, (served.name, argv)
            taken += 1
    for served in SERVED:
        config = {**SMALL, "architectures": [served.architecture], "quantization_config": GPTQ}
        facts = read_facts({"config.json": json.dumps(config).encode()})
        try:
            argv = engine_kind(model_file(served, version)).commands(facts)[0]
        except (ValidationError, UsageError):
            continue
        script = argv[1].removeprefix("examples/")
        parser = parsers.setdefault(script, RealParser(version, script, stack))
        assert parser.ask(list(argv[2:])) is None, (served.name, argv)
        quantized += 1
    print(f"{version}: {quantized} commands for GPTQ weights taken")
    print(f"{version}: {taken} commands taken, {refused_by_plan} refused while planning")
    assert taken + refused_by_plan == len(SERVED) * len(RECIPES) and taken >= 30
