"""LangChain's `ChatOpenAI`, unchanged, against a gateway."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

from asking import BASE, KEY, MODEL, WEATHER, check, refused, run

openai: Any = importlib.import_module("openai")
pydantic: Any = importlib.import_module("pydantic")
langchain: Any = importlib.import_module("langchain_openai")
messages: Any = importlib.import_module("langchain_core.messages")

SAID: list[Any] = [messages.SystemMessage("Be brief."), messages.HumanMessage("Tell me of the sea.")]


class Person(pydantic.BaseModel):
    """A person."""

    model_config: Any = pydantic.ConfigDict(extra="forbid")
    name: str = pydantic.Field(max_length=12)
    age: int = pydantic.Field(ge=0, le=120)


def model(**options: Any) -> Any:
    fixed = {"model": MODEL, "base_url": BASE, "api_key": KEY, "max_retries": 0, "max_tokens": 16, "temperature": 0}
    return langchain.ChatOpenAI(**{**fixed, **options})


@check
def chat_stream_and_usage() -> None:
    answer = model().invoke(SAID)
    assert answer.content and answer.response_metadata["finish_reason"] == "length"
    chunks = list(model(stream_usage=True).stream(SAID))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert len(chunks) > 8 and whole.content == answer.content
    assert whole.usage_metadata["output_tokens"] == answer.usage_metadata["output_tokens"] == 16


@check
def stop_seed_and_log_probs() -> None:
    word = model().invoke(SAID).content.split()[3]
    assert word not in model(stop=[word]).invoke(SAID).content
    assert model(seed=7, temperature=1).invoke(SAID).content == model(seed=7, temperature=1).invoke(SAID).content
    told = model(logprobs=True, top_logprobs=2).invoke(SAID).response_metadata["logprobs"]["content"]
    assert len(told) == 16 and len(told[0]["top_logprobs"]) == 2


@check
def structured_output() -> None:
    for method in ("json_schema", "function_calling"):
        asked = model(max_tokens=96).with_structured_output(Person, method=method, include_raw=True)
        answer = asked.invoke(SAID)
        assert isinstance(answer["parsed"], Person), (method, answer)


@check
def tools() -> None:
    bound = model(max_tokens=64).bind_tools([WEATHER], tool_choice="weather")
    answer = bound.invoke(SAID)
    (call,) = answer.tool_calls
    assert call["name"] == "weather" and call["args"]["city"] in ("Oslo", "Rome")
    told = messages.ToolMessage("Sun.", tool_call_id=call["id"])
    assert isinstance(model().bind_tools([WEATHER]).invoke([*SAID, answer, told]).content, str)
    streamed = list(bound.stream(SAID))
    whole = streamed[0]
    for chunk in streamed[1:]:
        whole += chunk
    assert [(each["name"], each["args"]) for each in whole.tool_calls] == [(call["name"], call["args"])]


@check
def many_at_once() -> None:
    async def ask() -> list[Any]:
        return await model(max_tokens=4).abatch([SAID] * 32)

    assert len({answer.content for answer in asyncio.run(ask())}) == 1


@check
def errors() -> None:
    refused(openai.NotFoundError, lambda: model(model="nothing").invoke(SAID), code="model_not_found")
    refused(openai.AuthenticationError, lambda: model(api_key="eh-none").invoke(SAID), code="invalid_api_key")
    refused(openai.BadRequestError, lambda: model(temperature=9).invoke(SAID), param="temperature")
    try:
        model().invoke("word " * 3000)
    except openai.BadRequestError as error:
        # LangChain has an error of its own for it, by the code.
        assert error.code == "context_length_exceeded" and type(error).__name__ == "OpenAIContextOverflowError", error
    else:
        raise AssertionError


if __name__ == "__main__":
    run()
