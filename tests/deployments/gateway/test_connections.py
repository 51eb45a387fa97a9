"""Clients that send too slowly, too much, or in too many pieces, over real sockets: others are answered meanwhile."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest

from deployments.gateway import sending
from deployments.gateway.connections import HEAD_BYTES, MOST_CHUNKS
from deployments.gateway.serve import Options
from tests.deployments.gateway.house import MODEL, House, house, post, until

PATH = f"/v2/models/{MODEL}/generate"
BODY = json.dumps({"text_input": "hello", "max_tokens": 4}).encode()
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\n".encode()
MOST = 40
"""Connections of the gateway under test."""


@pytest.fixture
def served() -> Iterator[House]:
    """With shorter times, and less room, than clients are given."""
    options = Options(body_bytes=1 << 20, bodies_bytes=3 << 20, connections=MOST, head_s=0.6, body_s=1.0, linger_s=1.0)
    with house(options=options) as made:
        made.add_node("one")
        made.public()
        yield made


def all_of(client: socket.socket) -> bytes:
    """Everything until the gateway closes."""
    found = b""
    with suppress(ConnectionError):
        while part := client.recv(1 << 16):
            found += part
    return found


def one_of(client: socket.socket) -> bytes:
    """One whole answer."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += client.recv(1 << 16)
    head, _, body = found.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += client.recv(1 << 16)
    return head + b"\r\n\r\n" + body


def code_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body).get("code", "")


def test_a_head_that_does_not_come(served: House) -> None:
    began = time.monotonic()
    with served.connect() as client:
        client.sendall(HEAD)
        for _ in range(4):
            time.sleep(0.1)
            client.sendall(b"X-Slow: 1\r\n")
        assert served.generate("others").status_code == 200
        assert all_of(client).startswith(b"HTTP/1.1 408 ")
    assert 0.5 < time.monotonic() - began < 3


def test_a_second_head_that_does_not_come(served: House) -> None:
    with served.connect() as client:
        client.sendall(post(PATH, BODY))
        assert one_of(client).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        client.sendall(HEAD[:20])
        assert all_of(client).startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 3


def test_a_body_that_does_not_come(served: House) -> None:
    began = time.monotonic()
    with served.connect() as client:
        client.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        for _ in range(5):
            client.sendall(b"x")
            time.sleep(0.1)
        assert served.generate("others").status_code == 200
        assert code_of(all_of(client)) == (408, "body-slow")
    assert 0.9 < time.monotonic() - began < 5
    until(lambda: served.gateway.started.is_set() and not served.nodes["one"].running, "rest")


@pytest.mark.parametrize("length", ["Content-Length: 2000000", "Transfer-Encoding: chunked"])
def test_a_body_that_is_too_large(served: House, length: str) -> None:
    with served.connect() as client:
        client.sendall(HEAD + f"{length}\r\n\r\n".encode())
        with suppress(ConnectionError):
            for _ in range(20 if "chunked" in length else 1):
                client.sendall(b"%x\r\n" % 100_000 + b"x" * 100_000 + b"\r\n" if "chunked" in length else b"x" * 1000)
        assert code_of(one_of(client)) == (413, "body-large")
    assert served.generate("others").status_code == 200


def test_a_hundred_megabytes_are_not_held(served: House) -> None:
    before = psutil.Process().memory_info().rss
    for _ in range(3):
        with served.connect() as client:
            client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            with suppress(ConnectionError, TimeoutError):
                for _ in range(1600):
                    client.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert served.generate("others").status_code == 200


