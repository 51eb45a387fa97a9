"""Keys and values of the requests that run at once, in memory that is taken when the model is loaded.

transformers' own cache grows by one tensor more for each token, so a GPU that others fill would run out of memory in
the middle of an answer. Here each request gets the room of a slot, and a layer writes into it. What a layer returns is
what transformers' returns, so the numbers are the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_cache_utils: Any = importlib.import_module("transformers.cache_utils")

_GROWING = (_cache_utils.DynamicLayer, _cache_utils.DynamicSlidingWindowLayer)
"""Layers that keep the keys and values of all tokens, or of a window. The states of others have one size.

A layer with a window gets as much room as one without: transformers masks what lies before the window.
"""


@dataclass(frozen=True)
class LayerRoom:
    """Room of one layer for one request: tensors `[1, heads, tokens, size]`."""

    keys: Any
    values: Any


Room = Sequence[LayerRoom | None]
"""Of all layers. None for one that keeps no keys."""


class ReservedLayer(_cache_utils.DynamicLayer):
    """A layer of a cache, in a room that it is given. `window` is how many tokens a token sees; None for all."""

    def __init__(self, room: LayerRoom, window: int | None) -> None:
        _cache_utils.DynamicLayer.__init__(self)
        self._room = room
        self._window = window

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        self._room.keys[:, :, begin:end] = key_states
        self._room.values[:, :, begin:end] = value_states
        self.keys, self.values = self._room.keys[:, :, :end], self._room.values[:, :, :end]
        self.is_initialized = True
        return self.keys, self.values

    def window(self) -> tuple[Any, Any]:
        """The keys and values that the last token sees."""
        if self._window is None:
            return self.keys, self.values
        return self.keys[:, :, -self._window :], self.values[:, :, -self._window :]

    def cut(self, tokens: int) -> None:
        """Forget all but so many."""
        self.keys, self.values = self._room.keys[:, :, :tokens], self._room.values[:, :, :tokens]


def growing_cache(config: Any) -> Any:
    """transformers' own cache for a model of this configuration."""
    return _cache_utils.DynamicCache(config=config)


def cache_in(room: Room, config: Any) -> Any:
    """A new cache for one request. What was left in the room by the one before is never read."""
    cache = growing_cache(config)
    for index, layer in enumerate(room):
        if layer is not None:
            cache.layers[index] = ReservedLayer(layer, getattr(cache.layers[index], "sliding_window", None))
    return cache


def make_room(used: Any, tokens: int) -> Room:
    """A room for so many tokens. `used` is a cache of the model's that has held at least one."""
    return tuple(_layer_room(layer, tokens) for layer in used.layers)


def _layer_room(layer: Any, tokens: int) -> LayerRoom | None:
    # A layer may also share the keys of another, and have none of its own.
    if type(layer) not in _GROWING or not layer.is_initialized:
        return None

    def like(states: Any) -> Any:
        _, heads, _, size = states.shape
        return states.new_empty((1, heads, tokens, size))

    return LayerRoom(like(layer.keys), like(layer.values))
