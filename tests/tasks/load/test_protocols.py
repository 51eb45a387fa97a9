"""Each protocol against a server that speaks it, and what becomes of a request that has no answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import pytest

from infra.errors import UsageError
from tasks.load.http_stream import Address, Connections
from tasks.load.openai import OpenAi
from tasks.load.outcome import Hearing, RequestFailed
from tasks.load.prompts import Prompt
from tasks.load.triton_sse import TritonSse
from tasks.load.wire import Sampling, Wire

PROMPT = Prompt("hello", 4)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(text: str) -> bytes:
    data = text.encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


@asynccontextmanager
async def server(answer: bytes, *, leave: bool = False, requests: list[bytes] | None = None) -> AsyncGenerator[str]:
    """Answers every request with these bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(length[0][15:])) if length else b""
                if requests is not None:
                    requests.append(head + body)
                writer.write(answer)
                if leave:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            served.set()

    served = asyncio.Event()
    made = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with made:
        yield f"http://127.0.0.1:{made.sockets[0].getsockname()[1]}"
        if requests:
            await served.wait()
        await asyncio.sleep(0.01)  # for the transport to close


def openai(connections: Connections) -> Wire:
    return OpenAi("m", "chat/completions", connections, Sampling())


def sse(connections: Connections) -> Wire:
    return TritonSse("m", connections, Sampling())


def heard(wire: Callable[[Connections], Wire], answer: bytes, *, leave: bool = False) -> Hearing:
    gaps: list[float] = []

    async def ask() -> Hearing:
        async with server(answer, leave=leave) as url:
            connections = Connections(Address.parse(url))
            hearing = Hearing(gaps.append)
            try:
                await wire(connections).prepare(PROMPT)(hearing)
            finally:
                connections.close()
            return hearing

    found = asyncio.run(asyncio.wait_for(ask(), 20))
    assert len(gaps) <= 2
    return found


ROLE = 'data: {"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}\n\n'
TEXT = 'data: {"choices":[{"delta":{"content":" a"}}],"usage":null}\n\n'
USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'


def test_a_chat_counts_from_its_first_text_by_the_usage() -> None:
    events = ROLE + TEXT + TEXT + USAGE + "data: [DONE]\n\n"
    found = heard(openai, OK + chunk(events) + b"0\r\n\r\n")
    assert (found.output_tokens, found.input_tokens) == (2, 3)
    assert found.first is not None and found.last == found.first


def test_an_event_in_several_parts_is_one() -> None:
    parts = b"".join(chunk(part) for part in (ROLE + TEXT[:20], TEXT[20:40], TEXT[40:] + USAGE, "data: [DONE]\n\n"))
    assert heard(openai, OK + parts + b"0\r\n\r\n").output_tokens == 2


def test_triton_counts_each_piece() -> None:
    piece = 'data: {"text_output":" a","num_output_tokens":2,"num_input_tokens":3}\n\n'
    found = heard(sse, OK + chunk(piece) + chunk(piece) + b"0\r\n\r\n")
    assert (found.output_tokens, found.input_tokens) == (4, 3)


def refusal(status: int, body: str = '{"error": "no"}') -> bytes:
    return b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body.encode())


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(400), "refused"),
        (refusal(404), "refused"),
        (refusal(401), "unauthorized"),
        (refusal(429), "limited"),
        (refusal(500), "failed"),
        (refusal(503), "unavailable"),
        (refusal(504), "deadline"),
        (OK + chunk(TEXT) + b"0\r\n\r\n", "broken"),  # no [DONE]
        (OK + chunk('data: {"error":{"message":"x"}}\n\n') + b"0\r\n\r\n", "failed"),
        (OK + chunk("data: {nothing\n\n") + b"0\r\n\r\n", "malformed"),
        (OK + chunk("data: [1]\n\n") + b"0\r\n\r\n", "malformed"),
        (OK + chunk('data: {"choices":[7]}\n\n') + b"0\r\n\r\n", "malformed"),
        (b"SSH-2.0-x\r\n\r\n", "malformed"),
    ],
)
def test_what_is_no_answer_has_a_kind(answer: bytes, kind: str) -> None:
    with pytest.raises(RequestFailed) as failure:
        heard(openai, answer)
    assert failure.value.kind == kind


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("the engine [internal]", "failed"),
        ("too long [context-length]", "refused"),
        ("gone [unavailable]", "unavailable"),
    ],
)
def test_an_error_in_a_stream_of_triton_has_the_kind_of_its_code(message: str, kind: str) -> None:
    with pytest.raises(RequestFailed) as failure:
        heard(sse, OK + chunk(f'data: {{"error":"{message}"}}\n\n') + b"0\r\n\r\n")
    assert failure.value.kind == kind


@pytest.mark.parametrize("answer", [b"", OK, OK + chunk(TEXT), OK[:30]])
def test_a_connection_that_ends_early_is_broken(answer: bytes) -> None:
    with pytest.raises(RequestFailed) as failure:
        heard(openai, answer, leave=True)
    assert failure.value.kind in ("broken", "malformed")


def test_nobody_there_is_unreachable() -> None:
    async def ask() -> None:
        async with server(b"") as url:
            pass
        await openai(Connections(Address.parse(url))).prepare(PROMPT)(Hearing(lambda _: None))

    with pytest.raises(RequestFailed) as failure:
        asyncio.run(ask())
    assert failure.value.kind == "unreachable"


def test_a_connection_is_used_again_and_after_a_failure_another_one() -> None:
    requests: list[bytes] = []

    async def ask() -> int:
        answer = OK + chunk(TEXT + USAGE + "data: [DONE]\n\n") + b"0\r\n\r\n"
        async with server(answer, requests=requests) as url:
            connections = Connections(Address.parse(url), (("Authorization", "Bearer k"),))
            wire = openai(connections)
            for _ in range(3):
                await wire.prepare(PROMPT)(Hearing(lambda _: None))
            count = len(connections._open)  # pyright: ignore[reportPrivateUsage]
            connections.close()
            return count

    assert asyncio.run(ask()) == 1
    assert len(requests) == 3 and all(b"Bearer k" in each and b'"max_tokens": 4' in each for each in requests)


def test_triton_is_asked_for_counts_where_the_model_has_them() -> None:
    found: list[bytes] = []

    async def ask(metadata: bytes) -> None:
        body = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(metadata), metadata)
        async with server(body, requests=found) as url:
            connections = Connections(Address.parse(url))
            wire = TritonSse("a/b", connections, Sampling(exact_lengths=True, temperature=0.0, seed=3))
            await wire.open()
            await wire.prepare(PROMPT)(Hearing(lambda _: None))
            connections.close()

    asyncio.run(ask(b'{"inputs": [{"name": "text_input"}]}'))
    asyncio.run(ask(b'{"inputs": [{"name": "return_num_input_tokens"}, {"name": "return_num_output_tokens"}]}'))
    assert b"return_num" not in found[1] and b'"return_num_output_tokens": true' in found[3]
    assert b"/v2/models/a%2Fb/generate_stream" in found[1] and b'"min_tokens": 4' in found[1]
    with pytest.raises(RequestFailed) as failure:
        asyncio.run(ask(b"[]"))
    assert failure.value.kind == "malformed"


@pytest.mark.parametrize("url", ["ftp://a", "http://", "http://a:x", "http://a/path", ""])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as error:
        Address.parse(url)
    assert error.value.code == "load-address"
