"""An instance that plays scripts: raw bytes over real TCP, so that every oddity on the wire can be had.

Probes (`/api/version`, `/api/tags`, `/api/ps`) are answered sanely and kept apart; every other request
is recorded and answered by the next script, or by `otherwise` where none is left. Nothing here knows
HTTP beyond what it takes to read a request.
"""

import asyncio
import contextlib
import json
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass, field
from typing import cast

PATIENCE_SECONDS = 20.0
TASK_NAME = "scripted instance"
_TURNS = 4
"""Turns of the loop after which bytes sent over loopback have been read."""


@dataclass(frozen=True, slots=True)
class Send:
    """Write bytes, and wait until the socket has taken them."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Wait:
    """Go on once the test says so."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class ReadBody:
    """Read the rest of the request."""


@dataclass(frozen=True, slots=True)
class Close:
    """End the connection properly (FIN)."""


@dataclass(frozen=True, slots=True)
class Reset:
    """End the connection by a reset (RST)."""


@dataclass(frozen=True, slots=True)
class Stall:
    """Do nothing until the other end leaves."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Let the other end read what was sent, so that what follows comes in another read."""


Step = Send | Wait | ReadBody | Close | Reset | Stall | Turn
Script = Iterable[Step]


@dataclass(slots=True)
class SeenRequest:
    """A request as it came in. `body` is complete once a script has read it."""

    raw_head: bytes
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    connection: "InstanceConnection"
    body: bytes = b""
    pieces: list[bytes] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """The only value of a header; fails where it came twice."""
        values = [value for key, value in self.headers if key.casefold() == name.casefold()]
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None


# -- answers in bytes


