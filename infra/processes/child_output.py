"""The output of a child, read live and passed on in lines."""

from __future__ import annotations

import codecs
import os
import re
import select
from collections.abc import Callable, Iterator
from typing import IO

TAIL_BYTES = 64 << 10
LINE_CHARACTERS = 64 << 10
"""A longer line is cut in pieces of this length."""

_PIPE_BYTES = 1 << 20
"""The capacity of a pipe with pages of 64 KiB, the largest that Linux has (pipe(7)): one read empties it."""

_LINE_END = re.compile(r"\r\n|\n|\r")


class Output:
    """The output of a child, passed on in lines. It is `over` once no process is left that could write any."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.over = False
        self._pipe = pipe
        self._poll = select.poll()
        self._poll.register(pipe, select.POLLIN)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = ""
        self._returned = False
        self._tail = b""

    def read(self, wait_s: float, on_line: Callable[[str], None]) -> bool:
        """Pass on what comes within `wait_s` seconds. Returns whether output came."""
        if self.over or not self._poll.poll(wait_s * 1000):
            return False
        data = os.read(self._pipe.fileno(), _PIPE_BYTES)
        self.over = not data
        self._tail = (self._tail + data)[-TAIL_BYTES:]
        for line in self._lines(self._decoder.decode(data, final=self.over)):
            on_line(line)
        return not self.over

    def tail(self) -> str:
        return self._tail.decode("utf-8", "replace")

    def close(self) -> None:
        self._pipe.close()

    def _lines(self, text: str) -> Iterator[str]:
        if text:
            # The line went out when its "\r" came: a "\n" that follows is no line of its own.
            text, self._returned = text[self._returned and text[0] == "\n" :], text[-1] == "\r"
        start = 0
        for end in _LINE_END.finditer(text):
            self._begun += text[start : end.start()]
            start = end.end()
            yield from self._cut()
            if self._begun or end[0] != "\r":  # progress bars begin with "\r"
                yield self._begun
            self._begun = ""
        self._begun += text[start:]
        yield from self._cut()
        if self.over and self._begun:
            yield self._begun

    def _cut(self) -> Iterator[str]:
        while len(self._begun) > LINE_CHARACTERS:
            yield self._begun[:LINE_CHARACTERS]
            self._begun = self._begun[LINE_CHARACTERS:]
