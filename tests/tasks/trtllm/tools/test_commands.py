"""The commands that recipes become, for every version, against a snapshot; and what recipes are refused for.

After a change that is meant: `ENGINEHOUSE_WRITE_SNAPSHOTS=1 pytest tests/tasks/trtllm/tools/test_commands.py`.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from pydantic import ValidationError

from tasks.kinds.choice import engine_kind
from tasks.models.catalogue import load_model
from tasks.models.recipe import TrtEngineRecipe
from tasks.models.spec import Model
from tasks.trtllm.releases import MINORS, RELEASES, minor, release_of
from tasks.trtllm.tools.commands import build_command, checkpoint_command
from tasks.trtllm.tools.options import OPTIONS, OptionUnfit, Tool, arguments, span
from tests.standin import facts

MODELS = Path(__file__).parents[4] / "deployments" / "models"
SNAPSHOT = Path(__file__).parent / "snapshots" / "trtllm-commands.txt"
VERSIONS = (
    *("0.8.0", "0.9.0", "0.10.0", "0.11.0", "0.12.0", "0.13.0", "0.14.0", "0.15.0", "0.16.0"),
    *("0.17.0", "0.18.2", "0.19.0", "0.20.0", "0.21.0", "1.0.0", "1.1.0", "1.2.1"),
)
PLANNED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("llama3-8b-by-hand", {}),
    ("llama3-8b-instruct", {}),
    ("llama3-70b-instruct", {}),
    ("llama3-70b-instruct", {"quantization": "int4_awq"}),
)


GPUS = {"sm86": "NVIDIA A40", "sm100": "NVIDIA B200"}


def with_changes(recipe: dict[str, Any], version: str, **changes: Any) -> dict[str, Any]:
    runtime = {**recipe["runtime"], "tensorrt_llm": version, **changes.pop("runtime", {})}
    runtime["gpu"] = GPUS.get(runtime["arch"], runtime["gpu"])
    return {**recipe, **changes, "runtime": runtime}


def revised(name: str, version: str, **changes: Any) -> Model:
    document = load_model(MODELS / f"{name}.yaml").model_dump(by_alias=True)
    return Model.model_validate({**document, "recipe": with_changes(document["recipe"], version, **changes)})


def engine_recipe(version: str, **changes: Any) -> TrtEngineRecipe:
    recipe = load_model(MODELS / "llama3-8b-instruct.yaml").model_dump(by_alias=True)["recipe"]
    return TrtEngineRecipe.model_validate(with_changes(recipe, version, **{"quantization": "none", **changes}))


def words(*argv: str) -> str:
    return shlex.join(argv)


def planned() -> Iterator[str]:
    for name, changes in PLANNED:
        for version in VERSIONS:
            model = revised(name, version, **changes)
            yield f"# {name} {' '.join(f'{key}={value}' for key, value in changes.items())} {version}".replace(
                "  ", " "
            )
            yield from (shlex.join(argv) for argv in engine_kind(model).commands())


def test_commands_are_as_in_the_snapshot() -> None:
    text = "\n".join(planned()) + "\n"
    if os.environ.get("ENGINEHOUSE_WRITE_SNAPSHOTS"):
        SNAPSHOT.write_text(text)
    assert text == SNAPSHOT.read_text()


def test_by_hand_at_0_8_are_the_published_commands() -> None:
    """Flag for flag, and after them only what later versions do otherwise by themselves."""
    model = revised("llama3-8b-by-hand", "0.8.0")
    convert, build, run = (words(*argv) for argv in engine_kind(model).commands())
    assert convert == (
        "python3 examples/llama/convert_checkpoint.py --model_dir model --output_dir checkpoint --dtype bfloat16"
    )
    published = (
        "trtllm-build --checkpoint_dir checkpoint --output_dir engine"
        " --gpt_attention_plugin bfloat16 --gemm_plugin bfloat16"
    )
    assert build.startswith(published)
    added = build.removeprefix(published).split()
    assert added == [
        *("--max_batch_size", "1", "--max_num_tokens", "1024"),
        *("--tokens_per_block", "128", "--use_paged_context_fmha", "disable"),
    ]
    for option in added[::2]:
        assert len({each.default for each in OPTIONS["build"][option]}) > 1
    assert run == (
        "python3 examples/run.py --engine_dir=engine --max_output_len 100 --tokenizer_dir engine/tokenizer"
        " --input_text 'How do I count to nine in French?'"
    )


MEDUSA = {"mode": "medusa", "max_draft_len": 7, "num_heads": 2, "source": "hf://some/heads@main"}

TOOLS: dict[str, Tool] = {"convert_checkpoint.py": "llama", "quantize.py": "quantize", "trtllm-build": "build"}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_versions_own_parsers_take_the_commands(version: str) -> None:
    """By the facts tables, which were read from the sources apart from the driver's own table."""
    for name, changes in PLANNED:
        for argv in engine_kind(revised(name, version, **changes)).commands():
            start = next(index for index, word in enumerate(argv) if word.endswith((".py", "trtllm-build")))
            tool = Path(argv[start]).name
            facts.parser(tool, version).parse_args(argv[start + 1 :])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_table_agrees_with_the_facts(version: str) -> None:
    # Taken and then without effect, deprecated, or refused later: known to the parsers, and not to the driver.
    passed_over = {("0.8.0", "--fp8_kv_cache"), ("0.11.0", "--max_output_len"), ("1.2.1", "--streamingllm")}
    for name, tool in TOOLS.items():
        known = facts.flags(name, version)
        for option in OPTIONS[tool]:
            mine, theirs = span(tool, option, Version(version)), known.get(option)
            if (version, option) in passed_over or (option == "--paged_kv_cache" and mine is None):
                assert mine is None and theirs is not None
                continue
            assert (mine is None) == (theirs is None), (tool, option)
            if mine is None or theirs is None:
                continue
            assert mine.switch == bool(theirs.get("switch")), (tool, option)
            if mine.choices and theirs.get("choices"):
                assert set(mine.choices) == {*map(str, theirs["choices"])} - {"None"}, (tool, option)
            default = theirs.get("default")
            if not mine.switch and default not in (None, argparse.SUPPRESS):
                same = float(mine.default or "nan") == default if isinstance(default, float) else mine.default
                assert same in (True, str(default)), (tool, option)


