"""A client that keeps one connection, asks, and writes down what it saw of each answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import httptools

from tests.faults.talks import Talk

_PIECE_BYTES = 65536
_RESET = struct.pack("ii", 1, 0)


class Seen(StrEnum):
    """What an answer was to its client."""

    WHOLE = "whole"
    TOLD = "told"  # an error status with a body in the dialect
    BROKEN = "broken"  # begun, then an error record or, without a stream, a body that ends early
    FOREIGN = "foreign"  # a proper answer that is none of the dialect
    LEFT = "left"  # the client went away
    CUT = "cut"  # begun, then the end of the connection, without a word
    PRETENDED = "pretended"  # ends as if it were whole, and is not
    DROPPED = "dropped"  # no answer at all
    HUNG = "hung"  # nothing came for as long as the client waits


@dataclass(slots=True, kw_only=True)
class View:
    """One request as its client saw it; times are monotonic seconds. `complete` is whether the body
    came to its proper end."""

    request_id: str
    marker: str
    talk: Talk
    sent_at: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False
    reusable: bool = False
    first_byte_at: float | None = None
    ended_at: float = 0.0
    left: bool = False
    hung: bool = False
    error: str = ""

    @property
    def seen(self) -> Seen:
        """The one thing that it was."""
        if self.left:
            return Seen.LEFT
        if self.hung:
            return Seen.HUNG
        if not self.status:
            return Seen.DROPPED
        body = bytes(self.body)
        if self.status >= 300:
            return Seen.TOLD if self.complete and self.talk.is_error(body) else Seen.FOREIGN
        if self.complete:
            if self.talk.is_whole(body):
                return Seen.WHOLE
            if self.talk.streams and self.talk.ends_with_error(body):
                return Seen.BROKEN
            stream = self.headers.get("content-type", "").startswith(("application/x-ndjson", "text/event-"))
            return Seen.PRETENDED if stream else Seen.FOREIGN
        if not self.talk.streams:
            return Seen.BROKEN
        return Seen.BROKEN if self.talk.ends_with_error(body) else Seen.CUT


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """When a client goes away: after so many seconds, or so many bytes of the answer, if that is first;
    by a reset or by a proper end of its connection."""

    seconds: float | None = None
    answer_bytes: int | None = None
    by_reset: bool = False


class Client:
    """One connection at a time to one address; `pace` is how many bytes a second it reads, None for all."""

    def __init__(
        self, port: int, *, patience_seconds: float, pace: Callable[[], float | None] = lambda: None
    ) -> None:
        self._port = port
        self._patience_seconds = patience_seconds
        self._pace = pace
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, view: View, request: bytes, leaving: Leaving | None = None) -> View:
        """Send one request and read its answer to whatever end it has."""
        try:
            await self._exchange(view, request, leaving)
        except (OSError, EOFError, httptools.HttpParserError) as error:
            view.error = f"{type(error).__name__}: {error}"
        view.ended_at = time.monotonic()
        if not (view.complete and view.reusable) or view.left:
            await self.close(by_reset=leaving is not None and leaving.by_reset)
        return view

    async def close(self, *, by_reset: bool = False) -> None:
        """Leave."""
        writer, self._writer, self._reader = self._writer, None, None
        if writer is None:
            return
        if by_reset:
            opened = writer.get_extra_info("socket")
            if opened is not None:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _exchange(self, view: View, request: bytes, leaving: Leaving | None) -> None:
        reader, writer = await self._connected()
        reading = _Reading(view)
        writer.write(request)
        leave_at = view.sent_at + leaving.seconds if leaving and leaving.seconds is not None else None
        while not view.complete:
            pace = self._pace()
            wait = self._patience_seconds
            if leave_at is not None:
                wait = min(wait, max(0.0, leave_at - time.monotonic()))
            try:
                async with asyncio.timeout(wait):
                    data = await reader.read(_PIECE_BYTES if pace is None else max(1, int(pace / 10)))
            except TimeoutError:
                view.left = wait < self._patience_seconds
                view.hung = not view.left
                return
            if not data:
                return
            reading.feed(data)
            if leaving and leaving.answer_bytes is not None and reading.came >= leaving.answer_bytes:
                view.left = True
                return
            if pace is not None:
                await asyncio.sleep(0.1)

    async def _connected(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is None or self._writer is None:
            opened = await self._open()
            self._reader, self._writer = await asyncio.open_connection(sock=opened, limit=_PIECE_BYTES)
        return self._reader, self._writer

    async def _open(self) -> socket.socket:
        opened = socket.socket()
        opened.setblocking(False)
        if self._pace() is not None:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            async with asyncio.timeout(self._patience_seconds):
                await asyncio.get_running_loop().sock_connect(opened, ("127.0.0.1", self._port))
        except BaseException:
            opened.close()
            raise
        return opened


class _Reading:
    """Takes down an answer for its view."""

    def __init__(self, view: View) -> None:
        self.came = 0
        self._view = view
        self._parser = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        self.came += len(data)
        if self._view.first_byte_at is None:
            self._view.first_byte_at = time.monotonic()
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._view.headers[name.decode("latin-1").casefold()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._view.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._view.body += body

    def on_message_complete(self) -> None:
        self._view.complete = True
        self._view.reusable = self._parser.should_keep_alive()
