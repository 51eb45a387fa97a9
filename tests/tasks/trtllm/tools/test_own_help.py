"""A tool's own `--help` against arguments, in the form that argparse prints."""

from __future__ import annotations

import argparse

import pytest

from infra.errors import StepFailed
from tasks.trtllm.tools.own_help import check_against_help


def text() -> str:
    parser = argparse.ArgumentParser(prog="trtllm-build")
    parser.add_argument("--max_seq_len", "--max_decoder_seq_len", type=int, help="All tokens; see --max_input_len.")
    parser.add_argument("--gemm_plugin", choices=["auto", "float16", "disable"], default="auto")
    parser.add_argument("--use_fp8_rowwise", action="store_true")
    parser.add_argument("--a_name_so_long_that_its_description_begins_on_a_line_of_its_own", help="x " * 60)
    return parser.format_help()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--max_seq_len", "4096", "--gemm_plugin", "auto"),
        ("--max_decoder_seq_len=4096", "--use_fp8_rowwise"),
        ("--a_name_so_long_that_its_description_begins_on_a_line_of_its_own", "1"),
        ("--gemm_plugin=disable",),
    ],
)
def test_what_it_has(arguments: tuple[str, ...]) -> None:
    check_against_help("trtllm-build", text(), arguments)
    with pytest.raises(StepFailed):
        check_against_help("trtllm-build", text(), (*arguments, "--unheard_of"))


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (("--use_fp8",), "--use_fp8"),  # argparse would take it for --use_fp8_rowwise
        (("--max_input_len", "1"), "--max_input_len"),  # another option's description names it
        (("--gemm_plugin", "fp8"), "auto, float16, disable"),
        (("--gemm_plugin=fp8",), "'fp8'"),
    ],
)
def test_what_it_lacks(arguments: tuple[str, ...], fact: str) -> None:
    with pytest.raises(StepFailed) as caught:
        check_against_help("trtllm-build", text(), arguments)
    assert caught.value.code == "arguments-unrecognized" and not caught.value.retryable
    assert fact in caught.value.message
