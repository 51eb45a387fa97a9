"""The `openai` package, unchanged, against a gateway."""

from __future__ import annotations

import asyncio
import importlib
import json
import urllib.request
from typing import Any

from asking import BASE, CLOCK, KEY, MODEL, NAMED, WEATHER, check, refused, require_weather, run

openai: Any = importlib.import_module("openai")
pydantic: Any = importlib.import_module("pydantic")

client: Any = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=120)
SEA = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": [{"type": "text", "text": "Tell me"}, {"type": "text", "text": "of the sea."}]},
]


def chat(**fields: Any) -> Any:
    return client.chat.completions.create(**{"model": MODEL, "messages": SEA, "max_tokens": 16, **fields})


def text(answer: Any) -> str:
    return answer.choices[0].message.content


def by_triton(messages: Any) -> dict[str, Any]:
    """The same chat in Triton's protocol: what the model itself counts."""
    fields = {"messages": json.dumps(messages), "max_tokens": 16, "temperature": 0.0}
    body = {**fields, "return_num_input_tokens": True, "return_num_output_tokens": True}
    address = f"{BASE.removesuffix('/v1')}/v2/models/{MODEL}/generate"
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)


@check
def models() -> None:
    assert [each.id for each in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "enginehouse"


@check
def chat_and_usage() -> None:
    answer = chat(temperature=0)
    counted = by_triton(SEA)
    assert text(answer) == counted["text_output"] and answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == counted["num_input_tokens"]
    assert answer.usage.completion_tokens == counted["num_output_tokens"] == 16
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16


@check
def stream() -> None:
    whole = chat(temperature=0)
    chunks = list(chat(temperature=0, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(each.delta.content or "" for each in deltas) == text(whole)
    assert len(deltas) > 8 and deltas[0].delta.role == "assistant" and deltas[-1].finish_reason == "length"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage


@check
def stop() -> None:
    whole = text(chat(temperature=0))
    word = whole.split()[3]
    for answer in (chat(temperature=0, stop=word), chat(temperature=0, stop=["nowhere", word])):
        assert text(answer) == whole[: whole.index(word)] and answer.choices[0].finish_reason == "stop"


@check
def seed() -> None:
    first, same, other = (text(chat(temperature=1, seed=seed)) for seed in (7, 7, 8))
    assert first == same != other


@check
def log_probs() -> None:
    answer = chat(temperature=0, logprobs=True, top_logprobs=3)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text(answer)
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token
        assert 0 >= token.logprob == token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    chunks = chat(temperature=0, logprobs=True, top_logprobs=3, stream=True)
    told = [each.choices[0].logprobs for each in chunks if each.choices[0].logprobs]
    assert [token for each in told for token in each.content] == tokens


@check
def json_schema() -> None:
    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=12)
        age: int = pydantic.Field(ge=0, le=120)

    for seed in range(4):
        answer = client.chat.completions.parse(
            model=MODEL, messages=SEA, max_tokens=64, temperature=1, seed=seed, response_format=Person
        )
        assert isinstance(answer.choices[0].message.parsed, Person), answer


@check
def json_object() -> None:
    answer = chat(response_format={"type": "json_object"}, max_tokens=200, temperature=0, seed=1)
    if answer.choices[0].finish_reason == "stop":
        json.loads(text(answer))
    else:
        assert text(answer).lstrip()[0] in '{["0123456789-tfn'


@check
def tools() -> None:
    for choice, reason in ((NAMED, "stop"), ("required", "tool_calls")):
        fields = {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 64, "temperature": 0}
        answer = chat(**fields).choices[0]
        (call,) = answer.message.tool_calls
        assert call.function.name == "weather" and answer.finish_reason == reason, answer
        require_weather(call.function.arguments)
        parts: list[str] = []
        for chunk in chat(**fields, stream=True):
            calls: Any = chunk.choices[0].delta.tool_calls or ()
            for part in calls:
                assert part.index == 0 and (part.function.name == "weather") == (not parts)
                parts.append(part.function.arguments or "")
        assert "".join(parts) == call.function.arguments and len(parts) > 2
    asked = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    told = {"role": "tool", "tool_call_id": call.id, "content": "Sun."}
    assert text(chat(messages=[*SEA, asked, told], tools=[WEATHER, CLOCK], parallel_tool_calls=False)) is not None


@check
def choices() -> None:
    answer = chat(n=3, seed=1, temperature=1)
    assert [each.index for each in answer.choices] == [0, 1, 2]
    assert len({each.message.content for each in answer.choices}) > 1
    assert answer.usage.completion_tokens <= 48 and answer.choices[0].message.content == text(
        chat(seed=1, temperature=1)
    )


@check
def completions() -> None:
    fields = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    answer = client.completions.create(prompt=["One two", "The sea"], logprobs=2, **fields)
    for choice in answer.choices:
        assert "".join(choice.logprobs.tokens) == choice.text and choice.logprobs.text_offset[0] == 0
        assert all(len(top) >= 2 for top in choice.logprobs.top_logprobs)
    parts = client.completions.create(prompt="The sea", stream=True, **fields)
    assert "".join(part.choices[0].text for part in parts) == answer.choices[1].text
    for name, value in (("echo", True), ("suffix", "x"), ("best_of", 2)):
        sent = {name: value}
        refused(
            openai.BadRequestError,
            lambda sent=sent: client.completions.create(prompt="a", **sent, **fields),
            param=name,
        )


@check
def what_clients_send_anyway() -> None:
    neutral = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "n": 1, "logit_bias": {}}
    answer = chat(
        **neutral, max_tokens=None, max_completion_tokens=3, messages=[{"role": "developer", "content": "Hi"}]
    )
    assert answer.usage.completion_tokens <= 3


@check
def errors() -> None:
    refused(openai.NotFoundError, lambda: chat(model="nothing"), code="model_not_found", status_code=404)
    refused(openai.NotFoundError, lambda: chat(model=f"{MODEL}:adapter"), code="model_not_found")
    refused(openai.BadRequestError, lambda: chat(temperature=9), param="temperature")
    refused(openai.BadRequestError, lambda: chat(logit_bias={"5": 1}), param="logit_bias")
    refused(openai.BadRequestError, lambda: chat(tools=[strict()]), param="tools[0].function.strict")
    refused(openai.BadRequestError, lambda: chat(extra_body={"beams": 4}), param="beams")
    refused(openai.BadRequestError, lambda: chat(extra_body={"min_tokens": 4}), param="min_tokens")
    long = [{"role": "user", "content": "word " * 3000}]
    for stream in (False, True):
        too_long = {"messages": long, "stream": stream}
        refused(
            openai.BadRequestError, lambda sent=too_long: chat(**sent), code="context_length_exceeded", param="messages"
        )
    stranger = openai.OpenAI(base_url=BASE, api_key="eh-none", max_retries=0)
    refused(openai.AuthenticationError, stranger.models.list, code="invalid_api_key", status_code=401)


def strict() -> dict[str, Any]:
    return {**WEATHER, "function": {**WEATHER["function"], "strict": True}}


@check
def many_at_once() -> None:
    async def ask() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=120) as many:
            asked = (
                many.chat.completions.create(model=MODEL, messages=SEA, max_tokens=4, temperature=0) for _ in range(32)
            )
            return await asyncio.gather(*asked)

    assert len({text(answer) for answer in asyncio.run(ask())}) == 1


if __name__ == "__main__":
    run()
