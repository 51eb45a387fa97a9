"""What a load costs and how late it is, at rates up to one that it does not keep: over each protocol, from a process of
its own, against a model that answers 20 tokens, one every 20 ms.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable
from itertools import islice

from tasks.load.arrivals import at_rate
from tasks.load.clock import punctual_loop
from tasks.load.http_stream import Address, Connections
from tasks.load.lengths import parse_lengths
from tasks.load.measure import Measurement
from tasks.load.openai import OpenAi
from tasks.load.prompts import drawn_prompts
from tasks.load.send import Pace
from tasks.load.triton_grpc import TritonGrpc
from tasks.load.triton_sse import TritonSse
from tasks.load.wire import Sampling, Wire
from tests.tasks.load.timed_model import Delays, Running, timed_model

RATES = tuple(int(rate) for rate in os.environ.get("BENCH_RATES", "10,25,50,100,200").split(","))
SECONDS = float(os.environ.get("BENCH_SECONDS", "8"))
TOKENS, PROMPT = 20, 200
KEPT_RATE = 25
"""What it keeps on two idle cores, or the bench fails: 500 tokens a second."""

WIRES: dict[str, Callable[[Running], Wire]] = {
    "openai": lambda model: OpenAi("m", "chat/completions", Connections(Address.parse(model.http)), Sampling()),
    "sse": lambda model: TritonSse("m", Connections(Address.parse(model.http)), Sampling()),
    "grpc": lambda model: TritonGrpc("m", model.grpc, Sampling()),
}


def main() -> int:
    print(f"\nA load of {TOKENS} tokens a request, {SECONDS:g} s each; lateness in ms, CPU of the load alone:")
    kept = True
    for name, wire in WIRES.items():
        for rate in RATES:
            with timed_model(Delays(first_s=0.1, token_s=0.02)) as model:
                prompts = drawn_prompts(1, parse_lengths(str(PROMPT)), parse_lengths(str(TOKENS)))
                measurement = Measurement(wire(model), Pace(seconds=SECONDS), 10)
                began = time.process_time()
                with asyncio.Runner(loop_factory=punctual_loop) as runner:
                    runner.run(measurement.run(islice(at_rate("poisson", rate, 1, prompts), 10**6)))
                spent = time.process_time() - began
            found = measurement.summary({}, 10)
            late, tokens = found.lateness, (found.requests + found.warm_up) * TOKENS
            kept &= late.on_time or rate > KEPT_RATE
            print(
                f"  {name:6} {rate:4} requests/s, {rate * TOKENS:5} tokens/s: sender p99 {late.sender_p99:6.2f},"
                f" most {late.sender_most:6.1f}, loop p99 {late.loop_p99:6.2f};"
                f" {spent / tokens * 1e6:4.0f} µs a token, {spent / SECONDS:4.0%} of a core"
                f"{'' if late.on_time else ', refused'}",
                flush=True,
            )
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
