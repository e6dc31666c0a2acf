"""Client connections: aiohttp's, with time and size limits that it has not, and errors in our shape.

This is the one module that touches aiohttp's inside: its `RequestHandler` is subclassed, and told
apart are a connection that waits for a head and one that serves a request.
"""

import asyncio
import logging
import resource
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.web_protocol import RequestHandler

from balancer.core.operation import Dialect
from balancer.protocol.errors import error_body
from balancer.settings import LimitsSettings

_LINGER_SECONDS = 2.0
"""So long the rest of a refused body is read and thrown away, that the client may see why."""
_FILES_SHARE = 0.45
"""Of the open files that the process may have, so many may be client connections; each may need one to
an instance."""

_QUIET = logging.getLogger("balancer.aiohttp")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


class Server(web.Server):
    """aiohttp's server with connections of our own make, at most `limits.connections` at once."""

    def __init__(
        self, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]], limits: LimitsSettings
    ) -> None:
        super().__init__(handler, handler_cancellation=True)
        self.use(limits)

    def use(self, limits: LimitsSettings) -> None:
        """Other limits, for connections that come from now on."""
        self._limits = limits
        self._most = limits.connections or int(resource.getrlimit(resource.RLIMIT_NOFILE)[0] * _FILES_SHARE)

    @property
    def is_full(self) -> bool:
        """Whether another connection would be one too many."""
        return len(self.connections) >= self._most

    def __call__(self) -> RequestHandler:
        return Connection(self, self._limits, self._loop)


class Connection(RequestHandler):
    """One client's connection.

    A silent one, or one that begins a head and does not end it, is let go after `header_seconds`:
    closed, or told 408 first. Requests that cannot be parsed are told in Ollama's shape, since no
    path is known then, and so no dialect.
    """

    __slots__ = ("_begun", "_head_timer", "_limits", "_server")

    def __init__(self, server: Server, limits: LimitsSettings, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle_seconds,
            max_line_size=limits.request_line_bytes,
            max_field_size=limits.header_bytes,
            max_headers=limits.header_count,
            auto_decompress=False,
            lingering_time=_LINGER_SECONDS,
            # aiohttp takes None for no access log; only its annotation does not say so.
            access_log=None,  # type: ignore[arg-type]
            logger=_QUIET,
        )
        self._server = server
        self._limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._server.is_full:
            transport.close()
            return
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        if self._head_timer is None and self._begun is False and self._current_request is None:
            self._await_head()
        self._begun = True
        super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.stop_head_timer()
        super().connection_lost(exc)

    def stop_head_timer(self) -> None:
        """A head is in."""
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def expect_head(self) -> None:
        """A request was served; its next head may begin whenever it likes, but must then be ended."""
        self._begun = False

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        self.stop_head_timer()
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        status, text = _told(status, exc)
        response = web.Response(
            status=status,
            body=error_body(Dialect.OLLAMA, status, text, ""),
            content_type="application/json",
            charset="utf-8",
        )
        response.force_close()
        return response

    def _await_head(self) -> None:
        self._head_timer = asyncio.get_running_loop().call_later(
            self._limits.header_seconds, self._head_is_late
        )

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self.transport is None:
            return
        if self._begun:
            body = error_body(Dialect.OLLAMA, 408, "the request's head took too long", "")
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json; charset=utf-8\r\n"
                b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            )
        self.transport.close()


def head_is_in(request: web.BaseRequest) -> None:
    """The handler has the request: its head came in time."""
    if isinstance(request.protocol, Connection):
        request.protocol.stop_head_timer()


def next_head_may_come(request: web.BaseRequest) -> None:
    """The request is served."""
    if isinstance(request.protocol, Connection):
        request.protocol.expect_head()


def _told(status: int, error: BaseException | None) -> tuple[int, str]:
    """Status and text for a request that aiohttp cannot parse."""
    if isinstance(error, LineTooLong):
        target = bytes(error.args[0]).startswith((b"/", b"http"))
        return (414, "the request line is too long") if target else (431, "a header is too long")
    if isinstance(error, BadHttpMessage) and "too many headers" in str(error).casefold():
        return 431, "too many headers"
    return (status, "the request cannot be parsed") if status < 500 else (status, "internal error")
