"""Processes of one model that find each other, over real sockets."""

from __future__ import annotations

import asyncio
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from tasks.serving.peers import Peers

_PROCESS = """
import asyncio, sys
from tasks.serving.peers import Peers

class Hearer:
    def heard(self, number, kind, value):
        pass
    def gone(self, number):
        pass

async def main():
    peers = Peers(sys.argv[1], int(sys.argv[2]))
    await peers.open(Hearer())
    peers.tell_all("here", peers.number)
    await asyncio.sleep(60)

asyncio.run(main())
"""


class Hearer:
    def __init__(self) -> None:
        self.said: list[tuple[int, str, Any]] = []
        self.ended: list[int] = []

    def heard(self, number: int, kind: str, value: Any) -> None:
        self.said.append((number, kind, value))

    def gone(self, number: int) -> None:
        self.ended.append(number)


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(4000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it does not come")


def in_loop(test: Callable[[str], Awaitable[None]]) -> None:
    async def run() -> None:
        await test(uuid.uuid4().hex)

    asyncio.run(run())


async def opened(scope: str, instance: int) -> tuple[Peers, Hearer]:
    peers, hearer = Peers(scope, instance), Hearer()
    await peers.open(hearer)
    return peers, hearer


def test_each_hears_what_is_told_to_all_and_to_it_alone() -> None:
    async def test(scope: str) -> None:
        others = await asyncio.gather(*(opened(scope, instance) for instance in range(3)))
        late = await opened(scope, 3)
        everybody = [*others, late]
        assert {peers.number for peers, _ in everybody} == {0, 1, 2, 3}
        await until(lambda: all(other.tell(late[0].number, "one", 1) for other, _ in others))
        late[0].tell_all("all", {"of": "them"})
        for peers, hearer in others:
            await until(lambda hearer=hearer: (late[0].number, "all", {"of": "them"}) in hearer.said)
            assert (peers.number, "one", 1) in late[1].said
        assert not late[0].tell(late[0].number, "itself", 1) and not late[0].tell(77, "nobody", 1)
        for peers, _ in everybody:
            await peers.close()

    in_loop(test)


def test_another_scope_is_another_model() -> None:
    async def test(scope: str) -> None:
        here, _ = await opened(scope, 0)
        there, hearer = await opened(scope + "b", 0)
        assert here.number == there.number == 0
        here.tell_all("all", 1)
        await asyncio.sleep(0.05)
        assert hearer.said == []
        await here.close()
        await there.close()

    in_loop(test)


def test_who_leaves_is_gone_and_not_lost() -> None:
    async def test(scope: str) -> None:
        stays, hearer = await opened(scope, 0)
        leaves, _ = await opened(scope, 1)
        await until(lambda: stays.tell(leaves.number, "hi", 1))
        await leaves.close()
        await until(lambda: hearer.ended == [leaves.number])
        assert stays.lost == set() and not stays.tell(leaves.number, "hi", 1)
        again, _ = await opened(scope, 1)
        assert again.number == leaves.number
        await again.close()
        await stays.close()

    in_loop(test)


def test_a_process_that_is_killed_is_lost_until_another_takes_its_place() -> None:
    async def test(scope: str) -> None:
        stays, hearer = await opened(scope, 0)
        for place in ("first", "second"):
            child = await asyncio.create_subprocess_exec(sys.executable, "-c", _PROCESS, scope, "1")
            try:
                await until(lambda: (1, "here", 1) in hearer.said)
                assert stays.lost == set(), place
            finally:
                child.kill()
                await child.wait()
            await until(lambda: hearer.ended == [1])
            assert stays.lost == {1}
            hearer.said.clear()
            hearer.ended.clear()
        await stays.close()

    in_loop(test)


def test_somebody_else_on_the_machine_is_not_listened_to(monkeypatch: Any) -> None:
    async def test(scope: str) -> None:
        here, hearer = await opened(scope, 0)
        monkeypatch.setattr("tasks.serving.peers.os.geteuid", lambda: 4_000_000)
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(stranger, f"\0enginehouse-llm-{scope}-0")
            try:
                await loop.sock_sendall(stranger, b'["hello", [5, 5, "x"]]\n["cancel", "all"]\n')
                assert await loop.sock_recv(stranger, 100) == b""
            except ConnectionError:
                pass  # it was faster
        assert hearer.said == [] and not here.tell(5, "hi", 1)
        await here.close()

    in_loop(test)
