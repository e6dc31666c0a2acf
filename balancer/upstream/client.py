"""The upstream client: send a request to an instance, get its exchange.

Request heads are written here from parts that were checked before; nothing of a client's request
line goes out.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Sequence

import msgspec

from balancer.errors import BalancerError, ConnectionLost, InstanceDown, Stopping
from balancer.protocol.headers import Headers
from balancer.protocol.translation.served import AnswerTranslation
from balancer.upstream.connection import HEAD_CODING, Connection
from balancer.upstream.exchange import Exchange
from balancer.upstream.pool import Pool
from balancer.upstream.stream_memory import StreamMemory

_TARGET = re.compile(r"/[\x21-\x7e]*")
_STALE_SECONDS = 1.0
"""A connection that had been closed shows it at once; one that is lost later was lost to the request."""
_COPIED_BYTES = 65536
"""A body up to this size is sent in one piece with its head; to copy a larger one costs more."""
_LINE_END = re.compile(r"[\r\n\0]")


class UpstreamRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What goes to an instance. `body` is bytes, or pieces that can be sent once only with their
    total length, None where it is not known before. `translation` is what its answer goes through, once;
    None where it comes as it is."""

    method: str
    target: str
    headers: Headers
    body: bytes | AsyncIterator[bytes] = b""
    length: int | None = None
    translation: AnswerTranslation | None = None

    @property
    def replayable(self) -> bool:
        """Whether it can be sent a second time."""
        return isinstance(self.body, bytes)


class UpstreamClient:
    """One pool per instance's URL, made at its first use."""

    def __init__(
        self, *, connect_seconds: float, idle_seconds: float, buffer_bytes: int, memory: StreamMemory
    ) -> None:
        self._connect_seconds = connect_seconds
        self._idle_seconds = idle_seconds
        self._buffer_bytes = buffer_bytes
        self._memory = memory
        self._pools: dict[str, Pool] = {}
        self._unanswered: dict[str, dict[Exchange, UpstreamRequest]] = {}

    def use(self, *, connect_seconds: float, buffer_bytes: int) -> None:
        """Other bounds, for what begins from now on."""
        self._connect_seconds = connect_seconds
        self._buffer_bytes = buffer_bytes
        for pool in self._pools.values():
            pool.connect_seconds = connect_seconds

    def pool(self, url: str) -> Pool:
        """The pool of an instance."""
        if url not in self._pools:
            self._pools[url] = Pool(
                url, connect_seconds=self._connect_seconds, idle_seconds=self._idle_seconds
            )
        return self._pools[url]

    def pools(self) -> Sequence[Pool]:
        """All of them."""
        return tuple(self._pools.values())

    def keep_only(self, urls: Collection[str]) -> None:
        """Keep no idle connection to any other URL; what is under way there goes on to its end."""
        for url, pool in tuple(self._pools.items()):
            pool.idle_seconds = self._idle_seconds if url in urls else 0.0
            if url not in urls:
                pool.close_idle()
                if not pool.in_use:
                    del self._pools[url]

    async def exchange(self, url: str, request: UpstreamRequest) -> Exchange:
        """Send a request and wait until its answer has begun.

        A kept connection that turns out to be closed at the other end costs one silent try on
        a new one, as long as no byte came back. Cancelling closes the connection at once.

        Raises:
            ConnectFailed: no connection.
            ConnectionLost: it ended before the first piece of a body came.
            Unfinished: a stream ended properly with no record in it.
            InstanceDown: the instance was judged down meanwhile.
            BadResponse: what came is no HTTP answer that can be relayed.
        """
        pool = self.pool(url)
        kept = pool.take_idle() if request.replayable else None
        if kept is not None:
            loop = asyncio.get_running_loop()
            began_at = loop.time()
            try:
                return await self._try(url, pool, kept, request)
            except ConnectionLost:
                if kept.heard or loop.time() - began_at > _STALE_SECONDS:
                    raise
        return await self._try(url, pool, await pool.connect(), request)

    async def ask(
        self, url: str, request: UpstreamRequest, *, limit_bytes: int, within_seconds: float
    ) -> tuple[int, bytes]:
        """The status and the whole body of an answer, which may be so long and take so long once it has
        begun. Raises as `exchange` does; ConnectionLost also for a body that does not end so."""
        exchange = await self.exchange(url, request)
        try:
            answer = await exchange.whole(limit_bytes=limit_bytes, within_seconds=within_seconds)
        finally:
            exchange.cancel()
        if answer is None:
            raise ConnectionLost("the instance did not end its answer")
        return exchange.status, answer

    def abandon(self, url: str, reason: str) -> None:
        """Fail every exchange there whose answer has not begun, so that its request can go elsewhere. One
        of which a piece is in goes on, though whoever waits for it may not have been told yet."""
        for exchange in tuple(self._unanswered.get(url, ())):
            if not exchange.has_begun:
                exchange.cancel(InstanceDown(reason))

    def give_up(self, url: str, request: UpstreamRequest, error: BalancerError) -> None:
        """Fail the exchange of a request of which nothing is in yet; nothing where there is none."""
        for exchange, sent in tuple(self._unanswered.get(url, {}).items()):
            if sent is request and not exchange.has_begun:
                exchange.cancel(error)

    def break_off(self, reason: str) -> None:
        """Fail every exchange, answered or not."""
        for pool in self._pools.values():
            pool.break_off(Stopping(reason, retry_after_seconds=1.0))

    def close(self) -> None:
        """Close every connection."""
        for pool in self._pools.values():
            pool.close()

    async def _try(self, url: str, pool: Pool, connection: Connection, request: UpstreamRequest) -> Exchange:
        exchange = connection.begin(
            head_only=request.method == "HEAD",
            buffer_bytes=self._buffer_bytes,
            memory=self._memory,
            translation=request.translation,
        )
        unanswered = self._unanswered.setdefault(url, {})
        unanswered[exchange] = request
        try:
            await _send(connection, exchange, pool.authority, request)
            await exchange.begun()
        except BaseException:  # cancelled or failed: the connection must not outlive its exchange
            exchange.cancel()
            raise
        finally:
            unanswered.pop(exchange, None)
            if not unanswered:
                self._unanswered.pop(url, None)
        return exchange


