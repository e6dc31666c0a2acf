"""The listener of clients: an aiohttp server whose limits are ours, handing requests to the pipeline."""

import asyncio
import logging
import re
import uuid
from typing import Any, Protocol

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from balancer.clock import Clock
from balancer.core.operation import Dialect
from balancer.forwarding.downstream import ClientRequest, Sink
from balancer.frontend.body import RequestBody
from balancer.frontend.plain_sink import PlainSink
from balancer.protocol.errors import error_body
from balancer.settings import Address, LimitsSettings

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_BACKLOG = 1024
_STALL_SECONDS = 600.0
_QUIET = logging.getLogger("balancer.aiohttp")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


class Handler(Protocol):
    """What serves a request; the pipeline does."""

    async def handle(self, request: ClientRequest, sink: Sink) -> None: ...


class Listener:
    """Accepts on one address and serves until it is closed."""

    def __init__(self, *, address: Address, limits: LimitsSettings, handler: Handler, clock: Clock) -> None:
        self._address = address
        self._limits = limits
        self._handler = handler
        self._clock = clock
        self._web: _Server | None = None
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """Where it listens; with the real port where any was asked for. Once it is open."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def connections(self) -> int:
        """Client connections that are open."""
        return len(self._web.connections) if self._web is not None else 0

    async def open(self) -> None:
        """Begin to accept. Raises OSError where the address cannot be bound."""
        self._web = _Server(
            self._handle,
            handler_cancellation=True,
            keepalive_timeout=self._limits.idle_seconds,
            max_line_size=self._limits.request_line_bytes,
            max_field_size=self._limits.header_bytes,
            max_headers=self._limits.header_count,
            auto_decompress=False,
            access_log=None,
            logger=_QUIET,
        )
        self._server = await asyncio.get_running_loop().create_server(
            self._web, self._address.host, self._address.port, backlog=_BACKLOG
        )

    async def close(self, *, grace_seconds: float) -> None:
        """Accept no more, let requests under way end for so long, then cut them."""
        if self._server is None or self._web is None:
            return
        self._server.close()
        self._web.pre_shutdown()
        await self._web.shutdown(grace_seconds)
        await self._server.wait_closed()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        sink = PlainSink(request, stall_seconds=_STALL_SECONDS)
        await self._handler.handle(self._client_request(request), sink)
        if sink.response is None:
            raise ConnectionResetError("the client left before it was answered")
        return sink.response

    def _client_request(self, request: web.BaseRequest) -> ClientRequest:
        own_id = uuid.uuid4().hex
        asked_id = request.headers.get("X-Request-ID", "")
        raw_path, _, query = request.raw_path.partition("?")
        return ClientRequest(
            id=own_id,
            request_id=asked_id if _REQUEST_ID.fullmatch(asked_id) else own_id,
            method=request.method,
            raw_path=raw_path,
            query=query.partition("#")[0],
            headers=tuple((str(name), value) for name, value in request.headers.items()),
            peer=request.remote,
            body=RequestBody(request, idle_seconds=self._limits.body_idle_seconds),
            received_at=self._clock.monotonic(),
        )


class _Server(web.Server):
    """aiohttp's server with connections of our own make."""

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    """Tells requests that cannot be parsed in Ollama's shape; no path is known then, so no dialect."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was begun already")
        text = "bad request" if status < 500 else "internal error"
        detail: Any = getattr(exc, "message", None) if status < 500 else None
        body = error_body(Dialect.OLLAMA, status, f"{text}: {detail}" if detail else text, "")
        response = web.Response(status=status, body=body, content_type="application/json")
        response.force_close()
        return response
