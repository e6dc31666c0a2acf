"""Loads on a measured proxy: closed loops, paced questions, paced streams, idle streams.

Each warms up, measures one window, lets everything end whole, and returns what was seen in the window.
Every wait has a deadline; whoever misses it is an error of the tally.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from tests.benchmarks.clients import StreamClient, Tally, UnaryClient
from tests.benchmarks.processes import Meter, Usage
from tests.benchmarks.wire import Question

_CONNECT_SECONDS = 10.0
_LOOK_SECONDS = 0.02
_Client = TypeVar("_Client", bound=asyncio.Protocol)
_DIALS = 32
"""So many connections are opened at once, so that no listener's backlog decides anything."""


@dataclass(frozen=True, slots=True)
class Window:
    """What the clients saw and the processes used in a measured time."""

    tally: Tally
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What all loads need: where to, how the time is measured, marks that never repeat."""

    port: int
    meter: Meter
    markers: Iterator[int]
    patience_seconds: float = 60.0

    async def closed_loop(
        self, question: Question, connections: int, *, warm_seconds: float, seconds: float
    ) -> Window:
        """Each connection asks again as soon as it is answered."""
        return await self._unary(question, connections, 0.0, warm_seconds, seconds)

    async def paced(
        self,
        question: Question,
        connections: int,
        *,
        pause_seconds: float,
        warm_seconds: float,
        seconds: float,
    ) -> Window:
        """Each connection asks, pauses and asks again: the proxy is never full of this alone."""
        return await self._unary(question, connections, pause_seconds, warm_seconds, seconds)

    async def streams(
        self, question: Question, count: int, *, warm_seconds: float, seconds: float, stop: Callable[[], int]
    ) -> Window:
        """Paced streams without an end; the window begins some time after all have begun. Then `stop` ends
        them and tells how many chunks each must have had."""
        tally = Tally()
        async with self._opened(replace(question, chunks=0), count, tally) as streams:
            await streams.begun(self.patience_seconds)
            await asyncio.sleep(warm_seconds)
            tally.restart()
            before = streams.segments()
            self.meter.start()
            await self._passed(seconds, tally)
            window = Window(copy.copy(tally), self.meter.stop())
            window.tally.segments = streams.segments() - before
            tally.restart()
            chunks = stop()
            await streams.ended(self.patience_seconds)
            others = [each.number for each in streams.clients if each.number != chunks]
            if others and not tally.errors:
                tally.errors.append(
                    f"{len(others)} streams ended with {others[0]} chunks or so, not {chunks}"
                )
        return window

    async def idle(
        self,
        question: Question,
        count: int,
        *,
        during: Callable[[], Awaitable[None]],
        release: Callable[[], object],
    ) -> Tally:
        """Streams that have begun and say nothing; then `during`, then `release`, and all must end whole."""
        tally = Tally()
        async with self._opened(question, count, tally) as streams:
            await streams.begun(self.patience_seconds)
            await during()
            release()
            await streams.ended(self.patience_seconds)
        return tally

    async def _passed(self, seconds: float, tally: Tally) -> None:
        """Return after so long, or later with the first that is seen: a busy machine is no error."""
        await asyncio.sleep(seconds)
        for _ in range(int(self.patience_seconds / _LOOK_SECONDS)):
            if tally.answers or tally.chunks or tally.errors:
                return
            await asyncio.sleep(_LOOK_SECONDS)

    @contextlib.asynccontextmanager
    async def _opened(self, question: Question, count: int, tally: Tally) -> AsyncIterator[_Streams]:
        streams = _Streams(count, tally)
        try:
            await _dialled(
                self.port,
                [
                    StreamClient(
                        question,
                        next(self.markers),
                        tally,
                        on_begun=streams.one_begun,
                        on_end=streams.one_ended,
                    )
                    for _ in range(count)
                ],
                streams.clients,
            )
            yield streams
        finally:
            for each in streams.clients:
                each.leave()

    async def _unary(
        self, question: Question, connections: int, pause: float, warm_seconds: float, seconds: float
    ) -> Window:
        tally = Tally()
        asking = _Asking(self.markers, pause)
        clients: list[UnaryClient] = []
        try:
            await _dialled(
                self.port, [UnaryClient(question, tally, asking) for _ in range(connections)], clients
            )
            asking.begin(clients)
            await asyncio.sleep(warm_seconds)
            tally.restart()
            self.meter.start()
            await self._passed(seconds, tally)
            window = Window(copy.copy(tally), self.meter.stop())
            tally.restart()
            if not await asking.ended(self.patience_seconds):
                tally.errors.append(f"some of {connections} connections still waited for their answers")
        finally:
            for each in clients:
                each.waits = False
                each.transport.abort()
        return window


class _Asking:
    """Lets clients ask until it is ended."""

    def __init__(self, markers: Iterator[int], pause: float) -> None:
        self._markers = markers
        self._pause = pause
        self._clients: list[UnaryClient] = []
        self._ended = False
        self._quiet = asyncio.Event()

    def begin(self, clients: list[UnaryClient]) -> None:
        self._clients = clients
        loop = asyncio.get_running_loop()
        for number, each in enumerate(clients):
            loop.call_later(self._pause * number / len(clients), self._ask, each)

    def answered(self, client: UnaryClient) -> None:
        if self._ended:
            self._look()
        elif self._pause:
            asyncio.get_running_loop().call_later(self._pause, self._ask, client)
        else:
            self._ask(client)

    async def ended(self, seconds: float) -> bool:
        """Ask nothing more; whether all answers came in time."""
        self._ended = True
        self._look()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), seconds)
        return self._quiet.is_set()

    def _ask(self, client: UnaryClient) -> None:
        if not self._ended and not client.waits and not client.transport.is_closing():
            client.ask(next(self._markers))

    def _look(self) -> None:
        if not any(each.waits for each in self._clients):
            self._quiet.set()


class _Streams:
    """How far a set of streams is."""

    def __init__(self, count: int, tally: Tally) -> None:
        self.clients: list[StreamClient] = []
        self._tally = tally
        self._count = count
        self._begun = self._ended = 0
        self._all_begun, self._all_ended = asyncio.Event(), asyncio.Event()

    def one_begun(self) -> None:
        self._begun += 1
        if self._begun == self._count:
            self._all_begun.set()

    def one_ended(self) -> None:
        self._ended += 1
        if self._ended == self._count:
            self._all_begun.set()
            self._all_ended.set()

    def segments(self) -> int:
        """So many came so far, of all that are still open."""
        return sum(each.segments() for each in self.clients if not each.transport.is_closing())

    async def begun(self, seconds: float) -> None:
        await self._wait(self._all_begun, seconds, "begun")

    async def ended(self, seconds: float) -> None:
        await self._wait(self._all_ended, seconds, "ended")

    async def _wait(self, event: asyncio.Event, seconds: float, what: str) -> None:
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            said = f"{self._begun} begun and {self._ended} ended of {self._count} streams in {seconds:g} s"
            self._tally.errors.append(f"not all {what}: {said}")


async def _dialled(port: int, protocols: list[_Client], opened: list[_Client]) -> None:
    """Connect each protocol, a few at once; those that are connected are in `opened` whatever happens."""
    loop = asyncio.get_running_loop()
    waiting = iter(protocols)

    async def dial() -> None:
        for protocol in waiting:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await loop.create_connection(partial(_itself, protocol), "127.0.0.1", port)
            opened.append(protocol)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(_DIALS, len(protocols))):
            group.create_task(dial())


def _itself(protocol: _Client) -> _Client:
    return protocol


def fresh_markers() -> Iterator[int]:
    """Numbers of eight digits at most."""
    return (number % 10**8 for number in itertools.count(1))
