"""The facts of weights that a plan goes by, known before anything large is fetched."""

from __future__ import annotations

from dataclasses import dataclass

from tasks.serving.generation import GenerationConfig
from tasks.weights.quantized import Quantized


@dataclass(frozen=True)
class CacheLayer:
    """What one layer keeps of a token: `heads` times `numbers`, keys and values together.

    Heads are divided over the GPUs of tensor parallelism. `window` are the tokens that the layer looks back; None: all.
    """

    heads: int
    numbers: int
    window: int | None = None


@dataclass(frozen=True)
class WeightsFacts:
    """What `config.json` says, with the values that its class has by itself. None and 0 where neither says anything."""

    architecture: str
    """The class that it names first: `Qwen2ForCausalLM`."""
    model_type: str
    """Of the language model: `gemma3_text` in a `gemma3`."""
    dtype: str
    layers: int | None
    heads: int | None
    """Of queries."""
    head_size: int | None
    hidden_size: int | None
    vocabulary: int | None
    context: int | None
    """Tokens, with what the scaling of its positions adds."""
    experts: int
    tied_embeddings: bool
    quantization: Quantized | None
    cache: tuple[CacheLayer | None, ...] | None
    """One a layer; None for a layer that keeps nothing by token. None altogether if that is not understood."""
    state_bytes: int = 0
    """Of one request, in layers that keep a state in place of tokens."""
    unclear: str = ""
    """Why it is not understood."""
    rope_scaling: str = ""
    """How positions are scaled: `linear`, `llama3`, `yarn`. Empty where they are not."""
    files: tuple[str, ...] = ()
    """Of weights, if the list of files was read."""
    bytes: int | None = None
    """Of these files; None if they are not known before the fetch."""
    generation: GenerationConfig | None = None
    """What ends an answer and how it is sampled, if the files that say it were read."""
    draft: WeightsFacts | None = None
    """Those of the model that guesses its tokens, if there is one and it was read."""
    has_template: bool | None = None
    """Whether there is a chat template, if the files that may hold it were read."""

    def __str__(self) -> str:
        """In one line, for people."""
        sizes = {
            "layers": self.layers,
            "heads": self.heads,
            "of keys and values": "/".join(map(str, self.key_value_heads)),
            "experts": self.experts,
            "tokens of context": self.context,
        }
        known = [f"{value} {name}" for name, value in sizes.items() if value]
        already = [] if self.quantization is None else [f"quantized already: {self.quantization}"]
        return ", ".join([self.architecture or self.model_type or "a model without a name", *known, *already])

    @property
    def key_value_heads(self) -> tuple[int, ...]:
        """Heads of keys and values, as numbers that occur: one, unless layers differ. Empty without attention."""
        return tuple(sorted({layer.heads for layer in self.cache or () if layer is not None}))

    @property
    def windows(self) -> tuple[int | None, ...]:
        """The attention window of each layer that has a cache. Empty if every layer looks back to the first token."""
        found = tuple(layer.window for layer in self.cache or () if layer is not None)
        return found if any(found) else ()
