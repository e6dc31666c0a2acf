"""The listener of clients: an aiohttp server whose limits are ours, handing requests to the pipeline."""

import asyncio
import re
from random import Random
from typing import Protocol, cast

from aiohttp import web

from balancer.clock import Clock
from balancer.forwarding.downstream import ClientRequest, Sink
from balancer.frontend.body import RequestBody
from balancer.frontend.connection import FastRequest, Server
from balancer.frontend.fast_sink import FastSink
from balancer.frontend.heads import fault_of
from balancer.frontend.plain_sink import PlainSink
from balancer.settings import Address, LimitsSettings
from balancer.upstream.stream_memory import StreamMemory

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_ABSOLUTE = re.compile(r"\Ahttps?://[^/?#]*", re.IGNORECASE)
_BACKLOG = 4096
_STALL_SECONDS = 600.0
_CUT_SECONDS = 0.1


class Handler(Protocol):
    """What serves a request; the pipeline does."""

    async def handle(self, request: ClientRequest, sink: Sink) -> None: ...


class Listener:
    """Accepts on one address and serves until it is closed. With `fast`, POSTs are answered by the fast
    sink."""

    def __init__(
        self,
        *,
        address: Address,
        limits: LimitsSettings,
        fast: bool,
        memory: StreamMemory,
        handler: Handler,
        clock: Clock,
    ) -> None:
        self._address = address
        self._limits = limits
        self._fast = fast
        self._memory = memory
        self._handler = handler
        self._clock = clock
        self._random = Random()
        self._web: Server | None = None
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

    def use(self, limits: LimitsSettings, *, fast: bool) -> None:
        """Other limits, for connections and requests that come from now on; another path, for requests."""
        self._limits = limits
        self._fast = fast
        if self._web is not None:
            self._web.use(limits, fast=fast)

    async def open(self) -> None:
        """Begin to accept. Raises OSError where the address cannot be bound."""
        self._web = Server(self._handle, self._limits, fast=self._fast)
        self._server = await asyncio.get_running_loop().create_server(
            self._web, self._address.host, self._address.port, backlog=_BACKLOG
        )

    def stop_accepting(self) -> None:
        """Take no more connections, and no more requests on those that are open. Idempotent."""
        if self._server is not None and self._web is not None:
            self._server.close()
            self._web.pre_shutdown()

    async def close(self) -> None:
        """As `stop_accepting`, and cut what is under way. Idempotent."""
        self.stop_accepting()
        if self._server is not None and self._web is not None:
            server, self._server = self._server, None
            await self._web.shutdown(_CUT_SECONDS)
            await server.wait_closed()

    async def _handle(self, request: web.BaseRequest | FastRequest) -> web.StreamResponse:
        if isinstance(request, FastRequest):
            return await self._handle_fast(request)
        sink = PlainSink(request, stall_seconds=_STALL_SECONDS)
        await self._handler.handle(self._client_request(request), sink)
        if sink.response is None:
            raise ConnectionResetError("the client left before it was answered")
        return sink.response

    async def _handle_fast(self, request: FastRequest) -> web.StreamResponse:
        sink = FastSink(
            request,
            buffer_bytes=self._limits.stream_buffer_bytes,
            stall_seconds=_STALL_SECONDS,
            memory=self._memory,
        )
        try:
            await self._handler.handle(self._client_request(request), sink)
        finally:
            sink.close()
        if not sink.started:
            raise ConnectionResetError("the client left before it was answered")
        return cast("web.StreamResponse", sink)  # of which aiohttp wants to know `keep_alive` alone

    def _client_request(self, request: web.BaseRequest | FastRequest) -> ClientRequest:
        own_id = f"{self._random.getrandbits(128):032x}"
        headers: list[tuple[str, str]] = []
        fields: dict[str, str] = {}
        for name, value in request.headers.items():
            headers.append((str(name), value))
            fields.setdefault(name.lower(), value)
        codings = request.headers.getall("Transfer-Encoding", ()) if "transfer-encoding" in fields else ()
        asked_id = fields.get("x-request-id", "")
        # Clients that talk to a proxy give the whole URL. Source: RFC 9112 §3.2.2.
        target = request.raw_path
        raw_path, _, query = (target if target.startswith("/") else _ABSOLUTE.sub("", target)).partition("?")
        return ClientRequest(
            id=own_id,
            request_id=asked_id if _REQUEST_ID.fullmatch(asked_id) else own_id,
            method=request.method,
            raw_path=raw_path or "/",
            query=query.partition("#")[0],
            headers=tuple(headers),
            fields=fields,
            peer=request.remote,
            body=RequestBody(request, idle_seconds=self._limits.body_idle_seconds),
            received_at=self._clock.monotonic(),
            fault=fault_of(request.method, target, request.version, fields, len(codings)),
        )
