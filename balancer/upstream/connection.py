"""One connection to an instance: an asyncio protocol on httptools, one exchange at a time.

What is handled here: interim (1xx) heads, answers without a body, bodies that end with the
connection, trailers (dropped), bytes after the end (the connection is thrown away), heads beyond
their bound, framing that could be read in two ways (refused).
"""

import asyncio
import re
from collections.abc import Callable
from enum import StrEnum
from functools import lru_cache
from typing import cast

import httptools
import msgspec

from balancer.errors import BadResponse, BalancerError, ConnectionLost
from balancer.protocol.translation.served import AnswerTranslation
from balancer.upstream.exchange import Exchange, ResponseHead
from balancer.upstream.stream_memory import StreamMemory
from balancer.upstream.translated import exchange_of

HEAD_CODING = ("utf-8", "surrogateescape")
"""How the listener gives header bytes as text; the same here, so that they pass unchanged."""
_HEAD_LIMIT_BYTES = 65536
_INTERIM_LIMIT = 16
_ONE_CHUNK = re.compile(rb"([1-9a-f][0-9a-f]{0,6})\r\n(.*)\r\n", re.DOTALL)
"""A read that may be just one HTTP chunk, as tokens are sent. The parser reads extensions and the last."""


class _Phase(StrEnum):
    IDLE = "idle"
    HEAD = "head"
    BODY = "body"


class _Framing(msgspec.Struct, frozen=True):
    content_length: int | None
    chunked: bool
    until_close: bool


@lru_cache(maxsize=256)
def _decoded(name: bytes) -> str:
    return name.decode(*HEAD_CODING)


