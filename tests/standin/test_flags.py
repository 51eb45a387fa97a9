"""The command line of every tool at every version: what it takes and refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.standin import facts, heads
from tests.standin.programs import (
    BUILD,
    CHAIN,
    CONVERT,
    QUANTIZE,
    read_json,
    run_tool,
)
from tests.standin.toolchain import Toolchain

# The steps' own tests run the stand-in in `make test` already.
pytestmark = pytest.mark.slow

Row = dict[str, Any]
"""A row of `cli.json`."""

EVERY = [(version, tool) for version in facts.VERSIONS for tool in facts.TOOLS]

_VALUES: dict[str, tuple[str, object]] = {
    "int": ("3", 3),
    "float": ("0.5", 0.5),
    "KVCacheType": ("Paged", facts.KVCacheType.PAGED),
    "bool_string": ("text", False),
}
"""By type: an argument, and the value that it stands for. Every other type takes texts."""


def takes_a_value(row: Row) -> bool:
    return not row.get("switch") and row.get("action") != "BooleanOptionalAction"


def valid_arguments(row: Row) -> list[str]:
    """Arguments that a flag of this row takes."""
    if not takes_a_value(row):
        return []
    argument = str(row["choices"][0]) if "choices" in row else _VALUES.get(row.get("type", ""), ("text", "text"))[0]
    return [argument] * (row["nargs"] if isinstance(row.get("nargs"), int) else 1)


def parsed_value(row: Row, choice: object = None) -> object:
    """What `valid_arguments`, or one of the row's choices, become."""
    if not takes_a_value(row):
        return row.get("action") != "store_false"
    first = row["choices"][0] if "choices" in row else _VALUES.get(row.get("type", ""), ("text", "text"))[1]
    value = first if choice is None else choice
    if "nargs" in row and row["nargs"] != "?":
        value = [value] * (1 if row["nargs"] == "+" else row["nargs"])
    return [value] if row.get("action") == "append" else value


def destination(flag: str, row: Row) -> str:
    """The name under which argparse keeps the value of a flag."""
    return row.get("dest") or flag.removeprefix("--").replace("-", "_")


def takes(tool: str, version: str, arguments: list[str]) -> bool:
    try:
        facts.parser(tool, version).parse_args(arguments)
    except SystemExit:
        return False
    return True


