"""A node without a Triton: it reports as ready, by the public name too, whatever is wanted of it."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager

from tasks.targets.node_report import ModelReport, NodeReport, ReleaseReport
from tasks.targets.target import Target


def follow(target: Target, free_bytes: int = 1 << 40) -> None:
    """Report once."""
    wanted = {model: target.current(model)[0] for model in target.wanted()}
    target.report(
        NodeReport(
            node="one",
            target=target.name,
            http="",
            grpc="",
            triton_pid=1,
            memory_total_bytes=1 << 40,
            memory_available_bytes=free_bytes,
            models={
                model: ModelReport(
                    public=current.public, releases={number: ReleaseReport(state="ready") for number in current.loaded}
                )
                for model, current in wanted.items()
            },
        )
    )


@contextmanager
def following(target: Target, free_bytes: int = 1 << 40) -> Generator[None]:
    """Report again and again while the block runs."""
    over = threading.Event()

    def report() -> None:
        while not over.is_set():
            follow(target, free_bytes)
            over.wait(0.05)

    follow(target, free_bytes)
    node = threading.Thread(target=report)
    node.start()
    try:
        yield
    finally:
        over.set()
        node.join()