async def _send(connection: Connection, exchange: Exchange, authority: str, request: UpstreamRequest) -> None:
    if isinstance(request.body, bytes):
        # Not waited for: an instance may answer before it has read everything, or without.
        head = _head(authority, request, len(request.body))
        if len(request.body) > _COPIED_BYTES:
            connection.write(head)
            connection.write(request.body)
        else:
            connection.write(head + request.body)
        connection.request_sent()
        return
    await connection.send(_head(authority, request, request.length))
    try:
        async with asyncio.timeout(None) as upload:
            exchange.when_answered(lambda: upload.reschedule(0.0))
            await _upload(connection, request.body, chunked=request.length is None)
    except TimeoutError:
        if not upload.expired():
            raise
    finally:
        exchange.when_answered(None)


async def _upload(connection: Connection, body: AsyncIterator[bytes], *, chunked: bool) -> None:
    """All of it. Cut off once the answer is in or lost: the rest is not wanted then, and whoever
    gives the pieces may have stopped."""
    async for piece in body:
        await connection.send(_chunk(piece) if chunked else piece)
    if chunked:
        await connection.send(b"0\r\n\r\n")
    connection.request_sent()


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def _head(authority: str, request: UpstreamRequest, length: int | None) -> bytes:
    if not _TARGET.fullmatch(request.target):
        raise BalancerError("a request target with characters that no target has")
    lines = [f"{request.method} {request.target} HTTP/1.1", f"Host: {authority}"]
    lines += [f"{name}: {value}" for name, value in request.headers]
    if length is None:
        lines.append("Transfer-Encoding: chunked")
    elif length or request.method not in {"GET", "HEAD"}:
        lines.append(f"Content-Length: {length}")
    if _LINE_END.search("".join(lines)):
        raise BalancerError("a header with a line end")
    return ("\r\n".join(lines) + "\r\n\r\n").encode(*HEAD_CODING)
