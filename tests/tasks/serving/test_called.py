"""The backend's model over gRPC: what goes over the wire and comes back, from a server of gRPC's own."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest

from infra.processes.sessions import free_ports
from tasks.serving.called import CALLED_MODEL, CALLED_SERVER, CalledModel, Response
from tasks.serving.engine import EngineFailed
from tasks.serving.grpc_stream import GrpcStream
from tasks.serving.mailbox import Mailbox

aio: Any = importlib.import_module("grpc.aio")
library: Any = importlib.import_module("tritonclient.grpc")
messages, service = library.service_pb2, library.service_pb2_grpc
OUTPUTS = ("output_ids", "sequence_length")
Work = Callable[["Server", CalledModel], Coroutine[Any, Any, None]]


class Server(service.GRPCInferenceServiceServicer):
    """Answers each request of a stream with `replies`, beside the others. The last of them waits for `go_on`."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.came: asyncio.Queue[Any] = asyncio.Queue()
        self.streams = 0
        self.ended = 0
        """Streams that were not cancelled: their client sent no more, and all was answered."""
        self.replies: Sequence[Any] = ()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.streams += 1
        answers: asyncio.Queue[Any] = asyncio.Queue()

        async def answer(request: Any) -> None:
            for index, reply in enumerate(self.replies):
                if index == len(self.replies) - 1:
                    await self.go_on.wait()
                answers.put_nowait(answered(request.id, reply))

        async def read() -> None:
            async for request in requests:
                self.asked.append(request)
                self.came.put_nowait(request)
                running.append(asyncio.create_task(answer(request)))
            await asyncio.gather(*running[1:])
            answers.put_nowait(None)

        running = [asyncio.create_task(read())]
        try:
            while (message := await answers.get()) is not None:
                yield message
            self.ended += 1
        finally:
            for task in running:
                task.cancel()


def answered(request_id: str, reply: Any) -> Any:
    message = messages.ModelStreamInferResponse()
    message.CopyFrom(reply)
    message.infer_response.id = request_id
    return message


def reply(*ids: int) -> Any:
    answer = messages.ModelInferResponse()
    for name, shape, value in (("output_ids", (1, 1, len(ids)), ids), ("sequence_length", (1, 1), [len(ids)])):
        answer.outputs.add(name=name, datatype="INT32", shape=shape)
        answer.raw_output_contents.append(np.array(value, dtype=np.int32).tobytes())
    answer.parameters["triton_final_response"].bool_param = False
    return messages.ModelStreamInferResponse(infer_response=answer)


def final() -> Any:
    message = messages.ModelStreamInferResponse()
    message.infer_response.parameters["triton_final_response"].bool_param = True
    return message


def failure(text: str) -> Any:
    return messages.ModelStreamInferResponse(error_message=text)


@asynccontextmanager
async def serving(port: int) -> AsyncGenerator[Server]:
    made, server = Server(), aio.server(options=(("grpc.so_reuseport", 0),))
    service.add_GRPCInferenceServiceServicer_to_server(made, server)
    assert server.add_insecure_port(f"127.0.0.1:{port}") == port
    await server.start()
    try:
        yield made
    finally:
        await server.stop(None)


def run(work: Work) -> None:
    async def running() -> None:
        port = free_ports(1)[0]
        model = CalledModel({CALLED_MODEL: "m--r7--tensorrt_llm", CALLED_SERVER: f"127.0.0.1:{port}"})
        async with serving(port) as server:
            await work(server, model)
            await model.close()

    asyncio.run(running())


async def ids(mailbox: Mailbox[Response]) -> list[list[int]]:
    return [response.tensors["output_ids"][0, 0].tolist() async for batch in mailbox for response in batch]


def test_a_request_goes_out_as_it_is_and_its_tokens_come_one_after_the_other() -> None:
    inputs = {
        "input_ids": np.array([[1, 2, 3]], dtype=np.int32),
        "streaming": np.array([[True]]),
        "guided_decoding_guide": np.array([[b"a+"]], dtype=np.object_),
    }

    async def work(server: Server, model: CalledModel) -> None:
        server.replies = [reply(5), reply(6, 7), reply(), final()]
        assert await ids(model.call("17", inputs, OUTPUTS)) == [[5], [6, 7], []]
        (request,) = server.asked
        assert (request.model_name, request.id) == ("m--r7--tensorrt_llm", "17")
        told = [(entry.name, entry.datatype, list(entry.shape)) for entry in request.inputs]
        assert told == [
            ("input_ids", "INT32", [1, 3]),
            ("streaming", "BOOL", [1, 1]),
            ("guided_decoding_guide", "BYTES", [1, 1]),
        ]
        assert list(request.raw_input_contents) == [inputs["input_ids"].tobytes(), b"\1", b"\2\0\0\0a+"]
        assert [entry.name for entry in request.outputs] == list(OUTPUTS)
        assert request.parameters["triton_enable_empty_final_response"].bool_param

    run(work)


