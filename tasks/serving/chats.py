"""Chats as the templates of a model render them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .contract import GenerationRequest, Json, RequestRefused
from .messages import for_template, in_parts
from .plain_text import PlainText
from .templates import DEFAULT

_WITH_TOOLS = "tool_use"
"""The template for chats with tools, where a model has one of its own, as transformers calls it."""

_PROBE = "enginehouse"


class Chats:
    """`loaded` is a tokenizer of transformers, `templates` are the model's own by name."""

    def __init__(self, loaded: Any, templates: Mapping[str, str], plain_text: PlainText) -> None:
        self._loaded = loaded
        self._templates = templates
        self._plain_text = plain_text
        self._in_parts = {name: self._wants_parts(template) for name, template in templates.items()}

    def rendered(self, request: GenerationRequest) -> tuple[str, str]:
        """What the template makes of the messages, or of the text as the one message of a user, and its mark.

        The mark is that of `PlainText`. Raises RequestRefused.
        """
        name = _WITH_TOOLS if request.tools and _WITH_TOOLS in self._templates else DEFAULT
        if (template := self._templates.get(name)) is None:
            raise RequestRefused("'messages' cannot be honoured: this model has no chat template")
        messages = request.messages or ({"role": "user", "content": request.text_input},)
        mark = self._plain_text.mark_for(messages)
        messages = for_template([self._plain_text.marked(message, mark) for message in messages])
        try:
            text = self._render(
                template,
                in_parts(messages) if self._in_parts[name] else messages,
                tools=list(request.tools) or None,
                **request.chat_template_kwargs,
            )
        except Exception as error:
            raise RequestRefused(f"the chat template cannot render 'messages': {error}") from error
        return text, mark

    def _render(self, template: str, messages: Sequence[Json], **values: Any) -> str:
        # Rendered first: what it returns as tokens has another type from transformers 5 on.
        return self._loaded.apply_chat_template(
            list(messages), chat_template=template, add_generation_prompt=True, tokenize=False, **values
        )

    def _wants_parts(self, template: str) -> bool:
        """Whether a message's content has to be a list of parts: as a text it is lost, or an error."""
        message = {"role": "user", "content": _PROBE}
        return not self._shows(template, [message]) and self._shows(template, in_parts([message]))

    def _shows(self, template: str, messages: Sequence[Json]) -> bool:
        try:
            return _PROBE in self._render(template, messages)
        except Exception:
            return False
