"""How large the campaign is: on the GPU that it is for, and on the CPU of a machine that develops it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Network:
    """A Llama of random weights, and how it is served: `slots` requests of `context_tokens` at once."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    inner: int
    slots: int
    context_tokens: int

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of transformers' LlamaConfig, but for the vocabulary."""
        return {
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "intermediate_size": self.inner,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        }


@dataclass(frozen=True)
class Gating:
    """What the gates of part 6 are asked for. `performance` is that section of a model's file.

    A canary gets `share` of the requests for `soak_s` seconds. From `settled_s` on it counts where they went: those
    that ran before are answered by then.
    """

    performance: Mapping[str, Any]
    share: float
    soak_s: float
    settled_s: float
    answer_tokens: int


@dataclass(frozen=True)
class Sizes:
    """`architecture` is empty on the CPU. Of the `promotions`, `rebuilt` load a new release; the others move back."""

    architecture: str
    large: Network
    clients: int
    answer_tokens: int
    promotions: int
    rebuilt: int
    unloads: int
    gating: Gating

    @property
    def on_gpu(self) -> bool:
        return bool(self.architecture)

    @property
    def recipe(self) -> dict[str, Any]:
        if self.on_gpu:
            return {"kind": "transformers", "dtype": "bfloat16", "device": "cuda", "arch": self.architecture}
        return {"kind": "transformers", "dtype": "float32", "device": "cpu"}


# The layers of Llama 3.2 3B with the vocabulary of SmolLM2: 2.97 billion weights, 5.5 GiB in bfloat16.
FULL = Sizes(
    architecture="sm90",
    large=Network(3072, 28, 24, 8, 8192, slots=32, context_tokens=512),
    clients=32,
    answer_tokens=16,
    promotions=10,
    rebuilt=4,
    unloads=10,
    gating=Gating(
        # Four requests a second of at most six tokens, each a pass of some 20 ms: the model works half of the time.
        performance={"rate": 4, "prompt_tokens": "uniform:16,64", "answer_tokens": "uniform:3,6", "margin": 0.3},
        share=0.25,
        soak_s=30,
        settled_s=5,
        answer_tokens=4,
    ),
)
TINY = Sizes(
    architecture="",
    large=Network(64, 2, 4, 2, 128, slots=4, context_tokens=128),
    clients=3,
    answer_tokens=4,
    promotions=2,
    rebuilt=1,
    unloads=2,
    gating=Gating(
        # A machine that develops this is busy with other things: what is tested here is that the gate runs.
        performance={
            "rate": 8,
            "prompt_tokens": "uniform:8,16",
            "answer_tokens": "uniform:3,6",
            "requests": 40,
            "rounds": 8,
            "warm_up": 2,
            "margin": 2,
            "errors": 0.5,
            "most_lateness_ms": 500,
            "most_seconds": 120,
        },
        share=0.25,
        soak_s=6,
        settled_s=2,
        answer_tokens=4,
    ),
)

SIZES: Mapping[str, Sizes] = {"full": FULL, "short": replace(FULL, rebuilt=1, unloads=1), "tiny": TINY}
"""By the values of ENGINEHOUSE_GPU_SIZES."""