def test_every_default_that_ever_changed_is_said() -> None:
    for version in VERSIONS:
        said = build_command(engine_recipe(version), "checkpoint", "engine").arguments
        for option, spans in OPTIONS["build"].items():
            read = span("build", option, Version(version))
            changed = len({each.default for each in spans if not each.gone and not each.switch}) > 1
            # Plugins follow the dtype of the checkpoint; those that this network lacks are nobody's concern.
            if changed and read is not None and not read.switch and not option.endswith("_plugin"):
                assert option in said, (version, option)


@pytest.mark.parametrize(
    ("version", "changes", "options"),
    [
        ("0.10.0", {"max_seq_len": 3000, "max_input_len": 1000}, "--max_output_len 2000"),
        ("0.11.0", {"max_seq_len": 3000, "max_input_len": 1000}, "--max_seq_len 3000"),
        ("0.10.0", {"dtype": "float16"}, "--gemm_plugin float16"),
        ("0.11.0", {"dtype": "float16"}, "--gemm_plugin auto"),
        ("0.12.0", {"kv_cache_type": "continuous"}, "--paged_kv_cache disable"),
        ("0.13.0", {"kv_cache_type": "continuous"}, "--kv_cache_type continuous"),
        ("0.12.0", {}, "--use_fused_mlp"),
        ("0.13.0", {"fused_mlp": False}, "--use_fused_mlp disable"),
        ("0.11.0", {"plugins": {"multi_block_mode": True}}, "--multi_block_mode enable"),
        ("1.2.1", {"plugins": {"gemm_plugin": "nvfp4"}}, "--gemm_plugin nvfp4"),
        ("0.10.0", {"quantization": "fp8"}, "--strongly_typed"),
        ("0.16.0", {"kv_cache_dtype": "int8"}, "--use_paged_context_fmha disable"),
        ("0.16.0", {"quantization": "fp8", "kv_cache_dtype": "fp8"}, "--use_fp8_context_fmha enable"),
        ("0.9.0", {"lora": {"target_modules": ["attn_q", "attn_k"]}}, "--lora_target_modules attn_q attn_k"),
        ("0.12.0", {"fast_build": True}, "--fast_build"),
        (
            "1.2.1",
            {"speculation": {"mode": "eagle", "max_draft_len": 5, "source": "hf://some/eagle@main"}},
            "--speculative_decoding_mode eagle --max_draft_len 5",
        ),
        (
            "0.12.0",
            {"speculation": {"mode": "draft_tokens_external", "max_draft_len": 5, "source": "hf://some/draft@main"}},
            "--speculative_decoding_mode draft_tokens_external --max_draft_len 5",
        ),
        ("1.2.1", {"extra_args": {"build": ["--unheard_of", "1"]}}, "--unheard_of 1"),
        ("1.2.1", {"tp_size": 4, "runtime": {"gpus": 4}}, "--workers 4"),
    ],
)
def test_each_version_in_its_own_words(version: str, changes: dict[str, Any], options: str) -> None:
    built = " ".join(build_command(engine_recipe(version, **changes), "checkpoint", "engine").arguments)
    assert f" {options} " in f" {built} "


