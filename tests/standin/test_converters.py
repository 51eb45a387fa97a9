"""The converters of the stand-in: what each takes and refuses, version by version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.standin import converters, facts, toolchain, weights
from tests.standin.programs import run_tool

MINORS = {version: facts.numbers(version)[:2] for version in facts.VERSIONS}


def options(converter: str, version: str) -> set[str]:
    return {
        name
        for action in converters.parser(converter, MINORS[version])._actions  # pyright: ignore[reportPrivateUsage]
        for name in action.option_strings
    }


def test_a_version_has_the_converters_of_its_folder_of_examples() -> None:
    # Without those of encoders, vision, drafts, Grok, and two that became Llama's at 0.9.
    counts = {version: len(converters.of_version(minor)) for version, minor in MINORS.items()}
    assert counts["0.8.0"] == 11 and counts["0.9.0"] == 14 and counts["0.16.0"] == counts["1.2.1"] == 21


def test_each_spells_what_it_takes_in_its_own_way() -> None:
    assert {"--ckpt-type", "--model-dir", "--world-size"} <= options("gemma", "0.9.0")
    assert "--qwen_type" in options("qwen", "0.10.0") and "--qwen_type" not in options("qwen", "0.11.0")
    assert "--moe_ep_size" in options("phi", "0.14.0") and "--moe_ep_size" not in options("phi", "0.13.0")
    assert "--tp_size" not in options("recurrentgemma", "1.2.1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "converter", "config", "words", "error"),
    [
        ("0.12.0", "qwen", {"model_type": "llama"}, [], "Unsupported Qwen type: llama"),
        ("0.12.0", "qwen", {}, ["--qwen_type", "qwen2"], "unrecognized arguments: --qwen_type qwen2"),
        ("0.12.0", "qwen", {}, ["--dtype", "auto"], "invalid choice: 'auto'"),
        ("0.16.0", "phi", {}, ["--pp_size", "2"], "Pipeline parallelism is not supported."),
        ("0.16.0", "phi", {}, [], "Invalid model type"),
        ("0.16.0", "nemotron_nas", {}, [], "require --trust_remote_code"),
        ("0.16.0", "gemma", {}, [], "the following arguments are required: --model-dir"),
        ("1.2.1", "chatglm", {}, [], "AssertionError"),
        ("1.2.1", "falcon", {}, [], "reads no weights for the converter of falcon"),
        ("0.16.0", "llama", {"model_type": "falcon", "hidden_act": None}, [], "no attribute 'hidden_act'"),
    ],
)
def test_a_wrong_vector_or_model_is_refused(
    tmp_path: Path, version: str, converter: str, config: dict[str, Any], words: list[str], error: str
) -> None:
    source = weights.make(tmp_path / "source", **{key: value for key, value in config.items() if value is not None})
    if "hidden_act" in config:
        path = source / "config.json"
        path.write_text("\n".join(line for line in path.read_text().splitlines() if "hidden_act" not in line))
    chain = toolchain.make(tmp_path / "image", version)
    script = converters.script(converter, MINORS[version]).rpartition("models/")[2]
    ran = run_tool(chain, script, ["--model_dir", str(source), *words], tmp_path)
    assert ran.returncode != 0 and error in ran.stderr, ran.stderr