class Connection(asyncio.Protocol):
    """Owned by a pool. `on_idle` is told when another exchange may begin on it, `on_lost` once when
    it is closed."""

    def __init__(
        self, *, on_idle: Callable[["Connection"], None], on_lost: Callable[["Connection"], None]
    ) -> None:
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._phase = _Phase.IDLE
        self._drained: asyncio.Future[None] | None = None
        self._between_chunks = False
        self.closed = False

    # -- used by the pool and the client

    def begin(
        self,
        *,
        head_only: bool,
        buffer_bytes: int,
        memory: StreamMemory,
        translation: AnswerTranslation | None = None,
    ) -> Exchange:
        """Begin an exchange; `head_only` is for HEAD, whose answer has no body whatever it says. With a
        `translation` the answer comes out of it as that makes it."""
        assert self._phase is _Phase.IDLE
        self._exchange = exchange_of(
            translation, buffer_bytes=buffer_bytes, cancel=self.close, read=self._read, memory=memory
        )
        self._parser = httptools.HttpResponseParser(self)
        self._head_only = head_only
        self._head_bytes = 0
        self._interim = 0
        self._sent = False
        self._reusable = False
        self._reset_head()
        self._phase = _Phase.HEAD
        exchange = self._exchange
        if self.closed:
            self._fail()
        return exchange

    @property
    def heard(self) -> bool:
        """Whether a byte has come back in the exchange begun last."""
        return self._head_bytes > 0

    def write(self, data: bytes) -> None:
        """Send a part of the request, all of it held until the socket takes it. Sends nothing,
        without an error, once the connection is closed: the exchange tells why."""
        if self._transport is not None and not self.closed:
            self._transport.write(data)

    async def send(self, data: bytes) -> None:
        """As `write`, waiting while the socket is full."""
        self.write(data)
        if self._drained is not None:
            await self._drained

    def request_sent(self) -> None:
        """The request is complete. Without it the connection is not used again."""
        self._sent = True

    def break_off(self, error: BalancerError) -> None:
        """Fail the exchange that is under way, if there is one, and close."""
        if self._exchange is not None:
            self._exchange.cancel(error)

    def close(self) -> None:
        """Close it now; an exchange that is under way fails."""
        if self._transport is not None:
            self._transport.abort()
        self._closing()

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance

    def data_received(self, data: bytes) -> None:
        if self._between_chunks:
            one = _ONE_CHUNK.fullmatch(data)
            if one is not None and self._exchange is not None:
                size, chunk = one.groups()
                if int(size, 16) == len(chunk):
                    self._exchange.receive_chunk(chunk)  # the parser stands where it stood
                    return
            self._between_chunks = False
        if self._phase is _Phase.IDLE:
            self.close()
            return
        if self._phase is _Phase.HEAD:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse("it switched protocols")
        except httptools.HttpParserError as error:
            self._refuse(f"it broke HTTP's framing ({type(error).__name__})")
        if self._phase is _Phase.HEAD and self._head_bytes > _HEAD_LIMIT_BYTES:
            self._refuse(f"its head is larger than {_HEAD_LIMIT_BYTES} bytes")
        if self._between_chunks and not data.endswith(b"\r\n"):
            self._between_chunks = False  # a part of what begins the next one was in the read
        if self._reusable and self._head_only and not data.endswith(b"\n"):
            self._surplus()  # of a body in the answer to a HEAD
        # Not before the parser has eaten the read: surplus bytes in it must still be seen. Not
        # later either: whoever waited for the end may send the next request at once.
        if self._reusable and not self.closed:
            self._reusable = False
            self._on_idle(self)

    def eof_received(self) -> bool:
        if self._phase is _Phase.BODY and self._framing.until_close:
            self._complete(reusable=False)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing()

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # -- httptools

    def on_status(self, status: bytes) -> None:
        self._reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase is not _Phase.HEAD:
            return
        text = value.decode("utf-8", "surrogateescape")
        self._headers.append((_decoded(name), text))
        kept = self._kept_headers.get(name.lower())
        if kept is not None:
            kept.append(text)

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._phase is not _Phase.HEAD:
            self._surplus()
            return
        if status == 101:
            self._refuse("it switched protocols")
        if status < 200:
            return
        if 300 <= status < 400 and status != 304:
            self._refuse("it redirects")
            return
        framing = self._read_framing(status)
        if isinstance(framing, str):
            self._refuse(framing)
            return
        self._framing = framing
        self._phase = _Phase.BODY
        assert self._exchange is not None
        media_type = self._kept_headers[b"content-type"]
        self._exchange.receive_head(
            ResponseHead(
                status=status,
                reason=self._reason.decode(*HEAD_CODING),
                headers=tuple(self._headers),
                media_type=media_type[0].partition(";")[0].strip().casefold() if media_type else "",
                content_length=framing.content_length,
                chunked=framing.chunked,
            )
        )
        if self._head_only:
            self._complete(reusable=self._parser.should_keep_alive() and not framing.until_close)

    def on_body(self, body: bytes) -> None:
        if self._phase is _Phase.BODY and self._exchange is not None:
            self._exchange.receive(body)
        elif self._phase is _Phase.IDLE:
            self._surplus()

    def on_chunk_header(self) -> None:
        self._between_chunks = False
        if self._phase is _Phase.IDLE:
            self._surplus()

    def on_chunk_complete(self) -> None:
        if self._phase is _Phase.BODY and self._exchange is not None:
            self._between_chunks = True
            self._exchange.end_chunk()

    def on_message_begin(self) -> None:
        if self._phase is _Phase.IDLE:
            self._surplus()

    def on_message_complete(self) -> None:
        if self._phase is _Phase.HEAD and self._parser.get_status_code() < 200:
            self._interim += 1
            self._reset_head()
            if self._interim > _INTERIM_LIMIT:
                self._refuse(f"it sent more than {_INTERIM_LIMIT} interim heads")
        elif self._phase is _Phase.BODY:
            # Asked later, llhttp has forgotten the message and every connection would look spent.
            self._complete(reusable=self._parser.should_keep_alive() and not self._framing.until_close)

    # -- inside

    def _read(self, on: bool) -> None:
        """Go on reading, or wait; nothing once the connection is closed."""
        if self._transport is None or self.closed:
            return
        if on:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _reset_head(self) -> None:
        self._headers: list[tuple[str, str]] = []
        self._kept_headers: dict[bytes, list[str]] = {
            b"content-length": [],
            b"transfer-encoding": [],
            b"content-type": [],
        }
        self._reason = b""

    def _read_framing(self, status: int) -> _Framing | str:
        """How the body is delimited, or why that is not certain."""
        lengths = [value.strip() for value in self._kept_headers[b"content-length"]]
        codings = self._kept_headers[b"transfer-encoding"]
        if codings and lengths:
            return "it gave both a length and a transfer coding"
        if len(set(lengths)) > 1 or any(not (each.isascii() and each.isdigit()) for each in lengths):
            return "its Content-Length is not one number"
        if codings and ",".join(codings).strip().casefold() != "chunked":
            return "its transfer coding is not 'chunked'"
        bodiless = self._head_only or status in {204, 304}
        length = int(lengths[0]) if lengths else None
        return _Framing(length, bool(codings), until_close=not (bodiless or codings or lengths))

    def _complete(self, *, reusable: bool) -> None:
        exchange, self._exchange = self._exchange, None
        self._phase, self._between_chunks = _Phase.IDLE, False
        if exchange is not None:
            exchange.finish()
        self._reusable = reusable and self._sent and not self.closed and self._all_taken()
        if not self._reusable:
            self.close()

    def _all_taken(self) -> bool:
        """Whether the socket has taken the whole request; an early answer may come before."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def _surplus(self) -> None:
        self.close()

    def _refuse(self, what: str) -> None:
        if self._exchange is not None:
            self._exchange.fail(BadResponse(f"the instance's answer cannot be relayed: {what}"))
        self.close()

    def _closing(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.resume_writing()
        self._fail()
        self._on_lost(self)

    def _fail(self) -> None:
        self._phase, self._between_chunks = _Phase.IDLE, False
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            told = "before its answer" if not exchange.answered else "before its answer was whole"
            exchange.fail(ConnectionLost(f"the instance closed the connection {told}"))
