"""What a build asks of its machine, for pools that choose one: of containers, of a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildMachine:
    """`product` is that of the GPUs, empty if every product of the pool's architecture does. `image` is
    `NAME@sha256:…`, empty if the recipe names none. `tensorrt_llm` is the version that the image must have, empty for
    none.
    """

    gpus: int = 0
    product: str = ""
    tensorrt_llm: str = ""
    image: str = ""
