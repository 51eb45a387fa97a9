"""One pass of the model over the last tokens of several requests.

What has weights is computed for all of them together. Then each attends to its own keys and values where they lie, in
its own room: nothing is padded, nothing is copied, and no mask is needed, for all that a request sees is its own.

transformers has continuous batching of its own. It is not used: docs/how-to/reference.md has the measurement.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .reserved_cache import Room

_torch: Any = importlib.import_module("torch")
_cache_utils: Any = importlib.import_module("transformers.cache_utils")
_attentions: Any = importlib.import_module("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS

_NAME = "enginehouse_shared_pass"

_LAYERS = frozenset({"full_attention", "sliding_attention"})
"""Such a layer sees all tokens before its own, or a window of them. Others have masks of their own."""


@dataclass(frozen=True)
class _States:
    """Keys or values of several requests, `[1, heads, tokens, size]` each. `attention` is the model's own."""

    of_each: Sequence[Any]
    attention: str


class _SharedLayer(_cache_utils.DynamicLayer):
    """A layer of the caches of several requests."""

    def __init__(self, layers: Sequence[Any], attention: str) -> None:
        _cache_utils.DynamicLayer.__init__(self)
        self._layers = layers
        self._attention = attention

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[_States, _States]:
        for layer, keys, values in zip(self._layers, key_states.split(1), value_states.split(1), strict=True):
            layer.update(keys, values)
        keys, values = zip(*(layer.window() for layer in self._layers), strict=True)
        return _States(keys, self._attention), _States(values, self._attention)


def _attend(module: Any, query: Any, key: _States, value: _States, attention_mask: Any, **kwargs: Any) -> Any:
    """As transformers calls the attention that has `_NAME`."""
    own: Any = _attentions.get(key.attention)
    if own is None:
        own = vars(sys.modules[type(module).__module__])["eager_attention_forward"]
    rows = zip(query.split(1), key.of_each, value.of_each, strict=True)
    return _torch.cat([own(module, *row, None, **kwargs)[0] for row in rows]), None


class SharedPass:
    """Passes of one model. `model` is transformers' own, also where PEFT has put adapters into it."""

    def __init__(self, model: Any) -> None:
        _attentions.register(_NAME, _attend)
        self._attention: str = model.config.get_text_config()._attn_implementation
        configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
        self._configs = [each for each in configs.values() if hasattr(each, "_attn_implementation")]

    @staticmethod
    def fits(model: Any, room: Room) -> bool:
        """Whether the requests of this model are apart in such a pass, as far as its configuration tells."""
        layers: Sequence[str] = getattr(model.config.get_text_config(), "layer_types", None) or ()
        return (
            getattr(model, "_supports_attention_backend", False)
            and None not in room
            and _LAYERS.issuperset(layers)
            and not any(_turns_by_the_longest(module) for module in model.modules())
        )

    def cache(self, caches: Sequence[Any]) -> Any:
        """The caches of several requests as one."""
        layers = zip(*(cache.layers for cache in caches), strict=True)
        return _cache_utils.Cache(layers=[_SharedLayer(layer, self._attention) for layer in layers])

    @contextmanager
    def attending(self) -> Generator[None]:
        """Within it, the model's attention takes the keys of such a cache. A plain pass runs outside of it alone."""
        own = [each._attn_implementation for each in self._configs]
        for each in self._configs:
            each._attn_implementation = _NAME
        try:
            yield
        finally:
            for each, name in zip(self._configs, own, strict=True):
                each._attn_implementation = name


def _turns_by_the_longest(module: Any) -> bool:
    """Whether it is a rotary embedding whose angles follow from the longest request of a batch."""
    # A dictionary where they differ by the type of the layer.
    kinds = str(getattr(module, "rope_type", ""))
    return "dynamic" in kinds or "longrope" in kinds