def test_six_hundred_thousand_chunks(served: House) -> None:
    """The request that ended a Triton before 25.07, and that costs any server in Python its time."""
    body = b"".join(b"1\r\n%c\r\n" % byte for byte in BODY + b" " * (600_000 - len(BODY))) + b"0\r\n\r\n"
    answers: list[bytes] = []

    def attack() -> None:
        with served.connect() as client:
            client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            with suppress(ConnectionError):
                client.sendall(body)
            answers.append(client.recv(1 << 16))

    attackers = [threading.Thread(target=attack) for _ in range(4)]
    for attacker in attackers:
        attacker.start()
    slowest = 0.0
    while any(attacker.is_alive() for attacker in attackers):
        began = time.monotonic()
        assert served.generate("others").status_code == 200
        slowest = max(slowest, time.monotonic() - began)
    for attacker in attackers:
        attacker.join(20)
    assert [answer.split()[1] for answer in answers] == [b"413"] * 4
    assert slowest < 3, "others waited"
    assert not served.nodes["one"].cancelled


def test_a_body_in_pieces_is_one_body(served: House) -> None:
    size = 3
    pieces = [BODY[at : at + size] for at in range(0, len(BODY), size)]
    with served.connect() as client:
        client.sendall(HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n")
        assert b'"text_output":"hello"' in all_of(client)
    assert len(pieces) < MOST_CHUNKS


@pytest.mark.parametrize("at_once", [True, False])
def test_a_head_that_is_too_large(served: House, at_once: bool) -> None:
    with served.connect() as client:
        lines = [b"X-Many-%d: %s\r\n" % (number, b"x" * 100) for number in range(2 * HEAD_BYTES // 100)]
        with suppress(ConnectionError):
            if at_once:
                client.sendall(HEAD + b"".join(lines) + b"\r\n")
            else:
                for line in [HEAD, *lines]:
                    client.sendall(line)
        assert client.recv(1 << 16).split()[1] in (b"431", b"400")
    assert served.generate("others").status_code == 200


def test_all_bodies_together_have_a_bound(served: House) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(served.connect()) for _ in range(6)]
        for client in clients:
            client.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + b"x" * 900_000)
        codes = sorted(code_of(one_of(client)) for client in clients)
    # Three fit into three mebibytes; these then come too slowly.
    assert codes == [(408, "body-slow")] * 3 + [(503, "bodies-limit")] * 3
    assert served.generate("others").status_code == 200


def test_idle_connections_make_room(served: House) -> None:
    with ExitStack() as stack:
        running = stack.enter_context(served.connect())
        running.sendall(post(PATH, json.dumps({"text_input": "hold 1", "max_tokens": 4}).encode()))
        until(lambda: served.nodes["one"].running == 1, "request")
        idle = [stack.enter_context(served.connect()) for _ in range(5 * MOST)]
        assert served.generate("others").status_code == 200
        assert idle[0].recv(1) == b"", "the one that waited the longest made room"
        served.let_go()
        assert one_of(running).startswith(b"HTTP/1.1 200 "), "one that is answered stays"


def test_a_thousand_idle_connections() -> None:
    with house() as made, ExitStack() as stack:
        made.add_node("one")
        made.public()
        before = psutil.Process().memory_info().rss
        for _ in range(1000):
            stack.enter_context(made.connect())
        began = time.monotonic()
        assert [made.generate(f"others {number}").status_code for number in range(10)] == [200] * 10
        assert time.monotonic() - began < 5
        assert psutil.Process().memory_info().rss - before < 64 << 20


def test_a_client_that_takes_nothing_of_its_answer(served: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SEND_SECONDS", 0.5)
    one = served.nodes["one"]
    with served.connect() as client:
        body = json.dumps({"text_input": "large", "max_tokens": 4}).encode()
        client.sendall(post(f"{PATH}_stream", body))
        until(lambda: one.cancelled == ["large"], "cancellation", 15)
        assert served.generate("others").status_code == 200


def test_a_compressed_body_is_refused(served: House) -> None:
    with served.client() as client:
        answer = client.post(PATH, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "body-encoded")


def test_two_requests_on_one_connection_after_a_refused_one(served: House) -> None:
    """An answer before the end of the body leaves the connection usable."""
    with served.connect() as client:
        client.sendall(post("/v2/models/nobody/generate", BODY))
        assert one_of(client).startswith(b"HTTP/1.1 404 ")
        for _ in range(2):
            client.sendall(post(PATH, BODY))
            assert one_of(client).startswith(b"HTTP/1.1 200 ")
