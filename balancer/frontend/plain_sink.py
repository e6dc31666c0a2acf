"""The plain sink: an answer through aiohttp's StreamResponse. Always correct, not the fastest."""

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web
from multidict import CIMultiDict

from balancer.errors import BalancerError, ClientLeft
from balancer.protocol.headers import Headers, header


class _Response(web.StreamResponse):
    """A StreamResponse that says nothing of itself: no Server, and no content type made up."""

    async def _prepare_headers(self) -> None:
        own = [name for name in ("Server", "Content-Type") if name not in self.headers]
        await super()._prepare_headers()
        for name in own:
            self.headers.popall(name, None)


class PlainSink:
    """Satisfies `forwarding.downstream.Sink` for one request."""

    def __init__(self, request: web.BaseRequest, *, stall_seconds: float) -> None:
        # Who asks for another protocol may go on in it: nothing after the answer is read.
        self._closes = "Upgrade" in request.headers
        self._request = request
        self._stall_seconds = stall_seconds
        self.response: web.StreamResponse | None = None

    @property
    def started(self) -> bool:
        return self.response is not None

    async def start(self, status: int, headers: Headers, *, content_length: int | None) -> None:
        self.response = _Response(status=status, headers=CIMultiDict(headers))
        if content_length is not None:
            self.response.content_length = content_length
        if self._closes or (header(headers, "connection") or "").casefold() == "close":
            self.response.force_close()  # by the header alone aiohttp would say so and not do so
        await self._sent(self.response.prepare(self._request))

    async def write(self, chunk: bytes) -> None:
        assert self.response is not None
        await self._sent(self.response.write(chunk))

    def outlet(self, end: Callable[[BalancerError], None]) -> None:
        return None

    async def finish(self) -> None:
        assert self.response is not None
        await self._sent(self.response.write_eof())

    async def break_off(self, record: bytes) -> None:
        if record:
            await self.write(record)
        transport = self._request.transport
        if transport is not None:
            # Closed, not aborted, so that what was written still arrives; the body's end does not.
            transport.close()
            if transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(self._stall_seconds, transport.abort)

    def abort(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    async def _sent(self, writing: Awaitable[object]) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await writing
        except TimeoutError as error:
            self.abort()
            raise ClientLeft(f"the client took nothing for {self._stall_seconds:g} s") from error
        except ConnectionError as error:
            raise ClientLeft("the client left") from error