def head(status: int = 200, *headers: str, reason: str = "Whatever") -> bytes:
    """The head of an answer; `headers` are whole lines."""
    return "\r\n".join([f"HTTP/1.1 {status} {reason}", *headers, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"


def chunked(*chunks: bytes, content_type: str = "application/x-ndjson", status: int = 200) -> bytes:
    """A whole chunked answer."""
    opening = head(status, f"Content-Type: {content_type}", "Transfer-Encoding: chunked")
    return opening + b"".join(chunk(each) for each in chunks) + END


def whole(body: bytes = b"{}", *headers: str, status: int = 200) -> bytes:
    """An answer in one piece, of JSON."""
    typed = ("Content-Type: application/json; charset=utf-8", f"Content-Length: {len(body)}")
    return head(status, *typed, *headers) + body


DONE = b'{"model":"m","response":"","done":true,"done_reason":"stop"}\n'


def _plain_answer(_request: SeenRequest) -> Script:
    return (ReadBody(), Send(whole(DONE.strip())))


class InstanceConnection(asyncio.Protocol):
    """One accepted connection. `closed` is set when either end has closed it."""

    def __init__(self, owner: "ScriptedInstance") -> None:
        self._owner = owner
        self._buffer = bytearray()
        self._news = asyncio.Event()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.closed = asyncio.Event()
        self.eof = False
        self.requests = 0
        self.received_bytes = 0
        self.sent_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, since uvloop's transports are none by inheritance.
        self.transport = cast("asyncio.Transport", transport)
        self._owner.accepted(self)

    def data_received(self, data: bytes) -> None:
        self.received_bytes += len(data)
        self._buffer += data
        self._news.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._news.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof = True
        self._news.set()
        self._flowing.set()
        self.closed.set()

    def pause_writing(self) -> None:
        self._flowing.clear()

    def resume_writing(self) -> None:
        self._flowing.set()

    def reset(self) -> None:
        """End it by a reset."""
        opened = self.transport.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def send(self, data: bytes) -> None:
        """Write, and wait while the socket is full."""
        if self.closed.is_set():
            return
        self.sent_bytes += len(data)
        self.transport.write(data)
        await self._flowing.wait()

    async def until(self, mark: bytes) -> bytes | None:
        """Everything up to and with a mark; None where the other end left before it."""
        while (end := self._buffer.find(mark)) < 0:
            if not await self._more():
                return None
        return self._take(end + len(mark))

    async def exactly(self, count: int) -> bytes | None:
        """So many bytes; None where the other end left before."""
        while len(self._buffer) < count:
            if not await self._more():
                return None
        return self._take(count)

    async def skip(self, count: int) -> bool:
        """As `exactly`, but keeping nothing; False where the other end left before."""
        while count > len(self._buffer):
            count -= len(self._buffer)
            self._buffer.clear()
            if not await self._more():
                return False
        del self._buffer[:count]
        return True

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    async def _more(self) -> bool:
        if self.eof:
            return False
        self._news.clear()
        await self._news.wait()
        return True


class ScriptedInstance:
    """Accepts on a port of its own within `running()`. `models` are what it lists.

    `hanging`: answer nothing any more, probes neither. `deaf`: read nothing more than heads.
    `discarding`: keep nothing of bodies whose length is told. `lies`: what to answer for version and
    lists instead of the truth, by path. `resident`: which models are in memory, None for all.
    """

    runtime = "ollama"
    probe_paths = frozenset({"/api/version", "/api/tags", "/api/ps"})

    def __init__(self, *models: str, version: str = "0.33.0") -> None:
        self.models = models or ("m",)
        self.version = version
        self.requests: list[SeenRequest] = []
        self.connections: list[InstanceConnection] = []
        self.probes = 0
        self.otherwise: Callable[[SeenRequest], Script] = _plain_answer
        self.lies: dict[str, bytes] = {}
        self.resident: set[str] | None = None
        self.hanging = False
        self.deaf = False
        self.discarding = False
        self._scripts: deque[Script] = deque()
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[InstanceConnection] = set()
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def open_connections(self) -> int:
        """Connections, probes' too, that neither end has closed."""
        return sum(1 for each in self._open if not each.closed.is_set())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["ScriptedInstance"]:
        """Accept until left; no task and no connection stays."""
        await self.listen()
        try:
            yield self
        finally:
            self.refuse()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            for connection in self._open:
                connection.transport.abort()
                await connection.closed.wait()
            if self._server is not None:
                await self._server.wait_closed()

    async def listen(self) -> None:
        """Accept; after `refuse` on the same port as before."""
        self._server = await asyncio.get_running_loop().create_server(
            lambda: InstanceConnection(self), "127.0.0.1", self._port
        )
        self._port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse new connections."""
        if self._server is not None:
            self._server.close()

    def play(self, *steps: Step) -> None:
        """The script for the next request, once it is read."""
        self._scripts.append((ReadBody(), *steps))

    def play_early(self, *steps: Step) -> None:
        """The script for the next request, from when its head is in."""
        self._scripts.append(steps)

    def accepted(self, connection: InstanceConnection) -> None:
        """From a connection: it is there."""
        self._open.add(connection)
        task = asyncio.get_running_loop().create_task(self._serve(connection), name=TASK_NAME)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def reset_all(self) -> None:
        """End every connection by a reset."""
        for connection in tuple(self._open):
            connection.reset()

    async def seen(self, count: int) -> SeenRequest:
        """The request of that number, counted from 1, once its head is in."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self.requests) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.requests[count - 1]

    async def _serve(self, connection: InstanceConnection) -> None:
        while (request := await self._read_head(connection)) is not None:
            if self.hanging:
                await connection.closed.wait()
                return
            if request.method == "GET" and request.target in self.probe_paths:
                self.probes += 1
                await connection.send(whole(self._listed(request.target)))
                continue
            if not connection.requests:
                self.connections.append(connection)
            connection.requests += 1
            script = self._scripts.popleft() if self._scripts else self.otherwise(request)
            if self.deaf:
                connection.transport.pause_reading()
            self.requests.append(request)
            self._changed.set()
            if not await self._play(connection, request, script):
                return

    async def _play(self, connection: InstanceConnection, request: SeenRequest, script: Script) -> bool:
        """Whether another request may follow."""
        for step in script:
            match step:
                case Send(data):
                    await connection.send(data)
                case Wait(event):
                    await event.wait()
                case ReadBody():
                    if not await self._read_body(connection, request):
                        return False
                case Turn():
                    for _ in range(_TURNS):
                        await asyncio.sleep(0)
                case Close():
                    connection.transport.close()
                    return False
                case Reset():
                    connection.reset()
                    return False
                case Stall():
                    await connection.closed.wait()
                    return False
        return True

    async def _read_head(self, connection: InstanceConnection) -> SeenRequest | None:
        raw = await connection.until(b"\r\n\r\n")
        if raw is None:
            return None
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))
        return SeenRequest(raw, method, target, headers, connection)

    async def _read_body(self, connection: InstanceConnection, request: SeenRequest) -> bool:
        if request.header("transfer-encoding") != "chunked":
            length = int(request.header("content-length") or 0)
            if self.discarding:
                return await connection.skip(length)
            body = await connection.exactly(length)
            request.body = body or b""
            return body is not None
        while (line := await connection.until(b"\r\n")) is not None:
            piece = await connection.exactly(int(line, 16) + 2)
            if piece is None:
                return False
            if piece == b"\r\n":
                request.body = b"".join(request.pieces)
                return True
            request.pieces.append(piece[:-2])
        return False

    def _listed(self, target: str) -> bytes:
        if target in self.lies:
            return self.lies[target]
        rows = [{"name": name, "model": name, "digest": f"digest of {name}"} for name in self.models]
        resident = rows if self.resident is None else [row for row in rows if row["name"] in self.resident]
        truth = {"/api/version": {"version": self.version}, "/api/ps": {"models": resident}}
        return json.dumps(truth.get(target, {"models": rows})).encode()
