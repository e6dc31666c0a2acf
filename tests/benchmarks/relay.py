"""The floor: a relay that copies bytes both ways and knows nothing of what they mean.

`python -m tests.benchmarks.relay PORT…` listens on a port of loopback, prints it, and connects each client
to one of the given ports in turn. What it costs is what any proxy on this event loop costs at least.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Iterator
from typing import cast

import uvloop

_BACKLOG = 4096


class _End(asyncio.Protocol):
    """One of the two connections of a pair; what it reads the other one writes."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _End | None = None
        self.early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)
        else:
            self.early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()


class _ClientEnd(_End):
    """The client's side; its opening opens the other."""

    def __init__(self, ports: Iterator[int], tasks: set[asyncio.Task[None]]) -> None:
        super().__init__()
        self._ports = ports
        self._tasks = tasks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        task = asyncio.create_task(self._connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> None:
        assert self.transport is not None
        other = _End()
        other.other = self
        try:
            await asyncio.get_running_loop().create_connection(lambda: other, "127.0.0.1", next(self._ports))
        except OSError:
            self.transport.close()
            return
        assert other.transport is not None
        self.other = other
        if self.transport.is_closing():
            other.transport.close()
        for data in self.early:
            other.transport.write(data)
        self.early.clear()


async def _serve(ports: list[int]) -> None:
    in_turn, tasks = itertools.cycle(ports), set[asyncio.Task[None]]()
    server = await asyncio.get_running_loop().create_server(
        lambda: _ClientEnd(in_turn, tasks), "127.0.0.1", 0, backlog=_BACKLOG
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve([int(each) for each in sys.argv[1:]]))
