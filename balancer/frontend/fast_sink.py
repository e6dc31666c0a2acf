"""The fast sink: an answer written straight to the client's transport, for POSTs over HTTP/1.1.

A stream's pieces come in synchronously, from the parser of the instance's connection, and leave in
the same turn of the loop. What the client does not take stands in its transport's buffer; a stream is
never held back for it (see `upstream.exchange`), so that buffer is bounded here.
"""

import asyncio
from collections.abc import Callable
from http import HTTPStatus

from aiohttp.helpers import rfc822_formatted_time

from balancer.errors import BalancerError, ClientLeft, SlowReader
from balancer.frontend.connection import FastRequest
from balancer.protocol.headers import Headers
from balancer.upstream.exchange import BURST, IDLE_SECONDS
from balancer.upstream.stream_memory import StreamMemory

_REASONS = {each.value: each.phrase for each in HTTPStatus}
_BODILESS = frozenset({204, 304})
_CHUNKED = "Transfer-Encoding: chunked\r\n"


class FastSink:
    """Satisfies `forwarding.downstream.Sink` for one request, and `stream_memory.Laggard` for its stream."""

    def __init__(
        self, request: FastRequest, *, buffer_bytes: int, stall_seconds: float, memory: StreamMemory
    ) -> None:
        self._connection = request.protocol
        self._transport = request.transport
        self._buffer_bytes = buffer_bytes
        self._stall_seconds = stall_seconds
        self._memory = memory
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._chunked = False
        self._counted = False
        self._written_bytes = 0
        self._taken_bytes = 0
        self._taken_at = 0.0
        self._end: Callable[[BalancerError], None] | None = None
        self.started = False
        self.keep_alive = request.keep_alive

    @property
    def held_bytes(self) -> int:
        """What the client has not taken."""
        return self._transport.get_write_buffer_size()

    async def start(self, status: int, headers: Headers, *, content_length: int | None) -> None:
        self.started = True
        lines = [f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n"]
        lines += [f"{name}: {value}\r\n" for name, value in headers]
        # No value holds a line end, so what stands at the begin of a line is a name.
        told = "".join(lines).lower()
        if status not in _BODILESS:
            self._chunked = content_length is None
            lines.append(_CHUNKED if self._chunked else f"Content-Length: {content_length}\r\n")
        if "\r\ndate: " not in told:
            lines.append(f"Date: {rfc822_formatted_time()}\r\n")
        if "\r\nconnection: close\r\n" in told:
            self.keep_alive = False
        elif not self.keep_alive:
            lines.append("Connection: close\r\n")
        lines.append("\r\n")
        self._head = "".join(lines).encode("utf-8", "surrogateescape")
        self._loop.call_soon(self._send, b"")
        await self._drained()

    async def write(self, chunk: bytes) -> None:
        if chunk:  # an HTTP chunk of no bytes would be the last
            self._send(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)
        await self._drained()

    def outlet(self, end: Callable[[BalancerError], None]) -> Callable[[bytes], None]:
        self._send(b"")
        self._end = end
        self._taken_at = self._loop.time()
        return self._flow

    async def finish(self) -> None:
        self._send(b"0\r\n\r\n" if self._chunked else b"")
        await self._drained()

    async def break_off(self, record: bytes) -> None:
        self._send(b"%x\r\n%b\r\n" % (len(record), record) if record and self._chunked else record)
        self.keep_alive = False
        await self._drained()  # and not let go of before: it stands in memory, and is counted there
        # Closed, not aborted, so that what was written still arrives; the body's end does not.
        self._transport.close()
        if self.held_bytes:
            self._loop.call_later(self._stall_seconds, self._transport.abort)

    def abort(self) -> None:
        self.keep_alive = False
        self._transport.abort()

    def cut(self) -> None:
        """End it as all streams together hold too much."""
        if self._end is not None:
            self._end(SlowReader("the client does not read its answer"))
        self.abort()

    def close(self) -> None:
        """The request is served; what the client has not taken yet is its transport's affair."""
        self._end = None
        if self._counted:
            self._memory.forget(self)

    def _send(self, data: bytes) -> None:
        """The head goes out with what comes first, in the next turn of the loop at the latest."""
        if self._head:
            data, self._head = self._head + data, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)
            self._written_bytes += len(data)

    def _flow(self, chunk: bytes) -> None:
        """A piece of a stream; nothing here waits."""
        transport = self._transport
        if transport.is_closing():
            # The loss of the connection is told by aiohttp, but not before what it holds was taken.
            if self.held_bytes and self._end is not None:
                self._end(ClientLeft("the client left"))
            return
        data = b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk
        transport.write(data)
        self._written_bytes += len(data)
        if self._connection.writing_paused:
            self._check_backlog()
        elif self._counted:
            self._counted = False
            self._memory.forget(self)

    def _check_backlog(self) -> None:
        """As the exchange's own bound: beyond it a client is cut that took nothing for a while."""
        held, now = self.held_bytes, self._loop.time()
        taken = self._written_bytes - held
        if taken > self._taken_bytes:
            self._taken_bytes, self._taken_at = taken, now
        idle = now - self._taken_at >= IDLE_SECONDS
        if held > self._buffer_bytes and (idle or held > BURST * self._buffer_bytes):
            self.cut()
            return
        self._counted = True
        self._memory.note(self)

    async def _drained(self) -> None:
        """Wait while the client takes nothing. Raises ClientLeft."""
        if self._transport.is_closing():
            raise ClientLeft("the client left")
        if not self._connection.writing_paused:
            return
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._connection.drained()
        except TimeoutError as error:
            self.abort()
            raise ClientLeft(f"the client took nothing for {self._stall_seconds:g} s") from error
        except ConnectionError as error:
            raise ClientLeft("the client left") from error
