"""Prompts as llama.cpp takes them: it renders and tokenizes them itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from typing import Any, TypeAlias

from .contract import GenerationRequest, RequestRefused, check_length
from .engine import EngineUnavailable
from .llama_server import LlamaServers
from .plain_text import PlainText
from .settings import ServingSettings

Prompt: TypeAlias = str | list[str | int]
"""A text, or several with tokens between them."""


class LlamaPrompts:
    """`control_tokens` are those of the vocabulary, as text."""

    def __init__(
        self, servers: LlamaServers, threads: Executor, settings: ServingSettings, control_tokens: Collection[str]
    ) -> None:
        self._servers = servers
        self._threads = threads
        self._settings = settings
        self._plain_text = PlainText(control_tokens)
        server = servers.get()
        properties = server.call("/props", None)
        self._has_template = bool(properties.get("chat_template"))
        begins = bool(server.call("/tokenize", {"content": "", "add_special": True})["tokens"])
        self._begin: str = properties["bos_token"] if begins else ""
        """What llama.cpp puts before each prompt. Of those that its templates render it takes theirs away."""

    async def of(self, request: GenerationRequest) -> tuple[str, Prompt]:
        """The prompt as text, and as llama.cpp is to have it. Raises RequestRefused, EngineFailed."""
        texts = [request.text_input, *(str(message["content"]) for message in request.messages)]
        check_length("".join(texts), self._settings.most_prompt_tokens)
        if not (request.messages or self._settings.chat_template):
            if not request.text_input:
                raise RequestRefused("'text_input' is empty")
            text = request.text_input.removeprefix(self._begin)
            return text, text
        if not self._has_template:
            raise RequestRefused("'messages' cannot be honoured: this model has no chat template")
        messages = request.messages or ({"role": "user", "content": request.text_input},)
        mark = self._plain_text.mark_for(messages)
        body: dict[str, Any] = {
            "messages": [self._plain_text.marked(message, mark) for message in messages],
            "chat_template_kwargs": dict(request.chat_template_kwargs),
        }
        if request.tools:
            body["tools"] = list(request.tools)
        text: str = (await self._call("/apply-template", body))["prompt"]
        return text, await self._in_tokens(text, mark) if mark else text

    async def _in_tokens(self, text: str, mark: str) -> Prompt:
        """The prompt, in which special tokens that are text are tokens already."""
        prompt = list[str | int]()
        for part, of_template in self._plain_text.parts(text, mark):
            if of_template:
                prompt.append(part)
            else:
                prompt += (await self._call("/tokenize", {"content": part, "parse_special": False}))["tokens"]
        return prompt

    async def _call(self, path: str, body: Mapping[str, Any]) -> Any:
        def call() -> Any:
            return self._servers.get().call(path, body)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except EngineUnavailable:
            # It ended of another request.
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
