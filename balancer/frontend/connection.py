"""Client connections: aiohttp's, with time and size limits that it has not, and errors in our shape.

This is the one module that touches aiohttp's inside: its `RequestHandler` is subclassed, and told
apart are a connection that waits for a head and one that serves a request.
"""

import asyncio
import logging
import re
import resource
from collections.abc import Awaitable, Callable
from http import HTTPMethod, HTTPStatus
from typing import cast
from uuid import uuid4

from aiohttp import EMPTY_PAYLOAD, HttpVersion, HttpVersion11, StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import set_exception
from aiohttp.http_exceptions import BadHttpMessage, BadHttpMethod, LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler, _ErrInfo
from multidict import CIMultiDictProxy

from balancer.core.operation import Dialect
from balancer.frontend.heads import UNPARSABLE
from balancer.overdue import Overdue
from balancer.protocol.errors import error_body
from balancer.settings import LimitsSettings

_LINGER_SECONDS = 2.0
"""So long the rest of a refused body is read and thrown away, that the client may see why."""
_READ_AHEAD_BYTES = 32768
"""Of a body that nobody has asked for yet, twice so much is read; it is in no budget."""
_START_BYTES = 24
_METHOD = re.compile(rb"([A-Za-z]+)(?: |\Z)")
_METHODS = frozenset(each.encode() for each in HTTPMethod)
_LAST_LOOK_SECONDS = 0.05
_BETWEEN_CHUNKS_BYTES = 16384
_BETWEEN_CHUNKS_RATIO = 16
"""What stands between the chunks of a body may be so many bytes, and so many times what is in them: chunks of
one byte need some five."""
_NOT_COUNTED = -(1 << 62)
_REASONS = {each.value: each.phrase for each in HTTPStatus}
_FILES_SHARE = 0.45
"""Of the open files that the process may have, so many may be client connections; each may need one to
an instance."""

_QUIET = logging.getLogger("balancer.aiohttp")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


class BrokenBody(web.RequestPayloadError):
    """What is wrong with a body, as it is to be told."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class FastRequest:
    """A request for the fast sink: as it was parsed, without what aiohttp's own answers need of it."""

    __slots__ = ("_message", "_task", "content", "protocol", "transport")

    def __init__(
        self,
        message: RawRequestMessage,
        content: StreamReader,
        protocol: "Connection",
        transport: asyncio.Transport,
    ) -> None:
        self._message = message
        self._task: asyncio.Task[None] | None = None
        self.content = content
        self.protocol = protocol
        self.transport = transport

    @property
    def method(self) -> str:
        return self._message.method

    @property
    def raw_path(self) -> str:
        return self._message.path

    @property
    def headers(self) -> CIMultiDictProxy[str]:
        return self._message.headers

    @property
    def version(self) -> HttpVersion:
        return self._message.version

    @property
    def keep_alive(self) -> bool:
        return not self._message.should_close

    @property
    def remote(self) -> str | None:
        peer = self.protocol.peername
        return str(peer[0]) if isinstance(peer, tuple) else None

    @property
    def content_length(self) -> int | None:
        told = self._message.headers.get("Content-Length")
        return None if told is None else int(told)

    def _cancel(self, error: BaseException) -> None:
        """From aiohttp, when the connection is lost: whoever reads the body is told."""
        set_exception(self.content, error)


