from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deployments.cli.main import main
from infra.settings import CHECKOUT
from tests.tasks.load.timed_model import Delays, Running, timed_model

FEW = ("--rate", "100", "--requests", "30", "--warm-up", "5", "--answer-tokens", "4", "--most-lateness", "100000")


@pytest.fixture(scope="module")
def model() -> Iterator[Running]:
    with timed_model(Delays(first_s=0.02, token_s=0.002)) as made:
        yield made


@pytest.mark.parametrize("over", ["openai", "completions", "sse", "grpc"])
def test_a_load_over_each_protocol(
    over: str, model: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "load.svg"
    where = ("--over", over, "--address", model.grpc if over == "grpc" else model.http)
    goodput = ("--goodput", "time_to_first_token=100000")
    assert main(["load", "tiny", *where, *FEW, *goodput, "--json", "--picture", str(picture)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["request_count"], told["error_request_count"], told["warm_up_request_count"]) == (25, 0, 5)
    assert told["metrics"]["output_sequence_length"]["avg"] == 4
    assert told["metrics"]["input_sequence_length"]["avg"] == 5
    assert told["metrics"]["time_to_first_token"]["p95"] is None  # takes 90
    assert told["metrics"]["time_to_first_token"]["min"] > 5
    assert told["good_request_count"] == 25
    ElementTree.parse(picture)


def test_a_load_for_people(model: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "tiny", "--address", model.http, *FEW]) == 0
    out = capsys.readouterr().out
    assert "25 answered, 0 failed" in out and "time_to_first_token = " in out
    assert max(map(len, out.splitlines())) <= 80


def test_failures_are_told_by_their_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with timed_model(Delays(first_s=0.01, token_s=0.001, fail_every=3)) as model:
        assert main(["load", "tiny", "--over", "sse", "--address", model.http, *FEW, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    # The first request of all is no part of the load.
    (error,) = told["errors"]
    assert (error["kind"], error["first_message"]) == ("failed", "it has failed [internal]")
    assert 7 <= error["count"] == told["error_request_count"] == 25 - told["request_count"] <= 9


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--rate", "5", "--requests", "3"),
        ("--rate", "5", "--concurrency", "0"),
        ("--rate", "5", "--seconds", "-1"),
        ("--rate", "5", "--timeout", "0"),
        ("--rate", "5", "--warm-up", "-1"),
        ("--rate", "5", "--goodput", "time_to_first_token"),
        ("--rate", "5", "--goodput", "output_sequence_length=4"),
        ("--rate", "5", "--prompt-tokens", "many"),
        ("--rate", "5", "--prompts", "/nowhere/prompts"),
        ("--trace", "/nowhere/trace"),
        ("--rate", "5", "--key-file", "/nowhere/key"),
        ("--rate", "5", "--direct"),
        ("--rate", "5", "--picture", "/nowhere/load.svg"),
        ("--rate", "5", "--address", "ftp://here"),
    ],
)
def test_wrong_use_is_refused_before_anything_is_sent(
    wrong: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", "tiny", "--address", "127.0.0.1:1", *wrong]) == 2
    assert "[load-" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load", "tiny", "--address", "127.0.0.1:1", "--rate", "5"]) == 1
    assert "[load-unanswered]" in capsys.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_a_load_with_its_figures() -> None:
    with timed_model(Delays(first_s=0.02, token_s=0.01, tell_at=150)) as model:
        command = [sys.executable, "-m", "deployments.cli.main", "load", "tiny", "--address", model.http]
        command += ["--rate", "50", "--seconds", "60", "--json", "--answer-tokens", "uniform:1,200"]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            model.reached()
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
            ended = time.monotonic()
    assert process.returncode == 1 and b"interrupted" in err and b"Traceback" not in err
    assert ended - began < 20  # it would have gone on for a minute
    told = json.loads(out)
    assert told["request_count"] > 10 and told["given_up_request_count"] > 10 and told["error_request_count"] == 0
