"""Clients that behave badly, all at once, and clients with large bodies. They are not what is measured."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import cast

from tests.benchmarks.clients import read_answer
from tests.benchmarks.wire import Question

_SLOW_BODY_BYTES = 100_000
_PIECE_BYTES = 16
_TURN_SECONDS = 0.25
_READ_BUFFER_BYTES = 4096
_SPOKEN = Question(stream=True, chunks=1000, chunk_bytes=16_000, every_ms=200)


class _Bad(asyncio.Protocol):
    """Connected, and silent. `turn` comes again and again."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def turn(self) -> None:
        """Nothing, for a silent one."""


class _SlowBody(_Bad):
    """A body that comes in tiny pieces."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(Question().head(_SLOW_BODY_BYTES))

    def turn(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b" " * _PIECE_BYTES)


class _SlowReader(_Bad):
    """A stream of large chunks, of which little is read at a time."""

    def __init__(self, marker: int) -> None:
        self._marker = marker
        self._reads = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(_SPOKEN.request(self._marker))
        self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.transport.pause_reading()
        self._reads = False

    def turn(self) -> None:
        if not self.transport.is_closing() and not self._reads:
            self._reads = True
            self.transport.resume_reading()


@contextlib.asynccontextmanager
async def crowd(port: int, each_kind: int, markers: Iterator[int]) -> AsyncIterator[None]:
    """So many silent connections, slow bodies and slow readers, until the block ends."""
    kinds = (_Bad, _SlowBody, lambda: _SlowReader(next(markers)))
    members = [await _connected(port, make()) for _ in range(each_kind) for make in kinds]
    turning = asyncio.create_task(_turns(members))
    try:
        yield
    finally:
        turning.cancel()
        for each in members:
            each.transport.abort()


async def _turns(members: list[_Bad]) -> None:
    """A turn of each in a quarter of a second, evenly spread."""
    steps = 10
    while True:
        for step in range(steps):
            for each in members[step::steps]:
                each.turn()
            await asyncio.sleep(_TURN_SECONDS / steps)


async def _connected(port: int, protocol: _Bad) -> _Bad:
    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _READ_BUFFER_BYTES)
    end.setblocking(False)
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10.0):
        await loop.sock_connect(end, ("127.0.0.1", port))
        await loop.create_connection(lambda: protocol, sock=end)
    return protocol


class _Large(asyncio.Protocol):
    """One request with a body of which all share the bytes; `said` is its status, 0 where it was cut."""

    def __init__(self, marker: int, padding: bytes) -> None:
        self._marker = marker
        self._padding = padding
        self._buffer = b""
        self.said: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        question = Question()
        before, _, after = question.body(self._marker, padding=b"\0").partition(b"\0")
        self.transport.write(question.head(len(before) + len(self._padding) + len(after)) + before)
        self.transport.write(self._padding)
        self.transport.write(after)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if (answer := read_answer(self._buffer)) is not None:
            self._end(answer[0])

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(0)

    def _end(self, status: int) -> None:
        if not self.said.done():
            self.said.set_result(status)
            self.transport.abort()


async def large_bodies(
    port: int, count: int, body_bytes: int, markers: Iterator[int], *, seconds: float
) -> Counter[int]:
    """Send so many at once; how often each status came, 0 for whoever was cut or not answered in time."""
    padding = b"x" * body_bytes
    loop = asyncio.get_running_loop()
    clients = [_Large(next(markers), padding) for _ in range(count)]
    said: Counter[int] = Counter()

    async def ask(client: _Large) -> None:
        try:
            async with asyncio.timeout(seconds):
                await loop.create_connection(lambda: client, "127.0.0.1", port)
                said[await client.said] += 1
        except (OSError, TimeoutError):
            said[0] += 1

    await asyncio.gather(*(ask(each) for each in clients))
    return said