class Server(web.Server):
    """aiohttp's server with connections of our own make, at most `limits.connections` at once. With
    `fast`, POSTs over HTTP/1.1 come to the handler as a FastRequest, and it returns what has `keep_alive`."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        limits: LimitsSettings,
        *,
        fast: bool,
    ) -> None:
        super().__init__(handler, handler_cancellation=True, request_factory=self._request)
        self.use(limits, fast=fast)

    def use(self, limits: LimitsSettings, *, fast: bool) -> None:
        """Other limits, for connections that come from now on; another path, for requests."""
        self._limits = limits
        self._fast = fast
        self._heads: Overdue[Connection] = Overdue(limits.header_seconds, Connection.head_is_late)
        self._most = limits.connections or int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _FILES_SHARE)

    @property
    def is_full(self) -> bool:
        """Whether another connection would be one too many."""
        return len(self.connections) >= self._most

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: "asyncio.Task[None]",
    ) -> web.BaseRequest:
        if (
            self._fast
            and message.method == "POST"
            and message.version == HttpVersion11
            and "Upgrade" not in message.headers
            and isinstance(protocol, Connection)
            and protocol.transport is not None
        ):
            request = FastRequest(message, payload, protocol, protocol.transport)
            return cast("web.BaseRequest", request)  # aiohttp asks it for no more than it has
        return self._make_request(message, payload, protocol, writer, task)

    def __call__(self) -> RequestHandler:
        return Connection(self, self._limits, self._heads, self._loop)


class Connection(RequestHandler):
    """One client's connection.

    A silent one, or one that begins a head and does not end it, is let go after `header_seconds`:
    closed, or told 408 first. Requests that cannot be parsed are told in Ollama's shape, since no
    path is known then, and so no dialect.
    """

    __slots__ = ("_begun", "_between_bytes", "_body", "_heads", "_last_look", "_server", "_start")

    def __init__(
        self,
        server: Server,
        limits: LimitsSettings,
        heads: "Overdue[Connection]",
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle_seconds,
            max_line_size=limits.request_line_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.header_count,
            auto_decompress=False,
            lingering_time=_LINGER_SECONDS,
            read_bufsize=_READ_AHEAD_BYTES,
            # aiohttp takes None for no access log; only its annotation does not say so.
            access_log=None,  # type: ignore[arg-type]
            logger=_QUIET,
        )
        self._server = server
        self._heads = heads
        self._begun = False
        self._last_look: asyncio.TimerHandle | None = None
        self._body: StreamReader | None = None
        self._between_bytes = 0
        self._start = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._server.is_full:
            transport.close()
            return
        super().connection_made(transport)
        self._heads.begin(self)

    def data_received(self, data: bytes) -> None:
        waiting = len(self._messages)
        # An answer may go out before the request's body is in, whose rest begins no head; nor does the call
        # without data by which aiohttp goes on reading.
        in_body = self._body is not None and not self._body.is_eof()
        super().data_received(data)
        messages = self._messages
        if messages or self._current_request is not None:
            if messages and isinstance(messages[-1][0], _ErrInfo):
                self._start = (self._start + data)[:_START_BYTES]
            self.head_is_in()
            if self._body is not None or (
                messages and (len(data) > _BETWEEN_CHUNKS_BYTES or not messages[-1][1].is_eof())
            ):
                self._watch_body(len(data), begun=len(messages) - waiting)
            return
        if not data or in_body:
            return
        self._start = (self._start + data if self._begun else data)[:_START_BYTES]
        if not self._begun:
            self._begun = True
            if not self._heads.waits(self):  # a first head has had its time since the connection was made
                self._heads.begin(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.head_is_in()
        super().connection_lost(exc)

    async def _handle_request(
        self,
        request: web.BaseRequest | FastRequest,
        start_time: float | None,
        request_handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
    ) -> tuple[web.StreamResponse, bool]:
        """As aiohttp's, but a fast request is answered by its handler whole: nothing is left to send."""
        self.head_is_in()
        if not isinstance(request, FastRequest):
            return await super()._handle_request(request, start_time, request_handler)
        self._request_in_progress = True
        self._current_request = served = cast("web.BaseRequest", request)
        try:
            return await request_handler(served), False
        finally:
            self._current_request = None
            self._request_in_progress = False
            if self._handler_waiter is not None:
                self._handler_waiter.set_result(None)

    async def drained(self) -> None:
        """Wait until the client has taken enough. Raises ConnectionError where it is gone."""
        await self._drain_helper()

    def head_is_in(self) -> None:
        """A head came in time; the next may begin whenever it likes, but must then be ended."""
        self._begun = False
        self._heads.end(self)
        if self._last_look is not None:
            self._last_look.cancel()
            self._last_look = None

    def head_is_late(self) -> None:
        """Look again in a moment: where the loop stood still, the head may be in and not read yet."""
        self._last_look = self._loop.call_later(_LAST_LOOK_SECONDS, self._let_go)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Tell it and close. Raises ConnectionError always, by which aiohttp ends the connection."""
        self.head_is_in()
        begun = request.writer.output_size > 0 or isinstance(exc, ConnectionError)
        if not begun and self.transport is not None and not self.transport.is_closing():
            begin = _METHOD.match(self._start) if isinstance(exc, BadHttpMethod) else None
            unknown = begin is not None and begin[1] not in _METHODS
            told = (501, "the method is not known here") if unknown else _told(status, exc)
            self.transport.write(_plain_error(*told))
            self.transport.close()
        raise ConnectionError("the connection is closed")

    def _let_go(self) -> None:
        """Close it; where a head was begun, tell why first."""
        self._last_look = None
        if self.transport is None or self._current_request is not None:
            return
        if self._begun:
            self.transport.write(_plain_error(408, "the request's head took too long"))
        self.transport.close()

    def _watch_body(self, received: int, *, begun: int) -> None:
        """aiohttp tells a body nothing of what is wrong with it in a later read, and puts no bound on what
        stands between its chunks. The newest `begun` messages were in this read."""
        new = [self._messages[place] for place in range(-begun, 0)]
        if new and isinstance(new[-1][0], _ErrInfo):
            self._break_body(*_told(400, new[-1][0].exc))
            return
        bodies = [payload for _, payload in new]
        heads = sum(_head_bytes(message) for message, _ in new if isinstance(message, RawRequestMessage))
        self._between_bytes += received - heads
        if self._buffer_paused or self._reading_paused:  # what was received is not all parsed yet
            self._between_bytes = _NOT_COUNTED
        content = sum(each.total_bytes for each in (*bodies, *([self._body] if self._body else ())))
        if self._between_bytes - content > _BETWEEN_CHUNKS_BYTES + _BETWEEN_CHUNKS_RATIO * content:
            for _ in new:
                self._messages.pop()
            self._messages.append((_ErrInfo(400, BadHttpMessage(UNPARSABLE), UNPARSABLE), EMPTY_PAYLOAD))
            self._break_body(400, UNPARSABLE)
            return
        if bodies:
            self._body, self._between_bytes = bodies[-1], min(self._between_bytes, bodies[-1].total_bytes)
        if self._body is not None and self._body.is_eof():
            self._body, self._between_bytes = None, 0

    def _break_body(self, status: int, text: str) -> None:
        body, self._body = self._body, None
        if body is not None and not (body.is_eof() or body.exception()):
            set_exception(body, BrokenBody(status, text))


def _head_bytes(message: RawRequestMessage) -> int:
    line = len(message.method) + len(message.path) + len(b"  HTTP/1.1\r\n")
    return line + sum(len(name) + len(value) + 4 for name, value in message.raw_headers) + 2


def _plain_error(status: int, text: str) -> bytes:
    """An answer to what is no request, in Ollama's shape."""
    body = error_body(Dialect.OLLAMA, status, text, "")
    return (
        f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\n"
        "Content-Type: application/json; charset=utf-8\r\n"
        f"X-Request-ID: {uuid4().hex}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode() + body


def _told(status: int, error: BaseException | None) -> tuple[int, str]:
    """Status and text for a request that aiohttp cannot parse."""
    if isinstance(error, LineTooLong):
        target = bytes(error.args[0]).startswith((b"/", b"http"))
        return (414, "the request line is too long") if target else (431, "a header is too long")
    if isinstance(error, BadHttpMessage) and "too many headers" in str(error).casefold():
        return 431, "too many headers"
    return (status, UNPARSABLE) if status < 500 else (status, "internal error")