def test_requests_share_a_stream_and_each_has_its_own_answer() -> None:
    async def work(server: Server, model: CalledModel) -> None:
        server.replies, server.go_on = [reply(5), reply(6), final()], asyncio.Event()
        first, second = model.call("1", {}, OUTPUTS), model.call("2", {}, OUTPUTS)
        assert {(await server.came.get()).id, (await server.came.get()).id} == {"1", "2"}
        assert not first.ended and not second.ended
        server.go_on.set()
        assert await asyncio.gather(ids(first), ids(second)) == [[[5], [6]]] * 2
        assert server.streams == 1 and first.ended and second.ended

    run(work)


def test_what_is_not_decoupled_ends_with_its_one_response() -> None:
    async def work(server: Server, model: CalledModel) -> None:
        whole = reply(5, 6)
        del whole.infer_response.parameters["triton_final_response"]
        server.replies = [whole]
        assert await ids(model.call("1", {}, OUTPUTS)) == [[5, 6]]

    run(work)


def test_a_failure_is_the_last_response() -> None:
    async def work(server: Server, model: CalledModel) -> None:
        server.replies = [reply(5), failure("CUDA error")]
        responses = [response async for batch in model.call("1", {}, OUTPUTS) for response in batch]
        assert [response.failure for response in responses] == ["", "CUDA error"]

    run(work)


def test_a_request_with_the_number_of_another_has_a_stream_of_its_own() -> None:
    async def work(server: Server, model: CalledModel) -> None:
        server.replies, server.go_on = [reply(5), final()], asyncio.Event()
        running = model.call("1", {}, OUTPUTS)
        await server.came.get()
        server.go_on.set()
        assert len([response async for response in model.call_alone("1", {}, OUTPUTS)]) == 1
        assert await ids(running) == [[5]] and (server.streams, server.ended) == (2, 1)

    run(work)


def test_a_server_that_ends_is_a_failure_and_one_that_comes_back_is_asked_again() -> None:
    async def running() -> None:
        port = free_ports(1)[0]
        model = CalledModel({CALLED_MODEL: "m", CALLED_SERVER: f"127.0.0.1:{port}"})
        async with serving(port) as server:
            server.replies, server.go_on = [reply(5), final()], asyncio.Event()
            begun = model.call("1", {}, OUTPUTS)
            assert await anext(aiter(begun))
        with pytest.raises(EngineFailed, match="the engine's server does not answer"):
            await ids(begun)
        with pytest.raises(EngineFailed, match="the engine's server does not answer"):
            await ids(model.call("2", {}, OUTPUTS))
        async with serving(port) as server:
            server.replies = [reply(7), final()]
            # gRPC tries again within half a second, which it would put off for seconds by itself.
            for _ in range(20):
                with suppress(EngineFailed):
                    assert await ids(model.call("3", {}, OUTPUTS)) == [[7]]
                    break
                await asyncio.sleep(0.1)
            else:
                raise AssertionError("it is not asked again")
            await model.close()

    asyncio.run(running())


def test_prompts_and_answers_may_be_of_any_size() -> None:
    """More than gRPC's first windows and frames take."""
    prompt, answer = np.arange(1_000_000, dtype=np.int32).reshape(1, -1), range(500_000)

    async def work(server: Server, model: CalledModel) -> None:
        server.replies = [reply(*answer), reply(7), final()]
        said = await asyncio.gather(
            *(ids(model.call(str(number), {"input_ids": prompt}, OUTPUTS)) for number in range(3))
        )
        assert said == [[list(answer), [7]]] * 3
        assert {bytes(request.raw_input_contents[0]) for request in server.asked} == {prompt.tobytes()}

    run(work)


def test_what_has_come_is_handed_over_together() -> None:
    """However the bytes fall into what is read from the connection, and frames into messages."""
    message = b"\0\0\0\0\3abc"
    frames = (message * 2 + message[:4], message[4:], b"\0" * 5)
    data = b"".join(len(frame).to_bytes(3, "big") + b"\0\0\0\0\0\1" + frame for frame in frames)
    for size in (1, 7, len(data)):
        came: list[Sequence[bytes]] = []
        stream = GrpcStream("host:1", "/method", came.append, pytest.fail)
        for start in range(0, len(data), size):
            stream.data_received(data[start : start + size])
        assert [one for each in came for one in each] == [b"abc", b"abc", b"abc", b""]
        assert size < len(data) or len(came) == 1


def test_a_server_that_goes_away_ends_only_what_it_no_longer_answers() -> None:
    for last, ended in ((2**31 - 1, []), (0, ["the server ended the call"])):
        reasons: list[str] = []
        stream = GrpcStream("host:1", "/method", lambda _: None, reasons.append)
        stream.data_received(b"\0\0\x08\7\0\0\0\0\0" + last.to_bytes(4, "big") + b"\0" * 4)
        assert reasons == ended
