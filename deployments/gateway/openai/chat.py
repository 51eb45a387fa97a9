"""`POST /v1/chat/completions`: a body becomes generations, and the way to read their answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from tasks.serving.contract import MAX_TOP_LOG_PROBS
from tasks.targets.parsers import ModelParsers

from .bodies import Document, Neutral, moved_up, validated, without_neutral
from .errors import invalid
from .fields import NEUTRAL, Common, sampled
from .generation import Generation
from .guides import NESTED, Guide, check, guide_of
from .messages import MOST_MESSAGES, Message, contract_messages
from .reading import AnswerForm
from .reasoning import ThinkParser
from .tool_formats.choice import TOOL_PARSERS, arguments_key
from .tool_formats.forced import NamedCall, required
from .tools import MOST_TOOLS, NamedChoice, Schemas, Tool, ToolChoice, contract_tools, forced_call, schemas_of

_NEUTRAL: Mapping[str, Neutral] = {
    **NEUTRAL,
    "modalities": (["text"],),
    "prompt_cache_retention": str,
    "prompt_cache_options": ({},),
    "verbosity": ("medium",),
    "reasoning_effort": (),
    "prediction": (),
    "audio": (),
    "web_search_options": (),
    "moderation": (),
    "functions": ([],),
    "function_call": ("none",),
    "include_reasoning": (True,),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "add_special_tokens": (False,),
    "chat_template": (),
    "documents": ([],),
}


@dataclass(frozen=True)
class ChatRequest:
    """A request that was understood. `generations` has one entry a choice."""

    model: str
    generations: tuple[Generation, ...]
    form: AnswerForm
    stream: bool
    include_usage: bool
    log_probs: bool


class _Fields(Common):
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=2**31 - 1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOG_PROBS)
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, object] | None = None


def parse_chat(document: Document, parsers: ModelParsers) -> ChatRequest:
    """What a body asks for. Raises ApiError, which names the field that is wrong or cannot be honoured."""
    fields = validated(_Fields, without_neutral(moved_up(document, NESTED), _NEUTRAL))
    schemas = schemas_of(fields.tools or [])
    choice = _choice(fields, schemas)
    guide = _guide(fields, choice, schemas, parsers)
    if fields.top_logprobs and not fields.logprobs:
        raise invalid("'top_logprobs' needs 'logprobs'", "top_logprobs")
    form = _form(fields, choice, schemas, parsers)
    prompt = Generation(
        messages=contract_messages(fields.messages),
        tools=contract_tools(fields.tools) if fields.tools and choice != "none" else None,
        chat_template_kwargs=json.dumps(fields.chat_template_kwargs) if fields.chat_template_kwargs else None,
    )
    generations = tuple(
        replace(
            sampled(fields, _max_tokens(fields), number),
            messages=prompt.messages,
            tools=prompt.tools,
            chat_template_kwargs=prompt.chat_template_kwargs,
            return_log_probs=bool(fields.logprobs),
            return_output_tokens=bool(fields.logprobs),
            num_top_log_probs=fields.top_logprobs or None,
            # A guide holds from the first token on, so a guided answer has no marks, and nothing that would end one.
            skip_special_tokens=None if guide or not form.has_marks else False,
            guided_decoding_guide_type=guide.type if guide else "",
            guided_decoding_guide=guide.guide if guide else "",
        )
        for number in range(fields.choices)
    )
    return ChatRequest(
        model=fields.model,
        generations=generations,
        form=form,
        stream=bool(fields.stream),
        include_usage=fields.include_usage,
        log_probs=bool(fields.logprobs),
    )


def _max_tokens(fields: _Fields) -> int | None:
    both = {fields.max_tokens, fields.max_completion_tokens} - {None}
    if len(both) > 1:
        raise invalid("'max_tokens' and 'max_completion_tokens' differ; send one of them", "max_tokens")
    return both.pop() if both else None


def _choice(fields: _Fields, schemas: Schemas) -> ToolChoice:
    """Whether there are to be calls; `none` without tools."""
    choice = fields.tool_choice or "auto"
    if not schemas:
        if choice == "required" or isinstance(choice, NamedChoice):
            raise invalid("'tool_choice' needs 'tools'", "tool_choice")
        return "none"
    if isinstance(choice, NamedChoice) and choice.function.name not in schemas:
        raise invalid(f"no tool has the name '{choice.function.name}'", "tool_choice.function.name")
    return choice


def _guide(fields: _Fields, choice: ToolChoice, schemas: Schemas, parsers: ModelParsers) -> Guide | None:
    """The guide of the answer, or the one that makes it a call. A call that is forced is one call, not several."""
    guide = guide_of(fields)
    if choice == "none":
        return guide
    if guide is not None:
        raise invalid(f"'{guide.param}' leaves no room for calls; send 'tool_choice': 'none' with it", guide.param)
    if choice == "auto":
        _check_auto(fields)
        return None
    if isinstance(choice, NamedChoice):
        schema = json.dumps(schemas[choice.function.name], ensure_ascii=False)
    else:
        schema = forced_call(schemas, arguments_key(parsers.tool_parser))
    forced = Guide("json_schema", schema, "tools")
    check(forced)
    return forced


def _check_auto(fields: _Fields) -> None:
    """Raise ApiError for what only a guide could see to."""
    for position, tool in enumerate(fields.tools or []):
        if tool.function.strict:
            raise invalid(
                "nothing keeps the model to the schema; 'strict' can be true where 'tool_choice' is 'required', or "
                "names a tool",
                f"tools[{position}].function.strict",
            )


def _form(fields: _Fields, choice: ToolChoice, schemas: Schemas, parsers: ModelParsers) -> AnswerForm:
    form = AnswerForm(
        think_parser=ThinkParser if parsers.reasoning_parser else None,
        short_ids=parsers.tool_parser == "mistral",
    )
    if choice == "none":
        return form
    if isinstance(choice, NamedChoice):
        # OpenAI says `stop` here: that there is a call is no news.
        return replace(form, tool_parser=lambda: NamedCall(choice.function.name), call_reason="stop")
    if choice == "required":
        return replace(form, tool_parser=lambda: required(schemas))
    if parsers.tool_parser is None:
        raise invalid(
            "this model's file names no 'tool_parser', so its calls cannot be found; 'tool_choice' can be 'required', "
            "or name a tool",
            "tools",
        )
    parser = TOOL_PARSERS[parsers.tool_parser]
    return replace(form, tool_parser=lambda: parser(schemas), one_call=fields.parallel_tool_calls is False)
