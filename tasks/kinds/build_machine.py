"""What a build asks of the machine that makes it, where that can be chosen: in a container, on a cluster."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BuildMachine:
    """`product` is the GPU's, empty where any of the pool's architecture will do. `image` is `NAME@sha256:…`, empty
    where the recipe names none; `tensorrt_llm` is the version that one must have, empty for none.
    """

    gpus: int = 0
    product: str = ""
    tensorrt_llm: str = ""
    image: str = ""
