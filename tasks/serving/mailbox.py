"""What one task tells another on the same event loop, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class Mailbox(Generic[ItemT]):
    """Items of one answer, from who reads the engine to who answers the client.

    Who answers takes all that has come. So one that is behind sends more at once, and one that is not sends each.
    """

    def __init__(self) -> None:
        self._items: list[ItemT] = []
        self._changed = asyncio.Event()
        self._failure: Exception | None = None
        self._ended = False

    @property
    def ended(self) -> bool:
        """Whether no more will come."""
        return self._ended

    def put(self, item: ItemT) -> None:
        self._items.append(item)
        self._changed.set()

    def end(self, failure: Exception | None = None) -> None:
        """No more will come; `failure` is raised after what has come."""
        self._failure, self._ended = failure, True
        self._changed.set()

    async def __aiter__(self) -> AsyncGenerator[list[ItemT]]:
        """All that has come, as often as something has."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._items:
                taken, self._items = self._items, []
                yield taken
            if self._ended and not self._items:
                break
        if self._failure is not None:
            raise self._failure