def refusal(tool: str, version: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        facts.parser(tool, version).parse_args(arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def required_arguments(tool: str, version: str) -> list[str]:
    return [
        part
        for flag, row in facts.flags(tool, version).items()
        if row.get("required")
        for part in (flag, *valid_arguments(row))
    ]


@pytest.mark.parametrize(("version", "tool"), EVERY)
def test_a_version_takes_every_flag_of_its_table(version: str, tool: str) -> None:
    parser, required = facts.parser(tool, version), required_arguments(tool, version)
    rows = facts.flags(tool, version)
    together = vars(parser.parse_args([part for flag, row in rows.items() for part in (flag, *valid_arguments(row))]))
    # Of flags with one destination the last counts.
    assert together == {destination(flag, row): parsed_value(row) for flag, row in rows.items()}
    for flag, row in rows.items():
        for alias in row.get("aliases", []):
            parsed = vars(parser.parse_args([*required, alias, *valid_arguments(row)]))
            assert parsed[destination(flag, row)] == parsed_value(row)
        for choice in row.get("choices", []):
            if choice is not None:
                parsed = vars(parser.parse_args([*required, flag, str(choice)]))
                assert parsed[destination(flag, row)] == parsed_value(row, choice)


@pytest.mark.parametrize(("version", "tool"), EVERY)
def test_a_version_refuses_what_it_does_not_have(version: str, tool: str, capsys: pytest.CaptureFixture[str]) -> None:
    required = required_arguments(tool, version)
    rows = facts.flags(tool, version)
    known = [name for flag, row in rows.items() for name in (flag, *row.get("aliases", []))]
    for other in facts.VERSIONS:
        for flag, row in facts.flags(tool, other).items():
            # argparse takes the beginning of a flag for the flag.
            if not any(name.startswith(flag) for name in known):
                error = refusal(tool, version, [*required, flag, *valid_arguments(row)], capsys)
                assert error.startswith(f"{tool}: error: unrecognized arguments: ")
    for flag, row in rows.items():
        error = refusal(tool, version, [*required, f"{flag}_x"], capsys)
        assert error == f"{tool}: error: unrecognized arguments: {flag}_x"
        names = "/".join([flag, *row.get("aliases", [])])
        if "choices" in row:
            error = refusal(tool, version, [*required, flag, "7"], capsys)
            assert f"argument {names}: invalid choice: " in error and repr(row["choices"][-1]) in error
        elif row.get("type") in ("int", "float", "KVCacheType"):
            error = refusal(tool, version, [*required, flag, "many"], capsys)
            assert error.endswith(f"argument {names}: invalid {row['type']} value: 'many'")


@pytest.mark.parametrize(
    ("tool", "flag", "value", "versions"),
    [
        (BUILD, "--gemm_plugin", "auto", ("0.11.0", "1.2.1")),
        (BUILD, "--gemm_plugin", "nvfp4", ("0.17.0", "1.2.1")),
        (BUILD, "--max_output_len", "512", ("0.8.0", "0.11.0")),
        (BUILD, "--max_seq_len", "512", ("0.11.0", "1.2.1")),
        (BUILD, "--use_fused_mlp", None, ("0.8.0", "0.12.0")),
        (BUILD, "--use_fused_mlp", "enable", ("0.13.0", "1.2.1")),
        (BUILD, "--kv_cache_type", "paged", ("0.13.0", "1.2.1")),
        (BUILD, "--paged_kv_cache", "enable", ("0.8.0", "1.2.1")),
        (BUILD, "--multi_block_mode", "enable", ("0.8.0", "0.11.0")),
        (BUILD, "--fast_build", None, ("0.12.0", "1.2.1")),
        (BUILD, "--timing_cache", "model.cache", ("0.8.0", "0.8.0")),
        (CONVERT, "--dtype", "auto", ("0.15.0", "1.2.1")),
        (CONVERT, "--cp_size", "2", ("0.16.0", "1.2.1")),
        (QUANTIZE, "--qformat", "nvfp4", ("0.17.0", "1.2.1")),
        (QUANTIZE, "--kv_cache_dtype", "fp8", ("0.8.0", "1.2.1")),
        (QUANTIZE, "--seed", "1", ("0.9.0", "1.2.1")),
    ],
)
def test_well_known_changes_are_in_the_table(
    tool: str, flag: str, value: str | None, versions: tuple[str, str]
) -> None:
    first, last = map(facts.numbers, versions)
    taking = [
        version
        for version in facts.VERSIONS
        if takes(tool, version, [*required_arguments(tool, version), flag, *([] if value is None else [value])])
    ]
    assert taking == [version for version in facts.VERSIONS if first <= facts.numbers(version) <= last]


def test_every_row_names_a_range_and_has_a_source() -> None:
    table = read_json(Path(facts.__file__).with_name("cli.json"))
    assert set(table["tools"]) == {*facts.TOOLS, *heads.TOOLS}
    for rows in (rows for tool in table["tools"].values() for rows in tool.values()):
        bounds = [facts.numbers(bound) for row in rows for bound in row["versions"]]
        assert bounds == sorted(bounds) and all(bound in facts.VERSIONS for row in rows for bound in row["versions"])
    for rows in table["sources"].values():
        assert rows[0]["versions"][0] in (facts.VERSIONS[0], "0.15.0") and rows[-1]["versions"][1] == facts.VERSIONS[-1]
    assert set(table["commits"]) == {version for version in facts.VERSIONS if facts.numbers(version) < (0, 17)}


@pytest.mark.parametrize("version", CHAIN)
@pytest.mark.parametrize("tool", facts.TOOLS)
def test_the_program_refuses_with_exit_status_2(
    toolchains: dict[str, Toolchain], tmp_path: Path, version: str, tool: str
) -> None:
    ran = run_tool(toolchains[version], tool, [*required_arguments(tool, version), "--no_such_flag", "1"], tmp_path)
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"usage: {tool} [-h]")
    assert ran.stderr.splitlines()[-1] == f"{tool}: error: unrecognized arguments: --no_such_flag 1"
    shown = run_tool(toolchains[version], tool, ["--help"], tmp_path)
    assert shown.returncode == 0 and all(flag in shown.stdout for flag in facts.flags(tool, version))
