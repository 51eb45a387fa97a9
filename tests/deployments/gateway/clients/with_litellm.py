"""LiteLLM's client for servers with OpenAI's API, unchanged, against a gateway."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
from typing import Any

from asking import BASE, KEY, MODEL, NAMED, WEATHER, check, refused, require_weather, run

# Else it fetches a list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm: Any = importlib.import_module("litellm")

SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Tell me of the sea."}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}},
    "required": ["name"],
    "additionalProperties": False,
}


def fields(**given: Any) -> dict[str, Any]:
    fixed = {"model": f"openai/{MODEL}", "api_base": BASE, "api_key": KEY, "num_retries": 0, "max_retries": 0}
    return {**fixed, "messages": SAID, "max_tokens": 16, "temperature": 0, **given}


def chat(**given: Any) -> Any:
    return litellm.completion(**fields(**given))


def text(answer: Any) -> str:
    return answer.choices[0].message.content


@check
def chat_stream_and_usage() -> None:
    answer = chat()
    assert answer.usage.completion_tokens == 16 and answer.choices[0].finish_reason == "length"
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text(answer)
    whole = litellm.stream_chunk_builder(chunks, messages=SAID)
    assert whole.usage.prompt_tokens == answer.usage.prompt_tokens
    assert whole.usage.completion_tokens == 16


@check
def stop_seed_and_log_probs() -> None:
    word = text(chat()).split()[3]
    assert word not in text(chat(stop=[word]))
    assert text(chat(seed=7, temperature=1)) == text(chat(seed=7, temperature=1))
    assert len(chat(logprobs=True, top_logprobs=2).choices[0].logprobs.content) == 16


@check
def json_schema() -> None:
    named = {"name": "person", "schema": SCHEMA, "strict": True}
    answer = chat(response_format={"type": "json_schema", "json_schema": named}, max_tokens=64)
    assert json.loads(text(answer)).keys() == {"name"}


@check
def tools() -> None:
    (call,) = chat(tools=[WEATHER], tool_choice=NAMED, max_tokens=64).choices[0].message.tool_calls
    assert call.function.name == "weather"
    require_weather(call.function.arguments)


@check
def many_at_once() -> None:
    async def ask() -> list[Any]:
        return await asyncio.gather(*(litellm.acompletion(**fields(max_tokens=4)) for _ in range(32)))

    assert len({text(answer) for answer in asyncio.run(ask())}) == 1


@check
def errors() -> None:
    refused(litellm.NotFoundError, lambda: chat(model="openai/nothing"))
    refused(litellm.AuthenticationError, lambda: chat(api_key="eh-none"))
    refused(litellm.BadRequestError, lambda: chat(temperature=9))
    too_long = [{"role": "user", "content": "word " * 3000}]
    refused(litellm.ContextWindowExceededError, lambda: chat(messages=too_long))


if __name__ == "__main__":
    run()
