"""Triton's command lines, against the published launch scripts of TensorRT-LLM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra.triton.command import Ports, Server, leader, orchestrator, single

SERVER = Server(
    binary=Path("/opt/tritonserver/bin/tritonserver"),
    models=Path("/models"),
    backends=Path("/opt/tritonserver/backends"),
    shared_memory="region-",
    ports=Ports(8000, 8001, 8002),
    control_key="secret",
    exit_timeout_s=5,
)
RESTRICTION = "model-repository,model-config,shared-memory,statistics,trace,logging:enginehouse-control=secret"
ALONE = (
    "/opt/tritonserver/bin/tritonserver",
    "--model-repository=/models",
    "--backend-directory=/opt/tritonserver/backends",
    "--backend-config=python,shm-region-prefix-name=region-",
    "--disable-auto-complete-config",
    "--model-control-mode=explicit",
    "--strict-readiness=false",
    "--exit-timeout-secs=5",
    "--http-address=127.0.0.1",
    "--http-port=8000",
    f"--http-restricted-api={RESTRICTION}",
    "--grpc-address=127.0.0.1",
    "--grpc-port=8001",
    f"--grpc-restricted-protocol={RESTRICTION}",
    "--metrics-address=127.0.0.1",
    "--metrics-port=8002",
)
MPIRUN = ("mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "--mca", "odls_base_sigkill_timeout")


def test_one_gpu_and_the_llm_api_need_no_mpi() -> None:
    command = single(SERVER)
    assert (command.argv, command.environment) == (ALONE, {})


def test_a_node_that_others_reach_listens_everywhere() -> None:
    reached = replace(SERVER, ports=replace(SERVER.ports, address="node-0.nodes"))
    assert single(reached).argv == tuple(word.replace("=127.0.0.1", "=0.0.0.0") for word in ALONE)


@pytest.mark.parametrize(
    ("container", "pools"),
    [
        ("24.04", ()),
        ("24.06", ()),
        ("", ()),
        (
            "24.07",
            (
                "--pinned-memory-pool-byte-size=0",
                "--enable-peer-access=false",
                "--cuda-memory-pool-byte-size=0:0",
                "--cuda-memory-pool-byte-size=1:0",
            ),
        ),
    ],
)
def test_the_orchestrator_is_one_rank_that_holds_no_gpu_memory(container: str, pools: tuple[str, ...]) -> None:
    command = orchestrator(SERVER, 2, container)
    assert command.argv == (*MPIRUN, "5", "-n", "1", *ALONE, *pools)
    assert command.environment == {"TRTLLM_ORCHESTRATOR": "1"}


def test_a_leader_has_one_server_a_rank_and_only_the_first_loads_more_than_the_engine() -> None:
    command = leader(
        SERVER, [Ports(9000, 9001, 9002), Ports(9100, 9101, 9102)], "m--r1--engine", ["m--r1--llm", "m--r1"]
    )
    assert command.environment == {}
    assert command.argv[:8] == (*MPIRUN, "5")
    ranks = " ".join(command.argv[8:]).split(" : ")
    first, second, third = (rank.split(" ") for rank in ranks)
    assert tuple(first[2:]) == (
        *ALONE,
        "--load-model=m--r1--engine",
        "--load-model=m--r1--llm",
        "--load-model=m--r1",
    )
    assert [rank[:3] for rank in (first, second, third)] == [["-n", "1", ALONE[0]]] * 3
    assert {argument for argument in second if argument not in first} == {
        "--backend-config=python,shm-region-prefix-name=region-1-",
        "--http-port=9000",
        "--grpc-port=9001",
        "--metrics-port=9002",
    }
    assert [argument for argument in third if argument.startswith("--load-model")] == ["--load-model=m--r1--engine"]