@pytest.mark.parametrize(
    ("version", "changes", "tool", "options"),
    [
        ("0.8.0", {"quantization": "int8_wo"}, "llama/convert_checkpoint.py", "--use_weight_only"),
        ("0.16.0", {"quantization": "int4_wo"}, "llama/convert_checkpoint.py", "--weight_only_precision int4"),
        ("0.12.0", {"quantization": "fp8_rowwise"}, "llama/convert_checkpoint.py", "--use_fp8_rowwise"),
        ("0.12.0", {"kv_cache_dtype": "fp8"}, "llama/convert_checkpoint.py", "--fp8_kv_cache"),
        ("0.8.0", {"kv_cache_dtype": "int8"}, "llama/convert_checkpoint.py", "--int8_kv_cache"),
        ("0.8.0", {"quantization": "int8_sq"}, "quantization/quantize.py", "--qformat int8_sq"),
        ("0.8.0", {"quantization": "fp8", "kv_cache_dtype": "fp8"}, "quantization/quantize.py", "--kv_cache_dtype fp8"),
        ("0.11.0", {"quantization": "fp8", "calibration": {"dataset": "/data/texts"}}, "quantization/quantize.py",
         "--calib_dataset /data/texts"),
        ("1.0.0", {"quantization": "int4_awq", "awq_block_size": 64}, "quantization/quantize.py",
         "--awq_block_size 64"),
        ("0.17.0", {"quantization": "nvfp4", "runtime": {"arch": "sm100"}}, "quantization/quantize.py",
         "--qformat nvfp4"),
        ("0.11.0", {"tp_size": 4, "moe_tp_size": 2, "moe_ep_size": 2, "runtime": {"gpus": 4}},
         "llama/convert_checkpoint.py", "--moe_tp_size 2 --moe_ep_size 2"),
        ("0.16.0", {"cp_size": 2, "runtime": {"gpus": 2}}, "llama/convert_checkpoint.py", "--cp_size 2"),
        ("0.12.0", {"speculation": MEDUSA}, "medusa/convert_checkpoint.py",
         "--medusa_model_dir draft --num_medusa_heads 2 --max_medusa_token_len 7"),
        ("0.12.0", {"speculation": MEDUSA, "quantization": "fp8"}, "quantization/quantize.py",
         "--medusa_model_dir draft --num_medusa_heads 2 --max_draft_len 7"),
        ("0.16.0", {"speculation": {**MEDUSA, "mode": "eagle"}, "quantization": "int8_wo"},
         "eagle/convert_checkpoint.py", "--eagle_model_dir draft --num_eagle_layers 2 --max_draft_len 7"),
    ],
)  # fmt: skip
def test_each_quantization_by_its_tool(version: str, changes: dict[str, Any], tool: str, options: str) -> None:
    command = checkpoint_command(engine_recipe(version, **changes), "model", "checkpoint")
    assert command.tool == tool
    assert f" {options} " in f" {' '.join(command.arguments)} "


