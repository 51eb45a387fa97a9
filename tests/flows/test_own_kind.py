"""A kind that a user adds goes through the whole rebuild, with no change in the flows."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from infra.processes.sessions import start_session, terminate
from infra.settings import CHECKOUT
from infra.triton.client import TritonClient
from tests.flows.build_worker import register

if TYPE_CHECKING:
    from tests.flows.conftest import House

pytestmark = pytest.mark.slow

POOL = "build-parrot"


def test_a_kind_of_ones_own_goes_from_its_source_to_its_public_name(house: House, tmp_path: Path) -> None:
    catalogue, source = tmp_path / "models", tmp_path / "source"
    catalogue.mkdir()
    source.mkdir()
    (source / "phrase.txt").write_text("Polly wants a cracker.")
    document = {
        "name": "polly",
        "source": {"uri": f"file://{source}"},
        "recipe": {"kind": "parrot", "times": 2},
        "prompts": [{"name": "speak", "text": "Speak.", "max_tokens": 4, "expect": {"contains": ["cracker"]}}],
    }
    (catalogue / "polly.yaml").write_text(yaml.safe_dump(document))
    knowing = {"PYTHONPATH": os.pathsep.join([str(CHECKOUT / "tests" / "own_kind"), str(CHECKOUT)])}
    register(POOL)
    worker = start_session(
        [sys.executable, "-P", "-m", "prefect", "worker", "start", "--pool", POOL, "--type", "process"],
        log=tmp_path / "worker.log",
        folder=tmp_path,
        environment={
            **house.environment,
            **house.variables,
            **knowing,
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
            "DO_NOT_TRACK": "1",
        },
    )
    own = replace(house, environment={**house.environment, **knowing, "ENGINEHOUSE_CATALOGUE": str(catalogue)})
    try:
        report = own.rebuild("polly")
        again = own.rebuild("polly")
    finally:
        terminate(worker, 10)
    assert report["state"] == "promoted" and again["state"] == "unchanged"
    assert {step["state"] for step in again["steps"][1:6]} == {"Cached"}
    triton = TritonClient(house.variables["ENGINEHOUSE_TRITON_HTTP"])
    answer = triton.generate("polly", {"text_input": "Speak.", "max_tokens": 4})
    assert answer.text == "Polly wants a cracker. Polly wants a cracker."
