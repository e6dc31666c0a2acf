"""The upstream client in front of one scripted instance, for tests of what it makes of an answer."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from balancer.errors import BalancerError
from balancer.upstream.client import UpstreamClient, UpstreamRequest
from balancer.upstream.exchange import Exchange, ResponseHead
from balancer.upstream.pool import Pool
from balancer.upstream.stream_memory import StreamMemory
from tests.fakes.scripted_instance import ScriptedInstance, Send, whole

ASK = UpstreamRequest(method="POST", target="/api/chat", headers=(), body=b"{}")


@dataclass(frozen=True)
class Taken:
    """What came of an exchange: its head, its HTTP chunks (or all of a body without them), and the
    failure that ended it."""

    head: ResponseHead
    pieces: tuple[bytes, ...]
    error: BalancerError | None


class Asker:
    """A client of one scripted instance."""

    def __init__(self, instance: ScriptedInstance, client: UpstreamClient) -> None:
        self.instance = instance
        self.client = client

    @property
    def pool(self) -> Pool:
        return self.client.pool(self.instance.url)

    async def exchange(self, request: UpstreamRequest = ASK) -> Exchange:
        async with asyncio.timeout(20):
            return await self.client.exchange(self.instance.url, request)

    async def take(self, request: UpstreamRequest = ASK) -> Taken:
        exchange = await self.exchange(request)
        opening = await exchange.response()
        pieces: list[bytes] = []
        failure = None
        try:
            async with asyncio.timeout(20):
                while (piece := await exchange.next_chunk()) is not None:
                    pieces.append(piece)
        except BalancerError as error:
            failure = error
        joined = (b"".join(pieces),) if pieces else ()
        return Taken(opening, tuple(pieces) if opening.chunked else joined, failure)

    async def take_next(self) -> bytes:
        """The body of one more, sane answer."""
        self.instance.play(Send(whole(b'{"next":true}')))
        return b"".join((await self.take()).pieces)


@contextlib.asynccontextmanager
async def asking(*, idle_seconds: float = 60, buffer_bytes: int = 1 << 24) -> AsyncIterator[Asker]:
    """A client and its instance; no connection may be left when the client is closed."""
    client = UpstreamClient(
        connect_seconds=20, idle_seconds=idle_seconds, buffer_bytes=buffer_bytes, memory=StreamMemory(1 << 30)
    )
    async with ScriptedInstance().running() as instance:
        try:
            yield Asker(instance, client)
        finally:
            client.close()
            assert client.pool(instance.url).open == 0
            await asyncio.sleep(0.01)  # for the loop to let the closed sockets go