@pytest.mark.parametrize(
    ("version", "changes", "facts"),
    [
        ("0.11.0", {"quantization": "fp8_rowwise"}, ("--use_fp8_rowwise", "0.12 to 1.2")),
        ("0.10.0", {"kv_cache_dtype": "fp8"}, ("--fp8_kv_cache", "0.12 to 1.2")),
        ("0.12.0", {"plugins": {"multi_block_mode": True}}, ("--multi_block_mode", "0.8 to 0.11")),
        ("1.2.1", {"plugins": {"streamingllm": True}}, ("--streamingllm", "0.9 to 1.1")),
        ("0.10.0", {"plugins": {"gemm_plugin": "auto"}}, ("'auto'", "0.11 to 1.2")),
        ("0.9.0", {"plugins": {"gpt_attention_plugin": "int32"}}, ("'int32'", "0.11 to 1.2")),
        ("0.16.0", {"plugins": {"gemm_plugin": "nvfp4"}}, ("'nvfp4'", "0.17 to 1.2")),
        ("0.10.0", {"speculation": MEDUSA, "quantization": "fp8"}, ("--medusa_model_dir", "0.11 to 1.2")),
        ("0.16.0", {"speculation": MEDUSA, "cp_size": 2, "runtime": {"gpus": 2}}, ("--cp_size", "no known version")),
        ("0.16.0", {"speculation": {**MEDUSA, "mode": "eagle"}, "quantization": "fp8"}, ("quantize.py", "Eagle")),
        ("0.8.0", {"lora": {"target_modules": ["attn_q"]}}, ("--lora_target_modules", "0.9 to 1.2")),
        ("0.11.0", {"fast_build": True}, ("--fast_build", "0.12 to 1.2")),
        ("0.15.0", {"cp_size": 2, "runtime": {"gpus": 2}}, ("--cp_size", "0.16 to 1.2")),
        (
            "0.10.0",
            {"tp_size": 2, "moe_tp_size": 1, "moe_ep_size": 2, "runtime": {"gpus": 2}},
            ("--moe_tp_size", "0.11 to 1.2"),
        ),
        (
            "0.9.0",
            {"quantization": "fp8", "calibration": {"dataset": "/data/texts"}},
            ("calibration set", "0.11 to 1.2"),
        ),
        ("0.9.0", {"quantization": "fp8", "calibration": {"dataset": "pileval"}}, ("--calib_dataset", "0.10 to 1.2")),
        (
            "1.2.1",
            {"quantization": "nvfp4", "kv_cache_dtype": "nvfp4", "runtime": {"arch": "sm100"}},
            ("--kv_cache_dtype", "'nvfp4'"),
        ),
        ("1.2.1", {"quantization": "int8_wo", "runtime": {"arch": "sm100"}}, ("int8_wo", "sm100")),
        ("1.2.1", {"kv_cache_dtype": "fp8", "runtime": {"arch": "sm86"}}, ("fp8", "sm89")),
        ("0.16.0", {"runtime": {"arch": "sm100"}}, ("sm100", "0.17")),
        ("1.2.1", {"plugins": {"unheard_of": True}}, ("plugins.unheard_of", "extra_args.build")),
        ("1.2.1", {"extra_args": {"build": ["--max_batch_size=3"]}}, ("extra_args.build", "--max_batch_size")),
        (
            "1.2.1",
            {"tp_size": 4, "moe_tp_size": 3, "moe_ep_size": 2, "runtime": {"gpus": 4}},
            ("moe_tp_size 3", "tp_size 4"),
        ),
        ("1.2.1", {"moe_tp_size": 1}, ("moe_tp_size", "moe_ep_size")),
        ("1.2.1", {"tokens_per_block": 48}, ("48",)),
        ("1.2.1", {"cp_size": 2}, ("cp_size 2 = 2 GPUs", "runtime.gpus is 1")),
    ],
)
def test_what_a_version_cannot_do_names_those_that_can(
    version: str, changes: dict[str, Any], facts: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as caught:
        engine_recipe(version, **changes)
    (detail,) = caught.value.errors()
    assert detail["type"] == "value_error" and all(fact in detail["msg"] for fact in facts)


def test_a_switch_takes_no_value_and_a_value_is_no_switch() -> None:
    with pytest.raises(OptionUnfit):
        arguments("build", Version("0.12.0"), {"--use_fused_mlp": "enable"})
    assert arguments("build", Version("0.12.0"), {"--use_fused_mlp": True}) == ("--use_fused_mlp",)
    assert arguments("build", Version("0.12.0"), {"--use_fused_mlp": False}) == ()


def test_releases_are_in_order_and_tell_where_they_were_read() -> None:
    versions = [Version(name) for name in MINORS]
    assert versions == sorted(versions)
    assert [release.name for release in RELEASES if release.exact] == list(MINORS[:9])
    assert release_of(Version("0.18.2")) is RELEASES[MINORS.index("0.18")]
    assert release_of(Version("1.3.0")) is None and minor(Version("0.18.2")) == (0, 18)
